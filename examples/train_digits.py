"""Train a digit classifier three ways, with the same weights, batches, clipping, masked decay and rates.

The loops are those of digits_pure.py and digits_stateful.py, the latter once more with `torch.optim.AdamW`. Nothing is
compiled in what is timed. The last column is the step alone, clipping included: the median of all.
"""

import argparse
import time
from pathlib import Path

import digits_pure
import rich
import torch
from digits_pure import BETAS, DECAY, RATE, Batch, load_data, make_model
from digits_stateful import make_optimizer, train
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table
from step_clock import Clock
from torch.nn.utils import clip_grad_norm_


def make_adamw(clock, model):
    chosen = {decay: [p for p in model.parameters() if (p.ndim > 1) is (decay > 0)] for decay in (DECAY, 0.0)}
    groups = [{"params": params, "weight_decay": decay} for decay, params in chosen.items()]
    optimizer = clock.watch(torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True))
    optimizer.register_step_pre_hook(lambda *_: [clip_grad_norm_(model.parameters(), 1.0)].clear())
    return optimizer


RUNS = {
    "of.make_step": lambda clock, *data: digits_pure.train(*data, clock.make_step),
    "of.Optimizer": lambda clock, *data: train(*data, lambda model: clock.watch(make_optimizer(model))),
    "torch.optim.AdamW": lambda clock, *data: train(*data, lambda model: make_adamw(clock, model)),
}
Result = tuple[str, float, float, list[tuple[float, float]]]  # name, seconds, of a step, losses and accuracies


def run(name: str, epochs: list[list[Batch]], test: Batch) -> Result:
    next(RUNS[name](Clock(), make_model(), [epochs[0][:1]]))  # set-up and compilation shall not count
    curve, clock, start = [], Clock(), time.perf_counter()
    for losses, predict in track(RUNS[name](clock, make_model(), epochs), f"{name:17}", total=len(epochs)):
        with torch.no_grad():
            hits = predict(test[0]).argmax(dim=1) == test[1]
        curve.append((torch.stack(losses).mean().item(), hits.float().mean().item()))
    return name, time.perf_counter() - start, clock.milliseconds(), curve


def plot(results: list[Result], path: Path) -> None:
    left, right = (figure := Figure(figsize=(10, 4), layout="constrained")).subplots(1, 2)  # it needs no window
    for (name, _, _, curve), style in zip(results, ("o-", "s--", "^:"), strict=True):
        for axes, values in zip((left, right), zip(*curve, strict=True), strict=True):
            axes.plot(range(1, len(values) + 1), values, style, label=name)
    left.set(title="Training loss", xlabel="epoch", yscale="log")
    right.set(title="Test accuracy", xlabel="epoch")
    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default="outputs/digits.png", help="where the picture goes")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so small a model gains little from more, and loses much if a core is busy
    epochs, test = load_data(args.epochs)
    results = [run(name, epochs, test) for name in RUNS]
    table = Table("run", "training loss", "test accuracy", "seconds", "of a step, ms")
    for name, seconds, step, (*_, (loss, accuracy)) in results:
        table.add_row(name, f"{loss:.5f}", f"{accuracy:.2%}", f"{seconds:.1f}", f"{step:.3f}")
    rich.print(table)
    plot(results, args.out)
    print(f"Learning curves: {args.out}")
    return results


if __name__ == "__main__":
    main()
