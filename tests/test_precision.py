"""Tensors and states in few bits: tables, round trips, which leaves, checkpoints."""

import numpy as np
import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, follow, like, plain_params
from oracles.quantized import BLOCKS, dynamic_map, round_trip

import optimfn as of
from optimfn._codes import dynamic_table

FORMATS = ("companded8", "dynamic8", "4bit", "fp8")


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_map_is_that_of_bitsandbytes(signed):
    table = dynamic_table(signed)
    assert len(table) == 256
    # Built in float32 there: the middles of cells are up to two units off.
    np.testing.assert_allclose(table, dynamic_map(signed), rtol=2e-7)
    assert (table.index(0.0), table[-1]) == (127 if signed else 0, 1.0)
    want = (-0.99297, 0.99297, 5.5e-7) if signed else (0.0, 0.99648, 3.25e-7)
    np.testing.assert_allclose((table[0], table[-2], min(x for x in table if x > 0)), want, rtol=1e-5, atol=1e-12)


def test_the_maps_of_four_bits():
    want = [-0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0, 0.0055, 0.0325, 0.0775]
    want += [0.2125, 0.4375, 0.6625, 0.8875, 1.0]
    np.testing.assert_allclose(dynamic_table(True, 3, 4), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (7, 13), (300,), (3, 2, 5), (), (1,), (0,), (4, 0)], ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_round_trips_are_those_of_an_independent_one(format, signed, shape, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    x = x if signed else x.square()
    got = of.dequantize(of.quantize(x, format, signed=signed))
    assert (got.shape, got.dtype) == (x.shape, dtype)
    if x.numel():
        want = torch.from_numpy(np.array(round_trip(x.double().numpy(), format, BLOCKS[format], signed)))
        far = (got.double() - want).abs() > max(2e-6, 2 * torch.finfo(dtype).eps) * want.abs()
        # Of ties one goes up, the other down; between numbers of 8 bits they are common.
        assert far.sum() <= (0.002 if dtype.itemsize > 2 else 0.02) * x.numel()


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_of_zeros_and_tiny_ones(format):
    x = torch.cat([torch.zeros(256), torch.full((256,), 1e-30)])
    for signed in (True, False):
        got = of.dequantize(of.quantize(x, format, signed=signed))
        assert not got[:256].any()
        torch.testing.assert_close(got[256:], x[256:], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", ["companded8", "fp8", "4bit"])
def test_a_second_moment_does_not_become_zero(format, dtype):
    x = torch.tensor([1.0, 1e-3, 1e-6, 1e-12, 1e-30, 0.0], dtype=dtype)
    for backend in ("eager", "fused"):
        got = of.dequantize(of.quantize(x, format, signed=False))
        assert (got[:5] > 0).all()
        # A step that is divided by eps alone is 1e4 times as long.
        tx = of.quantize_state(of.adamw(1.0, weight_decay=0.0), format, min_size=1)
        step, params = of.make_step(tx, backend=backend), torch.zeros(6, dtype=dtype)
        state, grads = tx.init(params), torch.tensor([1.0, 1e-3, 1e-3, 1e-4, 1e-4, 0.0], dtype=dtype)
        for _ in range(3):
            new, state = step(params, state, grads)
            assert (new - params).abs().max() < 5
            params = new


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("format", [*FORMATS, "bfloat16"])
def test_what_is_not_finite_shows(format, bad):
    x = torch.randn(512)
    x[3] = bad
    got = of.dequantize(of.quantize(x, format))
    assert not got[3].isfinite()
    assert got[256:].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (7,), ()], ids=str)
