"""Parameters and state in the files of torch.distributed.checkpoint, for any number of processes and any layout."""

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import tree
from .._checks import plain
from .._state_spec import LeafSpec, spec_of
from .._torch import is_dtensor
from .._typing import Params, State, Tree
from ._formats import Formats
from ._means import flush, flush_in_place

PathLike = str | os.PathLike[str]


def save(path: PathLike, params: Params, state: State, tx: Any, *, group: Any = None) -> None:
    """Write parameters and state to a folder, each process what it has; `load` reads them elsewhere.

    Every process of the group calls it, with its own shards (DTensors) or the same plain tensors. The files are those
    of `torch.distributed.checkpoint`: tensors under flat names, `params.` or `state.` and the path. A folder without
    `.metadata`, which is written last, is one whose writing was cut off.

    What is each replica's own is written for each of them: leaves of the state whose `state_spec` is `"per_replica"`,
    and the parameters of replicas that step by themselves, as in `outer_sync`. Then every process is a replica.

    Args:
        path: The folder, the same for all processes.
        params: The parameters.
        state: The state.
        tx: The transformation that the state belongs to.
        group: The processes that take part, a process group; `None` means all. A single process needs none.

    Raises:
        TypeError: if a leaf is neither a tensor nor a number, naming it.
        ValueError: if two leaves have the same name; or if a leaf is a partial sum, which differs between processes.
    """
    state = flush(state)
    run(dcp().save, _stacked(_flat(params, state), _specs(tx, params, state), group), path, group)


def load(
    path: PathLike,
    params: Params,
    state: State,
    tx: Any,
    *,
    donate: bool = False,
    strict: bool = True,
    group: Any = None,
) -> tuple[Params, State]:
    """Read what `save` wrote, on any number of processes and in any layout.

    What is quantised is written anew where the state has another format, or none, see `quantize_state`. What is each
    replica's own comes back to the same replica; if there were others, each gets the mean of all, and of
    whole numbers those of the first.

    Args:
        path: The folder.
        params: Parameters to give structure, shapes, dtypes and layouts.
        state: A state of the transformation that goes on, usually fresh from `init`; it gives the same.
        tx: That transformation.
        donate: Write into these tensors and return them, as for a module; else they stay as they are.
        strict: Whether every entry must have its counterpart. With `False` those that match are taken, and the rest
            stays as it is.
        group: The processes that take part, a process group; `None` means all. A single process needs none.

    Returns:
        The parameters and the state, laid out like those given.

    Raises:
        KeyError: if `strict` and entries are missing or left over; the message lists them.
        ValueError: if an entry has another shape, naming both, or a leaf that is each replica's own comes from another
            number of replicas and says that this is an error. Nothing has been read then.
    """
    here, specs = _flat(params, state), _specs(tx, params, state)
    wanted = _stacked(here, specs, group)
    found = _sizes(path)
    formats = Formats(wanted, found)
    wanted = formats.entries
    missing, left_over = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if strict and (missing or left_over):
        raise KeyError(f"the checkpoint does not fit: missing {missing}, left over {left_over}")
    given = {name: x for name, x in wanted.items() if name in found}
    rest = given.keys() - formats.names()
    others = {name for name in rest if _is_of_other_replicas(name, given[name], found[name], specs)}
    for name, x in given.items():
        if name not in others and x.shape != found[name]:
            raise ValueError(f"{name} has shape {tuple(found[name])} in the checkpoint, {tuple(x.shape)} is wanted")
    read: dict[str, Any] = {}
    for name, x in given.items():
        if name not in others:
            read[name] = x if donate or name not in rest else torch.empty_like(x)
        elif specs[name].elastic == "mean":
            read[name] = _for_all(x, found[name])
    run(dcp().load, read, path, group)
    with torch.no_grad():
        for name in others & read.keys():
            mean = _shared_out(read[name], given[name])
            read[name] = given[name].copy_(mean) if donate else mean
        formats.restore(read, here, donate)
    new = {name: _laid_like(read[name], x) if name in read else x if donate else x.clone() for name, x in here.items()}
    return _filled("params", params, new, donate), _filled("state", state, new, donate)


