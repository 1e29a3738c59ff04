"""Train a digit classifier three ways, with the same weights, batches, clipping, masked decay and rates.

The loops are those of digits_pure.py and digits_stateful.py, and the latter once more with `torch.optim.AdamW`.
Nothing is compiled in the part that is timed.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import digits_pure
import digits_stateful
import rich
import torch
from digits_pure import BETAS, DECAY, RATE, Batch, load_data, make_model
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table


def make_adamw(model):
    split = {decays: [p for p in model.parameters() if (p.ndim > 1) is decays] for decays in (True, False)}
    groups = [{"params": params, "weight_decay": DECAY * decays} for decays, params in split.items()]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)


RUNS = {
    "of.make_step": digits_pure.train,
    "of.Optimizer": digits_stateful.train,
    "torch.optim.AdamW": partial(digits_stateful.train, make_optimizer=make_adamw, max_norm=1.0),
}

Result = tuple[str, float, list[tuple[float, float]]]  # name, seconds, and per epoch training loss and test accuracy


def run(name: str, epochs: list[list[Batch]], test: Batch, seed: int) -> Result:
    next(RUNS[name](make_model(seed), [epochs[0][:1]]))  # set-up and compilation shall not count
    curve, start = [], time.perf_counter()
    for losses, predict in track(RUNS[name](make_model(seed), epochs), f"{name:17}", total=len(epochs)):
        with torch.no_grad():
            hits = predict(test[0]).argmax(dim=1) == test[1]
        curve.append((torch.stack(losses).mean().item(), hits.float().mean().item()))
    return name, time.perf_counter() - start, curve


def plot(results: list[Result], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")  # without pyplot, so it needs no window
    left, right = figure.subplots(1, 2)
    for (name, _, curve), style in zip(results, ("o-", "s--", "^:"), strict=True):
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
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the batches")
    parser.add_argument("--out", type=Path, default="outputs/digits.png", help="where the picture goes")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so small a model gains little from more, and loses much if a core is busy
    epochs, test = load_data(args.epochs, args.seed)
    results = [run(name, epochs, test, args.seed) for name in RUNS]
    table = Table("run", "training loss", "test accuracy", "seconds")
    for name, seconds, (*_, (loss, accuracy)) in results:
        table.add_row(name, f"{loss:.5f}", f"{accuracy:.2%}", f"{seconds:.1f}")
    rich.print(table)
    plot(results, args.out)
    print(f"Learning curves: {args.out}")
    return results


if __name__ == "__main__":
    main()
