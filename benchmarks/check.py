"""The guard against lost speed: ratios of fresh results against those of the committed ones.

Both sides of a ratio are measured in one run, so that it depends less on the machine than a rate. The host's
samples per second of CPU time depend on the CPU and are compared on the same model only. A DataLoader's rate
depends on its cores, so that ours over it is compared on as many cores of the same model and on the same kind
of images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cases import UNIFORM, WEBMIX, encoder_row, end_to_end
from benchmarks.results import Result, Row, newest
from benchmarks.tables import OURS

PARTS = ("host", "end-to-end", "peers")
"""The parts that measure the ratios."""
MOST_LOST = 0.10
PEER = "webdataset + DataLoader + open_clip"
END_TO_END = {WEBMIX: "end to end, webmix", UNIFORM: "end to end, 25% kept"}
"""The rows over the encoder alone by their images."""
HOST = "host loop, 25% kept"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio; two of one name are compared if `like` is equal."""

    name: str
    value: float
    like: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A fresh and a committed ratio; either may be missing."""

    name: str
    now: float | None
    committed: float | None
    like: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Over 10% lost, or not measured although there is something to compare with."""
        if self.committed is None:
            return False
        return self.now is None or self.now < (1 - MOST_LOST) * self.committed

    def __str__(self) -> str:
        about = f"{self.name} ({', '.join(self.like)})"
        if self.now is None:
            return f"FAILED    {about}: not measured; committed is {self.committed:.3g}"
        if self.committed is None:
            return f"no match  {about}: {self.now:.3g}, and nothing committed to compare with"
        change = 100 * (self.now / self.committed - 1)
        word = "FAILED   " if self.failed else "ok       "
        return f"{word} {about}: {self.now:.3g}, committed {self.committed:.3g}, {change:+.1f}%"


def ratios(results: Sequence[Result]) -> list[Ratio]:
    """All ratios of the newest of these results."""
    found = [
        *(_over_peer(result) for result in newest(results, "peers").values()),
        *(_over_encoder(result, images) for result in end_to_end(results).values() for images in END_TO_END),
        *(_per_core(result) for result in newest(results, "host").values()),
    ]
    return [ratio for ratio in found if ratio]


def compare(fresh: Sequence[Result], committed: Sequence[Result]) -> list[Verdict]:
    """Fresh ratios against committed ones on the same kinds of hardware."""
    slugs = {result.slug for result in fresh}
    now = _by_key(ratios(fresh))
    before = _by_key(ratios([result for result in committed if result.slug in slugs]))
    # Missing only if no fresh ratio has its name: with another CPU or encoder there is nothing to compare.
    names = {name for name, _ in now}
    missing = [key for key in before if key not in now and key[0] not in names]
    keys = [*now, *missing]
    return [Verdict(name, now.get((name, like)), before.get((name, like)), like) for name, like in keys]


def _by_key(found: Sequence[Ratio]) -> Mapping[tuple[str, tuple[str, ...]], float]:
    return {(ratio.name, ratio.like): ratio.value for ratio in found}


def _over_peer(result: Result) -> Ratio | None:
    cores = f"{result.machine['cpu_cores']} cores of {result.machine['cpu']}"
    like = (result.slug, _encoder(result), cores, str(result.content.get("images", UNIFORM)))
    return _quotient(f"ours over {PEER}", result.row(OURS), result.row(PEER), like)


def _over_encoder(result: Result, images: str) -> Ratio | None:
    # In a quick run start and end weigh more.
    quick = ("quick",) if result.content["settings"].get("quick") else ()
    like = (result.slug, _encoder(result), *quick)
    name = f"end to end over encoder only, {images}"
    return _quotient(name, result.row(END_TO_END[images]), encoder_row(result), like)


def _per_core(result: Result) -> Ratio | None:
    row = result.row(HOST)
    if row is None or row.cpu_us is None:
        return None
    return Ratio("host samples/s per core", 1e6 / row.cpu_us, (result.slug, str(result.machine["cpu"])))


def _quotient(name: str, above: Row | None, below: Row | None, like: tuple[str, ...]) -> Ratio | None:
    return Ratio(name, above.median / below.median, like) if above and below else None


def _encoder(result: Result) -> str:
    return str(result.content["settings"].get("encoder", ""))
