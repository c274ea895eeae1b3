"""Building a worker: checks before anything is read, the order of its steps, and its run record."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch import worker as workers
from dali_aesthetic.launch.worker import build_worker, model_reader, resolve_device, run_record
from dali_aesthetic.overlap import beside
from dali_aesthetic.score.backends.fits import CPU_BATCH
from dali_aesthetic.write.output import RunMismatch, write_run_record


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="finds no GPU"):
        resolve_device("cuda")


def test_the_run_record_names_model_and_threshold(tiny_model: ModelConfig) -> None:
    config = Config(input=("a.tar",), output="out", device="cpu", model=tiny_model)
    worker = build_worker(config)
    assert worker.scorer.batch_size == CPU_BATCH
    record = run_record(config, worker)
    worker.decoder.close()
    assert record["identity"]["min_raw"] == 5.0
    assert record["identity"]["precision"] == "fp32"
    assert [weight["name"] for weight in record["identity"]["weights"]] == ["random:1", "random:1"]
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_settings_from_a_file_beside_the_weights_are_part_of_the_identity(
    tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """It changes every score, and neither the weights' name nor their hash."""
    visual = open_clip.create_model(tiny_model.encoder, pretrained=None).visual.state_dict()
    save_file({f"visual.{name}": tensor for name, tensor in visual.items()}, tmp_path / "model.safetensors")
    model = tiny_model.model_copy(update={"weights": str(tmp_path)})
    config = Config(input=("a.tar",), output=str(tmp_path / "out"), device="cpu", model=model)

    def record() -> dict[str, Any]:
        worker = build_worker(config)
        worker.decoder.close()
        return run_record(config, worker)

    write_run_record(tmp_path / "out", record())
    beside = {
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "model_cfg": {"quick_gelu": True},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    with pytest.raises(RunMismatch) as error:
        write_run_record(tmp_path / "out", record())
    for field in ("mean: '(not set)' there, [0.5, 0.5, 0.5] now", "std: ", "quick_gelu: '(not set)' there"):
        assert field in str(error.value)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of a start, in the order in which they begin or end."""
    seen: list[str] = []

    def logged(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def log(*args: object, **kwargs: object) -> object:
            seen.append(f"{name} in {threading.current_thread().name.partition('_')[0]}")
            return call(*args, **kwargs)

        return log

    @contextmanager
    def logged_beside(*calls: Callable[[], object], name: str) -> Iterator[object]:
        with beside(*calls, name=name) as begun:
            for call in begun:
                call.exception()
            yield begun
        seen.append(f"{name} ended")

    monkeypatch.setattr(workers, "beside", logged_beside)
    for name in ("import_dali", "import_libraries", "scorer_of", "DaliDecoder"):
        monkeypatch.setattr(workers, name, logged(name, getattr(workers, name)))
    return seen


def test_imports_run_beside_the_weights_and_the_decoder_beside_the_encoder(
    tiny_model: ModelConfig, steps: list[str]
) -> None:
    config = Config(input=("a.tar",), output="out", device="cpu", model=tiny_model)
    build_worker(config).decoder.close()
    assert steps == [
        "import_dali in imports",
        "import_libraries in imports",
        "imports ended",
        "DaliDecoder in decoder",
        "scorer_of in MainThread",
        "decoder ended",
    ]


@pytest.mark.parametrize("name", ["weights", "heads", "backend"])
def test_a_wrong_name_is_refused_before_anything_is_imported(
    tiny_model: ModelConfig, steps: list[str], name: str
) -> None:
    wrong = {"weights": "nowhere.pt", "heads": ("nowhere.pth",), "backend": "nobackend"}[name]
    model = tiny_model.model_copy(update={name: wrong})
    with pytest.raises(ConfigError, match=r"model: .*(no such file|unknown backend)"):
        build_worker(Config(input=("a.tar",), output="out", device="cpu", model=model))
    assert steps == []


def test_weights_that_cannot_be_read_leave_no_thread_behind(
    tiny_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(workers, "import_dali", lambda: gate.wait(10))
    threading.Timer(0.2, gate.set).start()
    (tmp_path / "tower.pt").write_bytes(b"no checkpoint")
    model = tiny_model.model_copy(update={"weights": str(tmp_path / "tower.pt")})
    with pytest.raises(ConfigError, match="no checkpoint"):
        build_worker(Config(input=("a.tar",), output="out", device="cpu", model=model))
    assert not any(thread.name.startswith("imports") for thread in threading.enumerate())


def test_a_failed_import_is_raised_where_the_library_is_needed(
    tiny_model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("no DALI")

    monkeypatch.setattr(workers, "import_dali", fail)
    monkeypatch.setattr(workers, "DaliDecoder", fail)
    config = Config(input=("a.tar",), output="out", device="cpu", model=tiny_model)
    with pytest.raises(ImportError, match="no DALI"):
        build_worker(config)
    wrong = tiny_model.model_copy(update={"backend": "fused"})
    with pytest.raises(ConfigError, match="model: "):
        build_worker(config.model_copy(update={"model": wrong}))


def test_a_worker_uses_the_model_that_its_reader_has_read(tiny_model: ModelConfig) -> None:
    config = Config(input=("a.tar",), output="out", device="cpu", model=tiny_model)
    reader = model_reader(tiny_model)
    tower = reader.read().tower
    pixels = torch.randint(0, 256, (3, *2 * (tower.spec.image_size,), 3), dtype=torch.uint8)
    scores = []
    for worker in (build_worker(config, reader), build_worker(config)):
        scores.append(worker.scorer.score_pixels(pixels))
        worker.decoder.close()
    assert (scores[0] == scores[1]).all()
    assert reader.read().tower is not tower
