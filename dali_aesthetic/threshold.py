"""What is kept: the threshold on the raw score of the first head with the ways to spell it, and a condition.

Raw is the scale of the head (LAION v2: mostly 1.5 to 7.5, not bounded). The 0-1 scale is raw / 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import field_validator, model_validator

from dali_aesthetic.fields import Section, option

RAW_PER_UNIT = 10.0
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Preset:
    """A named cut. `laion_share` is the share of LAION-2B-en (2.37e9 pairs) with a LAION v2 score of at least
    `raw` (https://laion.ai/blog/laion-aesthetics), or None if none was published."""

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

_BOUNDS = (
    {"unit": "--threshold", "raw": "--raw-threshold", "preset": "--preset", "top": "--keep-top"},
    {"max_unit": "--max-threshold", "max_raw": "--max-raw-threshold"},
)
"""The fields that spell the lower bound and the upper one, with their flags."""


class Threshold(Section):
    """The lower bound as one of `unit`, `raw`, `preset` and `top`; without any it is the preset "standard",
    or, beside a condition, none.

    `max_unit` or `max_raw` is an upper bound, inclusive. `where` is a condition of `predicate.py`, which has
    to hold too.
    """

    panel = "What to keep"

    unit: float | None = option(
        None, "Lowest score that is kept, on the 0-1 scale (raw / 10).", flag="--threshold", unset="0.5"
    )
    raw: float | None = option(None, "The same on the head's own scale, such as 5.0.", flag="--raw-threshold")
    preset: str | None = option(None, f"The same by name: {', '.join(PRESETS)}.")
    top: float | None = option(
        None,
        "The best share, such as 25%: everything is scored first, then cut.",
        flag="--keep-top",
        metavar="SHARE",
    )
    max_unit: float | None = option(
        None, "Highest score that is kept, on the 0-1 scale.", flag="--max-threshold"
    )
    max_raw: float | None = option(None, "The same on the head's own scale.", flag="--max-raw-threshold")
    where: str = option(
        "",
        "Keep only where this SQL condition on the columns of the scores holds, such as 'min_side >= 512 AND "
        "punsafe < 0.5'. Alone it replaces the threshold.",
        metavar="EXPR",
    )

    @field_validator("top", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return _read_share(value) if isinstance(value, str) else value

    @field_validator("where")
    @classmethod
    def _condition(cls, where: str) -> str:
        return checked(where, "--where")

    @model_validator(mode="after")
    def _one_spelling(self) -> Self:
        for spellings in _BOUNDS:
            given = [flag for name, flag in spellings.items() if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} say the same thing twice: give one of them")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"--preset {self.preset!r} is unknown: choose from {', '.join(PRESETS)}")
        if self.top is not None and not 0.0 < self.top <= 1.0:
            raise ValueError(f"--keep-top {self.top:g} is no share: give one such as 25% or 0.25")
        for flag, value in (("--raw-threshold", self.raw), ("--max-raw-threshold", self.max_raw)):
            if value is not None and not abs(value) <= _LARGEST:
                raise ValueError(f"{flag} {value} is no float32 number: give one such as 5.0")
        for flag, value in (("--threshold", self.unit), ("--max-threshold", self.max_unit)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(_not_a_unit(flag, value))
        return self._check_bounds()

    def _check_bounds(self) -> Self:
        if self.top is None and self.upper_raw < self.min_raw:
            raise ValueError(
                f"the upper bound {self.upper_raw:g} (raw) is below the threshold {self.min_raw:g}: nothing "
                "could be kept; raise --max-threshold or lower the threshold"
            )
        return self

    @staticmethod
    def without(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """`values` without the bounds that `over` gives in any spelling, so that the two don't conflict."""
        replaced = [bound for bound in _BOUNDS if any(over.get(name) is not None for name in bound)]
        return {name: value for name, value in values.items() if not any(name in bound for bound in replaced)}

    @property
    def min_raw(self) -> float:
        """The cut on the raw scale, as the nearest float32; minus infinity for a condition alone.

        A `top` share has none before it is resolved.
        """
        if self.top is not None:
            raise ValueError("--keep-top has no raw score before everything is scored")
        if self.raw is not None:
            return float(np.float32(self.raw))
        if self.unit is not None:
            return float(np.float32(self.unit * RAW_PER_UNIT))
        if self.where and self.preset is None:
            return -float("inf")
        return float(np.float32(PRESETS[self.preset or DEFAULT_PRESET].raw))

    @property
    def upper_raw(self) -> float:
        """The upper bound on the raw scale, as the nearest float32; infinite if none is given."""
        if self.max_raw is not None:
            return float(np.float32(self.max_raw))
        return float(np.float32(np.inf if self.max_unit is None else self.max_unit * RAW_PER_UNIT))

    def keep(self, raw_scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """True where a raw score, float32 [R], is within the bounds; NaN (not scored) is never kept."""
        kept: npt.NDArray[np.bool_] = raw_scores_R >= np.float32(self.min_raw)
        return kept & (raw_scores_R <= np.float32(self.upper_raw))

    def identity(self) -> dict[str, Any]:
        """What two runs that keep the same have in common, as JSON. A bound that is infinite is none."""
        lower, upper = self.min_raw, self.upper_raw
        return (
            {"min_raw": lower if np.isfinite(lower) else None}
            | ({"max_raw": upper} if np.isfinite(upper) else {})
            | ({"where": self.where} if self.where else {})
        )

    def resolve_top(self, raw_scores_R: npt.NDArray[np.float32]) -> Threshold:
        """The bounds with `top` resolved to a raw score: an exact quantile of the scores, float32 [R].

        The best `round(top * n)` samples reach it, at least one, and all that tie with the last of them.
        Raises ValueError if nothing is scored, and for an upper bound below the cut.
        """
        if self.top is None:
            return self
        scored = raw_scores_R[~np.isnan(raw_scores_R)]
        if not len(scored):
            raise ValueError("--keep-top: nothing could be scored, so there is no share of it to keep")
        position = len(scored) - max(1, round(self.top * len(scored)))
        cut = float(np.partition(scored, position)[position])
        return self.model_copy(update={"top": None, "raw": cut})._check_bounds()

    def unlikely(self, head: str) -> str:
        """What is odd about the cut, where it is beyond the scores of one of LAION's heads; else ""."""
        if self.top is not None or not head.startswith("laion-v"):
            return ""
        if 0 <= self.min_raw <= RAW_PER_UNIT or not np.isfinite(self.min_raw):
            return ""
        given = f"the threshold {self.min_raw:g} (raw) is beyond the scores of {head}"
        return f"{given}, which lie between 0 and {RAW_PER_UNIT:g} but for a few: give one such as 5"

    def describe(self, head: str) -> str:
        """The cut in words. For the LAION v2 head it adds the share of LAION-2B-en it kept, where known."""
        if not np.isfinite(self.min_raw):
            return "none" + (f"; raw score <= {self.upper_raw:g}" if np.isfinite(self.upper_raw) else "")
        known = (p.laion_share for p in PRESETS.values() if p.raw == self.min_raw and head == "laion-v2")
        share = next(known, None)
        upper = f", <= {self.upper_raw:g}" if np.isfinite(self.upper_raw) else ""
        there = f"; of LAION-2B-en this kept {percent(share)}" if share is not None else ""
        return (
            f"raw score >= {self.min_raw:g}{upper} ({self.min_raw / RAW_PER_UNIT:g} on the 0-1 scale){there}"
        )


def checked(condition: str, flag: str) -> str:
    """`condition`, or "" for none. Raises ValueError for what is no condition in SQL."""
    if condition := condition.strip():
        from dali_aesthetic.predicate import parse  # pyarrow and DuckDB

        parse(condition, flag)
    return condition


def bounds_text(lower: float, upper: float) -> str:
    """The bounds on the raw score, as a condition."""
    bounds = (("aesthetic_score >=", lower), ("aesthetic_score <=", upper))
    return " AND ".join(f"{text} {bound:g}" for text, bound in bounds if np.isfinite(bound))


def preset_counts(raw_scores_R: npt.NDArray[np.float32]) -> dict[str, int]:
    """Number of these scores that each preset keeps; NaN (not scored) is never kept."""
    return {name: int(np.count_nonzero(raw_scores_R >= np.float32(p.raw))) for name, p in PRESETS.items()}


def percent(share: float) -> str:
    """A share as a percentage, with two significant digits below 10%."""
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.1f}%"


def _read_share(text: str) -> float:
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        return float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise ValueError(f"--keep-top {text!r} is no share: give one such as 25% or 0.25") from None


def _not_a_unit(flag: str, value: float) -> str:
    text, raw_flag = f"{flag} {value:g} is outside 0..1", flag.replace("threshold", "raw-threshold")
    if 1.0 < value <= RAW_PER_UNIT:
        return f"{text}: did you mean {raw_flag} {value:g} (the same as {flag} {value / 10:g})?"
    return f"{text}: give a share of the 0-1 scale such as 0.5, or {raw_flag} for the head's own scale"
