"""Devices and models that can't be are refused before anything is read."""

from __future__ import annotations

import pytest
import torch

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch.worker import build_worker, resolve_device, run_record
from dali_aesthetic.score.fast.backend import CPU_BATCH


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="finds no GPU"):
        resolve_device("cuda")


def test_the_record_tells_what_made_the_output(tiny_model: ModelConfig) -> None:
    config = Config(input=("a.tar",), output="out", device="cpu", model=tiny_model)
    worker = build_worker(config)
    assert worker.scorer.batch_size == CPU_BATCH
    record = run_record(config, worker)
    worker.decoder.close()
    assert record["identity"]["min_raw"] == 5.0
    assert record["identity"]["precision"] == "fp32"
    assert [weight["name"] for weight in record["identity"]["weights"]] == ["random:1", "random:1"]
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
