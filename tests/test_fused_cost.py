"""What steps have in common: one trace for equal rules and kinds, and for all patterns of absent gradients."""

import functools
import gc
import subprocess
import sys

import pytest
import torch
from helpers import assert_trees_equal, like, wide_params

import optimfn as of
from optimfn.fused.run import _known
from optimfn.fused.run._shared import shared
from optimfn.fused.trace._trace import Tracer


@pytest.fixture
def traces(monkeypatch):
    """A list that grows by one with every trace."""
    seen = []

    def trace(*args, **kwargs):
        seen.append(args)
        return original(*args, **kwargs)

    original = _known.trace
    monkeypatch.setattr(_known, "trace", trace)
    shared.clear()
    return seen


def steps_of(tx, params, grads, donate=True):
    """The result of one fused step, checked against the eager one."""
    state = tx.init(params)
    want = of.make_step(tx, backend="eager")(params, state, grads)
    own = of.tree.map(torch.clone, (params, state))
    got = of.make_step(tx, donate=donate, backend="fused")(*own, grads)
    assert_trees_equal(got, want, rtol=1e-5, atol=1e-6)


class TestSharedPrograms:
    def test_a_further_step_of_an_equal_rule_traces_nothing(self, traces):
        params = wide_params()
        for _ in range(3):
            tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1, mask=of.tree.is_matrix))
            steps_of(tx, params, like(params))
        assert len(traces) == 1
        steps_of(
            of.chain(of.clip_by_global_norm(1.0), of.adamw(learning_rate=0.1, mask=of.tree.is_matrix)), params, params
        )
        assert len(traces) == 1

    @pytest.mark.parametrize(
        "other",
        [of.adam(0.2), of.adam(0.1, eps=0.0), of.adam(0.1, eps=-0.0), of.nadam(0.1), of.adam(0.1, b1=0.5)],
        ids=repr,
    )
    def test_another_rule_has_its_own(self, traces, other):
        params = wide_params()
        for tx in (of.adam(0.1), other, of.adam(0.1), other):
            steps_of(tx, params, like(params))
        assert len(traces) == 2

    def test_numbers_that_are_equal_but_not_the_same(self, traces):
        params = torch.arange(3)
        for number, dtype in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64)):
            tx = of.stateless(lambda updates, params, number=number: updates * number)
            assert tx.update(params, tx.init(params), params)[0].dtype == dtype
        assert of.scale(0.0) == of.scale(-0.0)
        zeros = torch.zeros(2)
        for number, sign in ((0.0, False), (-0.0, True), (0.0, False)):
            tx = of.scale(number)
            new, _ = of.make_step(tx, backend="fused")(torch.full((2,), -0.0), tx.init(zeros), torch.ones(2))
            assert bool(torch.signbit(new).all()) is sign

    @pytest.mark.parametrize("change", ["dtype", "shape", "stride", "structure", "order", "default", "donate"])
    def test_other_kinds_have_their_own(self, traces, change):
        tx, params = of.adam(0.1), {"a": torch.randn(4, 3), "b": torch.randn(5)}
        steps_of(tx, params, like(params))
        other = {
            "dtype": {**params, "a": params["a"].double()},
            "shape": {**params, "a": torch.randn(4, 2)},
            "stride": {**params, "a": torch.randn(3, 4).T},
            "structure": {"a": params["a"], "c": params["b"]},
            "order": {"b": params["b"], "a": params["a"]},
        }.get(change, params)
        if change == "default":
            torch.set_default_dtype(torch.float64)
        steps_of(of.adam(0.1), other, like(other), donate=change != "donate")
        assert len(traces) == 2

    def test_rules_that_hold_tensors_share_with_themselves_only(self, traces):
        params = wide_params()
        rates = [torch.tensor(0.1), torch.tensor(0.2)]
        for rate in rates:
            tx = of.sgd(rate)
            for _ in range(2):
                steps_of(tx, params, like(params))
                rate.mul_(0.5)
        assert len(traces) == 2

        @of.factory
        def hidden():
            held = torch.tensor(0.5)
            return of.stateless(lambda updates, params: of.tree.scale(held, updates))

        first, second = hidden(), hidden()
        for tx in (first, first, second):
            steps_of(tx, params, like(params))
        assert len(traces) == 4

    def test_functions_of_the_user_are_like_no_others(self, traces):
        params = wide_params()
        for factor in (1.0, 2.0):
            tx = of.stateless(lambda updates, params, factor=factor: of.tree.scale(factor, updates))
            for _ in range(2):
                steps_of(tx, params, like(params))
        assert len(traces) == 2

    def test_what_belongs_to_a_rule_goes_with_it(self):
        shared.clear()
        params = wide_params()
        tx = of.sgd(torch.tensor(0.1))
        steps_of(tx, params, like(params))
        assert len(shared._found) == 1
        del tx
        gc.collect()
        steps_of(of.sgd(torch.tensor(0.1)), params, like(params))
        assert len(shared._found) == 1

    def test_there_is_a_bound(self, monkeypatch):
        monkeypatch.setattr("optimfn.fused.run._shared._MOST", 3)
        for rate in range(6):
            steps_of(of.sgd(rate / 8), wide_params(), wide_params())
        assert len(shared._found) == 3

    def test_steps_of_one_program_do_not_meet(self):
        tx, params = of.chain(of.clip_by_global_norm(1.0), of.adam(0.1)), wide_params()
        step = of.make_step(tx, donate=True, backend="fused")
        models = [of.tree.map(torch.clone, (params, tx.init(params))) for _ in range(3)]
        bound = [step.bind(*model) for model in models] + [of.make_step(tx, donate=True).bind(*models[0])]
        eager = of.make_step(tx, backend="eager")
        for _ in range(3):
            for take, number in zip(bound, (0, 1, 2, 0), strict=True):
                grads = like(params)
                want = eager(*models[number], grads)
                take(grads)
                assert_trees_equal(models[number], want, rtol=1e-5, atol=1e-6)


