"""Settles the precision of a run before its workers start: fp8 where the run's own images pass the gate.

Scales and decision are one file in the output. All workers load it, and so does a rerun: they stay those of
the first start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.launch.worker import (
    decoder_of,
    limits_of,
    model_reader,
    read_calibration,
    read_limits_of,
    resolve_device,
)
from dali_aesthetic.layout import CALIBRATION, IDENTITY, RECORD, NotARun, read_record
from dali_aesthetic.overlap import beside
from dali_aesthetic.score.backends.backend import import_libraries
from dali_aesthetic.score.backends.calibration import Calibration, Choice
from dali_aesthetic.score.backends.fits import resolve_backend, why_not_fused
from dali_aesthetic.score.build import ModelReader
from dali_aesthetic.score.gate import GateLimits
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stores.access import Uploader, exists
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.threshold import PRESETS
from dali_aesthetic.types import Shard
from dali_aesthetic.write.files import write_whole
from dali_aesthetic.write.output import write_once

FEWEST_IMAGES = 48
"""With fewer, neither scales nor errors mean anything."""

_LOG = logging.getLogger(__name__)
_DECODE_BATCH = 128


def prepare(config: Config, shards: Sequence[Shard], reader: ModelReader | None = None) -> Config:
    """The config that all workers of the run are built from, its precision settled.

    Where fp8 is asked for, or allowed (`auto` on a GPU that has it), the first images of `shards` set the
    scales and are scored in both precisions, unless the output holds the result already. The model section
    then names the precision and the calibration file. Memory of the config's device is free again when this
    returns; weights that were read stay in a given `reader`. Raises ConfigError where fp8 is asked for and
    can't run.
    """
    device = resolve_device(config.device)
    if config.model.calibration or not _considers_float8(config.model, device):
        return config
    location = f"{config.output}/{CALIBRATION}"
    if exists(location) and _is_of_this_run(location, config):
        return _settled(config, location)
    if (recorded := _recorded_model(config)) is not None:
        return config.model_copy(update={"model": recorded})
    _LOG.info("calibrating fp8 on the first images")
    calibration = _calibrate(config, shards, device, reader or model_reader(config.model))
    if config.model.precision == "auto" and calibration.choice.reason:
        return config
    # A file that is there has other options, and no run began with it.
    write_calibration(config.output, calibration, replace=exists(location))
    settled = _settled(config, location)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    choice = read_calibration(location).choice
    level = logging.INFO if choice.precision == "fp8" else logging.WARNING
    _LOG.log(level, "precision %s", choice.describe())
    return settled


def write_calibration(output: str, calibration: Calibration, replace: bool = False) -> None:
    """Puts the file into a run's output, whole or not at all.

    On a disk the first of two writers wins unless it is to `replace` what is there; in a store the last.
    """
    content = calibration.to_bytes()
    if is_url(output):
        Uploader(output).put(CALIBRATION, content)
        return
    final = Path(output) / CALIBRATION
    (write_whole if replace else write_once)(final, content)


def preset_cuts() -> dict[str, float]:
    """The raw cuts of the presets by name, each cut once, in ascending order."""
    return {
        name: raw
        for raw, name in sorted({preset.raw: name for name, preset in reversed(PRESETS.items())}.items())
    }


def _considers_float8(model: ModelConfig, device: torch.device) -> bool:
    try:
        if model.precision == "fp8":
            resolve_backend(model.backend, model.precision, device)
            return True
        if model.precision != "auto" or model.backend not in ("auto", "fused"):
            return False
        # Only the weights tell which GELU it is.
        return not why_not_fused(spec_of(model.encoder).with_quick_gelu(True), device, "fp8")
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _settled(config: Config, location: str) -> Config:
    precision = read_calibration(location).choice.precision
    update: dict[str, Any] = {"precision": precision, "calibration": location}
    return config.model_copy(update={"model": config.model.model_copy(update=update)})


def _is_of_this_run(location: str, config: Config) -> bool:
    """Whether the file's scales may be used. Raises ConfigError where another run was begun with them."""
    there, now = read_calibration(location).choice.made_for, _made_for(config)
    differing = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
    if differing and exists(f"{config.output}/{RECORD}"):
        listed = "; ".join(f"{name}: {there.get(name)} there, {now.get(name)} now" for name in differing)
        raise ConfigError(
            f"{location} was made for another run: {listed}. Give the same options again, or another output "
            "folder."
        )
    return not differing


