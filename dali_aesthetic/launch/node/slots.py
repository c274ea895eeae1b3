"""The slots of a node: one for each GPU, or for each CPU worker asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.overlap import cpu_count

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PCI_DEVICES = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for one worker. `visible` is its GPU as `CUDA_VISIBLE_DEVICES` names it, None for a CPU worker.

    `threads` is its share of this process's cores; `sharers` is how many workers share the host's memory.
    """

    name: str
    visible: str | None
    threads: int
    sharers: int


def find_slots(config: Config) -> list[Slot]:
    """The slots that `config.launch` asks for. Raises ConfigError where this node hasn't got them."""
    if config.launch.workers is not None:
        count = config.launch.workers
        return [
            Slot(name=f"CPU {i}", visible=None, threads=_share(count), sharers=count) for i in range(count)
        ]
    there = visible_gpus()
    count = len(there) if config.launch.gpus == "all" else int(config.launch.gpus or 1)
    if not there or count > len(there):
        fewer = f"--gpus {len(there)} or " if there else ""
        raise ConfigError(
            f"--gpus {config.launch.gpus}: this process sees {len(there)} GPUs: check nvidia-smi and "
            f"{VISIBLE}, or give {fewer}--workers N for processes on the CPU"
        )
    return [
        Slot(name=f"GPU {i}", visible=there[i], threads=_share(count), sharers=count) for i in range(count)
    ]


def _share(count: int) -> int:
    return max(1, cpu_count() // count)


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as `CUDA_VISIBLE_DEVICES` would name each. Leaves CUDA alone."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    names = named.split(",") if named else [str(index) for index in range(count)]
    return [name.strip() for name in names[:count]]


def nearest_cpus(device: torch.device, root: Path = _PCI_DEVICES) -> set[int]:
    """The CPUs of the GPU's NUMA node that this process may use; empty where the system doesn't tell."""
    import torch

    if device.type != "cuda":
        return set()
    properties = torch.cuda.get_device_properties(device)
    place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None in place:  # an older torch doesn't tell
        return set()
    domain, bus, number = place
    try:
        text = (root / f"{domain:04x}:{bus:02x}:{number:02x}.0" / "local_cpulist").read_text()
    except OSError:
        return set()
    return parse_cpus(text) & os.sched_getaffinity(0)


def parse_cpus(text: str) -> set[int]:
    """The numbers of a kernel's list of CPUs, such as `0-3,8`."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
