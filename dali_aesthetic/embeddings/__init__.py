"""Stored CLIP embeddings to scores, at the speed of the disk: no image is needed."""
