"""What several test files use: trees, gradients, and how to follow a rule step by step."""

import re
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


def wide_params(dtype=torch.float32):
    """Leaves of whole vectors of any processor: ATen computes the rest of a leaf by another formula."""
    shapes = {"a": (8, 32), "b": (64,), "c": (4, 8, 16)}
    return {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def kinds_of_arithmetic(step):
    """Whether a fused step reduces (or hands over to ATen), and whether it takes roots or calls libm."""
    program = step._structures[-1].last.program
    reduces = any(node.kind != "input" and node.kind != "pointwise" for node in program.plan.nodes)
    text = "".join(function.text for function in program._machine.functions)
    return reduces, re.search(r"\b(sqrt|exp|exp2|expm1|log|log2|log1p|pow|sin|cos|tanh|erf)f?\(", text) is not None


def units_off(got, want):
    """The largest difference in units in the last place, of elements no smaller than the mean of their leaf."""
    got, want, eps = as_reals(got), as_reals(want), torch.finfo(want.dtype).eps
    equal = (got == want) | (got.isnan() & want.isnan())
    if equal.all():
        return 0.0
    size = want[want.isfinite()].square().mean().sqrt()
    return torch.where(equal, 0.0, (got - want).abs() / (eps * torch.maximum(want.abs(), size))).max().item()


def as_reals(x):
    """In float64; complex leaves as pairs."""
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def assert_fused_equals_eager(step, got, want, accurate=None):
    """Bit for bit where only +, -, *, / and the like are used; a few units after roots, libm and reductions.

    Several roots in a row each add a unit. Where sums are taken, the fused result may instead be as close to
    `accurate`, the same step in float64, as the eager one is.
    """
    assert of.tree.structure(got) == of.tree.structure(want)
    reduces, rounds = kinds_of_arithmetic(step)
    named = of.tree.leaves_with_path(got), of.tree.leaves(want), of.tree.leaves(want if accurate is None else accurate)
    for (path, x), y, z in zip(*named, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path
        if x.numel() == 0 or not (x.is_floating_point() or x.is_complex()):
            assert torch.equal(x, y), path
            continue
        allowed = 4.0 if reduces or rounds else 0.0
        off = units_off(x, y)
        if reduces and off > allowed:
            eager, fused = (as_reals(own) - as_reals(z) for own in (y, x))
            assert fused.abs().max() <= 2 * eager.abs().max(), path
        else:
            assert off <= allowed, f"{path}: {off} units"
