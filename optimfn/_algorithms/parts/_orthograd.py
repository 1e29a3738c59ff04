"""Gradients without the part that only changes the size of the parameters."""

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, leafwise, stateless
from ..._checks import need_params
from ..._recipe import factory
from ..._typing import Params, Updates


@factory
def orthograd() -> GradientTransformation:
    """Remove from each leaf of the gradients what points along its parameters, and keep its norm; a front for any rule.

    Leaves of one element, where nothing would remain, pass; so do those whose parameters are zero.

    Maths:
        o = g - <p, g> / <p, p> p
        update <- o |g| / |o|,  all of the leaf

    Shapes:
        params: needed, real leaves. state: empty.

    Raises:
        ValueError: in `update` if no parameters are given.

    Source: Prieto et al., 2025, arXiv:2501.04697, section 5.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.orthograd()
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(None), torch.tensor([1.0, 0.0]))[0]
        tensor([0., 5.])
    """

    def unit(x: Tensor, size: Tensor) -> Tensor:
        """A vector of length 1, so that no product of large numbers is taken."""
        wide = tree.cast_leaf(x, torch.promote_types(x.dtype, torch.float32))
        return tree.cast_leaf(wide / torch.where(size == 0, 1.0, size), wide.dtype)

    def turn(updates: Updates, params: Params | None) -> Updates:
        need_params("orthograd", params)
        own = tree.map(lambda _, p: p, updates, params)
        sizes = tree.norms(updates, wide=True)
        g, p = tree.map(unit, updates, sizes), tree.map(unit, own, tree.norms(own, wide=True))
        along = tree.reduce_each(lambda p, g: tree.vdot(p, g, wide=True), "sum", p, g)
        rest = tree.map(lambda g, p, x: tree.add_scale(g, -x, p), g, p, along)
        left = tree.norms(rest, wide=True)
        turned = tree.map(lambda o, n, size: tree.scale(size / torch.where(n == 0, 1.0, n), o), rest, left, sizes)
        return tree.map(lambda g, o: g if g.numel() <= 1 else tree.cast_leaf(o, g.dtype), updates, turned)

    return leafwise(stateless(turn))
