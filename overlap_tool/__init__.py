"""Exact, retraining-free tiled inference for learned image codecs and other CNNs."""
