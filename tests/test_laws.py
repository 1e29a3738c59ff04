"""The laws that hold for every transformation. Each runs over every case of the table."""

import copy
import functools
import inspect
import math
import pickle
import warnings

import cases as table
import numpy as np
import pytest
import torch
import torch._dynamo.testing
from case import LAWS, Case, ScheduleCase
from cases import CASES, SCHEDULES
from helpers import (
    as_reals,
    assert_close_to,
    assert_fused_equals_eager,
    assert_trees_equal,
    follow,
    like,
    params_tree,
    plain_params,
    rough_gradients,
    told,
    wide_params,
)

import optimfn as of


def cases(law):
    """Parametrize over the table; a case that the law does not hold for is skipped with its reason."""
    assert law in LAWS, f"say in LAWS of tests/case.py what {law!r} stands for"
    marked = [
        pytest.param(case, id=case.name, marks=[pytest.mark.skip(reason=case.skips[law])] if law in case.skips else [])
        for case in CASES
    ]
    return pytest.mark.parametrize("case", marked)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


# 1. Pure


@cases("pure")
def test_no_argument_is_written_to_and_results_repeat(case: Case):
    of.testing.is_pure(case.tx(), params_tree(), {})


@cases("pure")
def test_a_fresh_state_shares_no_memory_with_the_parameters(case: Case):
    params = params_tree()
    mine = {p.data_ptr() for p in of.tree.leaves(params) if p.numel()}
    assert not mine & {x.data_ptr() for x in of.tree.leaves(case.tx().init(params)) if x.numel()}


@cases("pure")
def test_unknown_extra_arguments_are_ignored(case: Case):
    tx, params = case.tx(), params_tree()
    state, grads = tx.init(params), like(params)
    assert_trees_equal(tx.update(grads, state, params, surprise=3, value=1.0), tx.update(grads, state, params))


@cases("pure")
def test_missing_parameters_are_named_or_not_needed(case: Case):
    tx, params = case.tx(), params_tree()
    state, grads = tx.init(params), like(params)
    if case.needs_params:
        with pytest.raises(ValueError, match=r"needs the parameters: call tx\.update\(updates, state, params\)"):
            tx.update(grads, state)
    else:
        assert_trees_equal(tx.update(grads, state), tx.update(grads, state, params))


# 2. Structure, shape, dtype and device are kept


def _kind(x):
    return x.shape, x.dtype, x.device


def _assert_kept(tx, params, grads):
    state = tx.init(params)
    updates, new_state = tx.update(grads, state, params)
    # Updates of half precision are float32: `apply_updates` rounds, once.
    wide = of.tree.widen(grads)
    for old, new in ((wide, told(updates, wide)), (state, new_state)):
        assert of.tree.structure(old) == of.tree.structure(new)
        assert [_kind(x) for x in of.tree.leaves(old)] == [_kind(x) for x in of.tree.leaves(new)]
    assert all(torch.isfinite(u).all() for u in of.tree.leaves(updates))
    return updates, new_state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@cases("dtype")
def test_updates_and_state_keep_their_dtypes(case: Case, dtype):
    params = params_tree(dtype)
    _assert_kept(case.tx(), params, like(params))
    _assert_kept(case.tx(**case.tensors()), params, like(params))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@cases("complex")
def test_complex_leaves_keep_their_dtypes(case: Case, dtype):
    params = params_tree(dtype)
    _assert_kept(case.tx(), params, like(params))


@cases("dtype")
def test_gradients_may_have_another_dtype_than_the_parameters(case: Case):
    params = params_tree(torch.float32)
    _assert_kept(case.tx(), params, of.tree.cast(like(params), torch.bfloat16))
    params = params_tree(torch.bfloat16)
    _assert_kept(case.tx(), params, of.tree.cast(like(params), torch.float32))


def _whole_range(params):
    """Gradients of all magnitudes that their dtype has, from its smallest number to near its largest, and zeros."""

    def leaf(p):
        kind, end = torch.finfo(p.dtype), torch.finfo(torch.float32)
        low, high = math.log2(max(kind.smallest_normal * kind.eps, end.tiny * end.eps)), math.log2(kind.max) - 0.1
        sizes = 2 ** (low + (high - low) * torch.rand(p.shape, dtype=torch.float64))
        return (sizes * torch.randint(-3, 4, p.shape).sign()).to(p.dtype)

    return of.tree.map(leaf, params)


def _mixed(params, dtypes):
    return {name: p.to(dtype) for (name, p), dtype in zip(params.items(), dtypes, strict=True)}


# What parameters a, b, c and their gradients are.
PRECISIONS = {
    "float16": [(torch.float16,) * 3] * 2,
    "bfloat16": [(torch.bfloat16,) * 3] * 2,
    "mixed": [(torch.float16, torch.bfloat16, torch.float32), (torch.float16, torch.float32, torch.bfloat16)],
}


