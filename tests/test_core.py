"""What is special to the parts of the core."""

import inspect
from typing import NamedTuple

import pytest
import torch
from helpers import assert_trees_equal

import optimfn as of


def test_chain_refuses_what_is_not_a_transformation():
    with pytest.raises(TypeError, match="member 1 of chain must be a GradientTransformation, got 3"):
        of.chain(of.identity(), 3)
    with pytest.raises(TypeError, match="member 'b' of named_chain must be a GradientTransformation"):
        of.named_chain(("a", of.identity()), ("b", torch.relu))


def test_chain_refuses_the_state_of_another_chain():
    with pytest.raises(ValueError, match="the state has 1 members and the chain 2"):
        of.chain(of.identity(), of.identity()).update(torch.ones(1), (of.EmptyState(),))


def test_named_chain_refuses_names_that_repeat():
    with pytest.raises(ValueError, match=r"must differ, got \['a', 'a'\]"):
        of.named_chain(("a", of.identity()), ("a", of.identity()))


def test_chain_hands_extra_arguments_to_every_member():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return updates, state

    member = of.GradientTransformation(lambda params: of.EmptyState(), update)
    tx = of.chain(member, of.named_chain(("inner", of.masked(member, True))))
    tx.update(torch.ones(1), tx.init(torch.ones(1)), value=3)
    assert seen == [{"value": 3}, {"value": 3}]


def test_set_to_zero_stops_nans():
    updates, _ = of.set_to_zero().update(torch.tensor([float("nan")]), of.EmptyState())
    assert updates.item() == 0


def test_weight_decay_of_zero_does_not_multiply_infinities():
    tx = of.add_decayed_weights(0.0)
    updates, _ = tx.update(torch.ones(1), tx.init(None), torch.tensor([float("inf")]))
    assert updates.item() == 1


def test_apply_updates_adds_in_the_wider_dtype_and_rounds_once():
    params, updates = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1 / 256 + 1 / 4096])
    new = of.apply_updates(params, updates)
    assert new.dtype == torch.bfloat16
    assert new.item() == 1 + 1 / 128  # adding the rounded update would tie to even and give 1


def test_apply_updates_keeps_parameters_without_update():
    params = {"a": torch.ones(1), "b": torch.ones(1), "c": None}
    new = of.apply_updates(params, {"a": torch.ones(1), "b": None, "c": None})
    assert new["a"].item() == 2
    assert new["b"] is params["b"]
    assert new["c"] is None


@pytest.mark.parametrize("step_size", [0.25, torch.tensor(0.25, dtype=torch.float64)])
def test_incremental_update(step_size):
    new, old = {"a": torch.tensor([4.0]), "b": None}, {"a": torch.tensor([0.0]), "b": torch.ones(1)}
    moved = of.incremental_update(new, old, step_size)
    assert moved["a"].item() == 1
    assert moved["b"] is None
    low = of.incremental_update(torch.ones(3), torch.zeros(3, dtype=torch.bfloat16), step_size)
    assert low.dtype == torch.bfloat16


@pytest.mark.parametrize("as_count", [int, torch.tensor])
def test_periodic_update(as_count):
    new, old = {"a": torch.tensor([4.0])}, {"a": torch.tensor([0.0])}
    taken = [of.periodic_update(new, old, as_count(steps), 3)["a"].item() for steps in range(5)]
    assert taken == [4, 0, 0, 4, 0]
    with pytest.raises(ValueError, match="update_period must be >= 1, got 0"):
        of.periodic_update(new, old, 1, 0)


