"""Rules that look at whole matrices."""