def _rounded_once(tx, params, state, grads):
    """The step in float32, rounded at the end: parameters, and the state in the dtypes of another."""
    wide = of.tree.widen(params)
    updates, new = tx.update(of.tree.widen(grads), state, wide)
    return of.tree.cast_like(of.apply_updates(wide, updates), params), of.tree.cast_like(new, state)


@pytest.mark.parametrize("draw", [like, _whole_range], ids=["usual", "whole range"])
@pytest.mark.parametrize("precision", PRECISIONS)
@cases("dtype")
def test_a_step_in_half_precision_is_the_float32_step_rounded_once(case: Case, precision, draw):
    of_params, of_grads = PRECISIONS[precision]
    tx, params = case.tx(), _mixed(plain_params(), of_params)
    state = tx.init(params)
    for _ in range(4):
        grads = _mixed(draw(_mixed(params, of_grads)), of_grads)
        want = _rounded_once(tx, params, state, grads)
        updates, new = tx.update(grads, state, params)
        assert {u.dtype for u in of.tree.leaves(updates)} == {torch.float32}
        got = of.apply_updates(params, updates), new
        assert_trees_equal(got, want)
        # The same in place, and some leaves at a time where that can be.
        own = of.tree.map(torch.clone, (params, state))
        of.make_step(tx, donate=True, backend="eager")(*own, grads)
        assert_trees_equal(own, want)
        params, state = got


@pytest.mark.parametrize("precision", PRECISIONS)
@cases("vmap")
def test_stacks_in_half_precision_are_the_float32_ones_rounded_once(case: Case, precision):
    if "dtype" in case.skips:
        pytest.skip(case.skips["dtype"])
    of_params, of_grads = PRECISIONS[precision]
    params = _mixed(_stack([plain_params() for _ in range(3)]), of_params)
    alone, together = case.tx(), of.stacked(case.plain())
    vmapped = torch.func.vmap(alone.init), torch.func.vmap(alone.update)
    for init, update in (vmapped, (together.init, functools.partial(together.update, **case.extra))):
        state = init(params)
        for _ in range(2):
            grads = _whole_range(_mixed(params, of_grads))
            wide = of.tree.widen(params)
            updates, new = update(of.tree.widen(grads), state, wide)
            want = of.tree.cast_like(of.apply_updates(wide, updates), params), of.tree.cast_like(new, state)
            updates, state = update(grads, state, params)
            params = of.apply_updates(params, updates)
            assert_trees_equal((params, state), want)


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donating"])
@cases("fused")
def test_fused_steps_in_half_precision_round_once(case: Case, donate):
    if "dtype" in case.skips:
        pytest.skip(case.skips["dtype"])
    of_params, of_grads = PRECISIONS["mixed"]
    tx, params = case.tx(**case.tensors()), _mixed(wide_params(), of_params)
    step = of.make_step(tx, donate=donate, backend="fused")
    state = tx.init(params)

    def rounded_once(params, state, grads):
        return _rounded_once(tx, params, state, grads)

    for draw in (like, _whole_range, like):
        grads = draw(_mixed(params, of_grads))
        got = step(*of.tree.map(torch.clone, (params, state)), grads)
        params, state = assert_fused_equals_eager(step, got, rounded_once, params, state, grads)


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "eager"])
@cases("oracle")
def test_the_stateful_optimizer_rounds_half_precision_once(case: Case, fused):
    if "dtype" in case.skips:
        pytest.skip(case.skips["dtype"])
    fused = False if "fused" in case.skips else fused
    of_params, _ = PRECISIONS["mixed"]
    params = _mixed(wide_params(), of_params)
    own = {name: p.clone().requires_grad_() for name, p in params.items()}
    tx = case.plain()
    optimizer = of.Optimizer(own.items(), tx, fused=fused)
    state = tx.init(params)
    step = of.make_step(tx, backend="eager")
    for draw in (like, _whole_range):
        grads = draw(params)
        for name, p in own.items():
            p.grad = grads[name].clone()
        optimizer.step(**case.extra)
        old = params
        params, state = step(params, state, grads, **case.extra)
        for name, p in own.items():
            # The update, of at most the size of the old and the new number, may be some units of float32 off; then the
            # sum can be on the other side of the middle between two numbers.
            got, want = p.detach().clone(), params[name]
            sizes = old[name].float().abs() + want.float().abs()
            unit = torch.finfo(p.dtype).eps * want.float().abs() + torch.finfo(p.dtype).smallest_normal * 2**-9
            near = (got.float() - want.float()).abs() <= 8 * torch.finfo(torch.float32).eps * sizes + unit
            assert (near | (got == want) | (got.isnan() & want.isnan())).all(), name
            params[name] = got


# 3. Ragged trees


@pytest.mark.parametrize("params", [{}, (), [], None, {"a": None}], ids=repr)
@cases("ragged")
def test_empty_trees(case: Case, params):
    if params is None and case.needs_params:
        pytest.skip("no parameters at all is an error here")
    tx = case.tx()
    updates, state = tx.update(params, tx.init(params), params)
    assert of.tree.leaves(updates) == []
    assert of.tree.structure(state) == of.tree.structure(tx.init(params))


