"""Parameters of half precision: rounded by chance, compensated, or with their lower halves in the state."""

import pytest
import torch
from helpers import assert_trees_equal, like

import optimfn as of
from optimfn._wrappers._half_precision import _by_chance, _high, _join, _low
from optimfn.tree import fold_in
from optimfn.tree._random import noise

HALVES = [torch.bfloat16, torch.float16]
TX = of.adamw(1e-4, weight_decay=0.1)
WRAPPERS = {
    "kahan": of.kahan,
    "stochastic_rounding": lambda tx: of.stochastic_rounding(tx, seed=3),
    "master": lambda tx: of.master_weights(tx, "float32"),
    "remainder": of.master_weights,
}


def mixed(dtype=torch.bfloat16):
    return {"w": torch.randn(40, 9).to(dtype), "b": torch.randn(9), "n": [torch.randn(()).to(dtype), torch.zeros(0, 2)]}


def run(tx, params, gradients, **options):
    step, state = of.make_step(tx, **options), tx.init(params)
    for grads in gradients:
        params, state = step(params, state, of.tree.cast_like(grads, params))
    return params, state


@pytest.mark.parametrize("store", ["float32", "remainder"])
def test_masters_are_float32_training_bit_for_bit(store):
    params = mixed()
    gradients = [of.tree.cast_like(like(params), params) for _ in range(20)]
    want, _ = run(TX, of.tree.widen(params), gradients, backend="eager")
    got, state = run(of.master_weights(TX, store), params, gradients, backend="eager")
    master = state.master["w"]
    wide = master if store == "float32" else _join(got["w"].float(), master)
    assert torch.equal(wide, want["w"])
    assert torch.equal(got["b"], want["b"])
    assert (got["w"].float() - wide).abs().max() <= wide.abs().max() * 2**-8
    assert master.element_size() == (4 if store == "float32" else 2)


def test_the_halves_of_any_float32_make_it_whole_again():
    bits = torch.randint(-(2**31), 2**31, (1 << 20,), dtype=torch.int64).to(torch.int32)
    ends = [0, 1, -1, 2**31 - 1, -(2**31), 0x7F7FFFFF, 0x7F800000, 0x00008000, 0x3F808000, 0x3F818000]
    bits = torch.cat([bits, torch.tensor(ends, dtype=torch.int64).to(torch.int32)])
    x = bits.view(torch.float32)
    finite = x[x.isfinite()]
    assert torch.equal(_join(_high(finite).float(), _low(finite)).view(torch.int32), finite.view(torch.int32))
    nearest = _high(finite).float()
    near = nearest.isfinite() & finite.bfloat16().float().isfinite()
    assert torch.equal((nearest - finite).abs()[near], (finite.bfloat16().float() - finite).abs()[near])


def test_a_parameter_that_somebody_changed_is_taken_as_it_is():
    tx, params = of.master_weights(of.sgd(1.0), "float32"), {"w": torch.tensor([1.0, 2.0]).bfloat16()}
    _, state = run(tx, params, [{"w": torch.tensor([1e-4, 1e-4])}], backend="eager")
    params, state = {"w": torch.tensor([1.0, 5.0]).bfloat16()}, state
    _, state = of.make_step(tx)(params, state, {"w": torch.zeros(2).bfloat16()})
    assert state.master["w"][0] != 1.0
    assert state.master["w"][1] == 5.0


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_compensation_keeps_twice_the_bits(dtype):
    params = {"w": 1 + torch.rand(1000).to(dtype)}
    gradients = [{"w": torch.randn(1000).to(dtype)} for _ in range(40)]
    tx = of.sgd(1e-4)
    want, _ = run(tx, of.tree.widen(params), gradients, backend="eager")
    got, state = run(of.kahan(tx), params, gradients, backend="eager")
    both = got["w"].float() + state.compensation["w"].float()
    # Each step rounds the compensation, of at most half a unit of the parameter, once.
    assert (both - want["w"]).abs().max() <= 40 * torch.finfo(dtype).eps ** 2
    assert (got["w"].float() - want["w"]).abs().max() <= 1.01 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("start", [1.0, -3.0, 2.0**-20, 0.0])
def test_rounding_by_chance_is_unbiased(dtype, start):
    p = torch.full((1 << 18,), start).to(dtype)
    tiny = 2.0**-24 if dtype == torch.float16 else 2.0**-133
    gap = max(2.0 ** torch.tensor(abs(start)).log2().floor().item(), 0.0) * torch.finfo(dtype).eps if start else tiny
    gap = max(gap, tiny)
    step = gap / 16
    tx = of.stochastic_rounding(of.sgd(1.0), seed=1)
    updates, _ = tx.update(torch.full_like(p, -step, dtype=torch.float32), tx.init(p), p)
    got = of.apply_updates(p, updates).double()
    assert set(((got - start) / gap).unique().tolist()) == {0.0, 1.0}
    odds = 1 / 16
    deviation = (odds * (1 - odds) / p.numel()) ** 0.5
    assert abs(((got - start) / gap).mean().item() - odds) < 4.5 * deviation


