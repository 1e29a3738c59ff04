"""The four tasks of the atlas: small, real, and trained for all learning rates of a rule at once."""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, cross_entropy, max_pool2d

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """What one model has to learn."""

    title: str
    params: Params  # to begin with
    loss: Callable[[Params, Batch], Tensor]
    batches: list[Batch]  # one a step, the same for every rule
    final: list[Batch]  # what the loss at the end is the mean of, all of one size
    best: float  # what is subtracted from that loss


def digits() -> Batch:
    """1797 pictures of 64 pixels, and what they show."""
    images, labels = load_digits(return_X_y=True)
    return torch.as_tensor(images / 16, dtype=torch.float32), torch.as_tensor(labels)


def drawn(x: Tensor, y: Tensor, size: int, steps: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(len(x), (size,), generator=generator) for _ in range(steps)]
    return [(x[own], y[own]) for own in rows]


def mlp(steps: int) -> Task:
    """A perceptron for the digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return of_module("perceptron, digits", model, drawn(*digits(), 64, steps), [digits()])


def of_module(title: str, model: nn.Module, batches: list[Batch], final: list[Batch]) -> Task:
    def loss(params: Params, batch: Batch) -> Tensor:
        return cross_entropy(functional_call(model, params, batch[0]), batch[1])

    return Task(title, {name: p.detach() for name, p in model.named_parameters()}, loss, batches, final, 0.0)


def convolutions(steps: int) -> Task:
    """Two convolutions for the digits."""
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(64, 10)
    layers = {"first": first, "second": second, "last": last}
    params = {f"{name}.{key}": p.detach() for name, own in layers.items() for key, p in own.named_parameters()}

    def loss(params: Params, batch: Batch) -> Tensor:
        x = conv2d(batch[0].unflatten(1, (1, 8, 8)), params["first.weight"], params["first.bias"], padding=1)
        x = conv2d(max_pool2d(x.relu(), 2), params["second.weight"], params["second.bias"], padding=1)
        x = max_pool2d(x.relu(), 2).flatten(1)
        return cross_entropy(x @ params["last.weight"].T + params["last.bias"], batch[1])

    return Task("convolutions, digits", params, loss, drawn(*digits(), 32, steps), [digits()], 0.0)


class Block(nn.Module):
    """Attention, and two layers."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what both make of `x` to it."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.out((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm2(x)).relu().square())


class GPT(nn.Module):
    """From characters to the logits of the next ones."""

    def __init__(self, width: int = 32, heads: int = 2, layers: int = 2, context: int = 32):
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, width), nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, text: Tensor) -> Tensor:
        """The logits, with the place last."""
        return self.head(self.norm(self.blocks(self.tokens(text) + self.places))).transpose(1, 2)


def gpt(steps: int, context: int = 32, size: int = 8) -> Task:
    """A small GPT that reads the modules of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    text, generator = text[text < 128], torch.Generator().manual_seed(1)
    starts = torch.randint(len(text) - context, (steps + 8, size, 1), generator=generator)
    rows = [text[own + torch.arange(context + 1)] for own in starts]
    batches = [(own[:, :-1], own[:, 1:]) for own in rows]
    torch.manual_seed(0)
    return of_module("GPT, characters", GPT(context=context), batches[:steps], batches[steps:])


def regression(steps: int) -> Task:
    """The lower half of a digit from its upper half by least squares, all pictures at every step."""
    pixels = digits()[0].double()
    upper, lower = pixels[:, :32], pixels[:, 32:]
    upper = torch.cat([upper[:, upper.std(0) > 0], torch.ones(len(pixels), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(upper, lower).solution
    best = (upper @ solution - lower).square().sum(1).mean().item()

    def loss(params: Params, batch: Batch) -> Tensor:
        return (batch[0] @ params["weight"] - batch[1]).square().sum(1).mean()

    torch.manual_seed(0)
    params = {"weight": 0.1 * torch.randn(upper.shape[1], 32, dtype=torch.float64)}
    return Task("ill-conditioned regression", params, loss, [(upper, lower)] * steps, [(upper, lower)], best)


TASKS: dict[str, Callable[[int], Task]] = {
    "perceptron": mlp,
    "convolutions": convolutions,
    "gpt": gpt,
    "regression": regression,
}
STEPS = {"perceptron": 200, "convolutions": 100, "gpt": 100, "regression": 200}
