"""What can be wrong with an input."""

from __future__ import annotations


class InputError(ValueError):
    """The input names nothing to work on, or not clearly; the text says what and how to mend it."""
