"""Everybody's mistakes: none passes in silence, and the message says what was meant; see `mistakes`."""

import re

import mistakes
import pytest

import optimfn as of

RAISED = [*mistakes.CONSTRUCTION.items(), *mistakes.TREES.items(), *mistakes.STATEFUL.items()]
INSIDE = (
    "'builtin_function",
    "object has no attribute",
    "object is not",
    "unsupported operand",
    "not supported between",
)


@pytest.mark.parametrize(("make", "words"), [(make, words) for _, (make, *words) in RAISED], ids=[x for x, _ in RAISED])
def test_an_error_says_what_was_meant(make, words):
    with pytest.raises((TypeError, ValueError, KeyError)) as found:
        make()
    said = str(found.value)
    for word in words:
        assert re.search(word, said), f"{word!r} is not in: {said}"
    assert not any(word in said for word in INSIDE)
    assert len(said) < 600


@pytest.mark.parametrize("name", mistakes.NAMES)
def test_a_name_of_others_says_what_it_is_here(name):
    assert not hasattr(of, name)
    with pytest.raises(AttributeError, match=f"'{name}'.*{mistakes.NAMES[name]}"):
        getattr(of, name)


@pytest.mark.parametrize("name", mistakes.ATTRIBUTES)
def test_an_attribute_that_is_not_there_says_what_is(name):
    value, words = mistakes.ATTRIBUTES[name]
    assert not hasattr(value, name)
    with pytest.raises(AttributeError, match=f"no attribute '{name}'.*{words}" if words != "no attribute" else words):
        getattr(value, name)


@pytest.mark.parametrize(
    ("make", "words"), [(make, words) for make, *words in mistakes.WARNED.values()], ids=list(mistakes.WARNED)
)
def test_what_would_pass_in_silence_warns(make, words):
    with pytest.warns(UserWarning, match=words[0]) as found:
        make()
    said = " ".join(str(one.message) for one in found)
    assert all(re.search(word, said) for word in words), said


def test_parts_of_a_tree_are_not_judged():
    """What matches some parameter is right, wherever a rule then sees only some of them."""
    params = mistakes.trees()
    inner = of.adamw(1e-3, mask=of.tree.mask_by_path("^w$"))
    for tx in (of.partition({"a": inner, "b": inner}, {"w": "a", "b": "b"}), of.per_leaf(inner)):
        mistakes.update(tx, params)
        of.describe(tx, params)
    model = mistakes.linear()
    tx = of.adamw(1e-3, mask=of.tree.mask_by_path("weight"))
    mistakes.stepped(of.Optimizer([{"params": [pair]} for pair in model.named_parameters()], tx), model)
