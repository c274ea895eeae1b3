"""The calibration of a run: float8 statistics and the gate's choice, in one file for all workers.

A safetensors file: the statistics of every product's input and the corrected heads as tensors, the choice
with its trials as JSON in the header. A run that fell back stores its choice without tensors.

Shape legend: R rows, K input channels of a product, D embedding, A affine heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

SITES = ("qkv", "proj", "fc1", "fc2")
"""The products of a block, in the order in which they run."""

_HEADER = "dali_aesthetic"
_FORMAT = 2


@dataclass(slots=True)
class InputStatistics:
    """Statistics of the input of a product: per channel the sum, minimum and maximum, float32 [K]."""

    rows: int
    total_K: Tensor
    least_K: Tensor
    largest_K: Tensor

    @classmethod
    def of(cls, rows_RK: Tensor) -> InputStatistics:
        """The statistics of a float16 batch."""
        least, largest = torch.aminmax(rows_RK, dim=0)
        return cls(len(rows_RK), rows_RK.sum(0, dtype=torch.float32), least.float(), largest.float())

    def add(self, other: InputStatistics) -> None:
        """Includes the statistics of another batch."""
        self.rows += other.rows
        self.total_K += other.total_K
        self.least_K = torch.minimum(self.least_K, other.least_K)
        self.largest_K = torch.maximum(self.largest_K, other.largest_K)

    def to(self, device: torch.device) -> InputStatistics:
        parts = self.total_K, self.least_K, self.largest_K
        return InputStatistics(self.rows, *(part.to(device) for part in parts))

    @property
    def centre_K(self) -> Tensor:
        return self.total_K / self.rows

    @property
    def peak(self) -> float:
        """The largest distance from the centre."""
        return float(torch.maximum(self.largest_K - self.centre_K, self.centre_K - self.least_K).max())


Statistics = Mapping[tuple[int, str], InputStatistics]
"""By block and product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A faster precision compared with float16, on images that it was not calibrated on.

    `precision` is fp8 or bf16, `float16_products` are those of `SITES` that stay in float16 with fp8. Errors
    are differences of the first head's raw scores, `flips` the share of images that change sides by the name
    of the cut. `failed` names the exceeded limits; empty where it passed.
    """

    precision: str = "fp8"
    float16_products: tuple[str, ...]
    mean_error: float
    p99_error: float
    max_error: float
    flips: Mapping[str, float]
    failed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The decision of the gate: `precision` is fp8, bf16 or fp16.

    `float16_products` stay in float16 with fp8. `made_for` are the options that it is valid for, `weights`
    the sha256 of the tower's file and of each head's (the name of random ones). `reason` says why fp8 was
    not tried at all.
    """

    precision: str
    made_for: Mapping[str, Any]
    calibration_images: int = 0
    check_images: int = 0
    float16_products: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    reason: str = ""
    weights: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: an error that is NaN becomes None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        if not self.weights:
            del plain["weights"]  # an older file without them keeps its hash, which a resume compares
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`, also after JSON."""
        trials = [Trial(**_filled(trial)) for trial in values["trials"]]
        weights = tuple(values.get("weights", ()))
        return cls(**{**_filled(values), "trials": tuple(trials), "weights": weights})

    def describe(self) -> str:
        """The choice and its grounds, in one line."""
        if self.reason:
            return f"{self.precision}: fp8 was not tried, {self.reason}"
        last = self.trials[-1]
        found = (
            f"scores off by {last.mean_error:.4f} in the mean and {last.p99_error:.4f} at p99, "
            f"{100 * max(last.flips.values(), default=0.0):.2g}% of decisions changed at most"
        )
        measured = (
            f"{found}, on {self.check_images:,} images beside the {self.calibration_images:,} calibrated on"
        )
        if self.precision == "fp8":
            kept = f", {' and '.join(self.float16_products)} in fp16" if self.float16_products else ""
            return f"fp8{kept}: {measured}"
        rounded = next(trial for trial in reversed(self.trials) if trial.precision == "fp8")
        over = f"instead of fp8, which is over its limits ({rounded.failed})"
        if self.precision == "bf16":
            return f"bf16 {over}: {measured}"
        return f"fp16 {over}, and of bf16 ({last.failed}): {measured}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The choice and, where it is fp8, the statistics that scales are made from and the corrected heads."""

    choice: Choice
    statistics: Statistics = field(default_factory=dict)
    w_AD: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    b_A: Tensor = field(default_factory=lambda: torch.empty(0))

    def to_bytes(self) -> bytes:
        """The content of the file; equal calibrations give equal bytes."""
        tensors = {"heads.w_AD": self.w_AD.cpu().contiguous(), "heads.b_A": self.b_A.cpu().contiguous()}
        rows = {}
        for (block, site), seen in self.statistics.items():
            name = f"blocks.{block}.{site}"
            rows[name] = seen.rows
            for part in ("total_K", "least_K", "largest_K"):
                tensors[f"{name}.{part}"] = getattr(seen, part).cpu().contiguous()
        header = {"format": _FORMAT, "choice": self.choice.as_dict(), "rows": rows}
        return safetensors.torch.save(tensors, {_HEADER: json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The inverse of `to_bytes`. Raises ValueError for anything else."""
        try:
            tensors = safetensors.torch.load(content)
            length = int.from_bytes(content[:8], "little")
            header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER])
            if header["format"] != _FORMAT:
                raise ValueError(f"it has format {header['format']}, this version reads {_FORMAT}")
            statistics = {
                _site(name): InputStatistics(
                    rows, *(tensors[f"{name}.{part}"] for part in ("total_K", "least_K", "largest_K"))
                )
                for name, rows in header["rows"].items()
            }
            choice = Choice.from_dict(header["choice"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is no calibration of a run: {error!r}") from error
        return cls(choice=choice, statistics=statistics, w_AD=tensors["heads.w_AD"], b_A=tensors["heads.b_A"])

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Restores NaN and tuples, which JSON lacks."""
    full = {name: float("nan") if value is None else value for name, value in values.items()}
    return {**full, "float16_products": tuple(values["float16_products"])}


def _site(name: str) -> tuple[int, str]:
    _, block, site = name.split(".")
    return int(block), site
