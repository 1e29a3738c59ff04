"""Cases of torch's schedulers as schedules."""

from case import NEGATIVE, ScheduleCase
from oracles import torch_schedules as formulas

import optimfn as of

SCHEDULES = (
    ScheduleCase(
        "step_lr",
        of.step_lr,
        {"init_value": 0.5, "step_size": 7, "gamma": 0.9},
        lambda count: formulas.step(count, 0.5, 7, 0.9),
        live=("init_value", "gamma"),
        bad=(
            ({"step_size": 0}, ValueError, "step_size must be >= 1, got 0"),
            ({"gamma": -0.1}, ValueError, "gamma must be a number >= 0, got -0.1"),
        ),
    ),
    ScheduleCase(
        "multi_step_lr",
        of.multi_step_lr,
        {"init_value": 0.5, "milestones": [20, 5, 5], "gamma": 0.9},
        lambda count: formulas.multi_step(count, 0.5, [20, 5, 5], 0.9),
        live=("init_value", "gamma"),
        bad=(
            ({"milestones": [-1]}, ValueError, r"milestones\[0\] must be >= 0, got -1"),
            ({"milestones": [1.5]}, TypeError, r"milestones\[0\] must be a whole number of steps, got 1.5"),
        ),
    ),
    ScheduleCase(
        "constant_lr",
        of.constant_lr,
        {"init_value": 0.5, "factor": 0.25, "total_iters": 10},
        lambda count: 0.125 if count < 10 else 0.5,
        live=("init_value", "factor"),
        bad=(
            ({"factor": -1.0}, ValueError, f"factor {NEGATIVE}"),
            ({"total_iters": 0}, ValueError, "total_iters must be >= 1, got 0"),
        ),
    ),
    ScheduleCase(
        "linear_lr",
        of.linear_lr,
        {"init_value": 0.5, "start_factor": 0.1, "end_factor": 0.7, "total_iters": 9},
        lambda count: formulas.linear(count, 0.5, 0.1, 0.7, 9),
        live=("init_value", "start_factor", "end_factor"),
        bad=(
            ({"start_factor": -1.0}, ValueError, f"start_factor {NEGATIVE}"),
            ({"end_factor": -1.0}, ValueError, f"end_factor {NEGATIVE}"),
            ({"total_iters": 0}, ValueError, "total_iters must be >= 1, got 0"),
        ),
    ),
    ScheduleCase(
        "exponential_lr",
        of.exponential_lr,
        {"init_value": 0.5, "gamma": 0.9},
        lambda count: 0.5 * 0.9**count,
        live=("init_value", "gamma"),
        bad=(({"gamma": -1.0}, ValueError, f"gamma {NEGATIVE}"),),
    ),
    ScheduleCase(
        "polynomial_lr",
        of.polynomial_lr,
        {"init_value": 0.5, "total_iters": 20, "power": 0.9},
        lambda count: formulas.polynomial(count, 0.5, 20, 0.9),
        live=("init_value", "power"),
        bad=(
            ({"power": 0.0}, ValueError, "power must be a number > 0, got 0.0"),
            ({"total_iters": 2.0}, TypeError, "total_iters must be a whole number of steps, got 2.0"),
        ),
    ),
    ScheduleCase(
        "cosine_annealing_lr",
        of.cosine_annealing_lr,
        {"init_value": 0.5, "T_max": 17, "eta_min": 0.001},
        lambda count: formulas.cosine(count, 0.5, 17, 0.001),
        live=("init_value", "eta_min"),
        bad=(({"T_max": 0}, ValueError, "T_max must be >= 1, got 0"),),
    ),
    ScheduleCase(
        "cosine_annealing_warm_restarts",
        of.cosine_annealing_warm_restarts,
        {"init_value": 0.5, "T_0": 5, "T_mult": 1, "eta_min": 0.001},
        lambda count: formulas.warm_restarts(count, 0.5, 5, 1, 0.001),
        live=("init_value", "eta_min"),
        bad=(
            ({"T_0": 0}, ValueError, "T_0 must be >= 1, got 0"),
            ({"T_mult": 1.5}, TypeError, "T_mult must be a whole number of steps, got 1.5"),
        ),
    ),
    ScheduleCase(
        "cosine_annealing_slower_restarts",
        of.cosine_annealing_warm_restarts,
        {"init_value": 0.5, "T_0": 5, "T_mult": 3},
        lambda count: formulas.warm_restarts(count, 0.5, 5, 3, 0.0),
        live=("init_value",),
    ),
    *(
        ScheduleCase(
            f"cyclic_lr_{mode}",
            of.cyclic_lr,
            {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 9, "step_size_down": down, "mode": mode, "gamma": 0.97},
            lambda count, mode=mode, down=down: formulas.cyclic(count, 0.1, 0.5, 9, down or 9, mode, 0.97),
            live=("base_lr", "max_lr", "gamma") if mode == "exp_range" else ("base_lr", "max_lr"),
            bad=(
                ({"step_size_up": 0}, ValueError, "step_size_up must be >= 1, got 0"),
                ({"step_size_down": 0}, ValueError, "step_size_down must be >= 1, got 0"),
                ({"mode": "square"}, ValueError, "mode must be one of 'triangular', 'triangular2', 'exp_range'"),
                ({"gamma": -1.0}, ValueError, f"gamma {NEGATIVE}"),
            ),
        )
        for mode, down in (("triangular", 4), ("triangular2", None), ("exp_range", 13))
    ),
    *(
        ScheduleCase(
            f"one_cycle_lr_{strategy}_{3 if three_phase else 2}_phases",
            of.one_cycle_lr,
            {
                "max_lr": 0.5,
                "total_steps": 60,
                "pct_start": 0.25,
                "anneal_strategy": strategy,
                "div_factor": 25.0,
                "final_div_factor": 1e4,
                "three_phase": three_phase,
            },
            lambda count, strategy=strategy, three_phase=three_phase: formulas.one_cycle(
                count, 0.5, 60, 0.25, strategy, 25.0, 1e4, three_phase
            ),
            live=("max_lr", "pct_start", "div_factor", "final_div_factor"),
            bad=(
                ({"total_steps": 0}, ValueError, "total_steps must be >= 1, got 0"),
                ({"pct_start": 1.5}, ValueError, r"pct_start must be in \[0, 1\], got 1.5"),
                ({"anneal_strategy": "exp"}, ValueError, "anneal_strategy must be one of 'cos', 'linear', got 'exp'"),
                ({"div_factor": 0.0}, ValueError, "div_factor must be a number > 0, got 0.0"),
                ({"final_div_factor": 0.0}, ValueError, "final_div_factor must be a number > 0, got 0.0"),
            ),
        )
        for strategy in ("cos", "linear")
        for three_phase in (False, True)
    ),
    *(
        ScheduleCase(
            f"swa_lr_{strategy}_{epochs}",
            of.swa_lr,
            {"init_value": 0.5, "swa_lr": 0.1, "anneal_epochs": epochs, "anneal_strategy": strategy},
            lambda count, strategy=strategy, epochs=epochs: formulas.swa(count, 0.5, 0.1, epochs, strategy),
            live=("init_value", "swa_lr") if epochs else ("swa_lr",),
            bad=(
                ({"anneal_epochs": -1}, ValueError, "anneal_epochs must be >= 0, got -1"),
                ({"anneal_strategy": "exp"}, ValueError, "anneal_strategy must be one of 'cos', 'linear', got 'exp'"),
            ),
        )
        for strategy, epochs in (("cos", 20), ("linear", 20), ("cos", 0))
    ),
    ScheduleCase(
        "lambda_lr",
        of.lambda_lr,
        {"init_value": 0.5, "lr_lambda": of.exponential_lr(1.0, 0.9)},
        lambda count: 0.5 * 0.9**count,
        live=("init_value",),
        bad=(({"lr_lambda": 0.9}, TypeError, "lr_lambda must be callable, got 0.9"),),
    ),
    ScheduleCase(
        "multiplicative_lr",
        of.multiplicative_lr,
        {"init_value": 0.5, "lr_lambda": of.linear_schedule(1.0, 0.9, 20), "total_steps": 50},
        lambda count: formulas.multiplicative(count, 0.5, lambda i: 1 - 0.1 * min(i, 20) / 20, 50),
        live=("init_value",),
        bad=(
            ({"lr_lambda": 0.9}, TypeError, "lr_lambda must be callable, got 0.9"),
            ({"total_steps": 0}, ValueError, "total_steps must be >= 1, got 0"),
        ),
    ),
    ScheduleCase(
        "chained_schedules",
        of.chained_schedules,
        {"schedules": [of.exponential_lr(0.5, 0.9), of.constant_lr(1.0, 0.1, 6)]},
        lambda count: 0.5 * 0.9**count * (0.1 if count < 6 else 1.0),
        bad=(
            ({"schedules": []}, ValueError, r"schedules must hold at least one schedule, got \[\]"),
            ({"schedules": [1]}, TypeError, r"schedules\[0\] must be callable, got 1"),
        ),
    ),
)
