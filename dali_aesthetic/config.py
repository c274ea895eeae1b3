"""The configuration of a run: what to read, what to keep, with which model, how to decode.

A field's description, unit, default and flag stand here alone: the command line, its help and
docs/configuration.md are made from them. A config is validated at construction and immutable; no I/O happens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from dali_aesthetic.fields import EXPERT, Given, Section, explain, in_fields, option
from dali_aesthetic.threshold import Threshold, checked
from dali_aesthetic.types import ConfigError as ConfigError

Device = str
"""auto, cpu, cuda, or cuda:N for the GPU of that number."""
Place = str | os.PathLike[str]
Backend = Literal["auto", "eager", "torchscript", "compile", "triton", "fused"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "fp8"]
COLUMN_TYPES = ("string", "int", "float", "bool")


class ModelConfig(Section):
    """Encoder and heads."""

    panel = "Model"

    encoder: str = option("ViT-L-14", "Any open_clip ViT name.")
    weights: Given[str, Place] = option(
        "openai",
        "Weights of the encoder: openai, random[:SEED], hf-hub:ORG/REPO[@REVISION], open_clip's tag, a path.",
    )
    heads: Given[tuple[str, ...], Place | Sequence[Place]] = option(
        ("laion-v2",),
        "laion-v2, laion-v1, a path, or NAME=FILE to name its column. May repeat; the first decides what is "
        "kept.",
        flag="--head",
    )
    model_dir: Given[Path | None, Place | None] = option(
        None, "Folder searched for weights before anything is downloaded."
    )
    precision: Precision = option(
        "auto",
        "Number format of the encoder. auto is fp8 where it passes the gate, else fp16; fp32 on a CPU.",
    )
    backend: Backend = option(
        "auto", "Implementation of the encoder. auto is the fastest known to be right on the device."
    )
    calibration: Given[str, Place] = option(
        "", "File or URL with the fp8 scales of another run.", unset="measured on the input", expert=True
    )

    @field_validator("model_dir")
    @classmethod
    def _below_home(cls, value: Path | None) -> Path | None:
        return value and Path(at_home(str(value)))

    @field_validator("heads", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("heads")
    @classmethod
    def _at_least_one(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        if not heads:
            raise ValueError("no head given: name one, such as laion-v2")
        if len(set(heads)) < len(heads):
            raise ValueError(f"{list(heads)} names a head twice: give each once")
        return heads


class DecodeConfig(Section):
    """Decoding and its limits."""

    panel = "Decoding"

    batch_size: int | None = option(
        None, "Images encoded at a time.", unset="what suits the backend, 32 on a CPU", ge=1, le=8192
    )
    num_threads: int | None = option(None, "CPU threads that decode.", unset="all cores", ge=1, le=1024)
    max_pixels: int = option(200_000_000, "An image of more pixels is `too_large`.", expert=True, ge=1)
    max_pixels_per_byte: int = option(
        1000,
        "An image of more than 16 megapixels with more pixels per byte than this is `too_large`.",
        expert=True,
        ge=1,
    )
    apply_exif: bool = option(
        False, "Turn images upright by their EXIF orientation, which the reference does not."
    )


class GuardConfig(Section):
    """Limits against garbage, hangs and a full memory."""

    panel = "Robustness"

    max_bad_fraction: float = option(
        0.5,
        "A shard of at least 100 samples fails if a larger share can't be scored; 1 accepts any.",
        ge=0,
        le=1,
    )
    quarantine: bool = option(False, "Keep a copy of the samples that can't be scored.")
    stall_timeout: float = option(
        600.0, "End the run after this time without progress; 0 waits for ever.", unit="seconds", ge=0
    )
    memory_budget_gb: float | None = option(
        None,
        "Memory for encoded images between reading and decoding.",
        flag="--memory-budget",
        unit="GiB",
        unset="a quarter of the memory, at most 16",
        gt=0,
        allow_inf_nan=False,
    )
    max_member_mb: int = option(
        1024, "A sample of more bytes, its members together, is `too_large`.", unit="MiB", expert=True, ge=1
    )
    max_tar_gb: int = option(1024, "A larger tar fails.", unit="GiB", expert=True, ge=1)


class GateConfig(Section):
    """Limits that fp8, or else bf16, must keep on a run's own images before the run uses it.

    Errors are differences from fp16 in the raw score of the first head.
    """

    panel = EXPERT

    calibration_images: int = option(
        512, "Images, from the start of the input, that set the scales of fp8.", ge=16, le=8192
    )
    check_images: int = option(
        1024, "Images after those, on which fp8 is compared with fp16.", ge=16, le=16384
    )
    max_mean_error: float = option(0.02, "Largest mean score error of fp8.", ge=0, allow_inf_nan=False)
    max_p99_error: float = option(
        0.08, "Largest score error of fp8 at the 99th percentile.", ge=0, allow_inf_nan=False
    )
    max_flips: float = option(
        0.01,
        "Largest share of images that fp8 moves across a preset or the run's own cut.",
        ge=0,
        allow_inf_nan=False,
    )


class LaunchConfig(Section):
    """Processes that do the work. They are no part of a run's identity: a rerun may have others.

    Without `gpus` and `workers` one process works on `device`. The engine `ray` places actors instead, and
    without a number as many as the cluster has room for.
    """

    panel = "Machine"

    engine: Literal["local", "ray"] = option(
        "local", "local starts processes on this node, ray actors on a Ray cluster."
    )
    gpus: int | Literal["all"] | None = option(
        None,
        "Number of GPUs of this node, a process each, or all.",
        metavar="N|all",
        unset="one process",
    )
    workers: int | None = option(None, "Number of processes on the CPU.", unset="one process", ge=1, le=1024)

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if number in (None, "all") or (isinstance(number, int) and number >= 1):
            return number
        raise ValueError("give a number of GPUs from 1 up, or all; --device cpu runs without a GPU")

    @property
    def one_process(self) -> bool:
        """Whether the process that launches also does the work."""
        return self.gpus is None and self.workers is None


class ObserveConfig(Section):
    """Metrics and logs. They are no part of a run's identity."""

    panel = "Observing"

    metrics_port: int | None = option(
        None,
        "Port that serves metrics for Prometheus; 0 takes any free port.",
        unset="not served",
        ge=0,
        le=65535,
    )
    metrics_host: str = option("127.0.0.1", "Address that serves the metrics; 0.0.0.0 for other machines.")
    log_json: str | None = option(
        None, "Append a JSON line for each event; - is standard error.", metavar="FILE"
    )
    log_interval: float = option(60.0, "Time between progress lines in a log file.", unit="seconds", gt=0)
    library_messages: bool = Field(
        default=False,
        description="Show what decoder libraries write to standard error, as `--verbose` does.",
    )
    wandb: str | None = option(None, "Log to this project of Weights & Biases.", metavar="PROJECT")


