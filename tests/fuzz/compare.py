"""Compares the product with Python's own readers on made-up damage, for as long as wanted.

`python -m tests.fuzz.compare tar|images --seconds 3600 --seed 1 --save DIR [--corpus FOLDER_OF_IMAGES]`

Case NUMBER of a seed is always the same, so `--first NUMBER --cases 1` repeats it. What both disagree about
is counted by kind, and the first three inputs of each kind are saved with seed and number in their names. The
last line printed is the summary as JSON; the exit code is 1 where there is a disagreement.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

_SAVED_PER_KIND = 3
_REPORT_SECONDS = 60
Case = Callable[[random.Random], "Iterable[Finding]"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`kind` is the same for all inputs with one cause. One that is no disagreement is only counted."""

    kind: str
    data: bytes = b""
    wrong: bool = True


@dataclass(slots=True)
class Summary:
    """Counts by kind: disagreements, and what was seen besides."""

    seed: int
    cases: int = 0
    seconds: float = 0
    peak_growth_mib: float = 0
    wrong: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> str:
        found = {name: getattr(self, name) for name in ("seed", "cases", "seconds", "peak_growth_mib")}
        counts = {"wrong": dict(self.wrong.most_common()), "seen": dict(self.seen.most_common())}
        return json.dumps({**found, **counts}, ensure_ascii=False)


def run(
    case: Case,
    seed: int,
    *,
    seconds: float = 1e9,
    cases: int = 1 << 60,
    first: int = 0,
    save: Path | None = None,
    max_growth_mib: float = 300,
) -> Summary:
    """Runs `case` for `seconds` or `cases` cases, whichever ends first.

    Growth of the peak resident memory beyond `max_growth_mib` counts as a disagreement of the case at hand.
    """
    summary, start, reported = Summary(seed), time.monotonic(), time.monotonic()
    peak, number = _peak_mib(), first
    while number < first + cases and summary.seconds < seconds:
        findings = list(case(random.Random(f"{seed}/{number}")))
        if summary.cases == 0:
            peak = _peak_mib()  # after what is loaded once
        summary.peak_growth_mib = round(_peak_mib() - peak, 1)
        if summary.peak_growth_mib > max_growth_mib:
            findings.append(Finding("memory: the peak grew"))
            peak = _peak_mib()
        for at, finding in enumerate(findings):
            _note(finding, summary, save, f"{seed}-{number}-{at}")
        number += 1
        summary.cases += 1
        summary.seconds = round(time.monotonic() - start, 1)
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            print(summary.as_json(), flush=True)
    return summary


def _note(finding: Finding, summary: Summary, save: Path | None, name: str) -> None:
    if not finding.wrong:
        summary.seen[finding.kind] += 1
        return
    summary.wrong[finding.kind] += 1
    if save is not None and summary.wrong[finding.kind] <= _SAVED_PER_KIND:
        folder = save / re.sub(r"[^\w.-]+", "_", finding.kind)[:100]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(finding.data)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=["tar", "images"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=1 << 60)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--corpus", type=Path, help="images added to the built-in ones (up to 30 kB each)")
    options = parser.parse_args()
    if options.target == "tar":
        from tests.fuzz.against_tarfile import case
    else:
        from tests.fuzz.against_pillow import images_case

        case = images_case(options.corpus)
    summary = run(
        case,
        options.seed,
        seconds=options.seconds,
        cases=options.cases,
        first=options.first,
        save=options.save,
    )
    print(summary.as_json())
    return 1 if summary.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
