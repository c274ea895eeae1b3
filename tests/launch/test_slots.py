"""Slots: a share of the cores each, GPUs by the names they are visible under, CPUs near them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.node.slots import find_slots, nearest_cpus, parse_cpus
from dali_aesthetic.overlap import cpu_count


def config(**launch: object) -> Config:
    return Config.build({"input": "a.tar", "output": "out", "launch": launch})


def test_cpu_workers_share_the_cores() -> None:
    slots = find_slots(config(workers=2))
    assert [(slot.name, slot.visible, slot.sharers) for slot in slots] == [
        ("CPU 0", None, 2),
        ("CPU 1", None, 2),
    ]
    assert {slot.threads for slot in slots} == {max(1, cpu_count() // 2)}


@pytest.mark.parametrize(
    ("visible", "gpus", "names"),
    [(None, "all", ["0", "1", "2"]), (None, 2, ["0", "1"]), ("4, GPU-ab,7", "all", ["4", "GPU-ab", "7"])],
)
def test_gpus_are_named_as_they_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: object, names: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.visible for slot in find_slots(config(gpus=gpus))] == names


def test_more_gpus_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(
        ConfigError, match=r"^--gpus 4: this process sees 3 GPUs: .* give --gpus 3 or --workers N"
    ):
        find_slots(config(gpus=4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="or give --workers N for processes on the CPU"):
        find_slots(config(gpus="all"))


@pytest.mark.parametrize(
    "values",
    [
        {"launch": {"gpus": 0}},
        {"launch": {"gpus": "some"}},
        {"launch": {"workers": 0}},
        {"launch": {"gpus": 1, "workers": 1}},
        {"launch": {"gpus": 1}, "device": "cpu"},
        {"launch": {"workers": 1}, "device": "cuda"},
    ],
)
def test_impossible_launches_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"gpus|workers"):
        Config.build({"input": "a.tar", "output": "out", **values})


def test_nearest_cpus_are_those_of_the_gpus_pci_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: place)
    gpu, first = torch.device("cuda", 0), min(os.sched_getaffinity(0))
    assert nearest_cpus(gpu, tmp_path) == set()
    (tmp_path / "0000:1b:00.0").mkdir()
    (tmp_path / "0000:1b:00.0" / "local_cpulist").write_text(f"{first},100000-100003\n")
    assert nearest_cpus(gpu, tmp_path) == {first}
    assert nearest_cpus(torch.device("cpu"), tmp_path) == set()


def test_a_kernel_list_of_cpus_is_parsed() -> None:
    assert parse_cpus("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert parse_cpus("\n") == set()
