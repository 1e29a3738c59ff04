"""The loss of each optimizer at the end of training, against its learning rate, on four small real tasks.

    python benchmarks/atlas.py                     # every optimizer that atlas.json lacks, then pictures and table
    python benchmarks/atlas.py adamw lion --again  # these anew
    python benchmarks/atlas.py --draw              # pictures and table alone

All learning rates of an optimizer are one stack of models: `of.stacked` makes their optimizer, `vmap` their gradients.
Every optimizer begins with the same weights and sees the same batches. Its rate rises linearly over the first tenth of
the steps and falls linearly to nothing; averages that are made for it keep it constant after the rise. There is no
decay of weights, and whatever else an optimizer takes has its default. What has been measured is kept in atlas.json,
task by task, so that a run that was stopped goes on where it was.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from atlas_draw import draw, table, write
from atlas_rules import CONSTANT, RULES, Make
from atlas_tasks import STEPS, TASKS, Params, Task
from torch import Tensor
from torch.func import grad_and_value, vmap

import optimfn as of

HERE = Path(__file__).parent
RATES = [10 ** (k / 2) for k in range(-8, 3)]
Losses = dict[str, dict[str, list[float | None]]]  # of an optimizer, on a task, at each rate; None where it diverged


def shape(steps: int, constant: bool) -> Callable[[Tensor], Tensor]:
    """The course of the rate, by the number of steps taken."""
    rise = max(1, steps // 10)

    def at(count: Tensor) -> Tensor:
        up = ((count + 1) / rise).clamp(max=1.0)
        return up if constant else up * ((steps - count) / (steps - rise)).clamp(max=1.0)

    return at


def scheduled(make: Make, steps: int, constant: bool) -> Make:
    """The optimizer as a function of its highest rate."""
    course = shape(steps, constant)

    def optimizer(learning_rate: Any) -> of.GradientTransformation:
        return make(lambda count: learning_rate * course(torch.as_tensor(count)))

    return optimizer


def train(name: str, task: Task, rates: list[float]) -> list[float | None]:
    """The loss at the end for every rate."""
    torch.manual_seed(0)
    peaks, steps = torch.tensor(rates, dtype=torch.float64), len(task.batches)
    fixed = name == "polyak_sgd"
    make = RULES[name] if fixed else scheduled(RULES[name], steps, name in CONSTANT)
    tx = of.stacked(by_name(make), learning_rate=peaks)
    params = of.tree.batch_shape(task.params, peaks.shape)
    state, gradients = tx.init(params), vmap(grad_and_value(task.loss), in_dims=(0, None))
    for batch in task.batches:
        grads, losses = gradients(params, batch)
        updates, state = tx.update(grads, state, params, value=losses, grad_fn=gradients_at(task, batch))
        params = of.apply_updates(params, updates)
    params = of.eval_params(tx, state, params)
    each = vmap(task.loss, in_dims=(0, None))
    final = sum(each(params, batch) for batch in task.final) / len(task.final) - task.best
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in final.tolist()]


def start_of(task: Task) -> float:
    """The loss before the first step."""
    return sum(task.loss(task.params, batch).item() for batch in task.final) / len(task.final) - task.best


def by_name(make: Make) -> Make:
    """A factory whose argument has the name that `stacked` is given."""
    return lambda learning_rate: make(learning_rate)


def gradients_at(task: Task, batch: Any) -> Callable[[Params, int], Params]:
    """For what asks for more gradients while it steps: those of a single member."""
    return lambda params, i: torch.func.grad(task.loss)(params, batch)


def run(names: Iterable[str], tasks: dict[str, Task], losses: Losses, save: Callable[[], None]) -> None:
    """Fill in what is missing, the cheap tasks first."""
    missing = [(name, task) for task in tasks for name in names if task not in losses.get(name, {})]
    work = sum(len(tasks[task].batches) * WEIGHT[task] for _, task in missing)
    start, done = time.monotonic(), 0
    for name, task in missing:
        progress(done / work, f"{task}: {name}", start)
        losses.setdefault(name, {})[task] = train(name, tasks[task], RATES)
        done += len(tasks[task].batches) * WEIGHT[task]
        save()
    if missing:
        progress(1.0, "done", start)
        print(file=sys.stderr)


WEIGHT = {"perceptron": 4, "convolutions": 10, "gpt": 85, "regression": 3}  # what a step takes, about, in milliseconds


def progress(share: float, what: str, start: float) -> None:
    spent = time.monotonic() - start
    left = f"{spent * (1 - share) / share / 60:.0f} min left" if share > 0.02 else ""
    bar = "#" * round(30 * share)
    print(f"\r[{bar:30}] {share:4.0%} {left:12} {what:40}", end="", file=sys.stderr, flush=True)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rules", nargs="*", help="optimizers of atlas_rules.py; all by default")
    parser.add_argument("--again", action="store_true", help="measure these anew")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads; such small models gain little from more")
    parser.add_argument("--out", type=Path, default=HERE / "atlas.json", help="what has been measured")
    parser.add_argument("--steps", type=int, help="steps of every task, to try it out")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where pictures and table go")
    args = parser.parse_args(None if argv is None else list(argv))
    if unknown := set(args.rules) - set(RULES):
        parser.error(f"there is no optimizer {', '.join(sorted(unknown))} in atlas_rules.py")
    torch.set_num_threads(args.threads)
    losses: Losses = json.loads(args.out.read_text()) if args.out.exists() else {}
    names = args.rules or list(RULES)
    if args.again:
        losses = {name: own for name, own in losses.items() if name not in names}

    def save() -> None:
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(losses[name])}" for name in sorted(losses))
        args.out.write_text(f"{{\n{lines}\n}}\n")

    tasks = {task: make(STEPS[task] if args.steps is None else args.steps) for task, make in TASKS.items()}
    if not args.draw:
        run(names, tasks, losses, save)
    args.docs.mkdir(parents=True, exist_ok=True)
    draw(losses, RATES, {name: start_of(task) for name, task in tasks.items()}, args.docs / "images")
    page = args.docs / "atlas.md"
    if page.exists():
        write(page, table(losses, RATES))
    else:
        print(table(losses, RATES))


if __name__ == "__main__":
    main()
