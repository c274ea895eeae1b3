"""Small pictures for the page: what the model saw of a sample, as a data URI. Number and size are bounded."""

from __future__ import annotations

import base64
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from dali_aesthetic.report.originals import Unreachable, image_at, is_remote, kept_images
from dali_aesthetic.report.picks import Pick
from dali_aesthetic.report.rows import ShardScores
from dali_aesthetic.types import Buffer

SIDE = 144
"""Pixels of a thumbnail's side."""
MAX_TOTAL_BYTES = 4 << 20
_MAX_PIXELS = 200_000_000
_PLUGINS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "AVIF", "TGA")
"""Pillow may try these only: others start foreign programs."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture of a sample with its key and score."""

    key: str
    score: float
    uri: str


class Thumbnails:
    """Pictures of picked samples, and why some could not be had (`missing`: reason -> how many)."""

    def __init__(self, output: Path, *, upright: bool = False) -> None:
        self._output, self._upright = output, upright
        self._made: dict[tuple[str, int], Thumbnail] = {}
        self._bytes = 0
        self._dead_roots: dict[str, str] = {}
        self.missing: Counter[str] = Counter()

    def make(self, picks: Iterable[Pick]) -> None:
        """Reads and shrinks the pictures of `picks`, each once; the images are opened, never scored."""
        by_shard: dict[str, list[Pick]] = defaultdict(list)
        for pick in {(pick.shard.name, pick.row): pick for pick in picks}.values():
            by_shard[pick.shard.name].append(pick)
        for chosen in by_shard.values():
            self._make_of_shard(chosen[0].shard, chosen)

    def of(self, picks: Sequence[Pick]) -> list[Thumbnail]:
        """Those of `picks` that could be made, in the same order."""
        made = (self._made.get((pick.shard.name, pick.row)) for pick in picks)
        return [thumbnail for thumbnail in made if thumbnail is not None]

    def _make_of_shard(self, shard: ShardScores, picks: list[Pick]) -> None:
        rows = shard.read(["key", "source_shard", "source_offset"], [pick.row for pick in picks]).to_pylist()
        kept: list[tuple[Pick, dict[str, Any]]] = []
        for pick, row in zip(picks, rows, strict=True):
            # A kept sample from afar is nearer in its kept shard, and still there where the source is gone.
            source = str(row["source_shard"])
            if pick.kept and (is_remote(source) or not Path(source).is_file()):
                kept.append((pick, row))
            else:
                self._add(pick, row, None)
        if kept:
            images = kept_images(self._output / "shards" / f"{shard.name}.tar", [r["key"] for _, r in kept])
            for pick, row in kept:
                self._add(pick, row, images.get(row["key"]))

    def _source(self, row: dict[str, Any]) -> Buffer:
        source = str(row["source_shard"])
        root = source.rsplit("/", 1)[0]
        if is_remote(source) and root in self._dead_roots:
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
        except Exception as error:  # whatever a decoder raises: a picture less, not a report less
            self.missing[f"could not be drawn: {type(error).__name__}"] += 1
            return
        self._bytes += len(small)
        uri = "data:image/webp;base64," + base64.b64encode(small).decode()
        self._made[pick.shard.name, pick.row] = Thumbnail(row["key"], pick.score, uri)


def _shrink(data: Buffer, upright: bool) -> bytes:
    """The centre square, which is what the model sees, `SIDE` pixels wide, as WebP."""
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
