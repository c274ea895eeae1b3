"""`compact`: packs the kept samples of a run, then writes the files that other readers want."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dali_aesthetic.compact.beside import subset_of, write_indexes, write_sizes, write_subset
from dali_aesthetic.compact.kept import Run, check_finished, read_run
from dali_aesthetic.compact.pack import Packed, Packer, Size
from dali_aesthetic.config import ConfigError
from dali_aesthetic.layout import CONFIG, IDENTITY, PACKED_FROM, SHARDS, TAR, scores_file
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import clean_leftovers, write_run_record

DEFAULT_SIZE = Size(samples=10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The run to pack, the output, and which other files to write."""

    run: Path
    output: Path
    size: Size = DEFAULT_SIZE
    index: bool = False
    subset_file: Path | None = None
    allow_unfinished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The content of `output`; `num_there` of its shards were written by an earlier call.

    `without_index` says why shards that were to have an index can't.
    """

    num_shards: int
    num_there: int
    num_samples: int
    num_bytes: int
    num_source_shards: int
    seconds: float
    without_index: tuple[str, ...] = ()


def compact(options: Options, each: Callable[[Packed, int], None] | None = None) -> Result:
    """Packs the kept samples of a finished run; a second call goes on where a killed one stopped.

    `each` is called for every shard, with the total number of samples. Raises NotARun or ConfigError for a
    run that can't be packed, RunMismatch where `output` holds something else, RunDamaged where the run's
    files disagree, and OSError.
    """
    start = time.perf_counter()
    for path in (options.run, options.output):
        if path.parts and path.parts[0].endswith(":"):  # what pathlib leaves of s3://
            raise ConfigError(f"{path}: only folders on a local or mounted file system are packed, no URLs")
    run = read_run(options.run)
    _check(run, options)
    # Read before anything is packed, for what is wrong with it to be said then.
    kept = (run.folder / scores_file(shard.name) for shard in run.shards if shard.num_kept)
    subset = None if options.subset_file is None else subset_of(kept)
    with claim(options.output):
        write_run_record(options.output, _record(run, options))
        clean_leftovers(options.output)
        packed = []
        for shard in Packer(run, options.output, options.size).pack():
            packed.append(shard)
            if each is not None:
                each(shard, run.num_kept)
        shards, names = options.output / SHARDS, [shard.name for shard in packed]
        write_sizes(shards, {f"{shard.name}{TAR}": shard.num_samples for shard in packed})
        without_index = write_indexes(shards, names) if options.index else ()
        if options.subset_file is not None and subset is not None:
            write_subset(options.subset_file, subset)
    return Result(
        num_shards=len(packed),
        num_there=sum(shard.was_there for shard in packed),
        num_samples=sum(shard.num_samples for shard in packed),
        num_bytes=sum(shard.num_bytes for shard in packed),
        num_source_shards=len(run.shards),
        seconds=time.perf_counter() - start,
        without_index=without_index,
    )


def _check(run: Run, options: Options) -> None:
    if options.output.resolve() == options.run.resolve():
        raise ConfigError(f"--output {options.output} is the run itself; give a folder of its own")
    if not options.allow_unfinished:
        check_finished(run)


def _record(run: Run, options: Options) -> dict[str, Any]:
    size = {"samples_per_shard": options.size.samples, "bytes_per_shard": options.size.bytes}
    return {
        **run.record,
        IDENTITY: {"packed": {**size, "kept": run.digest()}, "run": run.record[IDENTITY]},
        CONFIG: {PACKED_FROM: str(options.run), **size},
    }
