"""A real offline run of Weights & Biases, read back from its file."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.run import run
from dali_aesthetic.observe import observing

BLOCK, HEADER = 32768, struct.Struct("<IHB")


def records(folder: Path) -> Iterator[Any]:
    """The records in wandb's file: protobuf messages in LevelDB's log format."""
    sys.modules["wandb"].teardown()  # waits until its own process has written all
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, at, whole = file.read_bytes(), 7, b""
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = HEADER.unpack_from(content, at)
        at += HEADER.size
        whole += content[at : at + size]
        at += size
        if kind in (1, 4):  # whole, or its last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads the environment once
    yield tmp_path
    wandb.teardown()


def test_a_run_of_wandb_has_config_values_and_the_bound(config: Callable[..., Config], offline: Path) -> None:
    wanted = config(observe={"wandb": "aesthetic"})
    with observing(wanted, None) as watch:
        result = run(wanted, watch=watch)
    found = list(records(offline))
    (begun,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert begun.project == "aesthetic"
    assert settings["model"]["encoder"] == wanted.model.encoder
    history = [record.history for record in found if record.WhichOneof("record_type") == "history"]
    last = {"/".join(item.nested_key): json.loads(item.value_json) for item in history[-1].item}
    assert last["samples_total/main"] == 36
    assert last["kept_total/main"] == result.stats.num_kept
    assert last["bad_total/main/empty"] == 3
    assert last["samples_per_second_now"] > 0
    summary = [item for record in found for item in record.summary.update]
    assert {item.key: item.value_json for item in summary}["bound_by"] == json.dumps(result.stats.bound_by())
    assert found[-1].exit.exit_code == 0


def test_a_run_that_fails_is_failed_in_wandb(config: Callable[..., Config], offline: Path) -> None:
    wanted = config(observe={"wandb": "aesthetic"})
    with pytest.raises(OSError, match="full"), observing(wanted, None):
        raise OSError("the disk is full")
    assert list(records(offline))[-1].exit.exit_code == 1


def test_a_missing_wandb_is_an_error_that_names_the_extra(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(
            ConfigError, match=r"--wandb needs the package wandb: in the clone, pip install .*\[wandb\]"
        ),
        observing(config(observe={"wandb": "aesthetic"}), None),
    ):
        pass
