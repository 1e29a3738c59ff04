"""The comparisons of kernels with torch hold on a processor whose roots and functions of libm are off by a unit."""

import pytest
import test_amp
import torch
from cases import CASES
from helpers import assert_fused_equals_eager, like, rough_gradients, wide_params
from processors import rough_processor

import optimfn as of

FUSED = [case for case in CASES if "fused" not in case.skips]


@pytest.fixture
def rough():
    with rough_processor():
        yield


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [torch.sqrt, torch.rsqrt, torch.exp, torch.log, torch.tanh])
def test_a_fifth_of_the_results_is_off_by_one_unit(function, dtype):
    x = torch.rand(20_000, dtype=torch.float64).add(1.5).to(torch.float32).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    right = function(x.to(wide).double()).to(wide)
    with rough_processor():
        got = function(x)
        off = (function(x.to(wide)) - right).abs() / (torch.finfo(wide).eps * right.abs())
    assert got.dtype == dtype
    assert 0.1 < (off > 0).double().mean() < 0.5
    assert off.max() <= 2
    assert torch.equal(function(x), function(x))


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_fused_steps_equal_eager_steps_there(case, dtype):
    tx = case.tx(**case.tensors())
    fused, eager = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager")
    params = wide_params(dtype)
    state = tx.init(params)
    for grads in rough_gradients(params, 3):
        got = fused(params, state, grads)
        params, state = assert_fused_equals_eager(fused, got, eager, params, state, grads)


@pytest.mark.usefixtures("rough")
def test_both_protocols_of_scaling_agree_there():
    test_amp.test_both_protocols_agree_bit_for_bit()


def smoothed(own):
    """A rule with roots in a row, one number of which is kept in `own` dtype instead of being rounded."""

    def leaf(g):
        root = torch.sqrt(g.abs() + 0.1)
        return (torch.sqrt((g.to(own) * 0.3 + 1).to(own).square() + root) * 0.7).to(g.dtype)

    return of.stateless(lambda updates, params: of.tree.map(leaf, updates))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_rounding_that_is_left_out_is_not_taken_for_another_processor(dtype):
    right, wrong = smoothed(dtype), smoothed(torch.float32)
    fused, eager = of.make_step(right, backend="fused"), of.make_step(right, backend="eager")
    params = wide_params(dtype)
    grads = like(params)
    assert_fused_equals_eager(fused, fused(params, right.init(params), grads), eager, params, right.init(params), grads)
    got = of.make_step(wrong, backend="fused")(params, wrong.init(params), grads)
    with pytest.raises(AssertionError, match="beyond what a processor may give"):
        assert_fused_equals_eager(fused, got, eager, params, right.init(params), grads)


def test_one_unit_is_told_where_no_root_is_taken():
    tx, params = of.sgd(0.1, momentum=0.9), wide_params()
    fused, eager = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager")
    state, grads = tx.init(params), like(params)
    got, new = fused(params, state, grads)
    got["a"][3, 4] = torch.nextafter(got["a"][3, 4], torch.tensor(torch.inf))
    with pytest.raises(AssertionError, match="beyond what a processor may give"):
        assert_fused_equals_eager(fused, (got, new), eager, params, state, grads)
