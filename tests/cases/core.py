"""Cases of what the package is built on: chains, the identity, stateless rules."""

import torch
from case import Case
from oracles.adam import Adam
from oracles.blocks import Each, global_norm_clip, leafwise, torch_optimizer

import optimfn as of

from .common import BAD_DECAY, BAD_RATE, GLOBAL


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


def clipped_adamw_oracle(params, gradients):
    """Clip with the one oracle, then follow the other."""
    clip = global_norm_clip(1.0)
    clipped = []
    for grads in gradients:
        small = clip({name: g.numpy() for name, g in grads.items()})
        clipped.append({name: torch.from_numpy(g) for name, g in small.items()})
    decay = {"a": 0.1, "b": 0.0, "c": 0.1}  # matrices only
    return leafwise(lambda name: Adam(1e-2, beta2=0.95, weight_decay=decay[name]))(params, clipped)


DISCARD = "the updates do not depend on the parameters or the gradients"
CASES = (
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
)
