"""Cases of later rules of Adam's family: blocks, projections, factors, curvature."""

from case import NEGATIVE, Case
from oracles.adam import Adam
from oracles.adam_later import (
    AdaHessian,
    AdamMini,
    AheadAdam,
    Came,
    ClipSpikes,
    Momentum,
    SophiaG,
    Spam,
    Tangential,
    Tiger,
    elements,
    rows,
)
from oracles.blocks import leafwise
from oracles.momentum import Ema

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, negative, no_decay
from .contributed import CURVED, LOSS
from .parts import SIGN

PROJECTED = {"weight_decay": 0.1, "delta": 1.0, "wd_ratio": 0.3}


@of.factory
def spam_in_short(learning_rate, threshold, weight_decay, reset_steps=9):
    """SPAM that begins anew often enough to be seen."""
    return of.spam(
        learning_rate,
        threshold=threshold,
        reset_steps=reset_steps,
        warmup_steps=5,
        grace_steps=3,
        weight_decay=weight_decay,
    )


def halves_or_elements(path, x):
    """Two blocks of rows where that is possible, else none."""
    return 2 if x.ndim and x.shape[0] % 2 == 0 else None


def last_axis(path, x):
    """One number a row of the last axis."""
    return (-1,) if x.ndim > 1 else None


@of.factory
def sampling(inner):
    """Sophia-G that is given half the gradient as that of drawn labels, at every step."""

    def update(updates, state, params=None, **extra):
        return inner.update(updates, state, params, sampled_grads=of.tree.scale(0.5, updates))

    return of.GradientTransformation(inner.init, update)


@of.factory
def sampled_sophia_g(learning_rate, batch_size, weight_decay=0.1, b1=0.965, rho=0.04):
    """Sophia-G with labels."""
    return sampling(of.sophia_g(learning_rate, b1, rho=rho, batch_size=batch_size, weight_decay=weight_decay))


@of.factory
def sampled_rule(b1, b2, rho, batch_size, eps=1e-15):
    """Its rule with labels."""
    return sampling(of.scale_by_sophia_g(b1, b2, rho, batch_size, eps))


def drawn(g):
    """What `sampling` gives."""
    return 0.5 * g


def curvature(p):
    """The diagonal of the loss of the cases."""
    return p**2 + 2


