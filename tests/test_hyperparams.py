"""Hyperparameters in the state: which arguments they are, and what may be put in their place."""

import functools

import future_annotations as future
import numpy as np
import pytest
import torch
from helpers import assert_trees_equal, like, plain_params

import optimfn as of


def hyperparams(tx):
    return tx.init(torch.ones(1)).hyperparams


FACTORIES = {
    "function": future.steps,
    "partial": functools.partial(future.steps),
    "object": future.Maker(),
    "recorded": of.factory(future.steps),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_annotations_that_are_strings_say_what_is_live(name):
    tx = of.inject_hyperparams(FACTORIES[name])(rate=2, periods=3)
    assert {name: x.dtype for name, x in hyperparams(tx).items()} == {"rate": torch.float64}
    assert tx.update(torch.ones(1), tx.init(torch.ones(1)))[0].item() == 8.0


def test_annotations_that_nobody_can_read_say_nothing():
    tx = of.inject_hyperparams(future.unknown)(rate=2)
    assert {name: x.dtype for name, x in hyperparams(tx).items()} == dict.fromkeys(
        ("rate", "momentum", "anything"), torch.float64
    )


def test_stacks_read_annotations_that_are_strings():
    stack = of.stacked(future.recorded, rate=torch.tensor([1.0, 2.0]), periods=2)
    models = torch.ones(2, 3)
    assert stack.update(models, stack.init(models))[0][:, 0].tolist() == [1.0, 4.0]
    with pytest.raises(TypeError, match="periods must be the same for all members"):
        of.stacked(future.recorded, rate=1.0, periods=torch.tensor([1, 2]))


def test_a_whole_number_for_an_argument_without_annotation_is_a_number():
    def descent(learning_rate, momentum=0):
        return of.chain(of.trace(momentum), of.scale(-learning_rate))

    tx = of.inject_hyperparams(descent)(learning_rate=1)
    state = tx.init(torch.ones(1))
    assert {x.dtype for x in state.hyperparams.values()} == {torch.float64}
    state.hyperparams["learning_rate"].fill_(0.5)
    assert tx.update(torch.ones(1), state)[0].item() == -0.5


def test_numbers_of_numpy_are_live():
    tx = of.inject_hyperparams(of.sgd)(np.float32(0.5), momentum=np.array(0.5))
    assert hyperparams(tx) == {"learning_rate": 0.5, "momentum": 0.5}
    assert tx == of.inject_hyperparams(of.sgd)(0.5, momentum=0.5)


VALUES = {
    "float": 0.25,
    "int": 1,
    "numpy": np.float32(0.25),
    "array": np.array(0.25),
    "float32": torch.tensor(0.25),
    "float64": torch.tensor(0.25, dtype=torch.float64),
    "bfloat16": torch.tensor(0.25, dtype=torch.bfloat16),
    "int64": torch.tensor(1),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("in_place", [True, False], ids=["in the dict", "in another state"])
@pytest.mark.parametrize("backend", ["auto", "fused", "eager"])
@pytest.mark.parametrize(
    "wrap", [lambda tx: tx, lambda tx: of.chain(of.clip(1.0), of.masked(tx, True))], ids=["alone", "deep"]
)
def test_what_is_put_in_place_of_a_value_works_in_donating_steps_as_in_pure_ones(name, in_place, backend, wrap):
    tx = wrap(of.inject_hyperparams(of.adamw)(learning_rate=1.0, weight_decay=0.5))
    params, runs = plain_params(), []
    gradients = [like(params) for _ in range(5)]
    for donate in (False, True):
        p = of.tree.map(torch.clone, params)
        state, step = tx.init(p), of.make_step(tx, donate=donate, backend=backend)
        for number, grads in enumerate(gradients):
            if number == 2 and in_place:
                of.tree.get(state, "hyperparams")["learning_rate"] = VALUES[name]
            elif number == 2:
                state = of.tree.set(state, learning_rate=VALUES[name])
            p, state = step(p, state, grads)
            assert all(isinstance(x, torch.Tensor) for x in of.tree.leaves(state))
        runs.append((p, state))
    assert_trees_equal(*runs)
    want = wrap(of.inject_hyperparams(of.adamw)(learning_rate=1.0, weight_decay=0.5))
    p, state = params, want.init(params)
    for number, grads in enumerate(gradients):
        if number == 2:
            state = of.tree.set(state, learning_rate=torch.tensor(float(VALUES[name]), dtype=torch.float64))
        updates, state = want.update(grads, state, p)
        p = of.apply_updates(p, updates)
    assert_trees_equal(runs[1][0], p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "value", [0.25, 1, np.float32(0.25), torch.tensor([0.25, 0.5]), torch.tensor([0.25, 0.5]).double()]
)
def test_what_is_put_in_place_of_the_values_of_a_stack(value):
    tx = of.stacked(of.sgd, learning_rate=torch.tensor([1.0, 2.0]), momentum=0.5)
    runs = []
    for donate in (False, True):
        params = torch.zeros(2, 3)
        state, step = tx.init(params), of.make_step(tx, donate=donate)
        params, state = step(params, state, torch.ones(2, 3))
        of.tree.get(state, "hyperparams")["learning_rate"] = value
        for _ in range(2):
            params, state = step(params, state, torch.ones(2, 3))
        runs.append(params)
    rates = torch.as_tensor(value).expand(2).float()
    assert_trees_equal(runs[0], -(torch.tensor([1.0, 2.0]) + (1.5 + 1.75) * rates).unsqueeze(1).expand(2, 3), rtol=1e-6)
    assert_trees_equal(*runs)


def test_what_is_no_number_is_named():
    tx = of.inject_hyperparams(of.sgd)(learning_rate=1.0)
    for wrong in (torch.ones(1), "0.1", None, [0.5]):
        state = tx.init(torch.ones(1))
        state.hyperparams["learning_rate"] = wrong
        with pytest.raises((TypeError, ValueError), match=r"hyperparams\['learning_rate'\] must be a number"):
            tx.update(torch.ones(1), state)


def test_a_count_that_became_a_number_works_in_donating_steps():
    tx, params = of.adam(0.1), torch.ones(2)
    state = of.tree.set(tx.init(params), count=7)
    want, _ = of.make_step(tx, backend="eager")(params.clone(), state, torch.ones(2))
    for backend in ("auto", "eager"):
        own = of.tree.map(lambda x: x if isinstance(x, int) else x.clone(), state)
        got, after = of.make_step(tx, donate=True, backend=backend)(params.clone(), own, torch.ones(2))
        assert_trees_equal(got, want)
        assert of.tree.get(after, "count") == 8