@cases("ragged")
def test_single_tensors_are_trees(case: Case):
    params = torch.randn(3, 2, dtype=torch.float64)
    _assert_kept(case.tx(), params, torch.randn_like(params))


@cases("absent")
def test_an_absent_gradient_leaves_its_state_alone_and_gives_no_update(case: Case):
    tx, params = case.tx(), plain_params()
    of.testing.leaves_out_the_absent(tx, params, {})
    updates, _ = tx.update(dict.fromkeys(params), tx.init(params), params)
    assert of.tree.leaves(updates) == []


@cases("ragged")
def test_strides_do_not_matter(case: Case):
    tx = case.tx()
    params = torch.randn(4, 3, dtype=torch.float64)
    grads = torch.randn(4, 3, dtype=torch.float64)

    def turned(x):
        return x.T.contiguous().T

    state = tx.init(params)
    turned_state = tx.init(turned(params))
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        turned_updates, turned_state = tx.update(turned(grads), turned_state, turned(params))
        assert_trees_equal(updates, turned_updates, rtol=1e-14, atol=case.layouts)


# 4. vmap


def _stack(trees):
    return of.tree.map(lambda *xs: torch.stack(xs), *trees)


def _member(tree, i):
    return of.tree.map(lambda x: x[i], tree)


@cases("vmap")
def test_eight_stacked_models_equal_eight_separate_runs(case: Case):
    tx = case.tx()
    stacked = of.tree.map(lambda p: torch.randn(8, *p.shape, dtype=p.dtype), plain_params())
    gradients = [of.tree.map(torch.randn_like, stacked) for _ in range(5)]
    state = torch.func.vmap(tx.init)(stacked)
    params = stacked
    for grads in gradients:
        updates, state = torch.func.vmap(tx.update)(grads, state, params)
        params = of.apply_updates(params, updates)
    for i in range(8):
        single = follow(tx, _member(stacked, i), [_member(grads, i) for grads in gradients])[-1]
        assert_trees_equal(_member(params, i), single, rtol=case.batched, atol=case.batched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@cases("vmap")
def test_every_live_hyperparameter_can_differ_between_stacked_models(case: Case, dtype):
    if not case.live:
        pytest.skip("the case has no hyperparameter that may be a tensor")
    params, grads = plain_params(dtype), like(plain_params(dtype))
    factors = torch.tensor([0.5, 0.8, 1.0], dtype=torch.float64)
    batched = {name: value * factors for name, value in case.tensors().items()}

    def run(hyper):
        return follow(case.tx(**hyper), params, [grads] * 3)[-1]

    together = torch.func.vmap(run)(batched)
    assert all(x.dtype == dtype for x in of.tree.leaves(together))
    tolerance = (
        case.batched if dtype == torch.float64 else max(case.batched, 1e-4)
    )  # a centred variance cancels in float32
    for i in range(3):
        alone = run({name: float(value[i]) for name, value in batched.items()})
        assert_trees_equal(_member(together, i), alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@cases("vmap")
def test_members_of_a_stack_go_their_own_ways(case: Case, dtype):
    factors = torch.tensor([0.5, 0.8, 1.0], dtype=torch.float64)
    batched = {name: value * factors for name, value in case.tensors().items()}
    tx = of.stacked(case.make, **{**case.kwargs, **batched}) if batched else of.stacked(case.plain())
    models = _stack([plain_params(dtype) for _ in factors])
    gradients = [like(models) for _ in range(4)]
    state = tx.init(models)
    if batched:
        assert set(state.hyperparams) == set(batched)
    assert of.tree.structure(state) == of.tree.structure(tx.update(gradients[0], state, models, **case.extra)[1])
    together = follow(tx, models, gradients, **case.extra)[-1]
    tolerance = case.batched if dtype == torch.float64 else max(case.batched, 1e-4)  # as above
    for i in range(len(factors)):
        tx = case.tx(**{name: float(value[i]) for name, value in batched.items()})
        alone = follow(tx, _member(models, i), [_member(grads, i) for grads in gradients])[-1]
        assert_trees_equal(_member(together, i), alone, rtol=tolerance, atol=tolerance)


# 5. torch.compile, and live tensors


@cases("compile")
def test_one_graph_serves_every_step_and_every_hyperparameter(case: Case):
    live = case.tensors()
    tx, params = case.tx(**live), params_tree(torch.float32)
    step = of.make_step(tx)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    expected_step, state = of.make_step(tx, backend="eager"), tx.init(params)
    expected_params, expected_state = params, state
    for _ in range(20):
        grads = like(params)
        params, state = compiled(params, state, grads)
        expected_params, expected_state = expected_step(expected_params, expected_state, grads)
        for value in live.values():
            value.mul_(0.99)
    assert counter.frame_count == 1
    assert_trees_equal((params, state), (expected_params, expected_state))


@cases("compile")
def test_a_state_is_made_in_one_graph(case: Case):
    tx, params = case.tx(**case.tensors()), params_tree(torch.float32)
    torch._dynamo.reset()
    made = torch.compile(tx.init, fullgraph=True, backend="eager")(params)
    assert_trees_equal(made, tx.init(params))


@cases("live")
def test_a_hyperparameter_tensor_is_read_at_every_step(case: Case):
    if not case.live:
        pytest.skip("the case has no hyperparameter that may be a tensor")
    params, grads = plain_params(), like(plain_params())
    for name, value in case.tensors().items():
        tx = case.tx(**{name: value})
        state = tx.init(params)
        value.mul_(0.5)
        now, _ = tx.update(grads, state, params)
        want, _ = case.tx(**{name: case.kwargs[name] * 0.5}).update(grads, state, params)
        assert_trees_equal(now, want, rtol=1e-12)


# 6. Differentiable


FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own


def _three_updates(case: Case, **changed):
    """The parameters after three updates as a function of parameters, gradients and every float; and these inputs."""
    torch.set_default_dtype(torch.float64)  # which a scalar in a state follows
    params = {"w": torch.randn(2, 2), "b": torch.randn(2)}
    fields = [(like(params), like(params)) for _ in range(3)]
    # A difference quotient takes steps of 1e-6: nothing to an eps of 0.1, far to one of 1e-8.
    floats = {name: value if abs(value) >= 1e-3 else 0.1 for name, value in case.floats().items()} | changed

    def run(w, b, kick, *values):
        tx, params = case.tx(**dict(zip(floats, values, strict=True))), {"w": w, "b": b}
        state = tx.init(params)
        for slope, offset in fields:
            grads = of.tree.map(lambda p, a, c: a * torch.sin(p) + c + kick, params, slope, offset)
            updates, state = tx.update(grads, state, params)
            params = of.apply_updates(params, updates)
        return params["w"], params["b"]

    return run, (params["w"], params["b"], torch.zeros(2), *map(torch.tensor, floats.values()))


@FORWARD_MODE
@cases("differentiable")
def test_gradients_flow_through_three_updates(case: Case):
    run, inputs = _three_updates(case)
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-6, check_forward_ad=True)


@FORWARD_MODE
@cases("differentiable")
def test_torch_func_finds_the_gradients_that_autograd_finds(case: Case):
    run, inputs = _three_updates(case)
    want = torch.autograd.functional.jacobian(run, inputs)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        got = jacobian(run, argnums=tuple(range(len(inputs))))(*inputs)
        assert_trees_equal(got, want, rtol=1e-10, atol=1e-12)


DECAYS = ("b1", "b2", "b3", "beta", "decay", "momentum", "rho")


@FORWARD_MODE
@cases("differentiable")
def test_derivatives_by_a_decay_of_zero_are_those_of_its_neighbours(case: Case):
    names = [name for name in DECAYS if name in case.floats()]
    if "stddev" in case.name or "centered" in case.name:
        pytest.skip("the variance of the newest gradient alone is 0, where its root has no derivative")
    if "stable" in case.name:
        pytest.skip("without memory the divisor is that of the gradient itself, where the clip begins to bind")
    if not names:
        pytest.skip("the case has no decay that may be a tensor")
    for name in names:
        seed = torch.random.get_rng_state()
        run, inputs = _three_updates(case, **{name: 0.0})
        torch.random.set_rng_state(seed)
        _, near = _three_updates(case, **{name: 1e-9})
        every = tuple(range(len(inputs)))
        got, forward = torch.func.jacrev(run, argnums=every)(*inputs), torch.func.jacfwd(run, argnums=every)(*inputs)
        assert_trees_equal(got, forward, rtol=1e-9, atol=1e-12)
        assert_trees_equal(got, torch.func.jacrev(run, argnums=every)(*near), rtol=1e-4, atol=1e-5)


# Where the rule has no derivative by an argument at an end of its range, or another rule begins there.
NO_DERIVATIVE = {
    **dict.fromkeys(
        [("clip", "max_delta"), ("scale_by_polyak_below_the_bound", "max_learning_rate")], "two bounds meet"
    ),
    **dict.fromkeys([("add_noise", "eta"), ("noisy_sgd", "eta")], "the deviation is the root of a variance of 0"),
    **dict.fromkeys(
        [(name, "eps") for name in ("scale_by_adadelta", "adadelta", "adadelta_masked")],
        "the first step is the root of eps, so without it there is none",
    ),
    **dict.fromkeys(
        [("scale_by_yogi", "b1"), ("yogi", "b1")],
        "its mean begins at a number, which is divided by 1 - b1: the parameters are in the hundreds then",
    ),
    ("adadelta", "rho"): "at 1 the mean square stays 0",
    ("rmsprop_centered_as_torch", "decay"): "the variance of the newest gradient alone is 0",
    ("scale_by_stddev_debiased", "initial_scale"): "the variance of the first gradient is 0",
    ("scale_by_sm3", "b2"): "at 1 the bound is a sum, below it a mean",
    **dict.fromkeys(
        [("scale_by_distance_over_gradients", "reps_rel"), ("scale_by_dowg", "init_estim_sq_dist"), ("dowg", "eps")],
        "without it the first step is 0, and so are all",
    ),
    **dict.fromkeys(
        [
            (name, "learning_rate")
            for name in (
                "schedule_free",
                "schedule_free_sgd",
                "schedule_free_adamw",
                "schedule_free_adamw_warmed_up",
                "schedule_free_radam",
                "schedule_free_radam_aloud",
            )
        ],
        "rates are the weights of its mean, which stays where it is without any",
    ),
    **dict.fromkeys(
        [("schedule_free_adamw_warmed_up", "weight_lr_power"), ("schedule_free_radam", "weight_lr_power")],
        "at 0 the first step, whose rate is 0, weighs 1",
    ),
    **dict.fromkeys(
        [("momo_adapted", "learning_rate"), ("momo_adam_adapted", "learning_rate")],
        "without a step the raised bound is the value of the model, where it is lowered again",
    ),
    **dict.fromkeys(
        [("sgdp", "momentum"), ("sgdp_one_ahead", "momentum")],
        "its decay is divided by 1 - momentum: the parameters are in the hundreds then",
    ),
    ("scale_by_came", "b3"): "near 1 it divides by differences that count for next to nothing",
    ("scale_by_backtracking_linesearch", "decrease_factor"): "the search tries other steps",
    ("msam", "learning_rate"): "without a step there is no way ahead",
    ("lbfgs", "learning_rate"): "without a step there is no pair",
    ("adafactor_as_torch", "beta2_decay"): "its range ends at 0 from below",
}
# An end of the range of an argument, and a number beside it.
ENDS = {0.0: 1e-9, 1.0: 1 - 1e-9, 1 - 1e-5: 1 - 1e-5 - 1e-10, 1e-30: 1e-28}


def _ends_of(case, name):
    is_decay = name in (*DECAYS, "dampening", "slow_step_size")
    for end, near in ENDS.items():
        if (0 < end < 0.1 and not name.startswith("eps")) or (end > 0.1 and not is_decay) or (is_decay and end == 0):
            continue
        try:
            case.make(**{**case.kwargs, name: end})
        except ValueError:
            continue
        # Beside the squares of small differences every other eps is large.
        yield end, 1e-16 if name.startswith("eps") and end == 0 else near


@FORWARD_MODE
@cases("differentiable")
def test_derivatives_at_the_ends_of_ranges_are_finite_and_those_beside_them(case: Case):
    for name in case.floats():
        for end, near in [] if (case.name, name) in NO_DERIVATIVE else _ends_of(case, name):
            seed = torch.random.get_rng_state()
            run, inputs = _three_updates(case, **{name: end})
            torch.random.set_rng_state(seed)
            _, beside = _three_updates(case, **{name: near})
            every = tuple(range(len(inputs)))
            got, forward = (
                torch.func.jacrev(run, argnums=every)(*inputs),
                torch.func.jacfwd(run, argnums=every)(*inputs),
            )
            assert all(x.isfinite().all() for x in of.tree.leaves(got)), (name, end)
            assert_trees_equal(got, forward, rtol=1e-5, atol=1e-8)
            assert_trees_equal(got, torch.func.jacrev(run, argnums=every)(*beside), rtol=1e-3, atol=1e-4)


@cases("sensitive")
def test_the_parameters_feel_a_small_change_of_a_gradient(case: Case):
    if "differentiable" in case.skips:
        pytest.skip(case.skips["differentiable"])
    run, inputs = _three_updates(case)
    assert any((j != 0).any() for j in torch.func.jacrev(run, argnums=2)(*inputs))


# 7. No host read


@cases("meta")
def test_runs_where_tensors_have_no_values(case: Case):
    params = params_tree(torch.float32, device="cpu")
    params = of.tree.map(lambda p: p.to("meta"), params)
    hyper = {name: value.to("meta") for name, value in case.tensors().items()}
    tx = case.tx(**hyper)
    updates, state = tx.update(params, tx.init(params), params)
    assert all(x.is_meta for x in of.tree.leaves(updates))
    kinds = [spec.kind for spec in of.tree.leaves(of.state_spec(case.tx(), params_tree(torch.float32)))]
    for x, kind in zip(of.tree.leaves(state), kinds, strict=True):
        assert x.is_cpu if kind == "host" else x.is_meta


# 8. Fused equals eager


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donating"])
@cases("fused")
def test_fused_steps_equal_eager_steps(case: Case, donate):
    tx = case.tx(**case.tensors())
    fused, eager = of.make_step(tx, donate=donate, backend="fused"), of.make_step(tx, backend="eager")
    params = wide_params()
    state = tx.init(params)
    for grads in rough_gradients(params, 8):
        own = of.tree.map(torch.clone, (params, state))
        got = fused(*own, grads)
        if donate:
            assert got[0] is own[0]
            assert got[1] is own[1]
        else:
            assert_trees_equal(own, (params, state))
        params, state = assert_fused_equals_eager(fused, got, eager, params, state, grads)


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donating"])
@cases("fused")
def test_fused_steps_equal_eager_steps_for_complex_leaves(case: Case, donate):
    if "complex" in case.skips:
        pytest.skip(case.skips["complex"])
    tx = case.tx(**case.tensors())
    # Whether a complex number is finite is asked of ATen in a way that no kernel has: the rule itself runs then.
    fused, eager = of.make_step(tx, donate=donate), of.make_step(tx, backend="eager")
    params = wide_params(torch.complex64)
    state = tx.init(params)
    for grads in rough_gradients(params, 4):
        own = of.tree.map(torch.clone, (params, state))
        given = of.tree.map(torch.clone, grads)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*writes in place", RuntimeWarning)
            got = fused(*own, grads)
        assert_trees_equal(grads, given)
        if donate:
            assert got[0] is own[0]
            assert got[1] is own[1]
        else:
            assert_trees_equal(own, (params, state))
        params, state = assert_fused_equals_eager(fused, got, eager, params, state, grads)


@cases("fused")
def test_fused_steps_leave_out_what_eager_steps_leave_out(case: Case):
    tx = case.tx(**case.tensors())
    fused, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
    params = {f"{name}{k}": p for k in range(2) for name, p in wide_params().items()}
    state = tx.init(params)
    for there in (0b111111, 0b101101, 0b011010, 0b000001, 0b110100, 0, 0b010110):
        grads = {name: g if there >> i & 1 else None for i, (name, g) in enumerate(like(params).items())}
        got = fused(*of.tree.map(torch.clone, (params, state)), grads)
        # One that has seen no other pattern does the same operations in the same order, but for products of matrices,
        # whose sums depend on where they lie.
        alone, off = of.make_step(tx, backend="fused"), 1e-5 if case.layouts else 0.0
        assert_trees_equal(got, alone(params, state, grads), rtol=off, atol=off)
        params, state = eager(params, state, grads)
        assert_trees_equal(got, (params, state), rtol=1e-4, atol=1e-4)


@cases("fused")
def test_fused_steps_take_ragged_trees(case: Case):
    if "ragged" in case.skips:
        pytest.skip(case.skips["ragged"])
    tx, params = case.tx(), params_tree()
    fused, eager = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager")
    state = tx.init(params)
    for _ in range(3):
        grads = like(params)
        want = eager(params, state, grads)
        assert_trees_equal(fused(params, state, grads), want, rtol=1e-12, atol=1e-12)
        params, state = want


@cases("vmap")
def test_fused_steps_of_stacks_equal_eager_steps(case: Case):
    if "fused" in case.skips:
        pytest.skip(case.skips["fused"])
    tx = of.stacked(case.make, **{**case.kwargs, **{name: value.expand(3) for name, value in case.tensors().items()}})
    fused, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
    params = _stack([wide_params() for _ in range(3)])
    state = tx.init(params)
    for grads in rough_gradients(params, 3):
        got = fused(*of.tree.map(torch.clone, (params, state)), grads, **case.extra)
        params, state = assert_fused_equals_eager(fused, got, eager, params, state, grads, **case.extra)


# 9. Oracle


@cases("oracle")
def test_follows_its_oracle_step_by_step(case: Case):
    if case.oracle is None:
        pytest.skip("its parts are compared with theirs")
    params = plain_params()
    gradients = rough_gradients(params, 50)
    expected = case.oracle(params, gradients)
    for ours, want in zip(follow(case.tx(), params, gradients), expected, strict=True):
        assert_close_to(ours, want, case.rtol)


@cases("oracle")
def test_tensors_give_the_numbers_that_floats_give(case: Case):
    params = plain_params()
    gradients = rough_gradients(params, 10)
    with_floats, with_tensors = (
        follow(case.tx(), params, gradients),
        follow(case.tx(**case.tensors()), params, gradients),
    )
    assert_close_to(with_tensors[-1], with_floats[-1], 1e-12)


@cases("oracle")
def test_a_donating_step_gives_the_same_numbers_in_the_same_tensors(case: Case):
    tx, params = case.tx(), plain_params()
    gradients = rough_gradients(params, 10)
    expected = follow(tx, params, gradients)[-1]
    own = of.tree.map(torch.clone, params)
    state = tx.init(own)
    before = [x.data_ptr() for x in of.tree.leaves((own, state))]
    step = of.make_step(tx, donate=True, backend="eager")
    for grads in gradients:
        new_params, new_state = step(own, state, grads)
        assert new_params is own
        assert new_state is state
    assert [x.data_ptr() for x in of.tree.leaves((own, state))] == before
    assert_trees_equal(own, expected)


@cases("oracle")
def test_the_stateful_optimizer_takes_the_same_steps(case: Case):
    params = plain_params()
    gradients = rough_gradients(params, 10)
    expected = follow(case.tx(), params, gradients)[-1]
    own = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = of.Optimizer(own.items(), case.plain(), fused=False if "fused" in case.skips else None)
    for grads in gradients:
        for name, p in own.items():
            p.grad = grads[name].clone()
        optimizer.step(**case.extra)
    assert_close_to(own, expected, 1e-14)


# 10. Recorded


@cases("recorded")
def test_repr_names_every_argument_and_makes_an_equal_value(case: Case):
    tx = case.tx()
    shown = repr(tx)
    for name in case.kwargs:
        assert f"{name}=" in shown
    names = {**{f.__name__: f for f in _functions()}, **vars(of.tree), **vars(of), "torch": torch}
    assert eval(shown, names) == tx


def _functions():
    return [value for family in table.FAMILIES for value in vars(family).values() if inspect.isfunction(value)]


@cases("recorded")
def test_equal_by_value_hashable_picklable_and_copyable(case: Case):
    tx = case.tx()
    for twin in (case.tx(), pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx), copy.copy(tx)):
        assert twin == tx
        assert hash(twin) == hash(tx)
        params = plain_params()
        gradients = rough_gradients(params, 3)
        found, want = (follow(each, params, gradients, **case.extra)[-1] for each in (twin, tx))
        assert_trees_equal(found, want)
    for name in case.live:
        other = tx.replace(**{name: case.kwargs[name] * 0.5})
        assert other != tx
        assert other == case.tx(**{name: case.kwargs[name] * 0.5})


