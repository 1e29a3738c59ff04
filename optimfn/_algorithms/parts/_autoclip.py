"""AutoClip: clipping at a percentile of the norms seen so far."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_number, check_steps
from ..._order import Place
from ..._recipe import factory
from ..._typing import Count, Params, Updates


class AutoClipState(NamedTuple):
    """The norms of the last gradients."""

    count: Count  # () int64, steps taken
    norms: Tensor  # (window,) float64, the last norms, in a ring; infinite where there is none yet


@factory
def autoclip(percentile: float = 10.0, window: int = 1000) -> GradientTransformation:
    """Shrink all updates together so that their global norm is at most a percentile of the last norms.

    The percentile clipping of bitsandbytes is `autoclip(5.0, 100)`.

    Maths:
        c = the percentile of the last `window` norms, this one among them, linear between two of them
        update <- g min(1, c / |g|)

    Args:
        percentile: Which, in [0, 100]; of 10, nine steps in ten are clipped. A Python number.
        window: How many norms are remembered, >= 1.

    Shapes:
        state: count () int64; norms (window,) float64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code, which remembers all norms, and adds 1e-6 to the norm it divides by.

    Source: Seetharaman et al., 2020, arXiv:2007.14469.

    Example:
        >>> import torch, optimfn as of
        >>> tx, state = of.autoclip(50.0), of.autoclip().init(torch.ones(1))
        >>> for norm in (1.0, 2.0, 6.0):
        ...     clipped, state = tx.update(torch.tensor([norm]), state)
        >>> clipped
        tensor([2.])
    """
    check_number(percentile=percentile)
    if not (isinstance(percentile, float | int) and 0 <= percentile <= 100):
        raise ValueError(f"percentile must be a Python number in [0, 100], got {percentile!r}")
    check_steps(window=window, at_least=1)

    def init(params: Params) -> AutoClipState:
        return AutoClipState(tree.count(params), tree.wide(tree.count(params)).expand(window) + math.inf)

    def update(
        updates: Updates, state: AutoClipState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AutoClipState]:
        norm = tree.norm(updates, wide=True)
        slots = torch.arange(window, device=state.norms.device)
        norms = torch.where(slots == state.count % window, norm, state.norms)
        ranked = torch.sort(norms).values
        place = tree.wide(torch.clamp(state.count, max=window - 1)) * (percentile / 100)
        low = torch.floor(place)
        # Sums over one place each: what is not there yet is infinite, and times 0 it would be NaN.
        at = [torch.where(slots == torch.clamp(low + i, max=window - 1), ranked, 0.0).sum() for i in (0, 1)]
        between = torch.where(place > low, at[1], at[0]) - at[0]
        level = at[0] + (place - low) * between
        return tree.shrink(updates, norm, level), AutoClipState(state.count + 1, norms)

    return GradientTransformation(init, update, elementwise=True, place=Place.FRONT)
