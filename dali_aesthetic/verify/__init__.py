"""Proof after the fact: what was written against itself and its input, a fast path against the reference."""
