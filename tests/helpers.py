"""What several test files use: trees, gradients, and how to follow a rule step by step."""

import itertools
from typing import NamedTuple

import torch
from processors import reachable

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


def told(updates, grads):
    """The updates with what is assigned in the place of its `Assign`, which may be wider than its gradient."""

    def leaf(g, u):
        if not isinstance(u, of.Assign):
            return u
        assert u.value.dtype in (g.dtype, torch.promote_types(g.dtype, torch.float32))
        return u.value.to(g.dtype)

    return of.tree.map(leaf, grads, updates)


def steps(updates, params):
    """The updates as what is added, also where they are assigned."""
    return of.tree.map(lambda p, u: u.value - p if isinstance(u, of.Assign) else u, params, updates)


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
        if not _are_the_same(x, y):
            torch.testing.assert_close(x, y, rtol=rtol, atol=atol, equal_nan=True)


USUAL = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128])


def _are_the_same(x, y):
    """Whether two leaves are of one kind and equal, which is asked millions of times and answered at once."""
    usual = type(x) is type(y) is torch.Tensor and x.dtype in USUAL and x.is_cpu and x.layout == torch.strided
    return usual and (y.dtype, y.device, y.layout) == (x.dtype, x.device, x.layout) and torch.equal(x, y)


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
    drawn = torch.complex128 if dtype.is_complex else torch.float64
    return {name: torch.randn(shape, dtype=drawn).to(dtype) for name, shape in shapes.items()}


def reduces(step):
    """Whether a fused step takes sums, or hands over to ATen."""
    return any(node.kind not in ("input", "pointwise") for node in step._structures[-1].last.program.plan.nodes)


def as_reals(x):
    """In float64; complex leaves as pairs."""
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def widened(tree):
    """The same tree in float64, or complex128."""
    return of.tree.map(lambda x: x.to(torch.promote_types(x.dtype, torch.float64)) if _is_inexact(x) else x, tree)


def _is_inexact(x):
    return x.is_floating_point() or x.is_complex()


def assert_fused_equals_eager(step, got, eager, *args, **extra):
    """Bit for bit what the eager step gives on some processor; where sums are taken, as good.

    Only roots and functions of libm differ among processors, see `processors.reachable`. Sums are taken in another
    order: they may be four units off, or as close to the same step in float64 as the eager ones are. Returns what the
    eager step gives here.
    """
    want = eager(*args, **extra)
    assert of.tree.structure(got) == of.tree.structure(want)
    if all(map(_are_the_same, of.tree.leaves(got), of.tree.leaves(want))):
        return want
    corners = reachable(lambda: eager(*args, **extra))
    want = next(corners)
    named, answers = of.tree.leaves_with_path(got), of.tree.leaves(want)
    for (path, x), y in zip(named, answers, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path
    results, least = [as_reals(x) for _, x in named], [as_reals(x) for x in answers]
    greatest = least
    for corner in itertools.chain([want], corners):
        found = [as_reals(x) for x in of.tree.leaves(corner)]
        least, greatest = list(map(torch.fmin, least, found)), list(map(torch.fmax, greatest, found))
        if all(map(_between, least, results, greatest)):
            return want
    sums = reduces(step)
    accurate = of.tree.leaves(eager(*map(widened, args), **extra)) if sums else answers
    for (path, x), y, low, own, high, exact in zip(named, answers, least, results, greatest, accurate, strict=True):
        if not _between(low, own, high):
            if path[-1:] == ("codes",) and _are_ties(own, low, high):
                continue
            beyond, exact = torch.maximum(low - own, own - high).nan_to_num(torch.inf), as_reals(exact)
            may_differ = sums and _is_inexact(x)
            assert may_differ, f"{path}: {beyond.max()} beyond what a processor may give"
            size = torch.maximum(own.abs(), low[low.isfinite()].square().mean().sqrt())
            # Nothing wider tells how good a sum in float64 is: in another order its n terms are up to n units off.
            units = max(4, of.tree.size(args[0])) if y.dtype == torch.float64 else 4
            if (beyond > units * torch.finfo(y.dtype).eps * size).any():
                error = torch.maximum((low - exact).abs(), (high - exact).abs()).max()
                assert (own - exact).abs().max() <= 2 * error, path
    return want


def _are_ties(codes, low, high):
    """Whether few codes are next to what they should be: a root is a unit off, where it decides between two codes.

    Between numbers of 8 bits a / b, as those of bfloat16, ties are common: 510 a = (2 n + 1) b.
    """
    off = torch.maximum(low - codes, codes - high).clamp(min=0)
    return bool(off.max() <= 1) and int((off > 0).sum()) <= max(1, 0.02 * codes.numel())


def _between(low, x, high):
    return bool((((low <= x) & (x <= high)) | (x.isnan() & low.isnan())).all())
