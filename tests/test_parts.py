"""Parts for any rule: what they refuse, and kernels where sums cancel."""

import re

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, rough_gradients, wide_params

import optimfn as of

INSIDE = {
    "a rate before a clip": lambda: of.chain(of.adam(1e-3), of.clip(1.0)),
    "schedule-free": lambda: of.schedule_free_sgd(1.0),
    "prodigy": lambda: of.prodigy(),
    "madgrad": lambda: of.madgrad(0.1),
    "lookahead": lambda: of.lookahead(of.sgd(0.1), 2, 0.5, slow_in_state=True),
}


@pytest.mark.parametrize("make", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("part", [of.cautious, lambda tx: of.hyperball(tx, 0.1)], ids=["cautious", "hyperball"])
def test_what_must_see_directions_refuses_rules_with_a_rate_inside(part, make):
    with pytest.raises(ValueError, match="must see directions, before learning rate and decay"):
        part(make())


@pytest.mark.parametrize("tx", [of.adamw(1e-3), of.chain(of.scale_by_adam(), of.add_decayed_weights(0.1))], ids=str)
def test_hyperball_has_rate_and_decay_itself(tx):
    with pytest.raises(ValueError, match="hyperball has the learning rate and the decay itself; give the rule without"):
        of.hyperball(tx, 0.1)


def test_whole_optimizers_are_cautious_before_decay_and_rate():
    whole = of.cautious(of.lion(0.1, weight_decay=0.5))
    parts = of.chain(
        of.cautious(of.scale_by_lion(0.9, 0.99)), of.add_decayed_weights(0.5), of.scale_by_learning_rate(0.1)
    )
    params = {"w": torch.randn(4, 3), "b": torch.randn(3)}
    state, other = whole.init(params), parts.init(params)
    for grads in rough_gradients(params, 6):
        updates, state = whole.update(grads, state, params)
        expected, other = parts.update(grads, other, params)
        assert_trees_equal(updates, expected)


CANCEL = (
    "momo",
    "momo_adapted",
    "momo_adam",
    "momo_adam_adapted",
    "zclip",
    "zclip_to_the_mean",
    "zclip_at_a_percentile",
)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CANCEL], ids=lambda case: case.name)
def test_kernels_agree_where_sums_cancel(case):
    """The law of the table asks for the last units, which hang on the order of the sums there."""
    tx, params = case.plain(), wide_params(torch.float64)
    fused, eager = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager")
    state = tx.init(params)
    for grads in rough_gradients(params, 8):
        got = fused(params, state, grads, **case.extra)
        params, state = eager(params, state, grads, **case.extra)
        assert_trees_equal(got, (params, state), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("tx", "most"),
    [
        (of.cautious(of.adamw(1e-3)), 40),  # a look at the gradient and the moments, then AdamW's own 28
        (of.chain(of.mars(), of.adamw(1e-3)), 44),  # both gradients for the norm; 8 more for the last one
        (of.schedule_free_adamw(1e-3), 28),  # an iterate in the place of the mean
    ],
    ids=["cautious", "mars", "schedule_free"],
)
def test_parts_cost_a_reduction_at_most(tx, most):
    params = wide_params(torch.float32)
    step = of.make_step(tx, backend="fused")
    step(params, tx.init(params), params)
    said = str(step.explain())
    assert "opaque" not in said
    assert float(re.search(r"moves ([\d.]+) bytes", said)[1]) <= most
