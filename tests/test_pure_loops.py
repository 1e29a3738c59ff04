"""What a pure loop says when it was written as loops around `torch.optim` are, and what drop-in classes refuse."""

import inspect
import warnings

import pytest
import torch
from torch.func import functional_call

import optimfn as of
from optimfn import _gate


def loop(tx, steps, detach, backward=False):
    model = torch.nn.Linear(3, 2)
    params = {name: p.detach().requires_grad_() if detach else p for name, p in model.named_parameters()}
    state = tx.init(params)
    for _ in range(steps):
        loss = functional_call(model, params, torch.ones(4, 3)).square().mean()
        if backward:
            loss.backward()
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch: the grad of no leaf
                grads = {name: p.grad for name, p in params.items()}
        else:
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    return params


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr(_gate, "_told", [])


@pytest.mark.parametrize("make", [of.sgd, of.adamw])
def test_parameters_that_carry_graphs_are_told_of_once(untold, make):
    with pytest.warns(UserWarning, match=r"carry the graph of the last 32 steps.*p.detach\(\)") as told:
        loop(make(1e-3), 80, detach=False)
    assert len(told) == 1


def test_steps_too_few_to_matter_and_steps_through_which_gradients_flow_are_not_told_of(untold):
    loop(of.sgd(1e-3), 30, detach=False)  # first-order meta-learning
    x, tx = torch.tensor(1.0, requires_grad=True), of.sgd(1e-3)
    params, state = x.clone(), tx.init(x)
    for _ in range(80):
        (grad,) = torch.autograd.grad(params.square(), params, create_graph=True)
        updates, state = tx.update(grad, state, params)
        params = of.apply_updates(params, updates)
    assert torch.autograd.grad(params, x)[0] < 1


def test_backward_on_results_says_that_they_are_no_leaves():
    for tx in (of.sgd(0.1), of.chain(of.clip(1.0), of.adamw(0.1))):
        for detach in (True, False):
            with pytest.raises(ValueError, match=r"results of a step and no leaves.*functional_call.*requires_grad_"):
                loop(tx, 2, detach=detach, backward=True)


CLASSES = [getattr(of.optim, name) for name in torch.optim.__all__ if hasattr(of.optim, name) and name != "Optimizer"]
CLASSES = [cls for cls in CLASSES if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_drop_in_classes_refuse_modules_and_schedules_by_name(cls):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(TypeError, match=rf"params is a Linear.*{cls.__name__}\(model.parameters\(\), ...\)"):
        cls(model)
    for schedule in (of.cosine_decay_schedule(1e-3, 10), lambda count: 1e-3):
        with pytest.raises(TypeError, match=r"lr must be a number, got .*Optimizer"):
            cls(model.parameters(), lr=schedule)
        with pytest.raises(TypeError, match="lr must be a number"):
            cls(model.parameters(), schedule)
    torchs = getattr(torch.optim, cls.__name__)
    assert inspect.signature(cls) == inspect.signature(torchs)
    assert inspect.signature(cls.__init__) == inspect.signature(torchs.__init__)
