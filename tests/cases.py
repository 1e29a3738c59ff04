"""The table: a case for every public transformation and schedule. Every law runs over every case."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from oracles.adam import Adam
from oracles.blocks import Each, global_norm_clip, leafwise, together, torch_optimizer
from oracles.lion import Lion
from oracles.momentum import Ema, Trace
from oracles.rmsprop import RmsProp

import optimfn as of

NEGATIVE = "must be a number >= 0, got -1.0"
NO_DECAY = r"must be in \[0, 1\), got 1.0"


@dataclass(frozen=True)
class Case:
    """One way to make a transformation, and what is known about it."""

    name: str
    make: Callable[..., of.GradientTransformation]
    kwargs: dict[str, Any] = field(default_factory=dict)
    oracle: Callable[..., Any] | None = None  # (params, gradients) -> parameters after every step
    rtol: float = 1e-12  # of the largest number of a leaf, in float64, over 50 steps
    live: tuple[str, ...] = ()  # arguments that may be 0-dim tensors
    covers: tuple[str, ...] = ()  # public names this case stands for, besides `make`
    needs_params: bool = False
    skips: dict[str, str] = field(default_factory=dict)  # law -> why it does not hold
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...] = ()  # changed arguments, error, its words

    def tx(self, **changes: Any) -> of.GradientTransformation:
        """Make the transformation."""
        return self.make(**{**self.kwargs, **changes})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live arguments as 0-dim float64 tensors."""
        return {name: torch.tensor(self.kwargs[name], dtype=torch.float64) for name in self.live}


@dataclass(frozen=True)
class ScheduleCase:
    """One way to make a schedule, and its value as a function of an int in plain Python."""

    name: str
    make: Callable[..., Any]
    kwargs: dict[str, Any]
    value: Callable[[int], float]
    live: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...] = ()

    def schedule(self, **changes: Any) -> Any:
        """Make the schedule."""
        return self.make(**{**self.kwargs, **changes})


def double(updates, params):
    """A rule for `stateless`."""
    return of.tree.scale(2.0, updates)


def cube(update, param):
    """A rule for `stateless_with_tree_map`."""
    return update**3


@of.factory
def clipped_adamw(max_norm, learning_rate, weight_decay):
    """The composed optimizer of the demo."""
    return of.chain(
        of.clip_by_global_norm(max_norm),
        of.scale_by_adam(b1=0.9, b2=0.95),
        of.add_decayed_weights(weight_decay, mask=of.tree.is_matrix),
        of.scale_by_learning_rate(learning_rate),
    )


@of.factory
def named_momentum(decay, step_size):
    """Two members with names."""
    return of.named_chain(("momentum", of.trace(decay)), ("rate", of.scale(step_size)))


@of.factory
def masked_lion(learning_rate):
    """Lion on the matrices, nothing on the rest."""
    return of.masked(of.lion(learning_rate, weight_decay=0.1), of.tree.is_matrix)


def clipped_adamw_oracle(params, gradients):
    """Clip with the one oracle, then follow the other."""
    clip = global_norm_clip(1.0)
    clipped = []
    for grads in gradients:
        small = clip({name: g.numpy() for name, g in grads.items()})
        clipped.append({name: torch.from_numpy(g) for name, g in small.items()})
    decay = {"a": 0.1, "b": 0.0, "c": 0.1}  # matrices only
    return leafwise(lambda name: Adam(1e-2, beta2=0.95, weight_decay=decay[name]))(params, clipped)


def masked_lion_oracle(params, gradients):
    """The vector `b` is masked out, so its raw gradient is added."""
    rules = {"a": Lion(1e-2, weight_decay=0.1), "b": Each(lambda g, p, t: g), "c": Lion(1e-2, weight_decay=0.1)}
    return leafwise(rules.__getitem__)(params, gradients)


def linear(count):
    """The schedule of the cases below."""
    return 0.1 * (1 - min(count, 20) / 20)


