"""Cases of the rules for whole matrices."""

import torch
from case import NEGATIVE, Case
from oracles.blocks import Each, leafwise, torch_optimizer
from oracles.matrix import AdaMuon, Dion, Dion2, NorMuon, Scion

import optimfn as of

from .common import BAD_RATE, has_two_axes


@of.factory
def muon_as_torch(
    learning_rate,
    momentum,
    weight_decay,
    nesterov=True,
    mode="original",
    ns_coeffs=(3.4445, -4.775, 2.0315),
    ns_steps=5,
    eps=1e-7,
):
    """torch.optim.Muon on the matrices, nothing on the rest."""
    muon = of.chain(
        of.ema(momentum, debias=False, nesterov=nesterov),
        of.orthogonalize(ns_coeffs, ns_steps, eps),
        of.scale_by_matrix_shape(mode),
        of.add_decayed_weights(weight_decay),
        of.scale_by_learning_rate(learning_rate),
    )
    return of.masked(muon, of.tree.mask_by(has_two_axes))


@of.factory
def muon_on_matrices(learning_rate, beta, weight_decay, mode="original"):
    """The whole optimizer, on the matrices."""
    muon = of.torch_muon(learning_rate, beta=beta, weight_decay=weight_decay, mode=mode)
    return of.masked(muon, of.tree.mask_by(has_two_axes))


def muon_oracle(**kwargs):
    """Only `a` is a matrix; `b` and `c` are masked out, so their raw gradients are added."""
    muon = torch_optimizer(lambda ps: torch.optim.Muon(ps, **kwargs))
    raw = leafwise(lambda _: Each(lambda g, p, t: g))

    def run(params, gradients):
        def only(names):
            return {n: params[n] for n in names}, [{n: grads[n] for n in names} for grads in gradients]

        for matrix, rest in zip(muon(*only("a")), raw(*only("bc")), strict=True):
            yield {**matrix, **rest}

    return run


@of.factory
def normuon_on_matrices(learning_rate, beta, b2, weight_decay, nesterov=True):
    """The whole optimizer in float64, on the matrices."""
    rule = of.normuon(
        learning_rate, beta=beta, b2=b2, weight_decay=weight_decay, nesterov=nesterov, dtype=torch.float64
    )
    return of.masked(rule, of.tree.mask_by(has_two_axes))


def normuon_oracle(*arguments):
    """NorMuon for `a`, the raw gradients for what is no matrix."""

    return leafwise(lambda name: NorMuon(*arguments) if name == "a" else Each(lambda g, p, t: g))


@of.factory
def adamuon_on_matrices(learning_rate, beta, weight_decay, nesterov=True, b2=None):
    """The whole optimizer in float64, on the matrices."""
    rule = of.adamuon(
        learning_rate, beta=beta, b2=b2, weight_decay=weight_decay, nesterov=nesterov, dtype=torch.float64
    )
    return of.masked(rule, of.tree.mask_by(has_two_axes))


@of.factory
def dion2_on_matrices(learning_rate, fraction, ef_decay, weight_decay):
    """The whole optimizer in float64, on the matrices."""
    rule = of.dion2(learning_rate, fraction, ef_decay, weight_decay=weight_decay, dtype=torch.float64)
    return of.masked(rule, of.tree.mask_by(has_two_axes))


@of.factory
def dion_on_matrices(learning_rate, rank_fraction, beta, weight_decay):
    """The whole optimizer, on the matrices."""
    rule = of.dion(learning_rate, rank_fraction, beta, weight_decay=weight_decay)
    return of.masked(rule, of.tree.mask_by(has_two_axes))


def dion_oracle(rank, beta, learning_rate, weight_decay):
    """What the library draws for a leaf is a function of its path."""

    def run(params, gradients):
        q = of.tree.normal(of.tree.fold_in(0, "a"), torch.empty(params["a"].shape[1], rank, dtype=torch.float64))
        rule = on_a(Dion, q.numpy(), beta, learning_rate, weight_decay)
        return rule(params, gradients)

    return run


@of.factory
def scion_in_float64(learning_rate, newest, scale, norm="auto"):
    """The whole optimizer in float64; on the matrices in norms that are for matrices. Its momentum is no decay."""
    rule = of.scion(learning_rate, newest, norm, scale, dtype=torch.float64)
    return rule if norm == "auto" else of.masked(rule, of.tree.mask_by(has_two_axes))


def on_a(oracle, *arguments):
    """A rule for `a`, which is a matrix, and the raw gradients for the rest."""
    return leafwise(lambda name: oracle(*arguments) if name == "a" else Each(lambda g, p, t: g))


BFLOAT16 = "computed in bfloat16, where difference quotients see only the rounding"
NO_COMPLEX = "bfloat16 has no complex counterpart; complex leaves are an error"
RAW = "leaves that are no matrices are returned as they come"
PRODUCTS = "products of matrices are those of ATen, whose sums depend on their layout, and five follow each other"


