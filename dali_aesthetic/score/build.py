"""Reads a model by its names and builds its scorer on a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dali_aesthetic.score.backends.backend import SlicedBackend, build_backend, warm_up
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.fits import BACKENDS, choose_backend, default_batch
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.published import ResolvedFile
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.score.weights import fetch_tower, load_head, load_tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Tower and heads, float32 on the CPU, and their files: the tower's, then each head's."""

    tower: VisionTower
    heads: HeadBank
    files: Sequence[ResolvedFile]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each file; of random weights their name."""
        return tuple(file.sha256 or file.name for file in self.files)

    def copy_to(self, device: torch.device) -> tuple[VisionTower, HeadBank]:
        """Copies of tower and heads on `device`, for a backend to take over."""
        state = {name: tensor.to(device) for name, tensor in self.tower.state_dict().items()}
        return VisionTower.from_state(self.tower.spec, state), copy.deepcopy(self.heads).to(device)


class ModelReader:
    """A model by its names, read once for all that need it.

    `check`, `read` and `take` raise ValueError for names and files that don't fit together, and
    WeightsUnavailable for published weights that are not here and can't be downloaded.
    """

    def __init__(self, *, encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None) -> None:
        self._encoder, self._weights, self._model_dir = encoder, weights, model_dir
        self._head_names = tuple(heads)
        self._heads: tuple[HeadBank, list[ResolvedFile]] | None = None
        self._model: Model | None = None

    def check(self) -> None:
        """Checks names, heads and the location of the weights, before the weights are read.

        Downloads published weights that aren't on this machine.
        """
        if self._heads is None:
            embed_dim = spec_of(self._encoder).embed_dim
            loaded = [load_head(head, self._encoder, embed_dim, self._model_dir) for head in self._head_names]
            bank = HeadBank([head for head, _ in loaded], embed_dim)
            fetch_tower(self._encoder, self._weights, self._model_dir)
            self._heads = bank, [file for _, file in loaded]

    def read(self) -> Model:
        """The model, to be copied but not changed: the reader keeps it."""
        if self._model is None:
            self.check()
            assert self._heads is not None
            bank, files = self._heads
            tower, file = load_tower(self._encoder, self._weights, self._model_dir)
            self._model = Model(tower=tower, heads=bank, files=[file, *files])
        return self._model

    def take(self) -> Model:
        """The model, for a backend to take over. The reader drops it."""
        model, self._model, self._heads = self.read(), None, None
        return model


def scorer_of(
    model: Model,
    *,
    device: torch.device,
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
    keep_embeddings: bool = False,
    calibration: Calibration | None = None,
    lap: Callable[[str], None] = lambda name: None,
) -> Scorer:
    """A scorer that takes the model over. On a GPU it has scored a batch to warm up.

    The default `batch_size` is the backend's. `calibration` holds the scales that fp8 needs. `lap` is called
    with the name of each step when it ends: `encoder`, `first batch`. Raises ValueError for arguments that
    don't fit each other or the device.
    """
    if calibration is not None:
        _check_same_weights(calibration, model)
    backend, precision = choose_backend(backend, precision, device, model.tower.spec)
    batch_size = batch_size or default_batch(backend, device)
    built = build_backend(backend, model.tower, model.heads, device, precision, batch_size, calibration)
    lap("encoder")
    warm_up(built, device, batch_size)
    lap("first batch")
    sliced = device.type == "cpu" and BACKENDS[backend].any_size
    if sliced:
        built = SlicedBackend(built, torch.get_num_threads())
    return Scorer(built, device, batch_size, keep_embeddings, padded=not sliced)


def _check_same_weights(calibration: Calibration, model: Model) -> None:
    """Raises ValueError for the calibration of another model, whose corrected heads it would score with."""
    made_with = calibration.choice.weights
    if made_with and made_with != model.hashes:
        there, here = ", ".join(made_with), ", ".join(model.hashes)
        raise ValueError(
            f"the calibration was made with weights {there}, not with {here}: "
            "remove the file to have a run measure anew, or name the calibration that was made with these"
        )
