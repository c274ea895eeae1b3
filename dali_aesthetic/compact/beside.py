"""Files for other readers of packed tars: `sizes.json`, wids' and DALI's indexes, DataComp's subset file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dali_aesthetic.config import ConfigError
from dali_aesthetic.shards.opened import map_file
from dali_aesthetic.shards.scan import scan_tar
from dali_aesthetic.write.files import write_whole

SIZES, WIDS = "sizes.json", "wids.json"
_VERSION = "v1.2"
UID = "uid"
DTYPE = np.dtype("u8,u8")
_DIGITS = 32


def write_sizes(shards: Path, counts: Mapping[str, int]) -> None:
    """Writes the number of samples by file name: `sizes.json` as open_clip reads it, `wids.json` for wids."""
    content = json.dumps(dict(sorted(counts.items())), indent=0).encode() + b"\n"
    write_whole(shards / SIZES, content)
    listed = [
        {"url": name, "nsamples": count, "filesize": (shards / name).stat().st_size}
        for name, count in sorted(counts.items())
    ]
    content = json.dumps({"wids_version": 1, "shardlist": listed}, indent=1).encode() + b"\n"
    write_whole(shards / WIDS, content)


def write_indexes(shards: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Writes each missing `NAME.idx` for `fn.readers.webdataset(index_paths=...)`, as `wds2idx` does.

    Returns why other tars can't have one.
    """
    problems = []
    for tar in (shards / f"{name}.tar" for name in names):
        index = tar.with_suffix(".idx")
        try:
            if not index.exists():
                write_whole(index, index_of(tar).encode())
        except ConfigError as error:
            problems.append(str(error))
    return tuple(problems)


def index_of(tar: Path) -> str:
    """The index: a line for each sample with extension, data offset, size and name of each member.

    Raises ConfigError for member names that the format can't hold.
    """
    samples: list[list[str]] = []
    last = ""
    for name, offset, size in _files(tar):
        base, extension = _split(name)
        if not base or base.endswith("/"):
            continue
        if any(letter.isspace() for letter in name):
            raise ConfigError(
                f"--index: {tar.name} has a member {name!r}; DALI's index has no names with spaces"
            )
        if base != last:
            samples.append([])
            last = base
        samples[-1].append(f"{extension} {offset} {size} {name}")
    return "".join(f"{line}\n" for line in (f"{_VERSION} {len(samples)}", *map(" ".join, samples)))


def _files(tar: Path) -> Iterator[tuple[str, int, int]]:
    for member in scan_tar(map_file(str(tar))):
        if member.is_file:
            yield member.name, member.data_offset, member.size


def _split(name: str) -> tuple[str, str]:
    """Splits like `wds2idx`, which keeps the case of the extension, unlike webdataset."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name[:dot], name[dot + 1 :]) if dot >= 0 else ("", "")


def subset_of(scores: Iterable[Path]) -> npt.NDArray[np.void]:
    """The uids of the kept rows, sorted, as DataComp's resharder and leaderboard take them.

    They have the dtype `u8,u8`: the upper and lower 64 bits of a hexadecimal number of up to 32 digits.
    Raises ConfigError for a row without a uid.
    """
    parts = [_uids(one) for one in scores]
    halves_N2 = np.concatenate([np.empty((0, 2), np.uint64), *parts])
    order_N = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
    return np.ascontiguousarray(halves_N2[order_N]).view(DTYPE)[:, 0]


def write_subset(path: Path, subset: npt.NDArray[np.void]) -> None:
    """Writes the result of `subset_of`."""
    file = io.BytesIO()
    np.save(file, subset)
    write_whole(path, file.getbuffer())


def _uids(scores: Path) -> npt.NDArray[np.uint64]:
    """Both halves of the uid of each kept row [N, 2]. Raises ConfigError for one that is missing or wrong."""
    column = pq.read_table(scores, columns=[UID], filters=pc.field("kept")).column(0)
    if column.null_count:
        raise ConfigError(
            f"--subset-file: {column.null_count} kept samples of {scores} have no field {UID!r} in their json"
        )
    padded = pc.ascii_lpad(column, width=_DIGITS, padding="0")
    text = "".join(padded.to_pylist())
    try:
        # fromhex skips spaces, so the length is checked too.
        content = bytes.fromhex(text)
        if len(text) != _DIGITS * len(padded) or len(content) * 2 != len(text):
            raise ValueError("not 32 digits")
    except ValueError as error:
        raise ConfigError(
            f"--subset-file: an uid in {scores} is no hexadecimal number of up to {_DIGITS} digits ({error})"
        ) from None
    return np.frombuffer(content, ">u8").astype(np.uint64).reshape(-1, 2)
