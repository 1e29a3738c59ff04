"""The table: a case for every public transformation and schedule. Every law runs over every case."""

import functools
import math

import numpy as np
import optax_cases
import torch
from case import NEGATIVE, NO_DECAY, Case, ScheduleCase
from oracles import torch_schedules as formulas
from oracles.adafactor import RowCol
from oracles.adagrad import AdaGrad
from oracles.adam import Adam, UncorrectedEps
from oracles.adamax import AdaMax
from oracles.amsgrad import AmsGrad
from oracles.blocks import Each, global_norm_clip, leafwise, together, torch_optimizer
from oracles.lion import Lion
from oracles.momentum import Ema, Trace
from oracles.radam import RAdam
from oracles.rmsprop import RmsProp

import optimfn as of


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


def has_two_axes(p):
    """A predicate for `mask_by`."""
    return p.ndim == 2


def block_rms(x):
    """Root mean square in NumPy."""
    return np.sqrt(np.mean(x**2))


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


def bowl(params):
    """A loss for rules that evaluate one."""
    size = of.tree.abs_sq(params)
    return of.tree.sum(of.tree.add(size, of.tree.mul(size, size)))


@of.factory
def lbfgs_in_a_bowl(learning_rate, **kwargs):
    """`minimize_by_lbfgs` with a loss of its own, since the laws hand none over."""
    inner = of.minimize_by_lbfgs(learning_rate, **kwargs)

    def update(updates, state, params=None, **extra):
        return inner.update(updates, state, params, value_fn=bowl)

    return of.GradientTransformation(inner.init, update)


def lbfgs_oracle(**kwargs):
    """torch.optim.LBFGS, for which the first gradient of every step is the given one."""

    def run(params, gradients):
        own = {name: p.clone().requires_grad_() for name, p in params.items()}
        optimizer = torch.optim.LBFGS(own.values(), **kwargs)

        def closure():
            optimizer.zero_grad()
            loss = bowl(own)
            loss.backward()
            for name, g in given.items():
                own[name].grad = g
            given.clear()
            return loss.item()

        for grads in gradients:
            given = dict(grads)
            optimizer.step(closure)
            yield {name: p.detach().clone() for name, p in own.items()}

    return run


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
    muon = of.muon(learning_rate, beta=beta, weight_decay=weight_decay, mode=mode)
    return of.masked(muon, of.tree.mask_by(has_two_axes))


@of.factory
def lion_and_sgd(learning_rate, weight_decay):
    """Lion on the matrices, gradient descent on the rest."""
    rules = {"lion": of.lion(learning_rate, weight_decay=weight_decay), "sgd": of.sgd(learning_rate)}
    return of.partition(rules, of.tree.label_by(lion_or_sgd))


def lion_or_sgd(p):
    """Labels for `partition`."""
    return "lion" if p.ndim >= 2 else "sgd"


@of.factory
def protected_adam(learning_rate, max_consecutive_errors):
    """Adam that leaves out steps."""
    return of.apply_if_finite(of.adam(learning_rate), max_consecutive_errors)


@of.factory
def matrices_to_shape(mode):
    """`scale_by_matrix_shape` on the matrices, nothing on the rest."""
    return of.masked(of.scale_by_matrix_shape(mode), of.tree.mask_by(has_two_axes))


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
def split_lion(learning_rate):
    """Lion with a sign of its own for the real and the imaginary part."""
    return of.split_real_and_imaginary(of.lion(learning_rate, weight_decay=0.1))


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


def lion_and_sgd_oracle(params, gradients):
    """The vector `b` is the only leaf that is no matrix."""
    rules = {"a": Lion(1e-2, weight_decay=0.1), "b": Each(lambda g, p, t: -1e-2 * g), "c": Lion(1e-2, weight_decay=0.1)}
    return leafwise(rules.__getitem__)(params, gradients)


def linear(count):
    """The schedule of the cases below."""
    return 0.1 * (1 - min(count, 20) / 20)


