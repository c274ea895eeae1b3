"""Samples of a folder of images, as tar entries made from the files' own bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dali_aesthetic.shards.buffer import DEFAULT_LIMITS, ReadLimits, TooManyBytes, read_file
from dali_aesthetic.shards.formats import extension
from dali_aesthetic.shards.images import ImageFiles, group_images
from dali_aesthetic.shards.ustar import padding, tar_header
from dali_aesthetic.shards.warn import Oddities
from dali_aesthetic.types import Buffer, Sample, Shard, ShardEnd, Status


def read_folder(shard: Shard, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields the shard's images with their sidecars, sorted by key, then its one ShardEnd."""
    oddities = Oddities()
    for files in group_images(shard.files):
        yield _sample(shard, files, oddities, limits)
    yield ShardEnd(shard=shard, warnings=oddities.warnings())


def _sample(shard: Shard, files: ImageFiles, oddities: Oddities, limits: ReadLimits) -> Sample:
    path = os.path.join(shard.source, files.image)
    entries: list[Buffer] = []
    image: Buffer | None = None
    sidecar: Buffer | None = None
    status, message = Status.OK, ""
    try:
        image = _add(entries, shard.source, files, files.image, limits)
        for name in files.sidecars:
            data = _add(entries, shard.source, files, name, limits)
            if extension(name) == "json" and sidecar is None:
                sidecar = data
    except TooManyBytes as error:
        status, message = Status.TOO_LARGE, str(error)
    except OSError as error:
        # Without one of its files a sample would be kept incomplete.
        status, message = Status.MISSING_IMAGE, f"{error.filename} can't be read: {error.strerror}"
        oddities.add("files that can't be read", str(error.filename))
    if status is Status.OK and not image:
        status, message = Status.EMPTY, f"{path} has no bytes"
    whole = status in (Status.OK, Status.EMPTY)
    return Sample(
        shard=shard,
        key=files.key,
        image=image if status is Status.OK else None,
        entries=tuple(entries) if whole else (),
        source=path,
        offset=0,
        sidecar=sidecar,
        status=status,
        message=message,
    )


def _add(entries: list[Buffer], root: str, files: ImageFiles, path: str, limits: ReadLimits) -> Buffer:
    data = read_file(os.path.join(root, path), limits.max_member_bytes)
    entries += (tar_header(files.member(path), len(data)), data)
    if fill := padding(len(data)):
        entries.append(fill)
    return data
