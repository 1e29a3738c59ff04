"""Make the size of an update that of its parameter."""

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, leafwise, stateless
from .._checks import check_nonnegative, need_params
from .._recipe import factory
from .._typing import Params, Scalar, Updates


@factory
def scale_by_trust_ratio(
    min_norm: Scalar = 0.0, trust_coefficient: Scalar = 1.0, eps: Scalar = 0.0
) -> GradientTransformation:
    """Multiply each leaf of the updates by the ratio of the norms of parameter and update.

    Maths:
        update <- g trust_coefficient max(|p|, min_norm) / (max(|g|, min_norm) + eps)
                  g where either maximum is 0

    Args:
        min_norm: Least norm of either, in the unit of `p` and of `g`, >= 0.
        trust_coefficient: Relative size of the update, no unit, >= 0.
        eps: Added to the norm of the update, in the unit of `|g|`, >= 0.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: You, Gitman and Ginsburg, 2017, arXiv:1708.03888.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_trust_ratio()
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(None), torch.tensor([2.0, 0.0]))[0]
        tensor([1.2000, 1.6000])
    """
    check_nonnegative(min_norm=min_norm, trust_coefficient=trust_coefficient, eps=eps)

    def leaf(u: Tensor, of_p: Tensor, of_u: Tensor) -> Updates:
        known = (of_p != 0) & (of_u != 0)
        ratio = trust_coefficient * of_p / torch.where(known, of_u + eps, 1.0)
        return tree.scale(torch.where(known, ratio, 1.0), u)

    def scale(updates: Updates, params: Params | None) -> Updates:
        need_params("scale_by_trust_ratio", params)
        own = tree.map(lambda _, p: p, updates, params)
        sizes = (tree.clip(tree.norms(x, wide=True), min_value=min_norm) for x in (own, updates))
        return tree.map(leaf, updates, *sizes)

    return leafwise(stateless(scale))
