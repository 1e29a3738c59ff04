"""What `partition` and `apply_if_finite` do beyond the laws."""

import pytest
import torch

import optimfn as of

NAN = float("nan")


def params():
    return {"body": {"weight": torch.ones(2, 3), "bias": torch.ones(3)}, "head": torch.full((3,), 2.0)}


def test_each_rule_sees_its_leaves_alone():
    tx = of.partition(
        {"clipped": of.chain(of.clip_by_global_norm(1.0), of.scale(-1.0)), "free": of.scale(-1.0)},
        {"body": "clipped", "head": "free"},
    )
    p = params()
    updates, _ = tx.update(p, tx.init(p), p)
    norm = torch.tensor(9.0).sqrt()  # of the body alone
    assert torch.allclose(updates["body"]["weight"], -p["body"]["weight"] / norm)
    assert torch.equal(updates["head"], -p["head"])


def test_states_hold_nothing_of_other_leaves():
    labels = of.tree.label_by_path({"^body": "adam"}, default="none")
    state = of.partition({"adam": of.scale_by_adam(), "none": of.set_to_zero(), "unused": of.trace(0.9)}, labels).init(
        params()
    )
    assert list(of.state_dict(state)) == [
        "inner_states.adam.inner_state.count",
        "inner_states.adam.inner_state.mu.body.bias",
        "inner_states.adam.inner_state.mu.body.weight",
        "inner_states.adam.inner_state.nu.body.bias",
        "inner_states.adam.inner_state.nu.body.weight",
    ]


def test_an_unknown_label_names_the_leaf():
    tx = of.partition({"a": of.sgd(0.1), "b": of.sgd(0.2)}, {"body": "a", "head": "c"})
    with pytest.raises(ValueError, match="head has the label 'c', transforms has only 'a', 'b'"):
        tx.init(params())


@pytest.mark.parametrize(
    "make",
    [
        lambda marks: of.masked(of.sgd(1.0), marks),
        lambda marks: of.freeze(marks),
        lambda marks: of.selective_transform(of.sgd(1.0), freeze_mask=marks),
        lambda marks: of.partition({True: of.sgd(1.0)}, marks),
    ],
)
@pytest.mark.parametrize("marks", [None, {"a": True, "b": None}, lambda params: None])
def test_a_leaf_without_mark_or_label_does_not_lose_its_update_in_silence(make, marks):
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(ValueError, match="must have a value for every leaf"):
        make(marks).init(params)
    absent = {"a": torch.ones(2), "b": None}
    tx = make({"a": True, "b": None})
    assert tx.update(absent, tx.init(absent))[0]["b"] is None


def test_partitions_nest():
    inner = of.partition({"w": of.scale(2.0), "b": of.scale(3.0)}, of.tree.label_by_path({"bias": "b"}, default="w"))
    tx = of.partition({"in": inner, "out": of.scale(5.0)}, of.tree.label_by_path({"head": "out"}, default="in"))
    p = params()
    updates, _ = tx.update(p, tx.init(p))
    assert updates["body"]["weight"].unique().item() == 2.0
    assert updates["body"]["bias"].unique().item() == 3.0
    assert updates["head"].unique().item() == 10.0


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_steps_that_are_not_finite_leave_no_trace(bad):
    tx, plain = of.apply_if_finite(of.adam(0.1), 2), of.adam(0.1)
    good = {"a": torch.ones(2), "b": torch.ones(1)}
    poisoned = {"a": torch.tensor([1.0, bad]), "b": torch.ones(1)}
    state, reference = tx.init(good), plain.init(good)
    for grads in (good, poisoned, good, poisoned, poisoned, good):
        updates, state = tx.update(grads, state)
        if grads is good:
            wanted, reference = plain.update(grads, reference)
        else:
            wanted = of.tree.zeros_like(good)
        assert of.tree.allclose(updates, wanted, rtol=0, atol=0)
    assert (state.notfinite_count.item(), state.total_notfinite.item(), state.last_finite.item()) == (0, 3, True)


def test_after_enough_bad_steps_one_is_let_through_and_the_counting_begins_anew():
    tx = of.apply_if_finite(of.sgd(1.0), 2)
    state, passed = tx.init(torch.ones(1)), []
    for _ in range(7):
        updates, state = tx.update(torch.tensor([NAN]), state)
        passed.append(bool(updates.isnan()))
    assert passed == [False, False, True, False, False, True, False]
