"""Coverage-guided fuzzing of the tar scan: `python -m tests.fuzz.fuzz_scan [CORPUS] [libFuzzer options]`.

It must yield members that lie in order inside the buffer, then end or raise `TarDamage`, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import atheris

with atheris.instrument_imports(include=["dali_aesthetic"]):
    from dali_aesthetic.shards.scan import BLOCK, Member, TarDamage, scan_tar

_CHECKSUM = slice(148, 156)


def test_one_input(data: bytes) -> None:
    check(data)
    check(repaired(data))


def check(data: bytes) -> None:
    end = 0
    for member in members(data):
        assert end <= member.header_offset < member.data_offset <= member.next_offset
        assert member.header_offset % BLOCK == member.next_offset % BLOCK == 0
        assert member.data_offset <= len(data)
        assert member.size >= 0
        if member.is_file:  # links and folders state sizes without having data
            assert (
                member.data_offset + member.size
                <= member.next_offset
                < member.data_offset + member.size + BLOCK
            )
        end = member.next_offset


def members(data: bytes) -> Iterator[Member]:
    try:
        yield from scan_tar(data)
    except TarDamage as damage:
        if not (damage.reason and 0 <= damage.offset <= len(data)):
            raise AssertionError(f"damage without a reason or a place: {damage!r}") from damage


def repaired(data: bytes) -> bytes:
    """`data` with correct header checksums, which a fuzzer would never find by chance."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - BLOCK + 1, BLOCK):
        if blocks[start + 257 : start + 262] == b"ustar":
            block = blocks[start : start + BLOCK]
            block[_CHECKSUM] = b" " * 8
            block[_CHECKSUM] = b"%06o\0 " % sum(block)
            blocks[start : start + BLOCK] = block
    return bytes(blocks)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
