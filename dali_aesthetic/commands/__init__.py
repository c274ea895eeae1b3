"""The commands beside `run`, and what all commands share: options, outcomes, the console."""
