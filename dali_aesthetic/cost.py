"""Cost estimate of a run: hours, price and storage rates, from the measured speed of a GPU type."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass
from importlib import resources

from dali_aesthetic.config import ConfigError

_SECONDS_PER_HOUR = 3600
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_WEB_MIX_CPU_SECONDS = 2.5e-3
"""CPU time of an image of the web: a tenth are progressive JPEGs (5 ms), an eighth PNG and WebP (5 to 8)."""
_WEB_MIX_ENGINE_RATE = 15_000
"""Images/s of the web of one JPEG engine, which decodes 12,000 baseline JPEGs/s, four fifths of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Images/s of one GPU, from tars on disk to committed output, and how they were measured.

    `encoder_alone` are images/s of the encoder, in the same run.
    """

    images_per_second: float
    images: str
    encoder_alone: float
    encoder: str
    backend: str
    precision: str
    hardware: str
    cpu_cores: int
    date: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The estimate. `cost` is in the currency of the price, None without one; GB are 10^9 bytes, TB 10^12."""

    images: int
    gpus: int
    gpu: str
    hours: float
    gpu_hours: float
    cost: float | None
    images_per_second: float
    read_gb_per_second: float
    write_gb_per_second: float
    read_tb: float
    write_tb: float
    assumptions: tuple[str, ...]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def as_text(self) -> str:
        """The estimate in a few lines, the assumptions last."""
        lines = [
            f"{self.images:,} images on {self.gpus:,} x {self.gpu}: {_hours(self.hours)}",
            f"{self.gpu_hours:,.1f} GPU-hours" + ("" if self.cost is None else f", cost {self.cost:,.2f}"),
            f"{self.images_per_second:,.0f} images/s together",
            f"storage: read {self.read_gb_per_second:,.3g} GB/s ({self.read_tb:,.4g} TB in all), "
            f"write {self.write_gb_per_second:,.3g} GB/s ({self.write_tb:,.4g} TB in all)",
            "assumed:",
            *(f"  - {assumption}" for assumption in self.assumptions),
        ]
        return "\n".join(lines)


def known_rates() -> dict[str, Rate]:
    """Measured rates by GPU type, from the package's rates.json."""
    content = json.loads(resources.files("dali_aesthetic").joinpath("rates.json").read_text())
    return {gpu: Rate(**fields) for gpu, fields in content["gpus"].items()}


def web_mix_bound(cores: float, encoder_rate: float) -> tuple[str, float]:
    """What binds a GPU with so many CPU cores on a mix of images from the web, and its images/s.

    By a model, in the words of `RunStats.bound_by`.
    """
    limits = {
        "encode": encoder_rate,
        "decode: CPU cores": cores / _WEB_MIX_CPU_SECONDS,
        "decode: JPEG engine": float(_WEB_MIX_ENGINE_RATE),
    }
    return min(limits.items(), key=lambda limit: limit[1])


def make_plan(images: float, gpus: int, gpu: str, price: float | None, image_kb: float, keep: float) -> Plan:
    """Estimate a run. Raises `ConfigError` for a GPU that was not measured and for an impossible size."""
    if not (math.isfinite(images) and images >= 1):
        raise ConfigError(f"--images {images:g}: give a number from 1 up")
    if not (math.isfinite(image_kb) and image_kb > 0):
        raise ConfigError(f"--image-kb {image_kb:g}: give a number above 0")
    if (rate := known_rates().get(gpu.lower())) is None:
        raise ConfigError(f"--gpu {gpu!r} was not measured: there are {', '.join(known_rates())}")
    together = gpus * rate.images_per_second
    hours = images / together / _SECONDS_PER_HOUR
    image_bytes = 1e3 * image_kb
    return Plan(
        images=int(images),
        gpus=gpus,
        gpu=gpu.lower(),
        hours=hours,
        gpu_hours=gpus * hours,
        cost=None if price is None else price * gpus * hours,
        images_per_second=together,
        read_gb_per_second=together * image_bytes / 1e9,
        write_gb_per_second=keep * together * image_bytes / 1e9,
        read_tb=images * image_bytes / 1e12,
        write_tb=keep * images * image_bytes / 1e12,
        assumptions=_assumptions(rate, gpus, price, image_kb, keep),
    )


def read_count(text: str) -> float:
    """A number of images: 10M, 1.5B and 2k, or as `float` takes it. Raises `ConfigError`."""
    factor = _SUFFIXES.get(text.strip()[-1:].lower(), 1)
    try:
        return float(text if factor == 1 else text.strip()[:-1]) * factor
    except ValueError:
        raise ConfigError(f"--images {shlex.quote(text)}: give a number such as 5e9, 10M or 1.5B") from None


def _assumptions(rate: Rate, gpus: int, price: float | None, image_kb: float, keep: float) -> tuple[str, ...]:
    encoder = f"{rate.encoder}, {rate.backend}, {rate.precision}"
    measured = f"images: {rate.images}; {encoder}; {rate.cpu_cores} CPU cores"
    found = [
        f"each GPU does {rate.images_per_second:,.0f} images/s end to end, as one {rate.hardware} did on "
        f"{rate.date} ({measured}; {rate.source})",
        f"samples of {image_kb:g} KB, of which {100 * keep:g}% are kept; scores and stats are not counted",
        _web_mix(rate),
        "storage keeps up with the rates above, no worker fails, and start-up takes no time",
    ]
    if gpus > 1:
        found.append(f"{gpus:,} GPUs are {gpus:,} times as fast as one; only one was measured")
    if price is not None:
        found.append(f"{price:g} per GPU-hour, for the GPUs alone")
    return tuple(found)


def _web_mix(rate: Rate) -> str:
    bound, together = web_mix_bound(rate.cpu_cores, rate.encoder_alone)
    return (
        f"a mix of images from the web takes {1e3 * _WEB_MIX_CPU_SECONDS:g} ms of CPU an image: with "
        f"{rate.cpu_cores} cores a GPU is bound by {bound} at {together:,.0f} images/s at most, with fewer "
        f"than {math.ceil(rate.encoder_alone * _WEB_MIX_CPU_SECONDS)} by decode: CPU cores"
    )


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.1f} hours" + (f" ({hours / 24:,.1f} days)" if hours >= 48 else "")
