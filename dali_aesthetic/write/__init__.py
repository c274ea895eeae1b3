"""From scored batches to committed files: kept samples, one row per input sample, and the report."""

from dali_aesthetic.write.output import (
    OutputMismatch,
    RunMismatch,
    check_run_record,
    clean_leftovers,
    open_output,
    write_run_record,
)
from dali_aesthetic.write.sink import ShardSink

__all__ = [
    "OutputMismatch",
    "RunMismatch",
    "ShardSink",
    "check_run_record",
    "clean_leftovers",
    "open_output",
    "write_run_record",
]
