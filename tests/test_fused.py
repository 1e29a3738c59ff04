"""Fused execution: agreement in every dtype and layout, live inputs, donation, and when it steps aside."""

import contextlib
import copy
import gc
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from helpers import assert_fused_equals_eager, assert_trees_equal, follow, like, plain_params, wide_params

import optimfn as of
from optimfn.fused.ir._graph import SeveralDevices
from optimfn.fused.run import _build
from optimfn.fused.run._known import device_of as _device
from optimfn.fused.trace._builder import _rearrange


def both(tx, donate=False):
    return of.make_step(tx, donate=donate, backend="fused"), of.make_step(tx, backend="eager")


def programs(step):
    """The programs that a step has made, one for each signature."""
    alike = [traced for known in step._structures for each in known.traced.values() for traced in each]
    return [traced.program for traced in alike if traced.program]


def composed(**changes):
    """Clipping, Adam, decay of matrices, and an average: a norm, 0-dim arithmetic, and two kinds of leaves."""
    arguments = {"max_norm": 1.0, "learning_rate": 0.1, **changes}
    return of.chain(
        of.clip_by_global_norm(arguments["max_norm"]),
        of.adamw(arguments["learning_rate"], weight_decay=0.1, mask=of.tree.is_matrix),
        of.params_ema(0.9),
    )


# In these, matrix products in bfloat16 magnify the last bit of a norm; test_laws.py has them for float32.
MAGNIFY = ("orthogonalize", "muon_as_torch", "muon_as_torch_changed")
LOW_PRECISION = [case for case in CASES if "fused" not in case.skips and case.name not in MAGNIFY]


class TestAgreement:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("case", LOW_PRECISION, ids=lambda case: case.name)
    def test_every_intermediate_is_rounded_as_in_eager_steps(self, case, dtype):
        tx = case.tx()
        fused, eager = both(tx)
        for seed in range(20):
            torch.default_generator.manual_seed(seed)
            params = wide_params(dtype)
            grads, state = like(params), tx.init(params)
            assert_fused_equals_eager(fused, fused(params, state, grads), eager, params, state, grads)

    def test_a_view_in_another_dtype_keeps_the_bits(self):
        tx = of.stateless(lambda updates, params: (updates * 2).view(torch.int32).bitwise_and(0xFFFF).float())
        fused, eager = both(tx)
        params, grads = torch.zeros(8), torch.randn(8)
        assert_trees_equal(fused(params, tx.init(params), grads), eager(params, tx.init(params), grads))

    def test_of_nothing_any_is_false_and_all_is_true(self):
        def update(updates, state, params, **extra):
            seen = of.tree.map(lambda u: torch.stack([torch.isfinite(u).all(), torch.isnan(u).any()]), updates)
            return updates, seen

        tx = of.GradientTransformation(lambda params: {"a": torch.zeros(2) > 0, "b": torch.zeros(2) > 0}, update)
        params = {"a": torch.ones(0, 3), "b": torch.ones(2)}
        for step in both(tx):
            _, seen = step(params, tx.init(params), params)
            assert all(torch.equal(x, torch.tensor([True, False])) for x in seen.values())

    @pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
    def test_gradients_may_have_another_dtype_than_parameters(self, dtypes):
        tx, params = composed(), wide_params(dtypes[0])
        fused, eager = both(tx)
        state, grads = tx.init(params), like(wide_params(dtypes[1]))
        assert_trees_equal(fused(params, state, grads), eager(params, state, grads), rtol=1e-5, atol=1e-6)

    def test_mixed_dtypes_in_one_tree(self):
        tx = composed()
        dtypes = {"a": torch.float64, "b": torch.bfloat16, "c": torch.float32}
        params = {name: p.to(dtypes[name]) for name, p in wide_params().items()}
        fused, eager = both(tx)
        state, grads = tx.init(params), like(params)
        assert_trees_equal(fused(params, state, grads), eager(params, state, grads), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("donate", [False, True])
    def test_complex_leaves_are_handed_to_aten(self, donate):
        tx, params = of.adamw(0.1), wide_params(torch.complex64)
        fused, eager = both(tx, donate)
        state, grads = tx.init(params), like(params)
        before = of.tree.map(torch.clone, (params, state, grads))
        assert_fused_equals_eager(fused, fused(params, state, grads), eager, *before)
        assert "kernels have no type for torch.complex64" in fused.explain()

    def test_specials_pass_as_in_eager_steps(self):
        tx, params = of.adamw(0.1), {"a": torch.randn(64)}
        fused, eager = both(tx)
        state, grads = tx.init(params), like(params)
        grads["a"][:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-42])
        assert_trees_equal(fused(params, state, grads), eager(params, state, grads), rtol=1e-6)

    def test_global_norms_of_large_leaves_are_as_good_as_float64(self):
        params = {"a": torch.randn(1_000_003), "b": torch.randn(70_001)}
        tx = of.chain(of.clip_by_global_norm(1.0), of.scale(-1.0))
        zeros = of.tree.zeros_like(params)
        clipped, _ = both(tx)[0](zeros, tx.init(params), params)
        exact = of.tree.norm(of.tree.cast(params, torch.float64))
        for name, p in params.items():
            torch.testing.assert_close(clipped[name], (-p.double() / exact).float(), rtol=3e-7, atol=0.0)


