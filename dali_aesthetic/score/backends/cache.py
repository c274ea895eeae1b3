"""One folder for what is compiled once and used by every later run: kernels, and exported models.

QuACK and Inductor lock their own entries and Triton renames them into place, so the eight processes of a node
share the folder and none compiles what another has. Nothing is tuned at run time: tiles are pinned.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "DALI_AESTHETIC_CACHE"
LIBRARIES = {
    "TRITON_CACHE_DIR": "triton",
    "QUACK_CACHE_DIR": "quack",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}
"""The variable that moves each library's cache, and the folder it gets below ours."""


def cache_folder() -> Path:
    """`$DALI_AESTHETIC_CACHE`, else `dali_aesthetic` below `$XDG_CACHE_HOME` or `~/.cache`; made.

    Where that can't be written (a container without a home), a folder of this user's below the temporary one.
    Raises OSError where the folder that `$DALI_AESTHETIC_CACHE` names can't be made.
    """
    if named := os.environ.get(VARIABLE):
        folder = Path(named).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dali_aesthetic"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"dali_aesthetic-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def point_libraries_to_it() -> None:
    """Have the libraries keep their caches below `cache_folder`, but for those the user has placed elsewhere.

    Called before they are imported: QuACK reads its variable then, the others at each use.
    """
    folder = cache_folder()
    for variable, name in LIBRARIES.items():
        os.environ.setdefault(variable, str(folder / name))


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds `path`.lock, waiting for whoever has it; without one on a file system that has no locks."""
    with path.with_name(f"{path.name}.lock").open("a") as stream:
        with suppress(OSError):  # without a lock: twice the work, and the same result
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
