"""Rules that learn the curvature."""
