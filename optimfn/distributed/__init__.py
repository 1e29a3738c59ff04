"""Checkpoints of what lies on several processes."""

from ._checkpoint import TrainState as TrainState
from ._checkpoint import load as load
from ._checkpoint import save as save
from ._means import DeferredState as DeferredState
from ._means import all_reduce_mean as all_reduce_mean
from ._means import deferred as deferred
from ._means import drain as drain
from ._means import flush as flush
from ._trace import CommTrace as CommTrace
from ._trace import comm_trace as comm_trace
