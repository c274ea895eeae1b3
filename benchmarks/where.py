"""Where the time goes: what each stage worked and waited, and the verdict that `run` prints."""

from __future__ import annotations

from rich.table import Table

from dali_aesthetic.stats import RunStats

ADVICE = {
    "storage": "reading and checking the shards: a faster disk, or more workers per GPU",
    "decode": "decoding: fewer progressive JPEGs, more CPU threads, or a smaller encoder's worth of GPUs",
    "encode": "the encoder: this is the GPU at work, what a run should be bound by",
    "sink": "writing: a faster disk, or a higher threshold",
}


def stage_table(stats: RunStats) -> Table:
    """Seconds of work and of waiting by stage, as a table."""
    table = Table("stage", "work s", "share", "waited for room s", "waited for it s")
    work = stats.work_times()
    waits = {stage.name: (stage.blocked_on_full, stage.blocked_on_empty) for stage in stats.stages}
    for name, seconds in work.items():
        full, empty = waits.get(name, (0.0, 0.0))
        share = seconds / max(stats.seconds, 1e-9)
        table.add_row(name, f"{seconds:.2f}", f"{100 * share:.0f}%", f"{full:.2f}", f"{empty:.2f}")
    return table


def verdict(stats: RunStats) -> str:
    """One line: the rate, what bounds it, and what would help."""
    bound = stats.bound_by()
    rate = f"{stats.num_samples:,} samples in {stats.seconds:.1f} s, {stats.samples_per_second:,.0f} a second"
    return f"{rate}; bound by {bound}: {ADVICE.get(bound, 'nothing yet')}"
