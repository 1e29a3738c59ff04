"""The time of one step of many models at once, as a ratio to a loop over as many models and torch.optim.AdamW.

    python benchmarks/population.py                    # every workload, 64 models
    python benchmarks/population.py digits --members 256

Each model is a multilayer perceptron with a learning rate of its own. The loop has a module and an optimizer for each;
of torch's three implementations the fastest is shown, and the default. Ours are one stack: `of.stacked` as eager
operators, and behind `make_step`, pure and donating. First the optimizers alone, then training steps from the data on.
Rounds are taken and dropped as in step.py. The memory is that of a process of its own: what its peak rose by while
models, gradients and optimizer were made and ten training steps taken; and the bytes of the optimizer's state.
"""

import argparse
import gc
import itertools
import multiprocessing
import os
import platform
import random
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from step import Step, measure
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

import optimfn as of

WORKLOADS = {"tiny": (16, 16, 4), "digits": (64, 32, 10), "deep": (64, 32, 32, 32, 10)}  # widths of the layers
BATCH = 32
TORCH: dict[str, dict[str, bool]] = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
OURS: dict[str, dict[str, object]] = {
    "eager": {"backend": "eager"},
    "pure": {"backend": "fused"},
    "donating": {"backend": "fused", "donate": True},
}


def perceptron(widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(widths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH, widths[0]), torch.randint(widths[-1], (BATCH,))


def torch_steps(
    widths: tuple[int, ...], members: int, options: dict[str, bool]
) -> tuple[Step, Step, Callable[[], int]]:
    """All optimizers, all training steps, and the bytes of the states."""
    x, y = data(widths)
    models = [perceptron(widths) for _ in range(members)]
    rates = torch.logspace(-4, -1, members).tolist()
    optimizers = [
        torch.optim.AdamW(model.parameters(), rate, **options) for model, rate in zip(models, rates, strict=True)
    ]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    def train() -> None:
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    train()  # so that there are gradients
    return step, train, lambda: sum(nbytes(s) for o in optimizers for s in o.state.values())


def our_steps(
    widths: tuple[int, ...], members: int, options: dict[str, object]
) -> tuple[Step, Step, Callable[[], int]]:
    """The stack's optimizer, its training step, and the bytes of the state."""
    x, y = data(widths)
    models = [perceptron(widths) for _ in range(members)]
    stack, _ = stack_module_state(models)
    params = {name: p.detach() for name, p in stack.items()}
    template, models = models[0].to("meta"), []
    tx = of.stacked(of.adamw, learning_rate=torch.logspace(-4, -1, members), weight_decay=1e-2)
    own, take = [params, tx.init(params)], of.make_step(tx, **options)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(template, params, x), y)

    gradients = vmap(grad(loss))
    example = gradients(params)

    def step() -> None:
        own[:] = take(*own, example)

    def train() -> None:
        own[:] = take(*own, gradients(own[0]))

    return step, train, lambda: nbytes(own[1])


def nbytes(nest: of.Tree) -> int:
    return sum(x.nbytes for x in of.tree.leaves(nest) if isinstance(x, Tensor))


def memory(widths: tuple[int, ...], members: int, name: str, threads: int) -> tuple[float, float]:
    """MiB by which the peak rose, and MiB of the state."""
    torch.set_num_threads(threads)
    make, options = (torch_steps, TORCH[name]) if name in TORCH else (our_steps, OURS[name])
    make(widths, 2, options)[1]()  # what torch and the compiler set up on first use does not count
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    _, train, state = make(widths, members, options)
    for _ in range(10):
        train()
    return resident("VmHWM") - before, state() / 2**20


def resident(which: str) -> float:
    """MiB of memory that this process has now, or had at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def report(workload: str, members: int, rounds: int, seconds: float) -> None:
    widths = WORKLOADS[workload]
    size = sum(p.numel() for p in perceptron(widths).parameters())
    print(f"\n{workload}: {members} models of {size} parameters in {2 * len(widths) - 2} tensors, batches of {BATCH}")
    made = {name: torch_steps(widths, members, options) for name, options in TORCH.items()}
    made |= {name: our_steps(widths, members, options) for name, options in OURS.items()}
    for kind, title in enumerate(("optimizers alone", "training steps")):
        times, dropped = measure({name: own[kind] for name, own in made.items()}, rounds, seconds)
        if len(times["default"]) < 2:
            print(f"{title}: disturbed, {dropped} rounds dropped")
            continue
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"{title:20}{'ms':>9}{'times faster than default':>28}{'quartiles':>16}{'than the fastest':>18}")
        fastest = min(TORCH, key=medians.__getitem__)
        for name, values in times.items():
            ratios = [base / own for base, own in zip(times["default"], values, strict=True)]
            best = statistics.median(base / own for base, own in zip(times[fastest], values, strict=True))
            low, middle, high = statistics.quantiles(ratios, n=4)
            quartiles = f"{low:.2f} to {high:.2f}"
            print(f"  {name:18}{medians[name] * 1e3:9.3f}{middle:28.2f}{quartiles:>16}{best:18.2f}")
        print(f"  {dropped} rounds dropped", flush=True)


def report_memory(workload: str, members: int, threads: int) -> None:
    print(f"{'memory':20}{'peak MiB':>9}{'state MiB':>11}")
    spawn = multiprocessing.get_context("spawn")
    for name in (*TORCH, *OURS):
        with spawn.Pool(1) as pool:
            peak, state = pool.apply(memory, (WORKLOADS[workload], members, name, threads))
        print(f"  {name:18}{peak:9.1f}{state:11.2f}", flush=True)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=[*WORKLOADS], help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--members", type=int, default=64, help="number of models")
    parser.add_argument("--rounds", type=int, default=21, help="undisturbed rounds to measure")
    parser.add_argument("--seconds", type=float, default=0.04, help="time of each contender in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads")
    args = parser.parse_args(None if argv is None else list(argv))
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"there is no workload {', '.join(sorted(unknown))}")
    torch.set_num_threads(args.threads)
    random.seed(0)
    print(f"torch {torch.__version__}, optimfn {of.__version__}, Python {platform.python_version()}, ", end="")
    print(f"{platform.machine()}, {args.threads} threads of {os.cpu_count()} CPUs")
    for workload in args.workloads:
        report(workload, args.members, args.rounds, args.seconds)
        report_memory(workload, args.members, args.threads)


if __name__ == "__main__":
    main()
