"""Runs the tests of the Triton kernels on the CPU, in Triton's interpreter and so in their own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU itself")
def test_kernels_in_the_interpreter() -> None:
    tests = [
        str(Path(__file__).with_name(name)) for name in ("test_kernels_triton.py", "test_fused_algebra.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
