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


ROUNDED = "what is rounded has a derivative of 0, and none at the steps"
COMPLEX = "moments of complex leaves are complex, and stay as they are; real ones beside them do not"
STEPS = {
    "differentiable": ROUNDED,
    "sensitive": ROUNDED,
    "oracle_float32": "a code on the other side of a tie is another moment",
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
)
