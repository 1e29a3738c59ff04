"""MSAM: SAM that climbs back along its last step, and needs no second gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._assign import need_steps
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_nonnegative, need_params
from ..._evaluation import kept_beside
from ..._order import Place, check_descends, check_keeps_none
from ..._recipe import factory
from ..._typing import Params, Scalar, State, Updates


class MSAMState(NamedTuple):
    """Where the optimizer is, beside the point where gradients are taken."""

    z: Params  # the iterate, like params
    opt_state: State  # that of the optimizer


@factory
def msam(optimizer: GradientTransformation, rho: Scalar = 0.3) -> GradientTransformation:
    """Take gradients a fixed way ahead of the iterate, in the direction of its last step: `sam` at the price of none.

    The optimizer should have momentum: its step is that of many gradients, of which the next is seen from ahead. The
    parameters are where gradients are taken; evaluate and save `eval_params(tx, state, params)`.

    Maths:
        u = update of the optimizer, given the gradient at p and p
        z <- z + u;  update <- z + rho u / |u| - p,  the norm that of all leaves

    Args:
        optimizer: The optimizer that moves the iterate.
        rho: How far ahead, in the unit of the parameters, >= 0.

    Shapes:
        params: needed. state: that of the optimizer; z like params, float32 for float16 and bfloat16.
        Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: the authors' code, which steps z from p, and so collects rounding errors in place of a copy.

    Source: Becker, Altrock and Risse, 2024, arXiv:2401.12033, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, p = of.msam(of.sgd(0.5), rho=0.25), torch.tensor([4.0])
        >>> updates, state = tx.update(torch.tensor([2.0]), tx.init(p), p)
        >>> updates, of.eval_params(tx, state, p)
        (tensor([-1.2500]), tensor([3.]))
    """
    check_transformation(optimizer=optimizer)
    check_descends(optimizer=optimizer)
    check_keeps_none(optimizer=optimizer)
    check_nonnegative(rho=rho)

    def init(params: Params) -> MSAMState:
        start = tree.keep(params, tree.init_moment(params))
        return MSAMState(start, optimizer.init(params))

    def update(
        updates: Updates, state: MSAMState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MSAMState]:
        need_params("msam", params)
        step, opt_state = optimizer.rule(updates, state.opt_state, params, **extra)
        step = need_steps("msam", step)
        size = tree.norm(step, wide=True)
        ahead = rho / torch.where(size == 0, 1.0, size)

        def leaf(u: Tensor, z: Tensor, p: Tensor) -> Tensor:
            return tree.cast_leaf(z - p + u + u * ahead, u.dtype)

        z = tree.carry(tree.map(lambda u, z: z + u, step, state.z), state.z)
        return tree.map(leaf, step, state.z, params), MSAMState(z, opt_state)

    def iterate(state: MSAMState, params: Params) -> Params:
        return kept_beside(params, state.z)

    return GradientTransformation(init, update, eval_params=iterate, place=Place.WHOLE)
