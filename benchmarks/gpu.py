"""CUDA: host time of a step, eager and replayed, and the time of the device, for 148 tensors.

Contenders take turns in random order in one process; a ratio compares times of one round. Host time is that until the
call returns, device time that until the work is done.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

import optimfn as of

SHAPES = [(512, 512)] * 36 + [(512,)] * 112
Step = Callable[[], object]


def parameters(device: str) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(device)
    return params


def replayed(optimizer: torch.optim.Optimizer) -> Step:
    """A graph of the step, captured by hand."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def contenders(device: str) -> dict[str, Step]:
    adamw = torch.optim.AdamW
    chain = of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3))
    return {
        "torch.optim.AdamW(fused=True)": adamw(parameters(device), fused=True).step,
        "torch.optim.AdamW(foreach=True)": adamw(parameters(device), foreach=True).step,
        "of.Optimizer(params, of.adamw)": of.Optimizer(parameters(device), of.adamw(1e-3)).step,
        "of.Optimizer(params, clip + adamw)": of.Optimizer(parameters(device), chain).step,
        "replay: torch.optim.AdamW(fused=True)": replayed(adamw(parameters(device), fused=True, capturable=True)),
        "replay: of.adamw": of.cuda.capture(of.Optimizer(parameters(device), of.adamw(1e-3)).step),
        "replay: clip + of.adamw": of.cuda.capture(of.Optimizer(parameters(device), chain).step),
    }


def measure(steps: dict[str, Step], rounds: int, repeats: int, warmup: int = 6) -> dict[str, list[tuple[float, float]]]:
    """`(host seconds, device seconds)` per step, of each contender in each round."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            step = steps[name]
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            called = time.perf_counter()
            torch.cuda.synchronize()
            found[name].append(((called - start) / repeats, (time.perf_counter() - start) / repeats))
    return found


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=10, help="steps of each contender in a round")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", help="a file for the medians, as JSON")
    args = parser.parse_args(argv)
    random.seed(0)

    found = measure(contenders(args.device), args.rounds, args.repeats)
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"{name}, torch {torch.__version__}, optimfn {of.__version__}, {len(SHAPES)} tensors\n")
    print(f"{'':40}{'host us':>9}{'total us':>10}{'ratio':>8}{'quartiles':>14}")
    baseline, medians = next(iter(found.values())), {}
    for name, times in found.items():
        host, total = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
        ratios = [own[1] / base[1] for own, base in zip(times, baseline, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        medians[name] = (host, total)
        print(f"{name:40}{host:9.1f}{total:10.1f}{ratio:8.2f}{low:8.2f}{high:6.2f}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(medians, file, indent=1)
    return medians


if __name__ == "__main__":
    main()
