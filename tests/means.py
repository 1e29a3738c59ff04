"""Jobs about what replicas say to each other; see `ranks`."""

import torch
import torch.distributed as dist
from shards import MESHES

from optimfn.distributed import _comm as comm


def is_here(size):
    """Whether this rank is among the first two, or the four."""
    return dist.get_rank() < size


def own_tree(rank, dtype=torch.float32):
    """Leaves of several dtypes and shapes, one absent, others on each rank."""
    return {
        "a": torch.full((3, 2), 1.0 + rank, dtype=dtype),
        "none": None,
        "b": [torch.tensor(2.0 * rank, dtype=torch.float64), torch.zeros(0)],
        "c": torch.full((4,), 1.0 + 1j * rank),
    }


def verbs():
    """What is wrong with the collectives of `_comm` on two ranks."""
    if not is_here(2):
        return []
    peers, rank = comm.Peers(MESHES["two"]), dist.get_rank()
    sent, found = own_tree(rank), []
    want = {
        "a": torch.full((3, 2), 1.5),
        "b": [torch.tensor(1.0).double(), torch.zeros(0)],
        "c": torch.full((4,), 1 + 0.5j),
    }
    flights = {
        "mean": comm.mean(sent, peers),
        "one by one": comm.mean(sent, peers, None, 1),
        "in low precision": comm.mean(sent, peers, torch.bfloat16),
        "in flight": comm.waited(comm.start_mean(sent, peers).in_flight()),
        "compiled": torch.compile(lambda x: comm.mean(x, peers), fullgraph=True, backend="aot_eager")(
            {"a": sent["a"], "b": sent["b"], "none": None, "c": sent["c"]}
        ),
    }
    for name, got in flights.items():
        if got["none"] is not None or not torch.equal(got["a"], want["a"]) or not torch.equal(got["c"], want["c"]):
            found.append(f"{name}: {got}")
        if not torch.equal(got["b"][0], want["b"][0]) or got["b"][1].shape != (0,):
            found.append(f"{name}: {got}")
    rows = torch.arange(4.0).reshape(2, 2) + 10 * rank
    one_by_one = {
        "gather": (comm.all_gather(rows[0], peers), torch.tensor([[0.0, 1], [10, 11]])),
        "exchange": (
            comm.all_to_all(rows, peers),
            torch.tensor([[2.0 * rank, 2 * rank + 1], [10 + 2 * rank, 11 + 2 * rank]]),
        ),
        "scatter": (comm.reduce_scatter(rows, peers), torch.tensor([10.0 + 4 * rank, 12 + 4 * rank])),
        "broadcast": (comm.broadcast(rows[0], 1, peers), torch.tensor([10.0, 11])),
        "max": (comm.all_reduce(rows[0], peers, "max"), torch.tensor([10.0, 11])),
    }
    found += [f"{name}: {got}" for name, (got, wanted) in one_by_one.items() if not torch.equal(got, wanted)]
    w = torch.ones(2, requires_grad=True)
    comm.mean({"w": w * (rank + 1)}, peers)["w"].sum().backward()
    return found if torch.equal(w.grad, torch.full((2,), (rank + 1) / 2)) else [*found, f"derivative: {w.grad}"]
