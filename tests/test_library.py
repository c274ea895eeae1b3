"""Scoring from Python: paths, bytes and PIL images give the scores that a run gives."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import BaseModel

import dali_aesthetic
from dali_aesthetic import (
    Config,
    ConfigError,
    DecodeConfig,
    ImageScorer,
    LaunchConfig,
    ModelConfig,
    RunStats,
    Threshold,
    library,
    run,
    score_images,
)
from tests.conftest import jpeg, write_shard

BATCH_SIZE = 8


@pytest.fixture(scope="module")
def scorer(tiny_model: ModelConfig) -> ImageScorer:
    """With small batches, so that few images are several of them."""
    return ImageScorer(tiny_model, device="cpu", decode=DecodeConfig(batch_size=BATCH_SIZE))


def test_paths_bytes_and_pil_images_score_as_in_a_run(
    scorer: ImageScorer, tiny_model: ModelConfig, photos: list[Image.Image], tmp_path: Path
) -> None:
    encoded = {f"{i:03d}": jpeg(photo) for i, photo in enumerate(photos[-5:])}
    shard = write_shard(tmp_path / "s.tar", encoded)
    run(Config(input=(str(shard),), output=str(tmp_path / "out"), device="cpu", model=tiny_model))
    expected = pq.read_table(tmp_path / "out/scores/s.parquet").column("aesthetic_score").to_numpy()
    paths = []
    for key, image in encoded.items():
        (tmp_path / f"{key}.jpg").write_bytes(image)
        paths.append(tmp_path / f"{key}.jpg")
    assert np.array_equal(scorer.score(list(encoded.values())), expected)
    assert np.array_equal(scorer.score(paths), expected)
    opened = [Image.open(path) for path in paths]
    mixed = [opened[0], str(paths[1]), encoded["002"], opened[3], paths[4]]
    np.testing.assert_allclose(scorer.score(mixed), expected, atol=0.01)


def test_unreadable_images_are_nan_in_their_place(scorer: ImageScorer, photos: list[Image.Image]) -> None:
    good = jpeg(photos[0])
    scores = scorer.score([b"", good, good[:2000], b"text", good])
    assert np.isnan(scores).tolist() == [True, False, True, True, False]
    assert scores[1] == scores[4]
    assert scores.dtype == np.float32


def test_pil_images_that_cannot_be_read_are_nan_in_their_place(
    scorer: ImageScorer, photos: list[Image.Image]
) -> None:
    good = jpeg(photos[0])
    cut = Image.open(io.BytesIO(good[: len(good) // 2]))
    closed = Image.open(io.BytesIO(good))
    closed.close()
    nothing, premultiplied = Image.new("RGB", (0, 5)), Image.new("La", (40, 50))
    scores = scorer.score([good, cut, closed, nothing, premultiplied, good])
    assert np.isnan(scores).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("image", [None, 5, np.zeros((40, 40, 3), np.uint8), bytearray(b"x"), io.BytesIO()])
def test_an_object_of_another_type_is_refused_by_its_type(scorer: ImageScorer, image: Any) -> None:
    with pytest.raises(TypeError, match=f"an image of type {type(image).__name__}: give a path"):
        scorer.score([image])


@pytest.mark.parametrize("image", ["a.jpg", b"\xff\xd8"])
def test_a_single_path_or_bytes_in_place_of_a_list_is_refused(scorer: ImageScorer, image: Any) -> None:
    with pytest.raises(TypeError, match="a list of images"):
        scorer.score(image)


def test_an_empty_list_gives_an_empty_array(scorer: ImageScorer) -> None:
    assert scorer.score([]).shape == (0,)


def test_a_missing_path_raises(scorer: ImageScorer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scorer.score([tmp_path / "none.jpg"])


def test_a_stream_gives_the_same_scores_in_order(scorer: ImageScorer, photos: list[Image.Image]) -> None:
    photos = photos[-6:]
    encoded = [jpeg(photo) for photo in photos]
    mixed = [encoded[0], photos[1], b"", *encoded[1:4], photos[0], b"text", *encoded[4:]] * 4
    assert len(mixed) > 4 * BATCH_SIZE
    streamed = scorer.score_stream(image for image in mixed)
    np.testing.assert_array_equal(np.array(list(streamed), np.float32), scorer.score(mixed))
    assert list(scorer.score_stream([])) == []


def test_an_endless_stream_prefetches_few_images_and_ends_when_closed(
    scorer: ImageScorer, photos: list[Image.Image]
) -> None:
    taken, image = 0, jpeg(photos[-1])

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield image

    stream = scorer.score_stream(endless())
    first = [next(stream) for _ in range(5 * BATCH_SIZE)]
    assert len(set(first)) == 1
    assert taken <= (5 + 14) * BATCH_SIZE
    stream.close()
    after = taken
    assert scorer.score([image])[0] == np.float32(first[0])
    assert taken == after


def test_a_failing_stream_raises_after_the_batches_before_it(
    scorer: ImageScorer, photos: list[Image.Image], tmp_path: Path
) -> None:
    image = jpeg(photos[-1])
    scores: list[float] = []
    with pytest.raises(FileNotFoundError):
        scores.extend(scorer.score_stream([image] * (2 * BATCH_SIZE + 6) + [tmp_path / "none.jpg"]))
    assert len(scores) == 2 * BATCH_SIZE, "all but the batch that it broke in"
    assert np.isfinite(scores).all()


def test_a_stream_can_be_closed_while_its_source_blocks(
    scorer: ImageScorer, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_PATIENCE_S", 0.2)
    image, more = jpeg(photos[-1]), threading.Event()

    def live() -> Iterator[bytes]:
        yield from [image] * (20 * BATCH_SIZE)
        more.wait(60)

    stream = scorer.score_stream(live())
    first = next(stream)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 20
    assert scorer.score([image]) == np.float32(first)
    more.set()


def test_a_scorer_in_use_refuses_a_second_call_and_continues(
    scorer: ImageScorer, photos: list[Image.Image]
) -> None:
    image, other = jpeg(photos[-1]), jpeg(photos[-2])
    alone = scorer.score([image, other]).tolist()
    stream = scorer.score_stream([image, other] * (5 * BATCH_SIZE))
    found = [next(stream)]
    with pytest.raises(RuntimeError, match="in use"):
        scorer.score([other])
    with pytest.raises(RuntimeError, match="in use"), ThreadPoolExecutor(1) as thread:
        thread.submit(scorer.score, [other]).result(timeout=60)
    assert [*found, *stream] == alone * (5 * BATCH_SIZE)
    assert scorer.score([image, other]).tolist() == alone


def test_score_images_scores_in_one_call(tiny_model: ModelConfig, photos: list[Image.Image]) -> None:
    scores = score_images(photos[:2], tiny_model, device="cpu")
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_details_have_status_message_size_and_embedding(
    scorer: ImageScorer, photos: list[Image.Image]
) -> None:
    photo = photos[-1]
    png = io.BytesIO()
    photo.save(png, "PNG")
    cut = Image.open(io.BytesIO(png.getvalue()[: len(png.getvalue()) // 2]))
    images = [png.getvalue(), photo, b"", b"text", cut, Image.new("RGB", (0, 5))] + [
        png.getvalue()
    ] * BATCH_SIZE
    found = scorer.score(images, details=True)
    np.testing.assert_array_equal(np.array([one.score for one in found], np.float32), scorer.score(images))
    assert [one.status for one in found[:6]] == [
        "ok", "ok", "empty", "undecodable", "undecodable", "undecodable",
    ]  # fmt: skip
    assert [(one.width, one.height) for one in found[:6]] == [photo.size] * 2 + [(0, 0)] * 2 + [
        photo.size,
        (0, 5),
    ]
    assert not found[0].message
    assert all(one.message for one in found[3:6])
    of_bytes, of_pil = found[0].embedding, found[1].embedding
    assert of_bytes is not None
    assert of_pil is not None
    np.testing.assert_allclose(np.linalg.norm(of_bytes.astype(np.float32)), 1, atol=1e-3)
    np.testing.assert_allclose(of_pil, of_bytes, atol=0.02)
    assert [one.embedding is None for one in found] == [False] * 2 + [True] * 4 + [False] * BATCH_SIZE


def test_details_of_pil_images_alone(scorer: ImageScorer, photos: list[Image.Image]) -> None:
    found = scorer.score([Image.new("RGB", (0, 5)), photos[-1]], details=True)
    assert [one.embedding is None for one in found] == [True, False]
    assert scorer.score([], details=True) == []


def test_a_closed_scorer_refuses_work_and_says_so(tiny_model: ModelConfig, photos: list[Image.Image]) -> None:
    image = jpeg(photos[-1])
    with ImageScorer(tiny_model, device="cpu", decode=DecodeConfig(batch_size=BATCH_SIZE)) as scorer:
        stream = scorer.score_stream([image] * (9 * BATCH_SIZE))
        next(stream)
    with pytest.raises(RuntimeError, match="this scorer is closed"):
        list(stream)
    with pytest.raises(RuntimeError, match="this scorer is closed"):
        scorer.score([image])
    scorer.close()
    assert repr(scorer).endswith(", closed>")


def test_a_scorer_shows_its_model_and_device(scorer: ImageScorer, tiny_model: ModelConfig) -> None:
    assert repr(scorer) == (
        f"<ImageScorer {tiny_model.encoder} ({tiny_model.weights}) with {', '.join(scorer.head_names)} "
        f"on cpu, fp32 by eager, {BATCH_SIZE} images at a time>"
    )


def test_a_result_prints_its_counts_in_a_line(
    tiny_model: ModelConfig, photos: list[Image.Image], tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "s.tar", {"a": jpeg(photos[0]), "b": jpeg(photos[1]), "c": b"text"})
    config = Config(
        input=(str(shard),),
        output=str(tmp_path / "out"),
        device="cpu",
        model=tiny_model,
        threshold=Threshold(raw=-100),
    )
    first, again = repr(run(config)), repr(run(config))
    assert first == "<RunResult: 3 samples, 2 kept, 1 bad; 1 shards, 0 skipped, 0 failed>"
    assert again.endswith("1 shards, 1 skipped, 0 failed; 3 samples, 2 kept in the output>")


def test_the_package_lists_its_lazy_names() -> None:
    assert set(dali_aesthetic.__all__) <= set(dir(dali_aesthetic))


def test_an_unknown_encoder_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no-such-encoder"):
        ImageScorer(ModelConfig(encoder="no-such-encoder", weights="random:0", heads=("random:0",)))


def test_decode_settings_apply_to_pil_images_as_to_bytes(
    tiny_model: ModelConfig, photos: list[Image.Image]
) -> None:
    small, large = photos[0].resize((240, 200)), photos[1].resize((400, 300))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, big = io.BytesIO(), io.BytesIO()
    small.save(turned, "PNG", exif=exif)
    large.save(big, "PNG")
    scorer = ImageScorer(
        tiny_model, device="cpu", decode=DecodeConfig(apply_exif=True, max_pixels=100_000, batch_size=4)
    )
    of_bytes = scorer.score([turned.getvalue(), big.getvalue()])
    opened = scorer.score([Image.open(turned), Image.open(big)])
    np.testing.assert_allclose(opened, of_bytes, atol=1e-4)
    assert np.isnan(opened).tolist() == [False, True]
    assert np.isnan(scorer.score([Image.new("RGB", (0, 0))]))
    assert abs(ImageScorer(tiny_model, device="cpu").score([Image.open(turned)])[0] - opened[0]) > 1e-3


FORK = """
import io, json, multiprocessing
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from dali_aesthetic import Config, ImageScorer, ModelConfig, run

