"""DASO on two nodes of two processes, against a transcription of Heat's in one process."""

import clusters
import pytest
import torch
from ranks import on_ranks


@pytest.mark.parametrize("name", clusters.CONFIGS)
def test_it_does_what_heat_does(name):
    wanted, schedule = clusters.simulated(name)
    assert len({entry[2:5] for entry in schedule}) >= (5 if name == "all phases" else 2)  # the phases are there
    for rank, (got, own) in enumerate(on_ranks("clusters.trace", name)):
        assert own == schedule
        for here, there in zip(got, wanted, strict=True):
            torch.testing.assert_close(here, there[rank], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "form"), [("all phases", "trace"), ("long waits", "by_class")])
def test_each_sends_its_part_and_nodes_end_every_epoch_together(name, form):
    traces = [found for found, _ in on_ranks(f"clusters.{form}", name, False)]
    for epoch in zip(*traces, strict=True):
        for other in epoch[1:]:
            torch.testing.assert_close(other, epoch[0], rtol=0, atol=0)
    # While all wait for each other the rule is Heat's, but for the order of the sums.
    wanted, _ = clusters.simulated(name)
    for epoch in range(4):
        torch.testing.assert_close(traces[0][epoch], wanted[epoch][0], rtol=0, atol=1e-5)
    # And in the end it has come as far.
    torch.testing.assert_close(traces[0][-1], wanted[-1][0], rtol=0, atol=0.1)


@pytest.mark.parametrize("exact", [True, False])
def test_a_checkpoint_while_something_is_on_its_way_changes_nothing(tmp_path, exact):
    whole = on_ranks("clusters.trace", "in bfloat16", exact)
    cut = on_ranks("clusters.trace", "in bfloat16", exact, (str(tmp_path), 71))  # 6 epochs and 5 batches on
    for (one, first), (other, second) in zip(whole, cut, strict=True):
        assert first == second
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("exact", [True, False])
def test_complex_leaves_are_their_parts(exact):
    for a, b, c, d in on_ranks("clusters.complex_as_reals", exact):
        # Complex numbers are divided otherwise: 99 times an error of some units of 2^-22, of numbers below 4.
        torch.testing.assert_close((a, b), (c, d), rtol=0, atol=1e-4)


def test_shards_are_refused_when_it_is_made():
    for said in on_ranks("clusters.refused"):
        assert "parameter w is a DTensor" in said[0]
        assert "parameter 0.0 is a DTensor" in said[1]
