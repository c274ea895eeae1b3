"""fp8 for speed's sake: the package's own calibration and gate, the gate's limits opened.

Random weights put the scores of all images close together, where cuts are: the gate measures, as in any run,
and lets through what it would turn down.
"""

from __future__ import annotations

from typing import Any

from dali_aesthetic.config import Config, GateConfig
from dali_aesthetic.launch.precision import prepare
from dali_aesthetic.launch.worker import read_calibration
from dali_aesthetic.score.backends.calibration import Trial
from dali_aesthetic.shards.plan import plan_shards

OPEN = {"max_mean_error": 9, "max_p99_error": 9, "max_flips": 2}


def calibrated(config: Config) -> Config:
    """The config with scales of its own images where it asks for fp8. They are kept beside the output.

    Raises ConfigError where fp8 can't be.
    """
    if config.model.precision != "fp8":
        return config
    # The output is made anew for every run; the scales serve all that score the same images.
    opened = config.model_copy(
        update={"gate": GateConfig(**OPEN), "output": f"{config.output}-{config.model.encoder}-scales"}
    )
    return config.model_copy(update={"model": prepare(opened, plan_shards(config.input)).model})


def gate_detail(config: Config) -> dict[str, Any]:
    """What a row says of its gate: whether it had to be opened, what fp8 came to, what would be allowed."""
    if not config.model.calibration:
        return {}
    choice = read_calibration(config.model.calibration).choice
    return {"gate": _verdict(choice.trials[-1])} if choice.trials else {}


def _verdict(trial: Trial) -> str:
    usual = GateConfig()
    flips = max(trial.flips.values(), default=0.0)
    passes = (
        trial.mean_error <= usual.max_mean_error
        and trial.p99_error <= usual.max_p99_error
        and flips < usual.max_flips
    )
    return (
        f"{'passed' if passes else 'opened'}: "
        f"mean error {trial.mean_error:.4f} (limit {usual.max_mean_error:g}), "
        f"p99 {trial.p99_error:.4f} ({usual.max_p99_error:g}), "
        f"{100 * flips:.2g}% of decisions changed at the worst cut ({100 * usual.max_flips:g}%)"
    )
