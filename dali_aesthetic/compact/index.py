"""What other readers want beside the tars: open_clip's `sizes.json`, DALI's index files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dali_aesthetic.config import ConfigError
from dali_aesthetic.shards.buffer import map_file
from dali_aesthetic.shards.scan import scan_tar
from dali_aesthetic.write.files import write_whole

SIZES = "sizes.json"
_VERSION = "v1.2"


def write_sizes(shards: Path, counts: Mapping[str, int]) -> None:
    """`shards/sizes.json`: samples by file name, as open_clip and webdataset's users keep it."""
    content = json.dumps(dict(sorted(counts.items())), indent=0).encode() + b"\n"
    write_whole(shards / SIZES, content)


def write_index(tar: Path) -> None:
    """`NAME.idx` beside `NAME.tar`, for `fn.readers.webdataset(index_paths=...)`: what `wds2idx` writes.

    Raises ConfigError for member names that the format can't hold.
    """
    write_whole(tar.with_suffix(".idx"), index_of(tar).encode())


def index_of(tar: Path) -> str:
    """A line for each sample: extension, offset of the data, size and name of each of its members."""
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


def missing_indexes(shards: Path, names: Iterable[str]) -> Iterator[Path]:
    """Tars of `names` without an index."""
    tars = (shards / f"{name}.tar" for name in names)
    return (tar for tar in tars if not tar.with_suffix(".idx").exists())


def _files(tar: Path) -> Iterator[tuple[str, int, int]]:
    for member in scan_tar(map_file(str(tar))):
        if member.is_file:
            yield member.name, member.data_offset, member.size


def _split(name: str) -> tuple[str, str]:
    """As `wds2idx` does: unlike webdataset it keeps the extension's capitals."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name[:dot], name[dot + 1 :]) if dot >= 0 else ("", "")
