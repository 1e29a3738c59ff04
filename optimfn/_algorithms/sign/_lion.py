"""Lion: evolved sign momentum."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_choice, check_decay, check_dtype, check_positive
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByLionState(NamedTuple):
    """Lion's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params


@factory
def scale_by_lion(
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: torch.dtype | None = None,
    *,
    mode: str = "hard",
    smooth_beta: Scalar = 1.0,
) -> GradientTransformation:
    """Replace the updates by the sign of their mix with a running mean.

    Maths:
        c = b1 mu + (1 - b1) g
        mu <- b2 mu + (1 - b2) g
        update <- sign(c)               with mode "hard"
                  tanh(smooth_beta c)   with mode "smooth"
                  clip(c, -1, 1)        with mode "refined"

    Args:
        b1: Weight of the mean in the mix, no unit, in [0, 1).
        b2: Decay of the mean, no unit, in [0, 1).
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        mode: How the mix becomes a step; only "hard" is the paper's.
        smooth_beta: Steepness in mode "smooth", per unit of `g`, > 0.

    Shapes:
        state: count () int64; mu like params. Memory: 1 x params.
        For complex leaves the sign is `c / |c|`, and only mode "hard" is defined.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Chen et al., 2023, arXiv:2302.06675, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_lion()
        >>> tx.update(torch.tensor([-0.3, 2.0]), tx.init(torch.ones(2)))[0]
        tensor([-1.,  1.])
    """
    check_decay(b1=b1, b2=b2)
    check_dtype(mu_dtype=mu_dtype)
    check_choice("mode", mode, ("hard", "smooth", "refined"))
    check_positive(smooth_beta=smooth_beta)

    def init(params: Params) -> ScaleByLionState:
        return ScaleByLionState(tree.count(params), tree.init_moment(params, mu_dtype))

    def update(
        updates: Updates, state: ScaleByLionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByLionState]:
        mix = tree.update_moment(updates, state.mu, b1, 1)
        mu = tree.update_moment(updates, state.mu, b2, 1)
        if mode == "hard":
            direction = tree.sign(mix)
        elif mode == "smooth":
            direction = tree.map(torch.tanh, tree.scale(smooth_beta, mix))
        else:
            direction = tree.clip(mix, -1.0, 1.0)
        return tree.cast_like(direction, updates), ScaleByLionState(state.count + 1, tree.carry(mu, state.mu))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def lion(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the sign of a mix of the gradient and its running mean, with decoupled weight decay.

    Every element moves by the learning rate, so it wants one 3 to 10 times smaller than Adam's, and a
    weight decay as many times larger.

    Args:
        learning_rate: Parameter units per step, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Weight of the mean in the mix, no unit, in [0, 1).
        b2: Decay of the mean, no unit, in [0, 1).
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_lion`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Chen et al., 2023, arXiv:2302.06675, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.lion(1e-4)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.zeros(1))[0]
        tensor([-1.0000e-04])
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
