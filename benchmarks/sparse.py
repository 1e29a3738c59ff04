"""What a step costs whose gradient is a few rows of a table, beside the same class of torch.optim.

A table of a million rows of 64 numbers, a gradient of 1,000 of them, new ones each step. The two take turns in one
process, on one thread; medians of the milliseconds of a step are shown, and their ratio. `--quick` takes a few seconds.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import optimfn as of

Make = Callable[[list[torch.nn.Parameter]], Any]
PAIRS: dict[str, tuple[Make, Make]] = {
    "SparseAdam": (torch.optim.SparseAdam, of.optim.SparseAdam),
    "SGD": (lambda ps: torch.optim.SGD(ps, lr=0.1), lambda ps: of.optim.SGD(ps, lr=0.1)),
    "SGD, momentum": (lambda ps: torch.optim.SGD(ps, 0.1, 0.9), lambda ps: of.optim.SGD(ps, 0.1, 0.9)),
    "Adagrad": (torch.optim.Adagrad, of.optim.Adagrad),
    "rows(adamw), to SparseAdam": (torch.optim.SparseAdam, lambda ps: of.Optimizer(ps, of.rows(of.adamw(1e-3)))),
    "rows(rowwise_adagrad), to Adagrad": (
        torch.optim.Adagrad,
        lambda ps: of.Optimizer(ps, of.rows(of.rowwise_adagrad(1e-2))),
    ),
}


def gradient(seed: int, rows: int, width: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, rows, (1, count), generator=generator)
    values = torch.randn(count, width, generator=generator)
    return torch.sparse_coo_tensor(index, values, (rows, width), check_invariants=False)


def compare(makes: tuple[Make, Make], rows: int, width: int, count: int, steps: int) -> tuple[float, float]:
    """Milliseconds of a step of torch's and of ours."""
    params = [torch.nn.Parameter(torch.zeros(rows, width)) for _ in makes]
    optimizers = [make([p]) for make, p in zip(makes, params, strict=True)]
    times: list[list[float]] = [[], []]
    for step in range(steps + 3):
        for p, optimizer, own in zip(params, optimizers, times, strict=True):
            p.grad = gradient(step, rows, width, count)
            start = time.perf_counter()
            optimizer.step()
            own.append(1e3 * (time.perf_counter() - start))
    own, other = (statistics.median(each[3:]) for each in times)
    return own, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Sparse invariant checks")
    size = (20_000, 64, 1000, 5) if quick else (1_000_000, 64, 1000, 60)
    print(f"a gradient of {size[2]} rows of {size[0]} x {size[1]}  torch ms   ours ms   ratio")
    for name, makes in PAIRS.items():
        own, other = compare(makes, *size)
        print(f"{name:40} {own:9.2f} {other:9.2f} {other / own:7.2f}", flush=True)


if __name__ == "__main__":
    main()
