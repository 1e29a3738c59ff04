"""Shampoo and SPlus: what the cases of the table do not reach."""

import numpy as np
import pytest
import torch
from oracles.adam import Adam
from oracles.adam_kin import AdEMAMix, LaProp
from oracles.shampoo import Shampoo, SPlus
from oracles.soap import Soap

import optimfn as of

SHAPES = {"matrix": (6, 5), "kernel": (4, 3, 2), "vector": (7,), "scalar": (), "row": (1, 6), "nothing": (0, 3)}
RATE = of.linear_schedule(0.1, 0.0, 20)


def rate(count):
    """`RATE` in plain Python."""
    return 0.1 * (1 - min(count, 20) / 20)


# Arguments here, and those of the transcription. With sums of a few gradients most factors have lost rank: `eps`, which
# says how far a root magnifies what the rounding has left of nothing, is large enough for the comparison.
OPTIONS = {
    "defaults": ({"eps": 1e-3}, {"eps": 1e-3}),
    "blocks": (
        {"b2": 0.95, "eps": 1e-3, "max_preconditioner_dim": 4, "grafting": "sgd"},
        {"betas": (0.9, 0.95), "eps": 1e-3, "largest": 4, "grafting": "sgd"},
    ),
    "kl": (
        {"b2": 0.9, "eps": 1e-2, "kind": "kl", "target_dims": None},
        {"betas": (0.9, 0.9), "eps": 1e-2, "kind": "kl", "target": None},
    ),
    "eigenvalues, grafted, late": (
        {"b2": 0.9, "eps": 1e-6, "kind": "eigenvalues", "start_preconditioning_step": 4, "grafting": "adagrad"},
        {"betas": (0.9, 0.9), "eps": 1e-6, "kind": "eigenvalues", "start": 4, "grafting": "adagrad"},
    ),
    "one side, uncorrected": (
        {"b2": 0.9, "eps": 1e-3, "sides": "one", "target_dims": None, "bias_correction": False, "grafting": "rmsprop"},
        {"betas": (0.9, 0.9), "eps": 1e-3, "sides": "one", "target": None, "correct": False, "grafting": "rmsprop"},
    ),
    "roots": (
        {"eps": 1e-3, "roots": {2: 2.5, 3: 4.0}, "target_dims": None},
        {"eps": 1e-3, "roots": {2: 2.5, 3: 4.0}, "target": None},
    ),
    "corrected decay, nesterov": (
        {"eps": 0.1, "learning_rate": RATE, "weight_decay": 0.1, "decay": "corrected", "peak": 0.1, "momentum": 0.8}
        | {"dampening": 0.2, "nesterov": True},
        {"eps": 0.1, "lr": rate, "weight_decay": 0.1, "decay": "corrected", "peak": 0.1, "momentum": 0.8}
        | {"dampening": 0.2, "nesterov": True},
    ),
    "independent decay": (
        {"eps": 0.1, "weight_decay": 0.1, "decay": "independent", "peak": 0.5},
        {"eps": 0.1, "weight_decay": 0.1, "decay": "independent", "peak": 0.5},
    ),
    "l2": ({"eps": 0.1, "weight_decay": 0.1, "decay": "l2"}, {"eps": 0.1, "weight_decay": 0.1, "decay": "l2"}),
}


def drawn(shapes, dtype=torch.float64):
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_shampoo_follows_its_authors_for_leaves_of_all_kinds(name):
    torch.manual_seed(0)
    ours, theirs = ({rate: 0.01, **own} for rate, own in zip(("learning_rate", "lr"), OPTIONS[name], strict=True))
    params, tx = drawn(SHAPES), of.shampoo(**ours)
    rules = {key: Shampoo(**theirs) for key, p in params.items() if p.numel()}
    expected, state = {key: params[key].numpy().copy() for key in rules}, tx.init(params)
    for t in range(1, 9):
        grads = {key: g + params[key] for key, g in drawn(SHAPES).items()}
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        for key, rule in rules.items():
            expected[key] = expected[key] + rule(grads[key].numpy(), expected[key], t)
            np.testing.assert_allclose(params[key].numpy(), expected[key], rtol=1e-8, atol=1e-8)


