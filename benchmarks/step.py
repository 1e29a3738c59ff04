"""The time of a whole optimizer step, fused, as a ratio to the best composition of torch.optim.

    python benchmarks/step.py                          # every chain on gpt and tiny
    python benchmarks/step.py gpt --chain adamw --rounds 31
    python benchmarks/step.py gpt tiny --drop-in       # every drop-in rule against its torch class
    python benchmarks/step.py gpt --memory             # the peak of memory instead of time

Contenders hold parameters of their own and take turns in one process; a ratio compares times of one round. A
round is dropped, whatever it measured, if in its course other processes (or the hypervisor) took more than
5 % of the processors. Of the others the median ratio and the quartiles are shown: of a donating step, of one bound to
its trees, of the class (`of.Optimizer`, or the drop-in class), and of the step that makes new trees.

Memory is that of a fresh process for each contender: its peak beyond parameters and gradients, in bytes for each byte
of the parameters, after one step and after five.
"""

import argparse
import concurrent.futures
import gc
import multiprocessing
import os
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from workloads import WORKLOADS as WORKLOADS
from workloads import Shapes as Shapes
from workloads import gpt as gpt

import optimfn as of

Step = Callable[[], object]

DISTURBED = 0.05


def parameters(shapes: Shapes, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter((0.02 * torch.randn(s, generator=generator)).to(dtype)) for s in shapes]
    for p in params:
        p.grad = (0.01 * torch.randn(p.shape, generator=generator)).to(dtype)
    return params


class Chain(NamedTuple):
    """An optimizer in both libraries; torch's may be a composition."""

    tx: of.GradientTransformation
    theirs: Callable[[list[torch.nn.Parameter]], Step]
    stateful: Callable[[list[torch.nn.Parameter]], Step] | None = None  # unless it is `of.Optimizer`


def clipped(params: list[torch.nn.Parameter], step: Step) -> Step:
    def run() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        step()

    return run


def averaged(params: list[torch.nn.Parameter], step: Step) -> Step:
    model = torch.nn.ParameterList(params)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))

    def run() -> None:
        step()
        average.update_parameters(model)

    return run


def scheduled(params: list[torch.nn.Parameter]) -> Step:
    optimizer = torch.optim.AdamW(params, 3e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10_000)

    def run() -> None:
        optimizer.step()
        scheduler.step()

    return run


def decayed_matrices(params: list[torch.nn.Parameter]) -> Step:
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, 1e-3, fused=True).step


def adamw_step(params: list[torch.nn.Parameter]) -> Step:
    return torch.optim.AdamW(params, 1e-3, weight_decay=0.1, fused=True).step


ADAMW = of.adamw(1e-3, weight_decay=0.1)
CLIP = of.clip_by_global_norm(1.0)
COSINE = of.warmup_cosine_decay_schedule(0.0, 3e-4, 100, 10_000)
CHAINS = {
    "adamw": Chain(ADAMW, adamw_step),
    "clip+adamw": Chain(of.chain(CLIP, ADAMW), lambda ps: clipped(ps, adamw_step(ps))),
    "clip+adamw+ema": Chain(
        of.chain(CLIP, ADAMW, of.params_ema(0.999)), lambda ps: averaged(ps, clipped(ps, adamw_step(ps)))
    ),
    "masked decay": Chain(of.adamw(1e-3, weight_decay=0.1, mask=of.tree.is_matrix), decayed_matrices),
    "warm-up cosine": Chain(of.adamw(COSINE, weight_decay=0.1), scheduled),
    "sgd momentum": Chain(
        of.sgd(0.1, momentum=0.9), lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, fused=True).step
    ),
    "lion (torch: adamw)": Chain(of.lion(1e-4, weight_decay=0.1), adamw_step),
    "adafactor": Chain(of.adafactor(1e-2), lambda ps: torch.optim.Adafactor(ps, 1e-2, foreach=True).step),
}

