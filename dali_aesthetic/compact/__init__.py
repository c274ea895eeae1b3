"""Packs a run's many small kept tars into fewer tars of an even size."""
