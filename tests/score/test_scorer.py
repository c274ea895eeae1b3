"""The scorer: from image batches to rows of scores."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dali_aesthetic.score.backends.backend import Backend
from dali_aesthetic.score.build import ModelReader, scorer_of
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.types import EncodedBatch, ImageBatch, ImageHeader, Route, Sample, Shard

CPU = torch.device("cpu")


def _batch(images_NHWC: Tensor, rows: list[int], num_samples: int) -> ImageBatch:
    shard = Shard(index=0, name="00000", kind="tar", source="00000.tar")
    samples = tuple(
        Sample(shard=shard, key=str(i), image=None, entries=(), source="00000.tar", offset=0)
        for i in range(num_samples)
    )
    headers = (ImageHeader(format="jpeg", width=1, height=1, route=Route.DALI),) * num_samples
    encoded = EncodedBatch(samples=samples, headers=headers)
    return ImageBatch(
        encoded=encoded, headers=headers, images_NHWC=images_NHWC, rows_N=np.array(rows, dtype=np.int64)
    )


@pytest.fixture
def scorer(make_backend: Callable[..., Backend]) -> Scorer:
    return Scorer(make_backend("eager"), CPU, batch_size=16)


def test_each_row_gets_the_score_of_its_image(scorer: Scorer, pixels: Tensor) -> None:
    expected = scorer.backend(pixels)[0].numpy()
    batch = _batch(pixels, rows=[0, 2, 5], num_samples=6)
    scored = next(iter(scorer.score([batch]))).wait()
    assert scored.encoded is batch.encoded
    assert scored.headers is batch.headers
    assert scored.scores_RH.dtype == np.float32
    assert np.array_equal(scored.scores_RH[[0, 2, 5]], expected[:3])
    assert np.isnan(scored.scores_RH[[1, 3, 4]]).all()


def test_padding_does_not_change_a_score(scorer: Scorer, pixels: Tensor) -> None:
    padded = pixels.clone()
    padded[3:] = 0
    full, part = (
        pending.wait().scores_RH
        for pending in list(scorer.score([_batch(pixels, list(range(16)), 16), _batch(padded, [0, 1, 2], 3)]))
    )
    assert np.array_equal(full[:3], part)


def test_a_batch_without_images_gives_rows_of_nan(scorer: Scorer, pixels: Tensor) -> None:
    scored = next(iter(scorer.score([_batch(pixels[:0], [], 4)]))).wait()
    assert scored.scores_RH.shape == (4, 2)
    assert np.isnan(scored.scores_RH).all()


def test_pixels_are_held_until_the_wait_and_no_longer(scorer: Scorer, pixels: Tensor) -> None:
    images_NHWC = pixels.clone()
    alive = weakref.ref(images_NHWC)
    pending = next(iter(scorer.score([_batch(images_NHWC, [0], 1)])))
    del images_NHWC
    gc.collect()
    assert alive() is not None
    pending.wait()
    gc.collect()
    assert alive() is None
    with pytest.raises(RuntimeError, match="taken already"):
        pending.wait()


@pytest.mark.parametrize("count", [0, 1, 16, 21])
def test_score_pixels_takes_any_number_of_images(scorer: Scorer, pixels: Tensor, count: int) -> None:
    many = torch.cat([pixels, pixels.flip(0)])
    expected = np.concatenate([scorer.backend(half)[0].numpy() for half in many.split(16)])
    scores_NH = scorer.score_pixels(many[:count])
    assert scores_NH.dtype == np.float32
    assert np.array_equal(scores_NH, expected[:count])


def test_a_built_scorer_names_its_files_heads_backend_and_precision(tiny: str) -> None:
    model = ModelReader(encoder=tiny, weights="random:4", heads=("random", "random:2"), model_dir=None).take()
    scorer, files = scorer_of(model, device=CPU, batch_size=4), model.files
    assert [file.name for file in files] == ["random:4", "random:0", "random:2"]
    assert (scorer.image_size, scorer.batch_size) == (32, 4)
    assert scorer.head_names == ("random:0", "random:2")
    assert (scorer.backend.name, scorer.backend.precision) == ("eager", "fp32")


@pytest.mark.gpu
def test_scores_arrive_from_the_gpu(make_backend: Callable[..., Backend], pixels: Tensor) -> None:
    device = torch.device("cuda")
    scorer = Scorer(make_backend("auto", device), device, batch_size=16)
    batches = [_batch(images.cuda(), list(range(16)), 16) for images in (pixels, pixels.flip(0))]
    launched = list(scorer.score(batches))
    first, second = (pending.wait().scores_RH for pending in launched)
    assert np.array_equal(first, second[::-1])
    assert np.array_equal(first, scorer.score_pixels(pixels))
