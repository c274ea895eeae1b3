"""What one process on one device needs to score shards, built from a config."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

import dali_aesthetic
from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.probe import Limits
from dali_aesthetic.launch.scales import read_calibration
from dali_aesthetic.overlap import cpu_count
from dali_aesthetic.score.build import build_scorer
from dali_aesthetic.score.scorer import Scorer

_PACKAGES = ("torch", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "open_clip_torch", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Decoder and scorer on one device. `weights` names each weight file in use and its sha256."""

    device: torch.device
    limits: Limits
    decoder: DaliDecoder
    scorer: Scorer
    weights: list[dict[str, Any]]


def resolve_device(device: str) -> torch.device:
    """`auto` made concrete. Raises `ConfigError` where a GPU is asked for and torch finds none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device: cuda, but torch {torch.__version__} finds no GPU: check nvidia-smi, or use --device cpu"
        )
    return torch.device(device)


def build_worker(config: Config) -> Worker:
    """Load the weights, build decoder and scorer. Raises `ConfigError` or `WeightsUnavailable`."""
    device = resolve_device(config.device)
    scorer, files = _scorer(config, device)
    limits = Limits(config.decode.max_pixels, config.decode.max_pixels_per_byte)
    decoder = DaliDecoder(
        image_size=scorer.image_size,
        batch_size=scorer.batch_size,
        device=device,
        num_threads=config.decode.num_threads or cpu_count(),
        limits=limits,
        apply_exif=config.decode.apply_exif,
    )
    return Worker(device=device, limits=limits, decoder=decoder, scorer=scorer, weights=files)


def _scorer(config: Config, device: torch.device) -> tuple[Scorer, list[dict[str, Any]]]:
    model = config.model
    try:
        scorer, files = build_scorer(
            encoder=model.encoder,
            weights=model.weights,
            heads=model.heads,
            model_dir=model.model_dir,
            device=device,
            precision=model.precision,
            backend=model.backend,
            batch_size=config.decode.batch_size,
            keep_embeddings=config.save_embeddings,
            calibration=read_calibration(model.calibration) if model.calibration else None,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    return scorer, [asdict(file) for file in files]


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
