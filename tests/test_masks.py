"""Masks and labels: what counts as a tree of them, and what happens when they change."""

import warnings
from typing import NamedTuple

import optree
import pytest
import torch
from helpers import assert_trees_equal, like

import optimfn as of


@optree.register_pytree_node_class(namespace=optree.registry.__GLOBAL_NAMESPACE)
class Affine:
    """A node that can be called, as modules are."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def __call__(self, x):
        return x @ self.weight + self.bias

    def __tree_flatten__(self):
        return (self.weight, self.bias), None, ("weight", "bias")

    @classmethod
    def __tree_unflatten__(cls, metadata, children):
        return cls(*children)


MASKED = {
    "masked": lambda mask: of.masked(of.adam(1.0), mask),
    "selective_transform": lambda mask: of.selective_transform(
        of.adam(1.0), freeze_mask=of.tree.map(lambda keep: not keep, mask)
    ),
    "freeze": lambda mask: of.freeze(of.tree.map(lambda keep: not keep, mask)),
    "partition": lambda mask: of.partition({True: of.adam(1.0), False: of.set_to_zero()}, mask),
    "add_decayed_weights": lambda mask: of.add_decayed_weights(0.1, mask),
    "adamw": lambda mask: of.adamw(1.0, weight_decay=0.1, mask=mask),
    "lars": lambda mask: of.lars(1.0, trust_ratio_mask=mask, weight_decay_mask=mask),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_tree_of_a_class_that_can_be_called_is_a_tree(name):
    params = Affine(torch.randn(3, 2), torch.randn(2))
    as_node, as_function = MASKED[name](Affine(True, False)), of.tree.is_matrix
    grads = like(params)
    updates, state = as_node.update(grads, as_node.init(params), params)
    assert type(updates) is Affine
    if name not in ("selective_transform", "freeze"):
        want = MASKED[name](as_function)
        assert_trees_equal(updates, want.update(grads, want.init(params), params)[0])
    step = of.make_step(as_node, backend="eager")
    assert_trees_equal(step(params, state, grads)[0], of.apply_updates(params, as_node.update(grads, state, params)[0]))


def test_a_prefix_may_be_a_node_that_can_be_called():
    params = {"layer": Affine([torch.ones(1), torch.ones(2)], torch.ones(1))}
    mask = of.tree.resolve_mask({"layer": Affine(True, False)}, params)
    assert (mask["layer"].weight, mask["layer"].bias) == ([True, True], False)


@pytest.mark.parametrize("mask", [{"a": True, "b": None}, {"a": True, "b": {"x": None, "y": False}}, True])
@pytest.mark.parametrize("make", [MASKED["masked"], MASKED["partition"], MASKED["freeze"], MASKED["adamw"]])
def test_a_subtree_without_leaves_keeps_its_structure(make, mask):
    if make is MASKED["freeze"] and mask is not True:
        mask = {**mask, "a": True}
    params = {"a": torch.ones(2), "b": {"x": None, "y": None}}
    tx = make(mask)
    updates, state = tx.update(params, tx.init(params), params)
    assert of.tree.structure(updates) == of.tree.structure(params)
    assert of.tree.structure(tx.update(updates, state, params)[0]) == of.tree.structure(params)


def with_mask(rule):
    return lambda chosen: of.chain(of.clip_by_global_norm(1.0), of.masked(rule, chosen))


def with_labels(rule):
    return lambda chosen: of.partition(
        {"trained": rule, "frozen": of.set_to_zero()},
        of.tree.map(lambda keep: "trained" if keep else "frozen", chosen),
    )


def within(rule):
    """The mask that changes is inside another, which does not."""
    return lambda chosen: of.masked(of.masked(rule, chosen), True)


RULES = [of.adamw(0.1), of.trace(0.9), of.rmsprop(0.1, momentum=0.9), of.adafactor(0.1), of.lion(0.1), of.sm3(0.1)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.recipe.factory.__name__)
@pytest.mark.parametrize("make", [with_mask, with_labels, within], ids=lambda make: make.__name__)
@pytest.mark.parametrize("unfreeze", [True, False])
@pytest.mark.parametrize("backend", [None, "eager", "auto"])
def test_a_changed_mask_against_an_old_state_names_the_leaf(rule, make, unfreeze, backend):
    params = {"head": {"weight": torch.randn(3, 2)}, "body": [torch.randn(2), torch.randn(3)]}
    few = {"head": True, "body": [True, False]}
    old, new = (make(rule)(mask) for mask in ((few, True) if unfreeze else (True, few)))
    if unfreeze:
        new = make(rule)({"head": True, "body": [True, True]})
    else:
        old = make(rule)({"head": True, "body": [True, True]})
    state = old.update(like(params), old.init(params), params)[1]
    verb = "choose" if unfreeze or make is with_labels else "do not choose"
    step = (
        of.make_step(new, backend=backend) if backend else lambda params, state, grads: new.update(grads, state, params)
    )
    with pytest.raises(ValueError, match=rf"{verb} body\.1\b.*strict=False"):
        step(params, state, like(params))


def test_other_labels_than_those_of_the_state_are_named():
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    old, new = (of.partition({"x": of.adam(0.1), z: of.sgd(0.1)}, {"a": "x", "b": z}) for z in ("y", "z"))
    with pytest.raises(ValueError, match=r"the state has parts for 'x', 'y', transforms has 'x', 'z'.*strict=False"):
        new.update(params, old.init(params), params)


def test_unfreezing_keeps_what_fits():
    params = {"head": torch.randn(3), "body": torch.randn(2)}
    frozen, trained = (of.masked(of.adam(0.1), {"head": True, "body": body}) for body in (False, True))
    state = frozen.update(like(params), frozen.init(params), params)[1]
    state = of.load_state_dict(trained.init(params), of.state_dict(state), strict=False)
    adam = of.tree.get(state, "ScaleByAdamState")
    assert adam.count == 1
    assert adam.mu["head"].abs().sum() > 0
    assert adam.mu["body"].abs().sum() == 0
    trained.update(like(params), state, params)


def test_what_fails_for_another_reason_is_not_blamed_on_the_mask():
    def fail(updates, params):
        raise RuntimeError("its own")

    tx = of.masked(of.chain(of.masked(of.trace(0.9), {"a": True, "b": False}), of.stateless(fail)), True)
    params = {"a": torch.ones(1), "b": torch.ones(1)}
    with pytest.raises(RuntimeError, match="its own"):
        tx.update(params, tx.init(params))


def test_what_is_no_bool_is_named_with_its_leaf():
    with pytest.raises(TypeError, match=r"mask must hold Python bools.*got 'yes' at head\.0"):
        of.tree.resolve_mask({"head": ["yes"]}, {"head": [torch.ones(1)]})


def test_steps_whose_masks_change_with_their_states_run_kernels():
    marked = {"a": True, "b": True}
    tx = of.masked(of.sgd(0.1, 0.9), lambda params: dict(marked))
    params, grads = ({name: torch.full((3,), x) for name in marked} for x in (1.0, 2.0))
    step = of.make_step(tx)
    for marked["b"] in (True, False, True, False):
        again = of.make_step(tx)  # which shares what the other has traced
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one that runs eagerly says so
            for own in (step, again):
                state = tx.init(params)
                new, _ = own(params, state, grads)
                assert_trees_equal(new, of.make_step(tx, backend="eager")(params, state, grads)[0], rtol=1e-6)
                assert own.explain().startswith("fused")


class Scaled(NamedTuple):
    """A named tuple with a field that is no child."""

    weight: torch.Tensor
    factor: float


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that named tuples have children anyway
    optree.register_pytree_node(
        Scaled,
        lambda x: ((x.weight,), x.factor, ("weight",)),
        lambda factor, children: Scaled(children[0], factor),
        namespace=optree.registry.__GLOBAL_NAMESPACE,
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_named_tuples_that_are_registered_have_the_children_that_were_registered(compiled):
    tree = {"b": Scaled(torch.ones(2), 3.0), "a": [torch.zeros(1), (None, torch.ones(1))]}

    def use(tree):
        doubled = of.tree.scale(2.0, tree)
        return doubled, of.tree.leaves(doubled), of.tree.unflatten(tree, of.tree.leaves(doubled))

    doubled, leaves, again = torch.compile(use, fullgraph=True, backend="eager")(tree) if compiled else use(tree)
    assert doubled["b"].factor == again["b"].factor == 3.0
    assert [x.tolist() for x in leaves] == [[0.0], [2.0], [2.0, 2.0]]
    assert torch.equal(again["b"].weight, doubled["b"].weight)
    assert again["a"][1][0] is None
