"""Rules of whole matrices, as ratios to torch.optim.Muon and to eager transcriptions of the authors' code.

    python benchmarks/matrix.py                  # time
    python benchmarks/matrix.py --only muon --rounds 15
    python benchmarks/matrix.py --memory         # peaks of memory, each in a fresh process

The contenders hold parameters of their own and take turns in one process, in random order, on one thread; processor
time counts, which a busy machine hardly moves. A ratio is the median of those of the turns. A turn of SOAP is the ten
steps from one change of its basis to the next. Optimizers are as their users make them, `of.Optimizer`; a donating step
is `make_step(tx, donate=True)`.

Memory is the peak of a process beyond its parameters and gradients after five steps (SOAP: eleven), in bytes for each
byte of the parameters, beside that of the state and one stack of small leaves, which are copied (`tree.batched`).
"""

import argparse
import concurrent.futures
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from matrix_official import Kron, Soap
from step import Shapes, Step, gpt, parameters, peak_of_process

import optimfn as of

Params = list[torch.nn.Parameter]
STACK = 16 * 2**20  # bytes, at most


class Contest(NamedTuple):
    """A rule of ours, what it is compared with, and on what."""

    shapes: Shapes
    theirs: Callable[[Params], Step]
    ours: Callable[..., of.GradientTransformation]
    steps: int = 1  # of a turn


def of_two_axes(shapes: Shapes) -> Shapes:
    return [shape for shape in shapes if len(shape) == 2]


def part_of_gpt(layers: int = 2) -> Shapes:
    """Some layers of gpt with biases and norms, without its embeddings, whose products would be all there is."""
    shapes = gpt()[2:]
    return shapes[: 12 * layers]


def torch_muon(params: Params) -> Step:
    return torch.optim.Muon(params, 1e-3, weight_decay=0.1).step


def ours_of_muon(learning_rate: float) -> of.GradientTransformation:
    return of.torch_muon(learning_rate, weight_decay=0.1)


def ours_of_kron(learning_rate: float) -> of.GradientTransformation:
    return of.kron_whiten(learning_rate)


CONTESTS = {
    "muon, gpt": Contest(of_two_axes(gpt()), torch_muon, ours_of_muon),
    "muon, 48 of 64 x 64": Contest([(64, 64)] * 48, torch_muon, ours_of_muon),
    "soap, 2 layers": Contest(part_of_gpt(), lambda params: Soap(params, 3e-3).step, of.soap, 10),
    "soap, 48 of 64 x 64": Contest([(64, 64)] * 48, lambda params: Soap(params, 3e-3).step, of.soap, 10),
    "psgd kron, 2 layers": Contest(part_of_gpt(), lambda params: Kron(params, 1e-3).step, ours_of_kron),
    "psgd kron, 48 of 64 x 64": Contest([(64, 64)] * 48, lambda params: Kron(params, 1e-3).step, ours_of_kron),
}


def donating(tx: of.GradientTransformation, leaves: Params) -> Step:
    params = {f"p{i}": p.detach() for i, p in enumerate(leaves)}
    grads = {f"p{i}": p.grad for i, p in enumerate(leaves)}
    trees, take = [params, tx.init(params)], of.make_step(tx, donate=True)

    def step() -> None:
        trees[:] = take(*trees, grads)

    return step


def contenders(contest: Contest) -> dict[str, Callable[[Params], Step]]:
    return {
        "theirs": contest.theirs,
        "Optimizer": lambda params: of.Optimizer(params, contest.ours, learning_rate=1e-3).step,
        "donating": lambda params: donating(contest.ours(1e-3), params),
    }


def seconds(step: Step, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - start) / times


def report(name: str, contest: Contest, rounds: int) -> dict[str, float]:
    """Prints what a step takes, and returns the ratios."""
    steps = {who: make(parameters(contest.shapes, torch.float32)) for who, make in contenders(contest).items()}
    for step in steps.values():
        seconds(step, max(2, contest.steps + 1))  # SOAP's first step moves nothing
    least = max(1, int(0.1 / seconds(steps["theirs"], 1)) // contest.steps) * contest.steps
    times: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(rounds):
        for who in random.sample(list(steps), len(steps)):
            times[who].append(seconds(steps[who], least))
    ratios = {
        who: statistics.median(own / base for own, base in zip(times[who], times["theirs"], strict=True))
        for who in steps
    }
    line = f"{name:26}{1e3 * statistics.median(times['theirs']):9.2f}"
    print(line + "".join(f"{ratio:11.2f}" for who, ratio in ratios.items() if who != "theirs"), flush=True)
    return ratios


def peaks(name: str, who: str) -> tuple[float, float]:
    """The peak of this process, which must be fresh, and what the state and one stack take, in units of parameters."""
    contest = CONTESTS[name]
    small = contenders(contest)[who](parameters([(2, 3)], torch.float32))
    for _ in range(2):  # what is imported and loaded does not count
        small()
    before = peak_of_process()
    params = parameters(contest.shapes, torch.float32)
    size = sum(p.numel() * p.element_size() for p in params)
    step = contenders(contest)[who](params)
    for _ in range(max(5, contest.steps + 1)):
        step()
    state = contest.ours(1e-3).init([p.detach() for p in params])
    kept = sum(x.numel() * x.element_size() for x in of.tree.leaves(state))
    return (peak_of_process() - before) / size - 2, (kept + min(STACK, size)) / size


def report_memory(name: str, contest: Contest) -> None:
    print(f"{name:26}", end="")
    for who in contenders(contest):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            peak, kept = process.submit(peaks, name, who).result()
        print(f"  {who} {peak:.2f}" + (f" ({peak / kept:.2f} of state and stack)" if who != "theirs" else ""), end="")
    print(flush=True)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="contests whose name has this in it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="peaks of memory instead of time")
    args = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(1)
    random.seed(0)
    if not args.memory:
        print(f"{'':26}{'theirs, ms':>9}{'Optimizer':>11}{'donating':>11}")
    for name, contest in CONTESTS.items():
        if args.only in name:
            report_memory(name, contest) if args.memory else report(name, contest, args.rounds)


if __name__ == "__main__":
    main()
