"""Bound the size of updates."""

from dataclasses import replace

from .. import tree
from .._base import GradientTransformation, elementwise, leafwise, stateless
from .._checks import check_nonnegative, check_positive
from .._recipe import factory
from .._typing import Scalar


@factory
def clip(max_delta: Scalar) -> GradientTransformation:
    """Move every element of the updates into `[-max_delta, max_delta]`.

    Args:
        max_delta: Largest magnitude, in the unit of the updates, >= 0.

    Shapes:
        updates: real leaves; state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> of.clip(1.0).update(torch.tensor([-3.0, 0.5]), of.EmptyState())[0]
        tensor([-1.0000,  0.5000])
    """
    check_nonnegative(max_delta=max_delta)
    return elementwise(stateless(lambda updates, params: tree.clip(updates, -max_delta, max_delta)))


@factory
def clip_by_global_norm(max_norm: Scalar) -> GradientTransformation:
    """Shrink all updates together so that their global norm is at most `max_norm`.

    Maths:
        update <- g min(1, max_norm / |g|),  |g| the 2-norm over all leaves

    Updates within the bound pass bit for bit. A NaN anywhere makes every update NaN; an infinity makes the
    finite updates zero and itself NaN.

    Args:
        max_norm: Largest global norm, in the unit of the updates, > 0; `math.inf` clips nothing.

    Shapes:
        updates: any leaves; their squares are accumulated in float64. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.nn.utils.clip_grad_norm_, which adds 1e-6 to the norm and so shrinks a little too much.

    Source: Pascanu, Mikolov and Bengio, 2013, arXiv:1211.5063.

    Example:
        >>> import torch, optimfn as of
        >>> of.clip_by_global_norm(1.0).update(torch.tensor([3.0, 4.0]), of.EmptyState())[0]
        tensor([0.6000, 0.8000])
    """
    check_positive(max_norm=max_norm)

    whole = stateless(lambda updates, params: tree.shrink(updates, tree.norm(updates, wide=True), max_norm))
    return replace(whole, elementwise=True)


@factory
def clip_by_block_rms(threshold: Scalar) -> GradientTransformation:
    """Shrink each leaf of the updates so that its root mean square is at most `threshold`.

    Maths:
        update <- g / max(1, rms(g) / threshold),  rms(g) = |g| / sqrt(number of elements)

    Leaves within the bound pass bit for bit.

    Args:
        threshold: Largest root mean square of a leaf, in the unit of the updates, > 0; `math.inf` clips nothing.

    Shapes:
        updates: any leaves; their squares are accumulated in float64. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Shazeer and Stern, 2018, arXiv:1804.04235, section 6.

    Example:
        >>> import torch, optimfn as of
        >>> of.clip_by_block_rms(1.0).update(torch.tensor([3.0, -3.0]), of.EmptyState())[0]
        tensor([ 1., -1.])
    """
    check_positive(threshold=threshold)

    return leafwise(
        stateless(
            lambda updates, params: tree.map(
                lambda u, size: tree.shrink(u, size, threshold), updates, tree.norms(updates, mean=True, wide=True)
            )
        )
    )
