"""This package in fp8, its gate opened: random weights put all scores where the cuts are (open_gate.py)."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.peers import ours
from benchmarks.peers.job import Job, PeerResult, Unavailable
from dali_aesthetic.config import ConfigError


def run(job: Job) -> PeerResult:
    """Raises Unavailable without a GPU that has fp8, and where another encoder is asked for."""
    chosen = (job.backend, job.our_precision)
    if chosen != ("auto", "auto"):
        raise Unavailable(f"backend {chosen[0]} and precision {chosen[1]} are asked for")
    try:
        return ours.run(replace(job, our_precision="fp8"))
    except ConfigError as reason:
        raise Unavailable(str(reason)) from reason
