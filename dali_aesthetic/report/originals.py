"""The bytes of an image that was scored: from where it came, or from the shard that it was kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dali_aesthetic.report.parquet_images import image_in_row
from dali_aesthetic.shards.buffer import is_url
from dali_aesthetic.shards.formats import IMAGE_RANK, KNOWN_SIDECARS, extension, looks_like_image
from dali_aesthetic.shards.scan import Member, TarDamage, scan_tar
from dali_aesthetic.shards.tar import read_tar, split_name
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.types import Buffer, Sample, Shard

_WINDOWS = (1 << 20, 16 << 20, 128 << 20)
"""How much of a tar is read from a sample's first header on, until its image is found whole."""
_WITHOUT_IMAGES = ("npy", "npz")
"""Stored embeddings: they were scored without their images."""


class Unreachable(OSError):
    """An image can't be had any more; says why."""


def image_at(source: str, offset: int, key: str) -> Buffer:
    """The image of the sample `key`: the file `source`, the sample at byte `offset` of the tar `source`, or
    the row `offset` of the Parquet file `source`.

    Raises `Unreachable` where the source can't be read or another sample is there now.
    """
    try:
        if extension(source) in _WITHOUT_IMAGES:
            raise Unreachable(f"{source} holds no images")
        if extension(source) == "parquet":
            return _or_unreachable(image_in_row(source, offset), source)
        if extension(source) in IMAGE_RANK:
            with open_file(source) as file:
                return bytes(file.read())
        return _image_in_tar(source, offset, key)
    except Unreachable:
        raise
    except Exception as error:  # fsspec's file systems raise what their clients raise
        raise Unreachable(f"{source} can't be read: {type(error).__name__}") from error


def is_remote(source: str) -> bool:
    """Whether reading it goes over a network."""
    return is_url(source)


def kept_images(tar: Path, keys: Iterable[str]) -> Mapping[str, Buffer]:
    """The images of these keys in a kept shard; those not found are left out. Stops at the last one found."""
    wanted = set(keys)
    found: dict[str, Buffer] = {}
    for sample in read_tar(Shard(index=0, name=tar.stem, kind="tar", source=str(tar))):
        if not isinstance(sample, Sample):
            break
        if sample.key in wanted and sample.image is not None:
            found.setdefault(sample.key, sample.image)
        if len(found) == len(wanted):
            break
    return found


def _image_in_tar(source: str, offset: int, key: str) -> Buffer:
    with open_file(source) as file:
        for window in _WINDOWS:
            file.seek(offset)
            data = file.read(window)
            whole = len(data) < window
            found, ended = _first_image(memoryview(data), key, source)
            if found is not None and (ended or whole):
                return found
            if ended or whole:
                break
    return _or_unreachable(None, source)


def _or_unreachable(image: Buffer | None, source: str) -> Buffer:
    if image is None:
        raise Unreachable(f"{source} has no image of the sample where it was scored")
    return image


def _first_image(view: memoryview, key: str, source: str) -> tuple[Buffer | None, bool]:
    """The best image of the first sample of `view`, and whether the sample's end was seen."""
    best: Member | None = None
    best_rank = len(IMAGE_RANK) + 1
    try:
        for member in scan_tar(view):
            here, suffix = split_name(member.name)
            if member.is_file and here and here != key:
                if best is None and member.header_offset == 0:
                    raise Unreachable(f"{source} has another sample there now")
                return _data(view, best), True
            rank = _rank(view, member, suffix) if here else None
            if rank is not None and rank < best_rank:
                best, best_rank = member, rank
    except TarDamage as damage:
        # At the window's end it is no damage: a larger one may hold the rest.
        return _data(view, best), not damage.reason.startswith("the tar ends inside")
    return _data(view, best), False


def _rank(view: memoryview, member: Member, suffix: str) -> int | None:
    if not member.is_file or member.sparse or member.data_offset + member.size > len(view):
        return None
    if suffix in IMAGE_RANK:
        return IMAGE_RANK[suffix]
    unknown = suffix not in KNOWN_SIDECARS
    start = view[member.data_offset : member.data_offset + member.size]
    return len(IMAGE_RANK) if unknown and looks_like_image(start) else None


def _data(view: memoryview, member: Member | None) -> Buffer | None:
    return None if member is None else view[member.data_offset : member.data_offset + member.size]
