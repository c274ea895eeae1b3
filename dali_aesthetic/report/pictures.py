"""Pictures of the page: which samples are shown, where their images come from, and the thumbnails."""

from __future__ import annotations

import base64
import io
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from dali_aesthetic.layout import FILES, shard_file
from dali_aesthetic.report.distribution import Grid, decimal
from dali_aesthetic.report.rows import ShardScores
from dali_aesthetic.shards.formats import IMAGE_RANK, extension, looks_like_image
from dali_aesthetic.shards.parquet import holds_bytes, is_text, row_image
from dali_aesthetic.shards.tar import first_sample, read_tar, sample_at
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import Buffer, Sample, Shard

SIDE = 144
"""The side of a thumbnail in pixels."""
MAX_TOTAL_BYTES = 4 << 20
_MAX_PIXELS = 200_000_000
_PLUGINS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "AVIF", "TGA")
"""The only plugins that Pillow may try: others start foreign programs."""
_WINDOWS = (1 << 20, 16 << 20, 128 << 20)
"""The bytes of a tar that are read from a sample's first header on, until its whole image is found."""
_WITHOUT_IMAGES = ("npy", "npz")
"""Formats of stored embeddings."""
_ROWS_AT_A_TIME, _READ_BYTES = 4, 8 << 20
"""Of Parquet: rows decoded at a time, and bytes read of a column, of which a row group may have 100 GB."""
PER_BAND = 8
AT_CUT = 12


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen sample: a row of its shard's scores."""

    shard: ShardScores
    row: int
    score: float
    kept: bool
    value: float
    """What it was chosen by: its score, or the value of a bound."""