class Config(Section):
    """One run: its input, its output, and a section for each part of the work."""

    input: Annotated[
        Given[tuple[str, ...], Place | Sequence[Place]],
        option(
            ...,
            "Tars, Parquet with images, or images: a file, folder, glob, {00..99} pattern, or @list.txt; "
            "all but images also at a URL.",
            short="-i",
        ),
    ]
    output: Annotated[Given[str, Place], option(..., "Folder or URL that receives everything.", short="-o")]
    output_format: Literal["tar", "files", "links"] = option(
        "tar",
        "How kept images of a folder are written: tar shards; files, copied into the same tree with their "
        "captions; or hard links to the input's files, where the file system has them.",
    )
    image_column: str = option(
        "", "Column of a Parquet input that holds the images.", unset="found by type and name"
    )
    follow_links: bool = option(False, "Take links in an input folder to files outside of it too.")
    columns: Given[tuple[str, ...], str | Sequence[str]] = option(
        (),
        "Json fields, or columns of a Parquet input, that get a column of their own in the scores. TYPE is "
        "string, int, float or bool; -json leaves out the column of all other fields.",
        metavar="NAME[:TYPE],…",
        unset="what img2dataset and LAION write",
    )
    device: Device = option(
        "auto",
        "Device of the encoder: auto, cpu, cuda, or cuda:N for the GPU of that number.",
        panel=LaunchConfig.panel,
        metavar="auto|cpu|cuda[:N]",
    )
    threshold: Threshold = Threshold()
    prefilter: str = option(
        "",
        "Decode only where this SQL condition on size, format and json fields holds, such as 'min_side >= "
        "256'. The others are `filtered`.",
        panel=Threshold.panel,
        metavar="EXPR",
    )
    scores_only: bool = Field(
        default=False, description="Write no images, as `score` does: the scores are for `filter` to cut."
    )
    part_of: str = Field(
        default="",
        description="Output that this one belongs to, set by --keep-top: nothing in it is input.",
    )
    profile: bool = option(
        False,
        "Add columns that describe each image: brightness, sharpness, plain borders, a perceptual hash and "
        "others.",
    )
    save_embeddings: bool = option(False, "Write the CLIP embeddings too, in clip-retrieval's layout.")
    model: ModelConfig = ModelConfig()
    decode: DecodeConfig = DecodeConfig()
    guard: GuardConfig = GuardConfig()
    gate: GateConfig = GateConfig()
    observe: ObserveConfig = ObserveConfig()
    launch: LaunchConfig = LaunchConfig()

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("input")
    @classmethod
    def _some_input(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("no input given: name a tar, a pattern, a folder or @list.txt")
        return tuple(at_home(location) for location in value)

    @field_validator("prefilter")
    @classmethod
    def _condition(cls, prefilter: str) -> str:
        return checked(prefilter, "--prefilter")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("give one of auto, cpu, cuda, cuda:N")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _one_by_one(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(name.strip() for text in texts for name in text.split(","))

    @field_validator("columns")
    @classmethod
    def _names_and_types(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        names = [column_type(column)[0].casefold() for column in columns]
        if not all(name and name.isprintable() for name in names):
            raise ValueError("give NAME or NAME:TYPE, separated by commas")
        if twice := [column for column in columns if names.count(column_type(column)[0].casefold()) > 1]:
            raise ValueError(f"give each column once, not {', '.join(twice)}")
        return columns

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

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        gpus, workers = self.launch.gpus, self.launch.workers
        if gpus is not None and workers is not None:
            raise ValueError("--gpus and --workers are given: GPUs have a process each, workers are for CPUs")
        if gpus is not None and self.device == "cpu":
            raise ValueError(f"--gpus {gpus} and --device cpu are given: give --workers for CPU processes")
        if workers is not None and self.device.startswith("cuda"):
            raise ValueError(
                f"--workers {workers} and --device {self.device} are given: give --gpus for these"
            )
        if self.output_format != "tar" and "://" in self.output:
            raise ValueError(
                f"--output-format {self.output_format} and --output {self.output} are given: files go "
                "to a local folder, and tars to a store"
            )
        if self.device.startswith("cuda:") and (gpus is not None or self.launch.engine == "ray"):
            more = "--engine ray" if gpus is None else f"--gpus {gpus}"
            raise ValueError(f"--device {self.device} and {more} are given: one GPU is one process's")
        return self

    @property
    def whole_output(self) -> str:
        """The folder of which nothing is input."""
        return self.part_of or self.output

    @classmethod
    def build(cls, values: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> Self:
        """A config from nested plain values, with those of the command line, `flags`, on top.

        None in `flags` is a flag that wasn't given. Raises `ConfigError` with a line for each wrong field,
        which names no flags where there are no `flags`.
        """
        try:
            return cls.model_validate(merge(values, flags or {}))
        except ValidationError as error:
            text = explain(error, cls, set(given_paths(flags or {})))
            raise ConfigError(text if flags is not None else in_fields(text, cls)) from None


def column_type(column: str) -> tuple[str, str]:
    """Name and type of one of `Config.columns`; the type is "" where none is given.

    Raises ValueError for an unknown type.
    """
    name, colon, kind = column.rpartition(":")
    if not colon:
        return column, ""
    if kind not in COLUMN_TYPES:
        types = ", ".join(COLUMN_TYPES)
        raise ValueError(f"give NAME or NAME:TYPE, where TYPE is one of {types}; of a NAME with a colon both")
    return name, kind


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` on top, section by section; None in `over` leaves `base` alone.

    Of a threshold's bounds a spelling in `over` replaces whichever `base` has.
    """
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, Mapping):
            below = {} if merged.get(name) is None else merged[name]
            if not isinstance(below, Mapping):
                continue  # no section: left for `Config.build` to refuse, here it would vanish silently
            merged[name] = merge(Threshold.without(below, value) if name == "threshold" else below, value)
        elif value is not None:
            merged[name] = value
    return merged


def at_home(location: str) -> str:
    """`location` with a leading `~/`, also one behind `@`, as the home folder.

    A shell leaves it in `--output=~/kept` and in quotes. A folder that is called `~` is `./~`.
    """
    at = "@" if location.startswith("@~/") else ""
    path = location.removeprefix(at)
    return at + os.path.expanduser(path) if path.startswith("~/") else location


def given_paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The paths, such as `decode.batch_size`, of the nested values that are not None."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from given_paths(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name
