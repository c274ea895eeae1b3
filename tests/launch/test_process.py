"""What the server has imported that workers on the CPU are forked from."""

from __future__ import annotations

import json
import subprocess
import sys

from dali_aesthetic.launch.process import _PRELOAD

PRELOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([name for name in sys.modules if "." not in name]))
"""


def test_workers_find_what_they_need_and_nothing_slow_besides() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELOADED, *_PRELOAD], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert {"torch", "pyarrow", "PIL"} <= loaded
    assert not {"open_clip", "timm", "torchvision", "transformers", "ray", "typer"} & loaded
