"""Generated kernels that go over blocks: states in few bits are read, stepped and written in one pass."""

import re

import pytest
import torch
from helpers import assert_trees_equal

import optimfn as of

SHAPES = [(64, 64), (7, 13), (300,), (3, 2, 5), (1,), (2, 129), ()]  # with short blocks, short chunks and one element
PARAMS = {f"p{i}": torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape) for i, shape in enumerate(SHAPES)}
ADAM = of.scale_by_adam()


def grads(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in PARAMS.items()}


def run(tx, backend, *, donate=False, steps=4, dtype=torch.float32, change=lambda g: g):
    params = {name: p.to(dtype, copy=True) for name, p in PARAMS.items()}
    take = of.make_step(tx, backend=backend, donate=donate)
    state = tx.init(params)
    for seed in range(steps):
        params, state = take(params, state, change({name: g.to(dtype) for name, g in grads(seed).items()}))
    return (params, state), take


def momentum(format, **kwargs):
    """A rule without roots, which processors round in their own ways."""
    return of.quantize_state(of.sgd(0.1, momentum=0.9), format, min_size=0, **kwargs)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [None, 8, 48, 1024])
@pytest.mark.parametrize("format", ["companded8", "dynamic8"])
def test_codes_and_scales_are_those_of_eager(format, block_size, dtype, donate):
    tx = momentum(format, block_size=block_size)
    got, take = run(tx, "fused", donate=donate, dtype=dtype)
    want, _ = run(tx, "eager", dtype=dtype)
    assert_trees_equal(got, want)
    codes = "pack codes" if format == "4bit" else "store codes"
    assert f"kernel  store param, {codes}, store scale" in str(take.explain())


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    ("format", "dtype"), [("4bit", torch.float32), ("4bit", torch.bfloat16), ("fp8", torch.float64)]
)
@pytest.mark.parametrize("block_size", [None, 10])
def test_so_are_those_of_four_bits_and_of_floats_of_eight(format, dtype, block_size, donate):
    test_codes_and_scales_are_those_of_eager(format, block_size, dtype, donate)


@pytest.mark.parametrize(
    ("format", "bytes_"),
    [("companded8", 1 + 4 / 64), ("dynamic8", 1 + 4 / 256), ("4bit", 0.5 + 4 / 128), ("fp8", 1 + 4 / 256)],
)
def test_a_step_of_adamw_moves_its_codes_once(format, bytes_):
    params = {"w": torch.zeros(300, 256)}
    tx = of.quantize_state(of.adamw(1e-3, weight_decay=0.1), format)
    take = of.make_step(tx, donate=True, backend="fused")
    take(params, tx.init(params), {"w": torch.ones(300, 256)})
    text = str(take.explain())
    assert "opaque" not in text
    # Parameters in and out, gradients, and twice the codes and scales in and out.
    assert float(re.search(r"moves ([\d.]+) bytes", text)[1]) == pytest.approx(12 + 4 * bytes_, abs=0.06)


@pytest.mark.parametrize(
    "tx",
    [
        of.chain(of.quantize_state(ADAM, min_size=1), of.scale_by_trust_ratio(), of.scale(-0.1)),
        of.chain(of.quantize_state(ADAM, min_size=1), of.clip_by_global_norm(1.0), of.scale(-0.1)),
        of.chain(of.quantize_state(of.trace(0.9), min_size=1), of.quantize_state(ADAM, block_size=48, min_size=1)),
        of.quantize_state(of.adafactor(0.1, momentum=0.9), min_size=1),
        of.apply_if_finite(of.quantize_state(of.sgd(0.1, momentum=0.9), min_size=1), 2),
        of.apply_if_finite(of.quantize_state(of.sgd(0.1, momentum=0.9), "4bit", min_size=1), 2),
        of.chain(of.quantize_state(of.trace(0.9), "4bit", min_size=1), of.scale_by_trust_ratio(), of.scale(-0.1)),
        of.quantize_state(of.schedule_free_adamw(1e-2), min_size=1),
    ],
    ids=[
        "trust ratio",
        "norm",
        "two sizes",
        "means of rows",
        "if finite",
        "packed",
        "packed, norms",
        "copies of parameters",
    ],
)
def test_what_stands_around_blocks(tx):
    got, _ = run(tx, "fused", donate=True)
    want, _ = run(tx, "eager")
    # A code of a tie may go to the other side, after a root or a sum.
    for a, b in zip(of.tree.leaves(got), of.tree.leaves(want), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1.0 if a.dtype.itemsize == 1 else 1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("format", ["companded8", "dynamic8", "4bit", "fp8"])
def test_what_is_not_finite_spoils_its_block_alone(format, bad):
    def spoil(g):
        g["p0"][3, 5] = bad
        return g

    tx = momentum(format, block_size=64)
    (_, state), _ = run(tx, "fused", steps=1, change=spoil)
    (_, want), _ = run(tx, "eager", steps=1, change=spoil)
    moments = {path: x for path, x in of.tree.leaves_with_path(of.dequantize_state(state)) if path[-1] == "p0"}
    assert_trees_equal(of.dequantize_state(state), of.dequantize_state(want))
    (x,) = moments.values()
    assert x.isfinite().flatten().tolist() == [not 192 <= i < 256 for i in range(64 * 64)]


HALVES = [of.kahan, of.master_weights, lambda tx: of.stochastic_rounding(tx, 3)]


@pytest.mark.parametrize("wrap", HALVES, ids=["kahan", "remainder", "stochastic"])
def test_half_precision_takes_one_pass_and_keeps_its_bits(wrap):
    tx = wrap(of.sgd(0.1, momentum=0.9))

    def spoil(g):  # what is not finite passes through casts of bits as well
        g["p0"][3, 5], g["p0"][4, 5] = torch.nan, torch.inf
        return g

    got, take = run(tx, "fused", donate=True, dtype=torch.bfloat16, change=spoil)
    want, _ = run(tx, "eager", dtype=torch.bfloat16, change=spoil)
    assert_trees_equal(got, want)
    text = str(take.explain())
    assert text.count("\nstage ") == 1
    assert "view.dtype" not in text
