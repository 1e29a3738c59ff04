"""A line search: a step at which the loss has fallen enough and its slope has flattened enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Real: TypeAlias = Any
"""A Python number or a 0-dim tensor, on the CPU so that a comparison waits for no device."""


class Trial(NamedTuple):
    """A point on the line, and what is known there."""

    t: Real  # step from the origin, where it is 0
    f: Real  # value
    slope: Real  # derivative of the value by `t`; as a tensor it may be divided by zero
    payload: Any = None  # what else the caller wants to know of the point that is chosen


def strong_wolfe(
    phi: Callable[[Real], Trial],
    origin: Trial,
    t: Real,
    reach: Real = 1.0,
    tolerance_change: float = 1e-9,
    max_steps: int = 25,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> tuple[Trial, int]:
    """Find a step that satisfies the strong Wolfe conditions, or the best one seen.

    Maths:
        f(t) <= f(0) + c1 t f'(0)  and  |f'(t)| <= c2 |f'(0)|

    Args:
        phi: Evaluates the function at a step.
        origin: The function at step 0; its slope must be negative.
        t: The first step to try, > 0.
        reach: Largest change of a parameter per unit of step.
        tolerance_change: The search ends where all of a bracket is within so much of a parameter.
        max_steps: Evaluations at most, the first one not counted.
        c1: Part of the promised decrease to insist on, no unit, in (0, c2).
        c2: Part of the slope that may be left, no unit, in (c1, 1).

    Returns:
        The point, and how often `phi` was evaluated.

    Source: Nocedal and Wright, Numerical Optimization, 2006, algorithms 3.5 (`bracket`) and 3.6 (`zoom`) with
        equation 3.59 (`_interpolate`); safeguards and order of evaluations are those of torch.optim.LBFGS.

    Example:
        >>> best, evaluations = strong_wolfe(lambda t: Trial(t, (t - 3) ** 2, 2 * (t - 3)), Trial(0, 9, -6), 0.1)
        >>> best.t, evaluations
        (1.0, 2)
    """
    search = _Search(phi, origin, reach, tolerance_change, max_steps, c1, c2)
    ends, steps = search.bracket(t)
    best, steps = (ends[0], steps) if len(ends) == 1 else search.zoom(ends, steps)
    return best, steps + 1


@dataclass(frozen=True)
class _Search:
    phi: Callable[[Real], Trial]
    origin: Trial
    reach: Real
    tolerance_change: float
    max_steps: int
    c1: float
    c2: float

    def has_not_fallen(self, new: Trial) -> bool:
        return bool(new.f > self.origin.f + self.c1 * new.t * self.origin.slope)

    def is_flat(self, new: Trial) -> bool:
        return bool(abs(new.slope) <= -self.c2 * self.origin.slope)

    def bracket(self, t: Real) -> tuple[list[Trial], int]:
        """Go out until a step is good, which is returned alone, or a good one lies between the last two."""
        last, new = self.origin, self.phi(t)
        for steps in range(self.max_steps):
            if self.has_not_fallen(new) or (steps > 1 and new.f >= last.f):
                return [last, new], steps
            if self.is_flat(new):
                return [new], steps
            if new.slope >= 0:
                return [last, new], steps
            t = _interpolate(last, new, new.t + 0.01 * (new.t - last.t), new.t * 10)
            last, new = new, self.phi(t)
        return [self.origin, new], max(self.max_steps, 0)

    def zoom(self, ends: list[Trial], steps: int) -> tuple[Trial, int]:
        """Shrink a bracket around a good step until a trial is good; else the lower end is the answer."""
        low, near_an_end = _lower(ends), False
        while steps < self.max_steps and not abs(ends[1].t - ends[0].t) * self.reach < self.tolerance_change:
            left, right = min(end.t for end in ends), max(end.t for end in ends)
            t, near_an_end = _inward(_interpolate(ends[0], ends[1], left, right), left, right, near_an_end)
            new, steps = self.phi(t), steps + 1
            if self.has_not_fallen(new) or new.f >= ends[low].f:
                ends[1 - low] = new
                low = _lower(ends)
                continue
            if self.is_flat(new):
                return new, steps
            if new.slope * (ends[1 - low].t - ends[low].t) >= 0:
                ends[1 - low] = ends[low]
            ends[low] = new
        return ends[low], steps


def _lower(ends: list[Trial]) -> int:
    return 0 if ends[0].f <= ends[1].f else 1


def _inward(t: Real, left: Real, right: Real, near_an_end: bool) -> tuple[Real, bool]:
    """Move a trial off an end of the bracket, if it lies there or is the second in a row to come close."""
    margin = 0.1 * (right - left)
    if not min(right - t, t - left) < margin:
        return t, False
    if near_an_end or t >= right or t <= left:
        return (right - margin if abs(t - right) < abs(t - left) else left + margin), False
    return t, True


def _interpolate(a: Trial, b: Trial, low: Real, high: Real) -> Real:
    """The minimiser of the cubic through two values and slopes, held between two bounds."""
    d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
    d2_squared = d1 * d1 - a.slope * b.slope
    if not d2_squared >= 0:
        return (low + high) / 2.0
    d2 = d2_squared**0.5
    left, right = (a, b) if a.t <= b.t else (b, a)
    t = right.t - (right.t - left.t) * ((right.slope + d2 - d1) / (right.slope - left.slope + 2 * d2))
    return min(max(t, low), high)
