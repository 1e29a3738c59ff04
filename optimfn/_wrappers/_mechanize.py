"""Mechanic: a learning rate for any optimizer, from how much the way so far has gained."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import need_steps
from .._base import GradientTransformation, check_transformation
from .._checks import check_nonnegative, check_positive, check_steps, need_params
from .._order import Place, check_descends, check_keeps_none
from .._recipe import factory
from .._typing import Count, Params, Scalar, State, Updates


class MechanicState(NamedTuple):
    """Mechanic's memory: a gambler for each decay."""

    base_optimizer_state: State  # that of the optimizer whose rate is tuned
    count: Count  # () int64, steps taken
    r: Tensor  # (num_betas,) float64, what each has won
    m: Tensor  # (num_betas,) float64, largest gain of a step that each remembers
    v: Tensor  # (num_betas,) float64, decaying sum of the squared gains
    s: Tensor  # (num_betas,) float64, the rate of each; they are added
    x0: Params  # the parameters at the start, like params


@factory
def mechanize(
    base_optimizer: GradientTransformation,
    weight_decay: Scalar = 1e-2,
    eps: Scalar = 1e-8,
    s_init: Scalar = 1e-6,
    num_betas: int = 6,
) -> GradientTransformation:
    """Scale the whole way of an optimizer from the start by a rate that is learned while it goes.

    Give the optimizer a learning rate of 1, with its schedule. The rate is one number for all leaves.

    Maths:
        u = update of the optimizer,  S = sum of s,  D = (p_0 - p) / (S + eps),  b_i = 1 - 10^-i
        h = <g + weight_decay S |g| / (|p| + eps) p, D>
        r_i <- b_i r_i + s_i clip(h, -m_i, m_i),  m_i <- max(b_i m_i, |h| + eps),  v_i <- b_i^2 v_i + h^2
        s_i <- (s_init m_i / num_betas + max(r_i, 0)) / (sqrt(v_i) + eps)
        update <- p_0 - S' (D - u) - p,  S' the new sum

    Args:
        base_optimizer: The optimizer whose rate is tuned.
        weight_decay: Strength of a pull to zero in the gain, no unit, >= 0.
        eps: Added to norms, sums and roots, > 0.
        s_init: First rate, no unit, > 0.
        num_betas: How many decays are tried at once, >= 1.

    Shapes:
        params: needed, real leaves. state: that of the optimizer; r, m, v, s (num_betas,) float64; x0 like params.
        Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Cutkosky, Defazio and Mehta, 2023, arXiv:2306.00144, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.mechanize(of.sgd(1.0), s_init=0.1, num_betas=1), torch.ones(1)
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])
    """
    check_transformation(base_optimizer=base_optimizer)
    check_descends(base_optimizer=base_optimizer)
    check_keeps_none(base_optimizer=base_optimizer)
    check_nonnegative(weight_decay=weight_decay)
    check_positive(eps=eps, s_init=s_init)
    check_steps(num_betas=num_betas, at_least=1)

    def init(params: Params) -> MechanicState:
        zeros = tree.wide(tree.count(params)).expand(num_betas)
        r, m, v = (zeros.clone() for _ in range(3))
        state, x0 = base_optimizer.init(params), tree.keep(params, params)
        return MechanicState(state, tree.count(params), r, m, v, zeros + s_init, x0)

    def update(
        updates: Updates, state: MechanicState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MechanicState]:
        need_params("mechanize", params)
        step, base_state = base_optimizer.rule(updates, state.base_optimizer_state, params, **extra)
        step = need_steps("mechanize", step)
        _, count, r, m, v, s, x0 = state
        rate = s.sum()
        way = tree.map(
            lambda _, p, p0: tree.cast_leaf(p0, torch.promote_types(p0.dtype, torch.float32)) - p, updates, params, x0
        )
        delta = tree.scale(1 / (rate + eps), way)
        pull = weight_decay * rate * tree.norm(updates, wide=True) / (tree.norm(params, wide=True) + eps)
        h = tree.vdot(tree.add_scale(updates, pull, params), delta, wide=True)
        betas = 1 - torch.logspace(-1, -num_betas, num_betas, dtype=s.dtype, device=s.device)
        r = betas * r + torch.minimum(torch.maximum(h, -m), m) * s
        m = torch.maximum(betas * m, h.abs() + eps)
        v = betas**2 * v + h * h
        root = torch.sqrt(torch.where(v > 0, v, 1.0)) * (v > 0)  # which has a derivative also where nothing was gained
        s = (s_init / num_betas * m + torch.clamp(r, min=0)) / (root + eps)
        moved = tree.map(lambda d, u: tree.cast_leaf((d - u) * s.sum(), d.dtype), delta, step)
        return tree.cast_like(tree.sub(way, moved), updates), MechanicState(base_state, count + 1, r, m, v, s, x0)

    return GradientTransformation(init, update, place=Place.WHOLE)
