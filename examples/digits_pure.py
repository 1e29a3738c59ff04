"""Train a digit classifier in a pure loop: parameters and state are values, which a step takes and returns.

A step with `donate=True` writes the new values over the old ones, which nobody else needs.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import optimfn as of

RATE, BETAS, DECAY = 1e-2, (0.9, 0.99), 0.1
Batch = tuple[Tensor, Tensor]  # images (n, 1, 8, 8) in [0, 1] and their digits (n,)
Training = Iterator[tuple[list[Tensor], Callable[[Tensor], Tensor]]]  # per epoch: losses, and images -> logits


def load_data(epochs: int, seed: int = 0) -> tuple[list[list[Batch]], Batch]:
    """The batches of every epoch, and the test images."""
    images, digits = map(torch.as_tensor, load_digits(return_X_y=True))
    x, y = images.float().reshape(-1, 1, 8, 8) / 16, digits.long()
    train, test = train_test_split(torch.arange(len(y)), test_size=0.25, stratify=y, random_state=0)
    torch.manual_seed(seed)
    orders = [train[torch.randperm(len(train))] for _ in range(epochs)]
    return [[(x[rows], y[rows]) for rows in order.split(64)] for order in orders], (x[test], y[test])


def make_model(seed: int = 0) -> nn.Module:
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


def train(model: nn.Module, epochs: list[list[Batch]], make_step: Callable[..., Callable] = of.make_step) -> Training:
    def loss_fn(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, params, x), y)

    steps = sum(map(len, epochs))
    tx = make_transform(of.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps))
    step = make_step(tx, donate=True)
    params = {name: p.detach() for name, p in model.named_parameters()}
    state = tx.init(params)
    for batches in epochs:
        losses = []
        for x, y in batches:
            grads, loss = torch.func.grad_and_value(loss_fn)(params, x, y)
            params, state = step(params, state, grads)
            losses.append(loss)
        yield losses, partial(torch.func.functional_call, model, params)


def main(epochs: int = 10, train: Callable[..., Training] = train) -> float:
    torch.set_num_threads(1)  # so small a model gains little from more
    batches, (images, digits) = load_data(epochs)
    for epoch, (losses, predict) in enumerate(train(make_model(), batches), start=1):
        with torch.no_grad():
            accuracy = (predict(images).argmax(dim=1) == digits).float().mean().item()
        print(f"epoch {epoch:2}: training loss {torch.stack(losses).mean():.4f}, test accuracy {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
