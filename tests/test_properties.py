"""The laws again, on trees, dtypes and hyperparameters that hypothesis draws."""

import torch
from cases import CASES
from helpers import assert_trees_equal, told
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FLOATS, scales, tensors, trees
from test_laws import NEEDS_A_LOSS

import optimfn as of


def cases(*laws):
    """Cases that all of these laws hold for."""
    return st.sampled_from([case for case in CASES if not any(law in case.skips for law in laws)])


factors = st.floats(0.01, 1.0)
usual = settings.default.max_examples  # that of the profile, see CONTRIBUTING.md


def is_allowed(case, name, value):
    """Whether an argument may be as small as that; with a tensor nobody would say."""
    try:
        case.tx(**{name: value})
    except ValueError:
        return False
    return name not in ("max_norm", "smooth_beta")


def gradients(params, scale=1.0):
    """Finite ones, also where the dtype is too small for the scale."""
    drawn = of.tree.map(lambda p: scale * torch.randn(p.shape, dtype=torch.float64), params)
    return of.tree.map(lambda g, p: as_finite(g, p.dtype), drawn, params)


def as_finite(x, dtype):
    most = torch.finfo(dtype).max
    return x.double().clamp(-most, most).to(dtype)


@given(cases("pure", "dtype", "ragged"), trees(), st.booleans(), factors, scales)
@settings(max_examples=6 * usual)
def test_pure_and_keeps_structure_shapes_and_dtypes(case, params, as_tensors, factor, scale):
    if params is None and case.needs_params:
        return
    hyper = {name: value * factor for name, value in case.tensors().items()}
    hyper = {name: value for name, value in hyper.items() if is_allowed(case, name, value.item())}
    tx = case.tx(**(hyper if as_tensors else {name: value.item() for name, value in hyper.items()}))
    state, grads = tx.init(params), gradients(params, scale)
    inputs = of.tree.leaves((params, grads, state))
    versions = [x._version for x in inputs]
    updates, new_state = tx.update(grads, state, params)
    assert [x._version for x in inputs] == versions
    wide = of.tree.widen(grads)
    for old, new in ((wide, told(updates, wide)), (state, new_state)):
        assert of.tree.structure(old) == of.tree.structure(new)
        for x, y in zip(of.tree.leaves(old), of.tree.leaves(new), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert_trees_equal(tx.update(grads, state, params), (updates, new_state))
    new_params = of.apply_updates(params, updates)
    assert [x.dtype for x in of.tree.leaves(new_params)] == [x.dtype for x in of.tree.leaves(params)]


@given(cases("vmap"), st.dictionaries(st.sampled_from("abc"), tensors((torch.float64,)), min_size=1), st.integers(1, 3))
@settings(max_examples=2 * usual)
def test_vmap_equals_the_separate_runs(case, params, members):
    tx = case.tx()
    stacked = of.tree.map(lambda p: torch.randn(members, *p.shape, dtype=p.dtype), params)
    grads = of.tree.map(torch.randn_like, stacked)
    state = torch.func.vmap(tx.init)(stacked)
    updates, state = torch.func.vmap(tx.update)(grads, state, stacked)
    for i in range(members):
        own, own_grads = (of.tree.map(lambda x, i=i: x[i], t) for t in (stacked, grads))
        single, single_state = tx.update(own_grads, tx.init(own), own)
        member = of.tree.map(lambda x, i=i: x[i], (updates, state))
        assert_trees_equal(member, (single, single_state), rtol=case.batched, atol=case.batched)


@given(cases("alone"), trees(FLOATS), trees(FLOATS))
@settings(max_examples=2 * usual)
def test_an_empty_part_of_a_tree_changes_nothing(case, params, rest):
    """Leaves do not see their neighbours, unless the rule says so by a global norm.

    Matrices of one shape are multiplied in one batch, whose sums ATen takes in another order than those of one matrix:
    there the bound is that of the case for leaves that lie otherwise in memory, in units of the dtype.
    """
    if params is None:
        return
    tx, grads = case.tx(), gradients(params)
    alone, _ = tx.update({"x": grads}, tx.init({"x": params}), {"x": params})
    both = {"x": params, "y": rest}
    beside, _ = tx.update({"x": grads, "y": gradients(rest)}, tx.init(both), both)
    for here, there in zip(of.tree.leaves(beside["x"]), of.tree.leaves(alone["x"]), strict=True):
        units = torch.finfo(there.dtype).eps / torch.finfo(torch.float64).eps
        torch.testing.assert_close(here, there, rtol=0.0, atol=case.layouts * units, equal_nan=True)


@given(cases("range", "dtype", "ragged"), trees(FLOATS), scales, scales, st.integers(1, 3))
@settings(max_examples=6 * usual)
def test_nothing_finite_becomes_no_number(case, params, of_params, of_gradients, steps):
    """Whatever the sizes of parameters and gradients; what overflows is infinite, or stands still."""
    if params is None or case.name in NEEDS_A_LOSS:
        return
    params = of.tree.map(lambda p: as_finite(p.double() * of_params, p.dtype), params)
    tx = case.tx()
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients(params, of_gradients), state, params)
        assert not any(x.isnan().any() for x in of.tree.leaves((updates, state)))


# Rates beside the learning rate: Muon's for leaves that are no matrices, the step along g - g_prev.
RATES = {"adam_learning_rate", "optimism"}


def rated(case):
    """Whether the whole step is times this rate, which a factory of the tests need not promise."""
    # The rate of rprop is the first of the step sizes, which have bounds of their own; madgrad adds its eps to it.
    # What adds a term to the gradients has the rate of that term alone, and passes the gradients on.
    if "rprop" in case.name or "madgrad" in case.name or case.make.__name__.startswith("add_"):
        return False
    return "learning_rate" in case.live and case.make.__module__.startswith("optimfn") and "dtype" not in case.skips


@given(
    st.sampled_from([case for case in CASES if rated(case)]),
    trees(FLOATS),
    st.booleans(),
    scales,
)
@settings(max_examples=4 * usual)
def test_at_a_learning_rate_of_0_nothing_moves(case, params, as_tensor, scale):
    if params is None:
        return
    rate = torch.zeros((), dtype=torch.float64) if as_tensor else 0.0
    tx = case.tx(**dict.fromkeys(["learning_rate", *RATES & {*case.kwargs}], rate))
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients(params, scale), state, params)
        assert not any(x.any() for x in of.tree.leaves(updates))
