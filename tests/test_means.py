"""Means over replicas, whole and compressed, against one process and against torch's own hooks; jobs are in `means`."""

import pytest
import torch
import torch.distributed as dist
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