CASES = (
    Case(
        "scale_by_adam_mini",
        of.scale_by_adam_mini,
        {"blocks": halves_or_elements, "b1": 0.9, "b2": 0.99, "eps": 1e-8},
        oracle=leafwise(lambda name: AdamMini(elements if name == "b" else rows(2), beta2=0.99)),
        live=("b1", "b2", "eps"),
        covers=("adam_mini_blocks",),
        bad=(*no_decay("b1", "b2"), *negative("eps"), ({"blocks": 3}, TypeError, "blocks must be callable, got 3")),
    ),
    Case(
        "scale_by_adam_mini_along_axes",
        of.scale_by_adam_mini,
        {"blocks": last_axis},
        oracle=leafwise(lambda name: AdamMini(elements if name == "b" else lambda p: rows(p.size // p.shape[-1])(p))),
    ),
    Case(
        "adam_mini",
        of.adam_mini,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=leafwise(lambda _: AdamMini(rows(1), rate=1e-2, decay=0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "tangential",
        of.tangential,
        {"rule": of.ema(0.9, debias=False), **PROJECTED},
        oracle=leafwise(lambda _: Tangential(Ema(0.9, debias=False), decay=0.1, delta=1.0, ratio=0.3)),
        live=("weight_decay", "delta", "wd_ratio"),
        needs_params=True,
        layouts=1e-13,  # what is left where an element cancels hangs on the order of the sums
        bad=(
            *negative("weight_decay", "delta", "wd_ratio"),
            ({"eps": 0.0}, ValueError, "eps must be a number > 0, got 0.0"),
            ({"rule": of.sgd(0.1)}, ValueError, "tangential goes before the learning rate"),
        ),
    ),
    Case(
        "adamp",
        of.adamp,
        {"learning_rate": 1e-2, **PROJECTED},
        oracle=leafwise(lambda _: Tangential(Adam(-1.0), 1e-2, 0.1, 1.0, 0.3)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        layouts=1e-13,  # as above
        bad=(BAD_RATE, BAD_DECAY, *no_decay("b1", "b2")),
    ),
    Case(
        "adamp_one_ahead",
        of.adamp,
        {"learning_rate": 1e-2, "b1": 0.8, "nesterov": True, **PROJECTED},
        oracle=leafwise(lambda _: Tangential(AheadAdam(0.8), 1e-2, 0.1, 1.0, 0.3)),
        live=("learning_rate", "b1"),
        needs_params=True,
        layouts=1e-13,  # as above
    ),
    Case(
        "sgdp",
        of.sgdp,
        {"learning_rate": 1e-2, "momentum": 0.9, "dampening": 0.2, **PROJECTED},
        oracle=leafwise(lambda _: Tangential(Momentum(0.9, 0.2), 1e-2, 1.0, 1.0, 0.3)),
        live=("learning_rate", "weight_decay", "momentum", "dampening"),
        needs_params=True,
        layouts=1e-13,  # as above
        bad=(
            BAD_RATE,
            BAD_DECAY,
            *no_decay("momentum"),
        ),
    ),
    Case(
        "sgdp_one_ahead",
        of.sgdp,
        {"learning_rate": 1e-2, "momentum": 0.9, "nesterov": True, **PROJECTED},
        oracle=leafwise(lambda _: Tangential(Momentum(0.9, nesterov=True), 1e-2, 1.0, 1.0, 0.3)),
        live=("learning_rate", "momentum"),
        needs_params=True,
        layouts=1e-13,  # as above
    ),
    Case(
        "scale_by_came",
        of.scale_by_came,
        {"b1": 0.8, "b2": 0.9, "b3": 0.99, "clip_threshold": 0.7},
        oracle=leafwise(lambda _: Came(betas=(0.8, 0.9, 0.99), bound=0.7)),
        live=("b1", "b2", "b3"),
        bad=(
            *no_decay("b1", "b2", "b3"),
            *negative("eps", "eps_res"),
            ({"clip_threshold": 0.0}, ValueError, "clip_threshold must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "came",
        of.came,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.9, "b3": 0.99, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Came(1e-2, (0.8, 0.9, 0.99), decay=0.1)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "scale_by_adahessian",
        of.scale_by_adahessian,
        {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "hessian_power": 0.5},
        oracle=leafwise(lambda _: AdaHessian(curvature, 0.8, 0.9, 1e-3, 0.5)),
        live=("b1", "b2", "eps", "hessian_power"),
        **LOSS,
        skips=CURVED,
        bad=(
            *no_decay("b1", "b2"),
            *negative("eps"),
            ({"hessian_power": 2.0}, ValueError, r"hessian_power must be in \[0, 1\], got 2.0"),
            ({"hessian_diagonal_fn": 3}, TypeError, "hessian_diagonal_fn must be a GradientTransformation, got 3"),
            ({"blocks": 3}, TypeError, "blocks must be callable, got 3"),
        ),
    ),
    Case(
        "adahessian",
        of.adahessian,
        {"learning_rate": 0.1, "weight_decay": 0.1, "blocks": last_axis},
        oracle=leafwise(lambda _: AdaHessian(curvature, rate=0.1, decay=0.1, axes=(-1,))),
        live=("learning_rate", "weight_decay"),
        **LOSS,
        skips=CURVED,
        bad=(BAD_RATE, BAD_DECAY),
    ),
    Case(
        "scale_by_sophia_g",
        sampled_rule,
        {"b1": 0.9, "b2": 0.8, "rho": 0.5, "batch_size": 4.0},
        oracle=leafwise(lambda _: SophiaG(drawn, 0.9, 0.8, 0.5, 4.0)),
        live=("b1", "b2", "rho", "batch_size"),
        covers=("scale_by_sophia_g",),
        skips={"sensitive": SIGN},
        bad=(
            *no_decay("b1", "b2"),
            *(
                ({name: 0.0}, ValueError, f"{name} must be a number > 0, got 0.0")
                for name in ("rho", "batch_size", "eps")
            ),
        ),
    ),
    Case(
        "sophia_g",
        sampled_sophia_g,
        {"learning_rate": 1e-2, "batch_size": 40.0, "weight_decay": 0.1},
        oracle=leafwise(lambda _: SophiaG(drawn, bs=40.0, rate=1e-2, decay=0.1)),
        live=("learning_rate", "weight_decay"),
        covers=("sophia_g",),
        needs_params=True,
        skips={"sensitive": SIGN},
        bad=(BAD_RATE, ({"weight_decay": -1.0}, ValueError, f"weight_decay {NEGATIVE}")),
    ),
    Case(
        "tiger",
        of.tiger,
        {"learning_rate": 1e-2, "beta": 0.9, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Tiger(1e-2, 0.9, 0.1)),
        live=("learning_rate", "beta", "weight_decay"),
        needs_params=True,
        skips={"sensitive": SIGN},
        bad=(BAD_RATE, BAD_DECAY, *no_decay("beta")),
    ),
    Case(
        "clip_spikes",
        of.clip_spikes,
        {"threshold": 2.0, "b2": 0.9, "grace_steps": 3},
        oracle=leafwise(lambda _: ClipSpikes(2.0, 0.9, 3)),
        live=("threshold", "b2"),
        bad=(
            *no_decay("b2"),
            ({"threshold": 0.0}, ValueError, "threshold must be a number > 0, got 0.0"),
            ({"grace_steps": -1}, ValueError, "grace_steps must be >= 0, got -1"),
        ),
    ),
    Case(
        "spam",
        spam_in_short,
        {"learning_rate": 1e-2, "threshold": 2.0, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Spam(1e-2, threshold=2.0, gap=9, warmup=5, grace=3).with_decay(0.1)),
        live=("learning_rate", "threshold", "weight_decay"),
        covers=("spam", "scale_by_spam"),
        needs_params=True,
        bad=(BAD_RATE, BAD_DECAY, ({"reset_steps": 1}, ValueError, "reset_steps must be >= 2, got 1")),
    ),
)
