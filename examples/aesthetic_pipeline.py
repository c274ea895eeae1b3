"""Score a folder of images or shards, keep the good part, and show how the scores are spread.

python examples/aesthetic_pipeline.py --input photos/ --output kept --threshold 0.5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dali_aesthetic import Config, run

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def main() -> int:
    """Run on the command line's folders; 0 where every shard was written."""
    parser = argparse.ArgumentParser(description="Keep the images that score well.")
    parser.add_argument("--input", required=True, help="folder of images or tars, or a pattern of tars")
    parser.add_argument("--output", required=True, help="folder that receives everything")
    parser.add_argument("--model-dir", help="folder that is searched for weights first")
    parser.add_argument("--threshold", type=float, default=0.5, help="on the 0-1 scale (default 0.5)")
    args = parser.parse_args()

    values = {"input": args.input, "output": args.output}
    settings = {"threshold": {"unit": args.threshold}, "model": {"model_dir": args.model_dir}}
    try:
        result = run(Config.build(values | settings))
    except (ValueError, RuntimeError) as error:  # wrong configuration, or weights that can't be had
        sys.exit(f"error: {error}")
    print(f"kept {result.stats.num_kept:,} of {result.stats.num_samples:,}, bad {result.stats.num_bad:,}")
    print_distribution(scores(Path(args.output)))
    return result.exit_code


def scores(output: Path) -> npt.NDArray[np.float64]:
    """Every score in `output`, on the 0-1 scale; samples without one left out."""
    column = pq.read_table(output / "scores", columns=["aesthetic_score"])["aesthetic_score"]
    return np.asarray(column.drop_null(), np.float64) / 10


def print_distribution(scores: npt.NDArray[np.float64]) -> None:
    """Least, mean and greatest score, and the quantiles: a threshold at 75% keeps the best quarter."""
    if not len(scores):
        print("nothing was scored")
        return
    print(f"min {scores.min():.3f}  mean {scores.mean():.3f}  max {scores.max():.3f}")
    for share, value in zip(QUANTILES, np.quantile(scores, QUANTILES), strict=True):
        print(f"{share:4.0%} of the images score below {value:.3f}")


if __name__ == "__main__":
    sys.exit(main())