@of.factory
def muon_in_parts(beta, adaptive=False, ns_coeffs=(3.4445, -4.775, 2.0315), ns_steps=5, preconditioning="frobenius"):
    """`scale_by_muon` on the matrices, nothing on the rest."""
    rule = of.scale_by_muon(ns_coeffs, ns_steps, beta, adaptive=adaptive, preconditioning=preconditioning)
    return of.masked(rule, of.tree.mask_by(has_two_axes))


CASES = (
    Case(
        "muon_as_torch",
        muon_as_torch,
        {"learning_rate": 1e-2, "momentum": 0.95, "weight_decay": 0.1},
        oracle=muon_oracle(lr=1e-2),
        live=("learning_rate", "momentum", "weight_decay"),
        covers=("orthogonalize",),
        needs_params=True,
        batched=5e-3,  # under vmap an addmm is three operations, and each rounds to bfloat16
        skips={"differentiable": BFLOAT16, "complex": NO_COMPLEX},
        bad=(
            ({"ns_steps": 0}, ValueError, "ns_steps must be >= 1, got 0"),
            ({"ns_coeffs": (1.0, "2", 3.0)}, TypeError, r"ns_coeffs\[1\] must be a number or a 0-dim tensor, got '2'"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
        ),
    ),
    Case(
        "torch_muon",
        muon_on_matrices,
        {"learning_rate": 1e-2, "beta": 0.95, "weight_decay": 0.1},
        oracle=muon_oracle(lr=1e-2),
        live=("learning_rate", "beta", "weight_decay"),
        covers=("torch_muon",),
        needs_params=True,
        batched=5e-3,  # as above
        skips={"differentiable": BFLOAT16, "complex": NO_COMPLEX},
        bad=(BAD_RATE, ({"mode": "best"}, ValueError, "mode must be one of .*'none', got 'best'")),
    ),
    Case(
        "muon_as_torch_changed",
        muon_as_torch,
        {
            "learning_rate": 0.1,
            "momentum": 0.8,
            "weight_decay": 0.2,
            "nesterov": False,
            "mode": "match_rms_adamw",
            "ns_coeffs": (2.0, -1.5, 0.5),
            "ns_steps": 8,
            "eps": 10.0,
        },
        oracle=muon_oracle(
            lr=0.1,
            momentum=0.8,
            weight_decay=0.2,
            nesterov=False,
            adjust_lr_fn="match_rms_adamw",
            ns_coefficients=(2.0, -1.5, 0.5),
            ns_steps=8,
            eps=10.0,
        ),
        live=("learning_rate", "momentum", "weight_decay", "eps"),
        needs_params=True,
        batched=5e-3,  # under vmap an addmm is three operations, and each rounds to bfloat16
        skips={"differentiable": BFLOAT16, "complex": NO_COMPLEX},
    ),
    Case(
        "scale_by_muon",
        muon_in_parts,
        {"beta": 0.9, "adaptive": True},
        live=("beta",),
        covers=("scale_by_muon",),
        layouts=1e-12,  # products of matrices take their sums in another order, and five of them follow each other
        skips={"range": RAW, "complex": "tested by hand", "fused": PRODUCTS},
        bad=(
            ({"beta": 1.0}, ValueError, r"beta must be in \[0, 1\), got 1.0"),
            ({"ns_steps": 0}, ValueError, "ns_steps must be >= 1, got 0"),
            ({"preconditioning": "none"}, ValueError, "preconditioning must be one of 'frobenius', .*, got 'none'"),
            (
                {"ns_coeffs": ((1.0, 2.0),)},
                ValueError,
                "ns_coeffs must be three numbers, or such triples for the steps",
            ),
        ),
    ),
    Case(
        "muon",
        of.muon,
        {"learning_rate": 0.02, "weight_decay": 0.1, "consistent_rms": 0.2, "adam_learning_rate": 1e-2},
        live=("learning_rate", "weight_decay", "adam_learning_rate"),
        needs_params=True,
        layouts=1e-12,  # as above
        skips={"fused": PRODUCTS},
        bad=(
            BAD_RATE,
            ({"consistent_rms": 0.0}, ValueError, "consistent_rms must be a number > 0, got 0.0"),
            ({"ns_coeffs": "best"}, ValueError, "ns_coeffs must be one of 'standard', 'dion', .*, got 'best'"),
            ({"adam_b1": 1.0}, ValueError, r"adam_b1 must be in \[0, 1\), got 1.0"),
        ),
    ),
    Case(
        "muon_otherwise",
        of.muon,
        {"learning_rate": 0.02, "ns_coeffs": "dion", "preconditioning": "aol", "nesterov": False},
        live=("learning_rate",),
        needs_params=True,
        layouts=1e-12,  # as above
        skips={"fused": PRODUCTS},
    ),
    Case(
        "normuon",
        normuon_on_matrices,
        {"learning_rate": 0.02, "beta": 0.9, "b2": 0.95, "weight_decay": 0.1},
        oracle=normuon_oracle(0.9, 0.95, 0.02, 0.1, True),
        rtol=1e-9,  # five products follow each other, and each magnifies what the last one rounded
        layouts=1e-10,  # as above
        batched=1e-9,  # as above
        live=("learning_rate", "beta", "b2", "weight_decay"),
        covers=("normuon", "scale_by_normuon"),
        needs_params=True,
        skips={"fused": PRODUCTS, "complex": "complex leaves are an error"},
        bad=(
            BAD_RATE,
            ({"b2": 1.0}, ValueError, r"b2 must be in \[0, 1\), got 1.0"),
            ({"beta": 1.0}, ValueError, r"beta must be in \[0, 1\), got 1.0"),
        ),
    ),
    Case(
        "normuon_without_nesterov",
        normuon_on_matrices,
        {"learning_rate": 0.02, "beta": 0.8, "b2": 0.9, "weight_decay": 0.0, "nesterov": False},
        oracle=normuon_oracle(0.8, 0.9, 0.02, 0.0, False),
        rtol=1e-9,  # as above
        layouts=1e-10,
        batched=1e-9,
        live=("learning_rate",),
        needs_params=True,
        skips={"fused": PRODUCTS, "complex": "complex leaves are an error"},
    ),
    Case(
        "adamuon",
        adamuon_on_matrices,
        {"learning_rate": 0.02, "beta": 0.9, "weight_decay": 0.1},
        oracle=on_a(AdaMuon, 0.9, 0.02, 0.1),
        rtol=1e-9,  # five products follow each other, and each magnifies what the last one rounded
        layouts=1e-10,  # as above
        batched=1e-9,  # as above
        live=("learning_rate", "beta", "weight_decay"),
        covers=("adamuon", "scale_by_adamuon"),
        needs_params=True,
        skips={"fused": PRODUCTS, "complex": "complex leaves are an error", "sensitive": "it takes signs"},
        bad=(BAD_RATE, ({"b2": 1.0}, ValueError, r"b2 must be in \[0, 1\), got 1.0")),
    ),
    Case(
        "dion2",
        dion2_on_matrices,
        {"learning_rate": 0.02, "fraction": 0.6, "ef_decay": 0.9, "weight_decay": 0.1},
        oracle=on_a(Dion2, 0.6, 0.9, 0.02, 0.1, of.polar_express()),
        rtol=1e-9,  # as above
        layouts=1e-10,
        batched=1e-9,
        live=("learning_rate", "ef_decay", "weight_decay"),
        covers=("dion2", "scale_by_dion2"),
        needs_params=True,
        skips={"fused": PRODUCTS, "complex": "complex leaves are an error"},
        bad=(BAD_RATE, ({"fraction": 0.0}, ValueError, "fraction must be a number > 0, got 0.0")),
    ),
    Case(
        "dion",
        dion_on_matrices,
        {"learning_rate": 0.02, "rank_fraction": 0.5, "beta": 0.9, "weight_decay": 0.1},
        oracle=dion_oracle(2, 0.9, 0.02, 0.1),
        rtol=1e-9,  # a decomposition follows another
        layouts=1e-10,
        batched=1e-9,
        live=("learning_rate", "beta", "weight_decay"),
        covers=("dion", "scale_by_dion"),
        needs_params=True,
        skips={"fused": PRODUCTS, "complex": "complex leaves are an error"},
        bad=(BAD_RATE, ({"rank_fraction": 0.0}, ValueError, "rank_fraction must be a number > 0, got 0.0")),
    ),
    Case(
        "scion",
        scion_in_float64,
        {"learning_rate": 0.02, "newest": 0.3, "scale": 8.0},
        oracle=leafwise(lambda _: Scion(0.02, 0.3, 8.0)),
        rtol=1e-9,  # as above
        layouts=1e-10,
        batched=1e-9,
        live=("learning_rate", "newest", "scale"),
        covers=("scion", "scale_by_scion", "scale_by_lmo"),
        needs_params=True,
        skips={"fused": PRODUCTS, "complex": "complex leaves are an error"},
        bad=(BAD_RATE, ({"norm": "best"}, ValueError, "norm must be one of 'auto', .*, got 'best'")),
    ),
    *[
        Case(
            f"scion_{norm}",
            scion_in_float64,
            {"learning_rate": 0.02, "newest": 0.3, "scale": 8.0, "norm": norm},
            oracle=on_a(Scion, 0.02, 0.3, 8.0, norm),
            live=("learning_rate",),
            needs_params=True,
            skips={"sensitive": "it takes signs"} if norm == "sign" else {},
        )
        for norm in ("col", "row", "sign")
    ],
)
