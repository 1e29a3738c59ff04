"""Numerics that stand by themselves."""
