"""AdEMAMix with one mean: a heavy ball and a share of the newest gradient, over one second moment."""

from typing import Any, NamedTuple

from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_rate
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """The memory of the simplified AdEMAMix."""

    t: Tensor  # () int64, steps taken
    m: Updates  # decaying sum of the gradients, like params
    n: Updates  # running mean of their squared magnitudes, like params but real


@factory
def scale_by_simplified_ademamix(
    b1: Scalar = 0.99, b2: Scalar = 0.95, alpha: ScalarOrSchedule = 0.0, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> GradientTransformation:
    """Divide a decaying sum of the updates plus `alpha` times the newest by the root of the mean of their squares.

    Maths:
        m <- b1 m + g
        n <- b2 n + (1 - b2) |g|^2
        update <- (m + alpha g) / (sqrt(n / (1 - b2^t) + eps_root) + eps)

    Args:
        b1: Decay of `m`, no unit, in [0, 1). The sum is about `1 / (1 - b1)` gradients large.
        b2: Decay of `n`, no unit, in [0, 1).
        alpha: Weight of the newest update, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.

    Shapes:
        state: t () int64; m, n like params (n real; float32 for float16 and bfloat16). Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Morwani et al., 2025, arXiv:2502.02431.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_simplified_ademamix(alpha=2.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([3.])
    """
    check_decay(b1=b1, b2=b2)
    check_rate(alpha=alpha)
    check_nonnegative(eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleBySimplifiedAdEMAMixState:
        m, n = tree.init_moment(params), tree.init_moment(params, real=True)
        return ScaleBySimplifiedAdEMAMixState(tree.count(params), m, n)

    def update(
        updates: Updates, state: ScaleBySimplifiedAdEMAMixState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleBySimplifiedAdEMAMixState]:
        m = tree.add_scale(updates, b1, state.m)
        n = tree.update_moment_per_elem_norm(updates, state.n, b2, 2)
        mixed = tree.add_scale(m, alpha(state.t) if callable(alpha) else alpha, updates)
        direction = tree.div_by_root(mixed, tree.bias_correction(n, b2, state.t + 1), eps, eps_root)
        state = ScaleBySimplifiedAdEMAMixState(state.t + 1, tree.carry(m, state.m), tree.carry(n, state.n))
        return tree.cast_like(direction, updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def simplified_ademamix(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by a decaying sum of the gradients and a share of the newest, over the root of their mean square.

    `scale_by_simplified_ademamix` gives the maths. The sum is not divided by its weight: learning rates are those of
    Adam times `1 - b1`.

    Args:
        learning_rate: Parameter units per step times `1 / (1 - b1)`, roughly, >= 0; a number, a 0-dim tensor or a
            schedule.
        b1: Decay of the sum, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        alpha: Weight of the newest gradient, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_simplified_ademamix`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Morwani et al., 2025, arXiv:2502.02431.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.simplified_ademamix(0.01, alpha=2.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.0300])
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
