"""Where an output's files are made and where they end up: a local folder, or an object store.

Files for a store are made whole in a folder on this machine (below TMPDIR), by the same code in the same
order, and each is then uploaded in one go: it is there whole or not at all, and the stats come last.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol, TypeVar

from dali_aesthetic.overlap import Backlog
from dali_aesthetic.stores.access import Uploader
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.write.files import Owner

T = TypeVar("T")
_PREFIX = "dali-aesthetic-"
_LOCAL_BACKLOG, _REMOTE_BACKLOG, _UPLOADERS = 2, 6, 4


class Destination(Protocol):
    """`root` is the local folder in which files are made whole."""

    root: Path

    def deliver(self, files: Sequence[Path]) -> None:
        """Brings whole files of `root` to where they belong, one after another; those not there are skipped.

        Raises OSError naming the file."""

    def backlog(self) -> Backlog[T]:
        """For commits: how many may wait, and how many run at a time."""

    def stop(self) -> None:
        """Deliveries that fail are not tried again from here on."""

    def close(self) -> None:
        """Removes what it needed only itself."""


def destination(output: str | PathLike[str]) -> Destination:
    """The destination of an output folder or URL. Raises StoreUnusable for a store that can't be had."""
    return _Store(fspath(output)) if is_url(fspath(output)) else _Folder(Path(output))


class _Folder:
    """The output itself: what has its final name is there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def deliver(self, files: Sequence[Path]) -> None:
        """Nothing is left to do."""

    def backlog(self) -> Backlog[T]:
        return Backlog(_LOCAL_BACKLOG, 1, "commit")

    def stop(self) -> None:
        """Nothing is repeated."""

    def close(self) -> None:
        """Nothing is its own."""


class _Store:
    """A folder below TMPDIR from which whole files are uploaded, and which goes at the end."""

    def __init__(self, url: str) -> None:
        self._uploader = Uploader(url)
        _remove_orphans(Path(tempfile.gettempdir()))
        self.root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{Owner.current()}-"))

    def deliver(self, files: Sequence[Path]) -> None:
        for path in files:
            if path.exists():
                self._uploader.put(path.relative_to(self.root).as_posix(), path)
                path.unlink()

    def backlog(self) -> Backlog[T]:
        """Several at a time: an upload is mostly waiting. Shards depend on nothing but their own stats."""
        return Backlog(_REMOTE_BACKLOG, _UPLOADERS, "upload")

    def stop(self) -> None:
        self._uploader.stop()

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _remove_orphans(folder: Path) -> None:
    """Folders of processes that were killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        owner = Owner.parse(path.name.removeprefix(_PREFIX).rpartition("-")[0])
        if owner is not None and owner.is_here and not owner.is_alive:
            shutil.rmtree(path, ignore_errors=True)
