"""Updates that assign: exact everywhere, passed on or refused, never changed."""

from typing import Any, NamedTuple

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, like, params_tree, plain_params
from hypothesis import given
from hypothesis import strategies as st

import optimfn as of

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


class Other(NamedTuple):
    """Where the parameters go next."""

    other: Any


@of.factory
def swap():
    """Change places with a copy in the state: what is written is read in the same step."""

    def init(params):
        return Other(of.tree.map(lambda p: p.detach().clone(), params))

    def update(updates, state, params=None, **extra):
        moved = of.tree.map(lambda u, o: None if u is None else of.Assign(o), updates, state.other)
        return moved, Other(of.tree.keep(params, state.other))

    return of.GradientTransformation(init, update, leafwise=True)


@of.factory
def goes_to(value):
    """Assign one number, in float64, to all elements."""

    def leaf(p):
        return of.Assign(torch.full_like(p, value, dtype=torch.float64))

    return of.stateless(lambda updates, params: of.tree.map(lambda u, p: leaf(p), updates, params))


def bits(x):
    """A tensor as whole numbers, so that 0 differs from -0; all NaN are one."""
    x = torch.view_as_real(x) if x.is_complex() else x
    x = torch.where(x.isnan(), torch.nan, x)
    return x.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


def same_bits(a, b):
    return all(
        x.dtype == y.dtype and torch.equal(bits(x), bits(y))
        for x, y in zip(of.tree.leaves(a), of.tree.leaves(b), strict=True)
    )


