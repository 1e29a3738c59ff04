"""Rules that divide by a root of squared gradients."""
