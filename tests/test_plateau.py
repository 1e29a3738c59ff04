"""`plateau` and `detect_plateau` beside torch's scheduler, and Heat's test vectors."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from helpers import assert_trees_equal
from hypothesis import given
from hypothesis import strategies as st

import optimfn as of

metrics = st.lists(
    st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, 1.0, 1.5, math.nan, math.inf, -math.inf])), max_size=40
)


def scales(tx, values):
    """The scale on the update of every step."""
    state, seen = tx.init(torch.ones(1, dtype=torch.float64)), []
    for value in values:
        update, state = tx.update(torch.ones(1, dtype=torch.float64), state, value=value)
        seen.append(update.item())
        assert state.scale == update
    return seen, state


def reduce_on_plateau(values, **kwargs):
    """The same from torch: the learning rate begins at 1, and `eps=0` lets every reduction through."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **kwargs)
    seen = []
    for value in values:
        scheduler.step(value)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen, scheduler


@pytest.mark.parametrize("threshold_mode", ["torch", "abs"])
@pytest.mark.parametrize("mode", ["min", "max"])
@given(
    values=metrics,
    factor=st.floats(0.0, 0.99),
    patience=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
    cooldown=st.integers(0, 3),
    min_scale=st.sampled_from([0.0, 0.01, 0.5]),
)
def test_equals_torch_on_any_metric(mode, threshold_mode, values, factor, patience, threshold, cooldown, min_scale):
    same = {
        "mode": mode,
        "factor": factor,
        "patience": patience,
        "threshold": threshold,
        "threshold_mode": threshold_mode,
        "cooldown": cooldown,
    }
    theirs = {**same, "threshold_mode": {"torch": "rel"}.get(threshold_mode, threshold_mode)}
    want, scheduler = reduce_on_plateau(values, min_lr=min_scale, **theirs)
    for given_as in (float, lambda value: torch.tensor(value, dtype=torch.float64)):
        seen, state = scales(of.plateau(**same, min_scale=min_scale), map(given_as, values))
        assert seen == want
        assert state.best.item() == scheduler.best
        assert state.num_bad_steps.item() == scheduler.num_bad_epochs
        assert state.cooldown_count.item() == scheduler.cooldown_counter


@pytest.mark.parametrize(("mode", "worse", "better"), [("min", -0.99995, -1.0002), ("max", -1.0002, -0.9998)])
def test_worse_than_a_negative_best_is_not_better(mode, worse, better):
    detector = of.detect_plateau(mode, patience=1)
    state = detector.update(-1.0, detector.init())[1]
    for metric, bad, best in ((worse, 1, -1.0), (better, 0, better)):
        state = detector.update(metric, state)[1]
        assert (state.num_bad_steps.item(), state.best.item()) == (bad, best)
    theirs = of.detect_plateau(mode, patience=1, threshold_mode="torch")
    state = theirs.update(worse, theirs.update(-1.0, theirs.init())[1])[1]
    assert state.best.item() == (worse if mode == "min" else -1.0)


HEAT = [1.0, 0.9, 0.8, 0.7, 0.8, 0.9, 1.0, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("kwargs", "hits"),
    [
        ({"mode": "min", "threshold_mode": "abs"}, [6, 9]),
        ({"mode": "min", "threshold_mode": "rel", "cooldown": 1}, [6, 10]),
        ({"mode": "max", "threshold_mode": "abs"}, [3, 6, 10, 13]),
        ({"mode": "max", "threshold_mode": "rel"}, [3, 6, 10, 13]),
    ],
)
def test_finds_what_heat_finds(kwargs, hits):
    detector = of.detect_plateau(patience=2, **kwargs)
    state, found = detector.init(), []
    for position, value in enumerate(HEAT):
        hit, state = detector.update(value, state)
        found += [position] if hit else []
        if position == 5:
            state = of.load_state_dict(detector.init(), of.state_dict(state))
    assert found == hits