def patterns(params, number, seed=0):
    """Gradients of which any may be absent."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        here = torch.rand(len(params), generator=generator) < 0.5
        yield {name: torch.randn_like(p) if x else None for (name, p), x in zip(params.items(), here, strict=True)}


class TestAbsentGradients:
    @pytest.mark.parametrize("bound", [False, True], ids=["step", "bound"])
    def test_all_patterns_have_one_trace(self, traces, bound):
        tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1, mask=of.tree.is_matrix))
        params = {str(i): torch.randn(4, 3) if i % 2 else torch.randn(5) for i in range(12)}
        state = tx.init(params)
        own, want = of.tree.map(torch.clone, (params, state)), (params, state)
        step, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
        take = step.bind(*own) if bound else lambda grads: step(*own, grads)
        for grads in patterns(params, 40):
            take(grads)
            want = eager(*want, grads)
            assert_trees_equal(own, want, rtol=1e-5, atol=1e-6)
        # The first, that of all gradients, and some to see that it is right to leave out.
        count = len(traces)
        assert count <= 6

        other = of.tree.map(torch.clone, (params, tx.init(params)))
        again = of.make_step(tx.replace(), donate=True, backend="fused").bind(*other)
        for grads in patterns(params, 5, seed=1):
            again(grads)
        assert len(traces) == count

    def test_sums_of_leaves_go_over_those_that_are_there(self, traces):
        def update(updates, state, params, **extra):
            total, most = of.tree.sum(updates), of.tree.max(updates)
            finite = functools.reduce(torch.logical_and, [u.isfinite().all() for u in of.tree.leaves(updates)])
            return of.tree.map(lambda u: torch.where(finite, u * total + most, u), updates), (state[0] + total, most)

        tx = of.GradientTransformation(lambda params: (torch.zeros(()), torch.zeros(())), update)
        params = {name: torch.randn(7) for name in "abcdef"}
        step, eager, state = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager"), tx.init(params)
        for grads in patterns(params, 20):
            if any(g is not None for g in grads.values()):
                got, (params, state) = step(params, state, grads), eager(params, state, grads)
                assert_trees_equal(got, (params, state), rtol=1e-5, atol=1e-6)
        assert len(traces) <= 5

    def test_numbers_that_depend_on_the_pattern_are_seen(self, traces):
        def update(updates, state, params, **extra):
            return of.tree.scale(float(of.tree.size(updates)), updates), state

        tx, params = of.GradientTransformation(lambda params: (), update), {name: torch.zeros(4) for name in "abcd"}
        step = of.make_step(tx, backend="fused")
        for grads in patterns(params, 20):
            new, _ = step(params, (), grads)
            size = sum(g is not None for g in grads.values()) * 4.0
            for name, g in grads.items():
                assert torch.equal(new[name], params[name] if g is None else g * size)

    def test_a_rule_that_treats_one_leaf_apart_is_seen(self, traces):
        def update(updates, state, params, **extra):
            moved = {
                name: state[name] + 1 if name == "d" or g is not None else state[name] for name, g in updates.items()
            }
            return updates, moved

        tx = of.GradientTransformation(lambda params: of.tree.zeros_like(params), update)
        params = {name: torch.zeros(4) for name in "abcd"}
        step, eager, state = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager"), tx.init(params)
        for grads in patterns(params, 12):
            got, (params, state) = step(params, state, grads), eager(params, state, grads)
            assert_trees_equal(got, (params, state))

    def test_gradients_of_other_kinds_come_back(self):
        tx, params = of.adam(0.1), {name: torch.randn(6, 4) for name in "abc"}
        step, eager, state = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager"), tx.init(params)
        kinds = [lambda g: g, torch.Tensor.double, lambda g: g.T.contiguous().T, torch.Tensor.bfloat16]
        for number, grads in enumerate(patterns(params, 24)):
            grads = {name: g if g is None else kinds[number // 3 % 4](g) for name, g in grads.items()}
            got, (params, state) = step(params, state, grads), eager(params, state, grads)
            assert_trees_equal(got, (params, state), rtol=1e-5, atol=1e-6)

    def test_memory_stays_as_it_is(self):
        tx, params = of.adam(0.1), {str(i): torch.randn(3) for i in range(24)}
        bound = of.make_step(tx, donate=True, backend="fused").bind(params, tx.init(params))
        sizes = []
        for seed in range(3):
            for grads in patterns(params, 200, seed):
                bound(grads)
            gc.collect()
            sizes.append(len(gc.get_objects()))
        assert sizes[2] <= sizes[1] + 50

    def test_one_frozen_part_of_a_tree_is_planned_for_itself(self, traces):
        tx, params = of.adam(0.1), wide_params()
        step, state = of.make_step(tx, donate=True, backend="fused"), of.adam(0.1).init(params)
        for _ in range(3):
            step(params, state, {**like(params), "a": None})
        assert len(traces) == 1


class TestKindsOfLeaves:
    def test_operators_are_traced_for_two_leaves_of_each_kind(self, traces, monkeypatch):
        recorded = []
        record = Tracer._record
        monkeypatch.setattr(Tracer, "_record", lambda *args: recorded.append(args) or record(*args))
        params = {str(i): torch.randn(4, 3) if i % 3 else torch.randn(5) for i in range(30)}
        steps_of(
            of.stateless(lambda updates, params: of.tree.map(lambda u, p: u * 2 + p, updates, params)), params, params
        )
        assert len(recorded) == 2 * 2 * 3  # a product and two sums

    def test_functions_that_hold_what_may_change_are_run_for_every_leaf(self):
        params, grads = {str(i): torch.randn(4) for i in range(30)}, {str(i): torch.randn(4) for i in range(30)}
        seen, numbers = [], iter(range(100))

        def noted(u, p):
            seen.append(u.shape)
            return u * 2

        CALLS[0] = 0
        for rule in (noted, _counted):
            tx = of.stateless_with_tree_map(rule)
            of.make_step(tx, backend="fused")(params, tx.init(params), grads)
        assert len(seen) == CALLS[0] == 30

        tx = of.stateless_with_tree_map(lambda u, p: u * float(max(next(numbers), 3)))
        new, _ = of.make_step(tx, backend="fused")(params, tx.init(params), grads)
        for i, name in enumerate(params):
            torch.testing.assert_close(new[name], params[name] + grads[name] * max(i, 3))

    def test_rules_that_treat_leaves_apart(self, traces):
        params = {str(i): torch.randn(4) for i in range(12)}
        marks = {"3": 2.0}

        def by_value(u, p):
            return u * 1.5 if u is p else u

        rate = torch.tensor(0.5)
        rules = [
            lambda updates, params: of.tree.map(
                lambda path, u: u * marks.get(path, 1.0), of.tree.paths(updates), updates
            ),
            lambda updates, params: of.tree.map(lambda u, p: u * rate + p, updates, params),
            lambda updates, params: of.tree.map(lambda u, p: u + p, updates, {**params, "7": params["0"]}),
            lambda updates, params: of.tree.map(lambda u, x: u if x is None else u + x, updates, {**params, "8": None}),
            lambda updates, params: of.tree.map(by_value, {**updates, "5": params["5"]}, params),
            lambda updates, params: of.tree.map(
                lambda u, s: u * s["x"] + s["y"], updates, {n: {"x": p, "y": p * 2} for n, p in params.items()}
            ),
        ]
        for rule in rules:
            steps_of(of.stateless(rule), params, like(params))

    def test_random_numbers_differ_from_leaf_to_leaf(self):
        tx = of.stateless(lambda updates, params: of.tree.map(lambda u: u + torch.rand(u.shape), updates))
        zeros = {str(i): torch.zeros(8) for i in range(6)}
        torch.manual_seed(0)
        want, _ = of.make_step(tx, backend="eager")(zeros, tx.init(None), zeros)
        torch.manual_seed(0)
        got, _ = of.make_step(tx, backend="fused")(zeros, tx.init(None), zeros)
        assert_trees_equal(got, want)
        assert len({tuple(x.tolist()) for x in got.values()}) == 6


CALLS = [0]


def _counted(u, p):
    CALLS[0] += 1
    return u * 2


FIRST_STEPS = """
import sys, torch, optimfn as of
before = {"sympy", "torch._dynamo"} - sys.modules.keys()
params = {"a": torch.randn(256, 128), "b": torch.randn(128), "c": torch.randn(())}
for tx in (
    of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1), of.params_ema(0.9)),
    of.adafactor(0.1),
    of.per_leaf(of.nadam(0.1)),
    of.multi_steps(of.lamb(0.1), 2),
):
    of.make_step(tx, backend="fused")(params, tx.init(params), params)
print(*sorted(before & sys.modules.keys()))
"""


def test_first_steps_do_not_import_what_only_compilers_need():
    done = subprocess.run([sys.executable, "-c", FIRST_STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
