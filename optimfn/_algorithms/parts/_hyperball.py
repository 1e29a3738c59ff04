"""Hyperball: every matrix stays on the sphere it starts on, and moves by an angle."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._assign import need_steps
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_nonnegative, check_rate, need_params
from ..._order import Place
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, State, Updates
from ._cautious import rule_and_rest


class HyperballState(NamedTuple):
    """The rule's memory, and how large the matrices are."""

    inner_state: State  # that of the rule
    count: Count  # () int64, steps taken, where the schedule of the rate is
    radius: Updates  # the norm of each leaf at the start, one () float64 per leaf; 0 before the first step


@factory
def hyperball(
    rule: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: Scalar = 0.0,
    *,
    keep_radius: bool = True,
) -> GradientTransformation:
    """Move each matrix by its learning rate as a share of its norm, and put it back to the norm it had.

    The rate means an angle: 0.02 is a usual one. Decay turns the step only. Leaves with fewer than two axes, and those
    that are zero at the start, take plain steps.

    Maths:
        d = direction of the rule + weight_decay p,  R = |p| at the start
        q = p - learning_rate R d / |d|
        update <- q R / |q| - p,  all norms of the leaf;  -learning_rate d for the other leaves

    Args:
        rule: A rule without learning rate and decay, such as `scale_by_adam()`.
        learning_rate: Step as a share of the norm, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay: Weight of the parameters in the direction, >= 0.
        keep_radius: Whether `R` is that of the start, or the norm of the parameters as they are.

    Shapes:
        params: needed. state: that of the rule; count () int64; radius one () float64 per leaf.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; also for a rule with a learning rate
            or decay of its own.
        ValueError: in `update` if no parameters are given.

    Source: HeavyBall's HyperBallAdamW; Jordan et al., modded-nanogpt, "AdamH" and "MuonH".

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.hyperball(of.identity(), 1.0), torch.tensor([[3.0, 4.0]])
        >>> of.apply_updates(params, tx.update(torch.tensor([[-4.0, 3.0]]), tx.init(params), params)[0])
        tensor([[4.9497, 0.7071]])
    """
    check_transformation(rule=rule)
    check_rate(learning_rate=learning_rate)
    check_nonnegative(weight_decay=weight_decay)
    _, rest = rule_and_rest("hyperball", rule)
    if any(member.recipe is not None and member.recipe.factory.__name__ != "identity" for member in rest):
        raise ValueError(f"hyperball has the learning rate and the decay itself; give the rule without {rest}")

    def init(params: Params) -> HyperballState:
        return HyperballState(rule.init(params), tree.count(params), tree.scalars(params))

    def turned(q: Tensor, p: Tensor, d: Tensor, size: Tensor, radius: Tensor, rate: Scalar) -> Any:
        plain = tree.scale(-1.0, tree.scale(rate, d))
        if d.ndim < 2:
            return plain
        back = tree.add_scale(tree.scale(radius / torch.where(size == 0, 1.0, size), q), -1.0, p)
        return torch.where(radius == 0, plain, back)

    def update(
        updates: Updates, state: HyperballState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, HyperballState]:
        need_params("hyperball", params)
        direction, inner = rule.rule(updates, state.inner_state, params, **extra)
        direction = need_steps("hyperball", direction)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        p = tree.map(lambda d, p: tree.cast_leaf(p, torch.promote_types(d.dtype, torch.float32)), direction, params)
        d = tree.map(lambda d, p: tree.add_scale(d.to(p.dtype), weight_decay, p), direction, p)
        # The norms of the start are found here, since they take all processes where leaves lie in shards.
        now, fresh = tree.norms(p, wide=True), state.count == 0
        radius = tree.map(lambda n, start: torch.where(fresh, n, start) if keep_radius else n, now, state.radius)
        unit = tree.map(lambda d, n: tree.scale(1 / torch.where(n == 0, 1.0, n), d), d, tree.norms(d, wide=True))
        q = tree.map(lambda p, u, r: tree.add_scale(p, -rate * r, u), p, unit, radius)
        sizes = tree.norms(q, wide=True)
        moved = tree.map(lambda q, p, d, n, r: turned(q, p, d, n, r, rate), q, p, d, sizes, radius)
        state = HyperballState(inner, state.count + 1, tree.carry(radius, state.radius))
        return tree.cast_like(moved, updates), state

    return GradientTransformation(
        init, update, leafwise=rule.leafwise and not callable(learning_rate), place=Place.WHOLE
    )
