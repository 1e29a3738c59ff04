"""Populations: what is special to many models in one tree, beyond the laws."""

import math
from collections import OrderedDict

import pytest
import torch
from cases import SCHEDULES
from helpers import Pair, assert_trees_equal, follow, like, plain_params
from torch.func import vmap

import optimfn as of

NAN = math.nan


def stack(trees):
    return of.tree.map(lambda *xs: torch.stack(xs), *trees)


def member(tree, i):
    return of.tree.map(lambda x: x[i], tree)


def models(n, dtype=torch.float64):
    return stack([plain_params(dtype) for _ in range(n)])


def assert_members_are_alone(tx, alone, params, gradients, rtol=1e-12):
    """Each member of the stack ends where `alone(i)` ends by itself."""
    together = follow(tx, params, gradients)[-1]
    for i in range(len(params["a"])):
        own = follow(alone(i), member(params, i), [member(grads, i) for grads in gradients])[-1]
        assert_trees_equal(member(together, i), own, rtol=rtol, atol=rtol)


# What belongs to a member


def test_members_are_clipped_by_their_own_norms():
    params = models(3)
    gradients = [
        of.tree.map(lambda x: x * torch.tensor([1e-2, 1.0, 1e2]).reshape(3, *[1] * (x.ndim - 1)), like(params))
    ]
    norms = torch.tensor([0.1, 0.5, 2.0])
    tx = of.stacked(of.clip_by_global_norm, max_norm=norms)
    updates, _ = tx.update(gradients[0], tx.init(params), params)
    sizes = vmap(of.tree.norm)(updates)
    raw = vmap(of.tree.norm)(gradients[0])
    assert raw[0] < norms[0]  # which is why the first passes bit for bit
    assert_trees_equal(member(updates, 0), member(gradients[0], 0))
    assert sizes[1:].tolist() == pytest.approx([0.5, 2.0])


def protected(rate):
    return of.apply_if_finite(of.adam(rate), 2)


def accumulated(rate):
    return of.multi_steps(of.adam(rate), 2, should_skip_update_fn=of.skip_not_finite)


@pytest.mark.parametrize("make", [protected, accumulated])
def test_the_others_do_not_notice_the_nan_of_one_member(make):
    params = models(3)
    tx = of.stacked(make, rate=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    clean = [like(params) for _ in range(6)]
    dirty = [of.tree.map(torch.clone, grads) for grads in clean]
    for step in (1, 2):
        dirty[step]["b"][1, 3] = NAN
    want, got = follow(tx, params, clean), follow(tx, params, dirty)
    for i in (0, 2):
        assert_trees_equal([member(p, i) for p in got], [member(p, i) for p in want])
    # To the one, these steps were not there.
    alone = follow(make(0.2), member(params, 1), [member(grads, 1) for grads in dirty])
    assert_trees_equal(member(got[-1], 1), alone[-1], rtol=1e-12)
    assert torch.isfinite(got[-1]["b"]).all()


def test_counts_of_skipped_steps_differ():
    tx = of.stacked(of.apply_if_finite(of.sgd(1.0), 5))
    grads = torch.tensor([[1.0, 1.0], [NAN, 1.0], [1.0, math.inf]])
    state = tx.init(torch.zeros(3, 2))
    updates, state = tx.update(grads, state)
    assert updates.tolist() == [[-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]
    assert state.total_notfinite.tolist() == [0, 1, 1]
    assert state.last_finite.tolist() == [True, False, False]


@pytest.mark.parametrize("make", [of.noisy_sgd, of.inject_hyperparams(of.noisy_sgd)])
def test_each_member_has_the_random_stream_of_its_seed(make):
    params = models(3)
    gradients = [of.tree.zeros_like(params)] * 4
    seeds, rates = torch.tensor([3, 4, 2**62 + 1]), torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)

    def noisy(learning_rate: torch.Tensor, seed: torch.Tensor):
        return make(learning_rate, seed=seed)

    tx = of.stacked(noisy, learning_rate=rates, seed=seeds)
    assert_members_are_alone(tx, lambda i: of.noisy_sgd(float(rates[i]), seed=int(seeds[i])), params, gradients)
    first, second = (member(follow(tx, params, gradients)[-1], i)["a"] - member(params, i)["a"] for i in (0, 1))
    assert (first != second).all()


def test_without_seeds_of_their_own_members_share_the_noise():
    tx = of.stacked(of.noisy_sgd(0.5, seed=3))
    updates, _ = tx.update(torch.zeros(2, 4), tx.init(torch.zeros(2, 4)))
    assert torch.equal(updates[0], updates[1])


def test_a_seed_is_a_whole_number_also_in_the_state():
    tx = of.inject_hyperparams(of.noisy_sgd)(0.5, seed=2**62 + 1)
    state = tx.init(torch.zeros(2))
    assert state.hyperparams["seed"].dtype == torch.int64
    assert state.hyperparams["seed"] == 2**62 + 1
    want = of.noisy_sgd(0.5, seed=2**62 + 1)
    assert_trees_equal(tx.update(torch.ones(2), state)[0], want.update(torch.ones(2), want.init(torch.zeros(2)))[0])


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SCHEDULES if case.live])
def test_each_member_has_a_schedule_of_its_own(case):
    factors = torch.tensor([0.5, 0.8, 1.0], dtype=torch.float64)
    own = {name: case.kwargs[name] * factors for name in case.live}
    names = ", ".join(own)
    make = eval(
        f"lambda {names}: of.sgd(schedule({', '.join(f'{n}={n}' for n in own)}))", {"of": of, "schedule": case.schedule}
    )
    gradients = [torch.ones(3, 2, dtype=torch.float64)] * 12
    together = follow(of.stacked(make, **own), torch.zeros(3, 2, dtype=torch.float64), gradients)[-1]
    for i in range(3):
        alone = of.sgd(case.schedule(**{name: float(value[i]) for name, value in own.items()}))
        want = follow(alone, torch.zeros(2, dtype=torch.float64), [g[i] for g in gradients])[-1]
        torch.testing.assert_close(together[i], want, rtol=1e-12, atol=1e-12)


