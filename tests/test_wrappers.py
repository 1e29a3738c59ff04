"""What is special to the wrappers, beyond the laws."""

import functools
import math
import pickle

import pytest
import torch
from helpers import assert_trees_equal, follow, like, plain_params

import optimfn as of

NAN = torch.tensor([math.nan, 1.0])


def run(tx, params, gradients, **extra):
    """Updates of every step, and the last state."""
    state, shown = tx.init(params), []
    for grads in gradients:
        updates, state = tx.update(grads, state, params, **extra)
        shown.append(updates)
    return shown, state


# multi_steps


def test_three_small_batches_are_one_large_one():
    params = plain_params()
    gradients = [like(params) for _ in range(12)]
    means = [of.tree.scale(1 / 3, of.tree.add(*gradients[i : i + 3])) for i in range(0, 12, 3)]
    inner = of.chain(of.clip_by_global_norm(1.0), of.adamw(of.linear_schedule(0.1, 0.0, 4), weight_decay=0.1))
    together = follow(inner, params, means)
    apart = follow(of.multi_steps(inner, 3), params, gradients)
    for i in range(4):
        assert_trees_equal(apart[3 * i + 2], together[i], rtol=1e-12, atol=1e-14)


def test_zeros_between_steps_and_has_updated_after_them():
    tx = of.chain(of.identity(), of.multi_steps(of.sgd(1.0), 3))
    state, seen = tx.init(torch.ones(2)), []
    assert not of.has_updated(state)
    for _ in range(6):
        updates, state = tx.update(torch.ones(2), state)
        seen.append((updates[0].item(), bool(of.has_updated(state))))
    assert seen == [(0.0, False), (0.0, False), (-1.0, True)] * 2


def test_has_updated_wants_one_state_of_multi_steps():
    with pytest.raises(ValueError, match="the state has no MultiStepsState"):
        of.has_updated(of.sgd(1.0).init(None))


def test_the_inner_rule_sees_nothing_between_steps():
    seen = []

    def look(updates, params):
        seen.append(updates.clone())
        return updates / updates.abs()  # 0 / 0 between steps

    tx = of.multi_steps(of.chain(of.stateless(look), of.trace(0.5)), 2)
    updates, state = run(tx, torch.ones(1), [torch.tensor([2.0])] * 4)
    assert [s.item() for s in seen] == [0.0, 2.0, 0.0, 2.0]
    assert [u.item() for u in updates] == [0.0, 1.0, 0.0, 1.5]
    assert state.inner_opt_state[1].trace.item() == 1.5


def test_a_nan_is_gone_with_the_step_it_belonged_to():
    tx = of.multi_steps(of.sgd(1.0), 2)
    updates, _ = run(tx, torch.ones(2), [NAN, torch.ones(2), torch.ones(2), torch.ones(2)])
    assert updates[0].tolist() == [0.0, 0.0]
    assert updates[1].isnan().tolist() == [True, False]
    assert updates[3].tolist() == [-1.0, -1.0]


def test_skipped_mini_steps_do_not_count():
    tx = of.multi_steps(of.adam(0.1), 2, should_skip_update_fn=of.skip_not_finite)
    good = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    updates, state = run(tx, torch.ones(2), [good[0], NAN, good[1]])
    want, _ = run(of.multi_steps(of.adam(0.1), 2), torch.ones(2), good)
    assert updates[1].tolist() == [0.0, 0.0]
    assert torch.equal(updates[2], want[1])
    assert state.gradient_step == 1
    assert not state.skip_state["should_skip"]
    _, state = tx.update(NAN, state)
    assert state.skip_state["should_skip"]
    assert state.skip_state["num_not_finite"] == 1
    assert state.mini_step == 0


