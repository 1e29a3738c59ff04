"""The time of a fused step of AdamW with a part around it or in front, as a ratio to that of AdamW alone.

    python benchmarks/parts.py            # on gpt
    python benchmarks/parts.py tiny --rounds 31

All are donating steps of `make_step` that take turns in one process; a ratio compares times of one round. Beside it
stands the ratio of the bytes that the plans move, `explain()`'s, which would be the time if memory were all there is.
"""

import argparse
import re
import statistics
from collections.abc import Iterable

import torch
from step import WORKLOADS, Shapes, Step, measure, parameters

import optimfn as of

ADAMW = of.adamw(1e-3, weight_decay=0.1)
CHAINS = {
    "adamw": ADAMW,
    "cautious(adamw)": of.cautious(ADAMW),
    "mars, adamw": of.chain(of.mars(), ADAMW),
    "8 bits, companded": of.quantize_state(ADAMW),
    "8 bits, dynamic": of.quantize_state(ADAMW, "dynamic8"),
    "schedule_free_adamw": of.schedule_free_adamw(1e-3, weight_decay=0.1),
}


def stepper(tx: of.GradientTransformation, shapes: Shapes) -> tuple[Step, float]:
    """A step, and the bytes that it moves for each element of the parameters."""
    leaves = parameters(shapes, torch.float32)
    params = {f"p{i}": p.detach() for i, p in enumerate(leaves)}
    grads = {f"p{i}": p.grad for i, p in enumerate(leaves)}
    trees, take = [params, tx.init(params)], of.make_step(tx, backend="fused", donate=True)

    def step() -> None:
        trees[:] = take(*trees, grads)

    step()
    moved = re.search(r"moves ([\d.]+) bytes", str(take.explain()))
    assert moved is not None
    return step, float(moved[1])


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="gpt", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=21, help="undisturbed rounds to measure")
    parser.add_argument("--seconds", type=float, default=0.1, help="time of each in a round")
    parser.add_argument("--threads", type=int, default=1, help="threads")
    args = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(args.threads)
    made = {name: stepper(tx, WORKLOADS[args.workload]()) for name, tx in CHAINS.items()}
    times, dropped = measure({name: step for name, (step, _) in made.items()}, args.rounds, args.seconds)
    print(f"{args.workload}, {args.threads} threads, {len(times['adamw'])} rounds, {dropped} dropped")
    if len(times["adamw"]) < 2:
        print("disturbed by other processes: try again")
        return
    print(f"{'':22}{'ms':>8}{'bytes':>8}{'of bytes':>10}{'of time':>9}{'time over bytes':>17}")
    for name, (_, moved) in made.items():
        share = moved / made["adamw"][1]
        ratio = statistics.median(own / base for own, base in zip(times[name], times["adamw"], strict=True))
        middle = 1e3 * statistics.median(times[name])
        print(f"{name:22}{middle:8.2f}{moved:8.0f}{share:10.2f}{ratio:9.2f}{ratio / share:17.2f}")


if __name__ == "__main__":
    main()
