"""Train a small GPT on the source of Python's standard library, with Muon for the matrices and AdamW for the rest.

`of.partition` gives each parameter to the rule of its label; the clipping before it sees all of them as one.
"""

import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import optimfn as of

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 4, 3, 64, 32


def load_text() -> tuple[Tensor, Tensor]:
    """The modules as bytes, the last tenth of them for validation."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


class Block(nn.Module):
    """Attention, and two layers."""

    def __init__(self):
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """From bytes to the logits of the next ones."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(text) + self.places.weight[: text.shape[1]])))


def loss_of(model: GPT, text: Tensor, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
    rows = text[starts + torch.arange(CONTEXT + 1)]
    return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def main(steps: int = 500) -> float:
    torch.manual_seed(0)
    model, generator, (train, valid) = GPT(), torch.Generator().manual_seed(0), load_text()
    rate = of.warmup_stable_decay_schedule(0.0, 1.0, steps // 20, steps // 2, steps // 2 - steps // 20)
    muon, adamw = of.torch_muon(0.02, weight_decay=0.01), of.adamw(3e-3, b2=0.95, weight_decay=0.01)
    labels = of.tree.label_by_path({r"^blocks\..*(qkv|out|up|down)\.weight$": "matrices"}, default="rest")
    parts = of.clip_by_global_norm(1.0), of.partition({"matrices": muon, "rest": adamw}, labels)
    optimizer = of.Optimizer(model, of.chain(*parts, of.scale_by_schedule(rate)))
    for step in range(steps + 1):
        if step % max(1, steps // 5) == 0:
            fixed = torch.Generator().manual_seed(1)
            bits = sum(loss_of(model, valid, fixed).item() for _ in range(10)) / 10 / math.log(2)
            print(f"step {step:3}: {bits:.3f} bits per byte of text it has not seen", flush=True)
        optimizer.zero_grad()
        loss_of(model, train, generator).backward()
        optimizer.step()
    return bits


if __name__ == "__main__":
    main()
