"""Train a digit classifier three ways, from the same weights and on the same batches in the same order.

1. A pure loop: `torch.func`, an optimizer composed of four transforms, a schedule for the learning rate.
2. An ordinary loop: the same transforms behind the interface of `torch.optim`, with a scheduler of torch.
3. The same ordinary loop with `torch.optim.AdamW`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import rich
import torch
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import optimfn as of

RATE, BETAS, DECAY = 1e-2, (0.9, 0.99), 0.1
Epochs = list[list[tuple[Tensor, Tensor]]]  # batches of images (n, 1, 8, 8) in [0, 1] and their digits (n,)
Training = Iterator[tuple[list[Tensor], Callable[[Tensor], Tensor]]]  # per epoch: losses, and images -> logits


class Result(NamedTuple):
    """One run: its curve has the loss and the accuracy of every epoch, of which the last stand beside it."""

    name: str
    loss: float  # mean over the training batches
    accuracy: float  # fraction of the test images
    seconds: float
    curve: list[tuple[float, float]]


def load_data(epochs: int, seed: int) -> tuple[Epochs, tuple[Tensor, Tensor]]:
    images, digits = map(torch.as_tensor, load_digits(return_X_y=True))
    x, y = images.float().reshape(-1, 1, 8, 8) / 16, digits.long()
    train, test = train_test_split(torch.arange(len(y)), test_size=0.25, stratify=y, random_state=0)
    torch.manual_seed(seed)
    orders = [train[torch.randperm(len(train))] for _ in range(epochs)]
    return [[(x[rows], y[rows]) for rows in order.split(64)] for order in orders], (x[test], y[test])


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    features = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def make_transform(learning_rate: of.ScalarOrSchedule) -> of.GradientTransformation:
    return of.chain(
        of.clip_by_global_norm(1.0),
        of.scale_by_adam(*BETAS),
        of.add_decayed_weights(DECAY, mask=of.tree.is_matrix),
        of.scale_by_learning_rate(learning_rate),
    )


def train_pure(model: nn.Module, epochs: Epochs) -> Training:
    def loss_fn(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, params, x), y)

    steps = sum(map(len, epochs))
    tx = make_transform(of.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps))
    step = of.make_step(tx, donate=True)  # nobody else needs the old parameters, so they are updated in place
    params = {name: p.detach() for name, p in model.named_parameters()}
    state = tx.init(params)
    for batches in epochs:
        losses = []
        for x, y in batches:
            grads, loss = torch.func.grad_and_value(loss_fn)(params, x, y)
            params, state = step(params, state, grads)
            losses.append(loss)
        yield losses, partial(torch.func.functional_call, model, params)


def train_ordinary(make_optimizer: Callable[..., torch.optim.Optimizer], model: nn.Module, epochs: Epochs) -> Training:
    optimizer = make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=sum(map(len, epochs)))
    for batches in epochs:
        losses = []
        for x, y in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        yield losses, model


RUNS = {
    "of.make_step": train_pure,
    "of.Optimizer": partial(train_ordinary, partial(of.Optimizer, tx=make_transform(RATE))),
    "torch.optim.AdamW": partial(train_ordinary, partial(torch.optim.AdamW, lr=RATE, betas=BETAS, weight_decay=DECAY)),
}


def run(name: str, epochs: Epochs, test: tuple[Tensor, Tensor], seed: int) -> Result:
    next(RUNS[name](make_model(seed), [epochs[0][:1]]))  # what torch sets up on first use shall not count
    curve, start = [], time.perf_counter()
    for losses, predict in track(RUNS[name](make_model(seed), epochs), f"{name:17}", total=len(epochs)):
        with torch.no_grad():
            hits = predict(test[0]).argmax(dim=1) == test[1]
        curve.append((torch.stack(losses).mean().item(), hits.float().mean().item()))
    return Result(name, *curve[-1], time.perf_counter() - start, curve)


def plot(results: list[Result], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")  # without pyplot, so it needs no window
    left, right = figure.subplots(1, 2)
    for r, style in zip(results, ("o-", "s--", "^:"), strict=True):
        losses, accuracies = torch.tensor(r.curve).T
        count = range(1, len(r.curve) + 1)
        left.plot(count, losses, style, label=r.name)
        right.plot(count, 100 * accuracies, style, label=r.name)
    left.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    right.set(title="Test accuracy", xlabel="epoch", ylabel="% of images")
    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the batches")
    parser.add_argument("--out", type=Path, default=Path("outputs/digits.png"), help="where the picture goes")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so small a model gains little from more, and loses much if a core is busy
    epochs, test = load_data(args.epochs, args.seed)
    results = [run(name, epochs, test, args.seed) for name in RUNS]
    table = Table("run", "training loss", "test accuracy", "seconds")
    for r in results:
        table.add_row(r.name, f"{r.loss:.5f}", f"{r.accuracy:.2%}", f"{r.seconds:.1f}")
    rich.print(table)
    plot(results, args.out)
    print(f"Learning curves: {args.out}")
    return results


if __name__ == "__main__":
    main()
