"""What lies in shards on several processes steps as on one: see `shards` for the layouts and what is compared."""

import pytest
import torch
from ranks import on_ranks
from shards import LAYOUTS

FLAT = "one vector of all elements cannot be cut where uneven shards of the leaves are"
# Cases that do not hold on shards yet, each with the reason. This list only shrinks.
SKIPS = {
    "flatten": FLAT,
    "minimize_by_lbfgs": FLAT,
    "minimize_by_lbfgs_with_line_search": FLAT,
    "muon_as_torch": "the products of shards of a matrix are rounded to bfloat16 in another order",
    "muon_as_torch_changed": "the same",
    "muon": "the same",
}
TIGHT = {torch.float64: 1e-10, torch.float32: 1e-6}


def told(found):
    """The problems of all ranks, for readers."""
    lines = {f"{case}: {problem}" for each in found for case, own in each.items() for problem in own}
    return "\n".join(sorted(lines))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_case_steps_shards_as_one_process_steps_the_whole(layout):
    dtype = torch.float32 if layout == "fsdp on 2" else torch.float64
    found = told(on_ranks("shards.law_of_the_pure_api", layout, dtype, TIGHT[dtype], list(SKIPS)))
    assert not found, found


def test_reductions_are_whole_and_the_same_everywhere():
    found = told(on_ranks("shards.reductions"))
    assert not found, found


def test_a_step_takes_as_many_collectives_as_it_has_stages():
    assert on_ranks("shards.collectives_of_steps")[0] == {
        "adamw": 0,
        "clip": 1,
        "lamb": 2,
        "apply_if_finite": 1,
        "sm3": 1,
        "noise": 0,
    }


def test_nothing_is_read_from_what_lies_in_parts():
    found = told(on_ranks("shards.host_reads", list(SKIPS)))
    assert not found, found


def test_vmap_does_not_go_through_a_collective():
    assert all("vmap cannot go through a collective" in message for message in on_ranks("shards.under_vmap"))
