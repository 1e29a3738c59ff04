"""States as flat dicts of plain tensors, the one form that every checkpoint format keeps."""

from typing import Any

from torch import Tensor

from . import tree
from ._hints import shown
from ._quantize import fitted
from ._recipe import Recorded
from ._typing import State


def state_dict(state: State) -> dict[str, Tensor]:
    """Flatten a state to a dict of plain tensors, ready for `torch.save` or safetensors.

    The keys are the paths in the state, such as `0.mu.layers.0.weight`. The tensors are copies: later steps
    in place do not change them.

    Args:
        state: State of any transformation, or any other tree of tensors.

    Raises:
        ValueError: if two leaves have the same path once it is joined with dots.

    Example:
        >>> import torch, optimfn as of
        >>> list(of.state_dict(of.adam(1e-3).init({"w": torch.ones(2)})))
        ['0.count', '0.mu.w', '0.nu.w']
    """
    if isinstance(state, Recorded):
        raise TypeError(
            f"state must be what init or update returned, got {shown(state)}: it is made by tx.init(params)"
        )
    flat: dict[str, Tensor] = {}
    for path, leaf in tree.leaves_with_path(state):
        key = tree.join_path(path)
        if key in flat:
            raise ValueError(
                f"two leaves of the state have the path {key!r}; rename one of the dict keys that hold a dot"
            )
        flat[key] = leaf.detach().clone()
    return flat


def load_state_dict(state: State, flat: dict[str, Tensor], *, strict: bool = True) -> State:
    """Fill a state with the tensors of a flat dict; the other way round of `state_dict`.

    What is quantised is written anew where the state has another format, or none.

    Args:
        state: A state of the transformation that goes on, usually fresh from `init`. It gives structure,
            shapes, dtypes and devices, and is not changed.
        flat: What `state_dict` returned.
        strict: Whether every entry must have its counterpart. With `False`, entries that match are taken
            and the rest of the state stays as it is.

    Shapes:
        result: like `state`; tensors are copied to its dtypes and devices.

    Raises:
        KeyError: if `strict` and entries are missing or left over; the message lists them.
        ValueError: if an entry has another shape than the state.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adam(1e-3)
        >>> saved = of.state_dict(tx.init(torch.ones(2)))
        >>> of.load_state_dict(tx.init(torch.ones(2)), saved)[0].count
        tensor(0)
    """
    wanted = {tree.join_path(path): leaf for path, leaf in tree.leaves_with_path(state)}
    flat = fitted(flat, wanted)
    missing, left_over = sorted(wanted.keys() - flat.keys()), sorted(flat.keys() - wanted.keys())
    if strict and (missing or left_over):
        raise KeyError(f"the state dict does not fit: missing {missing}, left over {left_over}")
    for key in wanted.keys() & flat.keys():
        if wanted[key].shape != flat[key].shape:
            raise ValueError(f"{key} has shape {tuple(flat[key].shape)}, the state wants {tuple(wanted[key].shape)}")

    def fill(path: tuple[Any, ...], leaf: Any) -> tuple[bool, Any]:
        key = tree.join_path(path)
        if not isinstance(leaf, Tensor) or key not in flat:
            return False, None
        return True, flat[key].detach().to(leaf.device, leaf.dtype, copy=True)

    return tree.map_nodes(fill, state)
