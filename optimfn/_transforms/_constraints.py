"""Keep updates and parameters where they make sense."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, stateless
from .._checks import need_params
from .._order import Place
from .._recipe import factory
from .._typing import Params, Updates


class ZeroNansState(NamedTuple):
    """Where the last updates were no numbers."""

    found_nan: Updates  # whether the leaf had a NaN in the last step, one () bool per leaf


@factory
def zero_nans() -> GradientTransformation:
    """Replace every NaN in the updates by zero; infinities pass.

    Shapes:
        state: found_nan one () bool per leaf, about the last step.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.zero_nans()
        >>> tx.update(torch.tensor([float("nan"), 2.0]), tx.init(torch.ones(2)))
        (tensor([0., 2.]), ZeroNansState(found_nan=tensor(True)))
    """

    def init(params: Params) -> ZeroNansState:
        return ZeroNansState(tree.scalars(params, torch.bool))

    def update(
        updates: Updates, state: ZeroNansState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroNansState]:
        nan = tree.map(torch.isnan, updates)
        found = tree.reduce_each(torch.any, "any", nan)
        clean = tree.map(lambda n, u: torch.where(n, torch.zeros_like(u), u), nan, updates)
        return clean, ZeroNansState(tree.carry(found, state.found_nan))

    return GradientTransformation(init, update, leafwise=True)


@factory
def keep_params_nonnegative() -> GradientTransformation:
    """Shorten those updates that would make an element of the parameters negative, so that it becomes zero.

    It must come last in a chain, and the parameters must not be negative at the start.

    Maths:
        update <- max(g, -p)

    Shapes:
        updates: real leaves; params: needed; state: empty.

    Raises:
        ValueError: in `update` if no parameters are given.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.keep_params_nonnegative()
        >>> tx.update(torch.tensor([-3.0, -0.5]), tx.init(None), torch.tensor([1.0, 1.0]))[0]
        tensor([-1.0000, -0.5000])
    """

    def leaf(u: Tensor, p: Tensor) -> Tensor:
        return torch.where(p + u < 0, tree.cast_leaf(-p, u.dtype), u)

    def keep(updates: Updates, params: Params | None) -> Updates:
        need_params("keep_params_nonnegative", params)
        return tree.map(leaf, updates, params)

    return replace(stateless(keep), leafwise=True, elementwise=True, place=Place.LAST)
