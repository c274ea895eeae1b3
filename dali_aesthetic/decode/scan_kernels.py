"""GPU kernels of the scan check: the codes of baseline JPEGs, read without their coefficients.

Shape legend: N images, S Huffman tables, R rows of 256 codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

FIELDS = 9
START, LENGTH, WORD, ROW, BLOCKS, MCUS, INTERVAL, INTERVALS, STARTS = map(tl.constexpr, range(FIELDS))
_LEAST_MCUS = tl.constexpr(4)
"""Of a lane: it must be long enough to fall in step."""
_MOST_TURNS = tl.constexpr(32)
"""Most images need two to six; one of more counts as short, which costs a second decode. Where a picture is
of one colour lanes don't fall in step, and one more begins right in each turn."""
_CODES = tl.constexpr(64)  # between two looks whether all are through
_CHUNK, ENTRIES = tl.constexpr(4096), tl.constexpr(1024)
_AHEAD = tl.constexpr(24)
"""Words from the current one to those that are fetched into the cache, 32 each `_CODES` codes."""


def _kernel(function: Callable[..., None]) -> Any:
    """A kernel that is compiled once, not for arguments that are 1 or aligned as well."""
    arguments = [name for name, kind in function.__annotations__.items() if kind == "tl.tensor"]
    compiled: Any = triton.jit(do_not_specialize=arguments, do_not_specialize_on_alignment=arguments)
    return compiled(function)


