"""Every rule and schedule of `specs.py` against what the real optax did, step by step in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import follow
from versus_optax import specs

import optimfn as of

RECORDED = np.load(Path(__file__).parent / "versus_optax" / "recorded.npz")


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_every_spec_is_recorded():
    named = (
        {f"rule/{name}" for name in specs.RULES}
        | {f"search/{name}" for name in specs.SEARCHES}
        | {f"schedule/{name}" for name in specs.SCHEDULES}
    )
    assert named == set(RECORDED) - {"about"}


@pytest.mark.parametrize("name", specs.RULES)
def test_follows_optax_step_by_step(name):
    gradients = [tensors(grads) for grads in specs.gradients()]
    steps = follow(specs.RULES[name](of), tensors(specs.params()), gradients, **specs.EXTRA.get(name, {}))
    assert_as_recorded(steps, f"rule/{name}")


@pytest.mark.parametrize("name", specs.SEARCHES)
def test_searches_as_optax_does_step_by_step(name):
    tx, params, steps = specs.SEARCHES[name](of), tensors(specs.params()), []
    state, value_and_grad, last, alike = tx.init(params), of.tree.value_and_grad(specs.rosenbrock), None, specs.STEPS
    for step in range(specs.STEPS):
        value, grad = value_and_grad(params)
        if last and of.tree.vdot(of.tree.sub(params, last[0]), of.tree.sub(grad, last[1])) <= 0:
            alike = min(alike, step)  # from here on optax remembers a pair of negative curvature, and we do not
        last = params, grad
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=specs.rosenbrock)
        params = of.apply_updates(params, updates)
        steps.append(params)
    assert_as_recorded(steps, f"search/{name}", alike if "lbfgs" in name else specs.STEPS)


def assert_as_recorded(steps, key, before=None):
    places = [place for place, step in enumerate(specs.KEPT) if before is None or step < before]
    kept, recorded = [steps[specs.KEPT[place]] for place in places], RECORDED[key][places]
    assert kept
    ours = np.stack([np.concatenate([np.ravel(params[name].numpy()) for name in sorted(params)]) for params in kept])
    error = np.abs(ours - recorded) / np.maximum(1.0, np.abs(recorded))
    assert error.max() <= 1e-9


@pytest.mark.parametrize("name", specs.SCHEDULES)
def test_schedules_equal_those_of_optax(name):
    schedule = specs.SCHEDULES[name](of)
    ours = [schedule(torch.tensor(count)).item() for count in specs.COUNTS]
    np.testing.assert_allclose(ours, RECORDED[f"schedule/{name}"], rtol=1e-9, atol=1e-12)
