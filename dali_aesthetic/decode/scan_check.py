"""Whether a baseline JPEG's data hold as many MCUs as its picture needs, counted on the GPU.

A file that was cut and got an end marker, or whose header states a greater height, has well-formed data, only
too few. libjpeg fills the rest with grey; nvJPEG's hardware leaves what an earlier image left in its memory
and reports nothing. So all codes of a scan are read, without the coefficients (T.81, F.2.2). Codes follow one
another, so an image is the work of one thread: some 100 ns a code, but hundreds of images at once.

Shape legend: N images, S Huffman tables, R rows of 256 codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from dali_aesthetic.types import Buffer, ImageHeader

_MOST_BLOCKS = 10
"""Blocks of an MCU (T.81, B.2.3)."""
_MOST_BYTES = 1 << 27
"""The kernel counts bits in 32 bits."""
_TABLE = 16 + 256  # the numbers of codes by length, and the symbols
_FIELDS = 7
_START, _LENGTH, _WORD, _ROW, _BLOCKS, _MCUS, _INTERVAL = map(tl.constexpr, range(_FIELDS))
_NO_INTERVAL = 1 << 30
_THREADS = 32
"""Threads (and images) of a program. With one warp, 32 registers a thread and no shared memory it finds room
beside a matrix product that fills a multiprocessor."""
_CODES = tl.constexpr(64)  # between two looks whether all are through
_CHUNK, _ENTRIES = tl.constexpr(4096), tl.constexpr(1024)
_AHEAD = tl.constexpr(24)
"""Words from the current one to those that are fetched into the cache, 32 each `_CODES` codes."""
_MARGIN = 64  # words behind the last scan that may be read


class _Coding(NamedTuple):
    """How a scan is coded: DC and AC tables in turn, each of `_TABLE` bytes; `blocks` holds, from its lowest
    bits on, two bits a block of an MCU (the pair of tables), and a one behind them."""

    tables: list[bytes]
    blocks: int
    mcu_width: int
    mcu_height: int


class Pending:
    """Images whose check was launched."""

    def __init__(self, number: int, rows_N: npt.NDArray[np.int64], short_N: torch.Tensor) -> None:
        """`rows_N` are the judged among `number` images. `short_N` is on its way to the host."""
        self._number, self._rows_N, self._short_N = number, rows_N, short_N
        self._done: torch.cuda.Event | None = None

    def record(self, stream: torch.cuda.Stream) -> None:
        """The answer is there when `stream` has come this far."""
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._done.record(stream)

    def short(self) -> list[bool]:
        """Wait for the answer: whether each image's data hold too few MCUs, or codes that don't exist.

        False for images that aren't judged: progressive, arithmetic, of several scans, without tables.
        """
        if self._done is not None:
            self._done.synchronize()
        found_N = np.zeros(self._number, bool)
        found_N[self._rows_N] = self._short_N.numpy()
        return found_N.tolist()


class ScanCheck:
    """Checks up to 1,024 JPEGs at once on `device`, beside what else runs there."""

    def __init__(self, device: torch.device) -> None:
        """On a CPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1), for tests."""
        self._device = device
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def start(self, images: Sequence[Buffer], headers: Sequence[ImageHeader]) -> Pending:
        """Copy and launch, and wait for nothing. The images' bytes are free again at the return."""
        batch = _Batch(images, headers)
        rows_N = batch.rows_N
        if not len(rows_N):
            return Pending(len(images), rows_N, torch.zeros(0, dtype=torch.bool))
        on_gpu = self._stream is not None
        packed = torch.empty(batch.num_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        np.concatenate(batch.parts, out=packed.numpy()[: batch.num_bytes])
        if self._stream is None:
            return Pending(len(images), rows_N, batch.launch(packed))
        with torch.cuda.stream(self._stream):
            short_N = batch.launch(packed.to(self._device, non_blocking=True))
            answer_N = torch.empty(len(rows_N), dtype=torch.bool, pin_memory=True)
            pending = Pending(len(images), rows_N, answer_N.copy_(short_N, non_blocking=True))
            pending.record(self._stream)
            return pending


class _Batch:
    """The kernels' inputs, as parts of one buffer: fields of the images, rows, tables, scans."""

    def __init__(self, images: Sequence[Buffer], headers: Sequence[ImageHeader]) -> None:
        codings: dict[tuple[bytes, bytes, bytes], tuple[int, _Coding] | None] = {}
        tables: list[bytes] = []
        rows, fields, scans = [], [], []
        for row, (image, header) in enumerate(zip(images, headers, strict=True)):
            if header.scan is None or not header.scan.start < len(image) <= _MOST_BYTES:
                continue
            start, interval, content, contents = header.scan
            key = (header.layout, content, contents)
            if key not in codings:
                coding = _coding(*key)
                codings[key] = coding and (len(tables), coding)
                tables += coding.tables if coding else []
            placed = codings[key]
            if placed is None:
                continue
            first, (_, blocks, across, down) = placed
            scans.append(np.frombuffer(image, np.uint8, offset=start))
            mcus = -(-header.width // across) * -(-header.height // down)
            fields.append((0, len(image) - start, 0, first, blocks, mcus, interval or _NO_INTERVAL))
            rows.append(row)
        self._fields_FN = np.array(fields, np.int64).reshape(-1, _FIELDS).T
        # The threads of a program wait for the longest among them.
        order_N = np.argsort(-self._fields_FN[1], kind="stable")
        self._fields_FN = np.ascontiguousarray(self._fields_FN[:, order_N])
        self.rows_N = np.array(rows, np.int64)[order_N]
        self._restarts = bool((self._fields_FN[6] < _NO_INTERVAL).any())
        if len(self.rows_N):
            self._lay_out([scans[i] for i in order_N], tables)

    def _lay_out(self, scans: list[npt.NDArray[np.uint8]], tables: list[bytes]) -> None:
        lengths_N = self._fields_FN[1]
        words_N = lengths_N // 4 + 4
        self._fields_FN[2] = np.cumsum(words_N) - words_N
        self._num_words = int(words_N.sum())
        self._rows_4R = _rows(tables)
        heads: list[npt.NDArray[Any]] = [self._fields_FN, self._rows_4R]
        heads.append(np.frombuffer(b"".join(tables), np.uint8))
        self._ends = np.cumsum([part.nbytes for part in heads]).tolist()
        self._fields_FN[0] = self._ends[-1] + np.cumsum(lengths_N) - lengths_N
        self.num_bytes = self._ends[-1] + int(lengths_N.sum())
        self.parts = [*(part.reshape(-1).view(np.uint8) for part in heads), *scans]

    def launch(self, packed: torch.Tensor) -> torch.Tensor:
        """Whether each image is short, bool [N], in the order of `rows_N`, from `parts` on the device."""
        number, device = len(self.rows_N), packed.device
        fields_end, rows_end, tables_end = self._ends
        fields_FN = packed[:fields_end].view(torch.int64)
        rows_4R = packed[fields_end:rows_end].view(torch.int32)
        num_rows = self._rows_4R.shape[1]
        entries = torch.empty(num_rows * 256, dtype=torch.int32, device=device)
        tables = packed[rows_end:tables_end]
        _fill_rows[(triton.cdiv(len(entries), _ENTRIES.value),)](tables, rows_4R, entries, num_rows)
        words = torch.empty(self._num_words + _MARGIN, dtype=torch.int32, device=device)
        bits_N = torch.empty(number, dtype=torch.int32, device=device)
        _drop_stuffing[(number,)](packed, fields_FN, words.view(torch.uint8), bits_N, number, num_warps=8)
        short_N = torch.empty(number, dtype=torch.bool, device=device)
        threads = _THREADS if packed.is_cuda else 1024  # the interpreter takes its time a program
        _count_mcus[(triton.cdiv(number, threads),)](
            words,
            entries,
            fields_FN,
            bits_N,
            short_N,
            number,
            num_rows - 1,
            0,  # `nothing`
            self._restarts,
            threads,
            num_warps=threads // 32,
        )
        return short_N


def _coding(factors: bytes, header: bytes, contents: bytes) -> _Coding | None:
    """The coding of a scan of all components, or None where tables are missing or against T.81."""
    tables: dict[int, bytes] = {}
    at = 0
    while at + 17 <= len(contents):
        stop = at + 17 + sum(contents[at + 1 : at + 17])
        tables[contents[at]] = contents[at + 1 : stop][:_TABLE].ljust(_TABLE, b"\0")
        at = stop
    number = len(factors)
    if number == 1:
        factors = b"\x11"  # a scan of one component isn't interleaved (T.81, A.2.2)
    pairs: list[tuple[bytes, bytes]] = []
    blocks: list[int] = []
    for chosen, both in zip(header[2 : 1 + 2 * number : 2], factors, strict=True):
        dc, ac = tables.get(chosen >> 4), tables.get(0x10 | chosen & 15)
        if dc is None or ac is None:
            return None
        if (dc, ac) not in pairs:
            pairs.append((dc, ac))
        blocks += [pairs.index((dc, ac))] * ((both >> 4) * (both & 15))
    if not 0 < len(blocks) <= _MOST_BLOCKS or len(pairs) > 4:
        return None
    packed = sum(pair << 2 * i for i, pair in enumerate(blocks)) | 1 << 2 * len(blocks)
    across, down = max(both >> 4 for both in factors), max(both & 15 for both in factors)
    return _Coding([table for pair in pairs for table in pair], packed, 8 * across, 8 * down)


def _rows(tables: list[bytes]) -> npt.NDArray[np.int32]:
    """The rows of codes, [4, R]: table, first 8 bits of the codes or -1, first row of longer codes, and the
    first of 8 bits that begin such.

    Each table has one row, by the next 8 bits; behind these stand those for the codes of more bits, which are
    the last of a table (T.81, C.2); and at the end one, to itself, of what is no code.
    """
    counts_SL = np.frombuffer(b"".join(table[:16] for table in tables), np.uint8).reshape(-1, 16)
    ends_SL = np.cumsum(counts_SL.astype(np.int32) << np.arange(15, -1, -1), axis=1)
    first_S = np.minimum(ends_SL[:, 7] >> 8, 256)
    more_S = np.minimum(ends_SL[:, 15] + 255 >> 8, 256) - first_S
    number = len(tables)
    behind_S = number + np.cumsum(more_S) - more_S
    owner_M = np.repeat(np.arange(number), more_S)
    prefix_M = first_S[owner_M] + np.arange(len(owner_M)) + number - behind_S[owner_M]
    rows_4R = np.full((4, number + len(owner_M) + 1), -1, np.int32)
    rows_4R[0, :-1] = np.concatenate([np.arange(number), owner_M])
    rows_4R[1, number:-1] = prefix_M
    rows_4R[2, :number], rows_4R[3, :number] = behind_S, first_S
    return rows_4R


def _kernel(*arguments: str) -> Callable[[Callable[..., None]], Any]:
    """A kernel that is compiled once, not for arguments that are 1 or aligned as well."""
    found: Any = triton.jit(do_not_specialize=arguments, do_not_specialize_on_alignment=arguments)
    return found  # type: ignore[no-any-return,unused-ignore]


@_kernel("tables", "rows", "entries", "number")
def _fill_rows(tables: tl.tensor, rows: tl.tensor, entries: tl.tensor, number: tl.tensor) -> None:
    """An entry is bits to skip | coefficients to go on by << 5 | the row of the next code, or 0, << 12."""
    entry = tl.program_id(0) * _ENTRIES + tl.arange(0, _ENTRIES)
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


@_kernel("packed", "fields", "out", "bits_out", "number")
def _drop_stuffing(
    packed: tl.tensor, fields: tl.tensor, out: tl.tensor, bits_out: tl.tensor, number: tl.tensor
) -> None:
    """Copy a scan's data up to its end marker, without the zeros after bytes FF, as big-endian words."""
    image = tl.program_id(0)
    source = packed + tl.load(fields + _START * number + image)
    length = tl.load(fields + _LENGTH * number + image).to(tl.int32)
    target = tl.load(fields + _WORD * number + image) * 4
    place = tl.arange(0, _CHUNK)
    start = length * 0
    kept = length * 0
    end = length
    while start < end:
        at = start + place
        here = tl.load(source + at, mask=at < length, other=0)
        before = tl.load(source + at - 1, mask=(at > 0) & (at < length), other=0)
        after = tl.load(source + at + 1, mask=at + 1 < length, other=0xD9)
        is_end = (here == 0xFF) & (after != 0) & ((after & 0xF8) != 0xD0)
        end = tl.minimum(end, tl.min(tl.where(is_end, at, length), axis=0))
        is_data = (at < end) & ((before != 0xFF) | (here != 0))
        after_kept = kept + tl.cumsum(is_data.to(tl.int32), axis=0)
        tl.store(out + target + ((after_kept - 1) ^ 3), here, mask=is_data)
        kept = tl.max(after_kept, axis=0)
        start += _CHUNK
    tl.store(bits_out + image, kept * 8)


@_kernel("words", "entries", "fields", "bits", "short_out", "number", "dead_row", "nothing")
def _count_mcus(
    words: tl.tensor,
    entries: tl.tensor,
    fields: tl.tensor,
    bits: tl.tensor,
    short_out: tl.tensor,
    number: tl.tensor,
    dead_row: tl.tensor,
    nothing: tl.tensor,
    restarts: tl.constexpr,
    threads: tl.constexpr,
) -> None:
    """Read a code of each thread's image a turn, without branches; `nothing` is 0 unknown to the compiler."""
    image = tl.program_id(0) * threads + tl.arange(0, threads)
    inside = image < number
    first_row = tl.load(fields + _ROW * number + image, mask=inside, other=0).to(tl.int32)
    blocks = tl.load(fields + _BLOCKS * number + image, mask=inside, other=1).to(tl.int32)
    mcus = tl.load(fields + _MCUS * number + image, mask=inside, other=0).to(tl.int32)
    interval = tl.load(fields + _INTERVAL * number + image, mask=inside, other=1).to(tl.int32)
    left = tl.load(bits + image, mask=inside, other=0)
    word = words + tl.load(fields + _WORD * number + image, mask=inside, other=0)
    window = _unsigned(tl.load(word)) << 32 | _unsigned(tl.load(word + 1))
    word += 2
    following = tl.load(word)
    offset = image * 0  # of the next bit in the window, less than 32
    coefficient, block, until = offset, blocks, interval
    row = first_row + (block & 3) * 2
    restart = image < 0
    going = (mcus > 0) & (left > 0)
    while tl.max(going.to(tl.int32), axis=0) > 0:
        ahead = _into_cache(word + _AHEAD)
        for _ in range(_CODES):
            code = ((window >> (56 - offset).to(tl.uint64)) & 255).to(tl.int32)
            entry = tl.load(entries + row * 256 + code, mask=going, other=0)
            if restarts:
                entry = tl.where(restart & going, _marker_entry(window, offset, dead_row), entry)
            left -= entry & 31
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
            mcus -= complete.to(tl.int32)
            if restarts:
                until -= complete.to(tl.int32)
                restart = until == 0
                until = tl.where(restart, interval, until)
            link = (entry >> 12) & 0xFFFFF
            row = tl.where(link > 0, link, first_row + (block & 3) * 2 + (coefficient > 0).to(tl.int32))
            going = (mcus > 0) & (left >= 0)
        left -= ahead & nothing  # a load is waited for where its result is used
    tl.store(short_out + image, (mcus > 0) | (left < 0), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _marker_entry(window: tl.tensor, offset: tl.tensor, dead_row: tl.tensor) -> tl.tensor:
    """To go behind a restart marker, which begins at a byte; without one, to the row that has no way out."""
    padding = -offset & 7
    marker = (window >> (48 - offset - padding).to(tl.uint64)).to(tl.int32) & 0xFFF8
    return tl.where(marker == 0xFFD0, padding + 16, 31 | (dead_row << 12))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _into_cache(word: tl.tensor) -> tl.tensor:
    return tl.load(word) | tl.load(word + 8) | tl.load(word + 16) | tl.load(word + 24)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _unsigned(word: tl.tensor) -> tl.tensor:
    return word.to(tl.uint32, bitcast=True).to(tl.uint64)
