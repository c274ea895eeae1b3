"""The offsets of every member of a tar, by a scan that copies nothing and trusts nothing.

Reads ustar, GNU (long names, base-256 sizes, sparse files) and PAX (extended and global headers), and
verifies every checksum. Offsets and sizes are bytes from the start of the buffer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from dali_aesthetic.shards.opened import View, as_view
from dali_aesthetic.types import Buffer

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20
"""A longer extension header is damage: real ones are far smaller, and it is held in memory."""
MAX_NAME = 4096
"""A longer name is damage too. Linux has no longer paths, and a shard's names are all held in memory."""

GLOBAL_HEADER, HARD_LINK = b"g", b"1"
_ZERO_BLOCK = bytes(BLOCK)
_LOW = 1 << 16
"""adler32 started at 0 holds the sum of the bytes modulo 65521 in its low 16 bits, computed in C. The sum of
half a block is exact, because it is at most 65280."""
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")
FILES = frozenset((b"0", b"\0", b"7", b"S"))
_WITHOUT_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_EXTENSIONS = frozenset((b"L", b"K", b"x", b"X", b"g"))
_CHUNK = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_MOST_PADDING = 1 << 20
"""Writers pad a tar to 10 KiB, for tapes to at most 1 MiB."""

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
)
"""Magic bytes of compressed files, and commands that read them whatever the file's name is."""


class TarDamage(ValueError):
    """The tar can't be read from `offset` (bytes) on; what was yielded before stands.

    `is_end` says that the file itself ends there, so that nothing can follow.
    """

    def __init__(self, offset: int, reason: str, is_end: bool = False) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason
        self.is_end = is_end


