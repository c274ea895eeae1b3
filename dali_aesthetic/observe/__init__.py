"""What a run shows machines: metrics to scrape, a log to search, Weights & Biases."""
