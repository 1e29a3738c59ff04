"""What first steps, and steps whose gradients come and go, cost beside those of `torch.optim.AdamW(fused=True)`.

- First steps of models of 148 and of 1,000 leaves, of a rule that this process has not traced, once its kernels are
  compiled, and of one that it has.
- Steps of 48 leaves of which each has a gradient with probability one half, a new pattern every time.
- Optimizers of one parameter each, as in a backward pass that steps: construction and first step.

Contenders take turns in one process, on two threads; medians are shown, in seconds or microseconds. `--quick` takes a
few seconds.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch

import optimfn as of
from optimfn.fused.run._shared import shared

Tensors = dict[str, torch.Tensor]


def leaves(count: int, side: int = 8) -> Tensors:
    return {str(i): torch.randn(side, side) if i % 2 else torch.randn(side) for i in range(count)}


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def first_step(make: Callable[[], of.GradientTransformation], count: int, *, traced: bool) -> float:
    """Seconds of the first step of a new step function."""
    if not traced:
        shared.clear()
    tx, params = make(), leaves(count)
    state, grads = tx.init(params), leaves(count)
    step = of.make_step(tx, donate=True, backend="fused")
    return timed(lambda: step(params, state, grads))


def torch_first_step(count: int) -> float:
    params = [torch.nn.Parameter(p) for p in leaves(count).values()]
    for p in params:
        p.grad = torch.randn_like(p)
    opt = torch.optim.AdamW(params, fused=True)
    return timed(opt.step)


def show_first_steps(repeats: int) -> None:
    rules = {
        "adamw": lambda: of.adamw(1e-3),
        "clip, adamw": lambda: of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3)),
    }
    print("first step, seconds            leaves   not traced       traced   torch fused")
    for name, make in rules.items():
        first_step(make, 4, traced=False)  # compiles
        for count in (148, 1000):
            own = [[first_step(make, count, traced=traced) for _ in range(repeats)] for traced in (False, True)]
            theirs = [torch_first_step(count) for _ in range(repeats)]
            new, again, other = map(statistics.median, (*own, theirs))
            print(f"  {name:28s} {count:6d} {new:12.3f} {again:12.4f} {other:13.4f}")


def show_absent_gradients(steps: int) -> None:
    print("48 leaves, half of the gradients absent at random, microseconds a step")
    torch.manual_seed(0)
    params = leaves(48, side=64)
    theirs = [torch.nn.Parameter(p.clone()) for p in params.values()]
    opt = torch.optim.AdamW(theirs, fused=True)
    take: dict[str, Callable[[Tensors], object]] = {}
    for name, tx in (("adamw", of.adamw(1e-3)), ("clip, adamw", of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3)))):
        own = of.tree.map(torch.clone, params)
        take[name] = of.make_step(tx, donate=True, backend="fused").bind(own, tx.init(own))
    times: dict[str, list[float]] = {name: [] for name in (*take, "torch fused")}
    for _ in range(steps):
        here = torch.rand(48) < 0.5
        grads = {n: torch.randn_like(p) if x else None for (n, p), x in zip(params.items(), here, strict=True)}
        for name, step in take.items():
            times[name].append(timed(functools.partial(step, grads)))
        for p, g in zip(theirs, grads.values(), strict=True):
            p.grad = g
        times["torch fused"].append(timed(opt.step))
    for name, found in times.items():
        print(f"  {name:28s} {1e6 * statistics.median(found[steps // 5 :]):8.0f}")


def show_single_parameters(count: int) -> None:
    print("optimizers of one parameter: construction and first step, microseconds")

    def own() -> float:
        params, grads = {"p": torch.randn(4, 3)}, {"p": torch.randn(4, 3)}

        def run() -> None:
            tx = of.adamw(1e-3)
            of.make_step(tx, donate=True).bind(params, tx.init(params))(grads)

        return timed(run)

    def theirs() -> float:
        p = torch.nn.Parameter(torch.randn(4, 3))
        p.grad = torch.randn(4, 3)
        return timed(lambda: torch.optim.AdamW([p], fused=True).step())

    for name, run in {"make_step(of.adamw(...)).bind": own, "torch fused": theirs}.items():
        found = [run() for _ in range(count)]
        print(f"  {name:28s} {1e6 * statistics.median(found[count // 10 :]):8.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(2)
    show_first_steps(3 if quick else 9)
    show_absent_gradients(100 if quick else 2000)
    show_single_parameters(200 if quick else 1000)
