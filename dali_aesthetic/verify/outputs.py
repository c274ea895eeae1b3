"""Checks every committed shard of an output: rows, members, counts, and bytes against the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic import layout
from dali_aesthetic.compact.kept import compare
from dali_aesthetic.config import ConfigError
from dali_aesthetic.predicate import Predicate
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stores.access import mirrored
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import Sample, Shard
from dali_aesthetic.verify.shard import check_shard, kept_files
from dali_aesthetic.write.kept_rows import taken
from dali_aesthetic.write.read_scores import stored_columns

_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """The result of a check. `problems` are (shard, sentence), and so are `warnings`: the run's own.

    Samples are counted in shards without a problem. `uncommitted` are shards that a stopped run left
    unfinished; the next run does them again.
    """

    num_shards: int
    num_samples: int
    num_kept: int
    compared_with_input: bool
    problems: tuple[tuple[str, str], ...]
    uncommitted: tuple[str, ...]
    warnings: tuple[tuple[str, str], ...] = ()


def verify_output(output: Path, against_input: bool = False) -> OutputCheck:
    """Checks `output`, and with `against_input` every kept byte against the run's input; of a packed output
    against the run that was packed.

    Raises NotARun or ConfigError where `output` holds nothing to check, InputError where its input is gone.
    """
    record = layout.read_record(output)
    names = sorted(layout.committed_names(output))
    if not names:
        raise ConfigError(f"{output} holds no committed shard")
    scores_only, cut = layout.holds_scores_only(record), layout.cut_of(record)
    where = None
    if condition := layout.where_of(record):
        where = Predicate(condition, stored_columns(output))
    files = kept_files(output) if layout.holds_files(record) else None
    found = ((name, check_shard(output, name, scores_only, cut, where, files)) for name in names)
    problems = [(name, text) for name, texts in found for text in texts]
    if files is not None and not layout.uncommitted_names(output):
        problems += _strays(output, names, files)
    against_input = against_input and not scores_only
    broken = {name for name, _ in problems}
    whole = [name for name in names if name not in broken]
    if against_input and (run := layout.packed_from(record)) is not None:
        if difference := compare(output, names, Path(run)):
            problems.append(("all shards", difference))
    elif against_input:
        problems += _check_bytes(output, record.get(layout.CONFIG, {}), whole)
    stats = [layout.read_stats(output, name) for name in whole]
    given = zip(whole, (one.get("warnings", ()) for one in stats), strict=True)
    return OutputCheck(
        num_shards=len(names),
        num_samples=sum(one["num_samples"] for one in stats),
        num_kept=sum(one["num_kept"] for one in stats),
        compared_with_input=against_input,
        problems=tuple(problems),
        uncommitted=tuple(layout.uncommitted_names(output)),
        warnings=tuple((name, text) for name, texts in given for text in texts),
    )


def _strays(output: Path, names: list[str], files: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """What lies among the kept images that no committed shard has kept."""
    columns = (pq.read_table(output / layout.scores_file(name), columns=["output_shard"]) for name in names)
    known = {name for column in columns for name in column.column(0).to_pylist()}
    if strange := sorted(files.keys() - known):
        yield "all shards", f"{len(strange)} images in {layout.FILES}/ are no shard's, like {strange[0]}"


def _check_bytes(output: Path, config: dict[str, Any], names: list[str]) -> Iterator[tuple[str, str]]:
    if "input" not in config:
        raise layout.NotARun(f"{output / layout.RECORD} doesn't name an input to compare with")
    planned = plan_shards(config["input"], output=output, follow_links=bool(config.get("follow_links")))
    shards = {shard.name: shard for shard in planned}
    limits = _read_limits(config.get("guard", {}))
    for name in names:
        if name not in shards:
            yield name, "its input is gone"
        elif problem := _compare(output, shards[name], limits):
            yield name, problem


def _read_limits(guard: dict[str, Any]) -> ReadLimits:
    """The limits of the run: members that it read may be too large for the defaults."""
    return ReadLimits.of(**{name: guard[name] for name in ("max_member_mb", "max_tar_gb") if name in guard})


def _compare(output: Path, shard: Shard, limits: ReadLimits = DEFAULT_LIMITS) -> str:
    """The first difference between kept samples of a shard and those of its input now, or ""."""
    table = pq.read_table(output / layout.scores_file(shard.name), columns=["kept", "key"])
    kept, keys = table.column("kept").to_pylist(), table.column("key").to_pylist()
    if (rows := output / layout.shard_file(shard.name, layout.PARQUET)).exists():
        source, found = pq.read_table(shard.source), pq.read_table(rows)
        tables = taken(source.to_batches(), np.flatnonzero(kept), source.schema)
        expected = pa.concat_tables([source.schema.empty_table(), *tables])
        same = len(source) == len(kept) and _same(found, expected)
        return "" if same else f"its rows differ from the kept ones of {shard.source}"
    samples = (item for item in read_shards([shard], limits) if isinstance(item, Sample))
    if (output / layout.FILES).exists():
        return _compare_files(output / layout.FILES, samples, keys, kept)
    row = -1
    with (output / layout.shard_file(shard.name)).open("rb") as tar:
        for row, sample in enumerate(samples):
            if row >= len(keys):
                return "its input has more samples than its scores"
            if not kept[row]:
                continue
            for entry in sample.entries:
                if tar.read(len(entry)) != entry:
                    return f"sample {sample.key!r} differs from its input in {shard.source}"
        if row + 1 < len(keys):
            return f"its input has {row + 1} samples, its scores have {len(keys)}"
        return "" if tar.read() == layout.TAR_END else "its tar goes on behind the last kept sample"


def _compare_files(folder: Path, samples: Iterable[Sample], keys: list[str], kept: list[bool]) -> str:
    found = list(zip(samples, keys, kept, strict=False))
    for sample, key, is_kept in found:
        if sample.key != key:
            return f"its input has the sample {sample.key!r} where its scores have {key!r}"
        for name, content in sample.files if is_kept else ():
            if (folder / name).read_bytes() != content:
                return f"{layout.FILES}/{name} differs from its input"
    return "" if len(found) == len(keys) else f"its input has {len(found)} samples, its scores {len(keys)}"


def _same(found: pa.Table, expected: pa.Table) -> bool:
    return found.schema == expected.schema and all(map(_same_column, found.columns, expected.columns))


def _same_column(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> bool:
    """Compares text where Arrow says unequal, since to Arrow NaN differs from itself."""
    if len(found) != len(expected) or found.equals(expected):
        return len(found) == len(expected)
    return all(
        repr(found.slice(start, _ROWS).to_pylist()) == repr(expected.slice(start, _ROWS).to_pylist())
        for start in range(0, len(found), _ROWS)
    )


def verify_location(output: str | Path, against_input: bool = False) -> OutputCheck:
    """As `verify_output`, for a folder or a URL, of which one shard at a time is downloaded.

    The output of `compact` can't be checked at a URL.
    """
    if isinstance(output, Path) or not is_url(output):
        return verify_output(Path(output), against_input)
    layout.read_record(output)
    names = sorted(layout.committed_names(output))
    if not names:
        raise ConfigError(f"{output} holds no committed shard")
    checks = [_verify_shard(output, name, against_input) for name in names]
    return OutputCheck(
        num_shards=sum(one.num_shards for one in checks),
        num_samples=sum(one.num_samples for one in checks),
        num_kept=sum(one.num_kept for one in checks),
        compared_with_input=all(one.compared_with_input for one in checks),
        problems=tuple(problem for one in checks for problem in one.problems),
        uncommitted=tuple(layout.uncommitted_names(output)),
        warnings=tuple(warning for one in checks for warning in one.warnings),
    )


def _verify_shard(output: str, name: str, against_input: bool) -> OutputCheck:
    with mirrored(output, [layout.RECORD, *layout.shard_files(name)]) as root:
        return verify_output(root, against_input)
