"""The cost of eager functional AdamW, as a ratio to `torch.optim.AdamW(foreach=False)`.

Every contender takes the same steps on the same 100 float32 tensors of 32x32, in one process, on one thread.
A round times each of them once, in a random order, so that a slow moment of the machine meets them all
alike; a ratio compares times of one round, and the table shows quartiles over the rounds.

A second table is about the host's work of `Optimizer.step` for 148 tensors, so small that there is hardly any other,
against the foreach and fused forms of torch.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable

import torch

import optimfn as of

TENSORS, SHAPE = 100, (32, 32)
HOST_TENSORS, HOST_SHAPE = 148, (8,)
RATE, DECAY = 1e-3, 1e-2
BASELINE = "torch.optim.AdamW(foreach=False)"

Step = Callable[[], object]


def leaves(seed: int, count: int = TENSORS, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def parameters(count: int = TENSORS, shape: tuple[int, ...] = SHAPE) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(p) for p in leaves(0, count, shape)]
    for p, g in zip(params, leaves(1, count, shape), strict=True):
        p.grad = g
    return params


def pure_update(tx: of.GradientTransformation) -> Step:
    params, grads = leaves(seed=0), leaves(seed=1)
    state = tx.init(params)

    def step() -> None:
        nonlocal params, state
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)

    return step


def made_step(tx: of.GradientTransformation, donate: bool) -> Step:
    params, grads = leaves(seed=0), leaves(seed=1)
    state, take = tx.init(params), of.make_step(tx, donate=donate, backend="eager")

    def step() -> None:
        nonlocal params, state
        params, state = take(params, state, grads)

    return step


def contenders() -> dict[str, Step]:
    tx = of.adamw(RATE, weight_decay=DECAY)
    adamw = torch.optim.AdamW
    return {
        BASELINE: adamw(parameters(), RATE, weight_decay=DECAY, foreach=False).step,
        "tx.update + of.apply_updates": pure_update(tx),
        "of.make_step(tx, backend=eager)": made_step(tx, donate=False),
        "of.make_step(tx, donate=True, ...)": made_step(tx, donate=True),
        "of.Optimizer(params, tx, fused=False)": of.Optimizer(parameters(), tx, fused=False).step,
        "torch.optim.AdamW(foreach=True)": adamw(parameters(), RATE, weight_decay=DECAY, foreach=True).step,
    }


def host_contenders() -> dict[str, Step]:
    def params() -> list[torch.nn.Parameter]:
        return parameters(HOST_TENSORS, HOST_SHAPE)

    adamw, tx = torch.optim.AdamW, of.adamw(RATE, weight_decay=DECAY)
    idle = of.Optimizer(params(), of.adamw, learning_rate=RATE, weight_decay=DECAY)
    idle.step()
    idle._bound.take = lambda *_, **__: None
    return {
        "torch.optim.AdamW(fused=True)": adamw(params(), RATE, weight_decay=DECAY, fused=True).step,
        "torch.optim.AdamW(foreach=True)": adamw(params(), RATE, weight_decay=DECAY, foreach=True).step,
        "of.Optimizer(params, tx, fused=False)": of.Optimizer(params(), tx, fused=False).step,
        "of.Optimizer(params, of.adamw, ...)": of.Optimizer(
            params(), of.adamw, learning_rate=RATE, weight_decay=DECAY
        ).step,
        "  its bookkeeping alone": idle.step,
        "of.optim.AdamW(params)": of.optim.AdamW(params(), RATE, weight_decay=DECAY).step,
    }


def measure(steps: dict[str, Step], rounds: int, repeats: int, warmup: int = 20) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            step, start = steps[name], time.perf_counter()
            for _ in range(repeats):
                step()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="rounds, of which the quartiles are shown")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each contender in a round")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    random.seed(0)

    print(f"torch {torch.__version__}, optimfn {of.__version__}, {os.cpu_count()} CPUs, 1 thread")
    medians = table(contenders(), TENSORS, SHAPE, args)
    return medians | table(host_contenders(), HOST_TENSORS, HOST_SHAPE, args)


def table(steps: dict[str, Step], count: int, shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, float]:
    """Measure, print, and return the median ratios to the first contender."""
    seconds = measure(steps, args.rounds, args.repeats)
    baseline, medians = next(iter(steps)), {}
    size = "x".join(map(str, shape))
    print(f"\n{count} tensors of {size} float32, {args.rounds} rounds of {args.repeats} steps, against {baseline}\n")
    print(f"{'':38}{'ms/step':>9}{'ratio':>9}{'quartiles':>14}")
    for name, times in seconds.items():
        ratios = [own / base for own, base in zip(times, seconds[baseline], strict=True)]
        low, medians[name], high = statistics.quantiles(ratios, n=4)
        print(f"{name:38}{statistics.median(times) * 1e3:9.3f}{medians[name]:9.2f}{low:8.2f}{high:6.2f}")
    return medians


if __name__ == "__main__":
    main()
