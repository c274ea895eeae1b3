"""Implementations of the scoring module. Each is tested against the eager one."""
