"""What `Optimizer` and the drop-in classes cost beside a step's arithmetic, as ratios to torch.optim.AdamW.

Gradients that come and go, many groups whose rates change, optimizers of one parameter (as in a backward hook), and
first steps of many leaves. The contenders take turns in one process; a ratio is that of medians. `--quick` takes few.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import optimfn as of

Make = Callable[[Any], torch.optim.Optimizer]
CONTENDERS: dict[str, Make] = {
    "torch, fused": lambda params: torch.optim.AdamW(params, 1e-3, fused=True),
    "of.optim.AdamW": lambda params: of.optim.AdamW(params, 1e-3),
    "of.Optimizer": lambda params: of.Optimizer(params, of.adamw, learning_rate=1e-3),
}


def parameters(count: int, size: int = 64) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size)
    return params


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def absent_gradients(make: Make, rounds: int) -> list[float]:
    """48 leaves, of which half have a gradient, others each time."""
    params, times = parameters(48), []
    grads, optimizer, draw = [p.grad for p in params], make(params), random.Random(0)
    for _ in range(30 + rounds):
        for p, g in zip(params, grads, strict=True):
            p.grad = g if draw.random() < 0.5 else None
        times.append(seconds(optimizer.step))
    return times[30:]


def many_groups(make: Make, rounds: int) -> list[float]:
    """296 groups of one parameter, each with a rate of its own that changes at every step."""
    optimizer, times = make([{"params": [p]} for p in parameters(296)]), []
    for step in range(3 + rounds):
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 1e-3 / (1 + number + step)
        times.append(seconds(optimizer.step))
    return times[3:]


def one_parameter(make: Make, rounds: int) -> list[float]:
    """Construction and first step of an optimizer of one parameter."""
    return [seconds(lambda p=p: make([p]).step()) for p in parameters(5 + rounds)][5:]


def first_step(make: Make, rounds: int) -> list[float]:
    """Construction and first step for 1,000 leaves."""
    del rounds
    params = parameters(1000)
    return [seconds(lambda: make(params).step())]


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 5 if parser.parse_args(argv).quick else 200
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for situation in (absent_gradients, many_groups, one_parameter, first_step):
        medians = {name: statistics.median(situation(make, rounds)) for name, make in CONTENDERS.items()}
        found[situation.__name__] = medians
        best = medians["torch, fused"]
        said = "  ".join(f"{name} {1e3 * own:.3f} ms ({own / best:.2f})" for name, own in medians.items())
        print(f"{situation.__name__:18} {said}")
    return found


if __name__ == "__main__":
    main()
