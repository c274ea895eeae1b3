"""The configuration of a run: what to read, what to keep, with which model, how to decode.

Validated at construction, immutable afterwards, without I/O. YAML in `configs/` mirrors it field by field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dali_aesthetic.threshold import Threshold

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "fp8"]


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the field, the value and the fix."""


def at_home(location: str) -> str:
    """`location` with a leading `~/`, also one behind `@`, as the home folder.

    A shell leaves it in `--output=~/kept` and in quotes, and a folder of the name `~` is what nobody means
    (who does says `./~`).
    """
    at = "@" if location.startswith("@~/") else ""
    path = location.removeprefix(at)
    return at + os.path.expanduser(path) if path.startswith("~/") else location


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """Encoder and heads.

    `encoder` is any open_clip ViT name. `weights` is `openai`, `random[:SEED]` or a path. The first of
    `heads` decides what is kept; each is `laion-v2`, `laion-v1` or a path. `backend` names a way to run
    the encoder; `auto` takes the fastest known to be right on the device. `calibration` is the file (or
    URL) of an earlier run's fp8 scales; without one a run measures its own.
    """

    encoder: str = "ViT-L-14"
    weights: str = "openai"
    heads: tuple[str, ...] = ("laion-v2",)
    model_dir: Path | None = None
    precision: Precision = "auto"
    backend: str = "auto"
    calibration: str = ""

    @field_validator("model_dir")
    @classmethod
    def _below_home(cls, value: Path | None) -> Path | None:
        return value and Path(at_home(str(value)))

    @field_validator("heads")
    @classmethod
    def _at_least_one(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        if not heads:
            raise ValueError("no head given: name one, such as laion-v2")
        if len(set(heads)) < len(heads):
            raise ValueError(f"{list(heads)} names a head twice: give each once")
        return heads


class DecodeConfig(_Section):
    """Decoding and its limits.

    `batch_size` images are encoded at a time (None: what suits the backend; 32 on a CPU). `num_threads`
    CPU threads decode (None: all cores). An image of more than `max_pixels` is `too_large`; so is one of
    more than 16 megapixels whose pixels outnumber its bytes by more than `max_pixels_per_byte`.
    `apply_exif` turns images upright by their EXIF orientation, which the reference does not.
    """

    batch_size: int | None = Field(default=None, ge=1, le=8192)
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    max_pixels: int = Field(default=200_000_000, ge=1)
    max_pixels_per_byte: int = Field(default=1000, ge=1)
    apply_exif: bool = False


class GateConfig(_Section):
    """What fp8, or else bf16, must show on a run's own images before the run uses it.

    The first `calibration_images` set fp8's scales. On the next `check_images` the first head's raw scores
    may differ from fp16's by `max_mean_error` in the mean and `max_p99_error` at the 99th percentile, and
    fewer than `max_flips` of them may change sides at any preset and at the run's own cut.
    """

    calibration_images: int = Field(default=512, ge=16, le=8192)
    check_images: int = Field(default=1024, ge=16, le=16384)
    max_mean_error: float = Field(default=0.02, ge=0, allow_inf_nan=False)
    max_p99_error: float = Field(default=0.08, ge=0, allow_inf_nan=False)
    max_flips: float = Field(default=0.01, ge=0, allow_inf_nan=False)


class GuardConfig(_Section):
    """What a run does about garbage, a hang and a full memory.

    A shard of which more than `max_bad_fraction` can't be scored fails (from 100 samples up; 1.0: never).
    `quarantine` keeps a copy of such samples. A run without progress for `stall_timeout` seconds ends (0:
    never). Encoded images on their way take up to `memory_budget_gb` GiB (None: a quarter of the memory, at
    most 16). A sample with a member above `max_member_mb` MiB is `too_large`, a tar above `max_tar_gb` GiB
    fails.
    """

    max_bad_fraction: float = Field(default=0.5, ge=0, le=1)
    quarantine: bool = False
    stall_timeout: float = Field(default=600.0, ge=0)
    memory_budget_gb: float | None = Field(default=None, gt=0)
    max_member_mb: int = Field(default=1024, ge=1)
    max_tar_gb: int = Field(default=1024, ge=1)


class LaunchConfig(_Section):
    """Which processes do the work; no part of what a run is, so a rerun may have others.

    `gpus` is a number of this node's GPUs or `all`, a process each; `workers` is a number of CPU processes
    instead. With neither, one process does the work on `device`. With the engine `ray` they are actors of a
    cluster, and as many as it has room for where no number is given.
    """

    engine: Literal["local", "ray"] = "local"
    gpus: int | Literal["all"] | None = None
    workers: int | None = Field(default=None, ge=1, le=1024)

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, str) and number != "all":
            raise ValueError(f"--gpus {number} is no number of GPUs: give one from 1 up, or all")
        if isinstance(number, int) and number < 1:
            raise ValueError(f"--gpus {number}: give 1 or more, or all; --device cpu runs without a GPU")
        return number

    @property
    def one_process(self) -> bool:
        """Whether the process that launches also does the work."""
        return self.gpus is None and self.workers is None


