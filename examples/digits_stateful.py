"""Train the digit classifier of digits_pure.py in an ordinary loop: a `torch.optim.Optimizer` and a scheduler of torch.

The transforms and the course of the rate are the same: `of.Optimizer` shows it as `lr`, which the scheduler moves.
"""

from collections.abc import Callable

import torch
from digits_pure import RATE, Batch, Training, main, make_transform
from torch import nn
from torch.nn.functional import cross_entropy

import optimfn as of


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return of.Optimizer(model, make_transform(RATE))


def train(
    model: nn.Module,
    epochs: list[list[Batch]],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = make_optimizer,
) -> Training:
    optimizer, steps = make_optimizer(model), sum(map(len, epochs))
    factor = of.warmup_cosine_decay_schedule(0.0, 1.0, steps // 20, steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: factor(count).item())
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


if __name__ == "__main__":
    main(train=train)
