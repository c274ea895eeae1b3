"""The folder where Triton, QuACK and Inductor keep what they compiled, for every later run.

QuACK and Inductor lock their own entries and Triton renames them into place, so the eight processes of a node
share the folder and each kernel is compiled once. Nothing is tuned at run time: tiles are pinned.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "DALI_AESTHETIC_CACHE"
LIBRARIES = {
    "TRITON_CACHE_DIR": "triton",
    "QUACK_CACHE_DIR": "quack",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}
"""The environment variable of each library's cache, and its subfolder of `cache_folder`."""


def cache_folder() -> Path:
    """`$DALI_AESTHETIC_CACHE`, else `dali_aesthetic` below `$XDG_CACHE_HOME` or `~/.cache`; created.

    Where that is not writable (a container without a home), a folder of this user's in the temporary folder,
    which anybody may have put there: what it holds is code that runs. Raises PermissionError where that isn't
    this user's alone, or anybody may write the first, and OSError where the folder that
    `$DALI_AESTHETIC_CACHE` names can't be created.
    """
    if named := os.environ.get(VARIABLE):
        folder = Path(named).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dali_aesthetic"
    uid, others = os.getuid(), stat.S_IWOTH
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # whatever the umask
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        folder, others = Path(tempfile.gettempdir()) / f"dali_aesthetic-{uid}", stat.S_IRWXG | stat.S_IRWXO
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    there = folder.stat() if is_writable else folder.lstat()
    is_own = is_writable or (stat.S_ISDIR(there.st_mode) and there.st_uid == uid)
    if not is_own or there.st_mode & others:
        mode = stat.filemode(there.st_mode)
        raise PermissionError(
            f"{folder} can't be the cache of compiled code: it is no folder that only uid {uid} may use "
            f"({mode}, of uid {there.st_uid}); set {VARIABLE} to a folder of your own, or remove it"
        )
    return folder


def use_cache_folder() -> None:
    """Sets the libraries' cache variables to subfolders of `cache_folder`, unless the user has set them.

    Call it before QuACK is imported, which reads its variable then; the others read theirs at each use.
    """
    folder = cache_folder()
    for variable, name in LIBRARIES.items():
        os.environ.setdefault(variable, str(folder / name))
