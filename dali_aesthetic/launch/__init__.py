"""Where a run runs. The only rooms that know devices, ranks and processes; all call the same loop."""
