"""From a run's many small kept tars to few of an even size: the same entries, and rows that say where."""
