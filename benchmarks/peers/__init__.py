"""Other programs for the same job, each behind one small adapter, tuned in its favour."""
