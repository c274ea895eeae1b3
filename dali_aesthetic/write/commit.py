"""The only definition of done: a shard is done when its stats are there, and they are written last.

Each file of a shard is written under a temporary name in its own folder, synced to disk and only then
renamed. No file gets its final name before all of them are whole. A process that is killed on the way leaves
hidden temporary files, and at most files without stats: the next run writes those again, byte for byte.

Files for an object store are committed to a folder below TMPDIR in the same order, and each is then uploaded
as one object, the stats last.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dali_aesthetic.overlap import Backlog
from dali_aesthetic.stores.access import Uploader
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import Buffer, ShardReport
from dali_aesthetic.write.files import Owner, publish, temporary_path, write_temporary, write_whole

T = TypeVar("T")
_PREFIX = "dali-aesthetic-"
_LOCAL_BACKLOG, _REMOTE_BACKLOG, _UPLOADERS = 2, 6, 4


class Part:
    """One file of a shard: its temporary name until `publish`, then `final`."""

    def __init__(self, final: Path) -> None:
        self.final, self.temporary = final, temporary_path(final)
        self.num_bytes = 0

    def finish(self) -> None:
        """Writes what is left to write and syncs the file to disk. Raises OSError naming the file."""

    def publish(self) -> None:
        """Gives the finished file its final name."""
        publish(self.temporary, self.final)

    def abandon(self) -> None:
        """Removes the temporary file; also fine after `publish`."""
        self.temporary.unlink(missing_ok=True)


class WholeFile(Part):
    """A file whose content is made when finished. None means no file: one of an earlier try is removed."""

    def __init__(self, final: Path, content: Callable[[], Buffer | None]) -> None:
        super().__init__(final)
        self._content = content
        self._is_there = False

    def finish(self) -> None:
        """See `Part`."""
        content = self._content()
        self._is_there = content is not None
        if content is not None:
            write_temporary(self.final, content)

    def publish(self) -> None:
        """See `Part`."""
        if self._is_there:
            super().publish()
        else:
            self.final.unlink(missing_ok=True)


def commit(
    parts: Sequence[Part],
    stats: Path,
    report: Callable[[], ShardReport],
    deliver: Callable[[Sequence[Path]], None] = lambda files: None,
    facts: Mapping[str, Any] | None = None,
) -> ShardReport:
    """Commits a shard: its `parts` in their order, then its `stats`, the `report` with `facts` beside it.

    `report` is asked for once all parts are finished, when their bytes are known. `deliver` takes published
    files to where they belong, if that is elsewhere; those that don't exist are left out. Whatever fails, no
    temporary file is left. Raises OSError naming the file.
    """
    try:
        for part in parts:
            part.finish()
        for part in parts:
            part.publish()
        deliver([part.final for part in parts])
        done = report()
        fields = {**asdict(done), **(facts or {})}
        write_whole(stats, json.dumps(fields, indent=2, sort_keys=True).encode() + b"\n")
        deliver([stats])
        return done
    finally:
        abandon(parts)


def abandon(parts: Sequence[Part]) -> None:
    """Removes the temporary files of a shard, all of them whatever fails; also fine after `commit`."""
    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.abandon)


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
    """Removes the folders of this user's processes that were killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        owner = Owner.parse(path.name.removeprefix(_PREFIX).rpartition("-")[0])
        if owner is None or not owner.is_here or owner.is_alive:
            continue
        if path.lstat().st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)
