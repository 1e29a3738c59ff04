"""Generalised primal averaging: gradients between an iterate and its running mean."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._assign import need_steps
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_choice, check_dtype, check_fraction, check_positive, need_params
from ..._order import Place, check_descends, check_keeps_none
from ..._recipe import factory
from ..._typing import Params, Scalar, State, Updates


class GPAState(NamedTuple):
    """The iterate beside the point where gradients are taken."""

    mu_y: Tensor  # () float64, the weight of the mean in the parameters
    inner_state: State  # that of the optimizer that moves the iterate
    z: Params  # the iterate, like params


@factory
def gpa(
    inner: GradientTransformation,
    mu_y: Scalar = 0.7,
    mu_x: Scalar = 0.9967,
    state_dtype: torch.dtype | None = None,
    *,
    decay_at: str = "y",
) -> GradientTransformation:
    """Keep a running mean of the iterates of any optimizer, and take gradients between it and the newest one.

    The parameters are `y`, where gradients are taken; evaluate and save `eval_params(tx, state, params)`. Unlike
    `schedule_free` the optimizer keeps its momentum and its schedule, and the mean forgets.

    Maths:
        z' = z + update of the optimizer
        x' = mu_x x + (1 - mu_x) z',  x = (y - (1 - mu_y) z) / mu_y
        update <- mu_y x' + (1 - mu_y) z' - y

    Args:
        inner: The optimizer that moves the iterate, such as `adamw(1e-3)`; it gets the gradient at `y`.
        mu_y: Weight of the mean in the parameters, no unit, in (0, 1].
        mu_x: Decay of the mean, no unit, in [0, 1].
        state_dtype: Dtype of `z`; `None` means that of the leaf, float32 for float16 and bfloat16.
        decay_at: Which parameters the optimizer sees, and so decays: "y", or "z".

    Shapes:
        params: needed. state: that of the optimizer; z like params; a scalar. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio et al., 2025, arXiv:2512.17131, equations of GPA-AdamW.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.gpa(of.sgd(1.0), mu_y=0.5, mu_x=0.5), torch.tensor([4.0])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(torch.tensor([2.0]), state, params)
        >>> params = of.apply_updates(params, updates)
        >>> params, of.eval_params(tx, state, params)
        (tensor([2.5000]), tensor([3.]))
    """
    check_transformation(inner=inner)
    check_descends(inner=inner)
    check_keeps_none(inner=inner)
    check_fraction(mu_y=mu_y, mu_x=mu_x)
    check_positive(mu_y=mu_y)
    check_dtype(state_dtype=state_dtype)
    check_choice("decay_at", decay_at, ("y", "z"))

    def init(params: Params) -> GPAState:
        z = tree.map(lambda start, p: start + p, tree.init_moment(params, state_dtype), params)
        z = tree.cast_like(z, tree.init_moment(params, state_dtype))
        return GPAState(tree.wide(tree.count(params)) + mu_y, inner.init(params), z)

    def update(
        updates: Updates, state: GPAState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, GPAState]:
        need_params("gpa", params)
        seen = params if decay_at == "y" else tree.cast_like(state.z, params)
        step, inner_state = inner.rule(updates, state.inner_state, seen, **extra)
        step = need_steps("gpa", step)
        # mu_y x' + (1 - mu_y) z' - y without x, which is a difference of large numbers where mu_y is small.
        turned = tree.map(
            lambda u, z, y: tree.cast_leaf((z - y + u * mu_y) * (1 - mu_x), z.dtype), step, state.z, params
        )
        moved = tree.map(lambda d, u: d + tree.cast_leaf(u * (1 - mu_y), d.dtype), turned, step)
        z = tree.carry(tree.map(lambda u, z: z + u, step, state.z), state.z)
        return tree.cast_like(moved, updates), GPAState(state.mu_y, inner_state, z)

    def mean(state: GPAState, params: Params) -> Params:
        back = 1 - 1 / state.mu_y
        return tree.map(
            lambda y, z: tree.cast_leaf(y + tree.cast_leaf((z - y) * back, z.dtype), y.dtype), params, state.z
        )

    return GradientTransformation(
        init, update, leafwise=inner.leafwise, elementwise=inner.elementwise, eval_params=mean, place=Place.WHOLE
    )
