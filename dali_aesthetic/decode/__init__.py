"""Encoded bytes to pixels: header checks, the DALI graph, Pillow for the rest, the handoff to torch."""