class TrainState:
    """Parameters and state as one object for `torch.distributed.checkpoint`, also for its `async_save`.

    It is a `Stateful` of torch: `dcp.save({"train": train_state}, checkpoint_id=...)`, and `dcp.load` in the same way
    reads into the tensors that it holds, on any number of processes and in any layout. What is each replica's own needs
    the same number of replicas; `load` takes others.

    Args:
        params: The parameters.
        state: The state.

    Example:
        >>> import torch, optimfn as of
        >>> params = {"w": torch.ones(2)}
        >>> list(of.distributed.TrainState(params, of.adam(0.1).init(params)).state_dict())
        ['params.w', 'state.0.count', 'state.0.mu.w', 'state.0.nu.w']
    """

    def __init__(self, params: Params, state: State) -> None:
        self.params, self.state = params, state

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, by name; not copies, as torch wants it.

        Raises:
            ValueError: on several processes, if replicas step by themselves: of plain tensors torch keeps those of one.
        """
        if _are_apart(self.state) and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError("each replica has parameters and a state of its own: use optimfn.distributed.save")
        flush_in_place(self.state)
        return _flat(self.params, self.state)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Write values into the tensors.

        Raises:
            KeyError: if entries are missing or left over; the message lists them.
        """
        wanted = _flat(self.params, self.state)
        missing, left_over = sorted(wanted.keys() - state_dict.keys()), sorted(state_dict.keys() - wanted.keys())
        if missing or left_over:
            raise KeyError(f"the checkpoint does not fit: missing {missing}, left over {left_over}")
        with torch.no_grad():
            for name, x in wanted.items():
                x.copy_(state_dict[name])


def dcp() -> Any:
    """torch.distributed.checkpoint, which takes twice as long to import as all of this package."""
    return importlib.import_module("torch.distributed.checkpoint")


def run(what: Any, flat: dict[str, Any], path: PathLike, group: Any) -> None:
    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        if alone:  # which torch finds worth a warning
            warnings.filterwarnings("ignore", "torch.distributed is .*single process", UserWarning)
        what(flat, checkpoint_id=path, process_group=group, no_dist=alone)


def _name(root: str, path: tuple[Any, ...]) -> str:
    return tree.join_path((root, *path))


def _flat(params: Params, state: State) -> dict[str, Tensor]:
    """The leaves by name."""
    flat: dict[str, Tensor] = {}
    for root, part in (("params", params), ("state", state)):
        for path, leaf in tree.leaves_with_path(part):
            name = _name(root, path)
            if name in flat:
                raise ValueError(f"two leaves are called {name}; rename one of the dict keys that hold a dot")
            flat[name] = _saved(name, leaf)
    return flat


def _saved(name: str, leaf: Any) -> Tensor:
    """A leaf as it is saved: a tensor whose value is there, and is the same wherever it should be."""
    if isinstance(plain(leaf), int | float):  # that someone has put in the place of a tensor
        return torch.tensor(plain(leaf), dtype=torch.int64 if isinstance(plain(leaf), int) else torch.float64)
    if not isinstance(leaf, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(leaf).__name__}")
    x: Any = leaf.detach()
    if hasattr(type(x), "trigger_wait"):  # the result of a collective that is on its way
        x = x.trigger_wait()
    if is_dtensor(x) and any(place.is_partial() for place in x.placements):
        raise ValueError(f"{name} is a partial sum, {x.placements}: reduce it first, with x.redistribute")
    own: Tensor = x
    return own


def _stacked(flat: Mapping[str, Tensor], specs: Mapping[str, LeafSpec], group: Any) -> dict[str, Tensor]:
    """What is each replica's own with an axis of the replicas, and parts of a vector as such, in the same memory."""
    own = [name for name, x in flat.items() if specs[name].kind == "per_replica" and not is_dtensor(x)]
    rows = stack_replicas([flat[name] for name in own], group)
    parts = [name for name, x in flat.items() if specs[name].kind == "flat_shard" and not is_dtensor(x)]
    vectors = _join_parts([flat[name] for name in parts], group)
    return {**flat, **dict(zip(own, rows, strict=True)), **dict(zip(parts, vectors, strict=True))}


def _mesh(group: Any, device: torch.device) -> Any:
    own = dist.group.WORLD if group is None else group
    return importlib.import_module("torch.distributed.tensor").DeviceMesh.from_group(own, device.type)