# 11. Checkpoints


@cases("checkpoint")
def test_state_survives_a_weights_only_file(case: Case):
    of.testing.resumes(case.tx(), params_tree(torch.bfloat16), {})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_parts_of_a_state_that_mirror_the_parameters_are_found(case: Case):
    tx, params = case.tx(), plain_params()
    state = tx.init(params)
    tags = {name: number for number, name in enumerate(params)}
    marked = of.tree.map_params(
        tx,
        lambda leaf, tag, p: torch.full_like(leaf, tag),
        state,
        tags,
        params,
        transform_non_params=lambda leaf: torch.full_like(leaf, 7),
    )
    assert of.tree.structure(marked) == of.tree.structure(state)
    for path, leaf in of.tree.leaves_with_path(marked):
        tag = next((tags[name] for name in reversed(path) if name in tags), 7)
        assert torch.equal(leaf, torch.full_like(leaf, tag)), path


# 12. Arguments, good and bad


def _numbers(case):
    """The arguments of a case that are numbers, also those left out."""
    bound = inspect.signature(case.make).bind(**case.kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if isinstance(value, int | float)}


every = pytest.mark.parametrize("case", [*CASES, *SCHEDULES], ids=lambda case: case.name)


@every
def test_numbers_of_numpy_are_numbers(case: Case | ScheduleCase):
    for name, value in _numbers(case).items():
        whole, kinds = isinstance(value, int), [np.float64, np.float32, np.longdouble, np.array]
        for kind in [np.bool_] if isinstance(value, bool) else [np.int64, np.int32, np.array] if whole else kinds:
            given = kind(value)
            plain = type(value)(given)
            one, other = (case.make(**{**case.kwargs, name: number}) for number in (given, plain))
            assert one == other
            assert repr(one) == repr(other)


