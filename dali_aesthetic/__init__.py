"""Score image datasets by aesthetic quality on the GPU and keep the good part.

    from dali_aesthetic import Config, run, score_images

`score_images` returns the scores of some images; `run` does what the command `run` does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dali_aesthetic.version import __version__ as __version__

if TYPE_CHECKING:
    from dali_aesthetic.config import (
        Config,
        ConfigError,
        DecodeConfig,
        GateConfig,
        GuardConfig,
        LaunchConfig,
        ModelConfig,
        ObserveConfig,
    )
    from dali_aesthetic.launch.engine import RunResult, Watch
    from dali_aesthetic.launch.slurm import Task
    from dali_aesthetic.library import ImageDetails, ImageScorer, run, score_images
    from dali_aesthetic.score.published import WeightsUnavailable
    from dali_aesthetic.stats import RunStats
    from dali_aesthetic.threshold import Threshold

# Streams that share a hardware queue run one after the other. The driver makes 8 queues unless told otherwise
# before its first use, and DALI alone has more streams. Beside a busy ViT-L/14 the decoder then falls from
# 11,100 to 180 images/s, and the encoder waits for it.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

__all__ = [
    "Config",
    "ConfigError",
    "DecodeConfig",
    "GateConfig",
    "GuardConfig",
    "ImageDetails",
    "ImageScorer",
    "LaunchConfig",
    "ModelConfig",
    "ObserveConfig",
    "RunResult",
    "RunStats",
    "Task",
    "Threshold",
    "Watch",
    "WeightsUnavailable",
    "run",
    "score_images",
]
_HOMES = {
    "Config": "config",
    "ConfigError": "config",
    "DecodeConfig": "config",
    "GateConfig": "config",
    "GuardConfig": "config",
    "ImageDetails": "library",
    "ImageScorer": "library",
    "LaunchConfig": "config",
    "ModelConfig": "config",
    "ObserveConfig": "config",
    "RunResult": "launch.engine",
    "RunStats": "stats",
    "Task": "launch.slurm",
    "Threshold": "threshold",
    "Watch": "launch.engine",
    "WeightsUnavailable": "score.published",
    "run": "library",
    "score_images": "library",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `--help` and config errors must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
