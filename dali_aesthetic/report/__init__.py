"""The report of an output: one page for choosing a threshold by looking at samples. Scores nothing."""