def test_large_updates_are_skipped_and_nan_is_large():
    skip = functools.partial(of.skip_large_updates, max_squared_norm=3.0)
    tx = of.multi_steps(of.sgd(1.0), 1, should_skip_update_fn=skip)
    updates, state = run(tx, torch.ones(2), [torch.ones(2), 2 * torch.ones(2), NAN])
    assert [u.tolist() for u in updates] == [[-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]
    assert state.gradient_step == 1
    assert state.skip_state["norm_squared"].isnan()


def test_the_number_of_mini_steps_may_follow_a_schedule():
    tx = of.multi_steps(of.sgd(1.0), of.linear_schedule(1.0, 3.0, 2))
    updates, _ = run(tx, torch.zeros(1), [torch.ones(1)] * 6)
    assert [u.item() for u in updates] == [-1.0, 0.0, -1.0, 0.0, 0.0, -1.0]


def test_low_precision_is_accumulated_in_float32_and_float64_as_it_is():
    for dtype, want in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert of.multi_steps(of.sgd(1.0), 2).init(torch.ones(1, dtype=dtype)).acc_grads.dtype == want
    tx = of.multi_steps(of.sgd(1.0), 2, accumulator_dtype=torch.bfloat16)
    assert tx.init(torch.ones(1)).acc_grads.dtype == torch.bfloat16


# Absent gradients


INNER = {
    "sgd": of.sgd(0.1, momentum=0.9),
    "adamw": of.adamw(0.1, weight_decay=0.1),
    "clipped": of.chain(of.clip_by_global_norm(1.0), of.lamb(0.1)),
    "partition": of.partition({True: of.adamw(0.1), False: of.sm3(0.1)}, of.tree.is_matrix),
    "lbfgs memory": of.scale_by_lbfgs(3),
}
HAVE_B = [(True, True, False), (True, False, False), (False, True, False), (False, False, True), (True, False, True)]


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("have_b", HAVE_B)
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_of_an_earlier_mini_step_is_not_lost(inner, have_b, mean, fused):
    tx, params = of.multi_steps(inner, 3, use_grad_mean=mean), plain_params()
    step = of.make_step(tx, backend="auto" if fused else "eager")
    (p, state), (want, want_state) = [(params, tx.init(params))] * 2
    for have in (True, True, True, *have_b, *reversed(have_b), True, True, True):
        grads = like(params)
        p, state = step(p, state, grads if have else {**grads, "b": None})
        want, want_state = step(want, want_state, grads if have else {**grads, "b": torch.zeros_like(params["b"])})
        assert_trees_equal((p, state), (want, want_state), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in INNER if name != "lbfgs memory"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_params", [True, False])
def test_a_leaf_without_gradients_in_all_mini_steps_stays_as_it_is(name, dtype, with_params):
    if not with_params and name != "sgd":
        pytest.skip("the rule wants the parameters")
    tx, params = of.multi_steps(INNER[name], 2), plain_params(dtype)
    given = params if with_params else None
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(like(params), state, given)
    for _ in range(4):
        before = state
        updates, state = tx.update({**like(params), "b": None}, state, given)
        assert torch.equal(of.apply_updates(params, updates)["b"], params["b"])
        assert of.tree.map(lambda x: x.dtype, state) == of.tree.map(lambda x: x.dtype, before)
        flat, was = of.state_dict(state), of.state_dict(before)
        of_b = [key for key in flat if "b" in key.split(".")]
        assert of_b
        assert all(torch.equal(flat[key], was[key]) for key in of_b)


def test_absent_gradients_are_fused_and_batched():
    tx, params = of.multi_steps(of.adamw(0.1), 2), plain_params()
    grads = [like(params), {**like(params), "b": None}, {**like(params), "b": None}, {**like(params), "b": None}]
    alone = follow(tx, params, grads)
    stack = of.tree.map(lambda p: torch.stack([p, p]), params)
    both = follow(of.stacked(tx), stack, [of.tree.map(lambda g: torch.stack([g, g]), g) for g in grads])
    step, p, state = of.make_step(tx, backend="fused"), params, tx.init(params)
    for one, two, g in zip(alone, both, grads, strict=True):
        p, state = step(p, state, g)
        assert_trees_equal(p, one, rtol=1e-12, atol=1e-14)
        assert_trees_equal(of.tree.map(lambda x: x[1], two), one, rtol=1e-12, atol=1e-14)


def test_apply_every_lets_out_what_came_before_an_absent_update():
    tx, params = of.apply_every(2), {"a": torch.zeros(1), "b": torch.zeros(1)}
    state, seen = tx.init(params), []
    for a, b in [(1.0, 2.0), (3.0, None), (5.0, None), (7.0, 11.0), (1.0, None), (1.0, None)]:
        updates, state = tx.update({"a": torch.tensor([a]), "b": None if b is None else torch.tensor([b])}, state)
        seen.append(updates["b"].item())
    assert seen == [0.0, 2.0, 0.0, 11.0, 0.0, 0.0]


def test_extra_arguments_reach_the_inner_rule():
    w = torch.tensor([2.0])
    for wrap in (
        lambda tx: of.multi_steps(tx, 1),
        lambda tx: of.conditionally_transform(tx, lambda step: step >= 0),
        lambda tx: of.conditionally_mask(tx, lambda step: True),
        of.flatten,
        lambda tx: of.selective_transform(tx, freeze_mask=False),
        lambda tx: of.inject_hyperparams(lambda scaling: of.chain(of.scale(scaling), tx))(1.0),
    ):
        tx = wrap(of.polyak_sgd())
        assert tx.update(2 * w, tx.init(w), w, value=(w**2).sum())[0].item() == -1.0


def test_apply_every_forgets_a_nan():
    updates, _ = run(of.apply_every(2), torch.ones(2), [NAN, torch.ones(2), torch.ones(2), torch.ones(2)])
    assert updates[1].isnan().tolist() == [True, False]
    assert updates[3].tolist() == [2.0, 2.0]


# Conditions


@pytest.mark.parametrize(("wrapper", "otherwise"), [(of.conditionally_transform, 1.0), (of.conditionally_mask, 0.0)])
def test_a_condition_may_look_at_extra_arguments(wrapper, otherwise):
    tx = wrapper(of.scale(10.0), lambda step, loss: loss < 1.0, forward_extra_args=True)
    state = tx.init(torch.ones(1))
    assert tx.update(torch.ones(1), state, loss=torch.tensor(0.5))[0].item() == 10.0
    assert tx.update(torch.ones(1), state, loss=torch.tensor(1.5))[0].item() == otherwise


@pytest.mark.parametrize("wrapper", [of.conditionally_transform, of.conditionally_mask])
def test_a_rule_that_does_not_apply_leaves_no_nan(wrapper):
    tx = wrapper(of.stateless(lambda u, p: u / 0.0 * 0.0), lambda step: step > 5)
    assert torch.isfinite(tx.update(torch.ones(1), tx.init(torch.ones(1)))[0]).all()


# Masks and layout


def test_frozen_leaves_have_no_state_and_no_part_in_norms():
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    tx = of.selective_transform(
        of.chain(of.clip_by_global_norm(1.0), of.trace(0.9)), freeze_mask={"a": False, "b": True}
    )
    state = tx.init(params)
    assert of.tree.size(state) == 2
    updates, _ = tx.update({"a": torch.tensor([3.0, 4.0]), "b": torch.full((2,), 1e9)}, state, params)
    assert updates["a"].tolist() == pytest.approx([0.6, 0.8])
    assert updates["b"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_bool_freezes_all_or_nothing(frozen):
    params = plain_params()
    for tx in (of.freeze(frozen), of.selective_transform(of.scale(1.0), freeze_mask=frozen)):
        updates, _ = tx.update(params, tx.init(params), params)
        assert_trees_equal(updates, of.tree.zeros_like(params) if frozen else params)


def test_flatten_keeps_dtypes_and_moves_all_as_one():
    params = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(1, 2, dtype=torch.float64)}
    updates, _ = run(of.flatten(of.normalize_by_update_norm(eps=0.0)), params, [params])
    assert [u.dtype for u in of.tree.leaves(updates[0])] == [torch.float32, torch.float64]
    assert updates[0]["b"].tolist() == [[0.5, 0.5]]


# Lookahead


def test_lookahead_wants_pairs():
    tx = of.lookahead(of.sgd(1.0), 2, 0.5)
    with pytest.raises(TypeError, match=r"LookaheadParams\.init_synced"):
        tx.init(torch.ones(1))
    state = tx.init(of.LookaheadParams.init_synced(torch.ones(1)))
    with pytest.raises(ValueError, match="lookahead needs the parameters"):
        tx.update(torch.ones(1), state)


def test_lookahead_loses_a_nan_when_it_starts_anew():
    tx = of.lookahead(of.sgd(1.0, momentum=0.9), 2, 0.5, reset_state=True)
    pair = of.LookaheadParams.init_synced(torch.ones(2))
    state = tx.init(pair)
    for grads in (NAN, torch.ones(2)):
        _, state = tx.update(grads, state, pair)
    assert of.tree.get(state, "trace").tolist() == [0.0, 0.0]


# Monitoring


def test_measurements_are_read_by_name_and_the_state_keeps_its_structure():
    params = plain_params()
    tx = of.chain(
        of.snapshot("before", of.tree.norm),
        of.clip_by_global_norm(1.0),
        of.monitor({"after": of.tree.norm, "smooth": of.measure_with_ema(of.tree.norm, 0.9), "all": of.trace(0.5)}),
    )
    state = tx.init(params)
    assert of.tree.get(state, "before").item() == of.tree.norm(params).item()
    grads = of.tree.scale(10.0, params)
    updates, new = tx.update(grads, state, params)
    assert of.tree.structure(new) == of.tree.structure(state)
    assert of.tree.get(new, "before").item() == of.tree.norm(grads).item()
    assert of.tree.get(new, "after").item() == pytest.approx(1.0)
    assert of.tree.get(new, "smooth").item() == pytest.approx(1.0)
    assert_trees_equal(of.tree.get(new, "all"), updates)


def test_a_measure_is_named_when_it_is_none():
    with pytest.raises(TypeError, match="measure 'norm' must be callable, got 3"):
        of.monitor({"norm": 3})
    with pytest.raises(TypeError, match="measure must be callable, got 3"):
        of.snapshot("norm", 3)


# Hyperparameters in the state


def test_hyperparameters_are_read_and_written_in_the_state():
    tx = of.inject_hyperparams(of.adamw)(0.1, b2=0.9, mask=of.tree.is_matrix)
    params = plain_params()
    state = tx.init(params)
    names = {"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"}
    assert set(state.hyperparams) == names
    assert {x.dtype for x in state.hyperparams.values()} == {torch.float64}
    grads = like(params)
    for new in (torch.tensor(0.05), 0.05, torch.tensor(0.05, dtype=torch.float64)):
        state = of.tree.set(state, learning_rate=new)
        updates, after = tx.update(grads, state, params)
        want = of.adamw(float(new), b2=0.9, mask=of.tree.is_matrix)
        assert_trees_equal(updates, want.update(grads, want.init(params), params)[0], rtol=1e-12)
        assert of.tree.get(after, "learning_rate").item() == float(new)


def test_schedules_and_their_values():
    tx = of.inject_hyperparams(of.adam)(of.linear_schedule(0.1, 0.0, 10), b1=of.constant_schedule(0.5))
    params = plain_params()
    state, values = tx.init(params), []
    assert of.tree.get(state, "b1").item() == 0.5
    for _ in range(3):
        _, state = tx.update(params, state, params)
        values.append(of.tree.get(state, "learning_rate").item())
    assert values == pytest.approx([0.1, 0.09, 0.08])
    state = of.tree.set(state, learning_rate=torch.tensor(9.0))
    _, state = tx.update(params, state, params)
    assert of.tree.get(state, "learning_rate").item() == pytest.approx(0.07)


class HalvesOnBadNews:
    """A stateful schedule: half the value whenever the loss was not below the last."""

    def init(self):
        return {"value": torch.tensor(1.0, dtype=torch.float64), "loss": torch.tensor(math.inf)}

    def update(self, state, *, loss, **extra):
        worse = loss >= state["loss"]
        return {"value": torch.where(worse, state["value"] / 2, state["value"]), "loss": loss}

    def __call__(self, state, **extra):
        return state["value"]


def test_stateful_schedules_see_the_extra_arguments():
    schedule = HalvesOnBadNews()
    assert isinstance(schedule, of.StatefulSchedule)
    assert not isinstance(of.constant_schedule(1.0), of.StatefulSchedule)
    tx = of.inject_hyperparams(of.sgd)(learning_rate=schedule)
    state, steps = tx.init(torch.ones(1)), []
    for loss in (3.0, 2.0, 2.0, 2.0, 1.0):
        updates, state = tx.update(torch.ones(1), state, loss=torch.tensor(loss))
        steps.append(-updates.item())
    assert steps == [1.0, 1.0, 1.0, 0.5, 0.25]


def test_bfloat16_parameters_do_not_round_the_hyperparameters():
    tx = of.inject_hyperparams(of.adam)(1e-3)
    state = tx.init(torch.ones(2, dtype=torch.bfloat16))
    _, state = tx.update(torch.ones(2, dtype=torch.bfloat16), state)
    assert state.hyperparams["b2"].item() == 0.999
    tx = of.inject_hyperparams(of.adam, hyperparam_dtype=torch.float32)(1e-3)
    assert tx.init(torch.ones(2)).hyperparams["b2"].dtype == torch.float32


def test_every_member_has_its_own_hyperparameters():
    params, grads = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    tx = of.inject_hyperparams(of.adamw)(1.0, weight_decay=0.1)
    state = of.tree.set(torch.func.vmap(tx.init)(params), learning_rate=rates)
    updates, state = torch.func.vmap(tx.update)(grads, state, params)
    updates, state = torch.func.vmap(tx.update)(grads, state, params)
    assert torch.equal(state.hyperparams["learning_rate"], rates)
    for i, rate in enumerate(rates.tolist()):
        alone, _ = run(of.adamw(rate, weight_decay=0.1), params[i], [grads[i]] * 2)
        assert_trees_equal(updates[i], alone[1], rtol=1e-12)


def test_static_arguments_and_those_that_take_no_tensor_stay_out():
    make = of.inject_hyperparams(of.adam, static_args=("b1", "b2"))
    assert set(make(0.1).init(None).hyperparams) == {"learning_rate", "eps", "eps_root"}
    assert of.inject_hyperparams(of.params_swa)(start=3).init(torch.ones(1)).hyperparams == {}
    assert set(of.inject_hyperparams(of.rmsprop)(0.1).init(None).hyperparams) >= {"decay", "initial_scale"}
    with pytest.raises(ValueError, match=r"static_args must name arguments of .*, got \['b9'\]"):
        of.inject_hyperparams(of.adam, "b9")


def test_whole_numbers_stay_whole_where_the_annotation_says_so():
    def every(k: int | torch.Tensor, rate):
        return of.conditionally_mask(of.scale(rate), lambda step: step % k == 0)

    tx = of.inject_hyperparams(every)(2, 0.5)
    updates, state = run(tx, torch.ones(1), [torch.ones(1)] * 3)
    assert [u.item() for u in updates] == [0.5, 0.0, 0.5]
    assert state.hyperparams["k"].dtype == torch.int64


def test_what_is_no_factory_of_transformations_is_named():
    with pytest.raises(TypeError, match="inner_factory must be callable, got 3"):
        of.inject_hyperparams(3)
    with pytest.raises(TypeError, match=r"must be a GradientTransformation, got 0\.1"):
        of.inject_hyperparams(float)("0.1")


def test_injected_factories_are_recorded():
    tx = of.inject_hyperparams(of.adam)(0.1)
    assert repr(tx).startswith("inject_hyperparams(inner_factory=adam")
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert of.inject_hyperparams(of.adam)(0.1) == tx
    assert of.inject_hyperparams(of.adam)(0.2) != tx
    assert of.inject_hyperparams(of.adamw)(0.1) != tx


def test_gradients_flow_to_hyperparameters_in_the_state():
    params, grads = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    tx = of.inject_hyperparams(of.sgd)(0.1)
    state = tx.init(params)

    def loss(rate):
        updates, _ = tx.update(grads, of.tree.set(state, learning_rate=rate), params)
        return updates.sum()

    assert torch.func.grad(loss)(torch.tensor(0.1, dtype=torch.float64)).item() == pytest.approx(-3.0)
