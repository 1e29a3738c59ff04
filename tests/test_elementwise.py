"""Which transformations do not see where leaves begin and end, which `distributed.zero(layout="flat")` relies on."""

import pytest
import torch
from cases import CASES
from helpers import plain_params, rough_gradients

import optimfn as of

# Transformations that do not see it in these cases, and why they do not promise it.
GIVEN = "does what it is given a function for, which may look at leaves"
LOSS = "evaluates the loss, or an example of it, at parameters in their own structure"
NOT_PROMISED = {
    **dict.fromkeys(["stateless", "stateless_with_tree_map", "monitor", "keep_params_in", "stacked_factory"], GIVEN),
    **dict.fromkeys(["conditionally_transform", "conditionally_mask", "multi_steps_sum"], GIVEN),
    **dict.fromkeys(["sam", "sam_of_three", "sam_at_once", "friendly_sam", "gsam", "msam"], LOSS),
    **dict.fromkeys(["scale_by_adahessian", "hutchinson_estimator_diag_hessian", "scale_by_sophia", "sophia"], LOSS),
    **dict.fromkeys(["scale_by_sophia_g", "sophia_g", "differentially_private_aggregate", "minimize_by_lbfgs"], LOSS),
    **dict.fromkeys(["scale_by_backtracking_linesearch", "scale_by_zoom_linesearch", "lbfgs"], LOSS),
    "scale_by_lbfgs": "keeps histories of leaves along an axis of their own",
    "mechanize": "is given a rule of any kind, and keeps numbers for each decay",
    "lookahead": "takes two copies of the parameters as one tree, and the gradients of one of them",
    "lookahead_reset": "takes two copies of the parameters as one tree, and the gradients of one of them",
    "flatten": "is itself a layout of one vector",
    "stacked": "takes the first axis of leaves for that of the members",
    "per_leaf": "counts for each leaf",
    "zero_nans": "keeps a flag for each leaf",
    "quantize_state_bfloat16": "keeps more than one tensor in the place of a leaf",
    "stochastic_rounding": "draws for a leaf by its path",
}
CUTS = [1, 4, 9]  # neither at the ends of leaves, nor alike


def flat(leaves):
    return torch.cat([x.reshape(-1) for x in of.tree.leaves(leaves)])


def cut(leaves):
    """The same elements in the same order, in pieces of one axis."""
    return [piece.clone() for piece in torch.tensor_split(flat(leaves), CUTS)]


def every_step(tx, params, gradients):
    """The parameters after each step, as vectors."""
    state, found = tx.init(params), []
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        found.append(flat(params))
    return torch.stack(found)


def sees_no_leaves(tx):
    torch.manual_seed(0)
    params = plain_params()
    gradients = rough_gradients(params, 8)
    whole = every_step(tx, params, gradients)
    pieces = every_step(tx, cut(params), [cut(grads) for grads in gradients])
    # Sums over all elements, and the kernels of ATen for the ends of a leaf, round otherwise.
    return bool(((whole - pieces).abs() <= 1e-12 * whole.abs().clamp(min=1)).all())


@pytest.mark.filterwarnings("ignore:no parameter")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_leaves_may_be_cut_anywhere_where_it_is_promised(case):
    tx = case.tx()
    if tx.elementwise:
        assert sees_no_leaves(tx)
        return
    try:
        sees_none = sees_no_leaves(tx)
    except Exception:
        sees_none = False
    assert sees_none == (case.name in NOT_PROMISED)


def test_what_is_promised_is_derived_from_the_members():
    decayed = of.adamw(0.1, weight_decay=0.1)
    assert decayed.elementwise
    assert of.chain(of.clip_by_global_norm(1.0), decayed, of.params_ema(0.9)).elementwise
    assert of.named_chain(("a", of.adam(of.linear_schedule(0.1, 0.0, 10)))).elementwise
    assert not of.adamw(0.1, weight_decay=0.1, mask=of.tree.is_matrix).elementwise
    assert not of.masked(decayed, of.tree.is_matrix).elementwise
    assert not of.chain(of.clip_by_block_rms(1.0), decayed).elementwise
    assert not of.GradientTransformation(*decayed).elementwise  # nobody has promised it
    assert of.apply_if_finite(decayed, 3).elementwise
    assert not of.apply_if_finite(of.lamb(0.1), 3).elementwise
