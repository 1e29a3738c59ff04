"""Cases of SAM's kin. `sam` itself is among the contributed ones."""

from case import NO_DECAY, Case
from oracles.rate_free import run
from oracles.sharpness import (
    AtOnce,
    Friendly,
    LookSAM,
    Momentum,
    MomentumSAM,
    Transparent,
    asam,
    gap,
    straight,
)

import optimfn as of

from .common import GLOBAL, has_two_axes, negative
from .contributed import uphill

GIVEN = {
    "dtype": "the gradients that it is given are those at rounded parameters; see test_halves.py",
    "alone": GLOBAL,
    "fused": "the rule itself runs: it calls a function that it was given",
    "recorded": "a copy does not have the gradient that the case gives to every update",
}
ROWS = of.tree.mask_by(has_two_axes)


@of.factory
def scaled_climb(learning_rate, momentum, rho, eta):
    """ASAM around gradient descent with momentum, a call for each step, for rows."""
    return of.asam(of.sgd(learning_rate, momentum), rho, eta, ROWS, opaque_mode=False)


@of.factory
def friendly_climb(learning_rate, rho, sigma, decay):
    """Friendly SAM around gradient descent with momentum, a call for each step."""
    return of.friendly_sam(of.sgd(learning_rate, 0.9), rho, sigma, decay, opaque_mode=False)


@of.factory
def gap_descent(learning_rate, rho, alpha):
    """GSAM around gradient descent with momentum."""
    return of.gsam(of.sgd(learning_rate, 0.9), rho, alpha)


@of.factory
def climbing_now_and_then(learning_rate, rho, alpha, period=3):
    """LookSAM around gradient descent with momentum."""
    return of.looksam(of.sgd(learning_rate, 0.9), rho, alpha, period)


@of.factory
def ahead_of_sgd(learning_rate, momentum, rho):
    """MSAM around gradient descent with momentum."""
    return of.msam(of.sgd(learning_rate, momentum), rho)


def twice(p):
    """`uphill` in the oracles."""
    return {n: 2.0 * x for n, x in p.items()}


CASES = (
    Case(
        "asam",
        scaled_climb,
        {"learning_rate": 0.1, "momentum": 0.9, "rho": 0.5, "eta": 0.01},
        oracle=run(lambda: Transparent(asam(0.5, 0.01, lambda n: n == "a"), Momentum(0.1, 0.9))),
        live=("learning_rate", "momentum", "rho", "eta"),
        covers=("asam", "scale_by_asam"),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=negative("rho", "eta"),
    ),
    Case(
        "friendly_sam",
        friendly_climb,
        {"learning_rate": 0.1, "rho": 0.05, "sigma": 0.8, "decay": 0.6},
        oracle=run(lambda: Transparent(Friendly(straight(0.05), 0.8, 0.6), Momentum(0.1, 0.9))),
        live=("learning_rate", "rho", "sigma", "decay"),
        covers=("friendly_sam", "subtract_mean"),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=(*negative("rho", "sigma"), ({"decay": 1.0}, ValueError, f"decay {NO_DECAY}")),
    ),
    Case(
        "gsam",
        gap_descent,
        {"learning_rate": 0.1, "rho": 0.05, "alpha": 0.4},
        oracle=run(lambda: AtOnce(straight(0.05), Momentum(0.1, 0.9), twice, gap(0.4))),
        live=("learning_rate", "rho", "alpha"),
        covers=("gsam", "add_surrogate_gap"),
        needs_params=True,
        extra={"grad_fn": uphill},
        skips=GIVEN,
        bad=negative("rho", "alpha"),
    ),
    Case(
        "looksam",
        climbing_now_and_then,
        {"learning_rate": 0.1, "rho": 0.05, "alpha": 0.7},
        oracle=run(lambda: LookSAM(straight(0.05), Momentum(0.1, 0.9), twice, 0.7, 3)),
        live=("learning_rate", "rho", "alpha"),
        covers=("looksam",),
        needs_params=True,
        extra={"grad_fn": uphill},
        skips=GIVEN,
        bad=(*negative("rho", "alpha"), ({"period": 0}, ValueError, "period must be >= 1, got 0")),
    ),
    Case(
        "msam",
        ahead_of_sgd,
        {"learning_rate": 0.1, "momentum": 0.9, "rho": 0.3},
        oracle=run(lambda: MomentumSAM(0.3, Momentum(0.1, 0.9))),
        live=("learning_rate", "momentum", "rho"),
        covers=("msam",),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=negative("rho"),
    ),
)
