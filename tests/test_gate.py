"""What may come in: trees of tensors, with gradients in the shapes of their parameters. Everything else is named."""

import collections
import dataclasses
import re

import numpy as np
import pytest
import torch
from case import Case
from cases import CASES
from helpers import assert_trees_equal, like, plain_params

import optimfn as of

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@dataclasses.dataclass
class Unknown:
    """A class that optree does not know."""

    weight: object


class Gradients(collections.UserDict):
    """A mapping that is no dict."""


class Nested(collections.UserDict):
    """A mapping as those of tensordict, which have `to_dict`."""

    to_dict = dict


torch.utils._pytree.register_pytree_node(
    Nested,
    lambda node: (list(node.values()), list(node)),
    lambda children, keys: Nested(zip(keys, children, strict=True)),
)
WRONG = {
    "generator": (lambda: torch.nn.Linear(2, 2).parameters(), "got generator.*named_parameters"),
    "pairs": (lambda: torch.nn.Linear(2, 2).named_parameters(), "got generator.*named_parameters"),
    "values": (lambda: {"a": torch.ones(2)}.values(), "got dict_values.*list"),
    "module": (lambda: torch.nn.Linear(2, 2), "got torch.nn.modules.linear.Linear.*named_parameters"),
    "parameters": (lambda: torch.nn.ParameterDict({"a": torch.ones(2)}), "got .*ParameterDict.*named_parameters"),
    "float": (lambda: 1.5, r"got float \(1\.5\).*as_tensor"),
    "bool": (lambda: True, r"got bool \(True\).*as_tensor"),
    "array": (lambda: np.ones(2), "got numpy.ndarray.*as_tensor"),
    "scalar": (lambda: np.float32(2), "got numpy.float32.*as_tensor"),
    "string": (lambda: "weight", r"got str \('weight'\).*leave it out"),
    "function": (lambda: torch.relu, "got builtin_function_or_method.*leave it out"),
    "dataclass": (lambda: Unknown(torch.ones(2)), "got .*Unknown.*optimfn.tree.register"),
    "mapping": (lambda: Gradients(a=torch.ones(2)), r"got .*Gradients.*dict\(\.\.\.\) of it"),
    "of torch's pytree": (lambda: Nested(a=torch.ones(2)), r"got .*Nested.*to_dict\(\).*optimfn.tree.register"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("place", ["", ".body", ".body.0"])
def test_what_is_no_tensor_is_named_with_its_path(name, place):
    make, words = WRONG[name]
    inside = {"": lambda x: x, ".body": lambda x: {"body": x}, ".body.0": lambda x: {"body": [x]}}[place]
    tx, params = of.adamw(0.1), inside(torch.ones(2))
    kind = "a tree of tensors" if not place else "a tensor"
    with pytest.raises(TypeError, match=rf"^params{re.escape(place)} must be {kind}, {words}"):
        tx.init(inside(make()))
    state = tx.init(params)
    with pytest.raises(TypeError, match=rf"^updates{re.escape(place)} must be {kind}, {words}"):
        tx.update(inside(make()), state, params)
    with pytest.raises(TypeError, match=rf"^params{re.escape(place)} must be {kind}, {words}"):
        tx.update(params, state, inside(make()))
    for donate in (False, True):
        for backend in ("auto", "eager", "fused"):
            step = of.make_step(tx, donate=donate, backend=backend)
            with pytest.raises(TypeError, match=rf"^(grads|updates){re.escape(place)} must be {kind}, {words}"):
                step(params, state, inside(make()))
            with pytest.raises(TypeError, match=rf"^params{re.escape(place)} must be {kind}, {words}"):
                step(inside(make()), state, params)


@every
def test_init_and_update_name_what_is_no_tensor(case: Case):
    tx, params = case.tx(), plain_params()
    with pytest.raises(TypeError, match=r"^params\.b must be a tensor, got numpy"):
        tx.init({**params, "b": np.ones(5)})
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"^updates\.b must be a tensor, got numpy"):
        tx.update({**params, "b": np.ones(5)}, state, params)
    with pytest.raises(TypeError, match=r"^params\.b must be a tensor, got numpy"):
        tx.update(params, state, {**params, "b": np.ones(5)})


SHAPES = [(5, 1), (1,), (), (4,), (1, 5), (5, 5), (2, 5)]  # the last three may be the gradients of many examples
SEARCHES = [case.name for case in CASES if "search" in case.name or "minimize" in case.name]  # with a loss of their own


@every
def test_a_gradient_of_another_shape_is_an_error_that_names_the_leaf(case: Case):
    tx, params = case.tx(), plain_params()
    state = tx.init(params)
    for shape in SHAPES:
        grads = {**like(params), "b": torch.randn(shape, dtype=torch.float64)}
        if shape[1:] == (5,) and case.name in SEARCHES:
            continue
        with pytest.raises(ValueError, match=rf"of b has shape {re.escape(str(shape))} and its parameter \(5,\)"):
            tx.update(grads, state, params)


@every
def test_a_gradient_of_another_shape_meets_no_parameter(case: Case):
    if case.needs_params or case.extra:
        pytest.skip("an update wants the parameters")
    tx, params = case.tx(), plain_params()
    for shape in SHAPES:
        grads = {**like(params), "b": torch.randn(shape, dtype=torch.float64)}
        with pytest.raises((ValueError, RuntimeError)):
            of.apply_updates(params, tx.update(grads, tx.init(params))[0])


@pytest.mark.parametrize("backend", ["auto", "eager", "fused"])
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    "tx", [of.sgd(0.1), of.adamw(0.1), of.chain(of.clip_by_global_norm(1.0), of.lion(0.1))], ids=repr
)
def test_a_step_with_gradients_of_another_shape_writes_nothing(tx, donate, backend):
    params = {"a": torch.randn(3), "b": torch.randn(4, 2)}
    state = tx.init(params)
    step = of.make_step(tx, donate=donate, backend=backend)
    for first in (False, True):  # before and after the step has learnt the right shapes
        before = of.tree.map(torch.clone, (params, state))
        for shape in [(3, 1), (1,), (), (3, 3)]:
            with pytest.raises(ValueError, match=rf"of a has shape {re.escape(str(shape))} and its parameter \(3,\)"):
                step(params, state, {"a": torch.ones(shape), "b": torch.ones(4, 2)})
        assert_trees_equal((params, state), before)
        if not first:
            params, state = step(params, state, like(params))


