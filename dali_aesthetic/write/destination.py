"""The destination of an output's files: a local folder, or an object store by way of one.

Files for a store are committed to a folder below TMPDIR by the same code in the same order, and each is then
uploaded as one object.
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
    """`root` is the local folder in which files are committed."""

    root: Path

    def deliver(self, files: Sequence[Path]) -> None:
        """Takes committed files of `root` to the output, one after another, skipping those that don't exist.

        Raises OSError naming the file."""

    def backlog(self) -> Backlog[T]:
        """A queue of commits that fits the destination: how many may wait, and how many run at a time."""

    def stop(self) -> None:
        """Ends the retries of deliveries."""

    def close(self) -> None:
        """Removes the temporary folder, if there is one."""


def destination(output: str | PathLike[str]) -> Destination:
    """The destination of an output folder or URL. Raises StoreUnusable."""
    return _Store(fspath(output)) if is_url(fspath(output)) else _Folder(Path(output))


class _Folder:
    """The output itself."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def deliver(self, files: Sequence[Path]) -> None:
        """The files are there."""

    def backlog(self) -> Backlog[T]:
        return Backlog(_LOCAL_BACKLOG, 1, "commit")

    def stop(self) -> None:
        """There are no retries."""

    def close(self) -> None:
        """There is no temporary folder."""


class _Store:
    """A folder below TMPDIR, removed at the end, from which files are uploaded."""

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
        """Several at a time, since an upload is mostly waiting and shards don't depend on each other."""
        return Backlog(_REMOTE_BACKLOG, _UPLOADERS, "upload")

    def stop(self) -> None:
        self._uploader.stop()

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _remove_orphans(folder: Path) -> None:
    """Removes the folders of processes that were killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        owner = Owner.parse(path.name.removeprefix(_PREFIX).rpartition("-")[0])
        if owner is not None and owner.is_here and not owner.is_alive:
            shutil.rmtree(path, ignore_errors=True)
