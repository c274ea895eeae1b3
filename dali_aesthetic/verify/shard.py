"""Checks one committed shard with other libraries than those that wrote it."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dali_aesthetic.layout import (
    FILES,
    PARQUET,
    TAR_END,
    quarantine_file,
    read_stats,
    scores_file,
    shard_file,
)
from dali_aesthetic.predicate import Predicate
from dali_aesthetic.shards.folder import group_images
from dali_aesthetic.shards.members import split_name
from dali_aesthetic.types import Status

_COLUMNS = ["key", "status", "kept", "output_shard", "aesthetic_score"]
_META = re.compile("__[^/]*__")
_DOUBLED = "duplicate file name"


def check_shard(
    output: Path,
    name: str,
    scores_only: bool,
    cut: tuple[float, float] | None = None,
    where: Predicate | None = None,
    files: Mapping[str, int] | None = None,
) -> Iterator[str]:
    """Yields a sentence for each problem of the shard.

    `cut` holds the inclusive bounds on the raw scores of kept samples, None if unknown; `where` is what else
    holds for them. `files` has the bytes of each kept image with its sidecars (see `kept_files`); it is None
    where images are in shards.
    """
    try:
        stats = read_stats(output, name)
        read = list(dict.fromkeys([*_COLUMNS, *(where.columns if where else ())]))
        table = pq.read_table(output / scores_file(name), columns=read)
        rows = table.select(_COLUMNS).to_pylist()
        yield from _check_counts(stats, rows)
        yield from _check_marks(rows, cut, where.holds(table).tolist() if where else [True] * len(rows))
        if (parquet := output / shard_file(name, PARQUET)).exists():
            if (found := len(pq.read_table(parquet))) != stats["num_kept"]:  # reads every byte
                yield f"its Parquet file has {found} rows, its stats state {stats['num_kept']} kept samples"
        elif files is not None:
            yield from _check_files(files, stats, [row["output_shard"] for row in rows if row["kept"]])
        elif not scores_only:
            yield from _check_tar(output, name, stats, [row["key"] for row in rows if row["kept"]])
        if stats.get("num_quarantined"):
            yield from _check_quarantine(output, name, stats, rows)
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        yield f"can't be read: {error}"


def _check_counts(stats: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    statuses = dict(Counter(row["status"] for row in rows))
    for what, stated, found in (
        ("samples", stats["num_samples"], len(rows)),
        ("kept samples", stats["num_kept"], sum(row["kept"] for row in rows)),
        ("statuses", stats["statuses"], statuses),
    ):
        if stated != found:
            yield f"its stats state {what} {stated}, its scores have {found}"
    if bad := sum(row["kept"] and row["status"] != Status.OK.value for row in rows):
        yield f"{bad} samples are marked as kept that could not be scored"


def _check_marks(
    rows: list[dict[str, Any]], cut: tuple[float, float] | None, holds: list[bool]
) -> Iterator[str]:
    """Checks marks against scores, exactly: the cut was rounded to float32 like the scores."""
    if cut is None:
        return
    wrong = [
        row["key"]
        for row, held in zip(rows, holds, strict=True)
        if row["kept"] != (held and _is_within(row["aesthetic_score"], cut))
    ]
    if wrong:
        yield f"{len(wrong)} samples (like {wrong[0]!r}) are marked as kept, or not, against their scores"


def _is_within(score: float | None, cut: tuple[float, float]) -> bool:
    return score is not None and cut[0] <= score <= cut[1]


def kept_files(output: Path) -> dict[str, int]:
    """The image files of an output, as its scores name them, with their bytes and those of their sidecars."""
    root = output / FILES
    names = [path.relative_to(root).as_posix() for path in root.rglob("[!.]*") if path.is_file()]
    return {
        as_text(f"{FILES}/{one.image}"): sum(
            (root / name).stat().st_size for name in (one.image, *one.sidecars)
        )
        for one in group_images(names)
    }


def as_text(path: str) -> str:
    """`path` as the scores write it, where it is not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def _check_files(files: Mapping[str, int], stats: dict[str, Any], kept: list[str]) -> Iterator[str]:
    if gone := [name for name in kept if name not in files]:
        yield f"{len(gone)} of its {len(kept)} kept images are gone, like {gone[0]}"
    elif (found := sum(files[name] for name in kept)) != (stated := stats["bytes_kept"]):
        yield f"its kept images and their sidecars have {found} bytes, its stats state {stated}"


def _check_tar(output: Path, name: str, stats: dict[str, Any], kept: list[str]) -> Iterator[str]:
    path = output / shard_file(name)
    if (found := path.stat().st_size) != (stated := stats["bytes_kept"] + len(TAR_END)):
        yield f"its tar has {found} bytes, its stats state {stated}"
    expected = [key for key, _ in groupby(kept)]
    readers = {"tarfile": _tarfile_keys}
    # webdataset skips names like __this__, and decodes names that are not UTF-8 differently.
    if not any("\\" in key or _META.search(key) for key in kept):
        readers["webdataset"] = _webdataset_keys
    for reader, read in readers.items():
        if (keys := read(path)) not in (expected, None):
            difference = _difference(keys or [], kept)
            yield f"its tar holds other samples than its scores mark as kept ({difference}; read by {reader})"


def _tarfile_keys(path: Path) -> list[str] | None:
    """The keys of adjacent members, in order. Reads every byte."""
    keys = []
    with tarfile.open(path, encoding="utf-8", errors="backslashreplace") as tar:
        for member in tar:
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                if len(content.read()) != member.size:
                    raise tarfile.ReadError(f"{path.name} ends inside {member.name}")
                keys.append(split_name(member.name)[0])
    return [key for key, _ in groupby(keys)]


def _webdataset_keys(path: Path) -> list[str] | None:
    """The keys by webdataset; None if it isn't installed or refuses members that the input has twice."""
    try:
        from webdataset.tariterators import group_by_keys, tar_file_iterator
    except ImportError:
        return None
    with path.open("rb") as file:
        members = ({**one, "__url__": path.name} for one in tar_file_iterator(file))
        try:
            return [key for key, _ in groupby(sample["__key__"] for sample in group_by_keys(members))]
        except ValueError as error:
            if _DOUBLED in str(error):
                return None
            raise


def _check_quarantine(
    output: Path, name: str, stats: dict[str, Any], rows: list[dict[str, Any]]
) -> Iterator[str]:
    bad = {row["key"] for row in rows if row["status"] != Status.OK.value}
    if (parquet := output / quarantine_file(name, PARQUET)).exists():
        if (found := len(pq.read_table(parquet))) != stats["num_quarantined"]:
            yield f"its quarantine holds {found} rows, its stats state {stats['num_quarantined']}"
        return
    keys = _tarfile_keys(output / quarantine_file(name)) or []
    if foreign := sorted(set(keys) - bad):
        yield f"its quarantine holds samples that were scored (like {foreign[0]})"
    if len(keys) > stats["num_quarantined"] or not keys:
        yield f"its quarantine holds {len(keys)} samples, its stats state {stats['num_quarantined']}"


def _difference(found: list[str], kept: list[str]) -> str:
    if missing := sorted(set(kept) - set(found)):
        return f"{len(missing)} are missing, like {missing[0]!r}"
    if foreign := sorted(set(found) - set(kept)):
        return f"{len(foreign)} are not kept, like {foreign[0]!r}"
    return "in another order"
