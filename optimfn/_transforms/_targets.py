"""Parameters that follow others, such as those of a target network."""

from torch import Tensor

from .. import tree
from .._checks import check_steps
from .._typing import Scalar, Tree


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Scalar) -> Tree:
    """Move the old tensors towards the new: `step_size * new + (1 - step_size) * old`.

    Applied after every step it keeps a running mean of the parameters, as for target networks and
    Polyak averaging. The result has the dtypes of the old tensors.

    Args:
        new_tensors: Tree to move to; where it has `None` the result has `None`.
        old_tensors: Tree to move from.
        step_size: Weight of the new tensors, no unit, usually in [0, 1].

    Example:
        >>> import torch, optimfn as of
        >>> of.incremental_update(torch.tensor([4.0]), torch.tensor([0.0]), 0.25)
        tensor([1.])
    """
    return tree.cast_like(tree.lerp(old_tensors, new_tensors, step_size), old_tensors)


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: int | Tensor, update_period: int) -> Tree:
    """Take the new tensors every `update_period` steps, else keep the old.

    Args:
        new_tensors: Tree to take when `steps` is a multiple of `update_period`.
        old_tensors: Tree to keep otherwise.
        steps: Number of steps taken, an int or a 0-dim tensor.
        update_period: Steps between updates, >= 1.

    Raises:
        ValueError: if `update_period` is below 1.

    Example:
        >>> import torch, optimfn as of
        >>> of.periodic_update(torch.tensor([4.0]), torch.tensor([0.0]), steps=6, update_period=3)
        tensor([4.])
    """
    check_steps(update_period=update_period, at_least=1)
    return tree.where(steps % update_period == 0, new_tensors, old_tensors)
