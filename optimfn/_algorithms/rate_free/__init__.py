"""Rules that find their own rate."""
