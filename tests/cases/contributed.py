"""Cases of what keeps an iterate, climbs, adds noise or asks for curvature."""

import numpy as np
import torch
from case import NEGATIVE, Case
from oracles.blocks import Each, leafwise
from oracles.iterates import Rms, Sam, ScheduleFree
from oracles.rate_free import run

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, GLOBAL, RATE, linear, negative, no_decay

TAKES_LOSS = "a copy does not have the loss that the case gives to every update"
REAL = "the rule is for real leaves; split_real_and_imaginary makes them"
SMOOTH_B1 = ({"b1": 0.0}, ValueError, "b1 must be a number > 0, got 0.0")


@of.factory
def free_sgd(learning_rate, b1, weight_lr_power=2.0, weight_step_power=0.0, decay_at="y"):
    """Schedule-free around gradient descent with a decay."""
    return of.schedule_free(
        of.chain(of.add_decayed_weights(0.1), of.sgd(learning_rate)),
        learning_rate,
        b1,
        weight_lr_power,
        weight_step_power=weight_step_power,
        decay_at=decay_at,
    )


@of.factory
def climbing_sgd(learning_rate, momentum, rho, sync_period=2):
    """SAM around gradient descent with momentum."""
    climb = of.chain(of.normalize(), of.sgd(rho))
    return of.sam(of.sgd(learning_rate, momentum), climb, sync_period)


@of.factory
def climbing_at_once(learning_rate, rho):
    """SAM that asks for the gradients it needs."""
    climb = of.chain(of.normalize(), of.sgd(rho))
    return of.sam(of.sgd(learning_rate), climb, 2, opaque_mode=True)


def uphill(params, step):
    """A gradient for the climb."""
    return of.tree.map(lambda p: 2.0 * p, params)


def at_once(eta, rho):
    """One step down by the gradient of `uphill` at the top of the climb."""

    def rule(g, p, t):
        size = np.sqrt(sum((x**2).sum() for x in g.values()))
        return {n: -eta * 2.0 * (p[n] + (rho * g[n] / size if size else 0.0)) for n in g}

    return rule


def twice(updates, params):
    """The gradients of two examples made of one."""
    return of.tree.map(lambda g: torch.stack([g, 0.1 * g]), updates)


@of.factory
def private(learning_rate, l2_norm_clip, noise_multiplier, momentum=None):
    """`dpsgd` with two examples a step."""
    return of.chain(of.stateless(twice), of.dpsgd(learning_rate, l2_norm_clip, noise_multiplier, 3, momentum))


@of.factory
def aggregated(l2_norm_clip, noise_multiplier):
    """The sum of two examples without noise."""
    aggregate = of.differentially_private_aggregate(l2_norm_clip, noise_multiplier, seed=3)
    return of.chain(of.stateless(twice), aggregate)


def two_clipped(bound):
    """Half the sum of two clipped examples."""

    def rule(g, p, t):
        size = np.sqrt(sum((x**2).sum() for x in g.values()))
        share = sum(k * (min(1.0, bound / abs(k * size)) if size else 1.0) for k in (1.0, 0.1)) / 2
        return {n: share * x for n, x in g.items()}

    return rule


def quartic(params):
    """A loss with a diagonal Hessian, which one random vector finds."""
    return of.tree.sum(of.tree.map(lambda p: p**4 / 12 + p**2, params))


class Sophia:
    """Liu et al. 2023, Algorithm 3, with the exact diagonal of `quartic`."""

    def __init__(self, beta1=0.965, beta2=0.99, eps=1e-8, gamma=0.01, bound=1.0, k=10, rate=-1.0, decay=0.0):
        self.beta1, self.beta2, self.eps, self.gamma, self.bound, self.k = beta1, beta2, eps, gamma, bound, k
        self.rate, self.decay, self.m, self.h = rate, decay, 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        step = self.m / (1 - self.beta1**t) / np.maximum(self.gamma * self.h, self.eps)
        if self.bound:
            step = np.clip(step, -self.bound, self.bound)
        if (t - 1) % self.k == 0:
            self.h = self.beta2 * self.h + (1 - self.beta2) * (p**2 + 2)
        return -self.rate * (step + self.decay * p)