class TestClipByGlobalNorm:
    def clip(self, updates, max_norm=1.0):
        return of.clip_by_global_norm(max_norm).update(updates, of.EmptyState())[0]

    def test_updates_inside_the_ball_pass_bit_for_bit(self):
        updates = {"a": torch.randn(100) / 100}
        assert torch.equal(self.clip(updates)["a"], updates["a"])

    def test_zero_updates_stay_zero(self):
        assert self.clip(torch.zeros(3)).tolist() == [0, 0, 0]
        assert self.clip(torch.zeros(3), torch.tensor(1e-30)).tolist() == [0, 0, 0]

    def test_the_norm_of_bfloat16_is_accumulated_in_float32(self):
        updates = torch.full((100_000,), 0.01, dtype=torch.bfloat16)
        norm = updates.double().norm()
        assert of.tree.norm(updates).item() == pytest.approx(norm.item(), rel=1e-3)  # bfloat16 would stop at 256 terms
        assert self.clip(updates).double().norm().item() == pytest.approx(1.0, rel=1e-2)

    def test_has_a_zero_gradient_at_zero(self):
        grad = torch.func.grad(lambda u: self.clip(u).sum())(torch.zeros(3))
        assert grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("clip", [of.clip_by_global_norm, of.clip_by_block_rms])
def test_updates_within_a_bound_pass_bit_for_bit_whatever_the_bound(clip):
    updates = torch.randn(50) / 100
    for number in torch.linspace(0.1, 3.0, 200, dtype=torch.float64):
        for bound in (number, number.item()):
            assert torch.equal(clip(bound).update(updates, of.EmptyState())[0], updates)


@pytest.mark.parametrize(
    "shrink",
    [
        of.clip_by_global_norm,
        of.clip_by_block_rms,
        lambda bound: of.stateless(lambda u, _: of.projection_l2_ball(u, bound)),
    ],
)
def test_an_infinite_bound_holds_everything_and_a_bound_of_zero_makes_zeros(shrink):
    updates = torch.tensor([3.0, -4.0])
    for bound in (torch.inf, torch.tensor(torch.inf)):
        assert torch.equal(shrink(bound).update(updates, of.EmptyState())[0], updates)
    for u in (updates, torch.zeros(2)):
        assert shrink(torch.tensor(0.0)).update(u, of.EmptyState())[0].tolist() == [0.0, 0.0]
    assert torch.func.grad(lambda b: shrink(b).update(updates, of.EmptyState())[0].sum())(torch.tensor(9.0)) == 0.0


class TestMasked:
    def test_passes_the_rest_through_and_keeps_no_state_for_it(self):
        tx = of.masked(of.trace(0.9), {"a": True, "b": False})
        params = {"a": torch.ones(2), "b": torch.ones(2)}
        state = tx.init(params)
        assert of.tree.size(state) == 2
        assert state.inner_state.trace["b"] == of.MaskedNode()
        updates, _ = tx.update(params, state)
        assert updates["b"] is params["b"]

    def test_takes_prefixes_functions_and_nests(self):
        params = {"body": [torch.ones(2, 2), torch.ones(2)], "head": torch.ones(2)}
        for mask in (
            {"body": True, "head": False},
            of.tree.mask_by_path("^body"),
            lambda p: {"body": True, "head": False},
        ):
            tx = of.masked(of.scale(3.0), mask)
            updates, _ = tx.update(params, tx.init(params), params)
            assert updates["body"][1].tolist() == [3, 3]
            assert updates["head"].tolist() == [1, 1]
        tx = of.masked(of.masked(of.scale(3.0), of.tree.is_matrix), {"body": True, "head": False})
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates["body"][0].tolist() == [[3, 3], [3, 3]]
        assert updates["body"][1].tolist() == [1, 1]

    def test_a_norm_inside_sees_only_the_chosen(self):
        tx = of.masked(of.clip_by_global_norm(1.0), {"a": True, "b": False})
        updates, _ = tx.update({"a": torch.tensor([2.0]), "b": torch.tensor([99.0])}, tx.init({"a": None, "b": None}))
        assert updates["a"].item() == 1
        assert updates["b"].item() == 99

    def test_hides_shaped_extra_arguments_on_request(self):
        def update(updates, state, params=None, *, grad, value):
            assert of.tree.structure(grad) == of.tree.structure(updates)
            assert value == 3
            return of.tree.add(updates, grad), state

        inner = of.GradientTransformation(lambda params: of.EmptyState(), update)
        tx = of.masked(inner, {"a": True, "b": False}, mask_compatible_extra_args=True)
        updates = {"a": torch.ones(1), "b": torch.ones(1)}
        assert tx.update(updates, tx.init(updates), grad=updates, value=3)[0]["a"].item() == 2

    def test_refuses_masks_that_are_not_static_or_do_not_fit(self):
        params = {"a": torch.ones(1)}
        with pytest.raises(TypeError, match="mask must hold Python bools, since it is static; got tensor"):
            of.masked(of.identity(), {"a": torch.tensor(True)}).init(params)
        with pytest.raises(ValueError, match="key"):
            of.masked(of.identity(), {"b": True}).init(params)


