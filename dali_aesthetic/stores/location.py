"""Locations: local paths and URLs of object stores."""

from __future__ import annotations

import os
import posixpath
import re

_SPECIAL = re.compile(r"[*?\[{]")


def is_url(path: str) -> bool:
    """Whether `path` has a scheme, like `s3://`."""
    return "://" in path


def protocol(url: str) -> str:
    """The scheme of a URL in lower case; `file` for a path."""
    return url.partition("://")[0].lower() if is_url(url) else "file"


def join(folder: str | os.PathLike[str], *names: str) -> str:
    """`folder/NAME/NAME`, for a path or a URL."""
    text = os.fspath(folder)
    return "/".join((text.rstrip("/"), *names)) if is_url(text) else os.path.join(text, *names)


def parent(path: str) -> str:
    """The folder of a path or URL."""
    return posixpath.dirname(path) if is_url(path) else os.path.dirname(path)


def fixed_root(pattern: str) -> str:
    """The folder before the first special part of a glob or brace pattern; a plain path is itself."""
    special = _SPECIAL.search(pattern)
    return parent(pattern[: special.start()]) if special else pattern