SIGN = "the sign has a jump, and its derivative is zero elsewhere"
CLAMP = "clamping is not defined for complex numbers"
DISCARD = "the updates do not depend on the parameters or the gradients"
RATE = of.linear_schedule(0.1, 0.0, 20)
BAD_RATE = ({"learning_rate": -1.0}, ValueError, f"learning_rate {NEGATIVE}")
BAD_DECAY = ({"weight_decay": -1.0}, ValueError, f"weight_decay {NEGATIVE}")
BAD_ADAM = (
    ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
    ({"b2": -0.1}, ValueError, r"b2 must be in \[0, 1\), got -0.1"),
    ({"b2": math.nan}, ValueError, r"b2 must be in \[0, 1\), got nan"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
    ({"eps_root": -1.0}, ValueError, f"eps_root {NEGATIVE}"),
    ({"mu_dtype": torch.int32}, ValueError, "mu_dtype must be a floating or complex dtype, got torch.int32"),
    ({"mu_dtype": "bfloat16"}, TypeError, "mu_dtype must be a torch.dtype or None, got 'bfloat16'"),
    ({"b1": "0.9"}, TypeError, "b1 must be a number or a 0-dim tensor, got '0.9'"),
    ({"b1": torch.ones(2)}, ValueError, r"b1 must be a number or a 0-dim tensor, got a tensor of shape \(2,\)"),
)
BAD_RMS = (
    ({"decay": 1.0}, ValueError, f"decay {NO_DECAY}"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
    ({"initial_scale": -1.0}, ValueError, f"initial_scale {NEGATIVE}"),
)

CASES = (
    # Core
    Case("identity", of.identity, oracle=leafwise(lambda _: Each(lambda g, p, t: g))),
    Case(
        "set_to_zero",
        of.set_to_zero,
        oracle=leafwise(lambda _: Each(lambda g, p, t: 0.0)),
        skips={"differentiable": DISCARD},
    ),
    Case(
        "stateless",
        of.stateless,
        {"f": double},
        oracle=leafwise(lambda _: Each(lambda g, p, t: 2 * g)),
        bad=(({"f": 3}, TypeError, "f must be callable, got 3"),),
    ),
    Case(
        "stateless_with_tree_map",
        of.stateless_with_tree_map,
        {"f": cube},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g**3)),
        bad=(({"f": None}, TypeError, "f must be callable, got None"),),
    ),
    Case(
        "chain",
        clipped_adamw,
        {"max_norm": 1.0, "learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=clipped_adamw_oracle,
        live=("max_norm", "learning_rate", "weight_decay"),
        covers=("chain",),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY, ({"max_norm": 0.0}, ValueError, "max_norm must be a number > 0, got 0.0")),
    ),
    Case("chain_of_none", of.chain, oracle=leafwise(lambda _: Each(lambda g, p, t: g))),
    Case(
        "named_chain",
        named_momentum,
        {"decay": 0.9, "step_size": -0.1},
        oracle=torch_optimizer(lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)),
        live=("decay", "step_size"),
        covers=("named_chain",),
        bad=(({"decay": 1.5}, ValueError, r"decay must be in \[0, 1\], got 1.5"),),
    ),
    Case(
        "masked",
        masked_lion,
        {"learning_rate": 1e-2},
        oracle=masked_lion_oracle,
        live=("learning_rate",),
        covers=("masked",),
        needs_params=True,
        skips={"differentiable": SIGN},
        bad=(BAD_RATE,),
    ),
    # Building blocks
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
        bad=(({"max_norm": 0}, ValueError, "max_norm must be a number > 0, got 0"),),
    ),
    # Optimizers
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
        "scale_by_adam",
        of.scale_by_adam,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-12},
        oracle=leafwise(lambda _: Adam(eps_root=1e-12)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=BAD_ADAM,
    ),
    Case(
        "adam",
        of.adam,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
        oracle=torch_optimizer(lambda ps: torch.optim.Adam(ps, lr=1e-2)),
        live=("learning_rate", "b1", "b2", "eps"),
        bad=(*BAD_ADAM, BAD_RATE),
    ),
    Case(
        "adam_nesterov",
        of.adam,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "eps_root": 1e-10, "nesterov": True},
        oracle=leafwise(lambda _: Adam(1e-2, beta2=0.99, eps_root=1e-10, nesterov=True)),
        live=("learning_rate", "b1", "b2", "eps_root"),
    ),
    Case(
        "adamw",
        of.adamw,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "weight_decay": 0.1},
        oracle=torch_optimizer(lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1)),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(*BAD_ADAM, BAD_RATE, BAD_DECAY),
    ),
    Case(
        "adamw_scheduled",
        of.adamw,
        {"learning_rate": RATE, "weight_decay": 0.1, "mask": of.tree.mask_by_path("^[ac]|weight")},
        oracle=None,  # the parts have theirs
        needs_params=True,
    ),
    Case(
        "scale_by_lion",
        of.scale_by_lion,
        {"b1": 0.9, "b2": 0.99},
        oracle=leafwise(lambda _: Lion()),
        live=("b1", "b2"),
        skips={"differentiable": SIGN},
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
        skips={"differentiable": SIGN},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "scale_by_rms",
        of.scale_by_rms,
        {"decay": 0.9, "eps": 1e-8, "initial_scale": 0.01},
        oracle=leafwise(lambda _: RmsProp(initial_scale=0.01)),
        live=("decay", "eps"),
        bad=BAD_RMS,
    ),
    Case(
        "scale_by_rms_debiased",
        of.scale_by_rms,
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False, "bias_correction": True},
        oracle=leafwise(lambda _: RmsProp(eps_in_sqrt=False, bias_correction=True)),
        live=("decay", "eps"),
    ),
    Case(
        "scale_by_stddev",
        of.scale_by_stddev,
        {"decay": 0.9, "eps": 1e-6},
        oracle=leafwise(lambda _: RmsProp(eps=1e-6, centered=True)),
        live=("decay", "eps"),
        rtol=1e-10,  # nu - |mu|^2 cancels where a gradient hardly changes
        bad=BAD_RMS,
    ),
    Case(
        "scale_by_stddev_debiased",
        of.scale_by_stddev,
        {"decay": 0.9, "eps": 1e-2, "bias_correction": True},
        oracle=leafwise(lambda _: RmsProp(eps=1e-2, centered=True, bias_correction=True)),
        live=("decay", "eps"),
    ),
    Case(
        "rmsprop",
        of.rmsprop,
        {"learning_rate": 1e-2, "decay": 0.9, "momentum": 0.9, "nesterov": True},
        oracle=leafwise(lambda _: RmsProp(1e-2, momentum=0.9, nesterov=True)),
        live=("learning_rate", "decay", "momentum"),
        bad=(*BAD_RMS, BAD_RATE, ({"momentum": -1.0}, ValueError, r"momentum must be in \[0, 1\], got -1.0")),
    ),
    Case(
        "rmsprop_as_torch",
        of.rmsprop,
        {"learning_rate": 1e-2, "decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False, "momentum": 0.9},
        oracle=torch_optimizer(lambda ps: torch.optim.RMSprop(ps, lr=1e-2, momentum=0.9)),
        live=("learning_rate", "decay", "eps", "momentum"),
    ),
    Case(
        "rmsprop_centered_as_torch",
        of.rmsprop,
        {"learning_rate": 1e-2, "decay": 0.99, "eps": 1e-4, "eps_in_sqrt": False, "centered": True},
        oracle=torch_optimizer(lambda ps: torch.optim.RMSprop(ps, lr=1e-2, eps=1e-4, centered=True)),
        live=("learning_rate", "decay", "eps"),
    ),
)


