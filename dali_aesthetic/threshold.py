"""The keep threshold: one meaning, the raw score of the first head, and its spellings.

Raw is the head's own scale (LAION v2: mostly 1.5 to 7.5, not bounded). The 0-1 scale is raw / 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

RAW_PER_UNIT = 10.0


@dataclass(frozen=True, slots=True)
class Preset:
    """A named cut. `laion_share` is the share of LAION-2B-en (2.37e9 pairs) that scored at least `raw`
    with the LAION v2 head (https://laion.ai/blog/laion-aesthetics), or None where none was published."""

    raw: float
    laion_share: float | None


PRESETS: dict[str, Preset] = {
    "permissive": Preset(3.0, None),
    "standard": Preset(5.0, 0.253),
    "high": Preset(6.0, 0.0051),
    "premium": Preset(7.0, None),
    "laion-4.5": Preset(4.5, 0.506),
    "laion-4.75": Preset(4.75, 0.396),
    "laion-5": Preset(5.0, 0.253),
    "laion-6": Preset(6.0, 0.0051),
    "laion-6.25": Preset(6.25, 0.0013),
    "laion-6.5": Preset(6.5, 0.00026),
}
DEFAULT_PRESET = "standard"


class Threshold(BaseModel):
    """Exactly one of `unit` (0-1), `raw` and `preset`; none means the preset "standard"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: float | None = None
    raw: float | None = None
    preset: str | None = None

    @model_validator(mode="after")
    def _one_spelling(self) -> Self:
        given = [name for name in ("unit", "raw", "preset") if getattr(self, name) is not None]
        if len(given) > 1:
            spellings = {"unit": "--threshold", "raw": "--raw-threshold", "preset": "--preset"}
            both = " and ".join(spellings[name] for name in given)
            raise ValueError(f"{both} say the same thing twice: give one of them")
        if self.unit is not None and not 0.0 <= self.unit <= 1.0:
            raise ValueError(_not_a_unit(self.unit))
        if self.raw is not None and not np.isfinite(self.raw):
            raise ValueError(f"--raw-threshold {self.raw} is not a number: give one such as 5.0")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"--preset {self.preset!r} is unknown: choose from {', '.join(PRESETS)}")
        return self

    @property
    def min_raw(self) -> float:
        """The resolved cut on the raw scale, as the nearest float32."""
        if self.raw is not None:
            return float(np.float32(self.raw))
        if self.unit is not None:
            return float(np.float32(self.unit * RAW_PER_UNIT))
        return float(np.float32(PRESETS[self.preset or DEFAULT_PRESET].raw))

    def keep(self, raw_scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """True where the raw float32 score is at least the cut; NaN (not scored) is never kept."""
        kept: npt.NDArray[np.bool_] = raw_scores_R >= np.float32(self.min_raw)
        return kept

    def describe(self, head: str) -> str:
        """The cut in words; for the LAION v2 head with what it kept of LAION-2B-en, where that is known."""
        known = (p.laion_share for p in PRESETS.values() if p.raw == self.min_raw and head == "laion-v2")
        share = next(known, None)
        there = f"; of LAION-2B-en this kept {_percent(share)}" if share is not None else ""
        return f"raw score >= {self.min_raw:g} ({self.min_raw / RAW_PER_UNIT:g} on the 0-1 scale){there}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.1f}%"


def _not_a_unit(value: float) -> str:
    text = f"--threshold {value:g} is outside 0..1"
    if 1.0 < value <= RAW_PER_UNIT:
        return f"{text}: did you mean --raw-threshold {value:g} (the same as --threshold {value / 10:g})?"
    return f"{text}: give a share of the 0-1 scale such as 0.5, or --raw-threshold for the head's own scale"