def test_one_graph_serves_every_metric_and_the_detector_vmaps():
    detector = of.detect_plateau(patience=1)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(detector.update, fullgraph=True, backend=counter)
    losses = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    states = torch.func.vmap(lambda loss: detector.init(loss))(losses[:, 0])
    singles, batched = [[], []], []
    for i in range(2):
        state = detector.init()
        for loss in losses[i]:
            hit, state = compiled(loss, state)
            singles[i].append(hit.item())
    for losses_now in losses.T:
        hits, states = torch.func.vmap(detector.update)(losses_now, states)
        batched.append(hits.tolist())
    assert counter.frame_count == 1
    assert [list(column) for column in zip(*batched, strict=True)] == singles
    assert singles == [[False, False, False, True, False], [False, False, True, False, True]]


def test_reaches_through_a_chain_and_a_step():
    tx = of.chain(of.clip(1.0), of.sgd(0.5), of.plateau(factor=0.5, patience=0))
    for donate in (False, True):
        step = of.make_step(tx, donate=donate)
        params, state = torch.tensor([4.0]), tx.init(torch.tensor([4.0]))
        for loss in (1.0, torch.tensor(1.0), 1.0):
            params, state = step(params, state, torch.tensor([1.0]), value=loss)
        assert params.item() == 4.0 - 0.5 - 0.25 - 0.125
        assert of.tree.get(state, "scale").item() == 0.25


def test_the_metric_is_missed_by_name_and_judged():
    tx = of.plateau()
    state = tx.init(torch.ones(1))
    with pytest.raises(ValueError, match=r"plateau needs a metric: call tx\.update\(.*, value=loss\)"):
        tx.update(torch.ones(1), state)
    for metric in (np.float32(1.0), np.array(1.0)):  # numbers of NumPy are numbers
        tx.update(torch.ones(1), tx.init(torch.ones(1)), value=metric)
    with pytest.raises(TypeError, match=r"the metric must be a number or a 0-dim tensor, got 'low'"):
        tx.update(torch.ones(1), state, value="low")
    with pytest.raises(ValueError, match=r"got a tensor of shape \(1,\)"):
        tx.update(torch.ones(1), state, value=torch.ones(1))


def test_keeps_no_graph_of_the_metric_and_its_kinds():
    tx = of.plateau(factor=torch.tensor(0.5, requires_grad=True), patience=0)
    init = tx.init(torch.ones(1))
    state = init
    for _ in range(3):
        updates, state = tx.update(torch.ones(1), state, value=torch.tensor(2.0, requires_grad=True) ** 2)
    assert not state.best.requires_grad
    assert updates.requires_grad  # the factor is live
    assert [x.dtype for x in state] == [x.dtype for x in init]


def test_runs_on_devices_without_values():
    tx = of.plateau()
    params = torch.ones(1, device="meta")
    for value in (1.0, torch.ones((), device="meta")):
        updates, state = tx.update(params, tx.init(params), value=value)
        assert all(x.is_meta for x in (updates, *state))


@pytest.mark.parametrize("make", [of.plateau, of.detect_plateau])
def test_recorded(make):
    made = make(mode="max", threshold=0.1)
    for twin in (make(mode="max", threshold=0.1), eval(repr(made), vars(of)), pickle.loads(pickle.dumps(made))):
        assert twin == made
        assert hash(twin) == hash(made)
        assert_trees_equal(twin.init(torch.ones(1)), made.init(torch.ones(1)))
    assert made.replace(patience=3) != made
    assert made.replace(patience=3).arguments["patience"] == 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"threshold": -1.0}, ValueError, "threshold must be a number >= 0, got -1.0"),
        ({"patience": -1}, ValueError, "patience must be >= 0, got -1"),
        ({"cooldown": 1.5}, TypeError, "cooldown must be a whole number of steps, got 1.5"),
        ({"mode": "low"}, ValueError, "mode must be one of 'min', 'max', got 'low'"),
        ({"threshold_mode": "sum"}, ValueError, "threshold_mode must be one of 'rel', 'abs', 'torch', got 'sum'"),
    ],
)
def test_bad_arguments_are_named_at_construction(changes, error, words):
    with pytest.raises(error, match=words):
        of.detect_plateau(**changes)


def test_a_threshold_tensor_is_read_at_every_step():
    threshold = torch.tensor(0.5, dtype=torch.float64)
    detector = of.detect_plateau(patience=0, threshold=threshold)
    _, state = detector.update(1.0, detector.init())
    assert detector.update(0.8, state)[0]
    threshold.fill_(0.1)
    assert not detector.update(0.8, state)[0]
