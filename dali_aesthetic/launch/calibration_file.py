"""The file of a run's fp8 scales and decision: `OUTPUT/calibration.safetensors`, on a disk or in a store."""

from __future__ import annotations

from pathlib import Path

from dali_aesthetic.config import ConfigError
from dali_aesthetic.layout import CALIBRATION
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.stores.access import Uploader, read_bytes
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.write.files import write_whole
from dali_aesthetic.write.output import write_once


def read_calibration(location: str) -> Calibration:
    """The scales and the choice in a run's file. Raises ConfigError where there is none, or another file."""
    try:
        return Calibration.from_bytes(read_bytes(location))
    except (OSError, ValueError) as error:
        raise ConfigError(f"calibration {location}: {error}") from error


def write_calibration(output: str, calibration: Calibration, replace: bool = False) -> None:
    """Puts the file into a run's output, whole or not at all.

    On a disk the first of two writers wins unless it is to `replace` what is there; in a store the last.
    """
    content = calibration.to_bytes()
    if is_url(output):
        Uploader(output).put(CALIBRATION, content)
        return
    final = Path(output) / CALIBRATION
    final.parent.mkdir(parents=True, exist_ok=True)
    (write_whole if replace else write_once)(final, content)
