"""Cases of the rules that see matrices in a few directions."""

from case import Case
from oracles.adam import Adam
from oracles.blocks import leafwise
from oracles.lion import Lion
from oracles.low_rank import DecayedLast, LowRank, RawAdam
from oracles.momentum import Trace

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, negative, no_decay

BAD_SIDE = ({"side": "up"}, ValueError, "side must be one of 'short', 'long', 'left', 'right', got 'up'")
BAD_GAPS = (
    ({"rank": 0}, ValueError, "rank must be >= 1, got 0"),
    ({"update_proj_gap": 0}, ValueError, "update_proj_gap must be >= 1, got 0"),
)


def kernels(params):
    """Dimension numbers of leaves of three axes, which alone are matrices then."""
    numbers = of.MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=0)
    return of.tree.map(lambda p: numbers if p.ndim == 3 else None, params)


@of.factory
def projected_lion(scale, rank=2, period=7, side="short", by="svd"):
    """Another rule than Adam."""
    return of.project(of.scale_by_lion(0.9, 0.99), rank, period, side, by, scale)


@of.factory
def fira_of_sgd(alpha, growth=None):
    """A rule without eps, and no limit."""
    return of.scale_by_fira(of.trace(0.9), 2, 6, alpha, growth=growth)


@of.factory
def apollo_of_leading(scale, per, rank=2, update_proj_gap=6, by="svd"):
    """APOLLO on leading directions rather than on random ones, which no oracle knows."""
    return of.scale_by_apollo(of.scale_by_adam(), rank, update_proj_gap, scale, by=by, per=per)


class GaLoreOfSGD:
    """Decoupled decay, and a rate."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, g, p, t):
        return -0.1 * (self.rule(g, p, t) + 0.1 * p)


CHOSEN = "derivatives take the directions as given; tested by hand"
SIGN = "the sign has a jump, and its derivative is zero elsewhere"
CASES = (
    Case(
        "project",
        projected_lion,
        {"scale": 0.25},
        oracle=leafwise(lambda _: LowRank(Lion(), 2, 7, scale=0.25)),
        live=("scale",),
        layouts=1e-12,  # products of matrices take their sums in another order
        covers=("project",),
        skips={"differentiable": SIGN, "sensitive": SIGN},
        bad=(
            ({"rank": 0}, ValueError, "rank must be >= 1, got 0"),
            ({"period": 0}, ValueError, "period must be >= 1, got 0"),
            ({"by": "qr"}, ValueError, "by must be one of 'svd', 'gaussian', got 'qr'"),
            BAD_SIDE,
        ),
    ),
    Case(
        "project_rows",
        projected_lion,
        {"scale": 0.25, "side": "left", "rank": 1},
        oracle=leafwise(lambda _: LowRank(Lion(), 1, 7, "left", scale=0.25)),
        live=("scale",),
        layouts=1e-12,  # products of matrices take their sums in another order
        skips={"differentiable": SIGN, "sensitive": SIGN},
    ),
    Case(
        "scale_by_galore",
        of.scale_by_galore,
        {"rank": 2, "update_proj_gap": 8, "scale": 0.5},
        oracle=leafwise(lambda _: LowRank(Adam(), 2, 8, "long", scale=0.5)),
        live=("scale",),
        layouts=1e-12,  # products of matrices take their sums in another order
        skips={"differentiable": CHOSEN},
        bad=BAD_GAPS,
    ),
    Case(
        "galore",
        of.galore,
        {
            "learning_rate": 0.1,
            "rank": 1,
            "update_proj_gap": 20,
            "base_optimizer": of.identity(),
            "weight_decay": 0.1,
            "weight_dimension_numbers": kernels,
        },
        oracle=leafwise(lambda _: GaLoreOfSGD(LowRank(lambda g, p, t: g, 1, 20, "long", layout=((0,), (1, 2))))),
        live=("learning_rate", "weight_decay"),
        layouts=1e-12,  # products of matrices take their sums in another order
        needs_params=True,
        skips={"differentiable": CHOSEN},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "galore_adamw",
        of.galore_adamw,
        {"learning_rate": 0.01, "rank": 2, "update_proj_gap": 9, "weight_decay": 0.1},
        oracle=leafwise(lambda _: DecayedLast(LowRank(RawAdam(), 2, 9, scale=0.25), 0.01, 0.1)),
        live=("learning_rate", "weight_decay"),
        layouts=1e-12,  # products of matrices take their sums in another order
        needs_params=True,
        skips={"differentiable": CHOSEN},
        bad=(BAD_RATE, BAD_DECAY, BAD_SIDE, *no_decay("b1", "b2"), *negative("eps")),
    ),
    Case(
        "scale_by_fira",
        fira_of_sgd,
        {"alpha": 0.5},
        oracle=leafwise(lambda _: LowRank(Trace(0.9), 2, 6, scale=0.5, kind="fira", growth=None)),
        live=("alpha",),
        layouts=1e-12,  # products of matrices take their sums in another order
        covers=("scale_by_fira",),
        skips={"differentiable": CHOSEN},
        bad=negative("alpha"),
    ),
    Case(
        "fira",
        of.fira,
        {"learning_rate": 0.01, "rank": 2, "update_proj_gap": 9, "weight_decay": 0.1},
        oracle=leafwise(lambda _: DecayedLast(LowRank(RawAdam(), 2, 9, kind="fira"), 0.01, 0.1)),
        live=("learning_rate", "weight_decay"),
        layouts=1e-12,  # products of matrices take their sums in another order
        needs_params=True,
        skips={"differentiable": CHOSEN},
        bad=(BAD_RATE, BAD_DECAY, BAD_SIDE, *no_decay("b1", "b2"), *negative("eps", "alpha")),
    ),
    Case(
        "scale_by_apollo",
        apollo_of_leading,
        {"scale": 4.0, "per": "tensor"},
        oracle=leafwise(lambda _: LowRank(Adam(), 2, 6, scale=4.0, kind="apollo", per="tensor")),
        live=("scale",),
        layouts=1e-12,  # products of matrices take their sums in another order
        covers=("scale_by_apollo",),
        skips={"differentiable": CHOSEN},
        bad=(({"scale": 0.0}, ValueError, "scale must be a number > 0, got 0.0"),),
    ),
    Case(
        "apollo",
        of.apollo,
        {"learning_rate": 0.01, "rank": 2, "update_proj_gap": 9, "by": "svd", "weight_decay": 0.1},
        oracle=leafwise(lambda _: DecayedLast(LowRank(RawAdam(), 2, 9, kind="apollo"), 0.01, 0.1)),
        live=("learning_rate", "weight_decay"),
        layouts=1e-12,  # products of matrices take their sums in another order
        needs_params=True,
        skips={"differentiable": CHOSEN},
        bad=(BAD_RATE, BAD_DECAY, BAD_SIDE, ({"per": "row"}, ValueError, "per must be one of 'channel', 'tensor'")),
    ),
    Case(
        "apollo_of_random_directions",
        of.apollo,
        {"learning_rate": 0.01, "rank": 1, "update_proj_gap": 9, "per": "tensor", "scale": 128.0},
        live=("learning_rate", "scale"),
        layouts=1e-12,  # products of matrices take their sums in another order
        needs_params=True,
        skips={"differentiable": CHOSEN},
        bad=(BAD_RATE,),
    ),
)