class Member(NamedTuple):
    """One entry of a tar.

    `header_offset` is its first block, extension headers included; `next_offset` is the end of its padded
    data, beyond the buffer where the tar is cut. A PAX global header is a member of type `g` without a
    name. The data of a `sparse` file is not the file's content and must not be read as such.
    """

    name: str
    type: bytes
    header_offset: int
    data_offset: int
    size: int
    next_offset: int
    sparse: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file (tarfile's `isreg`)."""
        return self.type in FILES


@dataclass(slots=True)
class _Pending:
    """The extension headers of the member that follows them."""

    start: int
    name: str | None = None
    records: dict[str, str] = field(default_factory=dict)


def scan_tar(
    buffer: Buffer | View, start: int = 0, defaults: dict[str, str] | None = None
) -> Iterator[Member]:
    """Yields every member from `start` on; ends at two zero blocks or at the end of the buffer.

    `defaults` are the records of PAX global headers before `start`; those that follow are added to it.

    A member whose data is cut off by the end of the buffer is yielded, then `TarDamage` is raised. Raises
    nothing else, whatever the bytes are.
    """
    view = as_view(buffer)
    total = len(view)
    offset = start
    pending: _Pending | None = None
    defaults = {} if defaults is None else defaults
    new_member = tuple.__new__  # a third of the time of Member(...)
    while True:
        block = view[offset : offset + BLOCK].tobytes()
        if len(block) < BLOCK or not block[0]:
            if _is_end(view, block, offset):
                break
            if block == _ZERO_BLOCK and pending is None:
                offset += BLOCK
                continue
        raw_name, raw_size, raw_sum, kind, magic, prefix = _FIELDS.unpack(block)
        if adler32(block[:256], 0) % _LOW + adler32(block[256:], 0) % _LOW != _stated_sum(raw_sum):
            _check_signed(block, raw_sum, offset)
        size = _number(raw_size, offset)
        data = offset + BLOCK
        if kind in _EXTENSIONS:
            if kind == GLOBAL_HEADER:
                defaults.update(parse_pax(_extension_data(view, data, size, offset), offset))
                yield Member("", GLOBAL_HEADER, offset, data, size, data + _padded(size))
            else:
                pending = pending or _Pending(start=offset)
                _extend(pending, kind, _extension_data(view, data, size, offset), offset)
            offset = data + _padded(size)
            continue
        name = raw_name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        if prefix[0] and magic == b"ustar\0":
            name = f"{prefix.partition(bytes(1))[0].decode('utf-8', 'backslashreplace')}/{name}"
        sparse = kind == b"S"
        if sparse:
            data = _after_sparse_maps(view, block, data)
        first = offset
        if pending is not None or defaults:
            name, size, sparse = _apply(pending, defaults, name, size, sparse, offset)
            first = pending.start if pending is not None else offset
            pending = None
        if kind == b"\0" and name.endswith("/"):
            kind = b"5"
        offset = data if kind in _WITHOUT_DATA else data + (size + 511 & -512)
        yield new_member(Member, (name, kind, first, data, size, offset, sparse))
        if offset > total and kind not in _WITHOUT_DATA and data + size > total:
            raise TarDamage(first, f"the tar ends inside {name[:200]!r}", is_end=True)
    if pending is not None:
        raise TarDamage(pending.start, "an extension header without the member it belongs to", is_end=True)


def _is_end(view: View, block: bytes, offset: int) -> bool:
    """Whether the tar ends at `offset`, where `block` is: two zero blocks, or the end of the buffer."""
    if len(block) < BLOCK:
        if block.strip(b"\0"):
            raise TarDamage(offset, "the tar ends inside a header", is_end=True)
        return True
    return block == _ZERO_BLOCK and not view[offset + BLOCK : offset + 2 * BLOCK].tobytes().strip(b"\0")


def checksum(block: bytes) -> int:
    """The sum of a header's bytes with the checksum field taken as spaces."""
    return sum(block) - sum(block[148:156]) + 8 * 32


@lru_cache(maxsize=1 << 14)
def _stated_sum(raw: bytes) -> int:
    """The sum of all 512 bytes that a header with this checksum field must have; -1 where it is no number."""
    try:
        return int(raw.strip(b" \0") or b"0", 8) - 8 * 32 + sum(raw)
    except ValueError:
        return -1


def _check_signed(block: bytes, raw_sum: bytes, offset: int) -> None:
    """Some old writers summed signed characters; every reader accepts both sums."""
    signed = sum(block) - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if signed != _stated_sum(raw_sum):
        raise TarDamage(offset, "not a tar header (wrong checksum)")


def _number(raw: bytes, offset: int) -> int:
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise TarDamage(offset, f"a size that is no number ({raw!r})")


def _padded(size: int) -> int:
    return (size + BLOCK - 1) & -BLOCK


def _extension_data(view: View, data: int, size: int, offset: int) -> bytes:
    if size > MAX_EXTENSION_BYTES:
        raise TarDamage(offset, f"an extension header of {size} bytes (at most {MAX_EXTENSION_BYTES})")
    content = view[data : data + size].tobytes()
    if len(content) < size:
        raise TarDamage(offset, "the tar ends inside an extension header", is_end=True)
    return content


def _extend(pending: _Pending, kind: bytes, content: bytes, offset: int) -> None:
    if kind == b"L":
        pending.name = content.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    elif kind in b"xX":
        pending.records = parse_pax(content, offset)


def parse_pax(content: bytes, offset: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of a PAX header at `offset`. Raises `TarDamage` where malformed."""
    records = {}
    position = 0
    while position < len(content) and content[position]:
        space = content.find(b" ", position, position + 20)
        length = content[position:space] if space > 0 else b""
        end = position + int(length) if length.isdigit() else -1
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(content) or content[end - 1] != 10 or not equals:
            raise TarDamage(offset, "a malformed PAX header")
        records[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        position = end
    return records


def _apply(
    pending: _Pending | None, defaults: dict[str, str], name: str, size: int, sparse: bool, offset: int
) -> tuple[str, int, bool]:
    """Name, size and sparseness after the extension headers; PAX records win over GNU long names.

    An empty PAX value means: as in the header.
    """
    records = defaults
    if pending is not None:
        records = {**defaults, **pending.records}
        name = pending.name if pending.name is not None else name
    name = records.get("GNU.sparse.name") or records.get("path") or name
    if len(name) > MAX_NAME:
        raise TarDamage(offset, f"a name of {len(name):,} characters (at most {MAX_NAME:,}): {name[:80]!r}")
    if stated := records.get("size"):
        if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
            raise TarDamage(offset, f"a PAX size that is no number ({stated[:40]!r})")
        size = int(stated)
    return name, size, sparse or any(record.startswith("GNU.sparse.") for record in records)


def _after_sparse_maps(view: View, header: bytes, data: int) -> int:
    """The start of an old GNU sparse file's data: behind the maps that did not fit into its header."""
    more = header[482]
    while more and data + BLOCK <= len(view):
        more = view[data + 504 : data + 505].tobytes()[0]
        data += BLOCK
    return data


def link_target(view: View, link: Member) -> str:
    """The name of the file in the tar that a hard link stands for. Raises `TarDamage`."""
    name, records = None, dict[str, str]()
    at, header = link.header_offset, link.data_offset - BLOCK
    while at < header:
        block = bytes(view[at : at + BLOCK])
        size, kind = _number(block[124:136], at), block[156:157]
        content = _extension_data(view, at + BLOCK, size, at)
        if kind == b"K":
            name = content
        elif kind in b"xX":
            records = parse_pax(content, at)
        at += BLOCK + _padded(size)
    name = name or bytes(view[header + 157 : header + 257])
    return records.get("linkpath") or name.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def next_header(buffer: Buffer | View, start: int) -> int:
    """The offset of the first header at or behind the block at `start`, where a damaged tar goes on; or -1.

    A header is a block with the magic of POSIX or GNU tar and a right checksum. Tars from before 1988 have
    no magic, so nothing is found in them. Headers of a tar stored inside the damaged one are found too.
    """
    view = as_view(buffer)
    for first in range(start, len(view), _CHUNK):
        chunk = view[first : first + _CHUNK].tobytes()
        found = chunk.find(_MAGIC)
        while found >= 0:
            block = found - _MAGIC_AT
            if block % BLOCK == 0 and _is_header(chunk[block : block + BLOCK]):
                return first + block
            found = chunk.find(_MAGIC, found + 1)
    return -1


def may_be_renamed(member: Member) -> bool:
    """Whether a lost extension header may have held another name, and so another key: a header has room for
    100 bytes, and Python's tarfile writes `?` there for characters that are not ASCII."""
    is_alone = member.data_offset - member.header_offset == BLOCK
    return is_alone and (len(member.name.encode()) >= 100 or "?" in member.name)


def odd_start(view: View) -> str:
    """What a file is instead of a tar, whose first header can't be read."""
    head = bytes(view[0:16])
    for magic, name, command in _COMPRESSED:
        if head.startswith(magic):
            return f"it is compressed with {name}; decompress it first ({command} < IN.tar > OUT.tar)"
    return f"its first header is damaged or it is something else (it starts with {head!r})"


def odd_end(buffer: Buffer | View, end: int) -> str:
    """The oddity behind a tar's last member, which ends at `end`; empty where there is none."""
    view = as_view(buffer)
    if len(view) - end < 2 * BLOCK:
        return "tar without its end marker (two zero blocks), it may have been cut"
    if bytes(view[end : end + 20 * BLOCK]).strip(b"\0") or next_header(view, end + 2 * BLOCK) >= 0:
        return "data behind the end marker left out (joined with cat?)"
    if len(view) - end > _MOST_PADDING:
        return "zeros behind the end marker, more than a tar is padded with (a download that stopped?)"
    return ""


def _is_header(block: bytes) -> bool:
    try:
        stated = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return len(block) == BLOCK and stated == checksum(block)
