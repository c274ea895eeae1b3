"""Measures the score error of a fast path against Pillow and the fp32 tower, on the user's own images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.pillow import decode_reference
from dali_aesthetic.launch.precision import prepare, preset_cuts
from dali_aesthetic.launch.worker import Worker, build_worker, model_reader, resolve_device
from dali_aesthetic.score.build import Model, ModelReader, scorer_of
from dali_aesthetic.score.gate import Deviation, Scores, deviation
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.types import ImageHeader, Sample, ScoredBatch, Shard, ShardEnd, Status

_MOST_SHARDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """The deviation of the first head's raw scores, with flips counted at `cuts` (raw score by name)."""

    encoder: str
    head: str
    device: str
    backend: str
    precision: str
    deviation: Deviation
    cuts: Mapping[str, float]

    @property
    def flips(self) -> list[dict[str, Any]]:
        """The images that only one of fast path and reference keeps, at each cut."""
        kept, flipped = self.deviation.kept, self.deviation.flips
        return [
            {"preset": name, "raw": raw, "kept_by_reference": kept[name], "flipped": flipped[name]}
            for name, raw in self.cuts.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """One flat object: the two paths, the numbers of the deviation, and `flips`."""
        fields = asdict(self)
        errors = fields.pop("deviation")
        del fields["cuts"], errors["flips"], errors["kept"]  # all of it is in `flips`, cut by cut
        return {**fields, **errors, "flips": self.flips}


def verify_precision(config: Config, num_images: int) -> PrecisionReport:
    """Scores about `num_images` of `config.input` twice: as a run would, and by Pillow and the fp32 tower.

    fp8 is calibrated and judged as by a run on the same input; if its gate rejects it, fp16 is
    measured. Raises ConfigError where no image could be scored, and what `launch.run.run` raises.
    """
    shards = plan_shards(config.input, output=config.output, follow_links=config.follow_links)
    with TemporaryDirectory() as folder:
        elsewhere, reader = config.model_copy(update={"output": folder}), model_reader(config.model)
        config = config.model_copy(update={"model": prepare(elsewhere, shards, reader).model})
        reference = _reference(config, reader)
        worker = build_worker(config, reader)
    shards = shards[:: max(1, math.ceil(len(shards) / _MOST_SHARDS))]  # spread evenly
    try:
        pairs = list(_pairs(config, worker, reference, shards, math.ceil(num_images / len(shards))))
    finally:
        worker.decoder.close()
    pairs = [pair for pair in pairs if len(pair[0])]
    if not pairs:
        raise ConfigError(f"none of the images in {', '.join(config.input)} could be scored")
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    cuts, backend = preset_cuts(), worker.scorer.backend
    return PrecisionReport(
        encoder=backend.spec.name,
        head=backend.head_names[0],
        device=torch.cuda.get_device_name(worker.device) if worker.device.type == "cuda" else "cpu",
        backend=backend.name,
        precision=backend.precision,
        deviation=deviation(ours, theirs, cuts),
        cuts=cuts,
    )


def _pairs(
    config: Config, worker: Worker, reference: Scorer, shards: Sequence[Shard], per_shard: int
) -> Iterator[tuple[Scores, Scores]]:
    stream = _some(shards, per_shard)
    batches = fill_batches(stream, worker.scorer.batch_size, worker.limits)
    for pending in worker.scorer.score(worker.decoder.decode(batches)):
        yield _pair(config, worker, reference, pending.wait())


def _some(shards: Sequence[Shard], per_shard: int) -> Iterator[Sample | ShardEnd]:
    for shard in shards:
        yield from islice(read_shards([shard]), per_shard)


def _reference(config: Config, reader: ModelReader) -> Scorer:
    """The plain fp32 tower on the config's device, from the weights that its worker then takes over."""
    device, model = resolve_device(config.device), reader.read()
    tower, heads = model.copy_to(device)
    copied = Model(tower=tower, heads=heads, files=model.files)
    batch_size = min(config.decode.batch_size or 64, 64)
    return scorer_of(copied, device=device, precision="fp32", backend="eager", batch_size=batch_size)


def _pair(config: Config, worker: Worker, reference: Scorer, scored: ScoredBatch) -> tuple[Scores, Scores]:
    pixels = {
        row: square
        for row, header in enumerate(scored.headers)
        if header.status is Status.OK
        and (square := _pixels(config, worker, scored.encoded.samples[row], header)) is not None
    }
    if not pixels:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    expected = reference.score_pixels(torch.from_numpy(np.stack(list(pixels.values()))))
    return scored.scores_RH[list(pixels), 0], expected[:, 0]


def _pixels(
    config: Config, worker: Worker, sample: Sample, header: ImageHeader
) -> npt.NDArray[np.uint8] | None:
    """The pixels of the reference; None where Pillow can't decode an image that DALI could."""
    assert sample.image is not None, "it was scored"
    try:
        return decode_reference(
            sample.image,
            worker.scorer.image_size,
            worker.limits,
            format=header.format,
            apply_exif=config.decode.apply_exif,
        ).pixels_SSC
    except Exception:  # Pillow's plugins raise nearly every type for damaged data
        return None
