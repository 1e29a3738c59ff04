"""Cases of the building blocks."""

import math

import numpy as np
import torch
from case import NEGATIVE, NO_DECAY, Case
from oracles.blocks import Each, global_norm_clip, leafwise, together
from oracles.momentum import Ema, Trace
from oracles.optax_rules import adaptive_clip, trust_ratio

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, CLAMP, GLOBAL, RATE, has_two_axes, linear, negative, noisy


def block_rms(x):
    """Root mean square in NumPy."""
    return np.sqrt(np.mean(x**2))


@of.factory
def matrices_to_shape(mode):
    """`scale_by_matrix_shape` on the matrices, nothing on the rest."""
    return of.masked(of.scale_by_matrix_shape(mode), of.tree.mask_by(has_two_axes))


def global_norm(grads):
    """2-norm over all leaves."""
    return math.sqrt(sum(np.sum(g**2) for g in grads.values()))


def unit(grads):
    """All gradients over the norm of all."""
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {name: g / norm if norm else g for name, g in grads.items()}


def centred(g, p, t):
    """Without the mean over all axes but the first."""
    return g if g.ndim < 2 else g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)


@of.factory
def boxed_sgd(learning_rate):
    """Gradient descent in a box."""
    return of.chain(of.sgd(learning_rate), of.keep_params_in(into_box))


def into_box(params):
    """The nearest point of a box."""
    return of.projection_box(params, -0.5, 1.0)


