"""Whose memory is whose, over the whole table: states share none with what is given; a step that raises wrote none."""

import dataclasses
import math
import warnings

import pytest
import torch
from case import Case
from helpers import assert_trees_equal, like, plain_params
from test_laws import cases

import optimfn as of


def storages(tree):
    return {x.untyped_storage().data_ptr() for x in of.tree.leaves(tree) if x.numel()}


def quietly(step, *args, **extra):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some rules have no kernels
        return step(*args, **extra)


def with_tensors(case):
    """The transformation with its floats as tensors, and the extra arguments as tensors."""
    live = case.tensors()
    extra = {name: torch.tensor(x, dtype=torch.float64) if type(x) is float else x for name, x in case.extra.items()}
    return case.make(**{**case.kwargs, **live}), live, extra


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@cases("pure")
def test_a_state_shares_no_memory_with_what_was_given(case: Case, dtype, backend):
    if dtype.is_complex and "complex" in case.skips:
        pytest.skip(case.skips["complex"])
    tx, live, extra = with_tensors(case)
    params = of.tree.cast(plain_params(), dtype)
    step, state = of.make_step(tx, backend=backend), tx.init(params)
    for _ in range(3):
        grads = like(params)
        given = storages((params, grads, live, [x for x in extra.values() if isinstance(x, torch.Tensor)]))
        new_params, state = quietly(step, params, state, grads, **extra)
        assert not given & storages(state)
        assert not (given | storages(state)) & storages(new_params)
        params = new_params


@cases("pure")
def test_what_becomes_of_the_arguments_later_changes_no_update(case: Case):
    tx, params = case.tx(), plain_params()
    own, buffer = of.tree.map(torch.clone, params), of.tree.zeros_like(params)
    want, got = tx.init(params), tx.init(own)
    for grads in [like(params) for _ in range(3)]:
        of.tree.map(torch.Tensor.copy_, buffer, grads)
        expected, want = tx.update(of.tree.map(torch.clone, grads), want, params)
        updates, got = tx.update(buffer, got, own)
        assert_trees_equal(updates, expected)
        params = of.apply_updates(params, expected)
        of.tree.map(torch.Tensor.copy_, own, params)  # in place, as some loops do
        of.tree.map(lambda b: b.fill_(math.nan), buffer)
    assert_trees_equal(got, want)


def expanded(x):
    return x.reshape(-1)[:1].expand(3)


def overlapping(x):
    return torch.as_strided(torch.ones(4, dtype=x.dtype), (3, 2), (1, 1))


def of_inference(x):
    with torch.inference_mode():
        return torch.ones(3, dtype=x.dtype)


BAD_LEAVES = {
    "expanded": (expanded, "z overlaps itself"),
    "overlapping": (overlapping, "z overlaps itself"),
    "inference": (of_inference, "z was made in inference mode"),
    "tied": (lambda x: x, "share memory"),
    "tied in part": (lambda x: x.reshape(-1)[1:3], "share memory"),
}


@pytest.mark.parametrize("kind", BAD_LEAVES)
@cases("ragged")
def test_leaves_that_cannot_be_written_are_refused_by_name_before_anything_is(case: Case, kind):
    make, words = BAD_LEAVES[kind]
    params = {"a": torch.randn(4, 3), "b": torch.randn(5)}
    params["z"] = make(params["a"])
    tx = case.tx()
    state = tx.init(of.tree.map(torch.clone, params))
    before = of.tree.map(torch.clone, (params, state))
    for backend in ("eager", "auto"):
        step, grads = of.make_step(tx, donate=True, backend=backend), of.tree.map(torch.randn_like, before[0])
        with pytest.raises(ValueError, match=words):
            quietly(step, params, state, grads)
        assert_trees_equal((params, state), before)


def decomposed(updates, params):
    """An operator that fails for these numbers, and not while it is traced."""
    return of.tree.map(
        lambda u: u + torch.linalg.cholesky(-torch.eye(2).to(u.dtype) + 0 * u.sum())[0, 0].detach(), updates
    )


def raised(updates, params):
    raise ArithmeticError("the last member")


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@cases("pure")
def test_a_step_that_fails_at_the_end_has_written_nothing(case: Case, dtype):
    if dtype.is_complex and "complex" in case.skips:
        pytest.skip(case.skips["complex"])
    params = of.tree.cast(plain_params(torch.float32), dtype)
    for rule, backend in ((decomposed, "auto"), (raised, "auto"), (raised, "eager")):
        tx = of.chain(case.tx(), dataclasses.replace(of.stateless(rule), takes_assigned=True))
        step, state = of.make_step(tx, donate=True, backend=backend), tx.init(params)
        before = of.tree.map(torch.clone, (params, state))
        for _ in range(2):
            with pytest.raises((ArithmeticError, torch.linalg.LinAlgError)):
                quietly(step, params, state, like(params))
            assert_trees_equal((params, state), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@cases("pure")
def test_donating_steps_of_all_dtypes_are_those_of_the_rule(case: Case, dtype):
    if dtype.is_complex and "complex" in case.skips:
        pytest.skip(case.skips["complex"])
    tx, params = case.tx(), of.tree.cast(plain_params(torch.float32), dtype)
    state = tx.init(params)
    own = of.tree.map(torch.clone, (params, state))
    fused, eager = of.make_step(tx, donate=True), of.make_step(tx, backend="eager")
    for _ in range(3):
        grads = like(params)
        params, state = eager(params, state, grads)
        quietly(fused, *own, grads)
    assert_trees_equal(own, (params, state), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changed", [torch.t, lambda p: p.clone().t(), lambda p: p.flip(0), lambda p: p[:2]])
def test_a_parameter_whose_memory_is_seen_in_another_way_is_noticed(changed):
    tx, params = of.adam(0.1), {"w": torch.nn.Parameter(torch.randn(3, 3)), "b": torch.nn.Parameter(torch.randn(3))}
    state = tx.init(of.tree.map(torch.Tensor.detach, params))
    own, own_state = (
        of.tree.map(lambda x: torch.nn.Parameter(x.detach().clone()), params),
        of.tree.map(torch.clone, state),
    )
    bound = of.make_step(tx, donate=True, backend="fused").bind(params, state)
    eager = of.make_step(tx, donate=True, backend="eager")
    for number in range(4):
        if number == 2:
            for each in (params, own):
                each["w"].data = changed(each["w"].data)
            if params["w"].shape != (3, 3):
                for each in (state, own_state):
                    for moment in (each[0].mu, each[0].nu):
                        moment["w"].data = changed(moment["w"].data)
        grads = like(of.tree.map(torch.Tensor.detach, own))
        eager(own, own_state, grads)
        bound(of.tree.map(torch.clone, grads))
        assert_trees_equal((params, state), (own, own_state), rtol=1e-5, atol=1e-6)
