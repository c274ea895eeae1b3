"""The worker of one process on one device, built from a config, and the run record that describes it."""

from __future__ import annotations

import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import torch

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pipelines import import_dali
from dali_aesthetic.layout import CONFIG, IDENTITY
from dali_aesthetic.overlap import beside, cpu_count
from dali_aesthetic.score.backends.backend import import_libraries
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.fits import choose_backend, default_batch, resolve_backend
from dali_aesthetic.score.build import Model, ModelReader, scorer_of
from dali_aesthetic.score.published import OPENAI_SHA256
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.shards.opened import ReadLimits
from dali_aesthetic.stores.access import read_bytes
from dali_aesthetic.timing import process_age
from dali_aesthetic.version import __version__
from dali_aesthetic.write.rows import import_pandas, schema_identity

_built_in: int | None = None
"""Id of the process that built a worker. A fork of it lacks the threads of DALI and torch."""
_PACKAGES = ("torch", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "open_clip_torch", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Decoder and scorer on one device. `weights` names each weight file in use and its sha256.

    `start` has seconds by name: the age of the process `before`, then reading the weights, waiting for the
    imports beside them, building the encoder, a first batch on a GPU, and waiting for the decoder, which is
    built beside these two.
    """

    device: torch.device
    limits: Limits
    decoder: DaliDecoder
    scorer: Scorer
    weights: list[dict[str, Any]]
    start: dict[str, float] = field(default_factory=dict)


def is_forked() -> bool:
    """True in a fork of a process that built a worker: it hangs there, and so would a new one."""
    return _built_in not in (None, os.getpid())


def check_not_forked() -> None:
    """Raises RuntimeError in such a fork."""
    if is_forked():
        raise RuntimeError(
            f"this process was forked from process {_built_in}, which had loaded a model, and lacks that "
            "model's threads, so that it would hang: make it in the worker, at its first image, and load "
            'none before the fork, or start workers with the method "spawn"'
        )


def resolve_device(device: str) -> torch.device:
    """`auto` made concrete. Raises `ConfigError` where torch doesn't find the GPU that is asked for."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        there = f"finds {count} GPUs, the first being cuda:0" if count else "finds no GPU"
        raise ConfigError(
            f"device: {device}, but torch {torch.__version__} {there}: check nvidia-smi, or use --device cpu"
        )
    return found


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU by number the current one of this thread: Triton and DALI launch there."""
    return nullcontext() if device.index is None else torch.cuda.device(device)


def model_reader(model: ModelConfig) -> ModelReader:
    """A reader of the weights that `model` names. It reads them once for everything built from it."""
    return ModelReader(
        encoder=model.encoder, weights=model.weights, heads=model.heads, model_dir=model.model_dir
    )


def build_worker(config: Config, reader: ModelReader | None = None) -> Worker:
    """Reads the weights, builds decoder and scorer. Raises `ConfigError` or `WeightsUnavailable`, and
    RuntimeError in a fork of a process that built one.

    A given `reader` may have read the model already.
    """
    global _built_in
    check_not_forked()
    _built_in = os.getpid()
    device, laps = resolve_device(config.device), _Laps()
    with on_device(device):
        return _build(config, device, reader, laps)


def _build(config: Config, device: torch.device, reader: ModelReader | None, laps: _Laps) -> Worker:
    try:
        model = _model(config.model, device, reader or model_reader(config.model), laps)
        wanted, spec = config.model, model.tower.spec
        backend, precision = choose_backend(wanted.backend, wanted.precision, device, spec)
        batch_size = config.decode.batch_size or default_batch(backend, device)
        build_decoder = partial(decoder_of, config, spec.image_size, batch_size, device)
        with beside(build_decoder, name="decoder") as decoder:
            scorer = scorer_of(
                model,
                device=device,
                precision=precision,
                backend=backend,
                batch_size=batch_size,
                keep_embeddings=config.save_embeddings,
                calibration=read_calibration(wanted.calibration) if wanted.calibration else None,
                lap=laps.end,
            )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    laps.end("decoder")
    return Worker(
        device=device,
        limits=limits_of(config),
        decoder=decoder[0].result(),
        scorer=scorer,
        weights=[asdict(file) for file in model.files],
        start=laps.seconds,
    )


class _Laps:
    """Seconds from one lap's end to the next one's, by name; first those of the process `before` all laps."""

    def __init__(self) -> None:
        self.seconds = {"before": process_age()}
        self._ended_at = time.perf_counter()

    def end(self, name: str) -> None:
        before, self._ended_at = self._ended_at, time.perf_counter()
        self.seconds[name] = self._ended_at - before


def _model(wanted: ModelConfig, device: torch.device, reader: ModelReader, laps: _Laps) -> Model:
    """The model, read beside the imports of all that will be built from it."""
    # Cheap checks come first: gigabytes are read and libraries imported only where all names are right.
    if wanted.calibration:
        read_calibration(wanted.calibration)
    resolve_backend(wanted.backend, wanted.precision, device)
    reader.check()
    import_backend = partial(
        import_libraries, wanted.backend, wanted.precision, device, spec_of(wanted.encoder)
    )
    with beside(import_dali, import_backend, import_pandas, name="imports"):
        model = reader.take()
        laps.end("weights")
    laps.end("imports")
    return model


def read_calibration(location: str) -> Calibration:
    """The fp8 scales and decision in a run's file. Raises ConfigError where it can't be read as one."""
    try:
        return Calibration.from_bytes(read_bytes(location))
    except (OSError, ValueError) as error:
        raise ConfigError(f"calibration {location}: {error}") from error


def limits_of(config: Config) -> Limits:
    """The limits of an image's size."""
    return Limits(config.decode.max_pixels, config.decode.max_pixels_per_byte)


def read_limits_of(config: Config) -> ReadLimits:
    """The limits of a member's and a tar's size."""
    return ReadLimits.of(config.guard.max_member_mb, config.guard.max_tar_gb)


def decoder_of(config: Config, image_size: int, batch_size: int, device: torch.device) -> DaliDecoder:
    """A decoder with the config's threads and limits. The caller closes it."""
    return DaliDecoder(
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        num_threads=config.decode.num_threads or cpu_count(),
        limits=limits_of(config),
        apply_exif=config.decode.apply_exif,
        profile=config.profile,
    )


def run_record(config: Config, worker: Worker) -> dict[str, Any]:
    """The content of `run.json`: `identity` decides whether a rerun is the same run, the rest informs.

    Batch size and threads are no part of the identity: they may be lowered to get a run through.
    """
    heads = worker.scorer.head_names
    scales = read_calibration(config.model.calibration) if config.model.calibration else None
    identity = (
        {
            "input": list(config.input),
            **cut_identity(config),
            "encoder": config.model.encoder,
            "weights": [{key: file[key] for key in ("name", "sha256")} for file in worker.weights],
            "heads": list(heads),
            "device": worker.device.type,
            "backend": worker.scorer.backend.name,
            "precision": worker.scorer.backend.precision,
            "max_pixels": worker.limits.max_pixels,
            "max_pixels_per_byte": worker.limits.max_pixels_per_byte,
            "apply_exif": config.decode.apply_exif,
            "quarantine": config.guard.quarantine,
            "max_member_mb": config.guard.max_member_mb,
        }
        | ({"save_embeddings": True} if config.save_embeddings else {})
        | _settings_beside_weights(config, worker)
        | ({"image_column": config.image_column} if config.image_column else {})
        | ({"follow_links": True} if config.follow_links else {})
        | ({"prefilter": config.prefilter} if config.prefilter else {})
        | ({"calibration": scales.sha256} if scales and scales.choice.precision == "fp8" else {})
    )
    return {
        IDENTITY: identity,
        "gate": scales.choice.as_dict() if scales else None,
        CONFIG: config.model_dump(mode="json"),
        "weights": [{key: str(value) for key, value in file.items()} for file in worker.weights],
        "environment": _environment(worker.device),
    }


def _settings_beside_weights(config: Config, worker: Worker) -> dict[str, Any]:
    """The settings that a file beside the checkpoint changed, which has no hash of its own."""
    spec, named = worker.scorer.backend.spec, spec_of(config.model.encoder)
    found = {name: getattr(spec, name) for name in ("quick_gelu", "mean", "std")}
    if worker.weights[0]["sha256"] in OPENAI_SHA256:
        del found["quick_gelu"]  # the hash tells
    return {
        name: list(value) if isinstance(value, tuple) else value  # as JSON gives it back
        for name, value in found.items()
        if value != getattr(named, name)
    }


def cut_identity(config: Config) -> dict[str, Any]:
    """The columns of the scores, the bounds on the raw scale, the condition and the form of what is kept, or
    none of these where only scores are made. A bound that is infinite is none."""
    columns = schema_identity(config.columns, config.profile)
    if config.scores_only:
        return {"min_raw": None, **columns}
    form = {} if config.output_format == "tar" else {"output_format": config.output_format}
    return config.threshold.identity() | form | columns


def _environment(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "dali_aesthetic": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES if _version(name)},
        "gpu": gpu,
        "cpu_threads": cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
