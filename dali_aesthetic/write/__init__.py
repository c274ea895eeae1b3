"""From scored batches to committed files: kept samples, one row per input sample, and the report."""
