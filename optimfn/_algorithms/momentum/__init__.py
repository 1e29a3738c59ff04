"""Gradient descent with and without momentum."""