def test_two_codes_in_a_byte_the_first_above(shape):
    x = torch.randn(shape)
    q = of.quantize(x, "4bit")
    assert q.codes.numel() == (x.numel() + 1) // 2
    table = torch.tensor(dynamic_table(True, 3, 4))
    both = torch.stack([q.codes.flatten() // 16, q.codes.flatten() % 16], 1).flatten()[: x.numel()]
    assert torch.equal(of.dequantize(q), (table[both.int()] * q.scale[0]).reshape(shape))
    if shape and shape[-1] % 2 == 0:
        assert q.codes.shape == (*shape[:-1], shape[-1] // 2)


@pytest.mark.parametrize("format", [*FORMATS, "bfloat16"])
def test_what_quantize_refuses(format):
    with pytest.raises(TypeError, match=r"quantize wants a tensor of floats, got torch\.int64"):
        of.quantize(torch.arange(3), format)
    with pytest.raises(TypeError, match="dequantize wants what quantize returned, got Tensor"):
        of.dequantize(torch.ones(3))


def bytes_of(state):
    return sum(x.numel() * x.element_size() for x in of.tree.leaves(state) if x.ndim)


@pytest.mark.parametrize(
    ("format", "most"), [("companded8", 2.13), ("dynamic8", 2.07), ("4bit", 1.07), ("fp8", 2.07), ("bfloat16", 4.0)]
)
def test_bytes_of_the_moments_of_adam(format, most):
    for dtype in (torch.float32, torch.bfloat16):
        state = of.quantize_state(of.adam(1e-3), format).init(torch.zeros(1000, 512, dtype=dtype))
        assert bytes_of(state) / 512_000 <= most


def test_which_leaves_are_quantised():
    params = {
        "tok_embeddings.weight": torch.ones(100, 64),
        "wte": torch.ones(100, 64),
        "layers.0.weight": torch.ones(64, 64),
        "layers.0.bias": torch.ones(64),
        "layers.0.phase": torch.ones(64, 64, dtype=torch.complex64),
    }
    state = of.quantize_state(of.adam(1e-3)).init(params)
    assert [name for name, x in state[0].mu.items() if isinstance(x, of.Quantized)] == ["layers.0.weight"]
    assert state[0].nu["layers.0.weight"].codes.dtype == torch.uint8
    assert state[0].mu["layers.0.weight"].codes.dtype == torch.int8
    state = of.quantize_state(of.adam(1e-3), where=True, min_size=0).init(params)
    assert {name for name, x in state[0].nu.items() if isinstance(x, of.Quantized)} == set(params)
    state = of.quantize_state(of.adam(1e-3), fields={"mu": "exact"}, where=of.tree.is_matrix).init(params)
    assert not any(isinstance(x, of.Quantized) for x in state[0].mu.values())
    assert isinstance(state[0].nu["wte"], of.Quantized)


def test_factors_and_copies_of_parameters_stay():
    params = {"w": torch.randn(128, 128)}
    state = of.quantize_state(of.adafactor(1e-3, momentum=0.9)).init(params)
    kept = [path for path, x in of.tree.walk(state) if isinstance(x, of.Quantized)]
    assert len(kept) == 1
    assert "ema" in kept[0]
    for tx in (of.schedule_free_sgd(0.1), of.chain(of.sgd(0.1), of.params_ema(0.9)), of.scale_by_dowg()):
        state = of.quantize_state(tx).init(params)
        assert not [x for _, x in of.tree.walk(state) if isinstance(x, of.Quantized)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_declared_holds(case):
    """No field that is said to be nonnegative is ever negative; none that holds parameters is said to be inexact."""
    if "oracle" in case.skips:
        pytest.skip(case.skips["oracle"])
    tx, params = case.tx(), of.tree.map(lambda p: p + 3, plain_params())
    begun, state = tx.init(params), tx.init(params)
    specs = {path: spec.values for path, spec in of.tree.leaves_with_path(of.state_spec(tx, params))}
    for path, x in of.tree.leaves_with_path(begun):
        same = [p for p in params.values() if p.shape == x.shape and torch.equal(p, x)]
        said = specs[path] == "exact" or "lookahead" in case.name  # where a tuple of the test's own holds them
        assert not same or said, path
    for _ in range(5):
        grads = like(params)
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        for path, x in of.tree.leaves_with_path(state):
            if specs[path] == "nonnegative":
                assert not (x < 0).any(), path


RULES = [
    case
    for case in CASES
    if not {"oracle", "dtype"} & case.skips.keys() and "lbfgs" not in case.name and "quantize" not in case.name
]


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_every_rule_steps_with_a_state_of_bytes(case):
    """The first step of a state of zeros is exact; what follows stays finite, and nothing is written to."""
    tx, params = case.tx(), plain_params(torch.float32)
    small = of.quantize_state(tx, min_size=1, where=True)
    state = small.init(params)
    assert of.tree.structure(of.dequantize_state(state)) == of.tree.structure(tx.init(params))
    wide = of.dequantize_state(state)
    for _ in range(3):
        grads = like(params)
        updates, state = small.update(grads, state, params)
        want, _ = tx.update(grads, wide, params)
        assert_trees_equal(updates, want)
        wide = of.dequantize_state(state)
        params = of.apply_updates(params, updates)
    assert all(x.isfinite().all() for x in of.tree.leaves(updates))


@pytest.mark.parametrize("to", [None, "companded8", "dynamic8", "4bit", "bfloat16"])
@pytest.mark.parametrize("format", [None, "companded8", "4bit", "fp8"])
def test_checkpoints_in_one_format_are_read_in_another(format, to, tmp_path):
    def made(format):
        tx = of.adamw(1e-2)
        return tx if format is None else of.quantize_state(tx, format, min_size=16)

    params = {"w": torch.randn(9, 7), "b": torch.randn(7)}
    state = made(format).init(params)
    for _ in range(2):
        _, state = made(format).update(like(params), state, params)
    torch.save(of.state_dict(state), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    got = of.load_state_dict(made(to).init(params), saved)
    wide = of.dequantize_state(state)
    want = state if format == to else wide if to is None else _requantized(wide, made(to).init(params))
    assert_trees_equal(got, want)


def _requantized(wide, like):
    def change(_, node, x):
        if not isinstance(node, of.Quantized):
            return of.tree.is_leaf(node), x
        _, number, sign, size, *_ = node.like.shape
        names = dict(enumerate(["companded8", "dynamic8", "4bit", "fp8", "bfloat16"], start=1))
        return True, of.quantize(x, names[number], block_size=size, signed=sign == 1)

    return of.tree.map_nodes(change, like, wide)


def test_a_checkpoint_of_another_shape_is_refused():
    tx = of.quantize_state(of.adam(0.1), min_size=1)
    saved = of.state_dict(of.adam(0.1).init(torch.ones(4)))
    with pytest.raises(ValueError, match=r"shape \(4,\), the state wants \(5,\)"):
        of.load_state_dict(tx.init(torch.ones(5)), saved)


def test_runs_go_on_where_they_were_saved():
    tx, params = of.quantize_state(of.adamw(1e-2), min_size=1), {"w": torch.randn(40, 9)}
    gradients = [like(params) for _ in range(6)]
    want = follow(tx, params, gradients)[-1]
    state = tx.init(params)
    for k, grads in enumerate(gradients):
        if k == 3:
            state = of.load_state_dict(tx.init(params), of.state_dict(state))
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    assert_trees_equal(params, want)


def test_an_absent_gradient_keeps_the_codes_to_the_bit():
    for format in (*FORMATS, "bfloat16"):
        tx, params = of.quantize_state(of.adam(1e-2), format, min_size=1), {"a": torch.randn(300), "b": torch.randn(3)}
        _, state = tx.update(like(params), tx.init(params), params)
        _, new = tx.update({"a": None, "b": torch.ones(3)}, state, params)
        assert_trees_equal((new[0].mu["a"], new[0].nu["a"]), (state[0].mu["a"], state[0].nu["a"]))


@pytest.mark.parametrize("format", [*FORMATS, "bfloat16"])
def test_the_stateful_optimizer_saves_and_reads_every_format(format):
    def made(tx, w):
        return of.Optimizer([("w", w)], tx)

    tx, w = of.quantize_state(of.adamw(1e-2), format, min_size=1), torch.randn(33, 10)
    params, state = {"w": w.clone()}, None
    own = w.clone().requires_grad_()
    optimizer, state = made(tx, own), tx.init(params)
    for k in range(4):
        own.grad = torch.randn_like(w)
        updates, state = tx.update({"w": own.grad}, state, params)
        params = of.apply_updates(params, updates)
        if k == 2:
            saved = optimizer.state_dict()
            optimizer = made(tx, own)
            optimizer.load_state_dict(saved)
        optimizer.step()
    torch.testing.assert_close(own.detach(), params["w"], rtol=1e-5, atol=1e-6)
    other = made(of.adamw(1e-2), w.clone().requires_grad_())
    other.load_state_dict(optimizer.state_dict())
    back = made(tx, w.clone().requires_grad_())
    back.load_state_dict(other.state_dict())
