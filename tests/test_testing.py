"""`of.testing.check`: rules of this package pass, and for each law a rule that breaks it is told so."""

import pytest
import torch

import optimfn as of

RULES = [
    of.adamw(1e-3),
    of.chain(of.clip_by_global_norm(1.0), of.sgd(0.1, momentum=0.9)),
    of.lion(1e-3),
    of.schedule_free(of.sgd(0.1), 0.1),
    of.masked(of.adam(1e-3), of.tree.is_matrix),
]


@pytest.mark.parametrize("tx", RULES, ids=repr)
def test_own_rules_pass(tx):
    of.testing.check(tx)
    of.testing.check(tx, [torch.randn(4, 3), torch.randn(5)], rtol=1e-4)


def rule(update, init=lambda params: of.EmptyState()):
    return of.GradientTransformation(init, update)


def writes(updates, state, params=None, **extra):
    return of.tree.map(lambda u: u.mul_(2.0), updates), state


def grows(updates, state, params=None, **extra):
    return updates, (*state, torch.ones(()))


def fills_in(updates, state, params=None, **extra):
    return of.tree.map(lambda p: torch.ones_like(p), params), state


def reads(updates, state, params=None, **extra):
    return of.tree.map(lambda u: u * float(u.sum()), updates), state


def counts_in_python(updates, state, params=None, **extra):
    return of.tree.scale(1.0 / (state["n"] + 1), updates), {"n": state["n"] + 1}


def widens(updates, state, params=None, **extra):
    return of.tree.map(lambda u: u.double(), updates), state


def shares(updates, state, params=None, **extra):
    return of.tree.scale(1.0 / (1.0 + of.tree.norm(updates)), updates), state


def takes_nothing_else(updates, state, params=None):
    return updates, state


BROKEN = {
    "pure: update has written to updates": rule(writes),
    "form: the new state has another structure": rule(grows, lambda params: ()),
    "form: the tree of updates has .*float64": rule(widens),
    r"extra: give update a parameter \*\*extra": rule(takes_nothing_else),
    "promises: it says that it is leafwise": of.GradientTransformation(
        lambda params: of.EmptyState(), shares, leafwise=True
    ),
    "absent: .* has an update without a gradient": rule(fills_in),
    "vmap: raises": rule(reads),
    "resume: a state must hold tensors": rule(counts_in_python, lambda params: {"n": 0}),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_rule_that_breaks_a_law_is_told_so(words):
    law = words.partition(":")[0]
    others = [name for name in of.testing.LAWS if name != law]
    with pytest.raises(AssertionError, match=words):
        of.testing.check(BROKEN[words], exempt=others)
    of.testing.check(BROKEN[words], exempt=list(of.testing.LAWS))


def test_laws_are_known_by_name():
    with pytest.raises(ValueError, match=r"exempt must be one of 'pure'.*got 'purity'"):
        of.testing.check(of.sgd(0.1), exempt=["purity"])
    with pytest.raises(TypeError, match=r"call adam\("):
        of.testing.check(of.adam)


def test_extra_arguments_reach_the_rule():
    of.testing.check(of.chain(of.sgd(0.1), of.plateau(patience=1)), value=torch.tensor(1.0), exempt=["value"])
