"""From a graph to stages of kernels, and their tables."""
