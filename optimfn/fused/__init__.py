"""Whole optimizer steps, and the ways to run them."""

from .._in_place._write import overwrite as overwrite
from .run._recycled import release_memory as release_memory
from .run._settings import MemorySettings as MemorySettings
from .run._settings import memory_settings as memory_settings
from .run._step import Step as Step
from .run._step import make_step as make_step