model = ModelConfig(encoder="ViT-S-32-alt", weights="random:1", heads=("random:1",))
stream = io.BytesIO()
Image.new("RGB", (80, 60)).save(stream, "JPEG")
photo = stream.getvalue()

def new_scorer():
    return ImageScorer(model, device="cpu")

def message(work):
    try:
        work()
    except RuntimeError as error:
        return "refused" if "forked" in str(error) and "make it in the worker" in str(error) else str(error)

def in_a_fork(work):
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe()
    child = context.Process(target=lambda: its.send(message(work)))
    child.start()
    said = ours.recv() if ours.poll(SECONDS) else "it hangs"
    child.join(SECONDS)
    ended = child.exitcode
    child.kill()
    return f"{said}, {ended}"

class Scores(Dataset):
    def __init__(self):
        self.scorer = new_scorer()
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return self.scorer.score([photo])[0]

found = {}
"""
A_SCORER = """
found["another"] = (new_scorer(), new_scorer(), in_a_fork(new_scorer))[-1]
scorer = new_scorer()
found["built"] = in_a_fork(lambda: scorer.score([photo]))
scores = scorer.score_stream([photo] * 900)
next(scores)
found["while streaming"] = in_a_fork(lambda: list(scores))
scores.close()
found["used"] = in_a_fork(lambda: list(scorer.score_stream([photo])))
loader = DataLoader(Scores(), num_workers=1, multiprocessing_context="fork", timeout=SECONDS)
found["DataLoader"] = message(lambda: list(loader))
print(json.dumps(found))
"""
A_RUN = """
open("a.jpg", "wb").write(photo)
run(Config(input=("a.jpg",), output="out", device="cpu", model=model))
print(json.dumps({"after a run": in_a_fork(new_scorer)}))
"""


@pytest.mark.parametrize("script", [A_SCORER, A_RUN], ids=["a scorer", "a run"])
def test_a_model_from_before_a_fork_raises_there_instead_of_hanging(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "SECONDS = 20\n" + FORK + script]
    ended = subprocess.run(command, timeout=240, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = json.loads(ended.stdout)
    assert found
    assert found == {case: "refused" if case == "DataLoader" else "refused, 0" for case in found}, (
        ended.stderr
    )


def test_a_scorer_is_not_pickled_for_a_spawned_worker(scorer: ImageScorer) -> None:
    with pytest.raises(TypeError, match="make it in the worker"):
        multiprocessing.get_context("spawn").Process(target=scorer.score, args=([],)).start()
    with pytest.raises(TypeError, match="make it in the worker"):
        pickle.dumps(scorer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": "ViT-B-32"}, r"takes no encoder: give it model=ModelConfig\(encoder='ViT-B-32'\)$"),
        ({"model": "ViT-B-32"}, r"takes no encoder: give it model=ModelConfig\(encoder='ViT-B-32'\)$"),
        ({"batch_size": 8}, r"takes no batch_size: give it decode=DecodeConfig\(batch_size=8\)$"),
        ({"sorcerer": 1}, "takes model, device and decode, not sorcerer$"),
    ],
)
def test_an_argument_that_belongs_to_a_section_is_told_where(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^ImageScorer {message}"):
        ImageScorer(**given)
    with pytest.raises(TypeError, match=f"^score_images {message}"):
        score_images([], **given)


def test_a_gpu_that_is_not_there_is_a_config_error(tiny_model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"^device: cuda:99, but torch .* or use device cpu$"):
        ImageScorer(tiny_model, device="cuda:99")


def test_what_a_run_refuses_is_a_config_error_in_words_of_python(
    tmp_path: Path, shards_dir: Path, tiny_model: ModelConfig
) -> None:
    def config(**changes: Any) -> Config:
        values = {"input": shards_dir / "00000.tar", "output": tmp_path / "out", "device": "cpu"}
        return Config(model=tiny_model, **{**values, **changes})

    top = run(config(threshold=Threshold(top="50%")))
    assert top.stats.num_kept == -(-top.stats.num_samples // 2)
    with pytest.raises(ConfigError, match="holds"):
        run(config(threshold=Threshold(raw=5)))
    with pytest.raises(ConfigError, match=r"none\.tar"):
        run(config(input=tmp_path / "none.tar", output=tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"^launch\.gpus 9: .* or give .*launch\.workers N"):
        run(config(output=tmp_path / "other", device="auto", launch=LaunchConfig(gpus=9)))


def test_what_the_signature_of_run_names_is_public() -> None:
    hints = typing.get_type_hints(run)
    sections = typing.get_type_hints(Config)
    public = [getattr(dali_aesthetic, name) for name in dali_aesthetic.__all__]
    named = [typing.get_args(hints["watch"])[0], hints["task"], hints["return"], hints["config"], RunStats]
    assert [one for one in named if one not in public] == []
    made_of = [one for one in sections.values() if isinstance(one, type) and issubclass(one, BaseModel)]
    assert len(made_of) == 7
    assert [one for one in made_of if one not in public] == []