def test_learning_rate_schedule_counts_from_zero():
    tx = of.sgd(of.piecewise_constant_schedule(1.0, {1: 0.5}))
    state, seen = tx.init(torch.ones(1)), []
    for _ in range(3):
        updates, state = tx.update(torch.ones(1), state)
        seen.append(updates.item())
    assert seen == [-1.0, -0.5, -0.5]


def test_a_count_does_not_overflow_or_lose_a_step():
    state = of.scale_by_adam().init(torch.ones(1, dtype=torch.float64))
    state = state._replace(count=torch.tensor(2**53 - 2), nu=torch.ones(1, dtype=torch.float64))
    updates, state = of.scale_by_adam().update(torch.ones(1, dtype=torch.float64), state)
    assert state.count.item() == 2**53 - 1
    assert torch.isfinite(updates).all()


def test_bias_correction_is_exact_at_a_decay_near_one():
    decay, count = 0.9999, torch.tensor(1)
    got = of.tree.bias_correction(torch.tensor([1e-4]), decay, count)
    assert got.item() == pytest.approx(1e-4 / (1 - decay), rel=1e-6)


@pytest.mark.parametrize("decay", [0.9, torch.tensor(0.9, dtype=torch.float64)])
def test_a_narrow_moment_decays_in_its_own_dtype_and_is_added_to_in_that_of_the_updates(decay):
    g = torch.randn(50, dtype=torch.float64)
    m = torch.randn(50)
    rules = {
        of.trace(decay, accumulator_dtype=torch.float32): lambda m: g + (m * 0.9).double(),
        of.ema(decay, False, torch.float32): lambda m: (1 - 0.9) * g + (m * 0.9).double(),
    }
    for tx, want in rules.items():
        state = of.tree.map_params(tx, lambda _: m, tx.init(g))
        updates, state = tx.update(g, state)
        assert updates.dtype == torch.float64
        torch.testing.assert_close(updates, want(m), rtol=1e-15, atol=1e-15)
        assert of.tree.get(state, "trace", of.tree.get(state, "ema")).dtype == torch.float32


def test_mu_dtype_is_stored_but_the_update_is_not_rounded_to_it():
    params = torch.zeros(4)
    low, full = of.scale_by_adam(mu_dtype=torch.bfloat16), of.scale_by_adam()
    grads = torch.randn(4)
    low_updates, low_state = low.update(grads, low.init(params))
    updates, _ = full.update(grads, full.init(params))
    assert low_state.mu.dtype == torch.bfloat16
    assert low_state.nu.dtype == torch.float32
    assert_trees_equal(low_updates, updates)


def test_second_moments_of_bfloat16_do_not_stand_still():
    params = torch.zeros(1, dtype=torch.bfloat16)
    tx = of.scale_by_adam()
    state = tx.init(params)
    for _ in range(1000):
        _, state = tx.update(torch.ones_like(params), state)
    for _ in range(500):
        _, state = tx.update(torch.zeros_like(params), state)
    assert state.nu.item() == pytest.approx((1 - 0.999**1000) * 0.999**500, rel=1e-4)


