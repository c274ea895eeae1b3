"""Tar headers for files that never were in a tar: the same bytes for the same name and size."""

from __future__ import annotations

import struct

from dali_aesthetic.shards.scan import BLOCK, checksum

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_MAX_OCTAL_SIZE = 8**11 - 1


def tar_header(name: str, size: int) -> bytes:
    """The header blocks of a regular file: mode 0644, owner 0, no times, no user names.

    A name that is not ASCII or longer than 100 bytes, and a size of 8 GiB or more, goes into a PAX header
    before it, which every reader of the last twenty years understands.
    """
    records = {}
    if not name.isascii() or len(name) > 100:
        records["path"] = name
    if size > _MAX_OCTAL_SIZE:
        records["size"] = str(size)
    short = name.encode("ascii", "replace")[:100]
    header = _block(short, min(size, _MAX_OCTAL_SIZE), b"0")
    if not records:
        return header
    content = b"".join(_record(key, value) for key, value in records.items())
    return _block(b"././@PaxHeader", len(content), b"x") + content + padding(len(content)) + header


def padding(size: int) -> bytes:
    """The zero bytes between the end of `size` bytes of data and the next block."""
    return bytes(-size % BLOCK)


def _block(name: bytes, size: int, kind: bytes) -> bytes:
    fields = [name, b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"00000000000\0"]
    rest = [kind, b"", b"ustar\0", b"00", b"", b"", b"", b"", b""]
    unsigned = _HEADER.pack(*fields, b"        ", *rest)
    return _HEADER.pack(*fields, b"%06o\0 " % checksum(unsigned), *rest)


def _record(key: str, value: str) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts its own digits."""
    body = f" {key}={value}\n".encode()
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body
