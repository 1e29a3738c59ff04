"""What is left to wait for when a collective was on its way during other work: T14 of the distributed rules.

    python benchmarks/overlap.py

Two processes of gloo. `T` is the time of an all-reduce that is waited for, the median of 7; then one is begun, 1.3 T
pass, and the rest is waited for, the median of 5. The ratio should be below 0.2.
"""

import os
import statistics
import tempfile
import time

import torch
import torch.distributed as dist

import optimfn as of
from optimfn.distributed import _comm, _flight

NUMBERS = 8_000_000


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def left(begin, wait, pause):
    """The median time that `wait` takes for what `begin` has returned a while before."""
    found = []
    for _ in range(5):
        dist.barrier()
        begun = begin()
        time.sleep(pause)
        found.append(timed(lambda begun=begun: wait(begun)))
    return statistics.median(found)


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mean = of.distributed.all_reduce_mean(None)
    leaf = torch.ones(NUMBERS)
    whole = statistics.median(timed(lambda: mean.update(leaf, mean.init(leaf))) for _ in range(7))
    late, peers = of.distributed.deferred(mean), _comm.Peers(None)
    model = torch.nn.Linear(2000, NUMBERS // 2000, bias=False)
    model.weight.grad = torch.ones_like(model.weight)
    heat = of.optim.DataParallelOptimizer(torch.optim.SGD(model.parameters(), lr=0.0))
    own = torch.nn.Parameter(torch.zeros_like(leaf))
    own.grad, behind = leaf, of.Optimizer([own], late)

    def begin():
        return _comm.start_mean(leaf, peers)

    results = {
        "deferred": left(lambda: late.update(leaf, late.init(leaf))[1], of.distributed.flush, 1.3 * whole),
        "deferred, Optimizer": left(lambda: behind.step() or behind.state_tree(), of.distributed.flush, 1.3 * whole),
        "outer_sync(delay=...)": left(
            lambda: _flight.launch(begin, peers, leaf.device), lambda t: _flight.land(t, begin, peers), 1.3 * whole
        ),
        "DataParallelOptimizer": left(heat.step, lambda _: heat._departure.wait(), 1.3 * whole),
    }
    if rank == 0:
        print(f"T = {whole * 1e3:.1f} ms, {NUMBERS} float32")
        for name, rest in results.items():
            print(f"{name:24}{rest * 1e3:8.2f} ms left, {rest / whole:.3f} of T")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(main, (folder,), 2)