class TestStateDict:
    def test_keys_are_paths(self):
        state = of.adamw(1e-3).init({"layer": [torch.ones(1)]})
        assert list(of.state_dict(state)) == ["0.count", "0.mu.layer.0", "0.nu.layer.0"]

    def test_tensors_are_copies(self):
        state = of.trace(0.9).init(torch.ones(1))
        flat = of.state_dict(state)
        flat["trace"].fill_(7)
        assert state.trace.item() == 0
        loaded = of.load_state_dict(state, flat)
        flat["trace"].fill_(8)
        assert loaded.trace.item() == 7

    def test_says_what_does_not_fit_and_keeps_what_does_on_request(self):
        old = of.chain(of.trace(0.9), of.ema(0.9))
        new = of.chain(of.trace(0.9), of.scale_by_rms())
        flat = of.state_dict(old.init(torch.ones(2)))
        flat["0.trace"].fill_(3)
        with pytest.raises(KeyError, match=r"missing \['1.nu'\], left over \['1.ema'\]"):
            of.load_state_dict(new.init(torch.ones(2)), flat)
        loaded = of.load_state_dict(new.init(torch.ones(2)), flat, strict=False)
        assert loaded[0].trace.tolist() == [3, 3]
        assert loaded[1].nu.tolist() == [0, 0]

    def test_refuses_other_shapes(self):
        tx = of.trace(0.9)
        with pytest.raises(ValueError, match=r"trace has shape \(3,\), the state wants \(2,\)"):
            of.load_state_dict(tx.init(torch.ones(2)), of.state_dict(tx.init(torch.ones(3))))

    def test_refuses_ambiguous_paths(self):
        with pytest.raises(ValueError, match=r"two leaves of the state have the path 'a.b'"):
            of.state_dict({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})


class _Rule(NamedTuple):
    previous: object


def previous_updates():
    """A rule that returns the updates of the step before, keeping references to what it was given."""

    def init(params):
        return _Rule(of.tree.zeros_like(params))

    def update(updates, state, params=None, **extra):
        return state.previous, _Rule(updates)

    return of.GradientTransformation(init, update)


def previous_params():
    """A rule whose state is the parameters themselves."""

    def update(updates, state, params=None, **extra):
        return of.tree.sub(state.previous, params), _Rule(params)

    return of.GradientTransformation(lambda params: _Rule(of.tree.map(torch.clone, params)), update)


class TestMakeStep:
    def test_is_pure_unless_asked(self):
        params, tx = torch.ones(2), of.sgd(0.5)
        new, _ = of.make_step(tx)(params, tx.init(params), torch.ones(2))
        assert params.tolist() == [1, 1]
        assert new.tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("make", [previous_updates, previous_params])
    def test_donation_survives_states_that_keep_references(self, make):
        tx = make()
        params, own = (torch.tensor([1.0, 2.0]) for _ in range(2))
        state, own_state = tx.init(params), tx.init(own)
        pure, donating = of.make_step(tx), of.make_step(tx, donate=True)
        for _ in range(4):
            grads = torch.randn(2)
            params, state = pure(params, state, grads)
            donating(own, own_state, grads.clone())
            assert torch.equal(own, params)
            assert torch.equal(own_state.previous, state.previous)

    def test_donation_writes_to_leaves_that_require_grad(self):
        params, tx = torch.ones(2, requires_grad=True), of.adam(0.1)
        of.make_step(tx, donate=True)(params, tx.init(params), torch.ones(2))
        assert params.is_leaf
        assert params.requires_grad
        assert params[0].item() == pytest.approx(0.9)

    def test_donation_writes_views_of_one_buffer_but_refuses_overlaps(self):
        buffer, tx = torch.zeros(6), of.sgd(1.0)
        step = of.make_step(tx, donate=True)
        apart = {"a": buffer[:3], "b": buffer[3:]}
        step(apart, tx.init(apart), {"a": torch.ones(3), "b": -torch.ones(3)})
        assert buffer.tolist() == [-1, -1, -1, 1, 1, 1]
        overlapping = {"a": buffer[:4], "b": buffer[3:]}
        with pytest.raises(ValueError, match=r"0\.a and 0\.b share memory"):
            step(overlapping, tx.init(overlapping), {"a": torch.ones(4), "b": torch.ones(3)})
        tied = {"a": buffer, "b": buffer}
        with pytest.raises(ValueError, match="share memory"):
            step(tied, tx.init(tied), {"a": torch.ones(6), "b": torch.ones(6)})
        assert buffer.tolist() == [-1, -1, -1, 1, 1, 1]

    def test_a_failed_step_has_written_nothing(self):
        def update(updates, state, params=None, **extra):
            return updates, _Rule(torch.zeros(3))

        tx = of.GradientTransformation(lambda params: _Rule(torch.zeros(2)), update)
        params = torch.ones(2)
        state = tx.init(params)
        with pytest.raises(
            ValueError, match=r"1\.previous would change from torch.float32 \(2,\) to torch.float32 \(3,\)"
        ):
            of.make_step(tx, donate=True)(params, state, torch.ones(2))
        assert params.tolist() == [1, 1]

        broken = of.GradientTransformation(
            lambda params: (), lambda updates, state, params=None, **extra: (updates, (updates,))
        )
        with pytest.raises(ValueError, match="the new tree has another structure"):
            of.make_step(broken, donate=True)(params, (), torch.ones(2))
        assert params.tolist() == [1, 1]

    def test_donation_compiles(self):
        tx, params = of.adam(0.1), torch.ones(3)
        step = torch.compile(of.make_step(tx, donate=True), fullgraph=True, backend="eager")
        state = tx.init(params)
        for _ in range(3):
            new_params, _ = step(params, state, torch.ones(3))
        assert new_params is params
        assert state[0].count.item() == 3
        assert params[0].item() == pytest.approx(0.7, abs=1e-5)

    def test_refuses_unknown_backends_and_other_values(self):
        with pytest.raises(ValueError, match="backend must be one of 'auto', 'fused', 'eager', got 'warp'"):
            of.make_step(of.sgd(0.1), backend="warp")
        with pytest.raises(TypeError, match="tx must be a GradientTransformation, got 3"):
            of.make_step(3)


