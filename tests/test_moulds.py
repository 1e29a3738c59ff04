"""Optimizers with equal rules share what does not depend on their tensors and numbers, and nothing else."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

import optimfn as of
from optimfn.fused.run import _known

ADAPTIVE = {
    "Optimizer": lambda params, rate: of.Optimizer(params, of.adamw, learning_rate=rate, weight_decay=rate),
    "Optimizer of rprop": lambda params, rate: of.Optimizer(params, of.rprop, learning_rate=rate),
    "injected": lambda params, rate: of.Optimizer(params, of.inject_hyperparams(of.adam)(learning_rate=rate)),
    "scheduled": lambda params, rate: of.Optimizer(params, of.adam(of.linear_schedule(rate, 0.0, 10))),
    "AdamW": lambda params, rate: of.optim.AdamW(params, rate, weight_decay=rate),
    "ASGD": lambda params, rate: of.optim.ASGD(params, rate, lambd=rate),
    "Rprop": lambda params, rate: of.optim.Rprop(params, rate),
    "Adagrad": lambda params, rate: of.optim.Adagrad(params, rate, initial_accumulator_value=rate),
}


def parameters(shape=(3, 2)):
    params = [torch.nn.Parameter(torch.linspace(1, 2, 6).reshape(shape)) for _ in range(2)]
    for p in params:
        p.grad = torch.linspace(-1, 2, 6).reshape(shape)
    return params


def alone(make, rate, steps, shape=(3, 2)):
    """What an optimizer does whose rules nobody has used before."""
    params, result = parameters(shape), []

    def run():  # moulds belong to a thread
        optimizer = make(params, rate)
        for _ in range(steps):
            optimizer.step()
        result.append(optimizer)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return params, result[0]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_equal_rules_with_other_numbers_and_shapes_step_as_if_alone(name):
    make, rates = ADAPTIVE[name], (0.1, 0.01, 0.1, 0.5)
    shapes = [(3, 2), (3, 2), (6,), (3, 2)]
    sets = list(map(parameters, shapes))
    optimizers = [make(params, rate) for params, rate in zip(sets, rates, strict=True)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    for params, optimizer, rate, shape in zip(sets, optimizers, rates, shapes, strict=True):
        expected, other = alone(make, rate, 3, shape)
        for p, q in zip(params, expected, strict=True):
            assert torch.equal(p, q)
            for key, x in other.state[q].items():
                assert torch.equal(torch.as_tensor(optimizer.state[p][key]), torch.as_tensor(x)), key


@pytest.mark.parametrize("name", ADAPTIVE)
def test_optimizers_share_no_memory(name):
    optimizers = [ADAPTIVE[name](parameters(), 0.1) for _ in range(3)]
    held = []
    for optimizer in optimizers:
        optimizer.step()
        tensors = [x for own in optimizer.state.values() for x in own.values() if isinstance(x, torch.Tensor)]
        held.append({x.data_ptr() for x in [*tensors, *optimizer._live_numbers().tensors()]})
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_nothing_of_an_optimizer_outlives_it(name):
    params = parameters()
    optimizer = ADAPTIVE[name](params, 0.1)
    optimizer.step()
    gone = [weakref.ref(x) for x in [*params, *(x for own in optimizer.state.values() for x in own.values())]]
    del params, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


@pytest.mark.parametrize("make", [ADAPTIVE["Optimizer"], ADAPTIVE["AdamW"]], ids=["Optimizer", "AdamW"])
def test_a_function_of_a_user_is_shared_by_nobody(make):
    factor = [1.0]

    def scaled(rate):
        return of.chain(of.stateless(lambda g, p: of.tree.scale(factor[0], g)), of.sgd(rate))

    (p, _), (q, _) = first, second = parameters(), parameters()
    of.Optimizer(first, scaled(0.1)).step()
    factor[0] = 2.0
    of.Optimizer(second, scaled(0.1)).step()
    assert torch.allclose(p, torch.linspace(1, 2, 6).reshape(3, 2) - 0.1 * p.grad)
    assert torch.allclose(q, torch.linspace(1, 2, 6).reshape(3, 2) - 0.2 * q.grad)


@pytest.mark.parametrize("name", ["AdamW", "ASGD", "Rprop", "Adagrad", "SGD", "RMSprop", "Adafactor", "Muon", "RAdam"])
def test_numbers_of_groups_change_without_a_trace(name, monkeypatch):
    traces, trace = [], _known.Known._trace
    monkeypatch.setattr(_known.Known, "_trace", lambda self, *args: traces.append(1) or trace(self, *args))
    options = {"SGD": {"momentum": 0.9}}.get(name, {})
    if name != "Rprop":
        options["weight_decay"] = 0.1
    params = parameters()
    optimizer = getattr(of.optim, name)(params, 0.01, **options)
    group = optimizer.param_groups[0]
    static = {"lr_decay", "dampening", "rho"} if name == "Adagrad" else set()
    for _ in range(3):
        optimizer.step()
        for key, value in group.items():
            several = value if isinstance(value, tuple) else (value,)
            if key not in static and key != "ns_coefficients" and any(type(x) is float for x in several):
                new = tuple([0.99 * x if type(x) is float else x for x in several])
                group[key] = new if isinstance(value, tuple) else new[0]
        group.setdefault("history", []).append(1)
    assert sum(traces) <= 1


def test_what_a_factory_makes_is_made_once_for_equal_numbers():
    def made(make=of.adamw, **numbers):
        return of.Optimizer(parameters(), make, **numbers).tx

    rate = torch.tensor(0.1)
    assert made(learning_rate=0.1) is made(learning_rate=0.1)
    assert made(learning_rate=0.1, mask=of.tree.is_matrix) is made(learning_rate=0.1, mask=of.tree.is_matrix)
    assert made(learning_rate=0.1) is not made(learning_rate=0.2)
    assert made(learning_rate=1) is not made(learning_rate=1.0)
    assert made(learning_rate=0.1, eps=0.0) is not made(learning_rate=0.1, eps=-0.0)
    assert made(learning_rate=0.1) is not made(of.adam, learning_rate=0.1)
    assert made(learning_rate=rate) is not made(learning_rate=rate)
    assert made(learning_rate=0.1, mask=lambda p: p.ndim > 1) is not made(learning_rate=0.1, mask=lambda p: p.ndim > 1)


@pytest.mark.parametrize("number", [float, np.float64, np.float32])
def test_numbers_of_numpy_are_live_too(number, monkeypatch):
    traced, original = [], _known.trace
    monkeypatch.setattr(_known, "trace", lambda *args, **kwargs: traced.append(1) or original(*args, **kwargs))
    optimizer, theirs = of.optim.AdamW(own := parameters(), 0.1), torch.optim.AdamW(others := parameters(), 0.1)
    for step in range(5):
        for each in (optimizer, theirs):
            each.param_groups[0].update(eps=number(0.1 / (1 + step)), weight_decay=number(0.1 * (1 + step)))
            each.step()
        if step == 0:
            traced.clear()
    assert not traced
    for p, q in zip(own, others, strict=True):
        torch.testing.assert_close(p, q)
