"""Factories of a module whose annotations are strings."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import optimfn as of

if TYPE_CHECKING:
    from torch import Tensor


def steps(rate: float, periods: int, name: str = "x", flag: bool = False) -> of.GradientTransformation:
    """A rule with a whole number, a string and a bool, none of which is live."""
    assert (type(periods), type(name), type(flag)) == (int, str, bool)
    return of.chain(*[of.scale(rate)] * periods)


def unknown(
    rate: Tensor | None, momentum: Annotated[float, "no unit"] = 0.5, anything: Any = 1
) -> of.GradientTransformation:
    """Annotations that only a type checker can read, that carry a comment, or say nothing."""
    return of.chain(of.trace(momentum), of.scale(rate), of.scale(anything))


class Maker:
    """A factory that is an object."""

    def __call__(self, rate: float, periods: int) -> of.GradientTransformation:
        """Make it."""
        return steps(rate, periods)


partial = functools.partial(steps, periods=2)
recorded = of.factory(steps)
