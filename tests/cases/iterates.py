"""Cases of wrappers that keep an iterate beside the parameters."""

from case import Case
from oracles.adam import Adam
from oracles.blocks import leafwise
from oracles.iterates import PrimalAveraging, Rectified, ScheduleFree

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, negative, no_decay


@of.factory
def averaged_adamw(learning_rate, mu_y=0.7, mu_x=0.9, weight_decay=0.1, decay_at="y"):
    """GPA-AdamW."""
    return of.gpa(of.adamw(learning_rate, weight_decay=weight_decay), mu_y, mu_x, decay_at=decay_at)


def free_radam(rate, beta2, decay, silent):
    """Schedule-free RAdam of one leaf."""
    rule = Rectified(rate, beta2, decay=decay, silent=silent)
    return ScheduleFree(rule, rule.rate)


CASES = (
    Case(
        "gpa",
        averaged_adamw,
        {"learning_rate": 1e-2, "mu_y": 0.7, "mu_x": 0.9, "weight_decay": 0.1},
        oracle=leafwise(lambda _: PrimalAveraging(Adam(1e-2, weight_decay=0.1), 0.7, 0.9)),
        live=("learning_rate", "mu_y", "mu_x", "weight_decay"),
        covers=("gpa",),
        needs_params=True,
        bad=(
            ({"mu_y": 0.0}, ValueError, "mu_y must be a number > 0, got 0.0"),
            ({"mu_x": 1.5}, ValueError, r"mu_x must be in \[0, 1\], got 1.5"),
            ({"decay_at": "x"}, ValueError, "decay_at must be one of 'y', 'z', got 'x'"),
        ),
    ),
    Case(
        "gpa_at_z",
        averaged_adamw,
        {"learning_rate": 1e-2, "mu_y": 0.5, "mu_x": 0.8, "decay_at": "z"},
        oracle=leafwise(lambda _: PrimalAveraging(Adam(1e-2, weight_decay=0.1), 0.5, 0.8, at_z=True)),
        live=("mu_x",),
        needs_params=True,
    ),
    Case(
        "schedule_free_radam",
        of.schedule_free_radam,
        {"learning_rate": 0.05, "b2": 0.99, "weight_decay": 0.1},
        oracle=leafwise(lambda _: free_radam(0.05, 0.99, 0.1, True)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        skips={"sensitive": "the first steps move nothing"},
        bad=(BAD_RATE, BAD_DECAY, *no_decay("b2"), *negative("eps")),
    ),
    Case(
        "schedule_free_radam_aloud",
        of.schedule_free_radam,
        {"learning_rate": 0.05, "b2": 0.9, "weight_decay": 0.1, "silent_sgd_phase": False},
        oracle=leafwise(lambda _: free_radam(0.05, 0.9, 0.1, False)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
    ),
)