def test_the_state_has_the_hyperparameters_and_they_are_live():
    rates = torch.tensor([0.5, 0.25])
    tx = of.stacked(of.sgd, learning_rate=rates, momentum=0.0)
    state = tx.init(torch.zeros(2, 3))
    assert set(state.hyperparams) == {"learning_rate"}
    state.hyperparams["learning_rate"][1] = 1.0
    updates, state = tx.update(torch.ones(2, 3), state)
    assert updates[:, 0].tolist() == [-0.5, -1.0]
    winners = torch.tensor([1, 1])  # as population based training goes on
    state = of.tree.map(lambda x: x[winners], state)
    assert tx.update(torch.ones(2, 3), state)[0][:, 0].tolist() == [-1.0, -1.0]
    assert rates.tolist() == [0.5, 0.25]


def test_members_have_memory_of_their_own():
    for tx in (of.stacked(of.adam(0.1)), of.stacked(of.adam, learning_rate=torch.ones(4), b1=0.5)):
        for leaf in of.tree.leaves(tx.init(torch.zeros(4, 3))):
            assert leaf.is_contiguous()
            leaf[0] += 1
            assert (leaf[1] != leaf[0]).all()


# Arguments of update


def test_tensors_with_an_axis_among_the_extra_arguments_go_to_the_members():
    params = models(3)
    grads = like(params)
    tx, losses = of.stacked(of.polyak_sgd()), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    updates, _ = tx.update(grads, tx.init(params), params, value=losses)
    shared, _ = tx.update(grads, tx.init(params), params, value=losses[0])
    for i in range(3):
        alone = of.polyak_sgd()
        for got, value in ((updates, losses[i]), (shared, losses[0])):
            want, _ = alone.update(member(grads, i), alone.init(None), member(params, i), value=value)
            assert_trees_equal(member(got, i), want, rtol=1e-12)


def test_a_function_among_the_extra_arguments_is_called_for_each_member():
    def bowl(x):
        return (x**2).sum()

    tx, alone = of.stacked(of.lbfgs()), of.lbfgs()
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    grads, values = vmap(torch.func.grad_and_value(bowl))(x)
    updates, _ = tx.update(grads, tx.init(x), x, value=values, grad=grads, value_fn=bowl)
    for i in range(2):
        extra = {"value": values[i], "grad": grads[i], "value_fn": bowl}
        want, _ = alone.update(grads[i], alone.init(x[i]), x[i], **extra)
        torch.testing.assert_close(updates[i], want)


