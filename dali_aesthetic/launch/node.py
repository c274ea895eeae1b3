"""One node: a process per GPU (or CPU worker), shards handed out as they ask, the dead replaced."""

from __future__ import annotations

from dali_aesthetic.config import Config
from dali_aesthetic.launch.crew import Crew
from dali_aesthetic.launch.result import RunResult, Watch, unwatched
from dali_aesthetic.launch.slots import find_slots
from dali_aesthetic.launch.slurm import ALONE, Task
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import clean_leftovers, open_output


def run_node(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """As `launch.local.run`, with the workers that `config.launch` asks for; this process touches no image.

    A worker that dies is replaced and what it had open is done again; a shard that three workers died over is
    in the result's `stats.failed`. Raises `AllWorkersLost` where no worker stays alive.
    """
    slots = find_slots(config)
    job = "" if task.is_alone else task.job
    with claim(config.output, job=job, leads=task.index == 0), Crew(config, slots, task) as crew:
        shards = plan_shards(config.input, output=config.whole_output, image_column=config.image_column)
        todo = task.part(open_output(config.output, crew.first_record(shards), shards), len(shards))
        with (watch or unwatched)(crew.stats, len(todo)):
            crew.work(todo)
        if crew.stats.incidents:
            clean_leftovers(config.output)  # those of workers that died
    num_shards = task.part_size(len(shards))
    return RunResult(
        stats=crew.stats,
        num_shards=num_shards,
        num_skipped=num_shards - len(todo),
        threshold=config.threshold,
    )