# The drop-in classes, and torch's class at its fastest setting on the CPU.
DROP_INS: dict[str, dict[str, object]] = {
    "SGD": {"lr": 0.1, "fused": True},
    "Adam": {"lr": 1e-3, "fused": True},
    "AdamW": {"lr": 1e-3, "fused": True},
    "Adagrad": {"lr": 0.01, "fused": True},
    "Adadelta": {"lr": 1.0, "foreach": True},
    "Adamax": {"lr": 1e-3, "foreach": True},
    "ASGD": {"lr": 1e-2, "foreach": True},
    "NAdam": {"lr": 1e-3, "foreach": True},
    "RAdam": {"lr": 1e-3, "foreach": True},
    "RMSprop": {"lr": 1e-2, "foreach": True},
    "Rprop": {"lr": 1e-2, "foreach": True},
    "Adafactor": {"lr": 1e-2, "foreach": True},
    "Muon": {"lr": 1e-3},
}


def drop_ins() -> dict[str, Chain]:
    def chain(name: str, options: dict[str, object]) -> Chain:
        tx = getattr(of.optim, name).transform(lr=options["lr"])
        return Chain(
            tx,
            lambda ps: getattr(torch.optim, name)(ps, **options).step,
            lambda ps: getattr(of.optim, name)(ps, lr=options["lr"]).step,
        )

    return {name: chain(name, options) for name, options in DROP_INS.items()}


class Ours:
    """Ways to step by `make_step`: donating, called as such or bound to its trees, and making new trees."""

    def __init__(self, tx: of.GradientTransformation, params: list[torch.nn.Parameter]) -> None:
        self.tx = tx
        self.params = {f"p{i}": p.detach() for i, p in enumerate(params)}
        self.grads = {f"p{i}": p.grad for i, p in enumerate(params)}
        self.state = tx.init(self.params)

    def donating(self) -> Step:
        """In place."""
        step = of.make_step(self.tx, donate=True, backend="fused")
        return lambda: step(self.params, self.state, self.grads)

    def bound(self) -> Step:
        """In place, without taking trees apart."""
        step = of.make_step(self.tx, donate=True, backend="fused").bind(self.params, self.state)
        return lambda: step(self.grads)

    def pure(self) -> Step:
        """Into new trees, which the next step is given, as in a functional loop."""
        step = of.make_step(self.tx, backend="fused")

        def run() -> None:
            self.params, self.state = step(self.params, self.state, self.grads)

        return run


def contenders(chain: Chain) -> dict[str, Callable[[list[torch.nn.Parameter]], Step]]:
    """What makes each step from parameters."""
    tx = chain.tx
    return {
        "torch": chain.theirs,
        "donating": lambda params: Ours(tx, params).donating(),
        "bound": lambda params: Ours(tx, params).bound(),
        "class": chain.stateful or (lambda params: of.Optimizer(params, tx).step),
        "pure": lambda params: Ours(tx, params).pure(),
    }


