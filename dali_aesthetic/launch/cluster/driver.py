"""The engine of a cluster: Ray Data maps the list of shards over a pool of actors.

Placement, autoscaling and retries are Ray's. A row holds some shards on the way in and their reports on the
way out. Image bytes never go through Ray: the actors read and write the storage themselves.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from types import ModuleType
from typing import Any

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.cluster.actor import REPORTS, TASK, ShardWorker, WorkerSpec, settle
from dali_aesthetic.launch.cluster.state import ClusterState, Progress
from dali_aesthetic.launch.engine import Prepared
from dali_aesthetic.launch.signals import keeping_handlers
from dali_aesthetic.launch.slurm import Task
from dali_aesthetic.layout import IDENTITY
from dali_aesthetic.overlap import every
from dali_aesthetic.score.published import WeightsUnavailable
from dali_aesthetic.stats import RunStats
from dali_aesthetic.stores.settings import StoreSettings
from dali_aesthetic.types import Shard, ShardReport, Status

_LOG = logging.getLogger(__name__)
MOST_SHARDS_A_TASK = 64
"""Between two tasks a worker's stages run empty for a second, but a lost task is begun anew."""
_TASKS_A_WORKER = 8
_FIRST_SHARDS = 256
_POLL_SECONDS = 1.0


class ClusterFailed(RuntimeError):
    """Ray gave up."""


@contextmanager
def ray_actors(config: Config, shards: Sequence[Shard], task: Task) -> Iterator[Prepared]:
    """The engine of a cluster: actors of the Ray cluster that this process is connected to, or connects to
    (RAY_ADDRESS, a cluster of this machine, or else a new one on it alone).

    `config.launch` says how many actors: `gpus` with a GPU each, or `workers` on the CPU; with neither, as
    many as the cluster has GPUs for, or CPUs where it has no GPU. Raises ConfigError where Ray is missing,
    and ClusterFailed where it gives up.
    """
    ray = _import_ray()
    _LOG.info("loading %s on a worker of the Ray cluster", config.model.encoder)
    with _connected(ray):
        spec, record = _settled(ray, _spec(ray, config), shards)
        yield Prepared(config=spec.config, record=record, work=partial(_work, ray, spec, record))


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
            f"--engine ray needs the package ray ({error}): in the clone, pip install '.[ray]' on every "
            "node, or use --gpus for one node"
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


def _spec(ray: ModuleType, config: Config) -> WorkerSpec:
    wanted, cluster = config.launch, ray.cluster_resources()
    on_gpus = wanted.workers is None and config.device != "cpu"
    if wanted.gpus is None and config.device == "auto":
        on_gpus = on_gpus and bool(cluster.get("GPU"))
    most = wanted.workers if not on_gpus else None if wanted.gpus == "all" else wanted.gpus
    return WorkerSpec(
        config=config,
        folder=os.getcwd(),
        stores=StoreSettings.here(),
        gpus_each=int(on_gpus),
        cpus_each=1 if on_gpus else config.decode.num_threads or 1,
        most_workers=most if most is None else int(most),
    )


def _settled(ray: ModuleType, spec: WorkerSpec, shards: Sequence[Shard]) -> tuple[WorkerSpec, dict[str, Any]]:
    """The spec with its precision settled and the content of `run.json`, from where a worker would run."""
    first = ray.remote(num_gpus=spec.gpus_each, num_cpus=spec.cpus_each)(settle)
    try:
        model, record = ray.get(first.remote(spec, list(shards[:_FIRST_SHARDS])))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError | WeightsUnavailable):
            raise error.cause from None
        raise
    return replace(spec, config=spec.config.model_copy(update={"model": model})), record


def _work(
    ray: ModuleType, spec: WorkerSpec, record: dict[str, Any], todo: Sequence[Shard], stats: RunStats
) -> None:
    state = ray.remote(num_cpus=0, max_restarts=-1)(ClusterState).remote()
    identity = json.loads(json.dumps(record[IDENTITY]))

    def poll() -> None:
        with suppress(ray.exceptions.RayError):  # while the actor of the state is moved to another node
            _copy(stats, ray.get(state.progress.remote()))

    try:
        if todo:
            with every(_POLL_SECONDS, poll, "ray"), _dataset(ray, spec, identity, state, todo) as dataset:
                # Not iter_rows: it fetches in threads, and one that outlives Ray ends the process.
                for bundle in dataset.iter_internal_ref_bundles():
                    for block in ray.get(list(bundle.block_refs)):
                        for row in ray.data.block.BlockAccessor.for_block(block).iter_rows(True):
                            for one in json.loads(row[REPORTS]):
                                one["warnings"] = tuple(one["warnings"])
                                one["removed"] = tuple(map(tuple, one["removed"]))
                                stats.reports.append(ShardReport(**one))
    except ray.exceptions.RayError as error:
        progress: Progress = ray.get(state.progress.remote())
        raise (progress.fatal or ClusterFailed(f"Ray gave up: {error}")) from error
    _copy(stats, ray.get(state.progress.remote()))
    _subtract_lost(stats)
    stats.finish()


@contextmanager
def _dataset(
    ray: ModuleType, spec: WorkerSpec, identity: dict[str, Any], state: Any, todo: Sequence[Shard]
) -> Iterator[Any]:
    """The rows that come out as tasks end, to be iterated once; after the block the actors are gone."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # It warns of a small object store, which holds nothing of size here.
    logging.getLogger("ray.data._internal.execution.resource_manager").setLevel(logging.ERROR)
    work = tasks(todo, spec.most_workers or spec.fitting(ray.cluster_resources()))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=len(work))
    if spec.most_workers is not None:
        pool = ray.data.ActorPoolStrategy(size=min(len(work), spec.most_workers))
    dataset = ray.data.from_items(work, override_num_blocks=len(work)).map(
        ShardWorker,
        fn_constructor_args=(spec, identity, state),
        compute=pool,
        num_gpus=spec.gpus_each,
        num_cpus=spec.cpus_each,
    )
    try:
        yield dataset
    except BaseException as error:
        # An execution ends with the last reference to its iterator, and one that outlives Ray ends this
        # process at once. A signal's traceback may hold one, in frames of Ray's that are left already.
        traceback.clear_frames(error.__traceback__)
        raise


def _copy(stats: RunStats, progress: Progress) -> None:
    for name, tally in progress.workers.items():
        stats.set_worker(name, tally)
    stats.incidents[:] = progress.incidents


def _subtract_lost(stats: RunStats) -> None:
    """Takes off what dead workers counted and did not commit: it was done, and counted, again."""
    committed = stats.reports.committed
    stats.num_samples, stats.num_kept = committed.num_samples, committed.num_kept
    stats.statuses.clear()
    stats.statuses.update(committed.statuses)
    stats.num_scored = stats.statuses[Status.OK.value]
