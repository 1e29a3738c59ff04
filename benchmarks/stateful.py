"""What `Optimizer` and the drop-in classes cost beside a step's arithmetic, as ratios to torch.optim.AdamW.

Gradients that come and go, many groups whose rates change, optimizers of one parameter (as in a backward hook), and
first steps of many leaves. The contenders take turns in one process, on one thread, and processor time counts; a ratio
is the median of those of the turns. `--quick` takes few; compiling a step takes long, and is measured where it is asked
for, `--only compiled_step`.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

import optimfn as of
from optimfn.fused.run._shared import shared

Make = Callable[[Any], torch.optim.Optimizer]
CONTENDERS: dict[str, Make] = {
    "torch, fused": lambda params: torch.optim.AdamW(params, 1e-3, fused=True),
    "of.optim.AdamW": lambda params: of.optim.AdamW(params, 1e-3),
    "of.Optimizer": lambda params: of.Optimizer(params, of.adamw, learning_rate=1e-3),
}
RULES: dict[str, Make] = {  # whose operators the compiler sees
    "torch": lambda params: torch.optim.AdamW(params, 1e-3),
    "of.optim.AdamW(fused=False)": lambda params: of.optim.AdamW(params, 1e-3, fused=False),
    "of.Optimizer(fused=False)": lambda params: of.Optimizer(params, of.adamw, learning_rate=1e-3, fused=False),
}


def parameters(count: int, size: int = 64) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size)
    return params


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def absent_gradients(make: Make) -> Iterator[float]:
    """48 leaves, of which half have a gradient, others each time."""
    params = parameters(48)
    grads, optimizer, draw = [p.grad for p in params], make(params), random.Random(0)
    while True:
        for p, g in zip(params, grads, strict=True):
            p.grad = g if draw.random() < 0.5 else None
        yield seconds(optimizer.step)


def many_groups(make: Make) -> Iterator[float]:
    """296 groups of one parameter, each with a rate of its own that changes at every step."""
    optimizer = make([{"params": [p]} for p in parameters(296)])
    for step in itertools.count():
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 1e-3 / (1 + number + step)
        yield seconds(optimizer.step)


def one_parameter(make: Make) -> Iterator[float]:
    """Construction and first step of an optimizer of one parameter."""
    while True:
        (p,) = parameters(1)
        yield seconds(lambda p=p: make([p]).step())


def first_step(make: Make) -> Iterator[float]:
    """Construction and first step for 1,000 leaves."""
    while True:
        params = parameters(1000)
        shared.clear()
        yield seconds(lambda params=params: make(params).step())


def compiled_step(make: Make) -> Iterator[float]:
    """Compiling the step of 48 leaves, as `torch.compile(optimizer.step)` does at its first call."""
    while True:
        torch.compiler.reset()
        optimizer = make(parameters(48))
        optimizer.step()
        yield seconds(torch.compile(optimizer.step))


def compiled_rule(make: Make) -> Iterator[float]:
    """The same for the rule itself; what the compiler has kept of the first turn is there in the next."""
    yield from compiled_step(make)


def compiled_rule_anew(make: Make) -> Iterator[float]:
    """The same, and nothing is there."""
    while True:
        with fresh_cache():
            yield next(compiled_step(make))


TURNS = {absent_gradients: 300, many_groups: 60, one_parameter: 300, first_step: 3}
WARM = {
    absent_gradients: 60
}  # until patterns are planned: the first of them trace and compile, which is no step's time
COMPILED = {compiled_step: 3, compiled_rule: 3, compiled_rule_anew: 2}  # which take minutes


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=[situation.__name__ for situation in TURNS | COMPILED])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for situation, turns in (TURNS | (COMPILED if options.only else {})).items():
        if options.only not in (None, situation.__name__):
            continue
        contenders = RULES if situation in (compiled_rule, compiled_rule_anew) else CONTENDERS
        takes = {name: situation(make) for name, make in contenders.items()}
        warm = WARM.get(situation, int(situation in COMPILED) if turns < 10 else 5)
        turns = 10 if options.quick and turns >= 10 else turns
        times = [[next(take) for take in takes.values()] for _ in range(warm + turns)][warm:]
        medians = dict(zip(takes, map(statistics.median, zip(*times, strict=True)), strict=True))
        ratios = [statistics.median(row[i] / row[0] for row in times) for i in range(len(takes))]
        found[situation.__name__] = dict(zip(takes, ratios, strict=True))
        said = "  ".join(
            f"{name} {1e3 * medians[name]:.3f} ms ({found[situation.__name__][name]:.2f})" for name in takes
        )
        print(f"{situation.__name__:18} {said}")
    return found


if __name__ == "__main__":
    main()
