"""Whether a baseline JPEG's data hold as many MCUs as its picture needs, counted on the GPU.

A file that was cut and got an end marker, or whose header states a greater height, has well-formed data, only
too few. libjpeg fills the rest with grey; nvJPEG's hardware leaves what an earlier image left in its memory
and reports nothing. So all codes of a scan are read, without the coefficients (T.81, F.2.2). Codes follow one
another, some 100 ns each, so many lanes read an image: a kernel that takes long holds up the encoder's, which
need the whole GPU.

Shape legend: N images, S Huffman tables, R rows of 256 codes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton

from dali_aesthetic.decode.scan_kernels import (
    ENTRIES,
    FIELDS,
    INTERVALS,
    LENGTH,
    START,
    STARTS,
    WORD,
    count_mcus,
    drop_stuffing,
    fill_rows,
)
from dali_aesthetic.types import Buffer, ImageHeader

_MOST_BLOCKS = 10
"""Blocks of an MCU (T.81, B.2.3)."""
_MOST_BYTES = 1 << 27
"""The kernel counts bits in 32 bits."""
_TABLE = 16 + 256  # the numbers of codes by length, and the symbols
LONG = 128 << 10
"""Bytes above which an image has more threads."""
_LANES = ((LONG, 128), (_MOST_BYTES, 1024))
"""Threads of an image of so many bytes: each reads about a kilobyte."""
_LEAST_BITS = 4096
"""Of a lane on a GPU: it must be long enough to fall in step."""
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
            intervals = -(-mcus // interval) if 0 < interval < mcus else 0
            fields.append((0, len(image) - start, 0, first, blocks, mcus, interval, intervals, 0))
            rows.append(row)
        self._fields_FN = np.array(fields, np.int64).reshape(-1, FIELDS).T
        length_N = self._fields_FN[LENGTH.value]
        lanes_N = np.select([length_N <= most for most, _ in _LANES], [number for _, number in _LANES])
        restarts_N = self._fields_FN[INTERVALS.value] > 0
        order_N = np.lexsort((-self._fields_FN[LENGTH.value], lanes_N, restarts_N))
        self._fields_FN = np.ascontiguousarray(self._fields_FN[:, order_N])
        self.rows_N = np.array(rows, np.int64)[order_N]
        kinds = zip(restarts_N[order_N].tolist(), lanes_N[order_N].tolist(), strict=True)
        self._launches = [(*kind, len(list(group))) for kind, group in groupby(kinds)]
        if len(self.rows_N):
            self._lay_out([scans[i] for i in order_N], tables)

    def _lay_out(self, scans: list[npt.NDArray[np.uint8]], tables: list[bytes]) -> None:
        lengths_N, intervals_N = self._fields_FN[LENGTH.value], self._fields_FN[INTERVALS.value]
        words_N = lengths_N // 4 + 4
        self._fields_FN[WORD.value] = np.cumsum(words_N) - words_N
        self._fields_FN[STARTS.value] = np.cumsum(intervals_N + 1) - intervals_N - 1
        self._num_words, self._num_starts = int(words_N.sum()), int((intervals_N + 1).sum())
        self._rows_4R = _rows(tables)
        heads: list[npt.NDArray[Any]] = [self._fields_FN, self._rows_4R]
        heads.append(np.frombuffer(b"".join(tables), np.uint8))
        self._ends = np.cumsum([part.nbytes for part in heads]).tolist()
        self._fields_FN[START.value] = self._ends[-1] + np.cumsum(lengths_N) - lengths_N
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
        fill_rows[(triton.cdiv(len(entries), ENTRIES.value),)](tables, rows_4R, entries, num_rows)
        words = torch.empty(self._num_words + _MARGIN, dtype=torch.int32, device=device)
        bits_N = torch.empty(number, dtype=torch.int32, device=device)
        # Where a marker is missing the interval is empty.
        starts = torch.zeros(self._num_starts, dtype=torch.int32, device=device)
        text = words.view(torch.uint8)
        drop_stuffing[(number,)](packed, fields_FN, text, bits_N, starts, number, num_warps=8)
        short_N = torch.empty(number, dtype=torch.bool, device=device)
        first = 0
        for restarts, lanes, count in self._launches:
            # Triton's interpreter takes its time a program.
            images = 1 if packed.is_cuda else min(256, triton.next_power_of_2(count))
            lanes, least = (lanes, _LEAST_BITS) if packed.is_cuda else (32, 1)
            count_mcus[(triton.cdiv(count, images),)](
                words,
                entries,
                fields_FN,
                bits_N,
                starts,
                short_N,
                number,
                first,
                first + count,
                num_rows - 1,
                0,  # `nothing`
                restarts,
                images,
                lanes,
                least,
                num_warps=lanes // 32,
            )
            first += count
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
