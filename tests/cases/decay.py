"""Cases of the kinds of weight decay."""

from case import Case
from oracles.blocks import Each, leafwise

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, RATE, has_two_axes, linear

BAD_PEAK = ({"peak": 0.0}, ValueError, "peak must be a number > 0, got 0.0")
ROWS = of.tree.mask_by(has_two_axes)


@of.factory
def after_sgd(kind, weight_decay, learning_rate, mask=None):
    """A decay of what a step makes of the parameters, behind the step."""
    return of.chain(of.sgd(learning_rate), kind(weight_decay, learning_rate, mask))


def last(rate, decay):
    """What is left of a parameter after a step, less a share of it."""
    return lambda g, p, t: (p - rate(t) * g) * (1 - rate(t) * decay) - p


def proximal(rate, decay):
    """The point that minimises the distance to the step and the decay together."""
    return lambda g, p, t: (p - rate(t) * g) / (1 + rate(t) * decay) - p


class TowardStart:
    """A pull to the first parameters seen."""

    def __init__(self, decay):
        self.decay, self.start = decay, None

    def __call__(self, g, p, t):
        self.start = p if self.start is None else self.start
        return g + self.decay * (p - self.start)


CASES = (
    Case(
        "decay_after_step",
        after_sgd,
        {"kind": of.decay_after_step, "weight_decay": 0.5, "learning_rate": 0.1},
        oracle=leafwise(lambda _: Each(last(lambda t: 0.1, 0.5))),
        live=("weight_decay", "learning_rate"),
        covers=("decay_after_step",),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "decay_after_step_scheduled",
        after_sgd,
        {"kind": of.decay_after_step, "weight_decay": 0.5, "learning_rate": RATE, "mask": ROWS},
        oracle=leafwise(
            lambda name: Each(last(lambda t: linear(t - 1), 0.5 if name == "a" else 0.0)),
        ),
        needs_params=True,
        bad=(BAD_DECAY,),
    ),
    Case(
        "decay_proximally",
        after_sgd,
        {"kind": of.decay_proximally, "weight_decay": 0.5, "learning_rate": 0.1},
        oracle=leafwise(lambda _: Each(proximal(lambda t: 0.1, 0.5))),
        live=("weight_decay", "learning_rate"),
        covers=("decay_proximally",),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "add_corrected_decayed_weights",
        of.add_corrected_decayed_weights,
        {"weight_decay": 0.01, "learning_rate": RATE, "peak": 0.1},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g + 0.01 * linear(t - 1) / 0.1 * p)),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY, BAD_PEAK),
    ),
    Case(
        "add_corrected_decayed_weights_driven",
        of.add_corrected_decayed_weights,
        {"weight_decay": 0.01, "learning_rate": 0.05, "peak": 0.1, "mask": ROWS},
        oracle=leafwise(lambda name: Each(lambda g, p, t: g + (0.005 * p if name == "a" else 0.0))),
        live=("learning_rate",),
        needs_params=True,
        bad=(BAD_PEAK,),
    ),
    Case(
        "add_independent_decayed_weights",
        of.add_independent_decayed_weights,
        {"weight_decay": 0.001, "peak": 0.1},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g + 0.01 * p)),
        live=("weight_decay", "peak"),
        needs_params=True,
        bad=(BAD_DECAY, BAD_PEAK),
    ),
    Case(
        "add_decay_toward_start",
        of.add_decay_toward_start,
        {"weight_decay": 0.01},
        oracle=leafwise(lambda _: TowardStart(0.01)),
        live=("weight_decay",),
        needs_params=True,
        bad=(BAD_DECAY,),
    ),
    Case(
        "add_decay_toward_start_masked",
        of.add_decay_toward_start,
        {"weight_decay": 0.01, "mask": ROWS},
        oracle=leafwise(lambda name: TowardStart(0.01 if name == "a" else 0.0)),
        needs_params=True,
        bad=(BAD_DECAY,),
    ),
)
