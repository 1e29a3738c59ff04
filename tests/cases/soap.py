"""Cases of the rules in the eigenbasis of Shampoo's matrices."""

from case import Case
from oracles.adam import Adam
from oracles.blocks import leafwise
from oracles.soap import Soap

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, negative, no_decay

PRODUCTS = "products and decompositions are those of ATen, whose sums depend on their layout"
CHOSEN = "derivatives take the basis as given; tested by hand"
LAYOUTS = 1e-10  # products of matrices take their sums in another order, and a decomposition magnifies that
BASIS = {"rtol": 1e-8, "layouts": LAYOUTS, "batched": 1e-8}  # a basis moves by rounding over a gap of eigenvalues


@of.factory
def of_adam(b1, precondition_frequency=10, max_precond_dim=10000, second_moment="sorted", first="skip", by="qr"):
    """Another rule than the authors', in the basis."""
    return of.eigenbasis(
        of.scale_by_adam(b1, 0.99),
        0.95,
        precondition_frequency,
        max_precond_dim,
        second_moment=second_moment,
        first=first,
        by=by,
    )


CASES = (
    Case(
        "eigenbasis",
        of_adam,
        {"b1": 0.9, "precondition_frequency": 5},
        oracle=leafwise(lambda _: Soap(lr=-1.0, k=5, rule=Adam(beta1=0.9, beta2=0.99))),
        **BASIS,
        live=("b1",),
        covers=("eigenbasis",),
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
        bad=(
            ({"precondition_frequency": 0}, ValueError, "precondition_frequency must be >= 1, got 0"),
            ({"max_precond_dim": 0}, ValueError, "max_precond_dim must be >= 1, got 0"),
            ({"second_moment": "lost"}, ValueError, "second_moment must be one of 'sorted', 'rotated', 'kept'"),
            ({"first": "move"}, ValueError, "first must be one of 'skip', 'identity', 'now', got 'move'"),
            ({"by": "svd"}, ValueError, "by must be one of 'qr', 'eigh', got 'svd'"),
        ),
    ),
    Case(
        "scale_by_soap",
        of.scale_by_soap,
        {
            "b1": 0.9,
            "b2": 0.95,
            "precondition_1d": True,
            "merge_dims": True,
            "max_precond_dim": 8,
            "normalize_grads": True,
            "shampoo_beta": 0.9,
        },
        oracle=leafwise(
            lambda _: Soap(
                lr=-1.0, betas=(0.9, 0.95), vectors=True, merge=True, largest=8, normalize=True, shampoo_beta=0.9
            )
        ),
        **BASIS,
        live=("b1", "b2"),
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
        bad=(*no_decay("b1", "b2"), *negative("eps")),
    ),
    Case(
        "soap",
        of.soap,
        {"learning_rate": 0.01, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Soap(0.01, weight_decay=0.1)),
        **BASIS,
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "scale_by_soap_of_kl",
        of.scale_by_soap,
        {"b1": 0.9, "b2": 0.98, "kind": "kl", "bias_correction": False},
        oracle=leafwise(lambda _: Soap(lr=-1.0, betas=(0.9, 0.98), kl=True, correct=False)),
        **BASIS,
        live=("b1", "b2"),
        skips={"fused": PRODUCTS, "differentiable": CHOSEN},
    ),
)
