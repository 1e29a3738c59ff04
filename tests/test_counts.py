"""Counts belong to parameters: whose gradient comes late, or not at all, has the steps that it has made."""

import copy
import random

import pytest
import torch
from cases import CASES
from torch import nn

import optimfn as of

PAIRS = {
    "optimizer": (lambda p: of.Optimizer(p, of.adamw, learning_rate=0.1, weight_decay=0.1), {}),
    "ready made": (lambda p: of.Optimizer(p, of.adamw(0.1, weight_decay=0.1)), {}),
    "eager": (lambda p: of.Optimizer(p, of.adamw(0.1, weight_decay=0.1), fused=False), {}),
    "drop-in": (lambda p: of.optim.AdamW(p, 0.1, weight_decay=0.1), {}),
}
every_form = pytest.mark.parametrize("make", [make for make, _ in PAIRS.values()], ids=PAIRS)


def parameters(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(3, 2, dtype=torch.float64, generator=generator)) for _ in range(count)]


def give(params, twins, present):
    for p, q, here in zip(params, twins, present, strict=True):
        p.grad = q.grad = torch.randn_like(p) if here else None


def close(params, twins):
    return all(torch.allclose(p, q, rtol=1e-12, atol=1e-12) for p, q in zip(params, twins, strict=True))


@every_form
def test_gradients_that_come_and_go_are_met_as_by_torch(make):
    params, random_one = parameters(6), random.Random(0)
    twins = copy.deepcopy(params)
    optimizer, reference = make(params), torch.optim.AdamW(twins, 0.1, weight_decay=0.1)
    for _ in range(30):
        give(params, twins, [random_one.random() < 0.6 for _ in params])
        optimizer.step()
        reference.step()
        assert close(params, twins)
        assert {i for i, p in enumerate(params) if optimizer.state.get(p)} == {
            i for i, q in enumerate(twins) if reference.state.get(q)
        }


@every_form
@pytest.mark.parametrize("late", [1, 1000])
def test_a_first_gradient_is_met_by_a_first_step(make, late):
    params = parameters(2)
    twins = copy.deepcopy(params)
    optimizer, reference = make(params), torch.optim.AdamW(twins, 0.1, weight_decay=0.1)
    for step in range(late + 3):
        give(params, twins, [True, step >= late])
        optimizer.step()
        reference.step()
    assert close(params, twins)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_without_a_gradient_moves_nothing_counts_nothing_and_has_no_state(case):
    if case.name.startswith("minimize_by_lbfgs") or "evaluates" in case.skips.get("fused", ""):
        pytest.skip("steps with a closure, see test_contract.py")
    net, alone = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    alone.load_state_dict(net.state_dict())
    both = nn.ParameterDict({"a": net.weight, "idle": nn.Parameter(torch.ones(4, dtype=torch.float64))})
    optimizer = of.Optimizer(both.items(), case.plain())
    reference = of.Optimizer([("a", alone.weight)], case.plain())
    for step in range(3):
        net.weight.grad = torch.full_like(net.weight, 0.5 + step)
        alone.weight.grad = net.weight.grad.clone()
        optimizer.step(**case.extra)
        reference.step(**case.extra)
    assert torch.equal(both["idle"], torch.ones(4, dtype=torch.float64))
    assert not optimizer.state.get(both["idle"])
    assert torch.equal(net.weight, alone.weight)
    keys = [list(one.state.get(p, {})) for one, p in ((optimizer, net.weight), (reference, alone.weight))]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_without_any_gradient_is_none(case):
    params = parameters(2)
    optimizer = of.Optimizer(params, case.plain())
    optimizer.step(**case.extra)
    assert not optimizer.state
    if case.name.startswith("minimize_by_lbfgs"):
        return
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(**case.extra)
    before, saved = copy.deepcopy(params), optimizer.state_dict()
    for p in params:
        p.grad = None
    optimizer.step(**case.extra)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    for old, new in zip(of.tree.leaves(saved["state"]), of.tree.leaves(optimizer.state_dict()["state"]), strict=True):
        assert torch.equal(old, new)


def test_a_schedule_counts_the_steps_of_the_optimizer():
    a, b = parameters(2)
    optimizer = of.Optimizer([a, b], of.adam(of.linear_schedule(1.0, 0.0, 10)))
    for step in range(4):
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b) if step == 3 else None
        before = b.detach().clone()
        optimizer.step()
    assert torch.allclose(before - b, torch.full_like(b, 0.7))  # a first step, at the rate of the fourth
    a.grad = b.grad = None
    optimizer.step()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.7)


@every_form
def test_counts_survive_a_checkpoint(make):
    params, random_one = parameters(4), random.Random(1)
    twins = copy.deepcopy(params)
    optimizer, reference = make(params), torch.optim.AdamW(twins, 0.1, weight_decay=0.1)
    for _ in range(3):
        for _ in range(4):
            give(params, twins, [random_one.random() < 0.5 for _ in params])
            optimizer.step()
            reference.step()
        saved = optimizer.state_dict()
        optimizer = make(params)
        optimizer.load_state_dict(saved)
    assert close(params, twins)


def test_checkpoints_of_shared_counts_load():
    """As versions wrote them in which a count belonged to a group: it stood under each of its parameters."""
    params, twins = parameters(3), parameters(3)
    optimizer, reference = of.Optimizer(params, of.adam(0.1)), torch.optim.Adam(twins, 0.1)
    give(params, twins, [True] * 3)
    for _ in range(5):
        optimizer.step()
        reference.step()
    saved = optimizer.state_dict()
    assert [int(saved["state"][i]["scale_by_adam.count"]) for i in range(3)] == [5, 5, 5]
    resumed = of.Optimizer(params, of.adam(0.1))
    resumed.load_state_dict(saved)
    for present in ([True, False, True], [False, True, True]):
        give(params, twins, present)
        resumed.step()
        reference.step()
    assert close(params, twins)


def test_the_state_is_made_where_there_is_no_memory_and_numbers_may_lie_elsewhere():
    """Meta kernels refuse numbers on a device; so rules whose state begins with the learning rate were refused."""
    for tx in (of.rprop(0.1), of.asgd(0.1)):
        params = parameters(2)
        optimizer = of.Optimizer(params, tx)
        for step in range(3):
            give(params, params, [True, step != 1])
            optimizer.step()
        assert len(optimizer.state) == 2
