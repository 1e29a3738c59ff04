"""Optimizers of several processes, and checkpoints of what lies on them."""

from ._checkpoint import TrainState as TrainState
from ._checkpoint import load as load
from ._checkpoint import save as save
from ._local import diloco as diloco
from ._local import hierarchical_sgd as hierarchical_sgd
from ._local import local_sgd as local_sgd
from ._local import post_local_sgd as post_local_sgd
from ._local import slowmo as slowmo
from ._outer import OuterSyncState as OuterSyncState
from ._outer import outer_sync as outer_sync
from ._replicas import load_replicas as load_replicas
from ._replicas import save_replicas as save_replicas
