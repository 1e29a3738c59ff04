"""Optimizers, one paper a file: its state, its `scale_by_`, and the whole optimizer."""