CASES = (
    Case(
        "qk_clip",
        of.qk_clip,
        {"rows": {"^(a)": "query", "^(b)": "key"}, "threshold": 100.0, "alpha": 0.25},
        oracle=leafwise(lambda name: Each(lambda g, p, t: {"a": 4**-0.25, "b": 2**-0.75}.get(name, 1.0) * (p + g) - p)),
        live=("threshold", "alpha"),
        needs_params=True,
        extra={"max_logits": {"a": torch.tensor(400.0), "b": torch.tensor(200.0)}},
        bad=(
            ({"threshold": 0.0}, ValueError, "threshold must be a number > 0, got 0.0"),
            ({"rows": {"a": "query"}}, ValueError, "rows must have patterns with one group, .*, got 'a'"),
            ({"rows": {"(a)": "value"}}, ValueError, "rows must be 'query', 'key', 'rope' or .*, got 'value'"),
        ),
    ),
    Case(
        "scale",
        of.scale,
        {"step_size": -0.3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -0.3 * g)),
        live=("step_size",),
        bad=(({"step_size": None}, TypeError, "step_size must be a number or a 0-dim tensor, got None"),),
    ),
    Case(
        "scale_by_learning_rate",
        of.scale_by_learning_rate,
        {"learning_rate": 0.3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -0.3 * g)),
        live=("learning_rate",),
        bad=(BAD_RATE, ({"learning_rate": True}, TypeError, "learning_rate must be a number .* got True")),
    ),
    Case(
        "scale_by_learning_rate_uphill",
        of.scale_by_learning_rate,
        {"learning_rate": 0.3, "flip_sign": False},
        oracle=leafwise(lambda _: Each(lambda g, p, t: 0.3 * g)),
        live=("learning_rate",),
    ),
    Case(
        "scale_by_learning_rate_none",
        of.scale_by_learning_rate,
        {"learning_rate": None},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
    ),
    Case(
        "scale_by_learning_rate_schedule",
        of.scale_by_learning_rate,
        {"learning_rate": RATE},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -linear(t - 1) * g)),
    ),
    Case(
        "scale_by_schedule",
        of.scale_by_schedule,
        {"step_size_fn": RATE},
        oracle=leafwise(lambda _: Each(lambda g, p, t: linear(t - 1) * g)),
        bad=(({"step_size_fn": 0.1}, TypeError, "step_size_fn must be callable, got 0.1"),),
    ),
    Case(
        "add_decayed_weights",
        of.add_decayed_weights,
        {"weight_decay": 0.01},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g + 0.01 * p)),
        live=("weight_decay",),
        needs_params=True,
        bad=(BAD_DECAY,),
    ),
    Case(
        "add_decayed_weights_masked",
        of.add_decayed_weights,
        {"weight_decay": 0.01, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Each(lambda g, p, t: g + (0.0 if name == "b" else 0.01) * p)),
        live=("weight_decay",),
        needs_params=True,
    ),
    Case(
        "add_decayed_weights_schedule",
        of.add_decayed_weights,
        {"weight_decay": RATE},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g + linear(t - 1) * p)),
        needs_params=True,
    ),
    Case(
        "trace",
        of.trace,
        {"decay": 0.9},
        oracle=leafwise(lambda _: Trace(0.9)),
        live=("decay",),
        bad=(
            ({"decay": -0.5}, ValueError, r"decay must be in \[0, 1\], got -0.5"),
            ({"accumulator_dtype": torch.int8}, ValueError, "accumulator_dtype must be a floating"),
        ),
    ),
    Case(
        "trace_nesterov",
        of.trace,
        {"decay": 0.9, "nesterov": True},
        oracle=leafwise(lambda _: Trace(0.9, nesterov=True)),
        live=("decay",),
    ),
    Case(
        "ema",
        of.ema,
        {"decay": 0.9},
        oracle=leafwise(lambda _: Ema(0.9)),
        live=("decay",),
        bad=(({"decay": 1.0}, ValueError, f"decay {NO_DECAY}"),),
    ),
    Case(
        "ema_biased",
        of.ema,
        {"decay": 0.9, "debias": False},
        oracle=leafwise(lambda _: Ema(0.9, debias=False)),
        live=("decay",),
    ),
    Case(
        "ema_nesterov",
        of.ema,
        {"decay": 0.9, "nesterov": True},
        oracle=leafwise(lambda _: Ema(0.9, nesterov=True)),
        live=("decay",),
    ),
    Case(
        "ema_nesterov_biased",
        of.ema,
        {"decay": 0.9, "debias": False, "nesterov": True},
        oracle=leafwise(lambda _: Ema(0.9, debias=False, nesterov=True)),
        live=("decay",),
    ),
    Case(
        "clip",
        of.clip,
        {"max_delta": 0.5},
        oracle=leafwise(lambda _: Each(lambda g, p, t: np.clip(g, -0.5, 0.5))),
        live=("max_delta",),
        skips={"complex": CLAMP},
        bad=(({"max_delta": -1.0}, ValueError, f"max_delta {NEGATIVE}"),),
    ),
    Case(
        "clip_by_global_norm",
        of.clip_by_global_norm,
        {"max_norm": 1.0},
        oracle=together(global_norm_clip(1.0)),
        live=("max_norm",),
        skips={"alone": GLOBAL},
        bad=(({"max_norm": 0}, ValueError, "max_norm must be a number > 0, got 0"),),
    ),
    Case(
        "clip_by_block_rms",
        of.clip_by_block_rms,
        {"threshold": 0.5},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g / max(1.0, block_rms(g) / 0.5))),
        live=("threshold",),
        bad=(({"threshold": 0.0}, ValueError, "threshold must be a number > 0, got 0.0"),),
    ),
    Case(
        "scale_by_param_block_norm",
        of.scale_by_param_block_norm,
        {"min_scale": 3.0},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g * max(np.sqrt(np.sum(p**2)), 3.0))),
        live=("min_scale",),
        needs_params=True,
        bad=(({"min_scale": -1.0}, ValueError, f"min_scale {NEGATIVE}"),),
    ),
    Case(
        "scale_by_param_block_rms",
        of.scale_by_param_block_rms,
        {"min_scale": 1e-3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g * max(block_rms(p), 1e-3))),
        live=("min_scale",),
        needs_params=True,
        bad=(({"min_scale": -1.0}, ValueError, f"min_scale {NEGATIVE}"),),
    ),
    Case(
        "scale_by_matrix_shape",
        matrices_to_shape,
        {"mode": "original"},
        oracle=leafwise(lambda name: Each(lambda g, p, t: math.sqrt(4 / 3) * g if name == "a" else g)),
        covers=("scale_by_matrix_shape",),
        bad=(({"mode": "adamw"}, ValueError, "mode must be one of .*'none', got 'adamw'"),),
    ),
    Case(
        "scale_by_matrix_shape_as_adamw",
        matrices_to_shape,
        {"mode": "match_rms_adamw"},
        oracle=leafwise(lambda name: Each(lambda g, p, t: 0.2 * math.sqrt(4) * g if name == "a" else g)),
    ),
    Case(
        "scale_by_matrix_shape_unclamped",
        matrices_to_shape,
        {"mode": "spectral_unclamped"},
        oracle=leafwise(lambda name: Each(lambda g, p, t: math.sqrt(4 / 3) * g if name == "a" else g)),
    ),
    Case(
        "dampened_trace",
        of.dampened_trace,
        {"decay": 0.9, "dampening": 0.3},
        oracle=leafwise(lambda _: Trace(0.9, dampening=0.3)),
        live=("decay", "dampening"),
        bad=(({"dampening": 1.5}, ValueError, r"dampening must be in \[0, 1\], got 1.5"),),
    ),
    Case(
        "dampened_trace_nesterov",
        of.dampened_trace,
        {"decay": 0.9, "dampening": 0.3, "nesterov": True},
        oracle=leafwise(lambda _: Trace(0.9, nesterov=True, dampening=0.3)),
        live=("decay", "dampening"),
    ),
    Case(
        "scale_by_trust_ratio",
        of.scale_by_trust_ratio,
        {"min_norm": 0.5, "trust_coefficient": 0.1, "eps": 1e-3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g * trust_ratio(g, p, 0.5, 0.1, 1e-3))),
        live=("min_norm", "trust_coefficient", "eps"),
        needs_params=True,
        bad=negative("min_norm", "trust_coefficient", "eps"),
    ),
    Case(
        "scale_by_trust_ratio_plain",
        of.scale_by_trust_ratio,
        oracle=leafwise(lambda _: Each(lambda g, p, t: g * trust_ratio(g, p))),
        needs_params=True,
    ),
    Case(
        "add_noise",
        of.add_noise,
        {"eta": 0.3, "gamma": 0.6, "seed": 3},
        oracle=noisy(lambda g, t, n: g + math.sqrt(0.3 / t**0.6) * n),
        live=("eta", "gamma"),
        bad=(
            *negative("eta"),
            ({"gamma": None}, TypeError, "gamma must be a number or a 0-dim tensor, got None"),
            ({"seed": 0.5}, TypeError, "seed must be a whole number or a 0-dim integer tensor, got 0.5"),
            ({"seed": 2**63}, ValueError, "seed must fit into 64 bits, got 9223372036854775808"),
            ({"seed": torch.ones(())}, ValueError, "seed must be a whole number or a 0-dim integer tensor"),
        ),
    ),
    Case(
        "normalize",
        of.normalize,
        oracle=together(unit),
        skips={"alone": GLOBAL},
    ),
    Case(
        "normalize_by_update_norm",
        of.normalize_by_update_norm,
        {"scale_factor": 0.5, "eps": 1e-3},
        oracle=together(lambda grads: {n: 0.5 * g / (global_norm(grads) + 1e-3) for n, g in grads.items()}),
        live=("scale_factor", "eps"),
        skips={"alone": GLOBAL},
        bad=(
            *negative("eps"),
            ({"scale_factor": None}, TypeError, "scale_factor must be a number or a 0-dim tensor, got None"),
        ),
    ),
    Case(
        "centralize",
        of.centralize,
        oracle=leafwise(lambda _: Each(centred)),
    ),
    Case("zero_nans", of.zero_nans, oracle=leafwise(lambda _: Each(lambda g, p, t: g))),
    Case(
        "keep_params_nonnegative",
        of.keep_params_nonnegative,
        oracle=leafwise(lambda _: Each(lambda g, p, t: np.maximum(g, -p))),
        needs_params=True,
        skips={"complex": "complex numbers are not ordered"},
    ),
    Case(
        "keep_params_in",
        boxed_sgd,
        {"learning_rate": 0.3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: np.clip(p - 0.3 * g, -0.5, 1.0) - p)),
        live=("learning_rate",),
        covers=("keep_params_in",),
        needs_params=True,
        skips={"complex": "complex numbers are not ordered"},
        bad=(BAD_RATE,),
    ),
    Case(
        "adaptive_grad_clip",
        of.adaptive_grad_clip,
        {"clipping": 0.1, "eps": 0.5},
        oracle=leafwise(lambda _: Each(adaptive_clip(0.1, 0.5))),
        live=("clipping", "eps"),
        needs_params=True,
        bad=negative("clipping", "eps"),
    ),
)
