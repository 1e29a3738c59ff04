"""Rules that see matrices in a few directions."""