def test_inverse_roots_by_products_are_those_by_eigenvalues():
    torch.manual_seed(0)
    params = {"w": torch.randn(6, 5, dtype=torch.float64)}
    found = []
    for by in ("eigh", "newton"):
        torch.manual_seed(1)
        tx = of.scale_by_shampoo(eps=1e-2, by=by, target_dims=None)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(drawn({"w": (6, 5)}), state)
        found.append(updates["w"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)  # Newton's stops at 1e-6 of each root


@pytest.mark.parametrize("kind", ["shampoo", "kl", "eigenvalues"])
def test_half_precision_has_factors_in_float32_and_goes_on_after_a_checkpoint(kind):
    torch.manual_seed(0)
    params = drawn({"w": (4, 3), "b": (5,)}, torch.bfloat16)
    tx = of.scale_by_shampoo(b2=0.9, precondition_frequency=3, kind=kind, grafting="adam", target_dims=None)
    grads = [drawn({"w": (4, 3), "b": (5,)}, torch.bfloat16) for _ in range(7)]
    state = tx.init(params)
    assert {x.dtype for x in of.tree.leaves((state.factors, state.roots))} == {torch.float32}
    for g in grads[:4]:
        _, state = tx.update(g, state)
    again = of.load_state_dict(tx.init(params), of.state_dict(state))
    for g in grads[4:]:
        updates, state = tx.update(g, state)
        same, again = tx.update(g, again)
        assert all(map(torch.equal, of.tree.leaves((updates, state)), of.tree.leaves((same, again))))


def test_a_gradient_too_large_for_its_square_leaves_factors_and_roots():
    params = {"w": torch.ones(3, 2)}
    tx = of.scale_by_shampoo(b2=0.9, target_dims=None)
    _, before = tx.update({"w": torch.randn(3, 2)}, tx.init(params))
    _, after = tx.update({"w": torch.full((3, 2), 1e30)}, before)
    assert all(map(torch.equal, of.tree.leaves(before.factors), of.tree.leaves(after.factors)))
    assert all(torch.isfinite(x).all() for x in of.tree.leaves(after.roots))


def test_splus_evaluates_the_average_before_decay():
    torch.manual_seed(0)
    params, tx = drawn(SHAPES), of.splus(0.1, ema_rate=0.9, inverse_every=3, weight_decay=0.1)
    rules = {key: SPlus(0.1, ema_rate=0.9, k=3, weight_decay=0.1) for key, p in params.items() if p.numel()}
    expected, state = {key: params[key].numpy().copy() for key in rules}, tx.init(params)
    for t in range(1, 8):
        grads = drawn(SHAPES)
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        shown = of.eval_params(tx, state, params)
        for key, rule in rules.items():
            expected[key] = expected[key] + rule(grads[key].numpy(), expected[key], t)
            np.testing.assert_allclose(params[key].numpy(), expected[key], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(shown[key].numpy(), rule.evaluated, rtol=1e-9, atol=1e-9)


INSIDE = {
    "nadam": (of.scale_by_adam(0.9, 0.99, nesterov=True), lambda: Adam(beta1=0.9, beta2=0.99, nesterov=True)),
    "ademamix": (of.scale_by_ademamix(0.9, 0.99, 0.999), lambda: AdEMAMix(0.9, 0.99, 0.999)),
    "laprop": (of.scale_by_laprop(0.9, 0.99, eps=1e-8), lambda: LaProp(beta1=0.9, beta2=0.99, eps=1e-8)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_other_rules_step_in_the_eigenbasis_as_their_equations_say(name):
    """What turns with the basis, and what goes with its vectors, is each rule's own; and a checkpoint has it all."""
    torch.manual_seed(0)
    shapes = {"matrix": (6, 5), "kernel": (4, 3, 2)}
    rule, oracle = INSIDE[name]
    params, tx = drawn(shapes), of.eigenbasis(rule, 0.95, 3)
    state = tx.init(params)
    rules = {key: Soap(lr=-1.0, k=3, rule=oracle()) for key in params}
    for t in range(1, 12):
        grads = drawn(shapes)
        if t == 6:
            state = of.load_state_dict(tx.init(params), of.state_dict(state))
        updates, state = tx.update(grads, state)
        for key, own in rules.items():
            want = own(grads[key].numpy(), np.zeros(shapes[key]), t)
            np.testing.assert_allclose(updates[key].numpy(), want, rtol=1e-8, atol=1e-8)
