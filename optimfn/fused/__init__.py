"""Whole optimizer steps, and the ways to run them."""

from .run._step import Step as Step
from .run._step import make_step as make_step
from .run._write import overwrite as overwrite
