"""The laws of the table, for rules of several processes where there is one: the table proper would take minutes."""

import importlib

import pytest
import test_laws as laws
import torch
from case import Case
from helpers import assert_trees_equal, like, plain_params
from ranks import on_ranks
from test_sharded import told

import optimfn as of

od = of.distributed
INNER = of.adamw(0.05)
CASES = [
    Case("all_reduce_mean", od.all_reduce_mean, {"group": None, "dtype": torch.bfloat16}),
    Case("deferred", od.deferred, {"tx": of.chain(od.all_reduce_mean(None), INNER)}, needs_params=True),
    Case("powersgd", od.compressed_mean, {"group": None, "compressor": od.powersgd(1, min_rate=1.0), "start": 1}),
    Case("int8_block", od.compressed_mean, {"group": None, "compressor": od.int8_block(4)}),
    Case("outer_sync", od.outer_sync, {"inner": INNER, "outer": of.sgd(0.7), "group": None, "every": 2, "delay": 1}),
    Case("local_sgd", od.local_sgd, {"inner": INNER, "group": None, "every": 2}),
    Case("post_local", od.post_local_sgd, {"inner": INNER, "group": None, "subgroup": None, "start": 1, "every": 2}),
    Case("hierarchical", od.hierarchical_sgd, {"inner": INNER, "periods": ((2, None), (4, None))}),
    Case("slowmo", od.slowmo, {"inner": INNER, "group": None, "every": 2}),
    Case("diloco", od.diloco, {"inner": INNER, "group": None, "every": 2, "compress": od.topk(0.5)}),
    Case("zero", od.zero, {"inner": INNER, "group": None}, needs_params=True),
    Case("zero_flat", od.zero, {"inner": INNER, "group": None, "layout": "flat"}, needs_params=True),
]
ALL = {
    "pure": laws.test_no_argument_is_written_to_and_results_repeat,
    "own memory": laws.test_a_fresh_state_shares_no_memory_with_the_parameters,
    "extra": laws.test_unknown_extra_arguments_are_ignored,
    "complex": lambda case: laws.test_complex_leaves_keep_their_dtypes(case, torch.complex64),
    "single": laws.test_single_tensors_are_trees,
    "value": laws.test_equal_by_value_hashable_picklable_and_copyable,
    "checkpoint": laws.test_state_survives_a_weights_only_file,
    "parts": laws.test_the_parts_of_a_state_that_mirror_the_parameters_are_found,
}


@pytest.mark.parametrize("law", ALL)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_holds_for_a_single_process(case, law):
    ALL[law](case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_donated_or_behind_an_optimizer_it_takes_the_same_steps(case):
    tx, params = case.tx(), plain_params()
    state, own = tx.init(params), of.tree.map(torch.clone, params)
    step, donated = of.make_step(tx, donate=True), tx.init(own)
    behind = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = of.Optimizer([*behind.items()], tx)
    for _ in range(5):
        grads = like(params)
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        own, donated = step(own, donated, grads)
        for name, p in behind.items():
            p.grad = grads[name].clone()
        optimizer.step()
        assert_trees_equal((own, donated), (params, state))
        assert_trees_equal(of.tree.map(torch.detach, behind), params)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_members_of_a_batch_are_refused(case):
    tx, x = case.tx(), torch.ones(3, 3)
    state = tx.init(x)
    with pytest.raises(RuntimeError, match="communicates, which vmap cannot do"):
        torch.func.vmap(lambda g: tx.update(g, state, x)[0])(torch.ones(2, 3, 3))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_repr_makes_an_equal_value(case):
    assert all(f"{name}=" in repr(case.tx()) for name in case.kwargs)
    assert eval(repr(case.tx()), {**vars(of), **vars(od), "torch": torch}) == case.tx()


@pytest.mark.parametrize("alone", [True, False])
def test_trees_without_leaves_and_leaves_without_elements(alone):
    found = told([importlib.import_module("empties").trees(True)] if alone else on_ranks("empties.trees", False))
    assert not found, found


def test_every_rule_is_here():
    made = {case.make.__name__ for case in CASES}
    kinds = (of.GradientTransformation, "GradientTransformation")
    public = {n for n in dir(od) if getattr(getattr(od, n), "__annotations__", {}).get("return") in kinds}
    assert public == made
