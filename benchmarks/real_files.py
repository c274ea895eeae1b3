"""Real image files of public collections: what a whole run says of each, against open_clip's own transform.

`python -m benchmarks.real_files FOLDER REPOSITORY... [--megabytes N]` packs the image files of repositories
(`OWNER+NAME/repo` or `OWNER+NAME`, bare or with a work tree) into tars in FOLDER/real.
`python -m benchmarks real-files --data FOLDER` scores them twice: by the command, and by
`model(image_transform(Image.open(file)))` with the same weights. No difference may go unexplained.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from benchmarks.open_clip_model import open_clip_tower
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.overlap import cpu_count
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.score.weights import load_head

FAR = 0.01
"""A larger difference of raw scores needs an explanation."""
ENCODER, PRECISION = "ViT-B-32", "fp32"
"""The defaults here: cheap on a CPU, and exact, so that what differs are the pixels."""
_IMAGE = re.compile(
    r"\.(jpe?g|jpe|jfif|a?png|gif|webp|bmp|dib|tiff?|avifs?|jp2|j2[kc]|jp[cx]|ico|cur|tga|p[bgpn]m|hei[cf]|jxl|psd"
    r"|dds|pcx|qoi|exr|mpo|icns|sgi|hdr)$",
    re.IGNORECASE,
)
_LARGEST_FILE, _PIECE_BYTES = 8_000_000, 50_000_000
_EXAMPLES = 25
_BATCH = 64
WHY: tuple[tuple[str, str], ...] = (
    ("no image among its members", "the extension is no image's"),
    ("is not supported: convert it", "a format that isn't taken"),
    ("no image format begins with", "a format that isn't taken, or no image"),
    ("bits a sample are not supported", "Pillow reads 12-bit JPEGs as if they had 8 bits"),
    ("MAX_TEXT_CHUNK", "Pillow's bound on text of 1 MiB, which says nothing about the picture"),
    ("UnidentifiedImageError", "metadata on which Pillow fails; the picture is whole"),
    ("pixels, the limit is", "a limit that is an option (max_pixels, max_pixels_per_byte)"),
    ("scans", "a limit: each scan costs a pass over the picture"),
)
"""Parts of the messages of what is read by one of both alone, each with its explanation."""


@dataclass(frozen=True, slots=True)
class Said:
    """The outcome of one file: its raw score, or why it has none."""

    score: float | None
    reason: str = ""


def measure(settings: Settings) -> None:
    """Real files in DATA/real/*.tar: refusals and scores of a run against open_clip's transform."""
    tars = sorted((settings.data / "real").glob("*.tar"))
    if not tars:
        sys.exit(
            f"no tars in {settings.data}/real: python -m benchmarks.real_files {settings.data} REPOSITORY..."
        )
    settings = _with_defaults(settings)
    record = settings.record("real-files")
    compare(record, product(tars, settings), reference(tars, settings))
    manifest = settings.data / "real" / "sources.json"
    record.note("sources", json.loads(manifest.read_text()) if manifest.exists() else "")
    record.note("complete", True)


def _with_defaults(settings: Settings) -> Settings:
    precision = PRECISION if settings.precision == "auto" else settings.precision
    return replace(settings, encoder=settings.encoder or ENCODER, precision=precision)


def product(tars: Sequence[Path], settings: Settings) -> dict[str, Said]:
    """What `dali-aesthetic score` says of each key, in a process of its own."""
    options = {"--input": str(tars[0].parent / "*.tar"), "--device": settings.device}
    options |= {"--encoder": settings.encoder, "--weights": settings.weights, "--head": settings.head}
    options |= {"--precision": settings.precision, "--backend": settings.backend, "--max-bad-fraction": "1"}
    with TemporaryDirectory(dir=settings.data) as folder:
        words = [word for option in options.items() for word in option]
        command = [sys.executable, "-m", "dali_aesthetic", "score", *words, "--output", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = []
        for file in sorted(Path(folder, "scores").rglob("*.parquet")):
            columns = ["key", "status", "error_message", "aesthetic_score"]
            rows += pq.read_table(file, columns=columns).to_pylist()
    return {row["key"]: _said(row) for row in rows}


def _said(row: Mapping[str, Any]) -> Said:
    if row["status"] == "ok":
        return Said(float(row["aesthetic_score"]))
    return Said(None, f"{row['status']}: {row['error_message']}")


def reference(tars: Sequence[Path], settings: Settings) -> dict[str, Said]:
    """What open_clip's transform and tower say of each key, in float32."""
    from open_clip import image_transform

    spec = spec_of(settings.encoder)
    transform = image_transform(spec.image_size, is_train=False, mean=spec.mean, std=spec.std)
    device = settings.chip
    tower = open_clip_tower(spec, settings.weights).to(device)
    head, _ = load_head(settings.head, settings.encoder, spec.embed_dim, None)
    bank = HeadBank([head], spec.embed_dim).to(device)
    warnings.simplefilter("ignore")
    found: dict[str, Said] = {}
    with ThreadPoolExecutor(cpu_count()) as threads, torch.inference_mode():
        stream = _files(tars)
        while files := list(islice(stream, _BATCH)):
            pixels = list(threads.map(lambda file: _opened(file[1], transform), files))
            good = [part for part in pixels if not isinstance(part, str)]
            scores = iter(bank(tower(torch.stack(good).to(device)))[:, 0].tolist() if good else [])
            for (key, _), part in zip(files, pixels, strict=True):
                found[key] = Said(None, part) if isinstance(part, str) else Said(next(scores))
    return found


def _files(tars: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in tars:
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                yield info.name.rpartition("/")[0] + "/" + Path(info.name).name.partition(".")[0], file.read()


def _opened(image: bytes, transform: Any) -> Tensor | str:
    """The reference's pixels, or Pillow's error."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            pixels: Tensor = transform(opened)
            return pixels
    except Exception as error:  # Pillow's plugins raise nearly every type
        return f"{type(error).__name__}: {error}"


def compare(record: Record, ours: Mapping[str, Said], theirs: Mapping[str, Said]) -> None:
    """Adds a row for each way in which the two differ, with the files that do."""
    assert ours.keys() == theirs.keys(), "both must see each file once"
    groups: defaultdict[str, list[str]] = defaultdict(list)
    errors: dict[str, float] = {}
    for key, mine in ours.items():
        other = theirs[key]
        if mine.score is not None and other.score is not None:
            errors[key] = abs(mine.score - other.score)
            if errors[key] > FAR:
                groups[f"scores that differ by over {FAR}"].append(f"{key} ({errors[key]:.3f})")
        elif mine.score is None and other.score is None:
            groups["refused by both"].append(key)
        elif mine.score is None:
            groups[f"read by the reference alone: {plain(mine.reason)}"].append(key)
        else:
            groups[f"read by the product alone: {plain(other.reason)}"].append(key)
    record.add(_count("files", list(ours)))
    record.add(_count("read by both", list(errors)))
    groups.setdefault(f"scores that differ by over {FAR}", [])
    for name, files in sorted(groups.items()):
        record.add(_count(name, files))
    errors_N, scores = np.array(list(errors.values())), [said.score for said in theirs.values() if said.score]
    for name, value in (("mean", errors_N.mean()), ("99.9%", np.quantile(errors_N, 0.999))):
        record.add(Measured(name=f"score difference, {name}", values=[float(value)], unit="raw score"))
    worst = max(errors, key=lambda key: errors[key])
    detail = {"files": [worst], "reference_std": float(f"{np.std(scores):.4g}")}
    record.add(
        Measured(name="score difference, largest", values=[errors[worst]], unit="raw score", detail=detail)
    )


def _count(name: str, files: Sequence[str]) -> Measured:
    """A row of a number of files; those that differ are named, and explained where the reason is known."""
    if name in ("files", "read by both", "refused by both"):
        return Measured(name=name, values=[len(files)], unit="files")
    why = next((why for sign, why in WHY if sign in name), "")
    detail = {"files": sorted(files)[:_EXAMPLES], "why": why}
    return Measured(name=name, values=[len(files)], unit="files", detail=detail)


def plain(reason: str) -> str:
    """A message without what differs between files of one kind."""
    reason = re.sub(r"\(\.[^)]*\)|b'.*?'|b\".*?\"|<[^>]*>|'[^']*'", "…", reason)
    return re.sub(r"\d[\d,]*", "#", reason)[:90]


def pack(folder: Path, snapshots: Sequence[Path], most_bytes: int = 1 << 60) -> list[Path]:
    """Packs image files of git repositories into tars of up to 50 MB: the smallest first, each once.

    Keys are `OWNER+NAME/NUMBER-PATH`. The order in the tars is random, the same each time.
    """
    files = sorted(
        (size, blob, snapshot, number, path)
        for snapshot in snapshots
        for number, (blob, size, path) in enumerate(_listed(snapshot))
    )
    chosen, seen, total = [], set[str](), 0
    for size, blob, snapshot, number, path in files:
        if blob not in seen and total + size <= most_bytes:
            seen.add(blob)
            total += size
            chosen.append((snapshot, blob, number, path))
    random.Random(0).shuffle(chosen)
    return _written(folder / "real", chosen)


def _written(folder: Path, chosen: Sequence[tuple[Path, str, int, str]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, int] = defaultdict(int)
    commits = {snapshot: _git(snapshot, "rev-parse", "HEAD").decode().strip() for snapshot, *_ in chosen}
    tars: list[Path] = []
    tar: tarfile.TarFile | None = None
    for snapshot, blob, number, path in chosen:
        image = _git(snapshot, "cat-file", "blob", blob)
        if image.startswith(b"version https://git-lfs"):
            continue
        if tar is None or tar.offset + len(image) > _PIECE_BYTES:
            if tar is not None:
                tar.close()
            tars.append(folder / f"{len(tars):05d}.tar")
            tar = tarfile.open(tars[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        stem, suffix = os.path.splitext(path)
        safe = re.sub(r"[^\w-]+", "_", stem, flags=re.ASCII)[-60:]
        info = tarfile.TarInfo(f"{_name(snapshot)}/{number:05d}-{safe}{suffix.lower()}")
        info.size = len(image)
        tar.addfile(info, io.BytesIO(image))
        sources[f"{_name(snapshot).replace('+', '/')}@{commits[snapshot]}"] += 1
    if tar is not None:
        tar.close()
    (folder / "sources.json").write_text(json.dumps(dict(sorted(sources.items())), indent=1) + "\n")
    return tars


def _name(snapshot: Path) -> str:
    return snapshot.parent.name if snapshot.name == "repo" else snapshot.name.removesuffix(".git")


def _listed(snapshot: Path) -> Iterator[tuple[str, int, str]]:
    """Blob, size and path of each image file that isn't a link."""
    for line in _git(snapshot, "ls-tree", "-r", "-l", "-z", "HEAD").split(b"\0"):
        facts, _, path = line.partition(b"\t")
        mode, kind, blob, size = (*facts.split(), b"", b"", b"", b"")[:4]
        if kind == b"blob" and mode != b"120000" and size.isdigit() and 0 < int(size) <= _LARGEST_FILE:
            name = path.decode("utf-8", "replace")
            if _IMAGE.search(name):
                yield blob.decode(), int(size), name


def _git(snapshot: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(snapshot), *words], check=True, capture_output=True).stdout


def main() -> None:
    """The command line of `pack`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("snapshots", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=1e9)
    options = parser.parse_args()
    for path in pack(options.folder, options.snapshots, int(options.megabytes * 1e6)):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
