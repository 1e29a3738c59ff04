"""Checkpoints of what lies on several processes."""

from ._checkpoint import TrainState as TrainState
from ._checkpoint import load as load
from ._checkpoint import save as save
