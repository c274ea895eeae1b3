"""Checks of an output against itself and its input, and of a fast path against the reference."""