def test_any_tree_can_be_a_stack():
    def tree(*shape):
        return OrderedDict(w=[torch.randn(*shape, 2), None], v=Pair(torch.randn(*shape), {}))

    params = tree(4)
    grads = OrderedDict(w=[None, None], v=Pair(torch.randn(4), {}))
    tx = of.stacked(of.masked(of.adamw(0.1), lambda p: of.tree.map(lambda x: x.ndim == 1, p)))
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates["w"] == [None, None]
    assert updates["v"].left.shape == (4,)
    assert of.tree.get(state, "count").shape == (4,)
    assert of.stacked(of.sgd(0.1)).update({}, of.stacked(of.sgd(0.1)).init({}), {})[0] == {}


def test_stacks_of_stacks():
    inner = of.stacked(of.adam, learning_rate=torch.tensor([0.1, 0.2]))
    tx = of.stacked(inner)
    params = torch.randn(3, 2, 4)
    updates, state = tx.update(torch.ones(3, 2, 4), tx.init(params), params)
    assert of.tree.get(state, "learning_rate").shape == (3, 2)
    torch.testing.assert_close(updates, torch.tensor([-0.1, -0.2]).reshape(1, 2, 1).expand(3, 2, 4))


# Executions


def test_a_step_takes_stacks_under_vmap_and_of_stacked():
    tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1, weight_decay=0.1))
    stack = of.stacked(tx)
    params = models(4, torch.float32)
    grads, state = like(params), stack.init(params)
    want = of.make_step(stack, backend="eager")(params, state, grads)
    assert_trees_equal(vmap(of.make_step(tx))(params, state, grads), want)
    for donate in (False, True):
        own = of.tree.map(torch.clone, (params, state))
        got = of.make_step(stack, donate=donate, backend="fused")(*own, grads)
        assert_trees_equal(got, want, rtol=1e-6, atol=1e-7)
        assert_trees_equal(own, want if donate else (params, state), rtol=1e-6, atol=1e-7)


def test_a_stack_behind_the_stateful_optimizer():
    params = {name: p.requires_grad_() for name, p in models(3).items()}
    tx = of.stacked(of.sgd, learning_rate=torch.tensor([0.1, 0.2, 0.3]))
    opt = of.Optimizer(params.items(), tx)
    before = {name: p.detach().clone() for name, p in params.items()}
    for p in params.values():
        p.grad = torch.ones_like(p)
    opt.step()
    for name, p in params.items():
        rates = torch.tensor([0.1, 0.2, 0.3]).reshape(3, *[1] * (p.ndim - 1))
        torch.testing.assert_close(before[name] - p.detach(), rates.expand_as(p).double())


# Errors


def test_mistakes_are_named():
    rates = torch.tensor([0.1, 0.2])
    with pytest.raises(TypeError, match=r"inner must be callable, got 3"):
        of.stacked(3)
    with pytest.raises(TypeError, match=r"stacked has no factory to give \['learning_rate'\] to, got sgd\("):
        of.stacked(of.sgd(0.1), learning_rate=rates)
    with pytest.raises(TypeError, match=r"memory_size must be the same for all members: .* takes no tensor for it"):
        of.stacked(of.lbfgs, memory_size=torch.tensor([3, 4]))
    with pytest.raises(TypeError, match=r"no argument 'rate' .here learning_rate."):
        of.stacked(of.sgd, rate=rates)
    with pytest.raises(ValueError, match=r"init_value must be .* got a tensor of shape \(2,\)"):
        of.stacked(of.sgd, learning_rate=of.constant_lr(rates))
    with pytest.raises(ValueError, match="momentum must be"):
        of.stacked(of.sgd, learning_rate=rates, momentum=2.0)
    tx = of.stacked(of.sgd, learning_rate=rates)
    for params in (torch.zeros(3, 1), {"a": torch.zeros(2), "b": torch.zeros(())}):
        with pytest.raises(ValueError, match="stacked needs a first axis of one length at every leaf"):
            tx.init(params)


def test_stacks_of_many_leaves_are_fused():
    """More leaves of a kind than a trace runs a rule for one by one."""
    tx = of.stacked(of.adamw, learning_rate=torch.tensor([0.1, 0.2]), weight_decay=0.1)
    models = {f"w{i}": torch.randn(2, 3) for i in range(12)}
    grads = of.tree.map(torch.randn_like, models)
    want = of.make_step(tx, backend="eager")(models, tx.init(models), grads)
    got = of.make_step(tx, backend="fused")(models, tx.init(models), grads)
    assert_trees_equal(got, want, rtol=1e-5, atol=1e-6)
