"""What the factory decorator gives, beyond the laws."""

import copy
import pickle

import pytest
import torch

import optimfn as of
from optimfn._recipe import find_arguments, substitute


def test_repr_of_a_chain_is_broken_over_lines():
    tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3, mask=of.tree.is_matrix))
    lines = repr(tx).splitlines()
    assert lines[0] == "chain("
    assert lines[1] == "    clip_by_global_norm(max_norm=1.0),"
    assert lines[-1] == ")"
    assert "mask=is_matrix" in lines[2]


def test_short_chains_stay_on_a_line():
    assert repr(of.chain(of.clip(1.0), of.scale(2.0))) == "chain(clip(max_delta=1.0), scale(step_size=2.0))"


def test_replace_makes_the_value_again():
    assert of.adam(1e-3).replace(b1=0.5, learning_rate=0.1) == of.adam(0.1, b1=0.5)


def test_replace_refuses_unknown_names_and_hand_made_values():
    with pytest.raises(TypeError, match="adam has no argument 'beta1'; it has learning_rate, b1"):
        of.adam(1e-3).replace(beta1=0.5)
    by_hand = of.GradientTransformation(*of.identity())
    with pytest.raises(TypeError, match="was not made by a factory"):
        by_hand.replace(b1=0.5)


def test_replace_checks_the_new_arguments():
    with pytest.raises(ValueError, match="b1"):
        of.adam(1e-3).replace(b1=2.0)


def test_hand_made_values_are_equal_only_to_themselves():
    first, second = (of.GradientTransformation(*of.identity()) for _ in range(2))
    assert first == first
    assert first != second
    assert first != of.identity()
    assert hash(first) != hash(second)
    assert first.arguments == {}
    assert "GradientTransformation" in repr(first)
    assert copy.deepcopy(first).update is first.update


def test_equality_looks_at_factories_values_and_tensors():
    assert of.trace(0.9) != of.ema(0.9)
    assert of.scale(1) == of.scale(1.0)
    assert of.scale(torch.tensor(1.0)) == of.scale(torch.tensor(1.0))
    assert of.scale(torch.tensor(1.0)) != of.scale(torch.tensor(2.0))
    assert of.scale(torch.tensor(1.0)) != of.scale(torch.tensor(1.0, dtype=torch.float64))
    assert of.scale(torch.tensor(1.0)) != of.scale(1.0)
    assert of.chain(of.trace(0.9)) != of.chain(of.trace(0.9), of.identity())
    assert of.identity() != "identity()"
    assert of.trace(0.9, False) != of.trace(0.9, True)


def test_immutable():
    tx = of.adam(1e-3)
    with pytest.raises(AttributeError):
        tx.update = None


def test_unpacks_as_a_pair():
    tx = of.adam(1e-3)
    init, update = tx
    assert init is tx.init
    assert update is tx.update


def test_a_deep_copy_has_its_own_tensors_and_a_pickle_keeps_their_values():
    rate = torch.tensor(0.1, dtype=torch.float64)
    tx = of.sgd(rate)
    twin, thawed = copy.deepcopy(tx), pickle.loads(pickle.dumps(tx))
    rate.fill_(5.0)
    for other in (twin, thawed):
        assert other.arguments["learning_rate"].item() == pytest.approx(0.1)
        updates, _ = other.update(torch.ones(1), other.init(torch.ones(1)))
        assert updates.item() == pytest.approx(-0.1)


def test_a_factory_must_return_something_to_record():
    @of.factory
    def broken():
        return 3

    with pytest.raises(TypeError, match="broken must return a transformation or a function, got 3"):
        broken()


def test_arguments_are_found_and_substituted_at_any_depth():
    tx = of.named_chain(("clip", of.clip(1.0)), ("rule", of.chain(of.identity(), of.masked(of.sgd(0.1), True))))
    assert list(find_arguments(tx, "learning_rate")) == [0.1]
    assert list(find_arguments(substitute(tx, "learning_rate", 0.5), "learning_rate")) == [0.5]
    assert substitute(tx, "learning_rate", 0.1) == tx
    assert substitute(tx, "no_such_name", 0.1) == tx
