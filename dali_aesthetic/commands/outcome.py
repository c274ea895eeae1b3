"""From what a command did to what the shell sees: an exit code, and one message for what went wrong."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from dali_aesthetic.launch.signals import Stopped, stoppable

console = Console(stderr=True, highlight=False)
"""Everything said to a person; standard output is for results."""

INCOMPLETE, WRONG_CONFIGURATION = 1, 2


def guarded(verbose: bool, work: Callable[[], int]) -> NoReturn:
    """Run `work` and exit with its code; what the user can mend is one message, not a traceback."""
    try:
        with stoppable():
            code = work()
        sys.exit(code)
    except Stopped as stopped:
        fail(
            f"{stopped}: committed shards are kept; run the same command again to go on",
            128 + stopped.signal,
        )
    except Exception as error:
        if verbose:
            traceback.print_exc()
        fail(str(error) if str(error) else type(error).__name__, _exit_code(error))


def _exit_code(error: Exception) -> int:
    from dali_aesthetic.score.published import WeightsUnavailable

    return WRONG_CONFIGURATION if isinstance(error, ValueError | WeightsUnavailable) else INCOMPLETE


def fail(message: str, code: int) -> NoReturn:
    console.print(f"[red]error[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)
