"""Some files of an output at a URL in a local folder, for what reads folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dali_aesthetic.stores.access import read_bytes
from dali_aesthetic.stores.location import is_url, join


@contextmanager
def mirrored(folder: str, names: Iterable[str]) -> Iterator[Path]:
    """A copy of the files `names` of the URL `folder`, gone at the end; a local folder is its own.

    A file that isn't there is left out. Raises StoreError and PermissionError.
    """
    if not is_url(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="dali-aesthetic-") as text:
        root = Path(text)
        for name in names:
            try:
                content = read_bytes(join(folder, name))
            except FileNotFoundError:
                continue
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield root
