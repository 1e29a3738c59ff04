"""Averages of the parameters, kept beside the training."""

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._checks import check_decay, check_steps, need_params
from .._evaluation import kept_beside
from .._order import Place
from .._recipe import factory
from .._typing import Count, Params, Scalar, Updates


class ParamsEmaState(NamedTuple):
    """A running mean of the parameters."""

    count: Count  # () int64, steps taken
    ema: Annotated[Params, "exact"]  # running mean of the parameters, like params; a copy of them before the first step


class ParamsSwaState(NamedTuple):
    """An equal mean of the parameters."""

    count: Count  # () int64, steps taken
    n_averaged: Tensor  # () int64, values in the mean
    average: Params  # their mean, like params; a copy of the parameters as long as there are none


@factory
def params_ema(decay: Scalar, debias: bool = False) -> GradientTransformation:
    """Keep the exponential moving average of the parameters; the updates pass through unchanged.

    It must come last in a chain, since it adds the updates it sees to the parameters. Read the average with
    `tree.get(state, "ema")`. For a running mean of the updates, use `ema`.

    Maths:
        p' = p + update
        w = 1 - decay, but 1 at the first step
        w = (1 - decay) / (1 - decay^t)    with `debias`
        ema <- ema + w (p' - ema)

    Args:
        decay: Weight of the mean so far, no unit, in [0, 1).
        debias: Weigh the parameters after step s by `decay^(t-s)`, also those after the first, which
            otherwise stand for all that came before and so weigh 1 / (1 - decay) times as much.

    Shapes:
        params: needed.
        state: count () int64; ema like params, float32 for float16 and bfloat16. Memory: 1 x params.
        A leaf without update counts with its parameter as it is.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: torch.optim.swa_utils.AveragedModel with `get_ema_multi_avg_fn`, which keeps low-precision
        averages in low precision, and is called by hand.

    Source: Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017, arXiv:1703.01780 (exponential weights).

    Example:
        >>> import torch, optimfn as of
        >>> step = of.make_step(tx := of.chain(of.sgd(1.0), of.params_ema(0.5)))
        >>> params = torch.tensor([4.0])
        >>> params, state = step(params, tx.init(params), torch.tensor([1.0]))
        >>> params, state = step(params, state, torch.tensor([1.0]))
        >>> params, of.tree.get(state, "ema")
        (tensor([2.]), tensor([2.5000]))
    """
    check_decay(decay=decay)

    def init(params: Params) -> ParamsEmaState:
        return ParamsEmaState(tree.count(params), _copy(params))

    def update(
        updates: Updates, state: ParamsEmaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ParamsEmaState]:
        need_params("params_ema", params)
        count = state.count + 1
        weight = tree.wide(count) * 0 + (1 - decay)
        if debias:
            weight = tree.bias_correction(weight, decay, count)
        else:
            weight = torch.where(count == 1, torch.ones_like(weight), weight)
        mean = tree.lerp(state.ema, apply_updates(params, updates), weight)
        return updates, ParamsEmaState(count, tree.carry(mean, state.ema))

    def eval_params(state: ParamsEmaState, params: Params) -> Params:
        return kept_beside(params, state.ema)

    return GradientTransformation(
        init, update, leafwise=True, elementwise=True, takes_assigned=True, eval_params=eval_params, place=Place.LAST
    )


@factory
def params_swa(start: int = 0, every: int = 1) -> GradientTransformation:
    """Keep the equal average of the parameters along the way; the updates pass through unchanged.

    It must come last in a chain, since it adds the updates it sees to the parameters. Read the average with
    `tree.get(state, "average")`. `swa_lr` is a schedule to go with it.

    Maths:
        p' = p + update
        at the steps start, start + every, ..., counted from 0:
        average <- average + (p' - average) / (n + 1),  n <- n + 1

    Args:
        start: First step whose result is averaged, >= 0.
        every: Steps between two values of the average, >= 1.

    Shapes:
        params: needed.
        state: count, n_averaged () int64; average like params, float32 for float16 and bfloat16.
            Memory: 1 x params.
        A leaf without update counts with its parameter as it is.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: torch.optim.swa_utils.AveragedModel, which keeps low-precision averages in low precision, is
        called by hand, and leaves it to the caller which steps count. Statistics of batch normalisation are
        no parameters; `optimfn.optim.swa_utils.update_bn` computes them anew.

    Source: Izmailov et al., 2018, arXiv:1803.05407, algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> step = of.make_step(tx := of.chain(of.sgd(1.0), of.params_swa(start=1)))
        >>> params, state = torch.tensor([4.0]), tx.init(torch.tensor([4.0]))
        >>> for _ in range(3):
        ...     params, state = step(params, state, torch.tensor([1.0]))
        >>> params, of.tree.get(state, "average")
        (tensor([1.]), tensor([1.5000]))
    """
    check_steps(start=start)
    check_steps(every=every, at_least=1)

    def init(params: Params) -> ParamsSwaState:
        return ParamsSwaState(tree.count(params), tree.count(params), _copy(params))

    def update(
        updates: Updates, state: ParamsSwaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ParamsSwaState]:
        need_params("params_swa", params)
        counts = (state.count >= start) & ((state.count - start) % every == 0)
        n_averaged = state.n_averaged + counts
        weight = tree.wide(counts) / torch.clamp(n_averaged, min=1)
        mean = tree.lerp(state.average, apply_updates(params, updates), weight)
        return updates, ParamsSwaState(state.count + 1, n_averaged, tree.carry(mean, state.average))

    def eval_params(state: ParamsSwaState, params: Params) -> Params:
        return tree.where(state.n_averaged > 0, kept_beside(params, state.average), params)

    return GradientTransformation(
        init, update, elementwise=True, takes_assigned=True, eval_params=eval_params, place=Place.LAST
    )


def _copy(params: Params) -> Params:
    return tree.map(lambda p: tree.init_moment(p) + p.detach(), params)  # leaf by leaf: zeros for all are a tree more