NO_NUMBERS = [
    "0.1",
    [0.1],
    object(),
    1j,
    True,
    math.nan,
    torch.ones(1),
    torch.ones(1, 1),
    np.ones(1),
    np.float32("nan"),
]


@every
def test_what_is_no_number_is_an_error_that_names_the_argument(case: Case | ScheduleCase):
    if not case.make.__module__.startswith("optimfn"):
        pytest.skip("a factory of the tests, which leaves the checks to its members")
    for name, value in _numbers(case).items():
        for wrong in [] if isinstance(value, bool) else NO_NUMBERS:
            with pytest.raises((TypeError, ValueError), match=rf"^{name} must .*got"):
                case.make(**{**case.kwargs, name: wrong})


BAD = [
    pytest.param(case, *bad, id=f"{case.name}-{'-'.join(bad[0])}-{position}")
    for case in CASES
    for position, bad in enumerate(case.bad)
]


@pytest.mark.parametrize(("case", "changes", "error", "words"), BAD)
def test_bad_arguments_are_named_at_construction(case: Case, changes, error, words):
    with pytest.raises(error, match=words):
        case.tx(**changes)


# 13. Range: finite in, finite out, and in the right direction

# The rules that keep squares (or bounds on their sums) in float32, which ends where they are of numbers of 1.8e19. What
# is then infinite stops the leaf, as in optax and torch; it does not make NaN. A state in float64 would take twice the
# memory, and the root of the second moment as a state would be another rule.
SQUARES = """
adabelief adabelief_nesterov adadelta adadelta_masked adafactor adafactor_as_torch adafactor_as_torch_decayed
adafactor_unclipped adafactor_with_all adagrad adagrad_as_torch adam adam_nesterov adamw adamw_scheduled adan
amsgrad amsgrad_as_torch amsgrad_biased_mu amsgrad_of_the_paper apply_if_finite conditionally_mask
conditionally_transform flatten inject_hyperparams lamb multi_steps multi_steps_sum nadam nadamw optimistic_adam
optimistic_adam_of_itself optimistic_adam_v2 per_leaf rmsprop rmsprop_as_torch rmsprop_centered_as_torch
scale_by_adadelta scale_by_adam scale_by_adan scale_by_amsgrad scale_by_amsgrad_of_raw scale_by_belief
scale_by_factored_rms scale_by_factored_rms_whole scale_by_nadam scale_by_nadam_fast scale_by_rms scale_by_rms_debiased
scale_by_row_col_rms scale_by_rss scale_by_rss_from_nothing scale_by_sm3 scale_by_sparse_adam scale_by_stddev
scale_by_stddev_debiased scale_by_yogi selective_transform sm3 stacked stacked_factory yogi
scale_by_soap scale_by_soap_of_kl soap eigenbasis scale_by_shampoo scale_by_shampoo_of_eigenvalues shampoo kl_shampoo
scale_by_acprop scale_by_ademamix scale_by_ademamix_warmed_up ademamix scale_by_simplified_ademamix simplified_ademamix
scale_by_adopt scale_by_adopt_unclipped adopt adopt_decayed adopt_decoupled scale_by_madgrad madgrad
scale_by_laprop laprop scale_by_adam_atan2 adam_atan2 scale_by_grams grams scale_by_stable_adam stable_adamw
scale_by_qhadam qhadam muon muon_otherwise
cautious_adamw cautious_adopt mars_adamw hyperball_adam hyperball_of_now graft schedule_free_adamw
schedule_free_adamw_warmed_up prodigy prodigy_of_the_authors prodigy_safeguarded dadapt_adamw
momo_adam momo_adam_adapted scale_by_galore galore_adamw fira scale_by_apollo apollo apollo_of_random_directions
scale_by_adam_mini scale_by_adam_mini_along_axes adam_mini adamp adamp_one_ahead scale_by_came came
scale_by_sophia_g sophia_g gpa gpa_at_z
clip_spikes spam dadapt_adagrad rows rowwise_adagrad scale_by_rowwise_rss kron_whiten scale_by_kron kron lra_whiten
"""
# These call a sum of squares of 0 no information, and stand still; for the others eps decides.
NOTHING_SEEN = frozenset({"scale_by_rss_from_nothing", "scale_by_sm3", "sm3"})
# Without an eps, a square that has become 0 leaves the sign alone.
SIGN_SEEN = frozenset({"scale_by_adam_atan2", "adam_atan2"})
# Squares that have become 0 clip nothing.
UNCLIPPED = frozenset({"clip_spikes", "spam"})
# Their maths needs a loss, and that of the cases has fourth powers.
NEEDS_A_LOSS = frozenset(case.name for case in CASES if "linesearch" in case.name or "lbfgs" in case.name)
# Wrappers around Adam, whose squares are infinite there.
ADAMS = [case.name for case in CASES if case.make.__module__ == "cases.precision"]
EXEMPT = {
    1e25: {
        *SQUARES.split(),
        *ADAMS,
        "minimize_by_lbfgs",
        "minimize_by_lbfgs_with_line_search",
    },
    1e-25: NOTHING_SEEN | SIGN_SEEN | UNCLIPPED,
}


