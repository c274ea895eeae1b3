"""Where a damaged tar goes on: the next block that can only be a header. And what is odd at a tar's end."""

from __future__ import annotations

from dali_aesthetic.shards.buffer import View, as_view
from dali_aesthetic.shards.scan import BLOCK, Member, checksum
from dali_aesthetic.types import Buffer

_CHUNK = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_MOST_PADDING = 1 << 20
"""Writers fill up 10 KiB; for tapes up to 1 MiB."""


def next_header(buffer: Buffer | View, start: int) -> int:
    """The offset of the first header at or behind the block at `start`; -1 where there is none.

    A header is a block with the magic of POSIX or GNU tar and a right checksum. The tars of before 1988 have
    no magic: in one of those nothing is found. A tar stored within the damaged one is not told from it.
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
    """Whether an extension header that was lost may have had another name, and so another key: a header has
    room for 100 bytes, and Python's tarfile writes `?` there for what is not ASCII."""
    is_alone = member.data_offset - member.header_offset == BLOCK
    return is_alone and (len(member.name.encode()) >= 100 or "?" in member.name)


def odd_end(buffer: Buffer | View, end: int) -> str:
    """What is odd behind a tar's last member, which ends at `end`; empty where nothing is."""
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
