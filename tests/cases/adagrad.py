"""Cases of the rules that divide by a root of second moments: Adagrad, RMSProp, Adafactor and others."""

import math

import torch
from case import NEGATIVE, NO_DECAY, Case
from oracles.adafactor import RowCol
from oracles.adagrad import AdaGrad, RowwiseAdaGrad
from oracles.blocks import leafwise, torch_optimizer
from oracles.optax_rules import SM3, AdafactorAsOptax, Factored
from oracles.rmsprop import RmsProp

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, RATE, linear, negative, no_decay


@of.factory
def adafactor_as_torch(learning_rate, beta2_decay, eps1, eps2, d, weight_decay):
    """torch.optim.Adafactor."""
    return of.chain(
        of.scale_by_row_col_rms(beta2_decay, eps1),
        of.clip_by_block_rms(d),
        of.scale_by_param_block_rms(eps2),
        of.scale_by_schedule(lambda count: of.tree.clip(of.tree.wide(count + 1) ** -0.5, max_value=learning_rate)),
        # A schedule, so that tensors are multiplied in the update and not once and for all here.
        of.add_decayed_weights(lambda count: learning_rate * weight_decay),
        of.scale(-1.0),
    )


BAD_RMS = (
    ({"decay": 1.0}, ValueError, f"decay {NO_DECAY}"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
    ({"initial_scale": -1.0}, ValueError, f"initial_scale {NEGATIVE}"),
)
BAD_ADADELTA = (
    ({"rho": 1.5}, ValueError, r"rho must be in \[0, 1\], got 1.5"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
)
BAD_RSS = (
    ({"initial_accumulator_value": -1.0}, ValueError, f"initial_accumulator_value {NEGATIVE}"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
)


def bounded_decay(step, rate):
    """A decay for `scale_by_factored_rms` with a bound."""
    return of.tree.clip(1 - of.tree.wide(step + 1) ** -rate, max_value=0.7)


class ScheduledAdafactor(AdafactorAsOptax):
    """Adafactor's rule, unclipped and whole, with a rate that is a schedule."""

    def __init__(self, schedule):
        super().__init__(d=math.inf, least=99, eps=1e-3)
        self.schedule = schedule

    def __call__(self, g, p, t):
        self.rate = self.schedule(t - 1)
        return super().__call__(g, p, t)


CASES = (
    Case(
        "scale_by_row_col_rms",
        of.scale_by_row_col_rms,
        {"beta2_decay": -0.8, "eps": 0.1},
        oracle=leafwise(lambda _: RowCol(eps=0.1)),
        live=("beta2_decay", "eps"),
        bad=(
            ({"beta2_decay": 0.8}, ValueError, "beta2_decay must be a number <= 0, got 0.8"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
        ),
    ),
    Case(
        "adafactor_as_torch",
        adafactor_as_torch,
        {
            "learning_rate": 1e-2,
            "beta2_decay": -0.8,
            "eps1": None,
            "eps2": 1e-3,
            "d": 1.0,
            "weight_decay": 0.0,
        },
        oracle=torch_optimizer(lambda ps: torch.optim.Adafactor(ps)),
        live=("learning_rate", "beta2_decay", "eps2"),
        needs_params=True,
    ),
    Case(
        "adafactor_as_torch_decayed",
        adafactor_as_torch,
        {"learning_rate": 0.5, "beta2_decay": -1.0, "eps1": 1e-3, "eps2": 0.8, "d": 1.5, "weight_decay": 0.1},
        oracle=torch_optimizer(
            lambda ps: torch.optim.Adafactor(ps, 0.5, beta2_decay=-1.0, eps=(1e-3, 0.8), d=1.5, weight_decay=0.1)
        ),
        live=("learning_rate", "beta2_decay", "eps1", "eps2", "d", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "scale_by_adadelta",
        of.scale_by_adadelta,
        {"rho": 0.9, "eps": 1e-6},
        oracle=torch_optimizer(lambda ps: torch.optim.Adadelta(ps, maximize=True)),
        live=("rho", "eps"),
        bad=BAD_ADADELTA,
    ),
    Case(
        "adadelta",
        of.adadelta,
        {"learning_rate": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
        oracle=torch_optimizer(lambda ps: torch.optim.Adadelta(ps, lr=0.5, rho=0.8, eps=1e-3, weight_decay=0.1)),
        live=("learning_rate", "rho", "eps", "weight_decay"),
        needs_params=True,
        bad=(*BAD_ADADELTA, BAD_RATE, BAD_DECAY),
    ),
    Case(
        "adadelta_masked",
        of.adadelta,
        {"weight_decay": 0.1, "weight_decay_mask": of.tree.is_matrix},
        oracle=torch_optimizer(
            lambda ps: torch.optim.Adadelta([{"params": [ps[0], ps[2]], "weight_decay": 0.1}, {"params": [ps[1]]}])
        ),
        live=("weight_decay",),
        needs_params=True,
    ),
    Case(
        "scale_by_rss",
        of.scale_by_rss,
        {"initial_accumulator_value": 0.1, "eps": 1e-7},
        oracle=leafwise(lambda _: AdaGrad()),
        live=("eps",),
        bad=BAD_RSS,
    ),
    Case(
        "scale_by_rss_from_nothing",
        of.scale_by_rss,
        {"initial_accumulator_value": 0.0, "eps": 0.0},
        oracle=leafwise(lambda _: AdaGrad(start=0.0, delta=0.0)),
    ),
    Case(
        "scale_by_rowwise_rss",
        of.scale_by_rowwise_rss,
        {"initial_accumulator_value": 0.1, "eps": 1e-8},
        oracle=leafwise(lambda _: RowwiseAdaGrad(start=0.1)),
        live=("eps",),
        bad=BAD_RSS,
    ),
    Case(
        "rowwise_adagrad",
        of.rowwise_adagrad,
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps": 1e-2},
        oracle=leafwise(lambda _: RowwiseAdaGrad(0.1, eps=1e-2)),
        live=("learning_rate", "eps"),
        bad=(*BAD_RSS, BAD_RATE),
    ),
    Case(
        "adagrad",
        of.adagrad,
        {"learning_rate": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-2},
        oracle=leafwise(lambda _: AdaGrad(0.1, start=0.5, delta=1e-2)),
        live=("learning_rate", "eps"),
        bad=(*BAD_RSS, BAD_RATE),
    ),
    Case(
        "adagrad_as_torch",
        of.adagrad,
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False},
        oracle=torch_optimizer(lambda ps: torch.optim.Adagrad(ps, lr=0.1)),
        live=("learning_rate", "eps"),
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
    Case(
        "scale_by_sm3",
        of.scale_by_sm3,
        {"b1": 0.9, "b2": 0.8, "eps": 1e-4},
        oracle=leafwise(lambda _: SM3(beta2=0.8, eps=1e-4)),
        live=("b1", "b2", "eps"),
        bad=(
            *no_decay("b1"),
            ({"b2": 1.5}, ValueError, r"b2 must be in \[0, 1\], got 1.5"),
            *negative("eps"),
        ),
    ),
    Case(
        "sm3",
        of.sm3,
        {"learning_rate": 0.1, "momentum": 0.8},
        oracle=leafwise(lambda _: SM3(0.1, 0.8)),
        live=("learning_rate", "momentum"),
        bad=(BAD_RATE, *no_decay("momentum")),
    ),
    Case(
        "scale_by_factored_rms",
        of.scale_by_factored_rms,
        {"decay_rate": 0.7, "min_dim_size_to_factor": 2, "epsilon": 1e-2},
        oracle=leafwise(lambda _: Factored(0.7, 2, 1e-2)),
        live=("decay_rate", "epsilon"),
        needs_params=True,
        bad=(
            *negative("epsilon"),
            ({"min_dim_size_to_factor": 1.5}, TypeError, "min_dim_size_to_factor must be a whole number"),
            ({"step_offset": 0.5}, TypeError, "step_offset must be a whole number of steps, got 0.5"),
            ({"decay_rate": "0.8"}, TypeError, "decay_rate must be a number or a 0-dim tensor, got '0.8'"),
            ({"decay_rate_fn": 0.9}, TypeError, "decay_rate_fn must be callable, got 0.9"),
        ),
    ),
    Case(
        "scale_by_factored_rms_whole",
        of.scale_by_factored_rms,
        {"factored": False, "epsilon": 1e-4, "decay_rate_fn": bounded_decay},
        oracle=leafwise(lambda _: Factored(least=99, eps=1e-4, beta=lambda t: min(1 - t**-0.8, 0.7))),
        live=("epsilon",),
        needs_params=True,
    ),
    Case(
        "adafactor",
        of.adafactor,
        {"learning_rate": 0.1, "min_dim_size_to_factor": 3, "decay_rate": 0.8, "eps": 1e-4},
        oracle=leafwise(lambda _: AdafactorAsOptax(0.1, least=3, eps=1e-4)),
        live=("learning_rate", "decay_rate", "eps"),
        needs_params=True,
        bad=(BAD_RATE, ({"clipping_threshold": 0.0}, ValueError, "threshold must be a number > 0, got 0.0")),
    ),
    Case(
        "adafactor_with_all",
        of.adafactor,
        {
            "learning_rate": None,
            "min_dim_size_to_factor": 2,
            "multiply_by_parameter_scale": False,
            "clipping_threshold": 0.5,
            "momentum": 0.9,
            "dtype_momentum": None,
            "weight_decay_rate": 0.01,
            "eps": 1e-3,
        },
        oracle=leafwise(lambda _: AdafactorAsOptax(1.0, 0.5, 0.9, 0.01, relative=False, least=2, eps=1e-3)),
        live=("clipping_threshold", "momentum", "weight_decay_rate", "eps"),
        needs_params=True,
    ),
    Case(
        "adafactor_unclipped",
        of.adafactor,
        {"learning_rate": RATE, "clipping_threshold": None, "factored": False, "eps": 1e-3},
        oracle=leafwise(lambda _: ScheduledAdafactor(linear)),
        live=("eps",),
        needs_params=True,
    ),
)