def test_noise_is_uniform_and_knows_no_neighbours():
    """Of n draws a share of odds q is within 5 deviations of it, and so is what two draws have in common."""
    n = 1 << 20
    like = torch.empty(n)
    draws = torch.stack([noise(key, like) for key in (3, 4, 3 + (1 << 32), fold_in(3, 1))]).double()
    assert draws.min() >= 0
    assert draws.max() < 2**16
    x = (draws + 0.5) / 2**16 - 0.5  # of variance 1/12
    bound = 5 / n**0.5
    assert (x.mean(1).abs() < bound * 12**-0.5).all()
    # The variance of a product of two such is 1/144, that of a square 1/180.
    assert ((x.square().mean(1) - 1 / 12).abs() < bound * 180**-0.5).all()
    for i in range(4):
        for lag in (1, 2, 3, 16, 64, 256, 1000, 65536):
            assert (x[i, lag:] * x[i, :-lag]).mean().abs() < 5 / (n - lag) ** 0.5 / 12
        for k in range(i):
            assert (x[i] * x[k]).mean().abs() < bound / 12
        bits = draws[i].long()
        for bit in range(16):
            assert abs(((bits >> bit) & 1).double().mean().item() - 0.5) < bound / 2
        # Chi square of 4096 cells: mean 4095, deviation the root of twice that.
        cells = torch.bincount(bits >> 4, minlength=4096).double()
        assert abs((cells - n / 4096).square().sum().item() / (n / 4096) - 4095) < 5 * (2 * 4095) ** 0.5


def test_noise_of_an_element_hangs_on_its_place_and_on_all_of_the_key():
    like = torch.empty(3, 100)
    whole = noise(7, torch.empty(300))
    assert torch.equal(noise(7, like).flatten(), whole)
    assert torch.equal(noise(torch.tensor(7), torch.empty(200)), whole[:200])
    for bit in range(64):
        other = noise(7 ^ (1 << bit if bit < 63 else -(2**63)), torch.empty(300))
        assert (other != whole).sum() > 280


def test_rounding_by_chance_keeps_what_is_exact_or_not_finite():
    bits = torch.full((5,), -1, dtype=torch.int64)
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1.5])
    for dtype in HALVES:
        assert torch.equal(_by_chance(x, bits, dtype).float(), x)
    odd = torch.tensor([0x7F800001, 0x7FFFFFFF], dtype=torch.int64).to(torch.int32).view(torch.float32)
    assert _by_chance(odd, bits[:2], torch.bfloat16).isnan().all()


def test_another_seed_rounds_otherwise_and_the_same_seed_the_same():
    params = {"w": torch.ones(4096).bfloat16()}
    grads = [{"w": torch.full((4096,), 1e-3).bfloat16()}]
    first, again, other = (run(of.stochastic_rounding(of.sgd(1.0), s), params, grads)[0]["w"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_every_execution_steps_alike(wrap):
    params = mixed()
    tx = wrap(of.sgd(0.01, momentum=0.9))  # nothing of which two processors round otherwise
    gradients = [of.tree.cast_like(like(params), params) for _ in range(5)]
    want = run(tx, params, gradients, backend="eager")
    assert_trees_equal(run(tx, params, gradients), want)
    named = {"w": params["w"], "b": params["b"]}
    tx = wrap(of.sgd(0.01, momentum=0.9))
    own = {name: p.clone().requires_grad_() for name, p in named.items()}
    optimizer = of.Optimizer(own.items(), tx)
    for grads in gradients:
        for name, p in own.items():
            p.grad = grads[name].to(p.dtype)
        optimizer.step()
    want, _ = run(tx, named, [{name: grads[name] for name in named} for grads in gradients], backend="eager")
    assert_trees_equal({name: p.detach() for name, p in own.items()}, want)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_absent_gradient_changes_nothing(wrap):
    params, tx = {"a": torch.randn(9).bfloat16(), "b": torch.randn(9).bfloat16()}, wrap(TX)
    _, state = run(tx, params, [of.tree.cast_like(like(params), params) for _ in range(3)], backend="eager")
    updates, new = tx.update({"a": None, "b": torch.ones(9).bfloat16()}, state, params)
    assert updates["a"] is None
    for (path, x), y in zip(of.tree.leaves_with_path(state), of.tree.leaves(new), strict=True):
        assert "a" not in path or torch.equal(x, y)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_they_go_together_with_moments_of_bytes_and_masks(wrap):
    params = mixed()
    inner = of.quantize_state(of.adamw(1e-2, mask=of.tree.mask_by(lambda p: p.dtype == torch.bfloat16)), min_size=1)
    tx = wrap(inner)
    got, state = run(tx, params, [of.tree.cast_like(like(params), params) for _ in range(3)], backend="eager")
    saved = of.state_dict(state)
    assert_trees_equal(of.load_state_dict(tx.init(params), saved), state)
    assert {x.dtype for x in of.tree.leaves(got)} == {torch.bfloat16, torch.float32}
    outer = of.quantize_state(wrap(TX), min_size=1, where=True)
    kept = outer.init(params)
    for field in ("master", "compensation"):
        assert not isinstance(of.tree.get(kept, field, {"w": None})["w"], of.Quantized)


def test_no_remainder_of_float16():
    with pytest.raises(ValueError, match=r'n\.0 is float16, which is no upper half of a float32: use store="float32"'):
        of.master_weights(TX).init({"n": [torch.ones(2).half()]})
