"""Workers start together: a peer's time counts from when the last of them has its model loaded."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Gate:
    """Opens once `expected` processes have arrived, which leave a file each in `folder`.

    Files, as the workers may be anybody's: Ray's actors as well as processes of our own.
    """

    folder: str
    expected: int

    def arrive(self) -> None:
        """This process is ready."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).touch()

    def wait(self, bound_s: float) -> None:
        """Return once open. Raises TimeoutError after `bound_s` seconds."""
        end = time.monotonic() + bound_s
        while not self.is_open():
            if time.monotonic() > end:
                arrived = len(self._arrivals())
                raise TimeoutError(f"{arrived} of {self.expected} workers ready after {bound_s:.0f} s")
            time.sleep(_POLL_S)

    def is_open(self) -> bool:
        """Whether all have arrived."""
        return len(self._arrivals()) >= self.expected

    def opened_at(self) -> float:
        """When it opened, seconds since 1970; a worker that was started again later doesn't count."""
        return self._arrivals()[self.expected - 1]

    def _arrivals(self) -> list[float]:
        folder = Path(self.folder)
        return sorted(path.stat().st_mtime for path in folder.iterdir()) if folder.exists() else []
