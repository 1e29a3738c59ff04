"""Checkpoints of whatever differs between replicas, as state dicts do when each steps by itself."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import tree
from .._typing import Tree
from ._checkpoint import PathLike, dcp, run, stack_replicas

_FORM = "form"


def save_replicas(path: PathLike, state_dict: Tree, *, group: Any = None) -> None:
    """Write a state dict of every replica to one folder; `load_replicas` reads them, on any number of replicas.

    For replicas that step by themselves, as under `outer_sync`: between two meetings the models differ, and the states
    of the optimizers always do. Every process of the group calls it.

    Args:
        path: The folder, the same for all processes.
        state_dict: Dicts, lists and tuples of tensors, numbers and strings, of the same structure and shapes on all
            replicas, such as `{"model": model.state_dict(), "optimizer": optimizer.state_dict()}`. What is no tensor is
            taken to be the same everywhere.
        group: The replicas, a process group; `None` means all processes. A single process needs none.

    Example:
        >>> import tempfile, torch, optimfn as of
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = of.Optimizer(model, of.distributed.diloco(of.adamw(3e-4), None, every=100))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     of.distributed.save_replicas(folder, {"model": model.state_dict(), "optimizer": opt.state_dict()})
        ...     found = of.distributed.load_replicas(folder)
        >>> opt.load_state_dict(found["optimizer"]).missing
        []
    """
    places, tensors = [], []
    for place, x in tree.leaves_with_path(state_dict):
        if isinstance(x, Tensor):
            places.append(place)
            tensors.append(x.detach())
    form = tree.map(lambda x: None if isinstance(x, Tensor) else x, state_dict)
    rows = stack_replicas(tensors, group)
    run(dcp().save, {_FORM: (form, places), **{f"tensor.{i}": row for i, row in enumerate(rows)}}, path, group)


def load_replicas(path: PathLike, *, group: Any = None) -> Tree:
    """Read what `save_replicas` wrote: each replica its own, and if there were others, each the mean of all.

    The mean keeps what the next meeting of `outer_sync` sends. Of whole numbers, each gets those of the first replica.
    Every process of the group calls it. It reads files that may run code when they are read, as all of pickle's: only
    read what you trust.

    Args:
        path: The folder.
        group: The replicas that go on, a process group; `None` means all processes. A single process needs none.

    Returns:
        The state dict, on the CPU.
    """
    sizes = dcp().FileSystemReader(path).read_metadata().state_dict_metadata
    found: dict[str, Any] = {_FORM: None}
    run(dcp().load, found, path, group)
    form, places = found[_FORM]
    replicas = dist.get_world_size(group) if dist.is_initialized() else 1
    rows = {}
    for i in range(len(places)):
        held = sizes[f"tensor.{i}"]
        rows[f"tensor.{i}"] = torch.empty(held.size, dtype=held.properties.dtype)
    run(dcp().load, rows, path, group)
    values = {}
    for place, x in zip(places, rows.values(), strict=True):
        if len(x) == replicas:
            values[place] = x[dist.get_rank(group) if dist.is_initialized() else 0].clone()
        else:
            values[place] = x.mean(0) if x.dtype.is_floating_point or x.dtype.is_complex else x[0].clone()
    return tree.map_nodes(lambda place, node: (place in values, values.get(place)), form)
