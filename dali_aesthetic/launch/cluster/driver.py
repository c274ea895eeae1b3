"""A cluster: Ray Data over the list of shards with a pool of actors. Image bytes never go through Ray.

Placement, autoscaling and retries are Ray's. A row is the names of some shards on the way in, and what became
of them on the way out; the actors read and write the storage themselves.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.cluster.actor import REPORTS, TASK, Order, ShardWorker, settle
from dali_aesthetic.launch.cluster.board import Board, News
from dali_aesthetic.launch.result import RunResult, Watch, unwatched
from dali_aesthetic.launch.signals import keeping_handlers
from dali_aesthetic.overlap import every
from dali_aesthetic.score.published import WeightsUnavailable
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.stores.settings import StoreSettings
from dali_aesthetic.types import Shard, ShardReport, Status
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import clean_leftovers, open_output

MOST_SHARDS_A_TASK = 64
"""Between two tasks a worker's stages run empty for a second; a task that is lost is begun anew."""
_TASKS_A_WORKER = 8
_FIRST_SHARDS = 256
_POLL_SECONDS = 1.0


class ClusterFailed(RuntimeError):
    """Ray gave up."""


def run_ray(config: Config, *, watch: Watch | None = None) -> RunResult:
    """As `launch.local.run`, with actors of the Ray cluster that this process is connected to, or connects to
    (RAY_ADDRESS, a cluster of this machine, or else a new one on it alone).

    `config.launch` says how many actors: `gpus` with a GPU each, or `workers` on the CPU; with neither, as
    many as the cluster has GPUs for, or CPUs where it has no GPU. Raises ConfigError where Ray is missing,
    and ClusterFailed where it gives up. A shard over which three workers died is in the result's
    `stats.failed`.
    """
    ray = _import_ray()
    with claim(config.output), _connected(ray):
        shards = plan_shards(config.input, output=config.whole_output, image_column=config.image_column)
        order, record = _settled(ray, _order(ray, config), shards)
        todo = open_output(config.output, record, shards)
        stats = RunStats()
        with (watch or unwatched)(stats, len(todo)):
            _work(ray, order, record, todo, stats)
        clean_leftovers(config.output)  # those of actors that died on this node
    return RunResult(
        stats=stats, num_shards=len(shards), num_skipped=len(shards) - len(todo), threshold=config.threshold
    )


def tasks(shards: Sequence[Shard], num_workers: int) -> list[dict[str, str]]:
    """Rows of neighbouring shards: few enough that the last workers end together."""
    size = max(1, min(MOST_SHARDS_A_TASK, len(shards) // (num_workers * _TASKS_A_WORKER)))
    return [
        {TASK: json.dumps([asdict(shard) for shard in shards[start : start + size]])}
        for start in range(0, len(shards), size)
    ]


def _import_ray() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs the package ray ({error}): pip install 'dali-aesthetic[ray]' on every node, "
            "or use --gpus for one node"
        ) from None
    module: ModuleType = ray
    return module


@contextmanager
def _connected(ray: ModuleType) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    with keeping_handlers():
        ray.init(logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _order(ray: ModuleType, config: Config) -> Order:
    wanted, cluster = config.launch, ray.cluster_resources()
    on_gpus = wanted.workers is None and config.device != "cpu"
    if wanted.gpus is None and config.device == "auto":
        on_gpus = on_gpus and bool(cluster.get("GPU"))
    most = wanted.workers if not on_gpus else None if wanted.gpus == "all" else wanted.gpus
    return Order(
        config=config,
        folder=os.getcwd(),
        stores=StoreSettings.here(),
        gpus_each=int(on_gpus),
        cpus_each=1 if on_gpus else config.decode.num_threads or 1,
        most_workers=most if most is None else int(most),
    )


def _settled(ray: ModuleType, order: Order, shards: Sequence[Shard]) -> tuple[Order, dict[str, Any]]:
    """The order with its precision settled, and the run's record: found out where a worker would run."""
    first = ray.remote(num_gpus=order.gpus_each, num_cpus=order.cpus_each)(settle)
    try:
        model, record = ray.get(first.remote(order, list(shards[:_FIRST_SHARDS])))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError | WeightsUnavailable):
            raise error.cause from None
        raise
    return replace(order, config=order.config.model_copy(update={"model": model})), record


def _work(
    ray: ModuleType, order: Order, record: dict[str, Any], todo: Sequence[Shard], stats: RunStats
) -> None:
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
    identity = json.loads(json.dumps(record["identity"]))

    def poll() -> None:
        with suppress(ray.exceptions.RayError):  # while the board is moved to another node
            _take(stats, ray.get(board.news.remote()))

    try:
        if todo:
            with every(_POLL_SECONDS, poll, "ray"), _dataset(ray, order, identity, board, todo) as dataset:
                # Not iter_rows: it fetches in threads, and one that outlives Ray ends the process.
                for bundle in dataset.iter_internal_ref_bundles():
                    for block in ray.get(list(bundle.block_refs)):
                        for row in ray.data.block.BlockAccessor.for_block(block).iter_rows(True):
                            stats.reports += [_report(one) for one in json.loads(row[REPORTS])]
    except ray.exceptions.RayError as error:
        news: News = ray.get(board.news.remote())
        raise (news.fatal or ClusterFailed(f"Ray gave up: {error}")) from error
    _take(stats, ray.get(board.news.remote()))
    _settle_counts(stats)
    stats.finish()


@contextmanager
def _dataset(
    ray: ModuleType, order: Order, identity: dict[str, Any], board: Any, todo: Sequence[Shard]
) -> Iterator[Any]:
    """The rows that come out as tasks end, to be looked at once; behind the block the actors are gone."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # What its object store has room for: nothing that we put there matters.
    logging.getLogger("ray.data._internal.execution.resource_manager").setLevel(logging.ERROR)
    work = tasks(todo, order.most_workers or _room(ray, order))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=len(work))
    if order.most_workers is not None:
        pool = ray.data.ActorPoolStrategy(size=min(len(work), order.most_workers))
    dataset = ray.data.from_items(work, override_num_blocks=len(work)).map(
        ShardWorker,
        fn_constructor_args=(order, identity, board),
        compute=pool,
        num_gpus=order.gpus_each,
        num_cpus=order.cpus_each,
    )
    try:
        yield dataset
    except BaseException as error:
        # An execution ends with the last reference to its iterator, and one that outlives Ray ends this
        # process at once. A signal's traceback may hold one, in frames of Ray's that are left already.
        traceback.clear_frames(error.__traceback__)
        raise


def _room(ray: ModuleType, order: Order) -> int:
    """Workers that the cluster has room for now."""
    cluster = ray.cluster_resources()
    room = cluster.get("GPU", 0) if order.gpus_each else cluster.get("CPU", 0) // order.cpus_each
    return max(1, int(room))


def _report(values: dict[str, Any]) -> ShardReport:
    return ShardReport(**{**values, "warnings": tuple(values["warnings"])})


def _take(stats: RunStats, news: News) -> None:
    for name, tally in news.workers.items():
        stats.set_worker(name, tally)
    stats.incidents[:] = news.incidents


def _settle_counts(stats: RunStats) -> None:
    """Takes off what workers counted that died before it was committed, and was counted again."""
    committed = stats.reports.committed
    stats.num_samples, stats.num_kept = committed.num_samples, committed.num_kept
    stats.statuses.clear()
    stats.statuses.update(committed.statuses)
    stats.num_scored = stats.statuses[Status.OK.value]
