"""LookSAM: a climb now and then, and what it showed in between."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_nonnegative, check_steps, need_params
from ..._evaluation import eval_within
from ..._order import check_descends
from ..._recipe import factory
from ..._state_spec import HostCount
from ..._typing import Params, Scalar, State, Updates
from ..._wrappers._sam import gradient_of


class LookSAMState(NamedTuple):
    """What the last climb showed."""

    count: HostCount  # () int64 on the CPU, steps taken
    aside: Updates  # the part of the gradient uphill that is orthogonal to that at the foot, like params
    opt_state: State  # that of the optimizer


@factory
def looksam(
    optimizer: GradientTransformation, rho: Scalar = 0.1, alpha: Scalar = 0.7, period: int = 5, eps: Scalar = 1e-8
) -> GradientTransformation:
    """`sam` with a second gradient in one step of several only; in the others the last one's part aside is added.

    `update` is given a `grad_fn`, as `sam` says, which is called in one step of `period`.

    Maths:
        in one step of period:  h = gradient at p + rho g / |g|
            update <- optimizer of h;  a <- h - <g, h> / |g|^2 g, leaf by leaf
        in the others:  update <- optimizer of g + alpha |g| / (|a| + eps) a, leaf by leaf

    Args:
        optimizer: The optimizer that steps down.
        rho: Length of the climb, in the unit of the parameters, >= 0.
        alpha: Weight of the part aside, no unit, >= 0.
        period: Steps from one climb to the next, >= 1.
        eps: Added to the norm of the part aside, in the unit of the gradient, > 0 where that may be 0.

    Shapes:
        params: needed. state: that of the optimizer; count () int64; aside like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `grad_fn` are given.

    Differs from: the code that is in use, where gradients in parallel, as those of single elements are, leave rounding
        errors aside that then count as much as the gradient.

    Source: Liu et al., 2022, arXiv:2203.02714, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.looksam(of.sgd(0.5), rho=1.0), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, grad_fn=lambda w, i: 2 * w)[0]
        tensor([-3.])
    """
    check_transformation(optimizer=optimizer)
    check_descends(optimizer=optimizer)
    check_nonnegative(rho=rho, alpha=alpha, eps=eps)
    check_steps(period=period, at_least=1)

    def init(params: Params) -> LookSAMState:
        return LookSAMState(tree.host_count(params), tree.init_moment(params), optimizer.init(params))

    def push(g: Tensor, a: Tensor, of_g: Tensor, of_a: Tensor) -> Tensor:
        share = torch.where(of_a == 0, 0.0, of_g / torch.where(of_a == 0, 1.0, of_a + eps))
        return tree.cast_leaf(g + a * (alpha * share), g.dtype)

    def update(
        updates: Updates,
        state: LookSAMState,
        params: Params | None = None,
        *,
        grad_fn: Callable[[Params, int], Updates] | None = None,
        **extra: Any,
    ) -> tuple[Updates, LookSAMState]:
        need_params("looksam", params)
        gradient = gradient_of("looksam", grad_fn, extra)

        def climb(kept: Updates, g: Updates, p: Params) -> Updates:
            size = tree.norm(g, wide=True)
            top = tree.add_scale(p, rho / torch.where(size == 0, 1.0, size), tree.map(lambda p, g: g, p, g))
            h = tree.cast_like(gradient(tree.cast_like(top, p), 0), g)
            sizes = tree.norms(g, squared=True, wide=True)
            along = tree.map(lambda g, h, size: _quotient(tree.vdot(g, h, wide=True), size), g, h, sizes)
            aside = tree.map(lambda h, g, share: h - tree.cast_leaf(g * share, h.dtype), h, g, along)
            # Of parallel gradients only rounding is left, which a division by its own norm would make as large as g.
            noise = tree.map(
                lambda h, a, of_h, of_a: of_a <= 8 * torch.finfo(h.dtype).eps * of_h,
                h,
                aside,
                *(tree.norms(x, wide=True) for x in (h, aside)),
            )
            aside = tree.map(lambda a, is_noise: torch.where(is_noise, 0.0, a), aside, noise)
            return h, aside

        pushed = tree.map(
            push, updates, state.aside, tree.norms(updates, wide=True), tree.norms(state.aside, wide=True)
        )
        seen, aside = tree.every(period, state.count, climb, (pushed, state.aside), updates, params)
        step, opt_state = optimizer.rule(seen, state.opt_state, params, **{**extra, "foot_grads": updates})
        return step, LookSAMState(state.count + 1, tree.carry(aside, state.aside), opt_state)

    return GradientTransformation(init, update, eval_params=eval_within(optimizer, "opt_state"))


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(y == 0, 0.0, x / torch.where(y == 0, 1.0, y))
