"""From the start of a process to its first committed scores, with empty caches and with full ones.

A row is runs of the command line on one small shard, so that everything counts: imports, weights from a file,
the decoder, compiling, calibration, the first batches, the commit.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.bench import OPEN, fresh
from benchmarks.open_clip_model import saved_weights
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.layout import CALIBRATION, TIMING
from dali_aesthetic.score.backends.cache import LIBRARIES, VARIABLE

GPU_WAYS = (
    ("eager", "fp16"),
    ("torchscript", "fp16"),
    ("compile", "fp16"),
    ("fused", "fp16"),
    ("fused", "fp8"),
)
QUICK_GPU_WAYS = (("fused", "fp16"), ("fused", "fp8"), ("torchscript", "fp16"))
CPU_WAYS = (("eager", "fp32"), ("torchscript", "fp32"))
BOUND_S = 300


def measure(settings: Settings) -> None:
    """From the start of a process to its first committed scores, with empty caches and with full ones."""
    record = settings.record("cold-start")
    measure_cold_start(record, settings)
    record.note("complete", True)


def measure_cold_start(record: Record, settings: Settings) -> None:
    """Every backend with an empty cache folder, then with the one that this run left."""
    folder = fresh(settings.data / "cold-start")
    # With QuickGELU, as OpenAI's weights are: the fused kernels take no other tower.
    encoder = settings.encoder or ("ViT-L-14-quickgelu" if settings.on_gpu else "ViT-B-32-quickgelu")
    weights = saved_weights(encoder, "random:0", folder)
    count = 768 if settings.on_gpu else 32
    shard = _shard(folder / "00000.tar", count)
    record.note("images", count)
    base = {"device": settings.chip.type, "gate": OPEN, "threshold": {"raw": 5.0}}
    model: dict[str, object] = {"encoder": encoder, "weights": weights, "heads": ["random:0"]}
    repeats = 1 if settings.quick else settings.num_repeats
    for backend, precision in ways(settings):
        title = f"{backend} {precision}"
        if record.has(f"{title}, warm, scales given" if precision == "fp8" else f"{title}, warm"):
            continue
        way = model | {"backend": backend, "precision": precision}
        config = {**base, "model": way}
        cache = fresh(folder / f"cache-{backend}-{precision}")
        cold = _measure(record, f"{title}, cold", config, shard, folder, cache, 1)
        if not cold or not _measure(record, f"{title}, warm", config, shard, folder, cache, repeats):
            continue
        if precision == "fp8":
            config = {**base, "model": way | {"calibration": _kept_scales(folder)}}
            _measure(record, f"{title}, warm, scales given", config, shard, folder, cache, repeats)


def ways(settings: Settings) -> Sequence[tuple[str, str]]:
    """Backends and precisions; when quick on a GPU only those that `auto` may take."""
    if not settings.on_gpu:
        return CPU_WAYS
    return QUICK_GPU_WAYS if settings.quick else GPU_WAYS


def _measure(
    record: Record,
    name: str,
    config: Mapping[str, Any],
    shard: Path,
    folder: Path,
    cache: Path,
    repeats: int,
) -> bool:
    try:
        seconds = [_seconds(config, shard, folder, cache) for _ in range(repeats)]
    except RuntimeError as error:
        record.skip(name, str(error))
        return False
    record.add(Measured(name=name, values=seconds, unit="s", detail={"pieces": _pieces(folder / "out")}))
    return True


def _pieces(output: Path) -> dict[str, Any]:
    """The last repeat's seconds to build each part, and to the first item of each stage."""
    line = json.loads((output / TIMING).read_text().splitlines()[0])
    return {"start": line["start"], "first": line["first"]}


def _seconds(config: Mapping[str, Any], shard: Path, folder: Path, cache: Path) -> float:
    """From the start of the command to its first committed shard. Raises RuntimeError if it fails."""
    output, file, log = fresh(folder / "out"), folder / "run.yaml", folder / "log"
    file.write_text(yaml.safe_dump({**config, "input": [str(shard)], "output": str(output)}))
    command = [sys.executable, "-m", "dali_aesthetic", "run", "--config", str(file), "--quiet"]
    with log.open("w") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=_environment(cache), stdout=stream, stderr=stream)
        try:
            while not list(output.glob("stats/*.json")):
                if process.poll() is not None and not list(output.glob("stats/*.json")):
                    raise RuntimeError(f"exit code {process.returncode}: {log.read_text()[-300:].strip()}")
                if time.perf_counter() - start > BOUND_S:
                    raise RuntimeError(f"nothing was committed in {BOUND_S} s")
                time.sleep(0.01)
            seconds = time.perf_counter() - start
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    return seconds


def _environment(cache: Path) -> dict[str, str]:
    """This process's environment, with the caches of all libraries below `cache`."""
    kept = {name: value for name, value in os.environ.items() if name not in LIBRARIES}
    return {**kept, VARIABLE: str(cache)}


def _kept_scales(folder: Path) -> str:
    kept = folder / CALIBRATION
    kept.write_bytes((folder / "out" / CALIBRATION).read_bytes())
    return str(kept)


def _shard(path: Path, count: int) -> Path:
    """Write a tar of `count` smooth pictures with a short side of 512 pixels."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            coarse = rng.integers(0, 256, (*rng.integers(4, 24, 2), 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((640, 512), Image.Resampling.BICUBIC)
            for suffix, content in (("jpg", _jpeg(picture)), ("json", json.dumps({"n": number}).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
