"""Rules that move by signs."""
