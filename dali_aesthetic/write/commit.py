"""The only definition of done: a shard is done when its stats are there, and they are written last.

Each file of a shard is written under a temporary name in its own folder, synced to disk and only then
renamed. No file gets its final name before all of them are whole. A process that is killed on the way leaves
hidden temporary files, and at most files without stats: the next run writes those again, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dali_aesthetic.types import Buffer, ShardReport
from dali_aesthetic.write.files import publish, temporary_path, write_temporary, write_whole


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
    """Removes the temporary files of a shard; also fine after `commit`."""
    for part in parts:
        part.abandon()