class TestLayouts:
    @pytest.mark.parametrize("donate", [False, True])
    @pytest.mark.parametrize("turned", ["params", "grads", "both", "holes", "expanded"])
    def test_any_strides(self, turned, donate):
        tx = composed()
        fused, eager = both(tx, donate)
        params, grads = (
            {"w": torch.randn(6, 8, 5), "b": torch.randn(7)},
            {"w": torch.randn(6, 8, 5), "b": torch.randn(7)},
        )

        def turn(x):
            return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)

        if turned in ("params", "both"):
            params["w"] = turn(params["w"])
        if turned in ("grads", "both"):
            grads["w"] = turn(grads["w"])
        if turned == "holes":
            params["w"], grads["b"] = torch.randn(6, 8, 10)[..., ::2], torch.randn(14)[::2]
        if turned == "expanded":
            grads["w"] = torch.randn(6, 1, 1).expand(6, 8, 5)
        state = tx.init(params)
        for _ in range(3):
            want = eager(params, state, grads)
            got = fused(of.tree.map(lambda p: p.detach() if donate else p, params), state, grads)
            assert_trees_equal(got, want, rtol=1e-5, atol=1e-6)
            if donate:
                assert_trees_equal((params, state), want, rtol=1e-5, atol=1e-6)
            params, state = (params, state) if donate else got

    def test_results_keep_the_order_of_memory(self):
        params = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        step, _ = both(of.sgd(0.1))
        new, _ = step(params, of.sgd(0.1).init(params), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        assert new.is_contiguous(memory_format=torch.channels_last)

    def test_tied_tensors_to_be_written_are_refused_by_name(self):
        shared, tx = torch.ones(4), of.sgd(0.1)
        params = {"a": shared, "b": shared}
        step, _ = both(tx, donate=True)
        with pytest.raises(ValueError, match=r"0\.a and 0\.b share memory"):
            step(params, tx.init(params), like(params))
        assert shared.tolist() == [1] * 4
        got, _ = both(tx)[0](params, tx.init(params), {"a": torch.ones(4), "b": torch.zeros(4)})
        assert got["a"].tolist() != got["b"].tolist()

    def test_gradients_that_overlap_parameters_are_read_before_they_are_written(self):
        memory, tx = torch.arange(9.0), of.sgd(0.5)
        params, grads = {"a": memory[:4], "b": memory[5:]}, {"a": memory[1:5], "b": memory[5:]}
        want, _ = both(tx)[1](params, tx.init(params), of.tree.map(torch.clone, grads))
        step, _ = both(tx, donate=True)
        step(params, tx.init(params), grads)
        assert_trees_equal(params, want)

    def test_a_state_that_keeps_the_old_parameters(self):
        tx = of.GradientTransformation(
            lambda params: (of.tree.map(torch.clone, params), of.tree.zeros_like(params)),
            lambda updates, state, params=None, **extra: (of.tree.add(updates, state[0]), (params, state[0])),
        )
        fused, eager = both(tx, donate=True)
        params = wide_params()
        state = tx.init(params)
        want = (params, state)
        own = of.tree.map(torch.clone, want)
        for _ in range(3):
            grads = like(params)
            want = eager(*want, grads)
            fused(*own, grads)
            assert_trees_equal(own, want)


def row_and_column_statistics():
    """Statistics of rows, columns, matrices and the first axis, old ones used while new ones are written."""

    def fold(x, kind, axes, keepdim=True):
        if kind == "norm":
            return torch.linalg.vector_norm(x, 2, axes, keepdim=keepdim)
        return getattr(x, kind)(axes, keepdim=keepdim)

    def statistics(x):
        others = tuple(range(1, x.ndim))
        return {
            "row": fold(x.square(), "mean", (-1,)),
            "column": fold(x, "sum", (-2,)),
            "least": fold(x, "amin", (-1,)),
            "greatest": fold(x.abs(), "amax", (-2, -1)),
            "member": fold(x, "norm", others, keepdim=False),
        }

    def update(updates, state, params, **extra):
        def leaf(g, p, old):
            new = {name: torch.lerp(old[name], s, 0.5) for name, s in statistics(g + p).items()}
            member = new["member"].reshape(-1, *[1] * (g.ndim - 1))
            direction = g * old["row"] / (new["row"] + 1) + old["column"].clamp_min(new["least"]) / member
            return torch.where(g < new["least"] + 0.1, direction, g / old["greatest"].expand_as(g)), new

        pairs = {name: leaf(g, params[name], state[name]) for name, g in updates.items()}
        return {name: u for name, (u, _) in pairs.items()}, {name: new for name, (_, new) in pairs.items()}

    return of.GradientTransformation(lambda params: of.tree.map(lambda p: statistics(p.abs() + 1), params), update)


class TestRowsAndColumns:
    LONG = 301 if os.environ.get("TRITON_INTERPRET") else 20_011  # the interpreter takes a millisecond for each result
    SHAPES = ((30, 7), (5, 3, 40), (2, 3, 4, 50), (3, LONG), (LONG, 3), (1, 9), (9, 1), (1, 1), (2, 600, LONG // 30))

    @pytest.mark.parametrize("donate", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_statistics_equal_those_of_eager_steps(self, dtype, donate):
        tx = row_and_column_statistics()
        fused, eager = both(tx, donate)
        params = {str(shape): torch.randn(shape).to(dtype) for shape in self.SHAPES}
        state = tx.init(params)
        for _ in range(3):
            grads = like(params)
            got = fused(*of.tree.map(torch.clone, (params, state)), grads)
            if dtype == torch.float64:
                want = eager(params, state, grads)
                assert_trees_equal(got, want, rtol=1e-12, atol=1e-12)
            else:
                want = assert_fused_equals_eager(fused, got, eager, params, state, grads)
            params, state = want
        assert "aten.mean" not in fused.explain()
        assert "aten.div" not in fused.explain()

    def test_nan_and_infinity_are_seen(self):
        tx = row_and_column_statistics()
        fused, eager = both(tx)
        params = {"a": torch.ones(4, 5)}
        grads, state = like(params), tx.init(params)
        grads["a"][1, 2], grads["a"][3, 0] = torch.nan, torch.inf
        want = eager(params, state, grads)
        torch.testing.assert_close(fused(params, state, grads), want, equal_nan=True)

    def test_what_is_not_next_to_each_other_is_left_to_torch(self):
        tx = of.stateless(lambda g, p: g.mean((0, 2), keepdim=True) + g)
        fused, eager = both(tx)
        params = torch.randn(3, 4, 5)
        assert_trees_equal(fused(params, tx.init(params), params), eager(params, tx.init(params), params), 1e-6, 1e-6)
        assert "opaque  1 x aten.mean.dim" in fused.explain()

    def test_a_vector_of_the_state_serves_leaves_of_many_sizes(self):
        def update(updates, state, params, **extra):
            new = {name: u * state.reshape(-1, *[1] * (u.ndim - 1)) for name, u in updates.items()}
            return new, state * 2

        tx = of.GradientTransformation(lambda params: torch.tensor([1.0, 10.0, 100.0]), update)
        params = {"a": torch.zeros(3), "b": torch.zeros(3, 2), "c": torch.zeros(3, 4, 5)}
        fused, _ = both(tx, donate=True)
        params, state = fused(params, tx.init(params), of.tree.map(torch.ones_like, params))
        assert state.tolist() == [2.0, 20.0, 200.0]
        assert all(torch.equal(p.flatten(1).T[0] if p.ndim > 1 else p, state / 2) for p in params.values())
        assert "opaque" not in fused.explain() or "aten.view" in fused.explain()


class TestAbsentGradients:
    def test_they_come_and_go_without_compiling_again(self, monkeypatch):
        tx, params = composed(), wide_params()
        fused, eager = both(tx, donate=True)
        state = tx.init(params)
        want = own = None
        own = of.tree.map(torch.clone, (params, state))
        want = (params, state)
        patterns = [(), ("a",), ("b", "c"), ("a", "b", "c"), (), ("a",)]
        for number, absent in enumerate(patterns):
            if number == 3:
                monkeypatch.setattr("subprocess.Popen", None)
            grads = {name: None if name in absent else g for name, g in like(params).items()}
            want = eager(*want, grads)
            fused(*own, grads)
            assert_trees_equal(own, want, rtol=1e-5, atol=1e-6)
        assert len(programs(fused)) == 4

    def test_a_pure_step_returns_the_parameter_itself(self):
        tx, params = of.adam(0.1), plain_params(torch.float32)
        new, _ = both(tx)[0](params, tx.init(params), {**like(params), "b": None})
        assert new["b"] is params["b"]

    def test_a_second_model_compiles_nothing(self, monkeypatch):
        first, _ = both(composed())
        params = wide_params()
        first(params, composed().init(params), like(params))
        monkeypatch.setattr("subprocess.Popen", None)
        second, eager = both(composed())
        params = {"x": torch.randn(3), "y": [torch.randn(5, 3), torch.randn(40_000, 2), torch.randn(1)]}
        state, grads = composed().init(params), like(params)
        assert_trees_equal(second(params, state, grads), eager(params, state, grads), rtol=1e-5, atol=1e-6)


class TestLive:
    def test_tensors_that_a_rule_holds_are_read_at_every_step(self):
        hyper = {"max_norm": torch.tensor(1.0), "learning_rate": torch.tensor(0.1, dtype=torch.float64)}
        tx, params = composed(**hyper), wide_params()
        fused, eager = both(tx)
        state = tx.init(params)
        for factor in (1.0, 0.5, 0.1, 0.0):
            for value in hyper.values():
                value.mul_(factor)
            grads = like(params)
            want = eager(params, state, grads)
            assert_trees_equal(fused(params, state, grads), want, rtol=1e-5, atol=1e-6)
            params, state = want
        assert len(programs(fused)) == 1

    def test_arithmetic_on_a_held_tensor_alone_is_not_frozen(self):
        decay = torch.tensor(0.9)
        tx = of.stateless(lambda updates, params: of.tree.scale(1 - decay, updates))
        step, _ = both(tx)
        assert step(torch.zeros(2), tx.init(None), torch.ones(2))[0].tolist() == pytest.approx([0.1, 0.1])
        decay.fill_(0.25)
        assert step(torch.zeros(2), tx.init(None), torch.ones(2))[0].tolist() == [0.75, 0.75]

    def test_random_numbers_are_drawn_at_every_step(self):
        tx = of.stateless(lambda updates, params: of.tree.map(lambda u: u + torch.rand(u.shape), updates))
        fused, eager = both(tx)
        zeros = torch.zeros(64)
        torch.manual_seed(0)
        want = [eager(zeros, tx.init(None), zeros)[0] for _ in range(3)]
        torch.manual_seed(0)
        assert_trees_equal([fused(zeros, tx.init(None), zeros)[0] for _ in range(3)], want)

    def test_extra_arguments_are_live(self):
        tx = of.chain(of.sgd(0.5), of.plateau(factor=0.5, patience=0))
        step, _ = both(tx)
        params, state = torch.tensor([4.0]), tx.init(torch.tensor([4.0]))
        for loss in (1.0, 2.0, torch.tensor(3.0), 0.5):
            params, state = step(params, state, torch.tensor([1.0]), value=loss)
        assert of.tree.get(state, "scale").item() == 0.25
        assert len(programs(step)) == 2  # one for float64, one for float32

    def test_replaced_and_resized_tensors_are_noticed(self):
        tx, params = of.sgd(0.5), {"a": torch.zeros(4), "b": torch.zeros(4)}
        step, _ = both(tx, donate=True)
        state = tx.init(params)
        for _ in range(2):
            step(params, state, {"a": torch.ones(4), "b": torch.ones(4)})
        params["a"].data = torch.zeros(4)
        step(params, state, {"a": torch.ones(4), "b": torch.ones(4)})
        assert params["a"].tolist() == [-0.5] * 4
        assert params["b"].tolist() == [-1.5] * 4
        params["b"].data = torch.zeros(2)
        step(params, state, {"a": torch.ones(4), "b": torch.ones(2)})
        assert params["b"].tolist() == [-0.5] * 2


class TestDonation:
    def test_writes_at_fixed_addresses_and_counts_versions(self):
        tx, params = composed(), wide_params()
        step, _ = both(tx, donate=True)
        state = tx.init(params)
        leaves = of.tree.leaves((params, state))
        places = [x.data_ptr() for x in leaves]
        for _ in range(3):
            versions = [x._version for x in leaves]
            new = step(params, state, like(params))
            assert new[0] is params
            assert new[1] is state
            assert all(x._version > version for x, version in zip(leaves, versions, strict=True))
        assert [x.data_ptr() for x in leaves] == places

    def test_allocates_nothing_after_the_first_step(self):
        tx, params = composed(), wide_params()
        step, _ = both(tx, donate=True)
        state, grads = tx.init(params), like(params)
        step(params, state, grads)
        cpu = [torch.profiler.ProfilerActivity.CPU]
        # Events of all cycles: torch 2.10 warns where they are not asked for.
        with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
            step(params, state, grads)
        assert [event.name for event in profile.events() if event.cpu_memory_usage > 0] == []

    def test_a_pure_step_writes_nothing(self):
        tx, params = composed(), wide_params()
        step, _ = both(tx)
        state, grads = tx.init(params), like(params)
        versions = [x._version for x in of.tree.leaves((params, state, grads))]
        copies = of.tree.map(torch.clone, (params, state, grads))
        step(params, state, grads)
        assert [x._version for x in of.tree.leaves((params, state, grads))] == versions
        assert_trees_equal((params, state, grads), copies)

    def test_a_pure_step_keeps_no_old_tensor_alive(self):
        tx = of.sgd(0.1, momentum=0.9)
        step, _ = both(tx)
        params = torch.randn(1000)
        step(params, tx.init(params), torch.randn(1000))
        storage = params.untyped_storage()._weak_ref()
        del params
        gc.collect()
        assert torch.UntypedStorage._expired(storage)
        torch.UntypedStorage._free_weak_ref(storage)

    def test_bound_steps_write_into_their_trees(self):
        tx, params = composed(), wide_params()
        _, eager = both(tx)
        state = tx.init(params)
        want = own = None
        own = of.tree.map(torch.clone, (params, state))
        want = (params, state)
        bound = of.make_step(tx, donate=True).bind(*own)
        for number in range(4):
            grads = {**like(params), **({"b": None} if number == 2 else {})}
            want = eager(*want, grads)
            bound(grads)
            assert_trees_equal(own, want, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="only a step with donate=True can be bound"):
            of.make_step(tx).bind(params, state)


class TestStepsAside:
    """The rule itself runs, without a word: warnings are errors here."""

    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's forward mode
    def test_under_transforms(self):
        tx, params = of.adam(0.1), wide_params()
        step, eager = both(tx)
        state, grads = tx.init(params), like(params)
        stacked = of.tree.batch_shape((params, state, grads), (3,))
        want = eager(params, state, grads)[0]
        got = torch.func.vmap(step)(*stacked)[0]
        assert_trees_equal(of.tree.map(lambda x: x[1], got), want, rtol=1e-6)

        def size(step, scale):
            return of.tree.norm(step(params, state, of.tree.scale(scale, grads))[0])

        one = torch.tensor(1.0)
        torch.testing.assert_close(
            torch.func.grad(lambda scale: size(step, scale))(one), torch.func.grad(lambda s: size(eager, s))(one)
        )
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(grads["a"], torch.ones_like(grads["a"]))
            new = step(params, state, {**grads, "a": dual})[0]["a"]
            assert torch.autograd.forward_ad.unpack_dual(new).tangent is not None

    def test_when_gradients_are_to_flow(self):
        rate = torch.tensor(0.1, requires_grad=True)
        tx, params = of.sgd(rate), torch.ones(64)
        step, _ = both(tx)
        step(params, tx.init(params), torch.ones(64))[0].sum().backward()
        assert rate.grad.item() == -64.0
        with torch.no_grad():
            new, _ = step(params, tx.init(params), torch.ones(64))
        assert not new.requires_grad
        leaf = torch.ones(64, requires_grad=True)
        assert step(leaf, tx.init(leaf), torch.ones(64))[0].requires_grad

    def test_inside_torch_compile(self):
        tx, params = of.adam(0.1), wide_params()
        step, eager = both(tx)
        state, grads = tx.init(params), like(params)
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        assert_trees_equal(compiled(params, state, grads), eager(params, state, grads), rtol=1e-6)

    def test_under_another_dispatch_mode_and_autocast(self):
        class Count(torch.utils._python_dispatch.TorchDispatchMode):
            calls = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                self.calls += 1
                return func(*args, **(kwargs or {}))

        tx, params = of.adam(0.1), wide_params()
        step, _ = both(tx)
        with Count() as count:
            step(params, tx.init(params), like(params))
        assert count.calls > 10
        with torch.autocast("cpu"):
            step(params, tx.init(params), like(params))
        assert programs(step) == []

    def test_on_other_devices_and_classes(self):
        class Own(torch.Tensor):
            pass

        tx = of.adam(0.1)
        step, _ = both(tx)
        meta = torch.ones(3, device="meta")
        assert step(meta, tx.init(meta), meta)[0].is_meta
        own = torch.ones(3).as_subclass(Own)
        assert isinstance(step(own, tx.init(own), own)[0], Own)
        sparse = torch.eye(3).to_sparse()
        plain = of.identity()
        assert both(plain)[0](torch.ones(3, 3), plain.init(None), sparse)[0].sum() == 12
        imaginary = torch.randn(4, dtype=torch.complex64).conj().imag
        assert imaginary.is_neg()
        torch.testing.assert_close(
            both(of.sgd(1.0))[0](torch.zeros(4), of.sgd(1.0).init(None), imaginary)[0], -imaginary
        )


def reads_back(updates, params):
    """A rule that decides by the values."""
    return updates if bool(updates["a"].sum() > 0) else of.tree.scale(2.0, updates)


def writes_in_place(updates, params):
    """A rule that writes, if only into a tensor of its own."""
    return of.tree.map(lambda u: u.clone().mul_(2.0), updates)


def test_leaves_in_several_places_have_no_kernels():
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    assert _device([here, here, torch.zeros(())], 2) == torch.device("cpu")
    assert _device([there, torch.zeros(())], 1) == torch.device("meta")
    assert _device([], 0) == torch.device("cpu")
    with pytest.raises(SeveralDevices, match="its tensors are on cpu and meta"):
        _device([here, there], 1)
    with pytest.raises(SeveralDevices, match="its tensors are on meta and cpu"):
        _device([there, torch.zeros(())], 2)  # a count of the state would have to be written


def test_a_donating_step_under_vmap_writes_the_stack():
    tx, params = of.sgd(0.5, momentum=0.9), {"a": torch.randn(3, 4)}
    step, state = of.make_step(tx, donate=True), torch.func.vmap(tx.init)(params)
    want = of.make_step(tx, backend="eager")(params, state, params)
    torch.func.vmap(step)(params, state, of.tree.map(torch.clone, params))
    assert_trees_equal((params, state), want)


def test_opaque_values_are_given_back_at_once():
    tx, params = of.orthogonalize(), torch.randn(64, 64)
    step, _ = both(tx)
    step(params, tx.init(params), params)
    gc.collect()
    gc.disable()
    try:
        count = len([x for x in gc.get_objects() if type(x) is torch.Tensor])
        for _ in range(3):
            step(params, tx.init(params), params)
        assert len([x for x in gc.get_objects() if type(x) is torch.Tensor]) <= count
    finally:
        gc.enable()


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Plain(torch.Tensor):
    """A class of tensors of a user's own."""


class Held:
    """An object that is no tree."""

    def __init__(self, inside):
        self.inside = inside

    def __getitem__(self, key):
        return self.inside[key] + 0.0

    def __repr__(self):
        return repr(self.inside)


class TestCannotTrace:
    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            (reads_back, r"a tensor is read on the host, .* in test_fused\.py:\d+"),
            (writes_in_place, r"aten\.mul_\.\w+ writes in place, in test_fused\.py:\d+"),
        ],
    )
    def test_it_is_said_once_or_raised(self, rule, words):
        tx, params = of.stateless(rule), wide_params()
        step, grads = of.make_step(tx), like(params)
        with pytest.warns(RuntimeWarning, match=words):
            first = step(params, tx.init(params), grads)
        assert_trees_equal(first, of.make_step(tx, backend="eager")(params, tx.init(params), grads))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_trees_equal(step(params, tx.init(params), grads), first)
        assert re.search(words, step.explain())
        strict = of.make_step(tx, backend="fused")
        for _ in range(2):
            with pytest.raises(RuntimeError, match=words):
                strict(params, tx.init(params), grads)

    def test_errors_of_the_rule_are_its_own(self):
        tx, params = of.adamw(0.1), wide_params()
        step, _ = both(tx)
        with pytest.raises(ValueError, match="trees differ in structure"):
            step(params, tx.init(params), {"a": params["a"]})

    def test_other_arguments_than_tensors_are_named_if_the_rule_reads_them(self):
        def update(updates, state, params=None, *, schedule=None, **extra):
            return of.tree.scale(schedule[0], updates), state

        tx, params = of.GradientTransformation(of.init_empty_state, update), wide_params()
        words = r"reads an argument that holds \{0: 3\}; pass numbers that may change as 0-dim tensors"
        with pytest.raises(RuntimeError, match=words):
            of.make_step(tx, backend="fused")(params, tx.init(params), like(params), schedule=Held({0: 3}))
        step = of.make_step(tx)
        with pytest.warns(RuntimeWarning, match=words):
            new, _ = step(params, tx.init(params), params, schedule=Held({0: 3}))
        assert_trees_equal(new, of.tree.scale(4.0, params))
        assert re.search("^eager: it " + words, step.explain())

    def test_arguments_that_nobody_reads_change_no_execution(self):
        tx, params = of.adam(0.1), wide_params()
        step, state, grads = of.make_step(tx, backend="fused"), tx.init(params), like(params)
        want = step(params, state, grads)
        arguments = [
            {"step": 3},
            {"step": 4},
            {"value": 1},
            {"value": 2.5},
            {"value": np.float64(1.0)},
            {"value": np.int32(1), "big": 10**30},
            {"values": [1, 2]},
            {"names": ["a", None, True]},
            {"config": Held({})},
            {"config": Held(None)},
            {"function": print},
            {"array": np.ones(3)},
        ]
        for extra in arguments:
            assert_trees_equal(step(params, state, grads, **extra), want)
            assert step.explain().startswith("fused")
        assert len(programs(step)) == 1 + len({tuple(extra) for extra in arguments})

    def test_containers_that_nobody_opens_may_grow(self):
        tx, params = of.adam(0.1), wide_params()
        step, state, grads = of.make_step(tx, backend="fused"), tx.init(params), like(params)
        want, history = step(params, state, grads), []
        for i in range(5):
            history.append([i, torch.ones(i), print, Held(i)][i % 4])
            batch, steps = {str(k): torch.ones(2) for k in range(i)}, (1,) * i
            assert_trees_equal(step(params, state, grads, history=history, batch=batch, steps=steps), want)
            assert step.explain().startswith("fused")
        assert len(programs(step)) == 2

    @pytest.mark.parametrize(
        "read",
        [
            len,
            sum,
            lambda held: held[-1],
            lambda held: sum(x for x in held if x is not None),
            lambda held: 2 if isinstance(held, list | tuple) else 3,
            lambda held: 2 if held else 3,
            lambda held: torch.stack(held).sum(),
            lambda held: of.tree.sum(held),
            lambda held: len(of.tree.leaves(held)),
        ],
    )
    def test_containers_that_are_opened_are_read_anew(self, read):
        def update(updates, state, params=None, *, history, **extra):
            return of.tree.scale(read(history), updates), state

        tx, params = of.GradientTransformation(of.init_empty_state, update), wide_params()
        step, grads = of.make_step(tx), like(params)
        for size in (1, 2, 3, 2):
            history = [torch.tensor(float(i + 1)) for i in range(size)]
            want = of.apply_updates(params, tx.update(grads, (), params, history=history)[0])
            assert_trees_equal(step(params, of.EmptyState(), grads, history=history, other=[size])[0], want)

    def test_numbers_that_are_read_are_live(self):
        tx = of.stateless(lambda updates, params: updates)
        rule = of.GradientTransformation(
            tx.init, lambda u, s, p=None, *, step, **extra: (of.tree.scale(1 / step, u), s)
        )
        step, params = of.make_step(rule, backend="fused"), torch.zeros(3)
        for number in (1, 2, np.int64(4), 8.0, np.float32(16.0)):
            new, _ = step(params, rule.init(params), torch.ones(3), step=number)
            assert new.tolist() == [1 / number] * 3
        assert len(programs(step)) == 1

    def test_a_failing_operator_has_written_nothing(self):
        def decompose(updates, params):
            return of.tree.map(lambda u: torch.linalg.svd(u)[1] + u, updates)

        tx = of.chain(of.trace(0.9), of.stateless(decompose))
        step, _ = both(tx, donate=True)
        params = torch.eye(4)
        state = tx.init(params)
        step(params, state, torch.eye(4))
        before = of.tree.map(torch.clone, (params, state))
        with pytest.raises(torch.linalg.LinAlgError):
            step(params, state, torch.full((4, 4), torch.nan))
        assert_trees_equal((params, state), before)


@pytest.mark.parametrize("number", [400, 2000])
def test_rules_of_many_operators_in_a_row_have_kernels(number, monkeypatch):
    if number > 400:  # 6,000 lines are a matter of depth; to optimise them takes gcc 11 s
        monkeypatch.setattr(_build, "FLAGS", ("-O0", *_build.FLAGS[1:]))

    def long(updates, params):
        def leaf(u):
            for i in range(number // 2):
                u = torch.where(u > 0.3, -u, u) + 0.01 * i
            return u

        return of.tree.scale(leaf(of.tree.norm(updates)), of.tree.map(leaf, updates))

    tx, params = of.stateless(long), plain_params(torch.float32)
    fused, eager = both(tx, donate=True)
    want = eager(of.tree.map(torch.clone, params), tx.init(params), params)
    assert_trees_equal(fused(params, tx.init(params), of.tree.map(torch.clone, params)), want, rtol=1e-4, atol=1e-3)


class TestValue:
    def test_steps_pickle_and_copy(self):
        tx, params = of.adam(0.1), wide_params()
        step = of.make_step(tx, donate=True)
        state, grads = tx.init(params), like(params)
        step(params, state, grads)
        for twin in (pickle.loads(pickle.dumps(step)), copy.deepcopy(step)):
            twin(params, state, grads)

    def test_the_environment_chooses_the_backend(self, monkeypatch):
        tx, params = of.adam(0.1), wide_params()
        monkeypatch.setenv("OPTIMFN_BACKEND", "eager")
        step = of.make_step(tx)
        step(params, tx.init(params), like(params))
        assert step.explain() == "eager: chosen by the backend"
        assert of.make_step(tx, backend="fused").explain() == "not traced yet: take a step first"
        monkeypatch.setenv("OPTIMFN_BACKEND", "warp")
        with pytest.raises(ValueError, match="OPTIMFN_BACKEND must be one of 'auto', 'fused', 'eager', got 'warp'"):
            of.make_step(tx)

    def test_explain_tells_why_the_last_step_was_the_rule(self):
        tx, params = of.sgd(0.1, momentum=0.9), wide_params()
        step, state, grads = of.make_step(tx), tx.init(params), like(params)
        ways = [
            (contextlib.nullcontext(), grads, "fused: "),
            (torch.autocast("cpu"), grads, "eager: it is under autocast"),
            (contextlib.nullcontext(), grads, "fused: "),
            (Watching(), grads, "eager: another dispatch mode watches the operators"),
            (
                torch.enable_grad(),
                of.tree.map(lambda g: g.clone().requires_grad_(), grads),
                "eager: gradients are to flow",
            ),
            (
                contextlib.nullcontext(),
                of.tree.map(lambda g: g.as_subclass(Plain), grads),
                "eager: kernels are not for",
            ),
            (contextlib.nullcontext(), grads, "fused: "),
        ]
        assert step.explain().startswith("not traced")
        for context, own, words in ways:
            with context:
                step(params, state, own)
            assert step.explain().startswith(words), step.explain()
        torch.func.vmap(lambda p: step(p, tx.init(p), p)[0])(torch.ones(2, 3))
        assert step.explain().startswith("eager: torch.func")
        assert of.make_step(tx, backend="eager").explain() == "eager: chosen by the backend"
        donating, (own, own_state) = of.make_step(tx, donate=True), of.tree.map(torch.clone, (params, state))
        donating(own, own_state, own)
        assert donating.explain() == "eager: an argument shares memory with what is written"

    def test_explain_tells_stages_kernels_bytes_and_the_source(self):
        tx, params = composed(), wide_params()
        step, _ = both(tx, donate=True)
        step(params, tx.init(params), like(params))
        told = step.explain()
        assert "fused: " in told
        assert "sum square" not in told
        assert re.search(r"kernel  sum \w+: 3 leaves, 832 elements, 4 bytes each", told)
        assert re.search(r"kernel  store param, store mu, store nu, store ema: \d leaves", told)
        assert "moves 40.0 bytes per element of the parameters" in told
        # There are several files if another test has compiled a part of it before.
        source = "".join(Path(path).read_text() for path in re.findall(r"source  (\S+)", told))
        assert "new_mu" in source
        assert re.search(r"(//|#) _adam\.py:\d+", source)

    def test_opaque_operators_are_named_with_the_reason(self):
        tx = of.orthogonalize()
        step, _ = both(tx)
        step(torch.ones(4, 4), tx.init(None), torch.randn(4, 4))
        assert re.search(r"opaque  \d+ x aten\.mm\.default: not computed element by element", step.explain())

    def test_many_steps_follow_the_eager_ones(self):
        tx, params = composed(), plain_params(torch.float32)
        gradients = [like(params) for _ in range(50)]
        want = follow(tx, params, gradients)[-1]
        state, step = tx.init(params), of.make_step(tx, donate=True, backend="fused")
        own = of.tree.map(torch.clone, params)
        for grads in gradients:
            step(own, state, grads)
        assert_trees_equal(own, want, rtol=1e-4, atol=1e-5)


def test_a_change_of_strides_stays_on_its_device():
    """Made on the default device, it handed a kernel on a CUDA device an address on the host."""
    transposed = _rearrange(torch.empty(2, 3, device="meta"), (1, 2))
    assert transposed.is_meta
    assert transposed.stride() == (1, 2)


@pytest.mark.parametrize("draw", ["uniform", "rademacher"])
def test_random_numbers_of_a_kernel_are_those_of_the_rule(draw):
    """They are hashes, whose products overflow: of every element, not of those alone before the first that does."""
    key = torch.tensor(5)
    tx = of.stateless(lambda updates, params: of.tree.map(lambda g: g * getattr(of.tree, draw)(key, g), updates))
    params, grads = {"w": torch.zeros(5, 60, dtype=torch.float64)}, {"w": torch.ones(5, 60, dtype=torch.float64)}
    got, want = (of.make_step(tx, backend=b)(params, tx.init(params), grads)[0] for b in ("fused", "eager"))
    torch.testing.assert_close(got["w"], want["w"], rtol=1e-12, atol=0)
