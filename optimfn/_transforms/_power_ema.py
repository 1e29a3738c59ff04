"""The average of the parameters whose horizon grows with the run."""

from typing import Annotated, Any, NamedTuple

import torch

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._checks import check_nonnegative, need_params
from .._evaluation import kept_beside
from .._order import Place
from .._recipe import factory
from .._typing import Count, Params, Scalar, Updates


class PowerEmaState(NamedTuple):
    """A mean of the parameters, in powers of the step."""

    count: Count  # () int64, steps taken
    ema: Annotated[Params, "exact"]  # mean of the parameters, like params; a copy of them before the first step


@factory
def power_ema(gamma: Scalar = 6.94) -> GradientTransformation:
    """Keep the average of the parameters that weighs step s by `s^gamma`; the updates pass through unchanged.

    It remembers the same share of the run however long that becomes: a tenth of it with 6.94, a twentieth with 16.97.
    Of two averages kept along the way any other can be fitted afterwards. Put it last in a chain.

    Maths:
        p' = p + update
        ema <- b ema + (1 - b) p',  b = (1 - 1/t)^(gamma + 1)

    Args:
        gamma: Power, no unit, >= 0; 0 is the equal mean of all steps.

    Shapes:
        params: needed.
        state: count () int64; ema like params, float32 for float16 and bfloat16. Memory: 1 x params.
        A leaf without update counts with its parameter as it is.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Karras et al., 2023, arXiv:2312.02696, equations 123 and 127.

    Example:
        >>> import torch, optimfn as of
        >>> step = of.make_step(tx := of.chain(of.sgd(1.0), of.power_ema(1.0)))
        >>> params = torch.tensor([4.0])
        >>> params, state = step(params, tx.init(params), torch.tensor([1.0]))
        >>> params, state = step(params, state, torch.tensor([1.0]))
        >>> params, of.eval_params(tx, state, params)
        (tensor([2.]), tensor([2.2500]))
    """
    check_nonnegative(gamma=gamma)

    def init(params: Params) -> PowerEmaState:
        return PowerEmaState(tree.count(params), tree.map(lambda p: tree.init_moment(p) + p.detach(), params))

    def update(
        updates: Updates, state: PowerEmaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PowerEmaState]:
        need_params("power_ema", params)
        count = state.count + 1
        # 1 - b without cancellation; at the first step the logarithm of 0 is not asked for, nor its derivative.
        log = torch.log1p(-1 / tree.wide(torch.clamp(count, min=2)))
        weight = torch.where(count == 1, 1.0, -torch.expm1((gamma + 1) * log))
        mean = tree.lerp(state.ema, apply_updates(params, updates), weight)
        return updates, PowerEmaState(count, tree.carry(mean, state.ema))

    def eval_params(state: PowerEmaState, params: Params) -> Params:
        return kept_beside(params, state.ema)

    return GradientTransformation(
        init, update, leafwise=True, elementwise=True, takes_assigned=True, eval_params=eval_params, place=Place.LAST
    )
