"""Cases of optax's schedules."""

import itertools
import math

import torch
from case import NEGATIVE, ScheduleCase

import optimfn as of


def _cosine(count, init, steps, alpha=0.0, exponent=1.0):
    return init * ((1 - alpha) * (0.5 * (1 + math.cos(math.pi * min(count, steps) / steps))) ** exponent + alpha)


def _exponential(count):
    return max(0.5 * 0.5 ** math.floor(max(count - 3, 0) / 10), 0.01)


def _warmup_cosine(count):
    return 0.1 + 0.9 * count / 10 if count < 10 else _cosine(count - 10, 1.0, 90, alpha=0.05)


def through(count, kind, points):
    """A line, or half cosine waves, through points."""
    for (begin, low), (end, high) in itertools.pairwise(points):
        if begin <= count < end:
            phase = (count - begin) / (end - begin)
            weight = phase if kind == "linear" else (1 - math.cos(math.pi * phase)) / 2
            return low + (high - low) * weight
    return points[-1][1]


def stable(count, shape):
    """Up in 10 steps, 30 at the top, down in 20."""
    phase = min(max((count - 40) / 20, 0.0), 1.0)
    return 0.1 + 0.9 * count / 10 if count < 10 else 0.05 + 0.95 * shape(phase)


SHAPES = {
    "linear": lambda f: 1 - f,
    "cosine": lambda f: (1 + math.cos(math.pi * f)) / 2,
    "sqrt": lambda f: 1 - math.sqrt(f),
}
CYCLES = [
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20},
    {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 0, "decay_steps": 40, "end_value": 0.1},
]
BAD_CYCLE = (
    ({"transition_steps": 0}, ValueError, "transition_steps must be >= 1, got 0"),
    ({"pct_start": 1.5}, ValueError, r"pct_start must be in \[0, 1\], got 1.5"),
    ({"div_factor": 0.0}, ValueError, "div_factor must be a number > 0, got 0.0"),
    ({"final_div_factor": 0.0}, ValueError, "final_div_factor must be a number > 0, got 0.0"),
    ({"peak_value": None}, TypeError, "peak_value must be a number or a 0-dim tensor, got None"),
)


