"""Cases of the rules that find their own rate."""

import torch
from case import NEGATIVE, Case
from oracles.blocks import leafwise, together
from oracles.optax_rules import LayerwiseDoG, polyak

import optimfn as of

from .common import GLOBAL, negative

TAKES_VALUE = "a copy does not have the value that the case gives to every update"
CASES = (
    Case(
        "scale_by_polyak",
        of.scale_by_polyak,
        {"f_min": 0.1, "max_learning_rate": 0.5, "eps": 1e-3},
        oracle=together(polyak(1.0, 0.1, 0.5, 1e-3)),
        live=("f_min", "max_learning_rate", "eps"),
        extra={"value": torch.tensor(1.0, dtype=torch.float64)},
        skips={"alone": GLOBAL, "recorded": TAKES_VALUE},
        bad=(
            *negative("max_learning_rate", "eps"),
            ({"variant": "sps++"}, ValueError, "variant must be one of 'sps', 'sps\\+', got 'sps\\+\\+'"),
            ({"f_min": None}, TypeError, "f_min must be a number or a 0-dim tensor, got None"),
        ),
    ),
    Case(
        "scale_by_polyak_below_the_bound",
        of.scale_by_polyak,
        {"f_min": 3.0, "variant": "sps+"},
        oracle=together(polyak(1.0, 3.0, plus=True)),
        live=("f_min",),
        extra={"value": 1.0},
        skips={
            "alone": GLOBAL,
            "recorded": TAKES_VALUE,
            "sensitive": "below `f_min` the step of the variant `sps+` is zero",
        },
    ),
    Case(
        "polyak_sgd",
        of.polyak_sgd,
        {"max_learning_rate": 0.5, "scaling": 0.4, "f_min": 0.1},
        oracle=together(lambda grads: {n: -u for n, u in polyak(1.0, 0.1, 0.5, scaling=0.4)(grads).items()}),
        live=("max_learning_rate", "scaling", "f_min"),
        extra={"value": 1.0},
        skips={"alone": GLOBAL, "recorded": TAKES_VALUE},
        bad=(({"scaling": -1.0}, ValueError, f"scaling {NEGATIVE}"),),
    ),
    Case(
        "scale_by_distance_over_gradients",
        of.scale_by_distance_over_gradients,
        {"reps_rel": 1e-2, "eps": 1e-8, "param_dtype": None, "global_scale": -0.5},
        oracle=leafwise(lambda _: LayerwiseDoG(1e-2, scale=-0.5)),
        live=("eps", "global_scale"),
        needs_params=True,
        bad=(
            *negative("reps_rel", "eps"),
            ({"param_dtype": torch.int8}, ValueError, "param_dtype must be a floating or complex dtype"),
            ({"global_scale": None}, TypeError, "global_scale must be a number or a 0-dim tensor, got None"),
        ),
    ),
)
