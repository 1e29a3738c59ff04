"""Adam and its kin."""
