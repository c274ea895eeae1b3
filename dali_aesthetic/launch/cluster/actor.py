"""The worker of a cluster run, in an actor: built once, it works one task of shards after another.

torch is imported by functions: an actor on a node without the run's folders says so before that takes
seconds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch.cluster.state import TaskState
from dali_aesthetic.launch.work import check_same_run, is_fatal
from dali_aesthetic.layout import IDENTITY
from dali_aesthetic.overlap import cpu_count, every
from dali_aesthetic.stats import StreamCounter, Tally
from dali_aesthetic.stores.settings import StoreSettings
from dali_aesthetic.types import Shard, ShardReport

if TYPE_CHECKING:
    from dali_aesthetic.launch.worker import Worker

HEARTBEAT_SECONDS = 1.0
TASK, REPORTS = "shards", "reports"
"""The columns of a row of Ray Data, before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The arguments of an actor. Relative paths count from `folder`, which all nodes must have.

    `gpus_each` is 1, or 0 for a worker on the CPU; `most_workers` is how many there may be in all, or None.
    """

    config: Config
    folder: str
    stores: StoreSettings
    gpus_each: int
    cpus_each: int
    most_workers: int | None

    def fitting(self, resources: Mapping[str, float]) -> int:
        """How many such workers fit into Ray's `resources`; one at least."""
        kind, each = ("GPU", self.gpus_each) if self.gpus_each else ("CPU", self.cpus_each)
        return max(1, int(resources.get(kind, 0) // each))


def settle(spec: WorkerSpec, first_shards: Sequence[Shard]) -> tuple[ModelConfig, dict[str, Any]]:
    """The model section with its precision settled, and the content of `run.json`.

    Runs once, where a worker would."""
    config, _ = _on_this_node(spec)
    from dali_aesthetic.launch.precision import prepare
    from dali_aesthetic.launch.worker import build_worker, model_reader, run_record

    reader = model_reader(config.model)
    config = prepare(config, first_shards, reader)
    worker = build_worker(config, reader)
    try:
        return config.model, run_record(config, worker)
    finally:
        worker.decoder.close()


class ShardWorker:
    """Scores the shards of a task: a row in, `TASK`, is their JSON; a row out, `REPORTS`, is the reports'.

    `state` is the handle of the actor that holds the `ClusterState`.
    """

    def __init__(self, spec: WorkerSpec, identity: dict[str, Any], state: Any) -> None:
        self._state = state
        self._name = _name(spec)
        self._config, self._sharers = _on_this_node(spec)
        self._worker = self._build(identity)
        before: Tally = self._call("worker_tally", self._name)
        self._counter = StreamCounter(before)

    def _build(self, identity: dict[str, Any]) -> Worker:
        from dali_aesthetic.launch.worker import build_worker, run_record

        worker = build_worker(self._config)
        # As JSON gives it back, which is how the driver got it.
        ours = json.loads(json.dumps(run_record(self._config, worker)[IDENTITY]))
        fix = "give --backend and --precision that all nodes have, or leave that node out"
        try:
            check_same_run(self._name, ours, identity, fix)
        except ConfigError as error:
            self._call("fail_run", error)
            raise
        return worker

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Commits or gives up every shard of a task; what is done already is only reported."""
        shards = [Shard(**{**one, "files": tuple(one["files"])}) for one in json.loads(row[TASK])]
        task: TaskState = self._call("begin_task", shards)
        reports = list(task.reports)
        try:
            reports += self._stream(task.fresh)
            for suspect in task.suspects:
                reports += self._stream([suspect])
        except Exception as error:
            self._end(error)
        return {REPORTS: json.dumps([asdict(report) for report in reports])}

    def _stream(self, shards: Sequence[Shard]) -> list[ShardReport]:
        if not shards:
            return []
        from dali_aesthetic.launch.work import work_shards

        stats = self._counter.begin()
        reports = work_shards(
            self._config, self._worker, self._begun(shards), stats, memory_share=self._sharers
        )
        done = []
        with every(HEARTBEAT_SECONDS, self._send_heartbeat, "heartbeat"), closing(reports):
            for report in reports:
                self._call("add_report", report, self._name, self._counter.tally())
                done.append(report)
        self._counter.end()
        self._send_heartbeat()
        return done

    def _begun(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        for shard in shards:
            self._call("begin_shard", shard.name)
            yield shard

    def _send_heartbeat(self) -> None:
        self._state.set_tally.remote(self._name, self._counter.tally())

    def _call(self, method: str, *arguments: object) -> Any:
        import ray

        return ray.get(getattr(self._state, method).remote(*arguments))

    def _end(self, error: Exception) -> None:
        """Raises an error that every worker would meet; else ends the process, and Ray starts it anew: after
        an error of CUDA nothing works in it any more."""
        if is_fatal(error):
            self._call("fail_run", error)
            raise error
        traceback.print_exc()
        sys.stderr.flush()
        self._call("end_worker", f"ended by {type(error).__name__}: {error}")
        os._exit(1)


def _on_this_node(spec: WorkerSpec) -> tuple[Config, int]:
    """The config with this worker's device and threads, and how many workers share its node's memory."""
    spec.stores.take_over()
    try:
        os.chdir(spec.folder)
    except OSError as error:
        raise ConfigError(
            f"{socket.gethostname()} has no folder {spec.folder} ({error.strerror}): start the run from one "
            "that all nodes share"
        ) from None
    if "://" not in spec.config.output and not Path(spec.config.output).is_dir():
        raise ConfigError(
            f"{socket.gethostname()} has no folder {spec.config.output}: --output has to be on a file "
            "system that all nodes share, or a URL"
        )
    import torch

    sharers = _sharers(spec)
    free = max(1, cpu_count() // sharers) if spec.gpus_each else spec.cpus_each
    threads = spec.config.decode.num_threads or free
    torch.set_num_threads(threads)
    decode = spec.config.decode.model_copy(update={"num_threads": threads})
    device = "cuda" if spec.gpus_each else "cpu"
    return spec.config.model_copy(update={"device": device, "decode": decode}), sharers


def _sharers(spec: WorkerSpec) -> int:
    """The number of workers that fit on this node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call, unused-ignore]
    resources: dict[str, float] = next((node["Resources"] for node in nodes if node["NodeID"] == here), {})
    most = spec.fitting(resources)
    return most if spec.most_workers is None else min(most, spec.most_workers)


def _name(spec: WorkerSpec) -> str:
    import ray

    place = f"GPU {','.join(map(str, ray.get_gpu_ids()))}" if spec.gpus_each else f"CPU process {os.getpid()}"
    return f"{socket.gethostname()} {place}"