def _recorded_model(config: Config) -> ModelConfig | None:
    """The model section of a run that was begun without a calibration: `auto` takes the same again."""
    try:
        identity = read_record(config.output)[IDENTITY]
        took = {"backend": identity["backend"], "precision": identity["precision"]}
    except (NotARun, KeyError):
        return None  # whoever claims the output says what is wrong with its record
    if config.model.precision == "fp8" or took["precision"] == "fp8":
        raise ConfigError(
            f"{config.output} holds a run in {took['precision']} and no {CALIBRATION}: give the same "
            "--precision again, or another output folder"
        )
    return config.model.model_copy(update=took)


def _made_for(config: Config) -> dict[str, Any]:
    """The options that scales and decision depend on, as JSON gives them back."""
    model = config.model
    return {
        "input": list(config.input),
        "encoder": model.encoder,
        "weights": model.weights,
        "heads": list(model.heads),
        "apply_exif": config.decode.apply_exif,
        "cuts": _cuts(config),
        "gate": config.gate.model_dump(mode="json"),
    }


def _cuts(config: Config) -> dict[str, float]:
    """The cuts of the presets, and the run's own where it is none of them."""
    cuts = preset_cuts()
    if not config.scores_only and config.threshold.top is None:
        for name, raw in (
            ("the lower cut", config.threshold.min_raw),
            ("the upper cut", config.threshold.upper_raw),
        ):
            if raw not in cuts.values() and abs(raw) != float("inf"):
                cuts[name] = raw
    return cuts


def _calibrate(
    config: Config, shards: Sequence[Shard], device: torch.device, reader: ModelReader
) -> Calibration:
    reader.check()
    named = spec_of(config.model.encoder)
    import_kernels = partial(import_libraries, "fused", "fp16", device, named)
    decode = partial(_first_images, config, shards, named.image_size, device)
    # Weights, imports and building a decoder take seconds each.
    with beside(import_kernels, name="imports"), beside(decode, name="first images") as decoded:
        model = reader.read()
    spec, gate, asked = model.tower.spec, config.gate, config.model.precision
    if reason := why_not_fused(spec, device, "fp8"):
        if asked == "fp8":
            raise ConfigError(f"model: precision fp8 can't run here: {reason}; use --precision auto")
        return _untried(config, reason)
    images_NHWC = decoded[0].result()
    # `auto` needs the full number of images: on a small input fp8 gains nothing.
    fewest = gate.calibration_images + gate.check_images if asked == "auto" else FEWEST_IMAGES
    if len(images_NHWC) < fewest:
        return _untried(config, f"{len(images_NHWC)} images could be decoded and it takes {fewest}")
    from dali_aesthetic.score.backends.calibrate import calibrate

    to_spare = len(images_NHWC) - gate.check_images
    first = min(gate.calibration_images, max(len(images_NHWC) // 3, to_spare))
    found = calibrate(
        *model.copy_to(device),
        device,
        images_NHWC[:first],
        images_NHWC[first : first + gate.check_images],
        _cuts(config),
        GateLimits(mean_error=gate.max_mean_error, p99_error=gate.max_p99_error, flips=gate.max_flips),
        _made_for(config),
    )
    return replace(found, choice=replace(found.choice, weights=model.hashes))


def _untried(config: Config, reason: str) -> Calibration:
    return Calibration(choice=Choice(precision="fp16", made_for=_made_for(config), reason=reason))


def _first_images(config: Config, shards: Sequence[Shard], image_size: int, device: torch.device) -> Tensor:
    """The pixels of the first images that can be decoded, uint8 [N, S, S, 3] on the device."""
    wanted = config.gate.calibration_images + config.gate.check_images
    decoder = decoder_of(config, image_size, _DECODE_BATCH, device)
    parts = [torch.empty(0, image_size, image_size, 3, dtype=torch.uint8, device=device)]
    try:
        for batch in decoder.decode(
            fill_batches(read_shards(shards, read_limits_of(config)), _DECODE_BATCH, limits_of(config))
        ):
            parts.append(batch.images_NHWC[: len(batch.rows_N)].clone())
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # DALI may write over them once the batch is gone
            if sum(map(len, parts)) >= wanted:
                break
    finally:
        decoder.close()
    return torch.cat(parts)[:wanted]
