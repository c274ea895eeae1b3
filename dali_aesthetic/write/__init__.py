"""From scored batches to committed files: kept samples, one row per input sample, and the report."""

from dali_aesthetic.write.commit import ShardSink
from dali_aesthetic.write.output import OutputMismatch, clean_leftovers, committed_names, open_output
from dali_aesthetic.write.record import RunMismatch, check_run_record, write_run_record

__all__ = [
    "OutputMismatch",
    "RunMismatch",
    "ShardSink",
    "check_run_record",
    "clean_leftovers",
    "committed_names",
    "open_output",
    "write_run_record",
]
