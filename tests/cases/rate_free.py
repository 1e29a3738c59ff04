"""Cases of the rules that find their own rate."""

import torch
from case import NEGATIVE, NO_DECAY, Case
from oracles import rate_free as oracle
from oracles.blocks import leafwise, together
from oracles.optax_rules import LayerwiseDoG, polyak

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, GLOBAL, negative, no_decay
from .parts import SIGN

TAKES_VALUE = "a copy does not have the value that the case gives to every update"
REAL = "the rule is for real leaves; split_real_and_imaginary makes them"
SHARED = {"alone": "one number is found for all leaves together", "complex": REAL}
INNER = "keeps an inner product of gradient and parameters; where it cancels, its last units hang on the order of sums"
VALUE = {"extra": {"value": 1.0}, "needs_params": True}
MODEL = {**SHARED, "recorded": TAKES_VALUE, "fused": INNER, "range": INNER}


@of.factory
def mechanized(momentum, weight_decay=1e-2, eps=1e-8, s_init=1e-6):
    """Mechanic around gradient descent with momentum."""
    return of.mechanize(of.sgd(1.0, momentum), weight_decay, eps, s_init)


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
    Case(
        "scale_by_dog",
        of.scale_by_dog,
        {"init_step": ("heuristic", 0.1), "eps": 1e-8},
        oracle=oracle.run(lambda: oracle.DoG("heuristic", 0.1)),
        live=("eps",),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=(
            *negative("eps"),
            ({"init_step": ("rate", 1.0)}, ValueError, r"init_step\[0\] must be one of 'distance', 'heuristic'"),
            ({"init_step": ("distance", -1.0)}, ValueError, rf"init_step\[1\] {NEGATIVE}"),
        ),
    ),
    Case(
        "dog",
        of.dog,
        {"learning_rate": 0.5, "init_step": ("distance", 0.2), "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.DoG("distance", 0.2, rate=0.5, weight_decay=0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "dog_from_a_rate",
        of.dog,
        {"init_step": ("learning_rate", 0.05)},
        oracle=oracle.run(lambda: oracle.DoG("learning_rate", 0.05, rate=1.0)),
        needs_params=True,
        skips={"alone": GLOBAL},
    ),
    Case(
        "scale_by_dowg",
        of.scale_by_dowg,
        {"init_estim_sq_dist": 0.5, "eps": 1e-4},
        oracle=oracle.run(lambda: oracle.DoWG(0.5)),
        live=("init_estim_sq_dist", "eps"),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=negative("init_estim_sq_dist", "eps"),
    ),
    Case(
        "dowg",
        of.dowg,
        {"learning_rate": 0.5, "eps": 1e-2, "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.DoWG(1e-2, 1e-2, 0.5, 0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "scale_by_cocob",
        of.scale_by_cocob,
        {"alpha": 10.0, "eps": 1e-8},
        oracle=leafwise(lambda _: oracle.Cocob(10.0)),
        live=("alpha", "eps"),
        needs_params=True,
        skips={"complex": REAL, "range": "counts where the parameters are, which in float32 do not move by 1e-18"},
        bad=(*negative("alpha"), ({"eps": 0.0}, ValueError, "eps must be a number > 0, got 0.0")),
    ),
    Case(
        "cocob",
        of.cocob,
        {"learning_rate": 0.5, "alpha": 10.0, "weight_decay": 0.1},
        oracle=leafwise(lambda _: oracle.Cocob(10.0, rate=0.5, weight_decay=0.1)),
        live=("learning_rate", "alpha", "weight_decay"),
        needs_params=True,
        skips={"complex": REAL},
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "momo",
        of.momo,
        {"learning_rate": 0.1, "beta": 0.8, "lower_bound": 0.1, "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.Momo(1.0, 0.1, 0.8, 0.1, 0.1)),
        live=("learning_rate", "beta", "lower_bound", "weight_decay"),
        **VALUE,
        skips=MODEL,
        bad=(BAD_RATE, BAD_DECAY, *no_decay("beta")),
    ),
    Case(
        "momo_adapted",
        of.momo,
        {"learning_rate": 0.1, "lower_bound": -1.0, "adapt_lower_bound": True},
        oracle=oracle.run(lambda: oracle.Momo(1.0, 0.1, 0.9, -1.0, adapt=True)),
        live=("learning_rate",),
        **VALUE,
        skips=MODEL,
    ),
    Case(
        "momo_adam",
        of.momo_adam,
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.99, "lower_bound": 0.1, "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.Momo(1.0, 0.1, 0.8, 0.1, 0.1, beta2=0.99)),
        live=("learning_rate", "b1", "b2", "lower_bound", "weight_decay"),
        **VALUE,
        skips=MODEL,
        bad=(BAD_RATE, BAD_DECAY, *no_decay("b1", "b2"), *negative("eps")),
    ),
    Case(
        "momo_adam_adapted",
        of.momo_adam,
        {"learning_rate": 0.1, "lower_bound": -1.0, "adapt_lower_bound": True},
        oracle=oracle.run(lambda: oracle.Momo(1.0, 0.1, 0.9, -1.0, adapt=True, beta2=0.999)),
        live=("learning_rate",),
        **VALUE,
        skips=MODEL,
    ),
    Case(
        "prodigy",
        of.prodigy,
        {"learning_rate": 0.9, "estim_lr0": 1e-3, "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.Prodigy(0.9, d0=1e-3, decay=0.1)),
        live=("learning_rate", "estim_lr0", "weight_decay"),
        needs_params=True,
        skips=SHARED,
        bad=(
            BAD_RATE,
            BAD_DECAY,
            *negative("eps"),
            ({"betas": (0.9, 1.0)}, ValueError, rf"betas\[1\] {NO_DECAY}"),
            *no_decay("beta3"),
            ({"estim_lr0": 0.0}, ValueError, "estim_lr0 must be a number > 0, got 0.0"),
            ({"estim_lr_coef": 0.0}, ValueError, "estim_lr_coef must be a number > 0, got 0.0"),
            ({"growth_rate": 0.5}, ValueError, "growth_rate must be a number >= 1, got 0.5"),
            ({"slice_p": 0}, ValueError, "slice_p must be >= 1, got 0"),
        ),
    ),
    Case(
        "prodigy_of_the_authors",
        of.prodigy,
        {"beta3": 0.95, "estim_lr0": 1e-3, "use_bias_correction": False, "growth_rate": 1.1, "slice_p": 3},
        oracle=oracle.run(lambda: oracle.Prodigy(beta3=0.95, d0=1e-3, correct=False, growth=1.1, every=3)),
        live=("beta3",),
        needs_params=True,
        skips=SHARED,
    ),
    Case(
        "prodigy_safeguarded",
        of.prodigy,
        {"estim_lr0": 1e-3, "estim_lr_coef": 2.0, "safeguard_warmup": True},
        oracle=oracle.run(lambda: oracle.Prodigy(d0=1e-3, coef=2.0, safeguard=True)),
        live=("estim_lr_coef",),
        needs_params=True,
        skips=SHARED,
    ),
    Case(
        "dadapt_adamw",
        of.dadapt_adamw,
        {"learning_rate": 0.9, "estim_lr0": 1e-3, "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.DAdaptAdam(0.9, d0=1e-3, decay=0.1)),
        live=("learning_rate", "estim_lr0", "weight_decay"),
        needs_params=True,
        skips=SHARED,
        bad=(
            BAD_RATE,
            BAD_DECAY,
            ({"betas": (1.0, 0.9)}, ValueError, rf"betas\[0\] {NO_DECAY}"),
            ({"estim_lr0": 0.0}, ValueError, "estim_lr0 must be a number > 0, got 0.0"),
            ({"eps": 0.0}, ValueError, "eps must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "dadapt_sgd",
        of.dadapt_sgd,
        {"learning_rate": 0.9, "momentum": 0.8, "estim_lr0": 1e-2, "weight_decay": 0.1, "growth_rate": 2.0},
        oracle=oracle.run(lambda: oracle.DAdaptSGD(0.9, 0.8, 1e-2, 0.1, 2.0)),
        live=("learning_rate", "momentum", "estim_lr0", "weight_decay", "growth_rate"),
        needs_params=True,
        skips=SHARED,
        bad=(
            BAD_RATE,
            BAD_DECAY,
            *no_decay("momentum"),
            ({"estim_lr0": 0.0}, ValueError, "estim_lr0 must be a number > 0, got 0.0"),
            ({"growth_rate": 0.9}, ValueError, "growth_rate must be a number >= 1, got 0.9"),
        ),
    ),
    Case(
        "dadapt_adagrad",
        of.dadapt_adagrad,
        {
            "learning_rate": 0.9,
            "momentum": 0.8,
            "estim_lr0": 1e-2,
            "eps": 1e-6,
            "weight_decay": 0.1,
            "growth_rate": 2.0,
        },
        oracle=oracle.run(lambda: oracle.DAdaptAdaGrad(0.9, 0.8, 1e-6, 1e-2, 0.1, 2.0)),
        live=("learning_rate", "momentum", "eps", "estim_lr0", "weight_decay", "growth_rate"),
        needs_params=True,
        skips=SHARED,
        bad=(
            BAD_RATE,
            BAD_DECAY,
            *no_decay("momentum"),
            *negative("initial_accumulator_value"),
            ({"eps": 0.0}, ValueError, "eps must be a number > 0, got 0.0"),
            ({"estim_lr0": 0.0}, ValueError, "estim_lr0 must be a number > 0, got 0.0"),
            ({"growth_rate": 0.9}, ValueError, "growth_rate must be a number >= 1, got 0.9"),
        ),
    ),
    Case(
        "dadapt_lion",
        of.dadapt_lion,
        {"learning_rate": 0.9, "betas": (0.8, 0.95), "estim_lr0": 1e-2, "weight_decay": 0.1},
        oracle=oracle.run(lambda: oracle.DAdaptLion(0.9, (0.8, 0.95), 1e-2, 0.1)),
        live=("learning_rate", "estim_lr0", "weight_decay"),
        needs_params=True,
        skips={**SHARED, "sensitive": SIGN},
        bad=(
            BAD_RATE,
            BAD_DECAY,
            ({"betas": (1.0, 0.9)}, ValueError, rf"betas\[0\] {NO_DECAY}"),
            ({"estim_lr0": 0.0}, ValueError, "estim_lr0 must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "mechanize",
        mechanized,
        {"momentum": 0.9, "weight_decay": 0.1, "s_init": 0.05},
        oracle=oracle.run(lambda: oracle.Mechanic(0.9, 0.1, s_init=0.05)),
        live=("momentum", "weight_decay", "s_init"),
        covers=("mechanize",),
        needs_params=True,
        skips={**SHARED, "differentiable": "bets on the sign of a gain, which is 0 at the first step"},
        bad=(
            BAD_DECAY,
            ({"s_init": 0.0}, ValueError, "s_init must be a number > 0, got 0.0"),
            ({"eps": 0.0}, ValueError, "eps must be a number > 0, got 0.0"),
        ),
    ),
)
