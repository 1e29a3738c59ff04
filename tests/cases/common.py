"""What the cases of several families share: reasons for exemptions, bad arguments, small rules."""

from case import NEGATIVE, NO_DECAY
from oracles.blocks import Each, leafwise
from oracles.optax_rules import noise

import optimfn as of


def has_two_axes(p):
    """A predicate for `mask_by`."""
    return p.ndim == 2


def linear(count):
    """`RATE` in plain Python."""
    return 0.1 * (1 - min(count, 20) / 20)


CLAMP = "clamping is not defined for complex numbers"
RATE = of.linear_schedule(0.1, 0.0, 20)
BAD_RATE = ({"learning_rate": -1.0}, ValueError, f"learning_rate {NEGATIVE}")
BAD_DECAY = ({"weight_decay": -1.0}, ValueError, f"weight_decay {NEGATIVE}")
GLOBAL = "the norm is that of all leaves together"


def negative(*names):
    """One bad argument for each name: -1."""
    return tuple(({name: -1.0}, ValueError, f"{name} {NEGATIVE}") for name in names)


def no_decay(*names):
    """One bad argument for each name: a decay of 1."""
    return tuple(({name: 1.0}, ValueError, f"{name} {NO_DECAY}") for name in names)


def matrices_in_rows(name):
    """`MATRICES` by the names of the plain parameters: `b` is a vector."""
    return name != "b"


class Times:
    """A rule of an oracle, times a schedule."""

    def __init__(self, rule, schedule):
        self.rule, self.schedule = rule, schedule

    def __call__(self, g, p, t):
        return self.schedule(t - 1) * self.rule(g, p, t)


def noisy(rule):
    """An oracle for a rule of gradient, step and the noise of the leaf."""
    return leafwise(lambda name: Each(lambda g, p, t: rule(g, t, noise(3, t, name, g.shape))))
