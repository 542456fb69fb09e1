"""The block-based codec's hyperprior models: one without context, one with checkerboard context."""
