"""Train the digit classifier of digits_pure.py in an ordinary loop: a `torch.optim.Optimizer` and a scheduler of torch.

The transforms are the same; `of.Optimizer` shows their learning rate as `lr`, which the scheduler moves.
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
    optimizer = make_optimizer(model)
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


if __name__ == "__main__":
    main(train=train)
