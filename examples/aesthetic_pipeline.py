"""Score a folder of images or shards, keep the good part and print the distribution of the scores.

python examples/aesthetic_pipeline.py --input photos/ --output kept --threshold 0.5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dali_aesthetic import Config, ModelConfig, Threshold, run

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def main() -> int:
    """Score the input folder; return 0 if every shard was written."""
    parser = argparse.ArgumentParser(description="Keep the images that score well.")
    parser.add_argument("--input", required=True, help="folder of images or tars, or a pattern of tars")
    parser.add_argument("--output", required=True, help="folder that receives everything")
    parser.add_argument("--model-dir", help="folder that is searched first for weights")
    parser.add_argument("--threshold", type=float, default=0.5, help="on the 0-1 scale (default 0.5)")
    args = parser.parse_args()

    try:
        config = Config(
            input=args.input,
            output=Path(args.output),
            threshold=Threshold(unit=args.threshold),
            model=ModelConfig(model_dir=args.model_dir),
        )
        result = run(config)
    except (ValueError, RuntimeError, OSError) as error:  # configuration, weights, output
        sys.exit(f"error: {error}")
    for report in result.stats.failed:
        print(f"failed {report.name}: {report.error}", file=sys.stderr)
    if len(result.stats.failed) < result.num_shards:
        print_outcome(Path(args.output))
    return result.exit_code


def print_outcome(output: Path) -> None:
    """Print how many samples of `output` were kept, in all runs, and the distribution of all scores."""
    rows = pq.read_table(output / "scores", columns=["aesthetic_score", "kept"])
    raw = rows["aesthetic_score"]  # null if a sample could not be scored
    print(f"kept {np.count_nonzero(rows['kept']):,} of {rows.num_rows:,}, bad {raw.null_count:,}")
    print_distribution(np.asarray(raw.drop_null(), np.float64) / 10)


def print_distribution(scores: npt.NDArray[np.float64]) -> None:
    """Print minimum, mean, maximum and quantiles. A threshold at the 75% quantile keeps the best quarter."""
    if not len(scores):
        print("nothing was scored")
        return
    print(f"min {scores.min():.3f}  mean {scores.mean():.3f}  max {scores.max():.3f}")
    for share, value in zip(QUANTILES, np.quantile(scores, QUANTILES), strict=True):
        print(f"{share:4.0%} of the images score below {value:.3f}")


if __name__ == "__main__":
    sys.exit(main())
