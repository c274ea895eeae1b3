"""From uint8 pixels on a device to aesthetic scores: tower, heads, weights and backends."""
