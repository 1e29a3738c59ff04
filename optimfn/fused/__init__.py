"""Whole optimizer steps, and the ways to run them."""

from ._step import Step as Step
from ._step import make_step as make_step
from ._write import overwrite as overwrite
