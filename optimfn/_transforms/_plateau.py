"""React to a metric that has stopped improving."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._checks import check_choice, check_decay, check_fraction, check_nonnegative, check_steps, plain
from .._recipe import Recorded, factory
from .._typing import Params, Scalar, Updates


class DetectPlateauState(NamedTuple):
    """What a `PlateauDetector` has seen."""

    best: Tensor  # () float64, best metric so far
    num_bad_steps: Tensor  # () int64, metrics since then
    cooldown_count: Tensor  # () int64, metrics until counting begins again


class PlateauState(NamedTuple):
    """The scale, and what `plateau` has seen."""

    scale: Tensor  # () float64, factor on the updates
    best: Tensor  # () float64, best metric so far
    num_bad_steps: Tensor  # () int64, metrics since then
    cooldown_count: Tensor  # () int64, metrics until counting begins again


@dataclass(frozen=True, eq=False, repr=False)
class PlateauDetector(Recorded):
    """An immutable pair of pure functions that watch a metric; `detect_plateau` makes one.

    Args:
        init: `init(params=None) -> state`, on the device of the parameters, if they are given.
        update: `update(metric, state) -> (hit, state)`; `hit` is a 0-dim bool tensor.
        recipe: How it was made.
    """

    init: Callable[..., DetectPlateauState]
    update: Callable[[Scalar, DetectPlateauState], tuple[Tensor, DetectPlateauState]]


@factory
def detect_plateau(
    mode: str = "min",
    patience: int = 10,
    threshold: Scalar = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
) -> PlateauDetector:
    """Tell whether a metric has stopped improving, for whatever is to follow from it.

    Nothing is read back from the device: the answer is a tensor, and reading it is up to the caller.

    Maths:
        better = metric < best - threshold |best|    min, rel     metric < best - threshold   min, abs
                 metric > best + threshold |best|    max, rel     metric > best + threshold   max, abs
                 metric < best (1 - threshold)       min, torch   metric > best (1 + threshold)   max, torch
        best <- metric if better
        bad <- 0 if better or in cooldown, else bad + 1
        cooldown <- max(cooldown - 1, 0)
        hit = bad > patience;  then bad <- 0 and cooldown <- its argument

    Args:
        mode: `"min"` if a small metric is good, `"max"` if a large one is.
        patience: Metrics without improvement that are not a plateau yet, >= 0.
        threshold: Improvement that counts, >= 0: a fraction of the best metric, or in the unit of the metric.
        threshold_mode: `"rel"` or `"abs"`; or `"torch"`, torch's `"rel"`, for which a metric somewhat worse than a
            negative best is better.
        cooldown: Metrics after a hit that are not counted, >= 0.

    Shapes:
        state: best () float64; num_bad_steps, cooldown_count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        TypeError, ValueError: in `update`, if the metric is not a number or a 0-dim tensor.

    Differs from: heat.optim.DetectMetricPlateau, whose rule this is, and which answers in Python;
        torch.optim.lr_scheduler.ReduceLROnPlateau, where `"rel"` is what `"torch"` is here.

    Example:
        >>> import optimfn as of
        >>> detector = of.detect_plateau(patience=1)
        >>> state, hits = detector.init(), []
        >>> for loss in (3.0, 2.0, 2.0, 2.0, 2.0):
        ...     hit, state = detector.update(loss, state)
        ...     hits.append(bool(hit))
        >>> hits
        [False, False, False, True, False]
    """
    check_choice("mode", mode, ("min", "max"))
    check_steps(patience=patience, cooldown=cooldown)
    check_nonnegative(threshold=threshold)
    check_choice("threshold_mode", threshold_mode, ("rel", "abs", "torch"))
    sign = 1 if mode == "min" else -1

    def init(params: Params = None) -> DetectPlateauState:
        best = tree.wide(tree.count(params)) + sign * math.inf
        return DetectPlateauState(best, tree.count(params), tree.count(params))

    def update(metric: Scalar, state: DetectPlateauState) -> tuple[Tensor, DetectPlateauState]:
        metric = _scalar_like(state.best, metric)
        if threshold_mode == "torch":
            bar = state.best * (1 - sign * threshold)
        else:
            margin = threshold * (state.best.abs() if threshold_mode == "rel" else 1)
            # At first the best is infinite, and anything is better.
            bar = torch.where(torch.isinf(state.best), state.best, state.best - sign * margin)
        # A comparison with NaN is false, so NaN is no improvement and is never the best.
        better = metric < bar if mode == "min" else metric > bar
        num_bad = torch.where(better | (state.cooldown_count > 0), 0, state.num_bad_steps + 1)
        hit = num_bad > patience
        new = DetectPlateauState(
            torch.where(better, metric, state.best),
            torch.where(hit, 0, num_bad),
            torch.where(hit, cooldown, torch.clamp(state.cooldown_count - 1, min=0)),
        )
        return hit, tree.carry(new, state)

    return PlateauDetector(init, update)


@factory
def plateau(
    mode: str = "min",
    factor: Scalar = 0.1,
    patience: int = 10,
    threshold: Scalar = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_scale: Scalar = 0.0,
) -> GradientTransformation:
    """Multiply the updates by a scale that shrinks whenever a metric has stopped improving.

    Put it behind the learning rate. Every update takes the metric as an extra argument,
    `tx.update(updates, state, params, value=loss)`, and counts it: the patience is in steps. For a patience
    in epochs, call `detect_plateau` once an epoch.

    Maths:
        hit as in `detect_plateau`
        scale <- max(scale factor, min_scale) if hit
        update <- scale g

    Args:
        mode: `"min"` if a small metric is good, `"max"` if a large one is.
        factor: What a plateau multiplies the scale by, no unit, in [0, 1).
        patience: Steps without improvement that are not a plateau yet, >= 0.
        threshold: Improvement that counts, >= 0: a fraction of the best metric, or in the unit of the metric.
        threshold_mode: `"rel"`, `"abs"` or `"torch"`; see `detect_plateau`.
        cooldown: Steps after a plateau that are not counted, >= 0.
        min_scale: Lowest scale, no unit, in [0, 1].

    Shapes:
        state: scale, best () float64; num_bad_steps, cooldown_count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is no `value`.
        TypeError, ValueError: in `update`, if `value` is not a number or a 0-dim tensor.

    Differs from: torch.optim.lr_scheduler.ReduceLROnPlateau, which keeps the learning rate if it would
        change by less than `eps=1e-8`, whose `threshold_mode="rel"` is `"torch"` here, and whose `min_lr` is
        `min_scale` times the learning rate. The metric acts on the update it comes with, as if the scheduler stepped
        before the optimizer.
        optax.contrib.reduce_on_plateau, which shrinks when the count reaches `patience`, not beyond it.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.sgd(1.0), of.plateau(factor=0.5, patience=1))
        >>> state = tx.init(torch.ones(1))
        >>> for loss in (3.0, 3.0, 3.0):
        ...     updates, state = tx.update(torch.ones(1), state, value=loss)
        >>> updates
        tensor([-0.5000])
    """
    check_decay(factor=factor)
    check_fraction(min_scale=min_scale)
    detector = detect_plateau(mode, patience, threshold, threshold_mode, cooldown)

    def init(params: Params) -> PlateauState:
        return PlateauState(tree.wide(tree.count(params)) + 1, *detector.init(params))

    def update(
        updates: Updates, state: PlateauState, params: Params | None = None, *, value: Any = None, **extra: Any
    ) -> tuple[Updates, PlateauState]:
        if value is None:
            raise ValueError("plateau needs a metric: call tx.update(updates, state, params, value=loss)")
        hit, seen = detector.update(value, DetectPlateauState(*state[1:]))
        shrunk = torch.maximum(state.scale * factor, torch.zeros_like(state.scale) + min_scale)
        scale = tree.carry(torch.where(hit, shrunk, state.scale), state.scale)
        return tree.scale(scale, updates), PlateauState(scale, *seen)

    return GradientTransformation(init, update, elementwise=True)


def _scalar_like(like: Tensor, value: Any) -> Tensor:
    """A metric in the dtype and on the device of the state, without its graph; NaN is as good as any."""
    value = plain(value)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"the metric must be a number or a 0-dim tensor, got {value!r}")
        return torch.full_like(like, value)
    if value.ndim:
        raise ValueError(f"the metric must be a number or a 0-dim tensor, got a tensor of shape {tuple(value.shape)}")
    return value.detach().to(like.device, like.dtype)
