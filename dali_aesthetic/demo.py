"""The demo: a run on a small data set of real photos, good and bad.

The photos ship with scikit-image. Each is included as it is, in crops, and in variants that should score
low (blurred, noisy, tiny, over-compressed).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console

from dali_aesthetic.config import Config, ConfigError, Device, ModelConfig, at_home
from dali_aesthetic.display import watch_on
from dali_aesthetic.launch.engine import RunResult
from dali_aesthetic.launch.run import run
from dali_aesthetic.score.published import WeightsUnavailable
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.write.files import publish, removing_on_error, temporary_path

NUM_SHARDS = 3
PHOTOS = (
    "astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry",
    "moon", "retina", "rocket", "page", "brick", "grass", "gravel",
)  # fmt: skip
RANDOM_BANNER = """
[bold white on red] RANDOM WEIGHTS: THE SCORES BELOW MEAN NOTHING [/]
The pretrained weights are not available, so the demo runs with random ones:

{reason}
"""
Variant = Callable[[Image.Image], bytes]


def run_demo(
    folder: Path, model_dir: Path | None, device: Device, console: Console
) -> tuple[RunResult, Config]:
    """Make the set in `folder`/input unless it exists, and run on it into `folder`/output.

    On a GPU the model is the default one. On a CPU it is ViT-B/32 with the v1 head, to end within minutes.
    """
    folder = Path(at_home(str(folder)))
    pattern = make_demo_set(folder / "input")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    pretrained = (
        ModelConfig(model_dir=model_dir)
        if on_gpu
        else ModelConfig(encoder="ViT-B-32", heads=("laion-v1",), model_dir=model_dir)
    )
    values = {"input": pattern, "output": folder / "output", "device": device, "model": pretrained}
    config = Config.build(values)
    watch = partial(watch_on, console)
    try:
        return run(config, watch=watch), config
    except WeightsUnavailable as error:
        model = config.model.model_copy(update={"weights": "random:0", "heads": ("random:0",)})
        output = str(folder / "output-random-weights")
        changes = {"model": model, "output": output, "threshold": Threshold(raw=5.0)}
        config = config.model_copy(update=changes)
        console.print(RANDOM_BANNER.format(reason=error))
        return run(config, watch=watch), config


def make_demo_set(folder: Path) -> str:
    """Write about 200 samples (jpg or webp, txt, json) to three tar shards; returns a pattern for them."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / f"demo-{{00000..{NUM_SHARDS - 1:05d}}}.tar")
    samples = list(_samples())
    for shard in range(NUM_SHARDS):
        path = folder / f"demo-{shard:05d}.tar"
        if path.exists():
            continue
        temporary = temporary_path(path)
        with removing_on_error(temporary):
            _write_shard(temporary, samples[shard::NUM_SHARDS])
        publish(temporary, path)
    return pattern


def _write_shard(path: Path, samples: list[tuple[str, str, bytes, str]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (name, extension, image, caption) in enumerate(samples):
            key = f"{number:06d}"
            metadata = {"key": key, "caption": caption, "url": f"skimage://{name}", "status": "success"}
            members = {extension: image, "txt": caption.encode(), "json": json.dumps(metadata).encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _samples() -> Iterator[tuple[str, str, bytes, str]]:
    """Name of the photo, extension, encoded image, caption."""
    try:
        from skimage import data
    except ImportError as error:
        raise ConfigError(
            f"the demo's photos come with scikit-image ({error}): pip install '.[demo]' in the clone"
        ) from None

    for name in PHOTOS:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        for view, image in _views(photo):
            for variant, (extension, encode) in _VARIANTS.items():
                yield name, extension, encode(image), f"{name}, {view}, {variant}"


def _views(photo: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    width, height = photo.size
    yield "whole", photo
    yield "left part", photo.crop((0, 0, int(width * 0.6), height))
    yield "centre", photo.crop((width // 5, height // 5, width - width // 5, height - height // 5))


def _encode(image: Image.Image, format: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _noisy(image: Image.Image) -> bytes:
    noise = np.random.default_rng(0).normal(128, 60, (image.height, image.width, 3)).clip(0, 255)
    return _encode(Image.blend(image, Image.fromarray(noise.astype(np.uint8)), 0.5), quality=90)


def _tiny(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((48, 48))
    return _encode(small, "WEBP", quality=80)


_VARIANTS: dict[str, tuple[str, Variant]] = {
    "as it is": ("jpg", lambda image: _encode(image, quality=92)),
    "blurred": ("jpg", lambda image: _encode(image.filter(ImageFilter.GaussianBlur(8)), quality=90)),
    "noisy": ("jpg", _noisy),
    "low resolution": ("webp", _tiny),
    "over-compressed": ("jpg", lambda image: _encode(image, quality=4)),
}