def restarts(count):
    """`CYCLES` by hand."""
    if count < 5:
        return 0.1 + 0.9 * count / 5
    if count < 20:
        return SHAPES["cosine"](min((count - 5) / 15, 1.0))
    return 0.1 + 0.4 * SHAPES["cosine"](min((count - 20) / 40, 1.0))


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
        "precond_update_prob",
        of.precond_update_prob_schedule,
        {"max_prob": 0.9, "min_prob": 0.5, "decay": 0.05, "flat_start": 4},
        lambda count: max(0.5, min(0.9, 0.9 * math.exp(-0.05 * (count - 4)))),
        live=("max_prob", "min_prob", "decay"),
        bad=(({"decay": -1.0}, ValueError, f"decay {NEGATIVE}"),),
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
    *(
        ScheduleCase(
            f"piecewise_interpolate_{kind}",
            of.piecewise_interpolate_schedule,
            {"interpolate_type": kind, "init_value": 2.0, "boundaries_and_scales": {30: 3.0, 10: 0.5}},
            lambda count, kind=kind: through(count, kind, [(0, 2.0), (10, 1.0), (30, 3.0)]),
            live=("init_value",),
            bad=(
                ({"interpolate_type": "cubic"}, ValueError, "interpolate_type must be one of 'linear', 'cosine'"),
                ({"boundaries_and_scales": {-1: 0.5}}, ValueError, "boundary -1 must be >= 0, got -1"),
                ({"boundaries_and_scales": {1: -0.5}}, ValueError, "scale at 1 must be a number >= 0, got -0.5"),
                ({"init_value": None}, TypeError, "init_value must be a number or a 0-dim tensor, got None"),
            ),
        )
        for kind in ("linear", "cosine")
    ),
    ScheduleCase(
        "piecewise_interpolate_from_nothing",
        of.piecewise_interpolate_schedule,
        {"interpolate_type": "linear", "init_value": 2.0},
        lambda count: 2.0,
        live=("init_value",),
    ),
    ScheduleCase(
        "piecewise_interpolate_from_a_jump",
        of.piecewise_interpolate_schedule,
        {"interpolate_type": "linear", "init_value": 2.0, "boundaries_and_scales": {0: 0.5, 10: 0.5}},
        lambda count: through(count, "linear", [(0, 1.0), (10, 0.5)]),
    ),
    ScheduleCase(
        "linear_onecycle",
        of.linear_onecycle_schedule,
        {"transition_steps": 77, "peak_value": 0.5, "pct_start": 0.3, "div_factor": 10.0, "final_div_factor": 100.0},
        lambda count: through(count, "linear", [(0, 0.05), (23, 0.5), (65, 0.05), (77, 0.0005)]),
        live=("peak_value", "div_factor", "final_div_factor"),
        bad=(
            *BAD_CYCLE,
            ({"pct_final": 0.1}, ValueError, "pct_start must be at most pct_final, got 0.3 and 0.1"),
        ),
    ),
    ScheduleCase(
        "cosine_onecycle",
        of.cosine_onecycle_schedule,
        {"transition_steps": 77, "peak_value": 0.5, "pct_start": 0.3, "div_factor": 10.0, "final_div_factor": 100.0},
        lambda count: through(count, "cosine", [(0, 0.05), (23, 0.5), (77, 0.0005)]),
        live=("peak_value", "div_factor", "final_div_factor"),
        bad=BAD_CYCLE,
    ),
    ScheduleCase(
        "warmup_constant",
        of.warmup_constant_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 20},
        lambda count: 0.1 + 0.9 * min(count, 20) / 20,
        live=("init_value", "peak_value"),
        bad=(({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0, got -1"),),
    ),
    ScheduleCase(
        "warmup_exponential",
        of.warmup_exponential_decay_schedule,
        {
            "init_value": 0.1,
            "peak_value": 1.0,
            "warmup_steps": 10,
            "transition_steps": 5,
            "decay_rate": 0.5,
            "transition_begin": 3,
            "end_value": 0.01,
        },
        lambda count: 0.1 + 0.9 * count / 10 if count < 10 else max(0.5 ** min(max(count - 13, 0) / 5, 99), 0.01),
        live=("init_value", "peak_value", "end_value"),
        bad=(({"decay_rate": -1.0}, ValueError, f"decay_rate {NEGATIVE}"),),
    ),
    ScheduleCase(
        "sgdr",
        of.sgdr_schedule,
        {"cosine_kwargs": CYCLES},
        restarts,
        bad=(
            ({"cosine_kwargs": []}, ValueError, r"cosine_kwargs must hold at least one cycle, got \[\]"),
            ({"cosine_kwargs": [{**CYCLES[0], "decay_steps": 5}]}, ValueError, "decay_steps must be >= 6, got 5"),
        ),
    ),
    *(
        ScheduleCase(
            f"warmup_stable_decay_{decay}",
            of.warmup_stable_decay_schedule,
            {
                "init_value": 0.1,
                "peak_value": 1.0,
                "warmup_steps": 10,
                "stable_steps": 30,
                "decay_steps": 20,
                "end_value": 0.05,
                "decay": decay,
            },
            lambda count, shape=shape: stable(count, shape),
            live=("init_value", "peak_value", "end_value"),
            bad=(
                ({"decay": "exp"}, ValueError, "decay must be one of 'linear', 'cosine', 'sqrt', got 'exp'"),
                ({"decay_steps": 0}, ValueError, "decay_steps must be >= 1, got 0"),
                ({"stable_steps": -1}, ValueError, "stable_steps must be >= 0, got -1"),
            ),
        )
        for decay, shape in SHAPES.items()
    ),
    ScheduleCase(
        "trapezoidal",
        of.trapezoidal_schedule,
        {"peak_value": 0.5, "total_steps": 100, "warmup_steps": 10, "cooldown_steps": 30},
        lambda count: 0.5 * max(min(1.0, count / 10, (100 - count) / 30), 0.0),
        live=("peak_value",),
        bad=(
            ({"total_steps": 39}, ValueError, "total_steps must be >= 40, got 39"),
            ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0, got -1"),
        ),
    ),
    ScheduleCase(
        "trapezoidal_without_slopes",
        of.trapezoidal_schedule,
        {"peak_value": 0.5, "total_steps": 100},
        lambda count: 0.5,
    ),
    ScheduleCase(
        "warmup_inverse_sqrt",
        of.warmup_inverse_sqrt_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 16},
        lambda count: 0.1 + 0.9 * count / 16 if count < 16 else math.sqrt(16 / count),
        live=("init_value", "peak_value"),
        bad=(({"warmup_steps": 0}, ValueError, "warmup_steps must be >= 1, got 0"),),
    ),
)