def _one_vector(tree):
    return torch.cat([as_reals(x).flatten() for x in of.tree.leaves(tree)])


@pytest.mark.parametrize("of_params", [1.0, None], ids=["of gradients", "of all"])
@pytest.mark.parametrize("scale", EXEMPT, ids=str)
@cases("range")
def test_finite_gradients_of_any_scale_give_finite_updates_in_the_right_direction(case: Case, scale, of_params):
    if of_params is None and case.name in NEEDS_A_LOSS:
        pytest.skip("its maths needs a loss, and that of the case has fourth powers")
    params = of.tree.scale(of_params or scale, wide_params())
    gradients = [of.tree.scale(scale, like(params)) for _ in range(3)]
    exact = of.tree.cast((params, gradients), torch.float64)
    for got, want in zip(_updates(case, params, gradients), _updates(case, *exact), strict=True):
        got, want = _one_vector(got), _one_vector(want)
        size = want.abs().max()
        if not 1e-37 < size < 1e37:
            # What is right is no float32; but nothing may come of nothing.
            assert size > 0 or not got.any()
            continue
        assert got.isfinite().all()
        if case.name not in EXEMPT[scale]:
            assert torch.nn.functional.cosine_similarity(got / size, want / size, dim=0) > 0.99


def _updates(case, params, gradients):
    tx = case.tx()
    state = tx.init(params)
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        yield updates


@pytest.mark.parametrize("scale", EXEMPT, ids=str)
@cases("fused")
def test_fused_steps_equal_eager_steps_at_any_scale(case: Case, scale):
    tx = case.tx(**case.tensors())
    fused, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
    params = wide_params()
    state = tx.init(params)
    for _ in range(3):
        grads = of.tree.scale(scale, like(params))
        got = fused(*of.tree.map(torch.clone, (params, state)), grads)
        params, state = assert_fused_equals_eager(fused, got, eager, params, state, grads)
