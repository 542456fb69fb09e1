"""Gives a model a tiled forward, and takes it away again."""
