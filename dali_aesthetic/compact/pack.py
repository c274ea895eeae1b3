"""Fills packed shards in order and commits them as a run does; those that are there are skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dali_aesthetic.compact.kept import KeptSamples, Run, RunDamaged, Unit, read_kept
from dali_aesthetic.layout import SCORES, TAR_END, read_stats, scores_file, shard_file, stats_file
from dali_aesthetic.types import ShardReport, Status
from dali_aesthetic.write.commit import commit
from dali_aesthetic.write.files import output_path
from dali_aesthetic.write.writers import ParquetWriter, TarWriter

_LEAST_DIGITS = 5
_DOUBLED = "members that came twice in one sample"
_WHERE = "output_shard"


@dataclass(frozen=True, slots=True)
class Size:
    """The limits of a packed shard, which holds at least one sample, however large."""

    samples: int | None = None
    bytes: int | None = None

    def holds(self, num_samples: int, num_bytes: int) -> bool:
        """Whether so many samples, with so many bytes of entries, are within the limits."""
        return (self.samples is None or num_samples <= self.samples) and (
            self.bytes is None or num_bytes + len(TAR_END) <= self.bytes
        )


class Position(NamedTuple):
    """A sample of the run: the index of its shard, and its index among the shard's kept samples."""

    shard: int
    unit: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A committed shard. `was_there` where an earlier call wrote it."""

    name: str
    num_samples: int
    num_bytes: int
    was_there: bool


class Packer:
    """Packs `run` into `output`.

    The content of a shard depends on the run and the size alone. Its stats say where the next one begins, so
    that a killed packer goes on there.
    """

    def __init__(self, run: Run, output: Path, size: Size) -> None:
        self.run, self.output, self.size = run, output, size
        self._digits = max(_LEAST_DIGITS, len(str(self._most_shards())))
        self._last: tuple[int, KeptSamples] | None = None

    def pack(self) -> Iterator[Packed]:
        """Yields each shard in order when it is committed, or was already there.

        Raises RunDamaged where the run's files disagree, and OSError where one can't be read or written.
        """
        number, begin = 0, self._skip_empty(Position(0, 0))
        while begin is not None:
            name = f"{number:0{self._digits}d}"
            if (stats := self._committed(name, begin)) is not None:
                was_there = True
            else:
                stats, was_there = self._write(name, begin), False
            yield Packed(name, stats["num_kept"], stats["bytes_kept"], was_there)
            number, begin = number + 1, self._position(stats["next"])

    def _most_shards(self) -> int:
        by_samples = -(-self.run.num_kept // self.size.samples) if self.size.samples else 1
        # Two neighbours together exceed the limit of one shard, so each is half full on average.
        by_bytes = 2 * self.run.num_bytes // self.size.bytes + 1 if self.size.bytes else 1
        return 2 * max(by_samples, by_bytes)

    def _committed(self, name: str, begin: Position) -> dict[str, Any] | None:
        try:
            stats = read_stats(self.output, name)
        except FileNotFoundError:
            return None
        return stats if stats.get("begin") == self._noted(begin) else None

    def _write(self, name: str, begin: Position) -> dict[str, Any]:
        tar = TarWriter(output_path(self.output, shard_file(name)))
        try:
            tables, next_one, doubled = self._fill(tar, begin)
            return self._commit(name, tar, tables, begin, next_one, doubled)
        finally:
            tar.abandon()

    def _fill(self, tar: TarWriter, begin: Position) -> tuple[list[pa.Table], Position | None, list[str]]:
        """Writes entries from `begin` on. Returns their rows, the next position, and keys that came twice."""
        tables: list[pa.Table] = []
        doubled: list[str] = []
        num_rows, last_key = 0, ""
        at: Position | None = begin
        while at is not None:
            kept = self._read(at.shard)
            stop = _fitting(kept.units, at.unit, self.size, num_rows, tar.num_bytes, last_key)
            if stop == at.unit:
                break
            taken = kept.units[at.unit : stop]
            before = sum(unit.num_rows for unit in kept.units[: at.unit])
            count = sum(unit.num_rows for unit in taken)
            tar.add([memoryview(kept.view)[taken[0].start : taken[-1].end]])
            tables.append(kept.rows.slice(before, count))
            doubled += [unit.key for unit in taken if unit.num_rows > 1]
            num_rows, last_key = num_rows + count, taken[-1].key
            whole = stop == len(kept.units)
            at = self._skip_empty(Position(at.shard + 1, 0)) if whole else Position(at.shard, stop)
        return tables, at, doubled

    def _commit(
        self,
        name: str,
        tar: TarWriter,
        tables: Sequence[pa.Table],
        begin: Position,
        next_one: Position | None,
        doubled: Sequence[str],
    ) -> dict[str, Any]:
        try:
            rows = pa.concat_tables(tables)
        except pa.ArrowInvalid:
            raise RunDamaged(
                f"the files of {self.run.folder}/{SCORES} have different columns, as earlier versions wrote "
                f"them: `dali-aesthetic filter --scores {self.run.folder}` writes them again, without a GPU"
            ) from None
        where = pa.repeat(pa.scalar(shard_file(name)), len(rows))
        rows = rows.set_column(rows.column_names.index(_WHERE), _WHERE, where)
        scores = ParquetWriter(output_path(self.output, scores_file(name)))
        scores.add(rows)
        report = ShardReport(
            name=name,
            source=self.run.shards[begin.shard].name,
            num_samples=len(rows),
            num_kept=len(rows),
            statuses={Status.OK.value: len(rows)},
            bytes_kept=tar.num_bytes,
            warnings=(f"{_DOUBLED}: {len(doubled)} (like {doubled[0]})",) if doubled else (),
        )
        places = {
            "begin": self._noted(begin),
            "next": None if next_one is None else self._noted(next_one),
        }
        commit([tar, scores], output_path(self.output, stats_file(name)), lambda: report, facts=places)
        return {**asdict(report), **places}

    def _read(self, shard: int) -> KeptSamples:
        if self._last is None or self._last[0] != shard:
            self._last = (shard, read_kept(self.run, self.run.shards[shard]))
        return self._last[1]

    def _skip_empty(self, at: Position) -> Position | None:
        shards = self.run.shards
        while at.shard < len(shards) and not shards[at.shard].num_kept:
            at = Position(at.shard + 1, 0)
        return at if at.shard < len(shards) else None

    @staticmethod
    def _noted(at: Position) -> list[int]:
        return list(at)

    @staticmethod
    def _position(noted: list[int] | None) -> Position | None:
        return None if noted is None else Position(*noted)


def _fitting(
    units: Sequence[Unit], start: int, size: Size, num_rows: int, num_bytes: int, last_key: str
) -> int:
    """The end of the units from `start` on that fit into a shard which already holds so much.

    A sample with the same key as the last one starts a new shard: side by side, readers would take the two
    for one.
    """
    for index in range(start, len(units)):
        unit = units[index]
        num_rows += unit.num_rows
        num_bytes += unit.end - unit.start
        is_first = index == start and not last_key
        if not is_first and (unit.key == last_key or not size.holds(num_rows, num_bytes)):
            return index
        last_key = unit.key
    return len(units)