BFLOAT16 = "computed in bfloat16, where difference quotients see only the rounding"
NO_COMPLEX = "bfloat16 has no complex counterpart; complex leaves are an error"
TAKES_VALUE = "a copy does not have the metric that the case gives to every update; see test_plateau.py"
AVERAGES_ALL = "a parameter without gradient still counts in the average; see test_averaging.py"
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

BAD_ADADELTA = (
    ({"rho": 1.5}, ValueError, r"rho must be in \[0, 1\], got 1.5"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
)
BAD_RSS = (
    ({"initial_accumulator_value": -1.0}, ValueError, f"initial_accumulator_value {NEGATIVE}"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
)
BAD_ADAMAX = (
    ({"b1": 1.0}, ValueError, f"b1 {NO_DECAY}"),
    ({"b2": 1.0}, ValueError, f"b2 {NO_DECAY}"),
    ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
)
BAD_RPROP = (
    BAD_RATE,
    ({"learning_rate": RATE}, TypeError, "learning_rate must be a number or a 0-dim tensor, got linear_schedule"),
    ({"eta_minus": 1.0}, ValueError, f"eta_minus {NO_DECAY}"),
    ({"eta_plus": 0.5}, ValueError, "eta_plus must be a number >= 1, got 0.5"),
    ({"min_step_size": -1.0}, ValueError, f"min_step_size {NEGATIVE}"),
    (
        {"min_step_size": 1.0, "max_step_size": 0.1},
        ValueError,
        "min_step_size must be at most max_step_size, got 1.0 and 0.1",
    ),
)
GLOBAL = "the norm is that of all leaves together"
DECIDES = {
    "alone": "the loss, and the direction, are those of all leaves together",
    "fused": "when to stop is decided in Python, so the rule runs eagerly; see test_fused.py",
    "vmap": "when to stop is decided in Python, so stacked models would have to stop together",
    "compile": "when to stop is decided in Python, which breaks the graph",
    "meta": "when to stop is decided in Python, by values that are not there",
    "differentiable": "derivatives take the decisions and the step lengths as given",
    "dtype": "the loss is evaluated at rounded parameters; test_lbfgs.py has the dtypes",
}
NO_SIGN = "a sign of real and imaginary part together is not defined; split_real_and_imaginary takes them apart"

CASES = (
    # Core
    Case("identity", of.identity, oracle=leafwise(lambda _: Each(lambda g, p, t: g))),
    Case(
        "set_to_zero",
        of.set_to_zero,
        oracle=leafwise(lambda _: Each(lambda g, p, t: 0.0)),
        skips={"sensitive": DISCARD},
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
        skips={"alone": GLOBAL},
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
        bad=(BAD_RATE,),
    ),
    Case(
        "partition",
        lion_and_sgd,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=lion_and_sgd_oracle,
        live=("learning_rate", "weight_decay"),
        covers=("partition",),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "apply_if_finite",
        protected_adam,
        {"learning_rate": 1e-2, "max_consecutive_errors": 2},
        oracle=torch_optimizer(functools.partial(torch.optim.Adam, lr=1e-2)),
        live=("learning_rate",),
        covers=("apply_if_finite",),
        bad=(
            ({"max_consecutive_errors": -1}, ValueError, "max_consecutive_errors must be >= 0, got -1"),
            ({"max_consecutive_errors": 1.5}, TypeError, "max_consecutive_errors must be a whole number of steps"),
        ),
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
        bad=(({"mode": "adamw"}, ValueError, "mode must be one of 'original', 'match_rms_adamw', got 'adamw'"),),
    ),
    Case(
        "scale_by_matrix_shape_as_adamw",
        matrices_to_shape,
        {"mode": "match_rms_adamw"},
        oracle=leafwise(lambda name: Each(lambda g, p, t: 0.2 * math.sqrt(4) * g if name == "a" else g)),
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
        "split_real_and_imaginary",
        split_lion,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda _: Lion(1e-2, weight_decay=0.1)),
        live=("learning_rate",),
        covers=("split_real_and_imaginary",),
        needs_params=True,
        skips={"sensitive": "it is as differentiable as what it wraps, which is Lion here"},
        bad=(BAD_RATE,),
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
        "asgd",
        of.asgd,
        {"learning_rate": 1e-2},
        oracle=torch_optimizer(lambda ps: torch.optim.ASGD(ps)),
        needs_params=True,
        bad=(
            ({"learning_rate": -1.0}, ValueError, f"learning_rate {NEGATIVE}"),
            ({"learning_rate": RATE}, TypeError, "learning_rate must be a number or a 0-dim tensor"),
            ({"lambd": -1.0}, ValueError, f"lambd {NEGATIVE}"),
            ({"alpha": -1.0}, ValueError, f"alpha {NEGATIVE}"),
            ({"t0": -1.0}, ValueError, f"t0 {NEGATIVE}"),
        ),
    ),
    Case(
        "asgd_averaging",
        of.asgd,
        {"learning_rate": 0.1, "lambd": 0.1, "alpha": 0.6, "t0": 3.0},
        oracle=torch_optimizer(lambda ps: torch.optim.ASGD(ps, lr=0.1, lambd=0.1, alpha=0.6, t0=3)),
        live=("learning_rate", "lambd", "alpha", "t0"),
        needs_params=True,
    ),
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
        "muon",
        muon_on_matrices,
        {"learning_rate": 1e-2, "beta": 0.95, "weight_decay": 0.1},
        oracle=muon_oracle(lr=1e-2),
        live=("learning_rate", "beta", "weight_decay"),
        covers=("muon",),
        needs_params=True,
        batched=5e-3,  # as above
        skips={"differentiable": BFLOAT16, "complex": NO_COMPLEX},
        bad=(BAD_RATE, ({"mode": "none"}, ValueError, "mode must be one of 'original', 'match_rms_adamw', got 'none'")),
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
        "scale_by_lion",
        of.scale_by_lion,
        {"b1": 0.9, "b2": 0.99},
        oracle=leafwise(lambda _: Lion()),
        live=("b1", "b2"),
        skips={"sensitive": f"in the mode 'hard' {SIGN}; the other modes are smooth or linear in pieces"},
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
        "minimize_by_lbfgs",
        lbfgs_in_a_bowl,
        {"learning_rate": 0.5, "max_iter": 3, "history_size": 2},
        oracle=lbfgs_oracle(lr=0.5, max_iter=3, history_size=2),
        live=("learning_rate",),
        covers=("minimize_by_lbfgs",),
        needs_params=True,
        skips=DECIDES,
        bad=(
            BAD_RATE,
            ({"learning_rate": 0.0, "line_search": "strong_wolfe"}, ValueError, "learning_rate must be a number > 0"),
            ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
            ({"max_eval": 0}, ValueError, "max_eval must be >= 1, got 0"),
            ({"max_iter": 2.5}, TypeError, "max_iter must be a whole number of steps, got 2.5"),
            ({"history_size": 0}, ValueError, "history_size must be >= 1, got 0"),
            ({"tolerance_grad": -1.0}, ValueError, f"tolerance_grad {NEGATIVE}"),
            ({"tolerance_change": -1.0}, ValueError, f"tolerance_change {NEGATIVE}"),
            ({"line_search": "armijo"}, ValueError, "line_search must be one of None, 'strong_wolfe', got 'armijo'"),
        ),
    ),
    Case(
        "minimize_by_lbfgs_with_line_search",
        lbfgs_in_a_bowl,
        {"learning_rate": 1.0, "line_search": "strong_wolfe", "max_iter": 3, "history_size": 3},
        oracle=lbfgs_oracle(line_search_fn="strong_wolfe", max_iter=3, history_size=3),
        live=("learning_rate",),
        needs_params=True,
        skips=DECIDES,
    ),
    Case(
        "lion",
        of.lion,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Lion(1e-2, weight_decay=0.1)),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        skips={"sensitive": SIGN},
        bad=(BAD_RATE, BAD_DECAY),
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
        "scale_by_rprop",
        of.scale_by_rprop,
        {"learning_rate": 0.1, "eta_minus": 0.5, "eta_plus": 1.2},
        oracle=torch_optimizer(lambda ps: torch.optim.Rprop(ps, lr=0.1, maximize=True)),
        live=("learning_rate", "eta_minus"),
        skips={"sensitive": SIGN, "complex": NO_SIGN},
        bad=BAD_RPROP,
    ),
    Case(
        "rprop",
        of.rprop,
        {"learning_rate": 0.1, "eta_minus": 0.3, "eta_plus": 2.4, "min_step_size": 0.02, "max_step_size": 0.7},
        oracle=torch_optimizer(lambda ps: torch.optim.Rprop(ps, 0.1, (0.3, 2.4), (0.02, 0.7))),
        live=("learning_rate", "eta_minus", "eta_plus", "min_step_size", "max_step_size"),
        skips={"sensitive": SIGN, "complex": NO_SIGN},
        bad=BAD_RPROP,
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
    # Reactions to a metric, and averages of the parameters
    Case(
        "plateau",
        of.plateau,
        {"factor": 0.8, "patience": 0, "min_scale": 0.01},
        extra={"value": 1.0},
        oracle=leafwise(lambda _: Each(lambda g, p, t: max(0.8 ** (t - 1), 0.01) * g)),
        live=("factor", "min_scale"),
        skips={"recorded": TAKES_VALUE},
        bad=(
            ({"factor": 1.0}, ValueError, f"factor {NO_DECAY}"),
            ({"min_scale": 1.5}, ValueError, r"min_scale must be in \[0, 1\], got 1.5"),
            ({"threshold": -1.0}, ValueError, f"threshold {NEGATIVE}"),
            ({"patience": -1}, ValueError, "patience must be >= 0, got -1"),
            ({"cooldown": 1.5}, TypeError, "cooldown must be a whole number of steps, got 1.5"),
            ({"mode": "low"}, ValueError, "mode must be one of 'min', 'max', got 'low'"),
            ({"threshold_mode": "sum"}, ValueError, "threshold_mode must be one of 'rel', 'abs', got 'sum'"),
        ),
    ),
    Case(
        "plateau_with_cooldown",
        of.plateau,
        {"mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.1, "threshold_mode": "abs", "cooldown": 2},
        extra={"value": torch.tensor(1.0)},
        # Of the steps 1, 2, ... the first is the best; 3 is the second bad one, 4 and 5 do not count, 7 is next.
        oracle=leafwise(lambda _: Each(lambda g, p, t: 0.5 ** ((t + 1) // 4) * g)),
        live=("factor", "threshold"),
        skips={"recorded": TAKES_VALUE, "meta": "the metric of this case has a value"},
    ),
    Case(
        "params_ema",
        of.params_ema,
        {"decay": 0.9},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        live=("decay",),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
        bad=(({"decay": 1.0}, ValueError, f"decay {NO_DECAY}"),),
    ),
    Case(
        "params_ema_debiased",
        of.params_ema,
        {"decay": 0.9, "debias": True},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        live=("decay",),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
    ),
    Case(
        "params_swa",
        of.params_swa,
        {"start": 2, "every": 3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g)),
        needs_params=True,
        skips={"absent": AVERAGES_ALL},
        bad=(
            ({"start": -1}, ValueError, "start must be >= 0, got -1"),
            ({"every": 0}, ValueError, "every must be >= 1, got 0"),
        ),
    ),
    *optax_cases.CASES,
)


def _cosine(count, init, steps, alpha=0.0, exponent=1.0):
    return init * ((1 - alpha) * (0.5 * (1 + math.cos(math.pi * min(count, steps) / steps))) ** exponent + alpha)


def _exponential(count):
    return max(0.5 * 0.5 ** math.floor(max(count - 3, 0) / 10), 0.01)


def _warmup_cosine(count):
    return 0.1 + 0.9 * count / 10 if count < 10 else _cosine(count - 10, 1.0, 90, alpha=0.05)


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
    # The schedulers of torch
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
    *optax_cases.SCHEDULES,
)
