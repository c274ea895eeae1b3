"""What can go wrong with a store, told apart by what to do about it."""

from __future__ import annotations


class StoreError(OSError):
    """A store did not do what it was asked for, also not when asked again; the text says what and where."""


class ObjectChanged(StoreError):
    """An object is no longer the one that was opened; what was read of it must not be used."""


class NoRanges(StoreError):
    """The server sends whole objects only."""


class NoConditions(StoreError):
    """The store can't make a write depend on what is there."""


class StoreUnusable(ValueError):
    """A package or a setting that a store needs is missing or not understood; the text says which."""


LASTING = (
    *(FileNotFoundError, FileExistsError, PermissionError, NotImplementedError),
    *(ObjectChanged, NoRanges, NoConditions, StoreUnusable, ImportError, TypeError),
)
"""Asking again would not help."""
