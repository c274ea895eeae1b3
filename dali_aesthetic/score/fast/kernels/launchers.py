"""What Triton needs beside a GPU: it builds the code that launches a kernel with a C compiler."""

from __future__ import annotations

import os
import shutil


def refusal() -> str:
    """Why no Triton kernel can be launched on this machine; empty where one can. Finds what Triton would."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return ""
    return "Triton needs a C compiler (apt install gcc python3-dev)"