class ObserveConfig(_Section):
    """What a run shows machines; no part of what a run is.

    Prometheus metrics are served at `metrics_port` of the address `metrics_host` (0: any free port).
    `log_json` is a file that gets a JSON line for each event, `-` is standard error. `wandb` is a project of
    Weights & Biases.
    """

    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    log_json: str | None = None
    wandb: str | None = None


class Config(_Section):
    """One run. `input` holds locations or patterns; `output` is the folder that receives everything.

    `image_column` names the images of a Parquet input, where type and name don't tell.

    With `scores_only` no image is written: the scores are for `filter` to cut, as often as one likes. With
    `save_embeddings` the CLIP embeddings are written too, in clip-retrieval's layout. `part_of` is the output
    that `output` is a part of, as the scores of `--keep-top` are: none of it is input.
    """

    input: tuple[str, ...]
    output: str
    image_column: str = ""
    device: Device = "auto"
    threshold: Threshold = Threshold()
    scores_only: bool = False
    part_of: str = ""
    save_embeddings: bool = False
    model: ModelConfig = ModelConfig()
    decode: DecodeConfig = DecodeConfig()
    guard: GuardConfig = GuardConfig()
    gate: GateConfig = GateConfig()
    observe: ObserveConfig = ObserveConfig()
    launch: LaunchConfig = LaunchConfig()

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("input")
    @classmethod
    def _some_input(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("no input given: name a tar, a pattern, a folder or @list.txt")
        return tuple(at_home(location) for location in value)

    @model_validator(mode="after")
    def _one_kind_of_worker(self) -> Self:
        gpus, workers = self.launch.gpus, self.launch.workers
        if gpus is not None and workers is not None:
            raise ValueError("--gpus and --workers are given: GPUs have a process each, workers are for CPUs")
        if gpus is not None and self.device == "cpu":
            raise ValueError(f"--gpus {gpus} and --device cpu are given: give --workers for CPU processes")
        if workers is not None and self.device == "cuda":
            raise ValueError(f"--workers {workers} and --device cuda are given: give --gpus for these")
        return self

    @property
    def whole_output(self) -> str:
        """The folder of which nothing is input."""
        return self.part_of or self.output

    @field_validator("output")
    @classmethod
    def _writable_place(cls, value: str) -> str:
        if not value:
            raise ValueError("--output is empty: name a folder or URL, or . for this folder")
        if value.startswith(("http://", "https://")):
            raise ValueError(
                f"--output {value}: a web server takes no output; give a folder or s3://BUCKET/…"
            )
        return at_home(value.removeprefix("file://"))

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """A config from nested plain values; errors are one `ConfigError` line per field."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` on top, section by section; None in `over` leaves `base` alone."""
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, Mapping):
            below = {} if merged.get(name) is None else merged[name]
            # What is no section stays, for `Config.build` to refuse it: here it would vanish without a word.
            merged[name] = merge(below, value) if isinstance(below, Mapping) else below
        elif value is not None:
            merged[name] = value
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"{field} is missing: give --{field}")
            continue
        if problem["type"] == "extra_forbidden":
            text = "is no field of the configuration: check its spelling and its section"
        elif problem["type"] == "model_type":
            text = f"{problem['input']!r} does not fit: it is a section with fields of its own, see configs/"
        elif not problem["msg"].startswith("Value error"):
            text = f"{problem['input']!r} does not fit: {text}"
        lines.append(text if text.startswith("--") else f"{field}: {text}")
    return "\n".join(lines)
