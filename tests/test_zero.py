"""States that are shared out among replicas step as one process does; see `zeros` for the jobs."""

import copy
import pickle

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal
from ranks import on_ranks
from resharding import gradients
from shards import SMALL, drawn
from test_resharding import close
from test_sharded import SKIPS, told
from zeros import go_on, rule

import optimfn as of

zero = of.distributed.zero

# Those that work element by element, by norms, along axes, on whole matrices, by noise, that assign, and that wrap.
NAMES = [
    "adamw",
    "lion",
    "lamb",
    "adafactor",
    "scale_by_muon",
    "noisy_sgd",
    "lookahead",
    "apply_if_finite",
    "partition",
]


@pytest.mark.parametrize(("size", "stage"), [(2, 2), (4, 1)])
def test_replicas_follow_one_process(size, stage):
    found = told(on_ranks("zeros.law", size, stage, torch.float64, 1e-10, [], NAMES))
    assert not found, found


@pytest.mark.parametrize(("size", "stage"), [(2, 1), (4, 2)])
def test_what_sees_no_leaves_is_stepped_as_one_vector(size, stage):
    names = [case.name for case in CASES if case.plain().elementwise]
    found = told(on_ranks("zeros.law", size, stage, torch.float64, 1e-10, [], names, "flat"))
    assert not found, found


def test_two_collectives_and_a_share_of_the_state():
    size = 2 * 4 * (64 * 32 + 32)
    for stage in (1, 2):
        assert on_ranks("zeros.sent", stage, False) == [(2, size // 4)] * 4
        assert on_ranks("zeros.sent", stage, True) == [(1, size // 4)] * 4
        assert on_ranks("zeros.sent", stage, False, "flat") == [(2, size // 4)] * 4


def test_leaves_of_every_kind():
    found = told(on_ranks("zeros.edges"))
    assert not found, found


@pytest.mark.parametrize("job", ["vectors_in_buckets", "empty_trees", "from_layout_to_layout"])
def test_vectors(job):
    found = told(on_ranks(f"zeros.{job}"))
    assert not found, found


def test_shards_are_refused():
    assert all("zero takes whole leaves, and w is a DTensor" in said for said in on_ranks("zeros.refused", "nothing"))


@pytest.mark.parametrize("layout", ["leaves", "flat"])
def test_a_run_moves_from_four_replicas_to_two_to_one(tmp_path, layout):
    folders = [str(tmp_path / str(i)) for i in range(2)]
    on_ranks("zeros.go_on", 4, 0, 2, None, folders[0], layout)
    on_ranks("zeros.go_on", 2, 2, 4, *folders, layout)
    found = go_on(0, 4, 6, folders[1], None, layout)
    tx, params = rule(), drawn(SMALL, torch.float64, 1)
    state = tx.init(params)
    for grads in gradients(SMALL, torch.float64, 10)[:6]:
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    close(found, (params, state), torch.float64)


@pytest.mark.parametrize("layout", ["leaves", "flat"])
def test_behind_an_optimizer_it_follows_one_process(layout):
    found = told(on_ranks("zeros.behind_an_optimizer", layout))
    assert not found, found


def test_alone_it_is_the_inner_rule():
    params, grads = drawn(SMALL, torch.float32, 1), drawn(SMALL, torch.float32, 2)
    tx = rule()
    for cut in (zero(tx, None), zero(tx, None, stage=2), copy.deepcopy(zero(tx, None, averaged=True))):
        assert_trees_equal(cut.update(grads, cut.init(params), params), tx.update(grads, tx.init(params), params))
    assert pickle.loads(pickle.dumps(zero(tx, None))) == zero(tx, None)
    assert repr(zero(of.sgd(0.1), None)).startswith("zero(")


def test_what_takes_no_shards_is_refused_by_name():
    flat = of.flatten(of.adam(0.1))
    for inner in (flat, of.chain(of.clip(1.0), of.masked(of.quantize_state(flat), True))):
        with pytest.raises(ValueError, match=r"(?s)zero cuts leaves into shards, which is nothing for .*flatten"):
            zero(inner, None)
    leaves = of.tree.is_matrix
    for inner, name in (
        (of.lamb(0.1), "scale_by_trust_ratio"),
        (of.adamw(0.1, mask=leaves), r"add_decayed_weights\(.*mask=is_matrix"),
        (of.chain(of.adam(0.1), of.masked(of.scale(2.0), leaves)), "masked"),
        (of.GradientTransformation(*of.sgd(0.1)), "<GradientTransformation"),
    ):
        with pytest.raises(ValueError, match=rf"and {name}.* is not elementwise: put it outside of zero, or use"):
            zero(inner, None, layout="flat")
    with pytest.raises(ValueError, match="layout must be one of"):
        zero(of.adam(0.1), None, layout="row")
    with pytest.raises(ValueError, match="stage must be one of"):
        zero(of.adam(0.1), None, stage=3)
    with pytest.raises(TypeError, match="inner"):
        zero(of.adam, None)


def test_the_declarations_are_what_the_law_of_shards_finds():
    refused = set()
    for case in CASES:
        try:
            zero(case.plain(), None)
        except ValueError:
            refused.add(case.name)
    assert refused == set(SKIPS)


def test_one_vector_says_what_it_cannot_do():
    params = {"a": torch.ones(2), "b": torch.ones(1)}
    tx = zero(of.adam(0.1), None, layout="flat")
    with pytest.raises(ValueError, match="needs a gradient for every parameter, and b has none"):
        tx.update({"a": torch.ones(2), "b": None}, tx.init(params), params)
    with pytest.raises(ValueError, match="they lie on cpu and meta"):
        tx.init({**params, "b": torch.ones(1, device="meta")})
    with pytest.raises(ValueError, match=r"a state of adam.* is none of sgd"):
        of.distributed.relaid(tx.init(params), tx, of.sgd(0.1), params)
