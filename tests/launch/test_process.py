"""The preload of the fork server, and the counters of a dead worker."""

from __future__ import annotations

import json
import subprocess
import sys

from dali_aesthetic.launch.node.process import _PRELOAD, WorkerProcess
from dali_aesthetic.stats import Tally

PRELOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([name for name in sys.modules if "." not in name]))
"""


def test_the_fork_server_preloads_what_workers_need_and_nothing_slow_besides() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELOADED, *_PRELOAD], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert {"torch", "pyarrow", "PIL"} <= loaded
    assert not {"open_clip", "timm", "torchvision", "transformers", "ray", "typer"} & loaded


def test_a_dead_workers_committed_samples_and_all_of_its_time_count() -> None:
    worker = WorkerProcess.__new__(WorkerProcess)
    waits = {("decode", "consumer"): 2.0}
    worker.tally = Tally(num_samples=9, num_kept=5, work={"decode": 3.0}, waits=waits, seconds=4.0)
    worker.committed = Tally(num_samples=6, num_kept=3, statuses={"ok": 6})
    assert worker.committed_tally() == Tally(
        num_samples=6, num_kept=3, statuses={"ok": 6}, work={"decode": 3.0}, waits=waits, seconds=4.0
    )
