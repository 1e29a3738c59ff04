"""Cases of Adam and its relatives."""

import math

import torch
from case import NEGATIVE, NO_DECAY, Case
from oracles.adam import Adam, UncorrectedEps
from oracles.adamax import AdaMax
from oracles.amsgrad import AmsGrad
from oracles.blocks import leafwise, torch_optimizer
from oracles.optax_rules import AdaBelief, Adan, Lamb, NovoGrad, Yogi
from oracles.radam import RAdam

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, RATE, matrices_in_rows, negative, no_decay


@of.factory
def nadam_as_torch(learning_rate, b1, b2, eps, momentum_decay):
    """torch.optim.NAdam."""
    return of.chain(of.scale_by_nadam(b1, b2, eps, momentum_decay), of.scale_by_learning_rate(learning_rate))


@of.factory
def radam_as_torch(learning_rate, b1, b2, eps):
    """torch.optim.RAdam."""
    return of.chain(
        of.scale_by_radam(b1, b2, eps, eps_after_correction=False), of.scale_by_learning_rate(learning_rate)
    )


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
BAD_ADAMAX = (
    ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
    ({"b2": 1.0}, ValueError, f"b2 {NO_DECAY}"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
)
CASES = (
    Case(
        "scale_by_adam",
        of.scale_by_adam,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-12},
        oracle=leafwise(lambda _: Adam(eps_root=1e-12)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=BAD_ADAM,
    ),
    Case(
        "scale_by_sparse_adam",
        of.scale_by_sparse_adam,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        oracle=leafwise(lambda _: UncorrectedEps()),
        live=("b1", "b2", "eps"),
        skips={"complex": "its rule is stated for real numbers"},
        bad=(
            ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
            ({"b2": 1.0}, ValueError, f"b2 {NO_DECAY}"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
        ),
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
        "scale_by_nadam",
        nadam_as_torch,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum_decay": 4e-3},
        oracle=torch_optimizer(lambda ps: torch.optim.NAdam(ps, lr=1e-2)),
        live=("learning_rate", "b2", "eps"),
        covers=("scale_by_nadam",),
        bad=(
            ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
            ({"b2": 1.0}, ValueError, f"b2 {NO_DECAY}"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
            ({"momentum_decay": -1.0}, ValueError, f"momentum_decay {NEGATIVE}"),
        ),
    ),
    Case(
        "scale_by_nadam_fast",
        nadam_as_torch,
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "momentum_decay": 0.5},
        oracle=torch_optimizer(
            lambda ps: torch.optim.NAdam(ps, lr=0.1, betas=(0.8, 0.99), eps=1e-3, momentum_decay=0.5)
        ),
        live=("b1", "b2", "eps", "momentum_decay"),
    ),
    Case(
        "scale_by_radam",
        of.scale_by_radam,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-12, "threshold": 5.0},
        oracle=leafwise(lambda _: RAdam(eps_root=1e-12)),
        live=("b1", "b2", "eps", "eps_root", "threshold"),
        bad=(
            ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
            ({"b2": 1.0}, ValueError, f"b2 {NO_DECAY}"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
            ({"eps_root": -1.0}, ValueError, f"eps_root {NEGATIVE}"),
            ({"threshold": None}, TypeError, "threshold must be a number or a 0-dim tensor, got None"),
        ),
    ),
    Case(
        "radam",
        of.radam,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.9, "threshold": 8.0, "nesterov": True},
        oracle=leafwise(lambda _: RAdam(1e-2, beta1=0.8, beta2=0.9, threshold=8.0, nesterov=True)),
        live=("learning_rate", "b1", "b2", "threshold"),
        bad=(BAD_RATE,),
    ),
    Case(
        "radam_as_torch",
        radam_as_torch,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-4},
        oracle=torch_optimizer(lambda ps: torch.optim.RAdam(ps, lr=1e-2, eps=1e-4)),
        live=("learning_rate", "b1", "b2", "eps"),
    ),
    Case(
        "scale_by_adamax",
        of.scale_by_adamax,
        {"b1": 0.9, "b2": 0.99, "eps": 1e-3},
        oracle=torch_optimizer(lambda ps: torch.optim.Adamax(ps, 1.0, (0.9, 0.99), 1e-3, maximize=True)),
        live=("b1", "b2", "eps"),
        bad=BAD_ADAMAX,
    ),
    Case(
        "adamax",
        of.adamax,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
        oracle=torch_optimizer(lambda ps: torch.optim.Adamax(ps, lr=1e-2)),
        live=("learning_rate", "b1", "b2", "eps"),
        bad=(*BAD_ADAMAX, BAD_RATE),
    ),
    Case(
        "adamaxw",
        of.adamaxw,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.99, "weight_decay": 0.1},
        oracle=leafwise(lambda _: AdaMax(1e-2, beta1=0.8, beta2=0.99, weight_decay=0.1)),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(*BAD_ADAMAX, BAD_RATE, BAD_DECAY),
    ),
    Case(
        "adamaxw_masked",
        of.adamaxw,
        {"learning_rate": 1e-2, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: AdaMax(1e-2, weight_decay=0.0 if name == "b" else 0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "scale_by_amsgrad",
        of.scale_by_amsgrad,
        {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "eps_root": 1e-10},
        oracle=leafwise(lambda _: AmsGrad(beta2=0.99, eps_root=1e-10)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=BAD_ADAM,
    ),
    Case(
        "scale_by_amsgrad_of_raw",
        of.scale_by_amsgrad,
        {"b1": 0.9, "b2": 0.9, "max_of_raw": True},
        oracle=leafwise(lambda _: AmsGrad(beta2=0.9, raw=True)),
        live=("b1", "b2"),
    ),
    Case(
        "amsgrad",
        of.amsgrad,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
        oracle=leafwise(lambda _: AmsGrad(1e-2)),
        live=("learning_rate", "b1", "b2", "eps"),
        bad=(*BAD_ADAM, BAD_RATE),
    ),
    Case(
        "amsgrad_biased_mu",
        of.amsgrad,
        {"learning_rate": 1e-2, "b2": 0.99, "eps_root": 1e-10, "bias_correction_mu": False},
        oracle=leafwise(lambda _: AmsGrad(1e-2, beta2=0.99, eps_root=1e-10, debias_m=False)),
        live=("learning_rate", "b2", "eps_root"),
    ),
    Case(
        "amsgrad_of_the_paper",
        of.amsgrad,
        {"learning_rate": 1e-2, "b2": 0.99, "bias_correction_mu": False, "bias_correction_nu": False},
        oracle=leafwise(lambda _: AmsGrad(1e-2, beta2=0.99, debias_m=False, debias_v=False)),
        live=("learning_rate", "b2"),
    ),
    Case(
        "amsgrad_as_torch",
        of.amsgrad,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "max_of_raw": True},
        oracle=torch_optimizer(lambda ps: torch.optim.Adam(ps, lr=1e-2, amsgrad=True)),
        live=("learning_rate", "b1", "b2", "eps"),
    ),
    Case(
        "scale_by_belief",
        of.scale_by_belief,
        {"b1": 0.9, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-6},
        oracle=leafwise(lambda _: AdaBelief(beta2=0.99, eps=1e-4, eps_root=1e-6)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=(*no_decay("b1", "b2"), *negative("eps", "eps_root")),
    ),
    Case(
        "adabelief",
        of.adabelief,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999},
        oracle=leafwise(lambda _: AdaBelief(1e-2)),
        rtol=1e-10,  # where g - mu is zero but for rounding, an eps of 1e-16 shows it
        live=("learning_rate", "b2"),
        bad=(BAD_RATE,),
    ),
    Case(
        "adabelief_nesterov",
        of.adabelief,
        {
            "learning_rate": 1e-2,
            "b2": 0.99,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "weight_decay_mask": of.tree.is_matrix,
            "nesterov": True,
        },
        oracle=leafwise(
            lambda name: AdaBelief(1e-2, beta2=0.99, eps=1e-3, weight_decay=0.1 * matrices_in_rows(name), nesterov=True)
        ),
        live=("learning_rate", "b2", "eps", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "scale_by_yogi",
        of.scale_by_yogi,
        {"b1": 0.9, "b2": 0.99, "eps": 1e-3, "eps_root": 1e-6, "initial_accumulator_value": 1e-3},
        oracle=leafwise(lambda _: Yogi(beta2=0.99, eps_root=1e-6, start=1e-3)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=(*no_decay("b1", "b2"), *negative("eps", "eps_root", "initial_accumulator_value")),
    ),
    Case(
        "yogi",
        of.yogi,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.9, "eps": 1e-3},
        oracle=leafwise(lambda _: Yogi(1e-2, 0.8, 0.9)),
        live=("learning_rate", "b1", "b2", "eps"),
        bad=(BAD_RATE,),
    ),
    Case(
        "scale_by_adan",
        of.scale_by_adan,
        {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8, "eps_root": 1e-8},
        oracle=leafwise(lambda _: Adan(eps_root=1e-8)),
        live=("b1", "b2", "b3", "eps", "eps_root"),
        bad=(*no_decay("b1", "b2", "b3"), *negative("eps", "eps_root")),
    ),
    Case(
        "adan",
        of.adan,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.7, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Adan(1e-2, 0.1, 0.3, eps_root=1e-8, weight_decay=0.1 * matrices_in_rows(name))),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "lamb",
        of.lamb,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Lamb(Adam(beta2=0.99, eps=1e-6), 1e-2, 0.1 * matrices_in_rows(name))),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "scale_by_novograd",
        of.scale_by_novograd,
        {"b1": 0.9, "b2": 0.25, "eps": 1e-3, "eps_root": 1e-6, "weight_decay": 0.1},
        oracle=leafwise(lambda _: NovoGrad(eps=1e-3, eps_root=1e-6, d=0.1)),
        live=("b1", "b2", "eps", "eps_root", "weight_decay"),
        needs_params=True,
        bad=(
            *no_decay("b1", "b2"),
            *negative("eps", "eps_root", "weight_decay"),
            ({"mu_dtype": torch.int8}, ValueError, "mu_dtype must be a floating or complex dtype"),
        ),
    ),
    Case(
        "novograd",
        of.novograd,
        {"learning_rate": 1e-2, "b1": 0.95, "b2": 0.9, "weight_decay": 0.1},
        oracle=leafwise(lambda _: NovoGrad(1e-2, 0.95, 0.9, 1e-6, d=0.1)),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "nadam",
        of.nadam,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.99},
        oracle=leafwise(lambda _: Adam(1e-2, 0.8, 0.99, nesterov=True)),
        live=("learning_rate", "b1", "b2"),
        bad=(BAD_RATE, *no_decay("b1", "b2")),
    ),
    Case(
        "nadamw",
        of.nadamw,
        {"learning_rate": 1e-2, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Adam(1e-2, weight_decay=0.1 * matrices_in_rows(name), nesterov=True)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE, *negative("weight_decay")),
    ),
)
