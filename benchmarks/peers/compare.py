"""Beside the speed: how far a peer's scores are from the reference, and what it did to the images it kept."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.open_clip_model import open_clip_tower
from benchmarks.peers.job import Job


@torch.inference_mode()
def reference_scores(job: Job, count: int) -> dict[str, float]:
    """Pillow and open_clip in float32, by key, of the first `count` images of the first tar."""
    import open_clip

    transform: Any = open_clip.image_transform(
        job.spec.image_size, is_train=False, mean=job.spec.mean, std=job.spec.std
    )
    images = _images(Path(job.tars[0]))
    keys = sorted(images)[:count]
    tower = open_clip_tower(job.spec, job.weights).to(job.device)
    head = job.head_layer()
    scores: dict[str, float] = {}
    for start in range(0, len(keys), 32):
        chunk = keys[start : start + 32]
        pixels = torch.stack([transform(Image.open(io.BytesIO(images[key]))) for key in chunk])
        embeddings_ND = tower(pixels.to(job.device))
        found = head(F.normalize(embeddings_ND, dim=-1))[:, 0].tolist()
        scores.update(zip(chunk, found, strict=True))
    return scores


def score_error(scores: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Absolute differences on the raw scale, over the keys that both have."""
    both = [key for key in reference if scores.get(key) is not None]
    if not both:
        return {}
    errors = np.abs([scores[key] - reference[key] for key in both])
    return {
        "score_error_mean": float(f"{errors.mean():.3g}"),
        "score_error_p99": float(f"{np.quantile(errors, 0.99):.3g}"),
        "scores_compared": len(both),
    }


def kept_fidelity(kept_tars: Sequence[str], source: str) -> dict[str, int]:
    """Of the images in the tars kept: how many have other bytes or another name, and what was left behind.

    Kept images whose name isn't in the source are matched by the number at their end, which is how they are
    called where keys are made up. Members lost are the captions and metadata that a kept image had.
    """
    original = _members(Path(source))
    images = {name: content for name, content in original.items() if name.endswith(".jpg")}
    sidecars = len(original) // max(1, len(images)) - 1
    kept: dict[str, bytes] = {}
    for tar in kept_tars:
        kept |= _members(Path(tar))
    kept_images = {name: content for name, content in kept.items() if name.endswith(".jpg")}
    matched = {name: images.get(_original_name(name, images)) for name in kept_images}
    return {
        "kept_images_compared": len(kept_images),
        "kept_images_with_other_bytes": sum(
            content != matched[name] for name, content in kept_images.items()
        ),
        "kept_images_renamed": sum(name not in images for name in kept_images),
        "members_lost": sidecars * len(kept_images) - (len(kept) - len(kept_images)),
    }


def _original_name(name: str, images: Mapping[str, bytes]) -> str:
    if name in images:
        return name
    number = name.removesuffix(".jpg").rpartition("_")[2]
    return f"{int(number):08d}.jpg" if number.isdecimal() else ""


def _images(tar: Path) -> dict[str, bytes]:
    return {
        name.partition(".")[0]: content for name, content in _members(tar).items() if name.endswith(".jpg")
    }


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = ((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        return {name: content.read() for name, content in found if content is not None}
