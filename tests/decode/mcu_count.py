"""The straightforward count of a scan's MCUs: a dictionary of codes, read bit by bit (T.81, C and F)."""

from __future__ import annotations

import re
from collections.abc import Iterator


def is_short(jpeg: bytes) -> bool:
    """Whether a baseline JPEG's only scan holds fewer MCUs than its picture needs."""
    tables: dict[int, dict[str, int]] = {}
    position, interval = 2, 0
    while True:
        position = re.compile(rb"\xff*").match(jpeg, position).end() - 1  # type: ignore[union-attr]
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4], "big")
        content = jpeg[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xC4:
            tables |= dict(_tables(content))
        elif marker in (0xC0, 0xC1):
            height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            factors = {content[at]: divmod(content[at + 1], 16) for at in range(6, len(content), 3)}
        elif marker == 0xDD:
            interval = int.from_bytes(content, "big")
        elif marker == 0xDA:
            break
    number = content[0]
    chosen = [(content[1 + 2 * i], *divmod(content[2 + 2 * i], 16)) for i in range(number)]
    if number == 1:
        factors = {chosen[0][0]: (1, 1)}
    blocks = [
        (tables[dc], tables[16 + ac])
        for name, dc, ac in chosen
        for _ in range(factors[name][0] * factors[name][1])
    ]
    across, down = (8 * max(factor) for factor in zip(*factors.values(), strict=True))
    needed = -(-width // across) * -(-height // down)
    end = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(jpeg, position)
    assert end is not None
    parts = re.split(rb"\xff[\xd0-\xd7]", jpeg[position : end.start()])
    if not interval:
        return bool(_mcus(parts[0], blocks, needed) < needed)
    asked = [min(interval, needed - first) for first in range(0, needed, interval)]
    found = [_mcus(part, blocks, mcus) for part, mcus in zip(parts, asked, strict=False)]
    return bool(sum(found) < needed)


def _tables(content: bytes) -> Iterator[tuple[int, dict[str, int]]]:
    while content:
        code, symbols, table = 0, iter(content[17:]), {}
        for length, count in enumerate(content[1:17], 1):
            for _ in range(count):
                table[f"{code:0{length}b}"] = next(symbols)
                code += 1
            code <<= 1
        yield content[0], table
        content = content[17 + len(table) :]


def _mcus(data: bytes, blocks: list[tuple[dict[str, int], dict[str, int]]], most: int) -> int:
    """Whole MCUs in an interval's data, `most` at most."""
    bits = "".join(f"{byte:08b}" for byte in data.replace(b"\xff\x00", b"\xff"))
    at = 0
    for mcu in range(most):
        for dc, ac in blocks:
            coefficient = 0
            while coefficient < 64:
                table = ac if coefficient else dc
                length = next((n for n in range(1, 17) if bits[at : at + n] in table), 0)
                if not length:
                    return mcu
                run, size = divmod(table[bits[at : at + length]], 16)
                at += length + size
                if at > len(bits):
                    return mcu
                if not coefficient:
                    coefficient = 1
                elif size or run == 15:
                    coefficient += run + 1
                else:
                    coefficient = 64
    return most