def far_apart(dtype, seed=0):
    """Two trees of values of any sign and size, infinities, NaN and both zeros among them."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(
            -4, 5, shape, generator=generator
        )
        x.view(-1)[:4] = torch.tensor([0.0, -0.0, torch.inf, torch.nan], dtype=torch.float64)
        return x.to(dtype)

    return tuple({"a": leaf(7, 33), "b": [leaf(65)]} for _ in range(2))


# Exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=st.integers(0, 2**32))
def test_what_is_assigned_is_what_the_parameter_becomes(dtype, seed):
    params, values = far_apart(dtype, seed)
    assert same_bits(of.apply_updates(params, of.tree.map(of.Assign, values)), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_value_of_another_dtype_is_rounded_once(dtype):
    params, wide = plain_params(dtype), plain_params(torch.float64)
    updates = of.tree.map(of.Assign, wide)
    want = of.tree.cast(wide, dtype)
    assert same_bits(of.apply_updates(params, updates), want)
    for backend in ("fused", "eager"):
        step = of.make_step(goes_to(1 / 3), backend=backend)
        got, _ = step(params, of.EmptyState(), like(params))
        assert same_bits(got, of.tree.full_like(params, 1 / 3))


def twice(step, params, values, dtype):
    state = Other(of.tree.map(torch.clone, values))
    own = of.tree.map(torch.clone, params)
    for there in ((values, params), (params, values)):
        own, state = step(own, state, of.tree.map(torch.ones_like, params))
        yield own, state.other, there


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donating"])
@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_steps_write_the_value_itself(backend, donate, dtype):
    if backend == "fused" and dtype.is_complex:
        backend = "auto"
    params, values = far_apart(dtype)
    step = of.make_step(swap(), donate=donate, backend=backend)
    for own, other, there in twice(step, params, values, dtype):
        assert same_bits((own, other), there)
    pointers = [x.data_ptr() for x in of.tree.leaves((own, other))]
    assert len(set(pointers)) == len(pointers)


def test_a_fused_step_adds_nothing():
    step = of.make_step(swap(), donate=True, backend="fused")
    params, values = far_apart(torch.float32)
    list(twice(step, params, values, torch.float32))
    (known,) = step._structures
    assert {node.op for node in known.last.program.plan.nodes if node.kind != "input"} <= {"copy"}


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_optimizer_writes_the_value_itself(fused, dtype):
    params, values = far_apart(dtype)
    own = [p.clone().requires_grad_() for p in of.tree.leaves(params)]
    opt = of.Optimizer(own, swap(), fused=fused)
    for p in own:
        p.grad = torch.ones_like(p)
    opt.step()
    assert same_bits(own, of.tree.leaves(params))
    for p, value in zip(own, of.tree.leaves(values), strict=True):
        opt.state[p]["swap.other"].copy_(value)
    opt.step()
    assert same_bits(own, of.tree.leaves(values))
    opt.step()
    assert same_bits(own, of.tree.leaves(params))


@pytest.mark.parametrize("fused", [None, False])
def test_a_step_that_a_scaler_skips_assigns_nothing(fused):
    params, values = far_apart(torch.float32)
    own = [p.clone().requires_grad_() for p in of.tree.leaves(params)]
    opt = of.Optimizer(own, swap(), fused=fused)
    for p in own:
        p.grad = torch.ones_like(p)
    opt.step()
    for p, value in zip(own, of.tree.leaves(values), strict=True):
        opt.state[p]["swap.other"].copy_(value)
        p.grad = torch.full_like(p, torch.inf)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    scaler.update()
    assert same_bits(own, of.tree.leaves(params))


def test_large_models_step_in_parts():
    params = {str(i): torch.randn(2**15) for i in range(8)}
    values = {str(i): torch.randn(2**15) for i in range(8)}
    tx = of.chain(swap(), of.params_ema(0.5))
    own, state = of.tree.map(torch.clone, params), tx.init(params)
    state[0].other.update(of.tree.map(torch.clone, values))
    of.make_step(tx, donate=True, backend="eager")(own, state, {**like(params), "3": None})
    values["3"] = params["3"]
    assert same_bits(own, values)
    assert same_bits(state[1].ema, values)


def test_parameters_never_share_memory_with_the_state():
    params = plain_params()
    state = swap().init(params)
    updates, _ = swap().update(like(params), state, params)
    new = of.apply_updates(params, updates)
    held = {x.data_ptr() for x in of.tree.leaves(state)}
    assert not held & {x.data_ptr() for x in of.tree.leaves(new)}


# Transformed


def test_vmap_grad_and_compile_go_through():
    params = {"a": torch.randn(3, 4), "b": torch.randn(3, 2)}
    tx = of.lookahead(of.sgd(0.1), 1, 0.5, slow_in_state=True)
    state = torch.func.vmap(tx.init)(params)
    grads = like(params)

    def step(p, s, g):
        updates, s = tx.update(g, s, p)
        return of.apply_updates(p, updates), s

    together, _ = torch.func.vmap(step)(params, state, grads)
    updates, _ = torch.func.vmap(tx.update)(grads, state, params)
    assert_trees_equal(of.apply_updates(params, updates), together)
    for i in range(3):
        p, g = ({name: x[i] for name, x in each.items()} for each in (params, grads))
        alone, _ = step(p, tx.init(p), g)
        assert_trees_equal({name: x[i] for name, x in together.items()}, alone)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    single = tx.init(params)
    assert_trees_equal(compiled(params, single, grads), step(params, single, grads))
    slope = torch.func.grad(lambda g: step(params, single, {**grads, "a": g})[0]["a"].sum())(grads["a"])
    torch.testing.assert_close(slope, torch.full_like(slope, -0.05))


def test_it_is_a_node_for_torch_and_for_optree():
    updates = {"a": of.Assign(torch.ones(2)), "b": None}
    doubled = torch.utils._pytree.tree_map(lambda x: 2 * x, {"a": updates["a"]})
    assert isinstance(doubled["a"], of.Assign)
    assert [path for path, _ in of.tree.leaves_with_path(updates)] == [("a", "value")]


# Passed on


WRAPPED = {
    "chain": lambda tx: of.chain(of.scale(2.0), tx),
    "named_chain": lambda tx: of.named_chain(("first", of.scale(2.0)), ("then", tx)),
    "observed": lambda tx: of.chain(
        tx, of.identity(), of.params_ema(0.9), of.params_swa(), of.monitor({"n": of.tree.norm})
    ),
    "masked": lambda tx: of.masked(tx, True),
    "partition": lambda tx: of.partition({"own": tx, "none": of.sgd(0.1)}, "own"),
    "per_leaf": of.per_leaf,
    "multi_steps": lambda tx: of.multi_steps(tx, 1),
    "apply_if_finite": lambda tx: of.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: of.conditionally_transform(tx, lambda step: step >= 0),
    "conditionally_mask": lambda tx: of.conditionally_mask(tx, lambda step: step >= 0),
    "flatten": of.flatten,
    "split_real_and_imaginary": of.split_real_and_imaginary,
    "inject_hyperparams": lambda tx: of.inject_hyperparams(given_rate)(learning_rate=0.1, inner=tx),
    "lookahead": lambda tx: of.lookahead(tx, 100, 0.5, slow_in_state=True),
}


def given_rate(learning_rate: float, inner: of.GradientTransformation) -> of.GradientTransformation:
    return of.chain(of.scale(learning_rate), inner)


@pytest.mark.parametrize("backend", ["fused", "eager"])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_pass_on_what_is_assigned(name, backend):
    params = plain_params(torch.float32)
    if name == "flatten":
        params = {"a": params["a"]}
    third = of.tree.full_like(params, 1 / 3)
    tx = WRAPPED[name](goes_to(1 / 3))
    step = of.make_step(tx, backend=backend)
    got, state = step(params, tx.init(params), like(params))
    assert same_bits(got, third)
    assert of.tree.structure(state) == of.tree.structure(tx.init(params))
    got, state = step(params, state, like(params))
    assert same_bits(got, third)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_stacks_pass_on_what_is_assigned(backend):
    params = of.tree.batch_shape(plain_params(torch.float32), (3,))
    tx = of.stacked(goes_to(1 / 3))
    got, _ = of.make_step(tx, backend=backend)(params, tx.init(params), like(params))
    assert same_bits(got, of.tree.full_like(params, 1 / 3))


HELD_BACK = {
    "multi_steps": lambda tx: of.multi_steps(tx, 2),
    "apply_if_finite": lambda tx: of.apply_if_finite(tx, 3),
    "conditionally_mask": lambda tx: of.conditionally_mask(tx, lambda step: step < 0),
    "conditionally_transform": lambda tx: of.chain(
        of.set_to_zero(), of.conditionally_transform(tx, lambda step: step < 0)
    ),
    "masked": lambda tx: of.chain(of.set_to_zero(), of.masked(tx, False)),
    "freeze": lambda tx: of.chain(tx, of.freeze(True)),
    "set_to_zero": lambda tx: of.chain(tx, of.set_to_zero()),
    "selective_transform": lambda tx: of.selective_transform(tx, freeze_mask=True),
}


@pytest.mark.parametrize("backend", ["fused", "eager"])
@pytest.mark.parametrize("name", HELD_BACK)
def test_a_step_that_is_left_out_assigns_nothing(name, backend):
    params = plain_params(torch.float32)
    tx = HELD_BACK[name](goes_to(1 / 3))
    grads = like(params)
    if name == "apply_if_finite":
        grads["a"][0] = torch.nan
    got, _ = of.make_step(tx, backend=backend)(params, tx.init(params), grads)
    assert same_bits(got, params)


def test_where_only_some_leaves_are_assigned_the_others_step():
    params = plain_params(torch.float32)
    tx = of.chain(of.partition({"set": goes_to(1 / 3), "step": of.sgd(1.0)}, {"a": "set", "b": "step", "c": "step"}))
    tx = of.chain(tx, of.masked(of.scale(0.5), {"a": False, "b": True, "c": True}))
    grads = like(params)
    for inner in (tx, of.apply_if_finite(tx, 3), of.conditionally_mask(tx, lambda step: step >= 0)):
        got, _ = of.make_step(inner)(params, inner.init(params), grads)
        assert same_bits(got["a"], torch.full_like(params["a"], 1 / 3))
        assert_trees_equal(got["b"], params["b"] - 0.5 * grads["b"])


# Refused


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_transformation_passes_it_on_or_refuses_it_by_name(case):
    params = plain_params()
    tx = of.chain(goes_to(1 / 3), case.tx())
    try:
        updates, _ = tx.update(like(params), tx.init(params), params)
    except TypeError as problem:
        text = str(problem)
        assert "cannot transform the update of " in text
        assert "the end of the chain" in text
        assert hasattr(of, text.split()[0]) or text.split()[0] == case.make.__name__
        return
    for name, p in of.apply_updates(params, updates).items():
        assert same_bits(p, torch.full_like(p, 1 / 3)) or same_bits(p, params[name])


def test_the_message_says_which_member_which_leaf_and_what_to_do():
    params = {"body": [torch.ones(2)], "head": torch.ones(1)}
    tx = of.chain(goes_to(0.5), of.identity(), of.add_decayed_weights(0.1))
    with pytest.raises(
        TypeError, match=r"^add_decayed_weights cannot transform the update of body\.0: .*Assign.*end of"
    ):
        tx.update(params, tx.init(params), params)


def test_alone_too():
    with pytest.raises(TypeError, match=r"^scale cannot transform the update: it is an Assign"):
        of.scale(2.0).update(of.Assign(torch.ones(2)), of.EmptyState(), torch.ones(2))


def test_a_refused_step_leaves_all_as_it_was():
    params = plain_params()
    tx = of.chain(of.trace(0.9), goes_to(0.5), of.scale(2.0))
    state = tx.init(params)
    before = of.tree.map(torch.clone, (params, state))
    with pytest.raises(TypeError, match="scale cannot transform"):
        of.make_step(tx, donate=True)(params, state, like(params))
    assert_trees_equal((params, state), before)
    own = [p.requires_grad_() for p in params.values()]
    opt = of.Optimizer(own, tx)
    for p in own:
        p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="scale cannot transform the update of 0"):
        opt.step()
    assert_trees_equal([p.detach() for p in own], list(before[0].values()))


def test_a_value_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"of a has shape \(3,\) and its parameter \(2,\)"):
        of.apply_updates({"a": torch.ones(2)}, {"a": of.Assign(torch.ones(3))})


def test_a_choice_without_parameters_says_what_to_pass():
    tx = of.conditionally_mask(of.stateless(lambda u, p: of.Assign(u)), lambda step: step >= 0)
    with pytest.raises(ValueError, match=r"need the parameters: call tx\.update\(updates, state, params\)"):
        tx.update(torch.ones(2), tx.init(torch.ones(2)))


def test_a_transformation_of_the_user_may_take_it():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(updates)
        return updates, state

    params = params_tree()
    own = of.GradientTransformation(of.init_empty_state, update, takes_assigned=True)
    tx = of.chain(goes_to(0.5), own)
    updates, _ = tx.update(like(params), tx.init(params), params)
    assert updates is seen[0]
    with pytest.raises(TypeError, match=r"update cannot transform the update of bias"):
        of.chain(goes_to(0.5), of.GradientTransformation(of.init_empty_state, update)).update(
            like(params), (of.EmptyState(), of.EmptyState()), params
        )


# Lookahead


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_two_of_lookahead_meet_in_all_bits(dtype):
    fast = of.tree.scale(1e3, plain_params(dtype))
    tx = of.lookahead(of.adam(0.3), 3, 0.37)
    params = of.LookaheadParams(fast, like(fast))
    state = tx.init(params)
    for step in range(1, 10):
        updates, state = tx.update(like(fast), state, params)
        params = of.apply_updates(params, updates)
        assert same_bits(params.fast, params.slow) or step % 3
