"""Cases of reactions to a metric, of averages of the parameters, and of measuring."""

import torch
from case import NEGATIVE, NO_DECAY, Case
from oracles.blocks import Each, leafwise

import optimfn as of

from .common import BAD_RATE

TAKES_METRIC = "a copy does not have the metric that the case gives to every update; see test_plateau.py"
AVERAGES_ALL = "a parameter without gradient still counts in the average; see test_averaging.py"


def absolute_sum(updates):
    """A measure for `monitor`."""
    return of.tree.norm(updates, ord=1)


@of.factory
def watched(learning_rate):
    """SGD between measuring devices."""
    return of.chain(
        of.snapshot("size", of.tree.norm),
        of.monitor({"sum": absolute_sum, "mean": of.measure_with_ema(absolute_sum, 0.9)}),
        of.sgd(learning_rate),
    )


CASES = (
    Case(
        "plateau",
        of.plateau,
        {"factor": 0.8, "patience": 0, "min_scale": 0.01},
        extra={"value": 1.0},
        oracle=leafwise(lambda _: Each(lambda g, p, t: max(0.8 ** (t - 1), 0.01) * g)),
        live=("factor", "min_scale"),
        skips={"recorded": TAKES_METRIC},
        bad=(
            ({"factor": 1.0}, ValueError, f"factor {NO_DECAY}"),
            ({"min_scale": 1.5}, ValueError, r"min_scale must be in \[0, 1\], got 1.5"),
            ({"threshold": -1.0}, ValueError, f"threshold {NEGATIVE}"),
            ({"patience": -1}, ValueError, "patience must be >= 0, got -1"),
            ({"cooldown": 1.5}, TypeError, "cooldown must be a whole number of steps, got 1.5"),
            ({"mode": "low"}, ValueError, "mode must be one of 'min', 'max', got 'low'"),
            ({"threshold_mode": "sum"}, ValueError, "threshold_mode must be one of 'rel', 'abs', 'torch', got 'sum'"),
        ),
    ),
    Case(
        "plateau_with_cooldown",
        of.plateau,
        {"mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.1, "threshold_mode": "abs", "cooldown": 2},
        extra={"value": torch.tensor(1.0)},
        # Of the steps 1, 2, ... the first is the best; 3 is the second bad one, 4 and 5 do not count, 7 is next.
        oracle=leafwise(lambda _: Each(lambda g, p, t: 0.5 ** ((t + 1) // 4) * g)),
        live=("factor", "threshold"),
        skips={"recorded": TAKES_METRIC, "meta": "the metric of this case has a value"},
    ),
    Case(
        "params_ema",
        of.params_ema,
        {"decay": 0.9},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        live=("decay",),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
        bad=(({"decay": 1.0}, ValueError, f"decay {NO_DECAY}"),),
    ),
    Case(
        "params_ema_debiased",
        of.params_ema,
        {"decay": 0.9, "debias": True},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        live=("decay",),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
    ),
    Case(
        "power_ema",
        of.power_ema,
        {"gamma": 6.94},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        live=("gamma",),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
        bad=(({"gamma": -1.0}, ValueError, f"gamma {NEGATIVE}"),),
    ),
    Case(
        "params_swa",
        of.params_swa,
        {"start": 2, "every": 3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
        bad=(
            ({"start": -1}, ValueError, "start must be >= 0, got -1"),
            ({"every": 0}, ValueError, "every must be >= 1, got 0"),
        ),
    ),
    Case(
        "monitor",
        watched,
        {"learning_rate": 0.1},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -0.1 * g)),
        live=("learning_rate",),
        covers=("snapshot", "monitor", "measure_with_ema"),
        bad=(BAD_RATE,),
    ),
)
