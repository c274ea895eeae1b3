"""The part of a cluster run that runs in an actor: built once, then one task of shards after another."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch.cluster.board import Duty
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.stores.settings import StoreSettings
from dali_aesthetic.types import Shard, ShardReport

if TYPE_CHECKING:
    from dali_aesthetic.launch.worker import Worker

BEAT_SECONDS = 1.0
TASK = "shards"
REPORTS = "reports"
_OWN_TROUBLE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the driver tells a worker. Relative paths count from `folder`, which all nodes must have.

    `gpus_each` is 1, or 0 for a worker on the CPU; `most_workers` is how many there may be in all, or None.
    """

    config: Config
    folder: str
    stores: StoreSettings
    gpus_each: int
    cpus_each: int
    most_workers: int | None


def settle(order: Order, first_shards: Sequence[Shard]) -> tuple[ModelConfig, dict[str, Any]]:
    """The model section with its precision settled, and what `run.json` should hold.

    Runs once, where a worker would."""
    config, _ = _prepared(order)
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
    """Scores the shards of a task: a row in, `TASK`, is their JSON; a row out, `REPORTS`, is the reports'."""

    def __init__(self, order: Order, identity: dict[str, Any], board: Any) -> None:
        self._board = board
        self._name = _name(order)
        self._config, self._sharers = _prepared(order)
        self._worker = self._build(identity)
        self._before: Tally = self._tell("counted", self._name)
        self._stats: RunStats | None = None

    def _build(self, identity: dict[str, Any]) -> Worker:
        from dali_aesthetic.launch.worker import build_worker, run_record

        worker = build_worker(self._config)
        # As JSON gives it back, which is how the driver got it.
        ours = json.loads(json.dumps(run_record(self._config, worker)["identity"]))
        if other := sorted(name for name in ours if ours[name] != identity.get(name)):
            listed = ", ".join(f"{name}: {ours[name]!r}, not {identity.get(name)!r}" for name in other)
            error = ConfigError(
                f"{self._name} would run with another {listed}: give --backend and --precision that all "
                "nodes have, or leave that node out"
            )
            self._tell("stop", error)
            raise error
        return worker

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Commits or gives up every shard of a task; what is done already is only reported."""
        shards = [Shard(**{**one, "files": tuple(one["files"])}) for one in json.loads(row[TASK])]
        duty: Duty = self._tell("duty", shards)
        reports = list(duty.reports)
        try:
            reports += self._stream(duty.fresh)
            for suspect in duty.suspects:
                reports += self._stream([suspect])
        except Exception as error:
            self._end(error)
        return {REPORTS: json.dumps([asdict(report) for report in reports])}

    def _stream(self, shards: Sequence[Shard]) -> list[ShardReport]:
        if not shards:
            return []
        from dali_aesthetic.launch.work import work_shards
        from dali_aesthetic.overlap import every

        stats = self._stats = RunStats()
        reports = work_shards(
            self._config, self._worker, self._begun(shards), stats, memory_share=self._sharers
        )
        done = []
        with every(BEAT_SECONDS, self._beat, "beat"), closing(reports):
            for report in reports:
                self._tell("done", report, self._name, self._tally())
                done.append(report)
        self._before, self._stats = self._before + stats.tally(), None
        self._beat()
        return done

    def _begun(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        for shard in shards:
            self._tell("begin", shard.name)
            yield shard

    def _tally(self) -> Tally:
        stats = self._stats
        return self._before if stats is None else self._before + stats.tally()

    def _beat(self) -> None:
        self._board.count.remote(self._name, self._tally())

    def _tell(self, what: str, *words: object) -> Any:
        import ray

        return ray.get(getattr(self._board, what).remote(*words))

    def _end(self, error: Exception) -> None:
        """Raises what every worker would meet; else ends the process, and Ray starts it anew: after an error
        of CUDA, nothing works in it any more."""
        if _is_fatal(error):
            self._tell("stop", error)
            raise error
        traceback.print_exc()
        sys.stderr.flush()
        self._tell("ends", f"ended by {type(error).__name__}: {error}")
        os._exit(1)


def _is_fatal(error: Exception) -> bool:
    passing = isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, OSError) and not passing and error.errno not in _OWN_TROUBLE


def _prepared(order: Order) -> tuple[Config, int]:
    """The config with this worker's device and threads, and how many workers share its node's memory."""
    order.stores.take_over()
    try:
        os.chdir(order.folder)
    except OSError as error:
        raise ConfigError(
            f"{socket.gethostname()} has no folder {order.folder} ({error.strerror}): start the run from one "
            "that all nodes share"
        ) from None
    if "://" not in order.config.output and not Path(order.config.output).is_dir():
        raise ConfigError(
            f"{socket.gethostname()} has no folder {order.config.output}: --output has to be on a file "
            "system that all nodes share, or a URL"
        )
    import torch

    sharers = _sharers(order)
    threads = order.config.decode.num_threads or _threads(order, sharers)
    torch.set_num_threads(threads)
    decode = order.config.decode.model_copy(update={"num_threads": threads})
    device = "cuda" if order.gpus_each else "cpu"
    return order.config.model_copy(update={"device": device, "decode": decode}), sharers


def _threads(order: Order, sharers: int) -> int:
    from dali_aesthetic.overlap import cpu_count

    return max(1, cpu_count() // sharers) if order.gpus_each else order.cpus_each


def _sharers(order: Order) -> int:
    """How many workers this node has room for."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call, unused-ignore]
    resources: dict[str, float] = next((node["Resources"] for node in nodes if node["NodeID"] == here), {})
    each = ("GPU", order.gpus_each) if order.gpus_each else ("CPU", order.cpus_each)
    room = max(1, int(resources.get(each[0], 1) // each[1]))
    return room if order.most_workers is None else min(room, order.most_workers)


def _name(order: Order) -> str:
    import ray

    place = (
        f"GPU {','.join(map(str, ray.get_gpu_ids()))}" if order.gpus_each else f"CPU process {os.getpid()}"
    )
    return f"{socket.gethostname()} {place}"
