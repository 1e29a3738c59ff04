"""Cases of the parts that go with any rule."""

import torch
from case import NEGATIVE, Case
from oracles import parts as oracle
from oracles.adam import Adam
from oracles.adam_kin import Adopt
from oracles.blocks import Each, leafwise
from oracles.lion import Lion
from oracles.momentum import Trace
from oracles.rate_free import run

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, CLAMP, GLOBAL, negative, no_decay

SIGN = "the sign has a jump, and its derivative is zero elsewhere"
REAL = "the rule is for real leaves; split_real_and_imaginary makes them"
SPREAD = "keeps a variance of norms, whose last units hang on the order of the sums in them"
FLOOR = ({"floor": 0.0}, ValueError, "floor must be a number > 0, got 0.0")


@of.factory
def cautious_lion(learning_rate, weight_decay, floor=1e-3, scaling="mean"):
    """Lion whose elements do not go uphill."""
    return of.cautious(of.lion(learning_rate, weight_decay=weight_decay), floor, scaling=scaling)


@of.factory
def cautious_adamw(learning_rate, weight_decay):
    """AdamW whose elements do not go uphill."""
    return of.cautious(of.adamw(learning_rate, weight_decay=weight_decay))


@of.factory
def cautious_sgd(learning_rate, momentum):
    """Gradient descent with momentum whose elements do not go uphill, in the first form of the paper."""
    return of.cautious(of.chain(of.trace(momentum), of.scale_by_learning_rate(learning_rate)), scaling="count")


@of.factory
def cautious_adopt(learning_rate):
    """ADOPT whose elements do not go uphill."""
    return of.cautious(of.adopt(learning_rate, b2=0.99))


@of.factory
def carefully_decayed_lion(learning_rate, weight_decay, mask=None):
    """Lion that decays only what its step pulls to zero as well."""
    return of.chain(
        of.scale_by_lion(),
        of.add_cautious_decayed_weights(weight_decay, mask),
        of.scale_by_learning_rate(learning_rate),
    )


@of.factory
def mars_lion(gamma, b1):
    """The MARS-Lion of the paper, before its rate."""
    return of.chain(of.mars(gamma, b1), of.scale_by_lion(b1, b1))


@of.factory
def mars_adamw(learning_rate, weight_decay):
    """The MARS-AdamW of the paper."""
    return of.chain(of.mars(), of.adamw(learning_rate, 0.95, 0.99, weight_decay=weight_decay))


@of.factory
def hyperball_adam(learning_rate, weight_decay=0.0, keep_radius=True):
    """Adam on spheres."""
    return of.hyperball(of.scale_by_adam(), learning_rate, weight_decay, keep_radius=keep_radius)


@of.factory
def adam_grafted_to_lion(b1):
    """Lion's direction, Adam's length."""
    return of.graft(of.scale_by_adam(b1), of.scale_by_lion())


def against(rule):
    """The same for all leaves, with the sign of a direction."""
    return leafwise(lambda _: rule())


