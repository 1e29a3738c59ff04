"""Which transformations treat every leaf alone, and `per_leaf`, which makes them."""

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, plain_params, rough_gradients

import optimfn as of

# Transformations of which no leaf sees another in these cases, and why they do not promise it.
COUNTS = "counts the steps of the run, which are the same for all parameters"
GIVEN = "does what it is given a function for, which may look at all leaves"
WAY = "measures how far all parameters have come, and these stay where they are"
LOSS = "looks at the loss"
NOT_PROMISED = {
    **dict.fromkeys(["scale_by_learning_rate_schedule", "scale_by_schedule", "add_decayed_weights_schedule"], COUNTS),
    **dict.fromkeys(["adamw_scheduled", "adafactor_as_torch", "adafactor_as_torch_decayed"], COUNTS),
    **dict.fromkeys(
        [
            "adafactor_unclipped",
            "params_swa",
            "inject_hyperparams",
            "fromage",
            "fromage_scheduled",
            "optimistic_adam_v2",
        ],
        COUNTS,
    ),
    **dict.fromkeys(["multi_steps", "multi_steps_sum", "lookahead", "lookahead_reset"], COUNTS),
    **dict.fromkeys(["conditionally_transform", "conditionally_mask", "adopt_decoupled"], COUNTS),
    **dict.fromkeys(["soap", "kl_shampoo", "decay_after_step_scheduled", "add_corrected_decayed_weights"], COUNTS),
    "qk_clip": "looks for the leaves of its patterns in the whole tree",
    "galore": "is told which leaves are matrices by a function of all",
    "stochastic_rounding": "draws for a leaf by its path, but only for those of half precision",
    **dict.fromkeys(["schedule_free_at_z", "schedule_free_adamw_warmed_up"], COUNTS),
    **dict.fromkeys(["schedule_free_radam", "schedule_free_radam_aloud"], COUNTS),
    **dict.fromkeys(["stateless", "monitor", "keep_params_in"], GIVEN),
    **dict.fromkeys(["dog_from_a_rate", "prodigy", "prodigy_of_the_authors", "prodigy_safeguarded", "mechanize"], WAY),
    "dadapt_adagrad": WAY,
    **dict.fromkeys(["plateau", "plateau_with_cooldown", "scale_by_polyak_below_the_bound"], LOSS),
    **dict.fromkeys(["add_noise", "noisy_sgd"], "draws for a leaf by its place in the tree, or by its path"),
    **dict.fromkeys(
        ["hutchinson_estimator_diag_hessian", "scale_by_sophia", "sophia", "scale_by_adahessian", "adahessian"],
        "asks the loss of all leaves",
    ),
    **dict.fromkeys(["scale_by_sophia_g", "sophia_g"], "takes other gradients of all leaves"),
    "apply_if_finite": "leaves out a step of all leaves, and these gradients are finite",
    "flatten": "is leafwise for rules that are pointwise",
    **dict.fromkeys(["stacked", "stacked_factory"], "measures nothing here, but decides for a whole member"),
    "selective_transform": "inverts a mask by a function of its own",
}


def every_step(tx, params, gradients):
    """The updates of all steps, at parameters that stay where they are."""
    state, found = tx.init(params), []
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        found.append(updates)
    return found


def is_leafwise(tx):
    torch.manual_seed(0)
    params = plain_params()
    gradients = rough_gradients(params, 8)
    try:
        whole, apart = every_step(tx, params, gradients), every_step(of.per_leaf(tx), params, gradients)
        assert_trees_equal(whole, apart)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_leaf_sees_another_where_it_is_promised(case):
    tx = case.tx()
    if tx.leafwise:
        assert is_leafwise(tx)
    else:
        assert is_leafwise(tx) == (case.name in NOT_PROMISED)


def test_every_leaf_has_its_own_count_in_every_kind_of_tree():
    tx = of.per_leaf(of.scale_by_adam())
    params = {"a": torch.ones(2), "b": [torch.ones(3), (torch.ones(()), None)]}
    grads = {"a": torch.ones(2), "b": [None, (torch.ones(()), None)]}
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    assert updates["b"][0] is None
    assert [state["a"].count, state["b"][0].count, state["b"][1][0].count] == [1, 0, 1]
    assert of.tree.structure(updates) == of.tree.structure(grads)
    late, _ = tx.update({**grads, "b": [torch.ones(3), (None, None)]}, state, params)
    assert torch.allclose(late["b"][0], torch.ones(3))  # a first step, whenever it comes
    alone = of.per_leaf(of.scale_by_adam())
    assert alone.update(torch.ones(2), alone.init(torch.ones(2)))[1].count == 1


def test_masks_by_path_see_the_paths():
    tx = of.per_leaf(of.masked(of.scale(10.0), of.tree.mask_by_path(r"head\.w")))
    params = {"head": {"w": torch.ones(1), "b": torch.ones(1)}, "w": torch.ones(1)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert [updates["head"]["w"], updates["head"]["b"], updates["w"]] == [10.0, 1.0, 1.0]


def test_in_a_tree_a_count_belongs_to_all_leaves():
    tx, params = of.scale_by_adam(), {"a": torch.ones(1), "b": torch.ones(1)}
    _, state = tx.update({"a": torch.ones(1), "b": None}, tx.init(params), params)
    assert state.count == 1


def test_what_is_promised_is_derived_from_the_members():
    adam, clip = of.adam(0.1), of.clip_by_global_norm(1.0)
    assert adam.leafwise
    assert not clip.leafwise
    assert not of.chain(clip, adam).leafwise
    assert of.named_chain(("a", adam)).leafwise
    assert of.masked(adam, of.tree.is_matrix).leafwise
    assert not of.masked(adam, lambda params: of.tree.map(lambda p: True, params)).leafwise
    assert not of.masked(adam, {"a": True}).leafwise
    assert of.partition({"x": adam, "y": of.sgd(0.1)}, of.tree.label_by(lambda p: "x")).leafwise
    assert not of.adam(of.constant_schedule(0.1)).leafwise  # a schedule counts the steps of all
    assert of.adam(0.1).replace(b1=0.5).leafwise
