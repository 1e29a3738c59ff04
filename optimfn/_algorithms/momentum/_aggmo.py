"""AggMo: the mean of several momenta."""

from typing import Any, NamedTuple

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates


class AggMoState(NamedTuple):
    """A velocity for each decay."""

    traces: tuple[Updates, ...]  # decaying sums of the gradients, each like params


@factory
def scale_by_aggmo(betas: tuple[Scalar, ...] = (0.0, 0.9, 0.99)) -> GradientTransformation:
    """Average decaying sums of the updates, a fast one and slower ones that it keeps from swinging.

    Maths:
        v_i <- beta_i v_i + g
        update <- mean over i of v_i

    Args:
        betas: Decays, no unit, each in [0, 1).

    Shapes:
        state: traces, a tree like params for each decay (float32 for float16 and bfloat16). Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Lucas et al., 2018, arXiv:1804.00325.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_aggmo((0.0, 0.5))
        >>> first, state = tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.tensor([4.0]), state)[0]
        (tensor([4.]), tensor([5.]))
    """
    check_decay(**{f"betas[{i}]": beta for i, beta in enumerate(betas)})
    if not betas:
        raise ValueError("betas must have at least one decay, got ()")

    def init(params: Params) -> AggMoState:
        return AggMoState(tuple(tree.init_moment(params) for _ in betas))

    def update(
        updates: Updates, state: AggMoState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AggMoState]:
        traces = [tree.add_scale(updates, beta, v) for beta, v in zip(betas, state.traces, strict=True)]
        total = tree.add(*traces) if len(traces) > 1 else traces[0]
        kept = tuple(tree.carry(v, old) for v, old in zip(traces, state.traces, strict=True))
        return tree.cast_like(tree.scale(1 / len(betas), total), updates), AggMoState(kept)

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def aggmo(
    learning_rate: ScalarOrSchedule,
    betas: tuple[Scalar, ...] = (0.0, 0.9, 0.99),
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Gradient descent with the mean of several momenta.

    `scale_by_aggmo` gives the maths.

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        betas: Decays, no unit, each in [0, 1).
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_aggmo`. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Lucas et al., 2018, arXiv:1804.00325.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.aggmo(0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.5000])
    """
    return chain(scale_by_aggmo(betas), add_decayed_weights(weight_decay, mask), descend(learning_rate))
