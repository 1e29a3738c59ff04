"""Cases of the rules that step by signs."""

import numpy as np
import torch
from case import NEGATIVE, NO_DECAY, Case
from oracles.blocks import Each, leafwise, torch_optimizer
from oracles.lion import Lion
from oracles.momentum import Ema

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, CLAMP, RATE, Times

SIGN = "the sign has a jump, and its derivative is zero elsewhere"
BAD_RPROP = (
    BAD_RATE,
    ({"learning_rate": RATE}, TypeError, "learning_rate must be a number or a 0-dim tensor, got linear_schedule"),
    ({"eta_minus": 1.0}, ValueError, f"eta_minus {NO_DECAY}"),
    ({"eta_plus": 0.5}, ValueError, "eta_plus must be a number >= 1, got 0.5"),
    ({"min_step_size": -1.0}, ValueError, f"min_step_size {NEGATIVE}"),
    (
        {"min_step_size": 1.0, "max_step_size": 0.1},
        ValueError,
        "min_step_size must be at most max_step_size, got 1.0 and 0.1",
    ),
)
NO_SIGN = "a sign of real and imaginary part together is not defined; split_real_and_imaginary takes them apart"


class Signed:
    """The sign of a rule of an oracle."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, g, p, t):
        return np.sign(self.rule(g, p, t))


CASES = (
    Case(
        "scale_by_lion",
        of.scale_by_lion,
        {"b1": 0.9, "b2": 0.99},
        oracle=leafwise(lambda _: Lion()),
        live=("b1", "b2"),
        skips={"sensitive": f"in the mode 'hard' {SIGN}; the other modes are smooth or linear in pieces"},
        bad=(
            ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
            ({"mode": "soft"}, ValueError, "mode must be one of 'hard', 'smooth', 'refined', got 'soft'"),
            ({"smooth_beta": 0.0}, ValueError, "smooth_beta must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "scale_by_lion_smooth",
        of.scale_by_lion,
        {"b1": 0.9, "b2": 0.99, "mode": "smooth", "smooth_beta": 2.0},
        oracle=leafwise(lambda _: Lion(mode="smooth", smooth_beta=2.0)),
        live=("b1", "b2", "smooth_beta"),
    ),
    Case(
        "scale_by_lion_refined",
        of.scale_by_lion,
        {"b1": 0.9, "b2": 0.99, "mode": "refined"},
        oracle=leafwise(lambda _: Lion(mode="refined")),
        live=("b1", "b2"),
        skips={"complex": CLAMP},
    ),
    Case(
        "lion",
        of.lion,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Lion(1e-2, weight_decay=0.1)),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        skips={"sensitive": SIGN},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "scale_by_rprop",
        of.scale_by_rprop,
        {"learning_rate": 0.1, "eta_minus": 0.5, "eta_plus": 1.2},
        oracle=torch_optimizer(lambda ps: torch.optim.Rprop(ps, lr=0.1, maximize=True)),
        live=("learning_rate", "eta_minus"),
        skips={"sensitive": SIGN, "complex": NO_SIGN},
        bad=BAD_RPROP,
    ),
    Case(
        "rprop",
        of.rprop,
        {"learning_rate": 0.1, "eta_minus": 0.3, "eta_plus": 2.4, "min_step_size": 0.02, "max_step_size": 0.7},
        oracle=torch_optimizer(lambda ps: torch.optim.Rprop(ps, 0.1, (0.3, 2.4), (0.02, 0.7))),
        live=("learning_rate", "eta_minus", "eta_plus", "min_step_size", "max_step_size"),
        skips={"sensitive": SIGN, "complex": NO_SIGN},
        bad=BAD_RPROP,
    ),
    Case(
        "scale_by_sign",
        of.scale_by_sign,
        oracle=leafwise(lambda _: Each(lambda g, p, t: np.sign(g))),
        skips={"sensitive": SIGN},
    ),
    Case(
        "sign_sgd",
        of.sign_sgd,
        {"learning_rate": 0.1},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -0.1 * np.sign(g))),
        live=("learning_rate",),
        skips={"sensitive": SIGN},
        bad=(BAD_RATE,),
    ),
    Case(
        "signum",
        of.signum,
        {"learning_rate": 0.1, "beta": 0.8},
        oracle=leafwise(lambda _: Times(Signed(Ema(0.8, debias=False)), lambda count: -0.1)),
        live=("learning_rate", "beta"),
        skips={"sensitive": SIGN},
        bad=(BAD_RATE, ({"beta": 1.0}, ValueError, f"beta {NO_DECAY}")),
    ),
)