def _join_parts(leaves: Sequence[Tensor], group: Any) -> list[Any]:
    """Every leaf as the part of this process in a DTensor of one axis, which is cut as torch cuts it."""
    if not dist.is_initialized():
        return [*leaves]
    tensors, found = importlib.import_module("torch.distributed.tensor"), []
    for x in leaves:
        total = torch.tensor(x.numel(), device=x.device)
        dist.all_reduce(total, group=group)
        shape, placed = torch.Size([int(total)]), [tensors.Shard(0)]
        found.append(
            tensors.DTensor.from_local(x, _mesh(group, x.device), placed, run_check=False, shape=shape, stride=(1,))
        )
    return found


def stack_replicas(leaves: Sequence[Tensor], group: Any) -> list[Any]:
    """Every leaf as the row of this process in a DTensor of the rows of all, in the same memory."""
    if not dist.is_initialized():
        return [x[None] for x in leaves]
    tensors, size = importlib.import_module("torch.distributed.tensor"), dist.get_world_size(group)
    meshes: dict[str, Any] = {}
    rows = []
    for x in leaves:
        mesh = meshes.get(x.device.type)
        if mesh is None:
            mesh = meshes[x.device.type] = _mesh(group, x.device)
        shape, stride = (size, *x.shape), (x.numel(), *x.contiguous().stride())
        row = tensors.DTensor.from_local(
            x[None], mesh, [tensors.Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
        )
        rows.append(row)
    return rows


def _laid_like(x: Any, like: Tensor) -> Tensor:
    """What was read, without the axis of the replicas if the leaf has none."""
    own: Tensor = x.to_local() if is_dtensor(x) and not is_dtensor(like) else x
    return own if x.ndim == like.ndim else own[0]


def _are_apart(state: State) -> bool:
    """Whether replicas step by themselves, so that each has other parameters."""
    return any(getattr(node, "params_are_own", False) for _, node in tree.walk(state))


def _specs(tx: Any, params: Params, state: State) -> dict[str, LeafSpec]:
    """What each leaf is, by name."""
    kind = "per_replica" if _are_apart(state) else "param"
    found = {_name("params", path): LeafSpec(kind, tree.join_path(path)) for path, _ in tree.leaves_with_path(params)}
    specs = tree.leaves_with_path(spec_of(tx, params, state))
    return found | {_name("state", path): spec for path, spec in specs}


def _sizes(path: PathLike) -> dict[str, torch.Size]:
    """The shapes of what a checkpoint holds, by name."""
    metadata = dcp().FileSystemReader(path).read_metadata()
    return {name: getattr(entry, "size", torch.Size()) for name, entry in metadata.state_dict_metadata.items()}


def _is_of_other_replicas(name: str, x: Tensor, found: torch.Size, specs: Mapping[str, LeafSpec]) -> bool:
    spec = specs[name]
    if spec.kind != "per_replica" or x.shape[1:] != found[1:] or x.shape == found:
        return False
    if spec.elastic == "error":
        raise ValueError(f"{name} comes from {found[0]} replicas, and there are {x.shape[0]}")
    return True


def _for_all(x: Any, found: torch.Size) -> Any:
    """Room for what all replicas of a checkpoint had."""
    if not is_dtensor(x):
        return x.new_empty(found)
    tensors = importlib.import_module("torch.distributed.tensor")
    places = [tensors.Replicate() if place == tensors.Shard(0) else place for place in x.placements]
    return tensors.zeros(found, dtype=x.dtype, device_mesh=x.device_mesh, placements=places)


def _shared_out(own: Any, like: Any) -> Any:
    """The mean over replicas, for each of others: what their compensated gradients add up to stays the same."""
    numbers = own.dtype.is_floating_point or own.dtype.is_complex
    mean = (own.mean(0, keepdim=True) if numbers else own[:1]).expand(like.shape)
    return mean.redistribute(placements=like.placements) if is_dtensor(like) else mean.contiguous()


def _filled(root: str, old: Tree, new: Mapping[str, Tensor], donate: bool) -> Tree:
    def fill(path: tuple[Any, ...], leaf: Any) -> tuple[bool, Any]:
        if leaf is None or not tree.is_leaf(leaf):
            return False, None
        if donate and isinstance(leaf, Tensor):
            return True, leaf  # it has been written to
        x = new[_name(root, path)]
        return True, x.requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else x

    return tree.map_nodes(fill, old)
