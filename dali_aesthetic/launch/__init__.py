"""Runs and their engines. Only this package knows devices, ranks and processes; the hot loop is shared."""