@_kernel
def fill_rows(tables: tl.tensor, rows: tl.tensor, entries: tl.tensor, number: tl.tensor) -> None:
    """An entry is bits to skip | coefficients to go on by << 5 | the row of the next code, or 0, << 12."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row, place = entry // 256, entry % 256
    inside = row < number
    table = tl.load(rows + row, mask=inside, other=-1)
    prefix = tl.load(rows + number + row, mask=inside, other=-1)
    is_code = inside & (table >= 0)
    code = tl.where(prefix < 0, place << 8, (prefix << 8) | place)
    start = entry * 0
    symbols = entry * 0
    length = entry * 0
    symbol = entry * 0
    for bits in tl.static_range(1, 17):
        count = tl.load(tables + table * 272 + bits - 1, mask=is_code, other=0).to(tl.int32)
        end = start + (count << (16 - bits))
        found = (code >= start) & (code < end)
        symbol = tl.where(found, symbols + ((code - start) >> (16 - bits)), symbol)
        length = tl.where(found, bits, length)
        start = end
        symbols += count
    symbol = tl.load(tables + table * 272 + 16 + (symbol & 255), mask=is_code & (length > 0), other=0)
    size, run = (symbol & 15).to(tl.int32), (symbol >> 4).to(tl.int32)
    ahead = tl.where(size > 0, run + 1, tl.where(run == 15, 16, 64))
    ahead = tl.where(table % 2 == 0, 1, ahead)  # DC
    known = (tl.where(prefix < 0, length, length - 8) + size) | (ahead << 5)
    # Codes of more than 8 bits
    behind = tl.load(rows + 2 * number + row, mask=inside, other=0)
    first = tl.load(rows + 3 * number + row, mask=inside, other=0)
    longer = 8 | ((behind + place - first) << 12)
    is_longer = (prefix < 0) & (place >= first) & (place * 256 < start)
    dead = 31 | ((number - 1) << 12)
    known = tl.where(is_longer, longer, tl.where(length > 0, known, dead))
    tl.store(entries + entry, tl.where(is_code, known, dead), mask=inside)


@_kernel
def drop_stuffing(
    packed: tl.tensor,
    fields: tl.tensor,
    out: tl.tensor,
    bits_out: tl.tensor,
    starts: tl.tensor,
    number: tl.tensor,
) -> None:
    """Copy a scan's data up to its end marker, without the zeros after bytes FF, as big-endian words.

    `starts` gets the first bit of each restart interval, and the end of the last as if a marker came there.
    """
    image = tl.program_id(0)
    source = packed + tl.load(fields + START * number + image)
    length = tl.load(fields + LENGTH * number + image).to(tl.int32)
    target = tl.load(fields + WORD * number + image) * 4
    intervals = tl.load(fields + INTERVALS * number + image).to(tl.int32)
    starts += tl.load(fields + STARTS * number + image)
    place = tl.arange(0, _CHUNK)
    start = length * 0
    kept = length * 0
    passed = length * 0
    end = length
    while start < end:
        at = start + place
        here = tl.load(source + at, mask=at < length, other=0)
        before = tl.load(source + at - 1, mask=(at > 0) & (at < length), other=0)
        after = tl.load(source + at + 1, mask=at + 1 < length, other=0xD9)
        is_restart = (here == 0xFF) & ((after & 0xF8) == 0xD0)
        is_end = (here == 0xFF) & (after != 0) & ~is_restart
        end = tl.minimum(end, tl.min(tl.where(is_end, at, length), axis=0))
        is_data = (at < end) & ((before != 0xFF) | (here != 0))
        after_kept = kept + tl.cumsum(is_data.to(tl.int32), axis=0)
        tl.store(out + target + ((after_kept - 1) ^ 3), here, mask=is_data)
        kept = tl.max(after_kept, axis=0)
        if intervals > 1:
            is_restart = is_restart & (at < end)
            rank = passed + tl.cumsum(is_restart.to(tl.int32), axis=0)
            tl.store(starts + rank, (after_kept + 1) * 8, mask=is_restart & (rank <= intervals))
            passed = tl.max(rank, axis=0)
        start += _CHUNK
    tl.store(bits_out + image, kept * 8)
    if passed + 1 == intervals:
        tl.store(starts + intervals, kept * 8 + 16)


@_kernel
def count_mcus(
    words: tl.tensor,
    entries: tl.tensor,
    fields: tl.tensor,
    bits: tl.tensor,
    starts: tl.tensor,
    short_out: tl.tensor,
    number: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    dead_row: tl.tensor,
    nothing: tl.tensor,
    restarts: tl.constexpr,
    images: tl.constexpr,
    lanes: tl.constexpr,
    least: tl.constexpr,
) -> None:
    """Whether images from `first` to `last` have too few MCUs; `nothing` is 0 unknown to the compiler."""
    lane = tl.arange(0, images * lanes) % lanes
    image = tl.minimum(first + tl.program_id(0) * images + tl.arange(0, images * lanes) // lanes, last - 1)
    row = tl.load(fields + ROW * number + image).to(tl.int32)
    blocks = tl.load(fields + BLOCKS * number + image).to(tl.int32)
    mcus = tl.load(fields + MCUS * number + image).to(tl.int32)
    base = words + tl.load(fields + WORD * number + image)
    if restarts:
        starts += tl.load(fields + STARTS * number + image)
        intervals = tl.load(fields + INTERVALS * number + image).to(tl.int32)
        interval = tl.load(fields + INTERVAL * number + image).to(tl.int32)
        bad = lane < 0
        each = (intervals + lanes - 1) // lanes
        turn = 0
        while turn < tl.max(each, axis=0):
            which = lane * each + turn
            inside = (turn < each) & (which < intervals)
            start = tl.load(starts + which, mask=inside, other=0)
            end = tl.load(starts + which + 1, mask=inside, other=0) - 16  # before the marker
            _, count, _ = _decode(base, entries, start, end, end, inside, row, blocks, dead_row, nothing)
            bad = bad | (inside & (count < tl.minimum(interval, mcus - which * interval)))
            turn += 1
    else:
        total = tl.load(bits + image)
        each = tl.maximum((total + lanes - 1) // lanes, total // tl.maximum(mcus, 1) * _LEAST_MCUS + least)
        count, waiting = _count_by_lanes(
            base, entries, lane, each, total, row, blocks, dead_row, nothing, images, lanes
        )
        bad = waiting | (count < mcus)
    short = tl.max(tl.reshape(bad.to(tl.int32), (images, lanes)), axis=1)
    place = first + tl.program_id(0) * images + tl.arange(0, images)
    tl.store(short_out + place, short > 0, mask=place < last)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _count_by_lanes(
    base: tl.tensor,
    entries: tl.tensor,
    lane: tl.tensor,
    each: tl.tensor,
    total: tl.tensor,
    row: tl.tensor,
    blocks: tl.tensor,
    dead_row: tl.tensor,
    nothing: tl.tensor,
    images: tl.constexpr,
    lanes: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The MCUs of data of `total` bits, `each` bits a lane, and the lanes whose begin isn't known yet.

    A lane begins anywhere in the data as if an MCU did, and soon falls in step with what stands there: codes
    are read right from then on. Where the lane before it ends is where it ought to have begun; lanes for
    which that is another place go again, until none does, and the first one began right.
    """
    start = tl.minimum(lane * each, total)
    end = tl.minimum(start + each, total)
    reached, count, dead = start, lane * 0, lane < 0
    waiting = start < end
    turn = 0
    while (tl.max(waiting.to(tl.int32), axis=0) > 0) & (turn < _MOST_TURNS):
        at, found, died = _decode(base, entries, start, end, total, waiting, row, blocks, dead_row, nothing)
        reached = tl.where(waiting, tl.where(died, end, at), reached)
        count = tl.where(waiting, found, count)
        dead = tl.where(waiting, died, dead)
        before = tl.gather(reached, tl.maximum(tl.arange(0, images * lanes) - 1, 0), 0)
        before = tl.where(lane == 0, 0, before)
        waiting = (before != start) & (lane * each < total)
        start = before
        turn += 1
    lane = tl.reshape(lane, (images, lanes))
    dead = tl.reshape(dead, (images, lanes))
    first_dead = tl.min(tl.where(dead, lane, lanes), axis=1, keep_dims=True)
    count = tl.sum(
        tl.where(lane <= first_dead, tl.reshape(count, (images, lanes)), 0), axis=1, keep_dims=True
    )
    return tl.reshape(tl.broadcast_to(count, (images, lanes)), (images * lanes,)), waiting


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _decode(
    base: tl.tensor,
    entries: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    bound: tl.tensor,
    going: tl.tensor,
    first_row: tl.tensor,
    blocks: tl.tensor,
    dead_row: tl.tensor,
    nothing: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Read codes from bit `start`, where an MCU begins, to the first MCU that begins at `end` or behind it.

    Returns where it begins, the MCUs that end before `bound`, and whether a code was none. One code of each
    thread a turn, without branches.
    """
    going = going & (start < end)
    word = base + (start >> 5)
    window = _unsigned(tl.load(word, mask=going, other=0)) << 32
    window = window | _unsigned(tl.load(word + 1, mask=going, other=0))
    word += 2
    following = tl.load(word, mask=going, other=0)
    at, offset = start, start & 31  # of the next bit: in the data, and in the window, less than 32
    coefficient, block = start * 0, blocks
    count = start * 0
    row = first_row + (blocks & 3) * 2
    dead = going & (start < 0)
    while tl.max(going.to(tl.int32), axis=0) > 0:
        ahead = _into_cache(word + _AHEAD)
        for _ in range(_CODES):
            code = ((window >> (56 - offset).to(tl.uint64)) & 255).to(tl.int32)
            entry = tl.load(entries + row * 256 + code, mask=going, other=0)
            at += entry & 31
            offset += entry & 31
            crossed = offset >= 32
            window = tl.where(crossed, window << 32 | _unsigned(following), window)
            offset &= 31
            word += crossed.to(tl.int32)
            following = tl.load(word, mask=crossed, other=following)
            coefficient += (entry >> 5) & 127
            block = tl.where(coefficient < 64, block, block >> 2)
            coefficient = tl.where(coefficient < 64, coefficient, 0)
            complete = block == 1
            block = tl.where(complete, blocks, block)
            count += (complete & (at <= bound)).to(tl.int32)
            link = (entry >> 12) & 0xFFFFF
            row = tl.where(link > 0, link, first_row + (block & 3) * 2 + (coefficient > 0).to(tl.int32))
            dead = dead | (link == dead_row)
            going = going & ~dead & (at <= bound) & ~(complete & (at >= end))
        at -= ahead & nothing  # a load is waited for where its result is used
    return at, count, dead


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _into_cache(word: tl.tensor) -> tl.tensor:
    return tl.load(word) | tl.load(word + 8) | tl.load(word + 16) | tl.load(word + 24)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _unsigned(word: tl.tensor) -> tl.tensor:
    return word.to(tl.uint32, bitcast=True).to(tl.uint64)