WHOLE = sorted(
    name
    for name, value in vars(of).items()
    if inspect.isfunction(value)
    and "learning_rate" in inspect.signature(value).parameters
    and name not in {"adadelta", "adafactor", "lbfgs", "scale_by_learning_rate"}  # `None` has a meaning there
)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_optimizer_refuses_a_rate_of_none(name):
    needed = {"seed": 0, "momentum": 0.9, "beta": 0.9, "l2_norm_clip": 1.0, "noise_multiplier": 1.0}
    needed |= {"weight_decay": 0.1, "peak": 1.0}
    needed |= dict.fromkeys(("rule", "base_optimizer"), of.scale_by_adam())
    parameters = inspect.signature(getattr(of, name)).parameters
    # Where a momentum is a word, as of Muon, it is of a kind; where a peak has no need to be, it is for other kinds.
    known = [key for key, one in parameters.items() if not isinstance(one.default, str)]
    given = {key: value for key, value in needed.items() if key in known}
    if "peak" in given and parameters["peak"].default is None:
        del given["peak"]
    with pytest.raises(TypeError, match="learning_rate must be a number or a 0-dim tensor, got None"):
        getattr(of, name)(learning_rate=None, **given)


@pytest.mark.parametrize("name", ["adadelta", "lbfgs"])
def test_where_none_is_a_rate_it_goes_downhill(name):
    tx, w = getattr(of, name)(), torch.tensor([3.0])
    updates, _ = tx.update(2 * w, tx.init(w), w, value_fn=lambda w: (w**2).sum())
    assert updates < 0


@pytest.mark.parametrize("offset", [1, 5])
def test_counts_before_the_offset_of_adafactor_are_the_first(offset):
    for tx in (of.scale_by_factored_rms(step_offset=offset), of.adafactor(0.1, decay_offset=offset)):
        params = torch.ones(3)
        state = tx.init(params)
        for _ in range(offset + 3):
            updates, state = tx.update(torch.tensor([1.0, -2.0, 3.0]), state, params)
            assert updates.isfinite().all()
            assert updates.any()


def test_no_example_adds_more_than_the_bound():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        grads = torch.randn(200, 33).to(dtype)
        for example in grads:
            total, _ = of.per_example_global_norm_clip(example[None], 0.5)
            assert total.double().norm() <= 0.5
    grads = torch.ones(3, 2)
    grads[1, 0] = float("inf")
    grads[2, 1] = float("nan")
    total, shrunk = of.per_example_global_norm_clip({"a": grads, "b": grads.flip(1)}, 1.0)
    torch.testing.assert_close(total["a"], torch.tensor([0.5, 0.5]))
    assert shrunk == 3
    huge, _ = of.per_example_global_norm_clip(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]]), 1.0)
    torch.testing.assert_close(huge, torch.tensor([0.6, 0.8]))
