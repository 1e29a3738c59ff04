"""Means over replicas, whole and compressed, against one process and against torch's own hooks; jobs are in `means`."""

import functools
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import assert_trees_equal
from means import COMPRESSORS, TOLD, far, steps_of
from oracles import compression
from ranks import on_ranks

import optimfn as of
from optimfn.distributed import _comm as comm


def no_problems(found):
    problems = {f"rank {rank}: {x}" for rank, own in enumerate(found) for x in own or []}
    assert not problems, "\n".join(sorted(problems))


def test_what_is_said_arrives():
    no_problems(on_ranks("means.verbs"))


def test_a_process_that_is_alone_says_nothing():
    assert not dist.is_initialized()
    peers, x = comm.Peers(None), {"a": torch.ones(2), "b": None}
    assert (peers.size, peers.rank) == (1, 0)
    assert comm.mean(x, peers)["a"] is x["a"]
    assert torch.equal(comm.all_gather(x["a"], peers), torch.ones(1, 2))


def test_a_group_is_one():
    with pytest.raises(TypeError, match=r"group must be a process group, .* got 3"):
        comm.Peers(3)


def test_members_of_a_batch_cannot_communicate():
    with pytest.raises(RuntimeError, match="adam communicates, which vmap cannot do"):
        torch.func.vmap(lambda x: (comm.check_whole("adam", x), x)[1])(torch.ones(3))
    comm.check_whole("adam", of.tree.zeros_like({"a": torch.ones(2)}))


@pytest.mark.parametrize("size", [2, 4])
def test_replicas_with_parts_of_a_batch_are_one_process_with_all_of_it(size):
    no_problems(on_ranks("means.whole_means", size))


RULES = {
    "cast": compression.cast,
    "powersgd 1": compression.powersgd,
    "powersgd 4": functools.partial(compression.powersgd, rank=4, min_rate=1.0),
    "sign_1bit": compression.sign_1bit,
    "int8_block": compression.int8_block,
    "topk": compression.topk,
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", list(RULES))
def test_compressed_means_are_those_of_one_process_with_all_replicas(name, size):
    dtype = torch.float64 if "powersgd" in name else torch.float32
    # Two replicas add up in one order. Of four, three sums of up to 5 are rounded, in bfloat16 by 2^-9, on either side.
    near = {"cast": 6 * 5 * 2**-9, "powersgd 1": 1e-12, "powersgd 4": 1e-12}.get(name, 6 * 5 * 2**-24)
    near = 0.0 if size == 2 and dtype == torch.float32 else near
    for feedback in (True, False):
        found = on_ranks("means.compressed", name, size, 4, feedback, dtype)[:size]
        sequence = [[of.tree.leaves(x) for x in replicas] for replicas in steps_of(size, 4, dtype)]
        first = COMPRESSORS[name]().init(sequence[0][0], comm.Peers(None))
        memory = dict(enumerate(first.factors)) if name.startswith("powersgd") else {}
        means, errors = compression.simulate(RULES[name], sequence, memory, feedback)
        for rank, (got, state, _) in enumerate(found):
            for step, (x, y) in enumerate(zip(got, means, strict=True)):
                assert_trees_equal(x, found[0][0][step])  # bit for bit on all replicas
                assert far(of.tree.leaves(x), y) <= near
            assert not feedback or far(of.tree.leaves(state.error), errors[rank]) <= near


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own hooks
@pytest.mark.parametrize(("name", "rank"), [("powersgd", 1), ("powersgd", 2), ("powersgd", 4), ("bf16", 0)])
def test_compressed_means_are_those_of_torchs_hooks(name, rank):
    # Of four, gloo adds up an element in an order that depends on where it lies, and rounds to bfloat16 in between.
    for size in (2,) if name == "bf16" else (2, 4):
        for steps in on_ranks("means.ddp_and_rules", size, name, rank)[:size]:
            assert max(steps) <= 1e-6


def test_means_after_no_sync_are_those_of_ddp():
    assert max(on_ranks("means.after_no_sync")[:2]) <= 1e-7


@pytest.mark.parametrize("name", list(RULES))
def test_what_was_not_sent_yet_survives_checkpoints(name, tmp_path):
    folder = str(tmp_path / "checkpoint")
    saved = on_ranks("means.saved_and_read", name, 2, folder, True)[:2]
    same = on_ranks("means.saved_and_read", name, 2, folder, False)[:2]
    for was, now in zip(saved, same, strict=True):
        assert_trees_equal(now, was)  # each its own, bit for bit, and so the next steps
    for one in on_ranks("means.saved_and_read", name, 4, folder, False):
        assert far(one[0], saved[0][0]) <= 1e-6
        assert len(one) < 4 or torch.equal(one[2], saved[0][2])


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own wrappers
def test_compressors_are_hooks_of_torchs_wrappers():
    for found in on_ranks("means.hooks"):
        assert max(found.values()) <= 1e-6, found


def test_a_mean_travels_behind_an_optimizer(tmp_path):
    no_problems(on_ranks("means.travelling", str(tmp_path / "checkpoint")))


def test_the_guide_says_what_a_step_sends():
    two, four = on_ranks("means.sent_in_a_step", 2), on_ranks("means.sent_in_a_step", 4)
    assert all(one == two[0] for one in two[:2])
    assert all(one == four[0] for one in four)
    guide = (Path(__file__).parent.parent / "docs/guides/means.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (\d+) \| (\d+) \| (\d+) \|$", guide, re.MULTILINE)
    assert rows == [(name, *map(str, (*two[0][name][:2], four[0][name][1]))) for name in TOLD]
    assert not any(at_start for found in (two[0], four[0]) for *_, at_start in found.values())


def test_means_are_one_graph():
    no_problems(on_ranks("means.compiled", [name for name in TOLD if "powersgd" in name or "sign" in name]))


def test_means_of_shards_are_those_of_what_each_process_has():
    no_problems(on_ranks("means.on_shards"))
