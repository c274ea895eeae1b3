"""What one process on one device needs to score shards, built from a config."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch

import dali_aesthetic
from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.graph import import_dali
from dali_aesthetic.decode.probe import Limits
from dali_aesthetic.launch.scales import read_calibration
from dali_aesthetic.overlap import beside, cpu_count
from dali_aesthetic.score.build import ModelReader, scorer_of
from dali_aesthetic.score.fast.backend import resolve_backend
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.score.weights import ResolvedFile
from dali_aesthetic.write.parquet import import_pandas

_PACKAGES = ("torch", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "open_clip_torch", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Decoder and scorer on one device. `weights` names each weight file in use and its sha256.

    `start` is the seconds that it took to read the weights, to wait for imports beside them, to build the
    encoder and to build the decoder.
    """

    device: torch.device
    limits: Limits
    decoder: DaliDecoder
    scorer: Scorer
    weights: list[dict[str, Any]]
    start: dict[str, float] = field(default_factory=dict)


def resolve_device(device: str) -> torch.device:
    """`auto` made concrete. Raises `ConfigError` where a GPU is asked for and torch finds none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device: cuda, but torch {torch.__version__} finds no GPU: check nvidia-smi, or use --device cpu"
        )
    return torch.device(device)


def model_reader(model: ModelConfig) -> ModelReader:
    """Reads the weights that `model` names, once for all who are given it."""
    return ModelReader(
        encoder=model.encoder, weights=model.weights, heads=model.heads, model_dir=model.model_dir
    )


def build_worker(config: Config, reader: ModelReader | None = None) -> Worker:
    """Read the weights, build decoder and scorer. Raises `ConfigError` or `WeightsUnavailable`.

    Takes the model of the `reader`, where one is given, which may have read it already.
    """
    device = resolve_device(config.device)
    reader = reader or model_reader(config.model)
    laps = _Laps()
    try:
        scorer, files = _scorer(config, device, reader, laps)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    limits = Limits(config.decode.max_pixels, config.decode.max_pixels_per_byte)
    decoder = DaliDecoder(
        image_size=scorer.image_size,
        batch_size=scorer.batch_size,
        device=device,
        num_threads=config.decode.num_threads or cpu_count(),
        limits=limits,
        apply_exif=config.decode.apply_exif,
    )
    laps.end("decoder")
    return Worker(
        device=device,
        limits=limits,
        decoder=decoder,
        scorer=scorer,
        weights=[asdict(file) for file in files],
        start=laps.seconds,
    )


class _Laps:
    """Seconds from one lap's end to the next one's, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._ended_at = time.perf_counter()

    def end(self, name: str) -> None:
        before, self._ended_at = self._ended_at, time.perf_counter()
        self.seconds[name] = self._ended_at - before


def _scorer(
    config: Config, device: torch.device, reader: ModelReader, laps: _Laps
) -> tuple[Scorer, Sequence[ResolvedFile]]:
    wanted = config.model
    # Whatever can be wrong is found before gigabytes are read and libraries imported: cheapest first.
    calibration = read_calibration(wanted.calibration) if wanted.calibration else None
    resolve_backend(wanted.backend, wanted.precision, device)
    reader.check()
    with beside(import_dali, import_pandas, name="imports") as imports:
        model = reader.take()
        laps.end("weights")
        # A backend's CUDA graph breaks where another thread calls CUDA, as DALI may when it is imported.
        imports[0].exception()
        laps.end("imports")
        scorer = scorer_of(
            model,
            device=device,
            precision=wanted.precision,
            backend=wanted.backend,
            batch_size=config.decode.batch_size,
            keep_embeddings=config.save_embeddings,
            calibration=calibration,
        )
        laps.end("encoder")
    return scorer, model.files


def run_record(config: Config, worker: Worker) -> dict[str, Any]:
    """What `run.json` holds: `identity` decides whether a rerun is the same run, `environment` informs.

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
        | ({"image_column": config.image_column} if config.image_column else {})
        | ({"calibration": scales.sha256} if scales and scales.choice.precision == "fp8" else {})
    )
    return {
        "identity": identity,
        "gate": scales.choice.as_dict() if scales else None,
        "config": config.model_dump(mode="json"),
        "weights": [{key: str(value) for key, value in file.items()} for file in worker.weights],
        "environment": _environment(worker.device),
    }


def cut_identity(config: Config) -> dict[str, Any]:
    """What is kept: bounds on the raw scale, or nothing where only scores are made."""
    if config.scores_only:
        return {"min_raw": None}
    upper = config.threshold.upper_raw
    return {"min_raw": config.threshold.min_raw} | ({"max_raw": upper} if upper < float("inf") else {})


def _environment(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "dali_aesthetic": dali_aesthetic.__version__,
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
