"""ASAM: a climb that is as long, in proportion, whatever the scale of a weight."""

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, stateless
from ..._checks import check_nonnegative, check_rate, need_params
from ..._recipe import factory
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ..._wrappers._sam import sam
from ..momentum._sgd import sgd


@factory
def scale_by_asam(eta: Scalar = 0.01, mask: Mask | None = None) -> GradientTransformation:
    """Turn the gradient into the steepest direction of length 1, where an element's unit of length is its own size.

    With an `eta` of 0 it is the adaptive SAM of most libraries.

    Maths:
        T = |p| + eta in the leaves of the mask, 1 elsewhere
        update <- T^2 g / |T g|,  the norm that of all leaves;  0 where that is 0

    Args:
        eta: Added to the sizes, in the unit of the parameters, >= 0.
        mask: Which leaves are measured by themselves, such as those of weights: a tree of bools, a prefix of one, or a
            function of the parameters; `None` means all.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Kwon et al., 2021, arXiv:2102.11600, equation 7.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_asam(eta=0.0)
        >>> tx.update(torch.tensor([3.0, 2.0]), tx.init(torch.ones(2)), torch.tensor([1.0, 2.0]))[0]
        tensor([0.6000, 1.6000])
    """
    check_nonnegative(eta=eta)

    def scaled(g: Tensor, p: Tensor | None) -> Tensor:
        return g if p is None else tree.cast_leaf(g * (p.abs() + eta), g.dtype)

    def unit(updates: Updates) -> Updates:
        size = tree.norm(updates, wide=True)
        share = 1 / torch.where(size == 0, 1.0, size)
        return tree.scale(share, updates)

    def adapt(updates: Updates, params: Params | None) -> Updates:
        need_params("scale_by_asam", params)
        chosen = tree.select(mask, params)
        # Of length 1 between each two factors, whose product may have no room.
        return tree.map(scaled, unit(tree.map(scaled, unit(updates), chosen)), chosen)

    return stateless(adapt)


@factory
def asam(
    optimizer: GradientTransformation,
    rho: ScalarOrSchedule = 0.5,
    eta: Scalar = 0.01,
    mask: Mask | None = None,
    *,
    opaque_mode: bool = True,
) -> GradientTransformation:
    """`sam` whose climb is scaled by the weights: flat is what stays flat when a layer is scaled and the next unscaled.

    In the opaque mode `update` is given a `grad_fn`, as `sam` says.

    Args:
        optimizer: The optimizer that steps down.
        rho: Length of the climb, in sizes of the weights, >= 0; a number, a 0-dim tensor or a schedule.
        eta: Added to the sizes, in the unit of the parameters, >= 0.
        mask: Which leaves are measured by themselves, as for `scale_by_asam`.
        opaque_mode: Whether a call climbs and steps down, rather than one of both.

    Shapes:
        params: needed. state: that of `sam`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or no `grad_fn` in the opaque mode.

    Source: Kwon et al., 2021, arXiv:2102.11600, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.asam(of.sgd(0.5), rho=0.5, eta=0.0), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, grad_fn=lambda w, i: 2 * w)[0]
        tensor([-3.])
    """
    check_rate(rho=rho)
    climb = chain(scale_by_asam(eta, mask), sgd(rho))
    return sam(optimizer, climb, reset_state=False, opaque_mode=opaque_mode)