CASES = (
    Case(
        "cautious_lion",
        cautious_lion,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=against(lambda: oracle.Cautious(Lion(), rate=1e-2, decay=0.1)),
        live=("learning_rate", "weight_decay"),
        covers=("cautious",),
        needs_params=True,
        skips={"sensitive": SIGN},
        bad=(FLOOR, ({"scaling": "sum"}, ValueError, "scaling must be one of 'mean', 'count', 'none', got 'sum'")),
    ),
    Case(
        "cautious_adamw",
        cautious_adamw,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=against(lambda: oracle.Cautious(Adam(-1.0), rate=1e-2, decay=0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "cautious_sgd",
        cautious_sgd,
        {"learning_rate": 1e-2, "momentum": 0.9},
        oracle=against(lambda: oracle.Cautious(Trace(0.9), scaling="count", rate=1e-2)),
        live=("learning_rate", "momentum"),
    ),
    Case(
        "cautious_adopt",
        cautious_adopt,
        {"learning_rate": 1e-2},
        oracle=against(lambda: oracle.Cautious(Adopt(beta2=0.99), rate=1e-2)),
        live=("learning_rate",),
        skips={"complex": CLAMP},
    ),
    Case(
        "carefully_decayed_lion",
        carefully_decayed_lion,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=against(lambda: oracle.Cautious(Lion(), scaling=None, rate=1e-2, decay=0.1, careful=True)),
        live=("learning_rate", "weight_decay"),
        covers=("add_cautious_decayed_weights",),
        needs_params=True,
        skips={"sensitive": SIGN},
        bad=(BAD_DECAY,),
    ),
    Case(
        "mars",
        of.mars,
        {"gamma": 0.1, "b1": 0.9, "max_norm": 0.5},
        oracle=against(lambda: oracle.Mars(Each(lambda g, p, t: g), 0.1, 0.9, 0.5)),
        live=("gamma", "b1", "max_norm"),
        bad=(
            *negative("gamma"),
            *no_decay("b1"),
            ({"max_norm": 0.0}, ValueError, "max_norm must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "mars_lion",
        mars_lion,
        {"gamma": 0.025, "b1": 0.95},
        oracle=against(lambda: oracle.Mars(Lion(beta1=0.95, beta2=0.95))),
        live=("gamma", "b1"),
        skips={"sensitive": SIGN},
    ),
    Case(
        "mars_adamw",
        mars_adamw,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=against(lambda: oracle.Mars(Adam(1e-2, 0.95, 0.99, weight_decay=0.1))),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "grokfast",
        of.grokfast,
        {"alpha": 0.9, "lamb": 2.0},
        oracle=against(lambda: oracle.Grokfast(0.9, 2.0)),
        live=("alpha", "lamb"),
        bad=(*no_decay("alpha"), *negative("lamb")),
    ),
    Case(
        "orthograd",
        of.orthograd,
        oracle=against(lambda: Each(oracle.orthograd)),
        needs_params=True,
        layouts=1e-13,  # what is left where an element cancels hangs on the order of the sums
        skips={"complex": REAL},
    ),
    Case(
        "limit_norm_growth",
        of.limit_norm_growth,
        {"growth": 1.1, "eps": 1e-3},
        oracle=against(lambda: oracle.NormGrowth(1.1, 1e-3)),
        live=("eps",),
        bad=(({"growth": 0.5}, ValueError, "growth must be a number >= 1, got 0.5"), *negative("eps")),
    ),
    Case(
        "zclip",
        of.zclip,
        {"alpha": 0.9, "z_thresh": 1.5, "max_grad_norm": 50.0, "warmup_steps": 3},
        oracle=run(lambda: oracle.ZClip(0.9, 1.5, 50.0, 3)),
        live=("alpha", "z_thresh", "max_grad_norm"),
        skips={"alone": GLOBAL, "fused": SPREAD},
        bad=(
            *no_decay("alpha"),
            ({"z_thresh": 0.0}, ValueError, "z_thresh must be a number > 0, got 0.0"),
            ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be a number > 0, got 0.0"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
            ({"warmup_steps": 0}, ValueError, "warmup_steps must be >= 1, got 0"),
            ({"mode": "max"}, ValueError, "mode must be one of 'zscore', 'percentile', got 'max'"),
            ({"clip_option": "max"}, ValueError, "clip_option must be one of 'adaptive_scaling', 'mean', got 'max'"),
        ),
    ),
    Case(
        "zclip_to_the_mean",
        of.zclip,
        {"max_grad_norm": None, "warmup_steps": 2, "clip_option": "mean", "skip_update_on_spike": True},
        oracle=run(lambda: oracle.ZClip(0.97, 2.5, float("inf"), 2, option="mean", skip=True)),
        skips={"alone": GLOBAL, "fused": SPREAD},
    ),
    Case(
        "zclip_at_a_percentile",
        of.zclip,
        {"z_thresh": 1.0, "max_grad_norm": None, "warmup_steps": 4, "mode": "percentile"},
        oracle=run(lambda: oracle.ZClip(0.97, 1.0, float("inf"), 4, mode="percentile")),
        live=("z_thresh",),
        skips={"alone": GLOBAL, "fused": SPREAD},
    ),
    Case(
        "autoclip",
        of.autoclip,
        {"percentile": 30.0, "window": 7},
        oracle=run(lambda: oracle.AutoClip(30.0, 7)),
        skips={"alone": GLOBAL},
        bad=(
            ({"percentile": 101.0}, ValueError, r"percentile must be a Python number in \[0, 100\], got 101.0"),
            ({"percentile": torch.tensor(10.0)}, ValueError, r"percentile must be a Python number in \[0, 100\]"),
            ({"window": 0}, ValueError, "window must be >= 1, got 0"),
        ),
    ),
    Case(
        "hyperball_adam",
        hyperball_adam,
        {"learning_rate": 0.02, "weight_decay": 0.1},
        oracle=against(lambda: oracle.Hyperball(Adam(-1.0), 0.02, 0.1)),
        live=("learning_rate", "weight_decay"),
        covers=("hyperball",),
        needs_params=True,
        layouts=1e-13,  # as above
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "hyperball_of_now",
        hyperball_adam,
        {"learning_rate": 0.02, "keep_radius": False},
        oracle=against(lambda: oracle.Hyperball(Adam(-1.0), 0.02, 0.0, keep=False)),
        live=("learning_rate",),
        needs_params=True,
        layouts=1e-13,  # as above
    ),
    Case(
        "graft",
        adam_grafted_to_lion,
        {"b1": 0.9},
        oracle=against(lambda: oracle.Graft(Adam(-1.0), Lion())),
        live=("b1",),
        covers=("graft",),
    ),
)
