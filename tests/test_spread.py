"""Bases, roots and factors of parts of the leaves, each renewed in steps of its own."""

import copy

import pytest
import torch
from graphs import NoHostReads
from helpers import assert_close_to, assert_trees_equal, follow
from oracles.blocks import leafwise
from oracles.psgd import KronWhiten
from oracles.shampoo import Shampoo, SPlus
from oracles.soap import Soap

import optimfn as of

PERIOD, SPREAD = 4, 3
OFFSETS = [0, 1, 2]  # part * period // spread
MATRICES, ALL = {"a": 0, "b": 0, "c": 1}, {"a": 0, "b": 1, "c": 2}  # the part of each leaf: vectors may have nothing

RULES = {
    "soap": (
        lambda spread: of.soap(0.1, precondition_frequency=PERIOD, weight_decay=0.0, spread=spread),
        lambda offset, name: Soap(lr=0.1, k=PERIOD, offset=offset),
        MATRICES,
    ),
    "splus": (
        lambda spread: of.splus(0.1, inverse_every=PERIOD, spread=spread),
        lambda offset, name: SPlus(0.1, k=PERIOD, offset=offset),
        MATRICES,
    ),
    "shampoo": (
        lambda spread: of.shampoo(
            0.1, b2=0.9, eps=1e-3, precondition_frequency=PERIOD, target_dims=None, grafting="adam", spread=spread
        ),
        lambda offset, name: Shampoo(0.1, (0.9, 0.9), eps=1e-3, k=PERIOD, target=None, grafting="adam", offset=offset),
        ALL,
    ),
    "kron_whiten": (
        lambda spread: of.scale_by_kron_whiten(
            0.8, 0.3, preconditioner_update_probability=1 / PERIOD, preconditioner_init_scale=1.0, spread=spread
        ),
        lambda offset, name: KronWhiten(name, 1.0, momentum=0.8, rate=0.3, probability=1 / PERIOD, offset=offset),
        ALL,
    ),
}


def tensors(seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return {name: torch.randn(shape, dtype=dtype) for name, shape in {"a": (5, 6), "b": (6,), "c": (6, 5)}.items()}


@pytest.mark.parametrize("name", RULES)
def test_each_part_of_the_leaves_has_steps_of_its_own(name):
    make, oracle, part = RULES[name]
    params, gradients = tensors(0), [tensors(seed) for seed in range(1, 14)]
    want = leafwise(lambda leaf: oracle(OFFSETS[part[leaf]], leaf))
    for got, exact in zip(follow(make(SPREAD), params, gradients), want(params, gradients), strict=True):
        assert_close_to(got, exact, 1e-8)


@pytest.mark.parametrize("name", RULES)
def test_it_resumes_compiles_to_kernels_and_reads_no_device(name):
    """A step of each kind, without a gradient at times: which leaf is in which part does not depend on it."""
    tx = RULES[name][0](SPREAD)
    params = tensors(0)
    state = tx.init(params)
    other = copy.deepcopy((params, state))
    step = of.make_step(tx, donate=True)
    for seed in range(1, 11):
        grads = {leaf: None if (seed, leaf) in ((3, "a"), (7, "c")) else g for leaf, g in tensors(seed).items()}
        if seed == 6:  # as after a restart
            step, other = of.make_step(tx, donate=True), copy.deepcopy(other)
        other = step(*other, grads)
        with NoHostReads({id(x) for x in of.tree.leaves(state) if not x.ndim}):  # here they are all on the host
            updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        assert_trees_equal(other, (params, state), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_no_step_does_the_work_of_all(name, monkeypatch):
    """In one period each leaf is renewed once, and leaves of other parts in other steps."""
    make, _, part = RULES[name]
    tx, params = make(SPREAD), tensors(0)
    state, renewed = tx.init(params), {leaf: [] for leaf in part}
    for t in range(1, 3 * PERIOD + 1):
        _, new = tx.update(tensors(t), state, params)
        was, now = (dict(of.tree.leaves_with_path(s)) for s in (state, new))
        for leaf in part:
            kept = [p for p in was if leaf in p and any(str(field) in ("basis", "roots", "q") for field in p)]
            if any(not torch.equal(was[p], now[p]) for p in kept):
                renewed[leaf].append(t)
        state = new
    late = {leaf: [t % PERIOD for t in own if t > 2 * PERIOD] for leaf, own in renewed.items()}
    assert all(len(own) == (leaf != "b" or part is ALL) for leaf, own in late.items()), renewed
    assert late["a"] != late["c"]


def test_more_parts_than_steps_are_refused():
    with pytest.raises(ValueError, match="spread must be at most precondition_frequency, 10, got 11"):
        of.soap(0.1, spread=11)
    with pytest.raises(ValueError, match="spread must be at most inverse_every, 100, got 101"):
        of.splus(0.1, spread=101)
    with pytest.raises(ValueError, match="spread must be at most precondition_frequency, 1, got 2"):
        of.shampoo(0.1, spread=2)
    with pytest.raises(ValueError, match=r"spread must be at most the steps .* 4, got 5"):
        of.kron_whiten(0.1, preconditioner_update_probability=0.25, spread=5)
    with pytest.raises(ValueError, match="spread must be 1 where preconditioner_update_probability, a number"):
        of.kron_whiten(0.1, preconditioner_update_probability=of.precond_update_prob_schedule(), spread=2)
    with pytest.raises(ValueError, match="spread must be >= 1, got 0"):
        of.soap(0.1, spread=0)
