"""`verify` of an output wherever it is: a folder as a whole, a URL shard by shard in a local copy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dali_aesthetic.config import ConfigError
from dali_aesthetic.stores.access import exists, list_files
from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.stores.mirror import mirrored
from dali_aesthetic.verify.outputs import Verdict, verify_output
from dali_aesthetic.write.output import committed_names
from dali_aesthetic.write.record import RUN_RECORD

_KINDS = (
    *("stats/{}.json", "scores/{}.parquet", "shards/{}.tar", "shards/{}.parquet"),
    *("quarantine/{}.tar", "quarantine/{}.parquet"),
)


def verify_location(output: str, against_input: bool = False) -> Verdict:
    """As `verify_output`. At a URL one shard at a time is downloaded, and of an output that was made by
    `compact` nothing can be checked."""
    if not is_url(output):
        return verify_output(Path(output), against_input)
    if not exists(join(output, RUN_RECORD)):
        raise ConfigError(f"{output} is not the output of a run: it has no {RUN_RECORD}")
    names = sorted(committed_names(output))
    if not names:
        raise ConfigError(f"{output} holds no committed shard")
    verdicts = [_verify_shard(output, name, against_input) for name in names]
    return Verdict(
        num_shards=sum(one.num_shards for one in verdicts),
        num_samples=sum(one.num_samples for one in verdicts),
        num_kept=sum(one.num_kept for one in verdicts),
        compared_with_input=all(one.compared_with_input for one in verdicts),
        problems=tuple(problem for one in verdicts for problem in one.problems),
        uncommitted=tuple(_uncommitted(output, set(names))),
    )


def _verify_shard(output: str, name: str, against_input: bool) -> Verdict:
    wanted = [RUN_RECORD, *(kind.format(name) for kind in _KINDS)]
    with mirrored(output, wanted) as root:
        return verify_output(root, against_input)


def _uncommitted(output: str, names: set[str]) -> Iterable[str]:
    files = {name for folder in ("shards", "scores") for name in list_files(join(output, folder))}
    return sorted({name.rpartition(".")[0] for name in files} - names)