def test_apply_updates_broadcasts_nothing():
    for shape in [(3, 1), (1,), (), (2, 3)]:
        with pytest.raises(ValueError, match=rf"of w\.0 has shape {re.escape(str(shape))} and its parameter \(3,\)"):
            of.apply_updates({"w": [torch.ones(3)]}, {"w": [torch.ones(shape)]})
        with pytest.raises(ValueError, match="of w has shape"):
            of.apply_updates({"w": torch.ones(3), "b": None}, {"w": torch.ones(shape), "b": {}})
    with pytest.raises(TypeError, match=r"params\.w must be a tensor, got float"):
        of.apply_updates({"w": 1.0}, {"w": torch.ones(())})
    with pytest.raises(TypeError, match=r"updates\.w must be a tensor, got float"):
        of.apply_updates({"w": torch.ones(())}, {"w": 1.0})


@of.factory
def averaged_examples():
    """A rule whose gradients have a first axis of examples."""
    return of.stateless(lambda updates, params: of.per_example_global_norm_clip(updates, 1.0)[0])


def test_gradients_of_many_examples_pass_to_a_rule_that_makes_one_of_them():
    tx = of.chain(averaged_examples(), of.adamw(0.1))
    params = plain_params()
    grads = of.tree.map(lambda p: torch.randn(7, *p.shape, dtype=p.dtype), params)
    state = tx.init(params)
    updates, _ = tx.update(grads, state, params)
    assert of.tree.map(lambda u: u.shape, updates) == of.tree.map(lambda p: p.shape, params)
    sgd = of.chain(averaged_examples(), of.sgd(0.1, momentum=0.9))
    sgd.update(grads, sgd.init(params))
    of.make_step(tx)(params, state, grads)
    with pytest.raises(ValueError, match="of a has shape"):
        of.adamw(0.1).update(grads, state[1], params)


def test_stacks_and_vmap_have_an_axis_that_the_gate_does_not_see():
    tx, params = of.adamw(0.1), plain_params()
    stack = of.tree.map(lambda p: torch.stack([p, p]), params)
    states = torch.func.vmap(tx.init)(stack)
    updates, _ = torch.func.vmap(tx.update, in_dims=(0, 0, None))(stack, states, params)
    assert updates["a"].shape == (2, 4, 3)
    stacked = of.stacked(tx)
    stacked.update(stack, stacked.init(stack), stack)


def test_hand_made_rules_have_the_gate_and_pickle():
    tx = of.GradientTransformation(lambda params: (), lambda updates, state, params=None, **extra: (updates, state))
    with pytest.raises(TypeError, match="params must be a tree of tensors, got float"):
        tx.init(1.0)
    assert dataclasses.replace(tx).update is tx.update


class TestRegister:
    def test_a_dataclass_is_a_tree_everywhere(self):
        @of.tree.register
        @dataclasses.dataclass(frozen=True)
        class Line:
            slope: object
            offset: object
            name: str = dataclasses.field(default="", metadata={"static": True})

        params = Line(torch.randn(3, 2), torch.randn(2), "line")
        tx = of.adamw(0.1, mask=Line(True, False, "line"))
        state = tx.init(params)
        assert list(of.state_dict(state)) == ["0.count", "0.mu.slope", "0.mu.offset", "0.nu.slope", "0.nu.offset"]
        grads = like(params)
        updates, _ = tx.update(grads, state, params)
        want = of.apply_updates(params, updates)
        assert (type(want), want.name) == (Line, "line")
        for donate in (False, True):
            got, _ = of.make_step(tx, donate=donate)(params, tx.init(params), grads)
            assert_trees_equal(got, want, rtol=1e-6)

    def test_other_classes_bring_their_functions(self):
        class Box:
            def __init__(self, *inside):
                self.inside = inside

        of.tree.register(Box, lambda box: (box.inside, None, None), lambda _, inside: Box(*inside))
        assert of.tree.size(Box(torch.ones(2), [torch.ones(3)])) == 5
        with pytest.raises(ValueError, match="registered"):
            of.tree.register(Box, lambda box: (box.inside, None, None), lambda _, inside: Box(*inside))

    def test_what_is_no_dataclass_needs_functions(self):
        with pytest.raises(TypeError, match="register needs flatten and unflatten"):
            of.tree.register(Nested)