def time_of_others() -> float:
    """Seconds of all processors that others have used so far."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, soft, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def measure(steps: dict[str, Step], rounds: int, seconds: float) -> tuple[dict[str, list[float]], int]:
    """Seconds per step of each contender in each undisturbed round, and how many rounds were dropped."""
    for step in steps.values():
        for _ in range(3):
            step()
    repeats = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        repeats[name] = max(1, int(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    dropped, order = 0, list(steps)
    gc.disable()
    while len(times[order[0]]) < rounds and dropped < 20 * rounds:
        random.shuffle(order)
        others, begin, row = time_of_others(), time.perf_counter(), {}
        for name in order:
            step, start = steps[name], time.perf_counter()
            for _ in range(repeats[name]):
                step()
            row[name] = (time.perf_counter() - start) / repeats[name]
        share = (time_of_others() - others) / ((time.perf_counter() - begin) * (os.cpu_count() or 1))
        if share > DISTURBED:
            dropped += 1
            time.sleep(0.2)
            continue
        for name, value in row.items():
            times[name].append(value)
    gc.enable()
    return times, dropped


def first_steps(tx: of.GradientTransformation, shapes: Shapes) -> tuple[float, float]:
    """Seconds of the first step with nothing cached, and of that of a second model with the same optimizer."""

    def first(some: Shapes) -> float:
        params = {f"p{i}": p.detach() for i, p in enumerate(parameters(some, torch.float32))}
        state, step = tx.init(params), of.make_step(tx, donate=True, backend="fused")
        start = time.perf_counter()
        step(params, state, params)
        return time.perf_counter() - start

    return first(shapes), first(shapes[::-1][: max(2, len(shapes) // 2)])


def usable(name: str, shapes: Shapes) -> Shapes:
    """The shapes that an optimizer takes."""
    return [s for s in shapes if len(s) == 2] if name == "Muon" else shapes


def report(workload: str, name: str, chain: Chain, dtype: torch.dtype, rounds: int, seconds: float) -> None:
    shapes = usable(name, WORKLOADS[workload]())
    first, second = first_steps(chain.tx, shapes)
    steps = {who: make(parameters(shapes, dtype)) for who, make in contenders(chain).items()}
    times, dropped = measure(steps, rounds, seconds)
    if len(times["torch"]) < 2:
        print(f"{name:20} disturbed: {dropped} rounds dropped")
        return

    def ratios(who: str) -> list[float]:
        return [own / base for own, base in zip(times[who], times["torch"], strict=True)]

    low, middle, high = statistics.quantiles(ratios("donating"), n=4)
    line = f"{name:20}{statistics.median(times['torch']) * 1e3:9.3f}{middle:7.2f}{low:7.2f}{high:6.2f}"
    for who in ("bound", "class", "pure"):
        line += f"{statistics.median(ratios(who)):7.2f}"
    print(f"{line}{first:9.2f}{second:6.2f}  {dropped}", flush=True)


def peaks(workload: str, drop_in: bool, name: str, who: str, dtype: torch.dtype) -> list[float]:
    """Peaks of this process, which must be fresh, in bytes for each of the parameters: of one step, and of five."""
    chain, shapes = (drop_ins() if drop_in else CHAINS)[name], usable(name, WORKLOADS[workload]())
    contenders(chain)[who](parameters([(2, 2)], dtype))()  # what is imported and loaded does not count
    before, found = peak_of_process(), []
    step = contenders(chain)[who](parameters(shapes, dtype))
    size = sum(torch.Size(s).numel() for s in shapes) * dtype.itemsize
    for steps in (1, 4):
        for _ in range(steps):
            step()
        found.append((peak_of_process() - before) / size - 2)
    return found


def peak_of_process() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report_memory(workload: str, drop_in: bool, name: str, chain: Chain, dtype: torch.dtype) -> None:
    print(f"{name:20}", end="")
    for who in contenders(chain):
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            first, later = process.submit(peaks, workload, drop_in, name, who, dtype).result()
        print(f"  {who} {first:.2f} {later:.2f}", end="", flush=True)
    print()


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=["gpt", "tiny"], choices=[*WORKLOADS], metavar="workload")
    parser.add_argument("--chain", action="append", help="a chain by name; all by default")
    parser.add_argument("--drop-in", action="store_true", help="the drop-in rules instead of the chains")
    parser.add_argument("--memory", action="store_true", help="the peak of memory instead of time")
    parser.add_argument("--dtype", default="float32", help="dtype of parameters and gradients")
    parser.add_argument("--rounds", type=int, default=21, help="undisturbed rounds to measure")
    parser.add_argument("--seconds", type=float, default=0.04, help="time of each contender in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads")
    args = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(args.threads)
    random.seed(0)
    chains = drop_ins() if args.drop_in else CHAINS
    if args.chain:
        chains = {name: chains[name] for name in args.chain}
    print(f"torch {torch.__version__}, optimfn {of.__version__}, Python {platform.python_version()}, ", end="")
    print(f"{platform.machine()}, {args.threads} threads of {os.cpu_count()} CPUs")
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["OPTIMFN_CACHE"] = cache  # so that the first step compiles
        for workload in args.workloads:
            shapes = WORKLOADS[workload]()
            print(
                f"\n{workload}: {len(shapes)} tensors, {sum(torch.Size(s).numel() for s in shapes)} elements, {dtype}"
            )
            if not args.memory:
                print(f"{'':20}{'torch ms':>9}{'step':>7}{'quartiles':>13}{'bound':>7}{'class':>7}{'pure':>7}", end="")
                print(f"{'first s':>9}{'2nd':>6}  dropped")
            for name, chain in chains.items():
                if args.memory:
                    report_memory(workload, args.drop_in, name, chain, dtype)
                else:
                    report(workload, name, chain, dtype, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
