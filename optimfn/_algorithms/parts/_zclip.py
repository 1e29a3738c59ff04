"""ZClip: clipping of gradients whose norm is out of the ordinary."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_choice, check_decay, check_nonnegative, check_positive, check_steps
from ..._order import Place
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, Updates


class ZClipState(NamedTuple):
    """What the norm of gradients usually is."""

    count: Count  # () int64, steps taken
    mean: Tensor  # () float64, running mean of the norm
    var: Tensor  # () float64, running variance of the norm


@factory
def zclip(
    alpha: Scalar = 0.97,
    z_thresh: Scalar = 2.5,
    max_grad_norm: Scalar | None = 1.0,
    eps: Scalar = 1e-6,
    warmup_steps: int = 25,
    mode: str = "zscore",
    clip_option: str = "adaptive_scaling",
    clip_factor: Scalar = 1.0,
    skip_update_on_spike: bool = False,
) -> GradientTransformation:
    """Shrink all updates together where their global norm is far above what it usually is.

    Maths:
        z = (|g| - mean) / (sd + eps),  sd = sqrt(var)
        where z > z_thresh:  bound = clip_factor (mean + z_thresh sd z_thresh / z),  or mean with "mean"
        with mode "percentile", where |g| > mean + z_thresh sd:  that
        update <- g min(1, min(bound, max_grad_norm) / |g|)
        n = bound where it binds, else |g|;  mean <- alpha mean + (1 - alpha) n
        var <- alpha var + (1 - alpha) (n - mean)^2
        mean and var are those of the first `warmup_steps` norms, which only `max_grad_norm` clips

    Args:
        alpha: Decay of mean and variance, no unit, in [0, 1).
        z_thresh: From how many standard deviations on, no unit, > 0.
        max_grad_norm: Largest norm whatever is usual, in the unit of the gradient, > 0; `None` means any.
        eps: Added to the standard deviation, in the unit of the gradient, >= 0.
        warmup_steps: Steps that are only watched, >= 1.
        mode: "zscore" or "percentile".
        clip_option: "adaptive_scaling", which clips lower what is further off, or "mean".
        clip_factor: Factor on the bound of "adaptive_scaling", no unit, > 0.
        skip_update_on_spike: Leave mean and variance alone where the bound binds.

    Shapes:
        state: count () int64; mean, var () float64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code, which adds 1e-6 to the norm it divides by.

    Source: Kumar et al., 2025, arXiv:2504.02507, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, state = of.zclip(max_grad_norm=None, warmup_steps=2), of.zclip().init(torch.ones(1))
        >>> for norm in (1.0, 3.0, 9.5):
        ...     clipped, state = tx.update(torch.tensor([norm]), state)
        >>> clipped
        tensor([2.8333])
    """
    check_decay(alpha=alpha)
    check_positive(z_thresh=z_thresh, clip_factor=clip_factor)
    check_positive(**({} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}))
    check_nonnegative(eps=eps)
    check_steps(warmup_steps=warmup_steps, at_least=1)
    check_choice("mode", mode, ("zscore", "percentile"))
    check_choice("clip_option", clip_option, ("adaptive_scaling", "mean"))

    def init(params: Params) -> ZClipState:
        return ZClipState(tree.count(params), *(tree.wide(tree.count(params)) for _ in range(2)))

    def bound(norm: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a norm is out of the ordinary, and what it may be."""
        sd = torch.sqrt(torch.where(var > 0, var, 1.0)) * (var > 0)
        if mode == "percentile":
            return norm > mean + z_thresh * sd, mean + z_thresh * sd
        # In products: without any spread, and with an eps of 0, there is nothing to divide by.
        spike = norm - mean > z_thresh * (sd + eps)
        z = (norm - mean) / torch.where(sd + eps > 0, sd + eps, 1.0)
        lower = clip_factor * (mean + z_thresh * sd * z_thresh / torch.where(spike & (z > 0), z, 1.0))
        return spike, mean if clip_option == "mean" else lower

    def update(
        updates: Updates, state: ZClipState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZClipState]:
        norm, warm = tree.norm(updates, wide=True), state.count < warmup_steps
        spike, limit = bound(norm, state.mean, state.var)
        spike = spike & ~warm
        seen = torch.where(spike, limit, norm)
        clipped = tree.shrink(updates, norm, seen if max_grad_norm is None else torch.clamp(seen, max=max_grad_norm))
        # The first norms make an equal mean, and the variance around it, as they come.
        share = torch.where(warm, 1 / tree.wide(state.count + 1), 1 - alpha)
        stay = (spike & skip_update_on_spike) if skip_update_on_spike else torch.zeros_like(spike)
        mean = torch.where(stay, state.mean, state.mean + share * (seen - state.mean))
        off = torch.where(warm, (seen - state.mean) * (seen - mean), (seen - mean) ** 2)
        var = torch.where(stay, state.var, state.var + share * (off - state.var))
        return clipped, ZClipState(state.count + 1, mean, var)

    return GradientTransformation(init, update, elementwise=True, place=Place.FRONT)
