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
    named = {f"rule/{name}" for name in specs.RULES} | {f"schedule/{name}" for name in specs.SCHEDULES}
    assert named == set(RECORDED) - {"about"}


@pytest.mark.parametrize("name", specs.RULES)
def test_follows_optax_step_by_step(name):
    gradients = [tensors(grads) for grads in specs.gradients()]
    steps = follow(specs.RULES[name](of), tensors(specs.params()), gradients, **specs.EXTRA.get(name, {}))
    kept = [steps[step] for step in specs.KEPT]
    ours = np.stack([np.concatenate([np.ravel(params[key].numpy()) for key in sorted(params)]) for params in kept])
    want = RECORDED[f"rule/{name}"]
    error = np.abs(ours - want) / np.maximum(1.0, np.abs(want))
    assert error.max() <= 1e-9


@pytest.mark.parametrize("name", specs.SCHEDULES)
def test_schedules_equal_those_of_optax(name):
    schedule = specs.SCHEDULES[name](of)
    ours = [schedule(torch.tensor(count)).item() for count in specs.COUNTS]
    np.testing.assert_allclose(ours, RECORDED[f"schedule/{name}"], rtol=1e-9, atol=1e-12)