class Picks:
    """Chooses a few samples of every score band of a grid, if there is one, evenly from all shards, and those
    nearest to the cut.

    The choice depends on the scores and the shards' names alone.
    """

    def __init__(self, grid: Grid | None, cut: float) -> None:
        self._bands = grid.bands if grid else np.empty(0, np.float32)
        self._cut = np.float32(cut)
        self._by_band: list[list[tuple[float, Pick]]] = [[] for _ in self._bands[1:]]
        self._below: list[tuple[float, Pick]] = []
        self._above: list[tuple[float, Pick]] = []

    def add(
        self,
        shard: ShardScores,
        values_R: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
        scores_R: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Offers the samples of a shard by values, which are the scores unless these are given."""
        scores_R = values_R if scores_R is None else scores_R
        luck_R = np.random.default_rng(zlib.crc32(shard.name.encode())).random(len(values_R))
        band_R = np.searchsorted(self._bands, values_R, side="right") - 1
        band_R[np.isnan(values_R)] = -1
        gap_R = values_R.astype(np.float64) - float(self._cut)
        places = [(chosen, band_R == band, luck_R, PER_BAND) for band, chosen in enumerate(self._by_band)]
        places.append((self._below, gap_R < 0, -gap_R, AT_CUT))
        places.append((self._above, gap_R >= 0, gap_R, AT_CUT))
        for chosen, fits_R, rank_R, most in places:
            rows = np.flatnonzero(fits_R)
            best = rows[np.argsort(rank_R[rows], kind="stable")[:most]]
            if len(chosen) == most:
                best = best[rank_R[best] < chosen[-1][0]]
            for row in best.tolist():
                pick = Pick(shard, row, decimal(scores_R[row]), bool(kept_R[row]), decimal(values_R[row]))
                chosen.append((float(rank_R[row]), pick))
            chosen.sort(key=lambda one: one[0])  # of equal ranks the first shard's come first
            del chosen[most:]

    def bands(self) -> list[tuple[float, float, list[Pick]]]:
        """(from, to, picks) for every band with a score: the highest band first, and its highest pick."""
        edges = [decimal(edge) for edge in self._bands]
        bands = zip(edges[:-1], edges[1:], self._by_band, strict=True)
        return [(low, high, _rising(chosen)[::-1]) for low, high, chosen in bands if chosen][::-1]

    def at_cut(self) -> list[Pick]:
        """The samples nearest to the cut on both sides, in rising order."""
        return _rising(self._below) + _rising(self._above)

    def sides(self) -> tuple[list[Pick], list[Pick]]:
        """The samples nearest to the cut, below it and from it on, the nearest first."""
        return [pick for _, pick in self._below], [pick for _, pick in self._above]


def _rising(chosen: list[tuple[float, Pick]]) -> list[Pick]:
    return sorted((pick for _, pick in chosen), key=lambda pick: (pick.value, pick.shard.name, pick.row))


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture of a sample as a data URI, with key and score.

    It is that of the file `source`, or the one at `offset` in it: a byte of a tar, a row of a Parquet file.
    """

    key: str
    score: float
    uri: str
    source: str
    offset: int | None = None

    @property
    def where(self) -> tuple[str, str] | None:
        """The name of the file and the place in it; None for an image file, which the key names."""
        kind = extension(self.source)
        if kind in IMAGE_RANK:
            return None
        unit = "row" if kind == "parquet" else "byte"
        return self.source.rpartition("/")[2], "" if self.offset is None else f"{unit} {self.offset:,}"

    @property
    def link(self) -> str:
        """The address of the file for a browser; "" where it has none."""
        if is_url(self.source):
            return self.source if self.source.startswith(("http://", "https://")) else ""
        return Path(self.source).absolute().as_uri()


class Thumbnails:
    """The pictures of picked samples; `missing` counts the others by reason. Their total size is bounded."""

    def __init__(self, output: Path, *, upright: bool = False) -> None:
        self._output, self._upright = output, upright
        self._made: dict[tuple[str, int], Thumbnail] = {}
        self._bytes = 0
        self._dead_roots: dict[str, str] = {}
        self.missing: Counter[str] = Counter()

    def make(self, picks: Iterable[Pick]) -> None:
        """Reads and shrinks the pictures of `picks`, each once."""
        by_shard: dict[str, list[Pick]] = defaultdict(list)
        for pick in {(pick.shard.name, pick.row): pick for pick in picks}.values():
            by_shard[pick.shard.name].append(pick)
        for chosen in by_shard.values():
            self._make_of_shard(chosen[0].shard, chosen)

    def of(self, picks: Sequence[Pick]) -> list[Thumbnail]:
        """The pictures of `picks` that could be made, in the same order."""
        made = (self._made.get((pick.shard.name, pick.row)) for pick in picks)
        return [thumbnail for thumbnail in made if thumbnail is not None]

    def _make_of_shard(self, shard: ShardScores, picks: list[Pick]) -> None:
        columns = ["key", "source_shard", "source_offset", "output_shard"]
        rows = shard.read(columns, [pick.row for pick in picks]).to_pylist()
        kept: list[tuple[Pick, dict[str, Any]]] = []
        for pick, row in zip(picks, rows, strict=True):
            # The kept shard is local, and still there if the source is gone.
            source, kept_as = str(row["source_shard"]), str(row["output_shard"])
            if pick.kept and kept_as.startswith(f"{FILES}/") and not Path(source).is_file():
                self._add(pick, row | {"source_shard": str(self._output / kept_as)}, None)
            elif pick.kept and (is_url(source) or not Path(source).is_file()):
                kept.append((pick, row))
            else:
                self._add(pick, row, None)
        if kept:
            tar = self._output / shard_file(shard.name)
            images = kept_images(tar, [r["key"] for _, r in kept])
            for pick, row in kept:
                found = images.get(row["key"])
                place = {"source_shard": str(tar), "source_offset": None} if found else {}
                self._add(pick, row | place, found)

    def _source(self, row: dict[str, Any]) -> Buffer:
        source = str(row["source_shard"])
        root = source.rsplit("/", 1)[0]
        if is_url(source) and root in self._dead_roots:
            raise Unreachable(self._dead_roots[root])
        try:
            return image_at(source, int(row["source_offset"] or 0), row["key"])
        except Unreachable as error:
            self._dead_roots[root] = str(error)
            raise

    def _add(self, pick: Pick, row: dict[str, Any], image: Buffer | None) -> None:
        if self._bytes >= MAX_TOTAL_BYTES:
            self.missing["left out to keep the page small"] += 1
            return
        try:
            small = _shrink(image or self._source(row), self._upright)
        except Unreachable as error:
            self.missing[str(error)] += 1
            return
        except Exception as error:  # a decoder may raise anything, which costs a picture and not the report
            self.missing[f"could not be drawn: {type(error).__name__}"] += 1
            return
        self._bytes += len(small)
        uri = "data:image/webp;base64," + base64.b64encode(small).decode()
        place = str(row["source_shard"]), row["source_offset"]
        self._made[pick.shard.name, pick.row] = Thumbnail(row["key"], pick.score, uri, *place)


def _shrink(data: Buffer, upright: bool) -> bytes:
    """The centre square, which is what the model sees, as WebP of `SIDE` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_PLUGINS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError("too many pixels")
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            turned = ImageOps.exif_transpose(image) if upright else image
            square = ImageOps.fit(turned.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    square.save(buffer, "WEBP", quality=72)
    return buffer.getvalue()


class Unreachable(OSError):
    """An image can't be read any more. The message says why."""


def image_at(source: str, offset: int, key: str) -> Buffer:
    """The image of the sample `key` in `source`: an image file, a tar with the sample at byte `offset`, or a
    Parquet file with the sample in row `offset`.

    Raises `Unreachable` where the source can't be read or has another sample there now.
    """
    try:
        if extension(source) in _WITHOUT_IMAGES:
            raise Unreachable(f"{source} holds no images")
        if extension(source) == "parquet":
            return _or_unreachable(image_in_row(source, offset), source)
        if extension(source) in IMAGE_RANK:
            with open_file(source) as file:
                return bytes(file.read())
        return _image_in_tar(source, offset, key)
    except Unreachable:
        raise
    except Exception as error:  # fsspec's file systems raise what their clients raise
        raise Unreachable(f"{source} can't be read: {type(error).__name__}") from error


def kept_images(tar: Path, keys: Iterable[str]) -> Mapping[str, Buffer]:
    """The images of these keys in a kept shard, as far as they are found. Stops at the last one."""
    wanted = set(keys)
    found: dict[str, Buffer] = {}
    for sample in read_tar(Shard(index=0, name=tar.stem, kind="tar", source=str(tar))):
        if not isinstance(sample, Sample):
            break
        if sample.key in wanted and sample.image is not None:
            found.setdefault(sample.key, sample.image)
        if len(found) == len(wanted):
            break
    return found


def _image_in_tar(source: str, offset: int, key: str) -> Buffer:
    found = _remote_sample(source, offset) if is_url(source) else sample_at(source, offset)
    if found is not None and found.key != key:
        raise Unreachable(f"{source} has another sample there now")
    return _or_unreachable(found and found.image, source)


def _remote_sample(source: str, offset: int) -> Sample | None:
    found = None
    with open_file(source) as file:
        for window in _WINDOWS:
            file.seek(offset)
            data = file.read(window)
            found = first_sample(memoryview(data), source)
            if (found is not None and found.image is not None) or len(data) < window:
                break
    return found


def _or_unreachable(image: Buffer | None, source: str) -> Buffer:
    if image is None:
        raise Unreachable(f"{source} has no image of the sample where it was scored")
    return image


def image_in_row(source: str, row: int) -> Buffer | None:
    """The first value of the row that starts like an image, of the types that `read_parquet` takes.

    None if there is no such row or no image in it. Reads the row group up to the row and nothing else. Raises
    the errors of the file system.
    """
    with (
        open_file(source) as opened,
        pq.ParquetFile(opened, pre_buffer=False, buffer_size=_READ_BYTES) as file,
    ):
        schema = file.schema_arrow
        columns = [field.name for field in schema if holds_bytes(field.type)]
        columns = columns or [field.name for field in schema if is_text(field.type)]
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row < size:
                return _image(file, group, row, columns)
            row -= size
    return None


def _image(file: pq.ParquetFile, group: int, row: int, columns: list[str]) -> Buffer | None:
    for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns):
        if row < len(batch):
            found = (row_image(column, row)[0] for column in batch.columns)
            return next((one for one in found if one and looks_like_image(one)), None)
        row -= len(batch)
    return None
