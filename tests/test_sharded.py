"""What lies in shards on several processes steps as on one: see `shards` for the layouts and what is compared."""

import re
from pathlib import Path

import pytest
import torch
from cases import CASES
from ranks import on_ranks
from shards import LAYOUTS, ODD_LAYOUTS

FLAT = "one vector of all elements cannot be cut where uneven shards of the leaves are"
# Cases that do not hold on shards yet, each with the reason. This list only shrinks.
SKIPS = {
    "flatten": FLAT,
    "minimize_by_lbfgs": FLAT,
    "minimize_by_lbfgs_with_line_search": FLAT,
}
SKIPS["prodigy_of_the_authors"] = "every third element of a leaf is one of all its elements in a row: " + FLAT
# Numbers between two codes fall to either, as sums are rounded: in float32 one in some ten thousand does.
IN_CODES = [case.name for case in CASES if case.name.startswith("quantize_state")]
TIGHT = {torch.float64: 1e-10, torch.float32: 1e-6}


def told(found):
    """The problems of all ranks, for readers."""
    lines = {f"{case}: {problem}" for each in found for case, own in each.items() for problem in own}
    return "\n".join(sorted(lines))


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "tensor parallel"])  # another has what it has
def test_every_case_steps_shards_as_one_process_steps_the_whole(layout):
    dtype = torch.float32 if layout == "fsdp on 2" else torch.float64
    skips = [*SKIPS, *(IN_CODES if dtype == torch.float32 else ())]
    found = told(on_ranks("shards.law_of_the_pure_api", layout, dtype, TIGHT[dtype], skips))
    assert not found, found


# By the element, by leaves, along axes, by blocks, on whole matrices, by noise, of second derivatives.
ODD = "adamw lamb adafactor scale_by_sm3 adaptive_grad_clip adam_mini scale_by_muon soap kron add_noise adahessian"
ODD += " quantize_state_short_blocks quantize_state_4bit"


@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_rules_of_every_kind_step_leaves_that_lie_oddly(layout):
    found = told(on_ranks("shards.law_of_the_pure_api", layout, torch.float64, 1e-10, list(SKIPS), ODD.split()))
    found += told(on_ranks("shards.law_of_optimizers", layout, torch.float64, 1e-10, list(SKIPS), ["adamw", "lamb"]))
    assert not found, found


@pytest.mark.parametrize("layout", ["fsdp on 4", "hsdp 2 x 2"])
def test_rules_of_whole_matrices_are_bit_for_bit_those_of_one_process(layout):
    names = ["scale_by_muon", "torch_muon"]
    found = told(on_ranks("shards.law_of_the_pure_api", layout, torch.float32, 0.0, list(SKIPS), names))
    assert not found, found


@pytest.mark.parametrize("layout", ["fsdp on 2"])
def test_donating_steps_write_into_shards(layout):
    dtype = torch.float32 if layout == "fsdp on 2" else torch.float64
    found = told(on_ranks("shards.law_of_steps", layout, dtype, TIGHT[dtype], [*SKIPS, *IN_CODES]))
    found += told(on_ranks("shards.law_of_steps", layout, torch.float64, 1e-10, [], IN_CODES))
    assert not found, found


@pytest.mark.parametrize("layout", ["hsdp 2 x 2"])
def test_optimizers_step_shards(layout):
    found = told(on_ranks("shards.law_of_optimizers", layout, torch.float64, 1e-10, list(SKIPS)))
    assert not found, found


def test_dropin_classes_follow_those_of_torch_on_one_process():
    found = told(on_ranks("shards.dropins_on_fsdp"))
    assert not found, found


def test_reductions_are_whole_and_the_same_everywhere():
    found = told(on_ranks("shards.reductions"))
    assert not found, found


def test_the_guide_says_what_a_step_sends():
    guide = (Path(__file__).parent.parent / "docs/guides/sharded.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (\S+) \| (\S+) \|$", guide, re.MULTILINE)
    measured = on_ranks("shards.sent_by_steps")
    told = {name: (str(count), str(size)) for name, (count, size) in measured[0].items()}
    assert {name: (count, size) for name, count, size in rows} == told
    assert all(
        [count for count, _ in each.values()] == [count for count, _ in measured[0].values()] for each in measured
    )


def test_steps_that_donate_nothing_make_shards_by_kernels():
    found = told(on_ranks("shards.pure_steps"))
    assert not found, found


def test_gradients_in_parts_are_summed_once():
    found = told(on_ranks("shards.gradients_in_parts"))
    assert not found, found


def test_nothing_is_read_from_what_lies_in_parts():
    found = told(on_ranks("shards.host_reads", list(SKIPS)))
    assert not found, found


def test_vmap_does_not_go_through_a_collective():
    assert all("vmap cannot go through a collective" in message for message in on_ranks("shards.under_vmap"))


def test_a_mesh_of_one_process_sends_nothing():
    found = told(on_ranks("meshes.alone"))
    assert not found, found


def test_rules_of_whole_matrices_take_a_part_of_the_world():
    found = told(on_ranks("meshes.matrices_on_a_part_of_the_world"))
    assert not found, found


def test_processes_share_the_work_on_matrices():
    """Of eight matrices each of two processes does four: half of all products, and few collectives for all leaves."""
    for found in on_ranks("shards.shares_of_work"):
        for name, got in found.items():
            if got is not None:
                share, sent = got
                assert share <= 0.51, name
                assert sent <= 14, name  # of all branches, since what is watched computes them all


def test_matrices_of_several_kinds_go_through_two_collectives():
    found = told(on_ranks("meshes.matrices_of_several_kinds"))
    assert not found, found


def test_a_step_with_collectives_is_one_graph():
    found = told(on_ranks("meshes.compiled"))
    assert not found, found


def test_states_that_change_places_are_set_aside():
    found = told(on_ranks("shards.states_that_turn"))
    assert not found, found


def test_patterns_of_absent_gradients_of_shards_are_data():
    found = told(on_ranks("shards.patterns_of_absence"))
    assert not found, found
