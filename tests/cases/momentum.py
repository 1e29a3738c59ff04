"""Cases of gradient descent and momentum."""

import math

import torch
from case import NEGATIVE, Case
from oracles.adam import Adam
from oracles.blocks import Each, leafwise, torch_optimizer
from oracles.optax_rules import Lars, Optimistic, fromage_step

import optimfn as of

from .common import BAD_RATE, RATE, Times, linear, matrices_in_rows, negative, noisy

BAD_SCHEDULE = (
    {"learning_rate": RATE},
    TypeError,
    "learning_rate must be a number or a 0-dim tensor, got linear_schedule",
)
CASES = (
    Case(
        "sgd",
        of.sgd,
        {"learning_rate": 0.1},
        oracle=torch_optimizer(lambda ps: torch.optim.SGD(ps, lr=0.1)),
        live=("learning_rate",),
        bad=(BAD_RATE,),
    ),
    Case(
        "sgd_momentum",
        of.sgd,
        {"learning_rate": 0.1, "momentum": 0.9},
        oracle=torch_optimizer(lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)),
        live=("learning_rate", "momentum"),
        bad=(
            ({"momentum": 2.0}, ValueError, r"momentum must be in \[0, 1\], got 2.0"),
            ({"momentum": None, "nesterov": True}, ValueError, "nesterov needs a momentum, got momentum=None"),
        ),
    ),
    Case(
        "sgd_nesterov",
        of.sgd,
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        oracle=torch_optimizer(lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True)),
        live=("learning_rate", "momentum"),
    ),
    Case(
        "asgd",
        of.asgd,
        {"learning_rate": 1e-2},
        oracle=torch_optimizer(lambda ps: torch.optim.ASGD(ps)),
        needs_params=True,
        bad=(
            ({"learning_rate": -1.0}, ValueError, f"learning_rate {NEGATIVE}"),
            ({"learning_rate": RATE}, TypeError, "learning_rate must be a number or a 0-dim tensor"),
            ({"lambd": -1.0}, ValueError, f"lambd {NEGATIVE}"),
            ({"alpha": -1.0}, ValueError, f"alpha {NEGATIVE}"),
            ({"t0": -1.0}, ValueError, f"t0 {NEGATIVE}"),
        ),
    ),
    Case(
        "asgd_averaging",
        of.asgd,
        {"learning_rate": 0.1, "lambd": 0.1, "alpha": 0.6, "t0": 3.0},
        oracle=torch_optimizer(lambda ps: torch.optim.ASGD(ps, lr=0.1, lambd=0.1, alpha=0.6, t0=3)),
        live=("learning_rate", "lambd", "alpha", "t0"),
        needs_params=True,
    ),
    Case(
        "lars",
        of.lars,
        {"learning_rate": 1.0, "weight_decay": 0.1, "trust_coefficient": 0.01, "eps": 1e-3, "momentum": 0.8},
        oracle=leafwise(lambda _: Lars(1.0, 0.1, 0.01, 1e-3, 0.8, False)),
        live=("learning_rate", "weight_decay", "trust_coefficient", "eps", "momentum"),
        needs_params=True,
        bad=(BAD_RATE, *negative("weight_decay", "trust_coefficient", "eps")),
    ),
    Case(
        "lars_masked",
        of.lars,
        {
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "weight_decay_mask": of.tree.is_matrix,
            "trust_ratio_mask": of.tree.is_matrix,
            "nesterov": True,
        },
        oracle=leafwise(
            lambda name: Lars(0.1, 0.1 * matrices_in_rows(name), 1e-3, 0.0, 0.9, True, scaled=matrices_in_rows(name))
        ),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "fromage",
        of.fromage,
        {"learning_rate": 1e-2, "min_norm": 1e-6},
        oracle=leafwise(lambda _: Each(fromage_step(1e-2))),
        live=("learning_rate",),
        needs_params=True,
        bad=(BAD_RATE, *negative("min_norm")),
    ),
    Case(
        "fromage_scheduled",
        of.fromage,
        {"learning_rate": RATE, "min_norm": 0.5},
        oracle=leafwise(lambda _: Each(lambda g, p, t: fromage_step(linear(t - 1), 0.5)(g, p, t))),
        live=("min_norm",),
        needs_params=True,
    ),
    Case(
        "scale_by_optimistic_gradient",
        of.scale_by_optimistic_gradient,
        {"alpha": 0.7, "beta": 0.3},
        oracle=leafwise(lambda _: Optimistic(-1.0, 0.7, 0.3)),
        live=("alpha", "beta"),
        bad=(({"alpha": None}, TypeError, "alpha must be a number or a 0-dim tensor, got None"),),
    ),
    Case(
        "optimistic_gradient_descent",
        of.optimistic_gradient_descent,
        {"learning_rate": 0.1, "alpha": 1.0, "beta": 0.5},
        oracle=leafwise(lambda _: Optimistic(0.1, 1.0, 0.5)),
        live=("learning_rate", "alpha", "beta"),
        bad=(BAD_RATE,),
    ),
    Case(
        "optimistic_adam",
        of.optimistic_adam,
        {"learning_rate": 1e-2, "optimism": 0.005, "b1": 0.8, "b2": 0.99},
        oracle=leafwise(lambda _: Optimistic(1.0, 1e-2, 0.005, Adam(beta1=0.8, beta2=0.99, nesterov=True))),
        live=("learning_rate", "optimism", "b1", "b2"),
        bad=(BAD_RATE, BAD_SCHEDULE, *negative("optimism")),
    ),
    Case(
        "optimistic_adam_of_itself",
        of.optimistic_adam,
        {"learning_rate": 1e-2, "nesterov": False},
        oracle=leafwise(lambda _: Optimistic(1.0, 1e-2, 1e-2, Adam())),
        live=("learning_rate",),
    ),
    Case(
        "optimistic_adam_v2",
        of.optimistic_adam_v2,
        {"learning_rate": RATE, "alpha": 0.9, "beta": 0.4, "b1": 0.8, "b2": 0.99, "nesterov": True},
        oracle=leafwise(lambda _: Times(Optimistic(1.0, 0.9, 0.4, Adam(beta1=0.8, beta2=0.99, nesterov=True)), linear)),
        live=("alpha", "beta", "b1", "b2"),
        bad=(BAD_RATE,),
    ),
    Case(
        "noisy_sgd",
        of.noisy_sgd,
        {"learning_rate": 0.1, "eta": 0.3, "seed": 3},
        oracle=noisy(lambda g, t, n: -0.1 * (g + math.sqrt(0.3 / t**0.55) * n)),
        live=("learning_rate", "eta"),
        bad=(BAD_RATE,),
    ),
)
