"""Cases of Shampoo and what came of it."""

from case import Case
from oracles.blocks import leafwise
from oracles.shampoo import Shampoo, SPlus
from oracles.soap import Soap

import optimfn as of

from .averages import AVERAGES_ALL
from .common import BAD_DECAY, BAD_RATE, negative, no_decay
from .soap import BASIS, PRODUCTS

CHOSEN = "roots are those of the gradients as given; tested by hand"
# Leaves have factors of different sizes, lest those of one size go into one product: cuts are in `test_shampoo.py`.
CASES = (
    Case(
        "scale_by_shampoo",
        of.scale_by_shampoo,
        {
            "b1": 0.8,
            "b2": 0.95,
            "b3": 0.5,
            "eps": 1e-3,
            "max_preconditioner_dim": 6,
            "precondition_frequency": 3,
            "start_preconditioning_step": 4,
            "grafting": "adam",
            "grafting_b2": 0.99,
            "grafting_eps": 1e-7,
            "target_dims": 2,
        },
        oracle=leafwise(
            lambda _: Shampoo(
                lr=-1.0,
                betas=(0.8, 0.95),
                beta3=0.5,
                eps=1e-3,
                largest=6,
                k=3,
                start=4,
                grafting="adam",
                gb2=0.99,
                geps=1e-7,
                target=2,
            )
        ),
        **BASIS,
        live=("b1", "b2", "b3", "eps", "grafting_b2", "grafting_eps"),
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
        bad=(
            *no_decay("b1", "b3", "grafting_b2"),
            *negative("eps", "grafting_eps"),
            ({"b2": 1.5}, ValueError, r"b2 must be in \[0, 1\], got 1.5"),
            ({"max_preconditioner_dim": 0}, ValueError, "max_preconditioner_dim must be >= 1, got 0"),
            ({"precondition_frequency": 0}, ValueError, "precondition_frequency must be >= 1, got 0"),
            ({"start_preconditioning_step": 0}, ValueError, "start_preconditioning_step must be >= 1, got 0"),
            ({"target_dims": 0}, ValueError, "target_dims must be >= 1, got 0"),
            ({"grafting": "lion"}, ValueError, "grafting must be one of None, 'sgd', .*, got 'lion'"),
            ({"kind": "soap"}, ValueError, "kind must be one of 'shampoo', 'kl', 'eigenvalues', got 'soap'"),
            ({"sides": "left"}, ValueError, "sides must be one of 'both', 'one', got 'left'"),
            ({"by": "svd"}, ValueError, "by must be one of 'eigh', 'pseudo', 'newton', got 'svd'"),
            ({"roots": {2: 0.0}}, ValueError, "roots must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "scale_by_shampoo_of_eigenvalues",
        of.scale_by_shampoo,
        {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "precondition_frequency": 5, "kind": "eigenvalues", "target_dims": 2},
        oracle=leafwise(lambda _: Shampoo(lr=-1.0, betas=(0.9, 0.95), eps=1e-8, k=5, kind="eigenvalues", target=2)),
        **BASIS,
        live=("b1", "b2"),
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
    ),
    Case(
        "shampoo",
        of.shampoo,
        {"learning_rate": 0.01, "eps": 1e-2, "weight_decay": 0.1, "momentum": 0.9, "target_dims": 2},
        oracle=leafwise(lambda _: Shampoo(0.01, eps=1e-2, weight_decay=0.1, momentum=0.9, target=2)),
        **BASIS,
        live=("learning_rate", "weight_decay", "momentum"),
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
        bad=(
            BAD_RATE,
            BAD_DECAY,
            ({"decay": "late"}, ValueError, "decay must be one of 'decoupled', 'l2', .*, got 'late'"),
            ({"decay": "corrected"}, ValueError, "peak must be a number for 'corrected' .*, got None for 'corrected'"),
            ({"peak": 0.1}, ValueError, "peak must be a number for 'corrected' .*, got 0.1 for 'decoupled'"),
            ({"momentum": None, "nesterov": True}, ValueError, "nesterov needs a momentum, got momentum=None"),
            ({"dampening": 2.0}, ValueError, r"dampening must be in \[0, 1\], got 2.0"),
        ),
    ),
    Case(
        "kl_shampoo",
        of.kl_shampoo,
        {"learning_rate": 0.01, "b1": 0.9, "b2": 0.98, "eps": 1e-3, "weight_decay": 0.1, "precondition_frequency": 5},
        oracle=leafwise(
            lambda _: Soap(0.01, (0.9, 0.98), eps=1e-3, weight_decay=0.1, k=5, correct=False, kl=True, whiten=True)
        ),
        **BASIS,
        live=("learning_rate", "b1", "b2", "eps", "weight_decay"),
        covers=("kl_shampoo", "scale_by_kl_shampoo"),
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
        bad=(BAD_RATE, BAD_DECAY, *no_decay("b1", "b2"), *negative("eps")),
    ),
    Case(
        "splus",
        of.splus,
        {"learning_rate": 0.1, "weight_decay": 0.1, "ema_rate": 0.9, "inverse_every": 7, "max_dim": 4},
        oracle=leafwise(lambda _: SPlus(0.1, weight_decay=0.1, k=7, max_dim=4)),
        **BASIS,
        live=("learning_rate", "weight_decay", "ema_rate"),
        covers=("splus", "scale_by_splus"),
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": CHOSEN, "sensitive": "it takes signs", "absent": AVERAGES_ALL},
        bad=(
            BAD_RATE,
            BAD_DECAY,
            ({"b2": 1.0}, ValueError, r"b2 must be in \[0, 1\), got 1.0"),
            ({"inverse_every": 0}, ValueError, "inverse_every must be >= 1, got 0"),
            ({"max_dim": 1}, ValueError, "max_dim must be >= 2, got 1"),
        ),
    ),
)
