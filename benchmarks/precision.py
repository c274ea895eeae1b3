"""Score errors of whole runs on the demo's photos against Pillow and fp32, as in `verify --precision`."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import calibrated, gate_detail
from benchmarks.results import Measured
from benchmarks.settings import Settings
from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.demo import make_demo_set
from dali_aesthetic.verify.precision import PrecisionReport, verify_precision

CPU_PRECISIONS = ("fp32", "bf16")
GPU_PRECISIONS = ("fp16", "bf16", "fp8", "fp32")
_ALL_IMAGES, _SOME_IMAGES = 1000, 60


def measure(settings: Settings) -> None:
    """Score errors and changed decisions of each precision on the demo's photos, against Pillow and fp32."""
    record = settings.record("precision")
    pattern = make_demo_set(settings.data / "demo")
    for name in GPU_PRECISIONS if settings.on_gpu else CPU_PRECISIONS:
        if name in (record.get("measured") or []):
            continue
        # On a GPU most of the time is the start, whatever the number of images.
        images = _SOME_IMAGES if settings.quick and not settings.on_gpu else _ALL_IMAGES
        row = measure_precision(settings.config(pattern, precision=name), images)
        if isinstance(row, Measured):
            record.add(row)
        else:
            record.skip(name, row)
        record.note("measured", [*(record.get("measured") or []), name])
    record.note("complete", True)


def measure_precision(config: Config, images: int) -> Measured | str:
    """A row of the mean score error, the rest in its detail; or the reason why this precision can't run."""
    try:
        config = calibrated(config)
        report = verify_precision(config, images)
    except ConfigError as error:
        return str(error)
    gate = gate_detail(config)
    name = f"{report.encoder}, {report.backend} {report.precision}" + (", gate opened" if gate else "")
    detail = _detail(report) | gate
    return Measured(name=name, values=[report.deviation.mean_error], unit="raw score", detail=detail)


def _detail(report: PrecisionReport) -> dict[str, Any]:
    found = report.deviation
    rounded = {name: float(f"{getattr(found, name):.3g}") for name in ("p99_error", "max_error", "bias")}
    spread = float(f"{found.reference_std:.3g}")
    return {"num_images": found.num_images, **rounded, "reference_std": spread, "flips": report.flips}
