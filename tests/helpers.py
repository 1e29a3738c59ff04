"""What several test files use: trees, gradients, and how to follow a rule step by step."""

from typing import NamedTuple

import torch

import optimfn as of


class Pair(NamedTuple):
    """A named tuple in a tree of parameters."""

    left: object
    right: object


def params_tree(dtype=torch.float64, device="cpu"):
    """A tree with every kind of node, a 0-dim leaf, a zero-size leaf and a `None`."""

    def leaf(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype=dtype, device=device)

    return {
        "weight": leaf(3, 2),
        "bias": leaf(2),
        "deep": [leaf(), Pair(leaf(2, 1, 2), (leaf(0, 4), None))],
    }


def plain_params(dtype=torch.float64):
    """Three leaves of one, two and three axes, as oracles take them."""
    shapes = {"a": (4, 3), "b": (5,), "c": (2, 3, 2)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def rough_gradients(params, steps):
    """Gradients that flip signs, vanish, explode and hold still: what simple tests forget."""
    sequence = []
    for step in range(steps):
        grads = of.tree.map(torch.randn_like, params)
        if step % 7 == 3:
            grads = of.tree.zeros_like(grads)
        elif step % 7 == 4:
            grads = of.tree.scale(1e3, grads)
        elif step % 7 == 5:
            grads = of.tree.scale(1e-3, grads)
        elif step % 7 == 6 and sequence:
            grads = of.tree.scale(-1.0, sequence[-1])
        sequence.append(grads)
    return sequence


def like(params):
    """Random gradients for a tree."""
    return of.tree.map(torch.randn_like, params)


def follow(tx, params, gradients, **extra):
    """The parameters after every step."""
    state, trajectory = tx.init(params), []
    for grads in gradients:
        updates, state = tx.update(grads, state, params, **extra)
        params = of.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory


def assert_trees_equal(a, b, rtol=0.0, atol=0.0):
    """Same structure, dtypes and, to the tolerance, numbers; NaN equals NaN."""
    assert of.tree.structure(a) == of.tree.structure(b)
    for x, y in zip(of.tree.leaves(a), of.tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol, equal_nan=True)


def assert_close_to(ours, reference, rtol):
    """Every leaf within `rtol` of the largest number of the reference leaf, or of 1."""
    for name, want in reference.items():
        got = ours[name].detach()
        scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        error = (got - want).abs().max().item() if want.numel() else 0.0
        assert error <= rtol * scale, f"{name}: off by {error:.3e}, {error / scale:.3e} of its scale"