LOSS = {"extra": {"obj_fn": quartic}, "needs_params": True}
CURVED = {
    "recorded": TAKES_LOSS,
    "differentiable": "torch has no forward mode within the forward mode that a product with the Hessian takes",
    "complex": REAL,
    "fused": "the rule itself runs: a gradient of a gradient is taken inside",
    "range": "the loss of the case has fourth powers",
    "dtype": "the loss of the case has fourth powers, whose rounding is its own",
}
CASES = (
    Case(
        "schedule_free",
        free_sgd,
        {"learning_rate": 0.1, "b1": 0.8},
        oracle=leafwise(lambda _: ScheduleFree(Each(lambda g, p, t: -0.1 * (g + 0.1 * p)), 0.1, 0.8)),
        live=("learning_rate", "b1"),
        covers=("schedule_free",),
        needs_params=True,
        bad=(
            BAD_RATE,
            SMOOTH_B1,
            ({"b1": 1.5}, ValueError, r"b1 must be in \[0, 1\], got 1.5"),
            *negative("weight_lr_power", "weight_step_power"),
            ({"decay_at": "x"}, ValueError, "decay_at must be one of 'y', 'z', got 'x'"),
        ),
    ),
    Case(
        "schedule_free_at_z",
        free_sgd,
        {"learning_rate": RATE, "b1": 0.9, "weight_lr_power": 1.0, "weight_step_power": 2.0, "decay_at": "z"},
        oracle=leafwise(
            lambda _: ScheduleFree(
                Each(lambda g, p, t: -linear(t - 1) * (g + 0.1 * p)), linear, 0.9, 1.0, 2.0, at_z=True
            )
        ),
        live=("b1",),
        needs_params=True,
    ),
    Case(
        "schedule_free_sgd",
        of.schedule_free_sgd,
        {"learning_rate": 0.1, "weight_decay": 0.1, "b1": 0.9},
        oracle=leafwise(lambda _: ScheduleFree(Each(lambda g, p, t: -0.1 * (g + 0.1 * p)), 0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        bad=(
            BAD_RATE,
            BAD_DECAY,
            ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0, got -1"),
            ({"learning_rate": RATE, "warmup_steps": 3}, ValueError, "warmup_steps=3 needs a number as learning_rate"),
        ),
    ),
    Case(
        "schedule_free_adamw",
        of.schedule_free_adamw,
        {"learning_rate": 0.05, "weight_decay": 0.1, "b2": 0.99},
        oracle=leafwise(lambda _: ScheduleFree(Rms(0.05, 0.99, decay=0.1), 0.05)),
        live=("learning_rate", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY, *no_decay("b2"), *negative("eps")),
    ),
    Case(
        "schedule_free_adamw_warmed_up",
        of.schedule_free_adamw,
        {"learning_rate": 0.1, "warmup_steps": 5},
        oracle=leafwise(
            lambda _: ScheduleFree(Rms(lambda count: 0.1 * min(count / 5, 1)), lambda count: 0.1 * min(count / 5, 1))
        ),
        live=("learning_rate",),
        needs_params=True,
    ),
    Case(
        "sam",
        climbing_sgd,
        {"learning_rate": 0.1, "momentum": 0.9, "rho": 0.05},
        oracle=run(lambda: Sam(0.05, 0.1, 0.9)),
        live=("learning_rate", "momentum", "rho"),
        covers=("sam",),
        needs_params=True,
        skips={"alone": GLOBAL},
        bad=(({"sync_period": 0}, ValueError, "sync_period must be >= 1, got 0"),),
    ),
    Case(
        "sam_of_three",
        climbing_sgd,
        {"learning_rate": 0.1, "momentum": 0.9, "rho": 0.05, "sync_period": 3},
        oracle=run(lambda: Sam(0.05, 0.1, 0.9, 3)),
        live=("rho",),
        needs_params=True,
        skips={"alone": GLOBAL, "sensitive": "the first three calls are one step"},
    ),
    Case(
        "sam_at_once",
        climbing_at_once,
        {"learning_rate": 0.1, "rho": 0.05},
        oracle=run(lambda: at_once(0.1, 0.05)),
        live=("learning_rate", "rho"),
        needs_params=True,
        extra={"grad_fn": uphill},
        skips={
            "alone": GLOBAL,
            "dtype": "the gradients that it is given are those at rounded parameters; see test_halves.py",
            "fused": "the rule itself runs: it calls a function that it was given",
            "recorded": "a copy does not have the gradient that the case gives to every update",
        },
    ),
    Case(
        "differentially_private_aggregate",
        aggregated,
        {"l2_norm_clip": 1.0, "noise_multiplier": 0.0},
        oracle=run(lambda: two_clipped(1.0)),
        rtol=1e-6,  # what is clipped stays 2^-22 below the bound
        live=("l2_norm_clip",),
        covers=("differentially_private_aggregate",),
        skips={"alone": GLOBAL},
        bad=negative("noise_multiplier"),
    ),
    Case(
        "dpsgd",
        private,
        {"learning_rate": 0.1, "l2_norm_clip": 1.0, "noise_multiplier": 0.5, "momentum": 0.9},
        live=("learning_rate", "l2_norm_clip", "noise_multiplier", "momentum"),
        covers=("dpsgd",),
        skips={"alone": GLOBAL, "range": "the noise is as large as the bound, and the gradients are not"},
        bad=(BAD_RATE,),
    ),
    Case(
        "hutchinson_estimator_diag_hessian",
        of.hutchinson_estimator_diag_hessian,
        {"random_seed": 5},
        **LOSS,
        skips={
            **CURVED,
            "sensitive": "it does not look at the gradient",
            "oracle": "its updates are no steps; sophia takes some, and is compared",
        },
        bad=(({"random_seed": 0.5}, TypeError, "random_seed must be a whole number"),),
    ),
    Case(
        "scale_by_sophia",
        of.scale_by_sophia,
        {"b1": 0.9, "b2": 0.8, "gamma": 0.5, "clip_threshold": 2.0, "update_interval": 3},
        oracle=leafwise(lambda _: Sophia(0.9, 0.8, gamma=0.5, bound=2.0, k=3)),
        live=("b1", "b2", "gamma"),
        **LOSS,
        skips={**CURVED, "sensitive": "the first steps are clipped"},
        bad=(
            *no_decay("b1", "b2"),
            ({"eps": -1.0}, ValueError, f"eps {NEGATIVE}"),
            ({"gamma": -1.0}, ValueError, f"gamma {NEGATIVE}"),
            ({"clip_threshold": 0.0}, ValueError, "clip_threshold must be a number > 0, got 0.0"),
            ({"update_interval": 0}, ValueError, "update_interval must be >= 1, got 0"),
            ({"hessian_diagonal_fn": 3}, TypeError, "hessian_diagonal_fn must be a GradientTransformation, got 3"),
        ),
    ),
    Case(
        "sophia",
        of.sophia,
        {"learning_rate": 0.01, "gamma": 0.5, "clip_threshold": None, "eps": 0.1, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Sophia(gamma=0.5, bound=None, eps=0.1, rate=0.01, decay=0.1)),
        live=("learning_rate", "weight_decay"),
        **LOSS,
        skips=CURVED,
        bad=(BAD_RATE, BAD_DECAY),
    ),
)
