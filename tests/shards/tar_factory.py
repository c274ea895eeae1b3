"""Small tars for tests, made by Python's tarfile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from dali_aesthetic.shards import read_shards
from dali_aesthetic.types import Sample, Shard, ShardEnd

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 3 + b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(500)
Members = Iterable[tuple[str, bytes]]


def pack(
    members: Members, format: int = tarfile.GNU_FORMAT, pax_headers: dict[str, str] | None = None
) -> bytes:
    """A tar of regular files, in the given order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format, pax_headers=pax_headers) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def sample_members(keys: Iterable[str]) -> list[tuple[str, bytes]]:
    """jpg, json and txt for each key, all different from one another."""
    return [
        member
        for key in keys
        for member in (
            (f"{key}.jpg", JPEG + key.encode()),
            (f"{key}.json", b'{"caption": "of %s"}' % key.encode()),
            (f"{key}.txt", b"text " + key.encode()),
        )
    ]


def read_bytes(content: bytes, folder: Path) -> tuple[list[Sample], ShardEnd]:
    """The samples of a tar with this content, and its end, which must be the one last item."""
    path = folder / "shard.tar"
    path.write_bytes(content)
    return read_one(Shard(index=0, name="shard", kind="tar", source=str(path)))


def read_one(shard: Shard) -> tuple[list[Sample], ShardEnd]:
    *samples, end = read_shards([shard])
    assert isinstance(end, ShardEnd)
    assert all(isinstance(sample, Sample) for sample in samples)
    return [sample for sample in samples if isinstance(sample, Sample)], end


def joined(samples: Iterable[Sample]) -> bytes:
    """A tar of all their entries."""
    return b"".join(bytes(entry) for sample in samples for entry in sample.entries) + bytes(1024)


def unpack(content: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a tar, as tarfile sees them."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar if info.isreg()]  # type: ignore[union-attr]
