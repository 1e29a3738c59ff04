"""Wrappers and fronts around many rules: the laws of the table for what it cannot hold, all products of the two.

All rules of a wrapper are parts of one tree, so that each law runs, and each kernel is made, once a wrapper.
"""

import io

import pytest
import torch
from helpers import assert_trees_equal

import optimfn as of

RULES = {
    "sgd": of.identity(),
    "momentum": of.trace(0.9),
    "adam": of.scale_by_adam(),
    "lion": of.scale_by_lion(),
    "adopt": of.scale_by_adopt(),
    "laprop": of.scale_by_laprop(),
    "rms": of.scale_by_rms(),
    "ademamix": of.scale_by_ademamix(),
}
RATE, CLIMB = of.scale_by_learning_rate(0.05), of.chain(of.normalize(), of.sgd(0.05))


def whole(rule):
    """Rule and rate."""
    return of.chain(rule, RATE)


WRAPPERS = {
    "cautious": lambda rule: of.chain(of.cautious(rule), of.add_cautious_decayed_weights(0.1), RATE),
    "mars": lambda rule: of.chain(of.mars(), rule, RATE),
    "schedule_free": lambda rule: of.schedule_free(whole(rule), 0.05),
    "gpa": lambda rule: of.gpa(whole(rule)),
    "sam": lambda rule: of.sam(whole(rule), CLIMB),
    "sam(schedule_free)": lambda rule: of.sam(of.schedule_free(whole(rule), 0.05), CLIMB),
    "msam": lambda rule: of.msam(whole(rule)),
    "mechanize": lambda rule: of.mechanize(whole(rule), s_init=0.1),
    "project": lambda rule: of.chain(of.project(rule, rank=2), RATE),
    "hyperball": lambda rule: of.hyperball(rule, 0.05, weight_decay=0.1),
    "graft": lambda rule: of.chain(of.graft(rule, of.scale_by_lion()), RATE),
    "lookahead": lambda rule: of.lookahead(whole(rule), 2, 0.5, slow_in_state=True),
    "params_ema": lambda rule: of.chain(whole(rule), of.params_ema(0.9)),
}
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # in float64: the table's


def trees(seed, absent=False):
    """A matrix and a vector for each rule; the vectors may be absent."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {name: {"w": leaf(4, 3), "b": None if absent else leaf(3)} for name in RULES}


def made(wrap):
    """One transformation for all rules."""
    return of.partition({name: wrap(rule) for name, rule in RULES.items()}, {name: name for name in RULES})


def versions(*nests):
    """How often each tensor has been written to."""
    return [x._version for nest in nests for x in of.tree.leaves(nest) if isinstance(x, torch.Tensor)]


def run(tx, params, state, seeds):
    """Steps with the gradients of these seeds."""
    for seed in seeds:
        updates, state = tx.update(trees(seed), state, params)
        params = of.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_it_is_pure_evaluates_and_goes_on_from_a_checkpoint(wrap):
    tx, params = made(wrap), trees(0)
    state = tx.init(params)
    params, state = run(tx, params, state, [1])
    before = versions(params, state)
    further = run(tx, params, state, [2, 3])
    assert versions(params, state) == before
    assert_trees_equal(run(tx, params, state, [2, 3]), further)
    file = io.BytesIO()
    torch.save(of.state_dict(state), file)
    file.seek(0)
    loaded = of.load_state_dict(tx.init(params), torch.load(file, weights_only=True))
    again = run(made(wrap), params, loaded, [2, 3])
    assert_trees_equal(again, further)
    assert_trees_equal(of.eval_params(tx, *further[::-1]), of.eval_params(tx, *again[::-1]))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_stack_steps_as_its_members_do(wrap):
    tx = made(wrap)
    stack = of.stacked(tx)
    members = [trees(0), trees(7)]
    params = of.tree.map(lambda *x: torch.stack(x), *members)
    state, own = stack.init(params), [(p, tx.init(p)) for p in members]
    for seed in (1, 2):
        grads = [trees(seed), trees(10 + seed)]
        updates, state = stack.update(of.tree.map(lambda *x: torch.stack(x), *grads), state, params)
        params = of.apply_updates(params, updates)
        for k, (p, s) in enumerate(own):
            updates, s = tx.update(grads[k], s, p)
            own[k] = of.apply_updates(p, updates), s
    alone = of.tree.map(lambda *x: torch.stack(x), *(p for p, _ in own))
    assert_trees_equal(params, alone, **TOLERANCE)
    means = of.tree.map(lambda *x: torch.stack(x), *(of.eval_params(tx, s, p) for p, s in own))
    assert_trees_equal(of.eval_params(stack, state, params), means, **TOLERANCE)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_kernels_step_as_the_rule_does_and_leave_what_has_no_gradient(wrap):
    tx, params = made(wrap), trees(0)
    fused, state = of.make_step(tx, backend="fused"), tx.init(params)
    for seed in (1, 2):
        got = fused(params, state, trees(seed))
        updates, state = tx.update(trees(seed), state, params)
        params = of.apply_updates(params, updates)
        assert_trees_equal(got, (params, state), **TOLERANCE)
    updates, _ = tx.update(trees(3, absent=True), state, params)
    moved = of.apply_updates(params, updates)
    for name in RULES:
        assert updates[name]["b"] is None
        assert torch.equal(moved[name]["b"], params[name]["b"])
        assert moved[name]["w"].isfinite().all()