def _cosine(count, init, steps, alpha=0.0, exponent=1.0):
    return init * ((1 - alpha) * (0.5 * (1 + math.cos(math.pi * min(count, steps) / steps))) ** exponent + alpha)


def _exponential(count):
    return max(0.5 * 0.5 ** math.floor(max(count - 3, 0) / 10), 0.01)


def _warmup_cosine(count):
    return 0.1 + 0.9 * count / 10 if count < 10 else _cosine(count - 10, 1.0, 90, alpha=0.05)


NO_STEPS = ValueError, "must be >= 0, got -1"

SCHEDULES = (
    ScheduleCase(
        "constant",
        of.constant_schedule,
        {"value": 0.3},
        lambda count: 0.3,
        live=("value",),
        bad=(({"value": "0.3"}, TypeError, "value must be a number or a 0-dim tensor, got '0.3'"),),
    ),
    ScheduleCase(
        "linear",
        of.linear_schedule,
        {"init_value": 0.1, "end_value": 1.0, "transition_steps": 20, "transition_begin": 5},
        lambda count: 0.1 + 0.9 * min(max(count - 5, 0), 20) / 20,
        live=("init_value", "end_value"),
        bad=(
            ({"transition_steps": -1}, ValueError, "transition_steps must be >= 0, got -1"),
            ({"transition_begin": -1}, ValueError, "transition_begin must be >= 0, got -1"),
            ({"transition_steps": 2.5}, TypeError, "transition_steps must be a whole number of steps, got 2.5"),
        ),
    ),
    ScheduleCase(
        "linear_of_no_length",
        of.linear_schedule,
        {"init_value": 0.1, "end_value": 1.0, "transition_steps": 0},
        lambda count: 0.1,
        live=("init_value",),
    ),
    ScheduleCase(
        "polynomial",
        of.polynomial_schedule,
        {"init_value": 1.0, "end_value": 0.1, "power": 2.0, "transition_steps": 20},
        lambda count: 0.9 * (1 - min(count, 20) / 20) ** 2 + 0.1,
        live=("init_value", "end_value", "power"),
        bad=(({"power": 0.0}, ValueError, "power must be a number > 0, got 0.0"),),
    ),
    ScheduleCase(
        "exponential",
        of.exponential_decay,
        {"init_value": 0.5, "transition_steps": 10, "decay_rate": 0.9},
        lambda count: 0.5 * 0.9 ** (count / 10),
        live=("init_value", "decay_rate"),
        bad=(
            ({"decay_rate": -1.0}, ValueError, f"decay_rate {NEGATIVE}"),
            ({"transition_steps": -1}, ValueError, "transition_steps must be >= 0, got -1"),
            ({"end_value": 0.1, "decay_rate": torch.tensor(0.9)}, TypeError, "decay_rate must be a Python number"),
        ),
    ),
    ScheduleCase(
        "exponential_staircase",
        of.exponential_decay,
        {
            "init_value": 0.5,
            "transition_steps": 10,
            "decay_rate": 0.5,
            "transition_begin": 3,
            "staircase": True,
            "end_value": 0.01,
        },
        _exponential,
        live=("init_value", "end_value"),
    ),
    ScheduleCase(
        "exponential_growth",
        of.exponential_decay,
        {"init_value": 0.5, "transition_steps": 10, "decay_rate": 2.0, "end_value": 3.0},
        lambda count: min(0.5 * 2.0 ** min(count / 10, 100), 3.0),
    ),
    ScheduleCase(
        "cosine",
        of.cosine_decay_schedule,
        {"init_value": 1.0, "decay_steps": 40, "alpha": 0.1, "exponent": 1.5},
        lambda count: _cosine(count, 1.0, 40, 0.1, 1.5),
        live=("init_value", "alpha", "exponent"),
        bad=(
            ({"decay_steps": 0}, ValueError, "decay_steps must be >= 1, got 0"),
            ({"exponent": -1.0}, ValueError, "exponent must be a number > 0, got -1.0"),
        ),
    ),
    ScheduleCase(
        "warmup_cosine",
        of.warmup_cosine_decay_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 10, "decay_steps": 100, "end_value": 0.05},
        _warmup_cosine,
        live=("init_value", "peak_value", "end_value"),
        bad=(
            ({"decay_steps": 10}, ValueError, "decay_steps must be >= 11, got 10"),
            ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0, got -1"),
        ),
    ),
    ScheduleCase(
        "cosine_without_warmup",
        of.warmup_cosine_decay_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": 40},
        lambda count: _cosine(count, 1.0, 40),
    ),
    ScheduleCase(
        "piecewise_constant",
        of.piecewise_constant_schedule,
        {"init_value": 1.0, "boundaries_and_scales": {10: 0.5, 30: 0.1}},
        lambda count: 1.0 * (0.5 if count >= 10 else 1.0) * (0.1 if count >= 30 else 1.0),
        live=("init_value",),
        bad=(
            ({"boundaries_and_scales": {-1: 0.5}}, ValueError, "boundary -1 must be >= 0, got -1"),
            ({"boundaries_and_scales": {1: -0.5}}, ValueError, "scale at 1 must be a number >= 0, got -0.5"),
        ),
    ),
    ScheduleCase(
        "join",
        of.join_schedules,
        {
            "schedules": [
                of.linear_schedule(0.0, 1.0, 10),
                of.constant_schedule(1.0),
                of.linear_schedule(1.0, 0.0, 10),
            ],
            "boundaries": [10, 30],
        },
        lambda count: count / 10 if count < 10 else 1.0 if count < 30 else 1 - min(count - 30, 10) / 10,
        bad=(
            ({"boundaries": [10]}, ValueError, "boundaries must hold one step fewer than schedules, got 1 and 3"),
            ({"boundaries": [30, 10]}, ValueError, r"boundaries must rise, got \[30, 10\]"),
            ({"boundaries": [10, 30.0]}, TypeError, r"boundaries\[1\] must be a whole number of steps, got 30.0"),
            ({"schedules": [1, 2, 3]}, TypeError, r"schedules\[0\] must be callable, got 1"),
        ),
    ),
)
