"""What a step of parameters in shards costs, as ratios to torch's foreach AdamW on the same DTensors.

148 tensors of a small GPT's shapes on two processes (gloo), each with half of the rows. The contenders take turns; a
ratio is that of medians on the first process. `--quick` takes few rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import optimfn as of

WIDTH, BLOCKS, WORLD = 64, 12, 2
BLOCK = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
SHAPES = [
    (128, WIDTH),
    *(BLOCK + [(shape[0],) for shape in BLOCK] + [(WIDTH,)] * 4) * BLOCKS,
    (WIDTH,),
    (WIDTH,),
    (128,),
]


def clipped_by_torch(params: list[torch.nn.Parameter]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(params, 1e-3, foreach=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[[list[torch.nn.Parameter]], Callable[[], object]]] = {
    "torch, foreach": lambda params: torch.optim.AdamW(params, 1e-3, foreach=True).step,
    "of.optim.AdamW": lambda params: of.optim.AdamW(params, 1e-3).step,
    "of.Optimizer": lambda params: of.Optimizer(params, of.adamw, learning_rate=1e-3).step,
    "torch, foreach, clip": clipped_by_torch,
    "of.Optimizer, clip": lambda params: (
        of.Optimizer(params, of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3))).step
    ),
}


def measure(rank: int, store: str, rounds: int) -> None:
    """What one process does; the first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))

    def shard(x: Tensor) -> DTensor:
        return distribute_tensor(x, mesh, [Shard(0)])

    steps, times = {}, {name: [] for name in CONTENDERS}
    for name, make in CONTENDERS.items():
        params = [torch.nn.Parameter(shard(torch.randn(shape))) for shape in SHAPES]
        for p in params:
            p.grad = shard(torch.randn(p.shape))
        steps[name] = make(params)
    for number in range(5 + rounds):
        for name, step in steps.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            if number >= 5:
                times[name].append(time.perf_counter() - start)
    if rank == 0:
        for name, taken in times.items():
            peer = "torch, foreach, clip" if name.endswith("clip") else "torch, foreach"
            median = statistics.median(taken)
            print(f"{name:22} {median * 1e3:8.2f} ms {median / statistics.median(times[peer]):6.2f}")
    dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 5 if parser.parse_args(argv).quick else 100
    with tempfile.TemporaryDirectory() as store:
        torch.multiprocessing.spawn(measure, (store, rounds), WORLD)


if __name__ == "__main__":
    main()
