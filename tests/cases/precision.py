"""Cases of what saves memory: states in few bits, parameters of half precision without copies."""

from case import Case
from oracles.adam import Adam
from oracles.blocks import leafwise
from oracles.quantized import Kept

import optimfn as of

from .common import BAD_RATE


@of.factory
def quantized_adamw(learning_rate, format, **kwargs):
    """AdamW with all of its state in few bits, however small."""
    return of.quantize_state(of.adamw(learning_rate, weight_decay=0.1), format, min_size=1, **kwargs)


def kept_adamw(format, block_size=None):
    """The same, written otherwise."""
    return leafwise(lambda _: Kept(Adam(1e-2, weight_decay=0.1), format, block_size))


@of.factory
def with_master(learning_rate, **kwargs):
    """AdamW on float32, whatever the parameters are."""
    return of.master_weights(of.adamw(learning_rate, weight_decay=0.1), **kwargs)


@of.factory
def compensated(learning_rate):
    """AdamW with compensation."""
    return of.kahan(of.adamw(learning_rate, weight_decay=0.1))


@of.factory
def sent_away(learning_rate, device):
    """AdamW whose moments lie elsewhere; on the CPU they are there already."""
    return of.offload(of.adamw(learning_rate, weight_decay=0.1), device, min_size=1)


@of.factory
def by_chance(learning_rate, seed):
    """AdamW that rounds by chance."""
    return of.stochastic_rounding(of.adamw(learning_rate, weight_decay=0.1), seed)


PLAIN = leafwise(lambda _: Adam(1e-2, weight_decay=0.1))  # what they are on parameters of float64
ROUNDED = "what is rounded has a derivative of 0, and none at the steps"
COMPLEX = "moments of complex leaves are complex, and stay as they are; real ones beside them do not"
STEPS = {
    "differentiable": ROUNDED,
    "sensitive": ROUNDED,
}

CASES = (
    Case(
        "quantize_state",
        quantized_adamw,
        {"learning_rate": 1e-2, "format": "companded8"},
        oracle=kept_adamw("companded8"),
        live=("learning_rate",),
        covers=("quantize_state",),
        needs_params=True,
        skips=STEPS,
        bad=(
            BAD_RATE,
            ({"format": "int3"}, ValueError, "format must be one of 'companded8', .*, got 'int3'"),
            ({"block_size": 0}, ValueError, "block_size must be >= 1, got 0"),
            ({"format": "4bit", "block_size": 3}, ValueError, "block_size must be even .*, got 3"),
            ({"fields": {"nu": "small"}}, ValueError, "must be one of 'signed', 'nonnegative', 'exact', got 'small'"),
            ({"fields": {"v": "signed"}}, ValueError, r"fields names \['v'\], which the state does not have"),
        ),
    ),
    Case(
        "quantize_state_short_blocks",
        quantized_adamw,
        {"learning_rate": 1e-2, "format": "companded8", "block_size": 5},
        oracle=kept_adamw("companded8", 5),
        live=("learning_rate",),
        needs_params=True,
        skips=STEPS,
    ),
    Case(
        "quantize_state_dynamic8",
        quantized_adamw,
        {"learning_rate": 1e-2, "format": "dynamic8", "block_size": 4},
        oracle=kept_adamw("dynamic8", 4),
        rtol=1e-6,  # the table is float32
        live=("learning_rate",),
        needs_params=True,
        skips=STEPS,
    ),
    Case(
        "quantize_state_4bit",
        quantized_adamw,
        {"learning_rate": 1e-2, "format": "4bit", "block_size": 4},
        oracle=kept_adamw("4bit", 4),
        rtol=1e-6,
        live=("learning_rate",),
        needs_params=True,
        skips=STEPS,
    ),
    Case(
        "quantize_state_fp8",
        quantized_adamw,
        {"learning_rate": 1e-2, "format": "fp8"},
        oracle=kept_adamw("fp8"),
        live=("learning_rate",),
        needs_params=True,
        skips=STEPS,
    ),
    Case(
        "quantize_state_bfloat16",
        quantized_adamw,
        {"learning_rate": 1e-2, "format": "bfloat16"},
        live=("learning_rate",),
        needs_params=True,
        skips=STEPS | {"oracle": "see test_precision.py"},
    ),
    Case(
        "kahan",
        compensated,
        {"learning_rate": 1e-2},
        oracle=PLAIN,
        live=("learning_rate",),
        covers=("kahan",),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "stochastic_rounding",
        by_chance,
        {"learning_rate": 1e-2, "seed": 3},
        oracle=PLAIN,
        live=("learning_rate",),
        covers=("stochastic_rounding",),
        needs_params=True,
        bad=(BAD_RATE, ({"seed": 0.5}, TypeError, "seed must be a whole number")),
    ),
    Case(
        "offload",
        sent_away,
        {"learning_rate": 1e-2, "device": "cpu"},
        oracle=PLAIN,
        live=("learning_rate",),
        covers=("offload",),
        needs_params=True,
        bad=(
            BAD_RATE,
            ({"device": 0}, TypeError, "device must be a torch.device or the name of one, got 0"),
            ({"device": "host"}, ValueError, "device must be a device such as 'cpu'"),
        ),
    ),
    Case(
        "master_weights",
        with_master,
        {"learning_rate": 1e-2, "store": "float32"},
        oracle=PLAIN,
        live=("learning_rate",),
        covers=("master_weights",),
        needs_params=True,
        bad=(BAD_RATE, ({"store": "int8"}, ValueError, "store must be one of 'float32', 'remainder', got 'int8'")),
    ),
)
