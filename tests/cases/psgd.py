"""Cases of PSGD."""

from case import Case
from oracles.blocks import leafwise
from oracles.psgd import Kron, KronWhiten, Stepped, lra

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, negative, no_decay


def whitened(wrap=lambda rule: rule, **kwargs):
    """The oracle of `KronWhiten`, whose first scale is that of all leaves together."""

    def run(params, gradients):
        fourth = max(float((g.abs() ** 4).mean()) for g in gradients[0].values())
        scale = kwargs.get("scale", (fourth + 1e-36) ** (-1 / 8))
        others = {name: value for name, value in kwargs.items() if name != "scale"}
        yield from leafwise(lambda name: wrap(KronWhiten(name, scale, **others)))(params, gradients)

    return run


def added(rule):
    """The result as it is, which is added."""
    return rule


PRODUCTS = "products of matrices are those of ATen, whose sums depend on their layout, and ten follow each other"
BOUNDS = "bounds are maxima, and the longest row is chosen, where a derivative jumps"
BAD_FIT = (
    ({"fit": "loss"}, ValueError, "fit must be one of 'gradient', 'momentum', 'hessian', got 'loss'"),
    (
        {"preconditioner_update_probability": 1.5},
        ValueError,
        r"preconditioner_update_probability must be a number in \(0, 1\] or a schedule, got 1.5",
    ),
)
LAYOUTS = 1e-11  # products of matrices take their sums in another order, and ten of them follow each other

CASES = (
    Case(
        "scale_by_kron_whiten",
        of.scale_by_kron_whiten,
        {"momentum": 0.9, "preconditioner_lr": 0.1},
        oracle=whitened(added, momentum=0.9),
        rtol=1e-9,
        live=("momentum", "preconditioner_lr"),
        layouts=LAYOUTS,
        batched=1e-10,
        skips={"fused": PRODUCTS, "differentiable": BOUNDS},
        bad=(
            *no_decay("momentum", "beta_lipschitz"),
            *negative("damping", "preconditioner_lr"),
            ({"preconditioner_mode": "QE"}, ValueError, "preconditioner_mode must be one of 'Q0.5EQ1.5', .* got 'QE'"),
            ({"memory_save_mode": "none"}, ValueError, "memory_save_mode must be one of None, .* got 'none'"),
            ({"merge_dims": "all"}, ValueError, "merge_dims must be one of False, True, 'square', got 'all'"),
            ({"grad_clip_max_amps": (2.0, 0.0)}, ValueError, r"grad_clip_max_amps\[1\] must be a number > 0, got 0.0"),
            *BAD_FIT,
        ),
    ),
    Case(
        "kron_whiten",
        of.kron_whiten,
        {
            "learning_rate": 0.01,
            "preconditioner_mode": "QUAD",
            "preconditioner_init_scale": 1.0,
            "preconditioner_update_probability": 0.5,
            "fit": "momentum",
            "weight_decay": 0.1,
        },
        oracle=whitened(
            lambda rule: Stepped(rule, 0.01, 0.1, of_all=True),
            momentum=0.9,
            mode="QUAD",
            scale=1.0,
            probability=0.5,
            whiten="momentum",
        ),
        rtol=1e-9,
        live=("learning_rate", "weight_decay"),
        layouts=LAYOUTS,
        batched=1e-10,
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": BOUNDS},
        bad=(BAD_RATE, BAD_DECAY, *BAD_FIT),
    ),
    Case(
        "scale_by_kron",
        of.scale_by_kron,
        {"b1": 0.8, "preconditioner_lr": 0.2, "memory_save_mode": "smart_one_diag", "preconditioner_init_scale": 0.5},
        oracle=leafwise(lambda name: Kron(name, 0.8, 0.2, 0.5, save="smart_one_diag")),
        rtol=1e-9,
        live=("b1", "preconditioner_lr"),
        layouts=LAYOUTS,
        batched=1e-10,
        skips={"fused": PRODUCTS, "differentiable": BOUNDS},
        bad=(
            *no_decay("b1"),
            *negative("preconditioner_lr"),
            ({"max_size_triangular": -1}, ValueError, "max_size_triangular must be >= 0, got -1"),
            BAD_FIT[1],
        ),
    ),
    Case(
        "kron",
        of.kron,
        {"learning_rate": 0.01, "weight_decay": 0.1, "momentum_into_precond_update": False},
        oracle=leafwise(lambda name: Stepped(Kron(name, from_mean=False), 0.01, 0.1)),
        rtol=1e-9,
        live=("learning_rate", "weight_decay"),
        layouts=LAYOUTS,
        batched=1e-10,
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": BOUNDS},
        bad=(BAD_RATE, BAD_DECAY, *no_decay("b1")),
    ),
    Case(
        "scale_by_lra_whiten",
        of.scale_by_lra_whiten,
        {"rank": 2, "momentum": 0.9, "preconditioner_lr": 0.1},
        oracle=lra(2, 1.0),
        rtol=1e-9,
        live=("momentum", "preconditioner_lr"),
        layouts=LAYOUTS,
        batched=1e-10,
        skips={"fused": PRODUCTS, "differentiable": BOUNDS, "complex": "real leaves only"},
        bad=(
            *no_decay("momentum", "beta_lipschitz"),
            *negative("damping", "preconditioner_lr"),
            ({"rank": 0}, ValueError, "rank must be >= 1, got 0"),
            BAD_FIT[1],
        ),
    ),
    Case(
        "lra_whiten",
        of.lra_whiten,
        {"learning_rate": 0.01, "rank": 3, "preconditioner_init_scale": 0.5, "weight_decay": 0.1},
        oracle=lra(3, -0.01, scale=0.5, decay=0.1),
        rtol=1e-9,
        live=("learning_rate", "weight_decay"),
        layouts=LAYOUTS,
        batched=1e-10,
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": BOUNDS, "complex": "real leaves only"},
        bad=(BAD_RATE, BAD_DECAY, *no_decay("momentum")),
    ),
)
