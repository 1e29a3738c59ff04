"""What states of few bits and parameters of bfloat16 cost in quality: the small GPT and the digits network, five seeds.

A seed sets the weights and the order of the batches, so that runs of one seed differ in nothing but how numbers are
kept. Results go to `quality.json` as they come, and are drawn when all are there: `python benchmarks/quality.py`.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure

import optimfn as of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
from digits_pure import load_data, make_model  # noqa: E402
from gpt import GPT, load_text, loss_of  # noqa: E402

Wrap = Callable[[of.GradientTransformation, int], of.GradientTransformation]
FORMATS = ("bfloat16", "companded8", "dynamic8", "fp8", "4bit")
WAYS: dict[str, tuple[torch.dtype, Wrap]] = {
    "float32": (torch.float32, lambda tx, _: tx),
    **{f"state in {name}": (torch.float32, lambda tx, _, name=name: of.quantize_state(tx, name)) for name in FORMATS},
    "bfloat16 alone": (torch.bfloat16, lambda tx, _: tx),
    "bfloat16, stochastic rounding": (torch.bfloat16, of.stochastic_rounding),
    "bfloat16, kahan": (torch.bfloat16, lambda tx, _: of.kahan(tx)),
    "bfloat16, master weights": (torch.bfloat16, lambda tx, _: of.master_weights(tx)),
    "bfloat16, companded8, master weights": (
        torch.bfloat16,
        lambda tx, _: of.master_weights(of.quantize_state(tx, "companded8")),
    ),
}
SEEDS = range(5)


def gpt(dtype: torch.dtype, wrap: Wrap, seed: int, steps: int = 300) -> float:
    """Bits per byte of text that it has not seen."""
    torch.manual_seed(seed)
    model, generator, (text, valid) = GPT().to(dtype), torch.Generator().manual_seed(seed), load_text()
    rate = of.warmup_stable_decay_schedule(0.0, 1e-2, steps // 20, steps // 2, steps - steps // 2 - steps // 20)
    tx = wrap(of.chain(of.clip_by_global_norm(1.0), of.adamw(rate, b2=0.95, weight_decay=0.01)), seed)
    optimizer = of.Optimizer(model, tx)
    for _ in range(steps):
        loss_of(model, text, generator).backward()
        optimizer.step(), optimizer.zero_grad()
    fixed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return sum(loss_of(model, valid, fixed).item() for _ in range(30)) / 30 / math.log(2)


def digits(dtype: torch.dtype, wrap: Wrap, seed: int, epochs: int = 10) -> float:
    """Cross entropy of images that it has not seen."""
    batches, (images, labels) = load_data(epochs, seed)
    steps = sum(map(len, batches))
    rate = of.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 20, steps)
    model = make_model(seed).to(dtype)
    tx = wrap(of.chain(of.clip_by_global_norm(1.0), of.adamw(rate, 0.9, 0.99, weight_decay=0.1)), seed)
    optimizer = of.Optimizer(model, tx)
    for x, y in (batch for epoch in batches for batch in epoch):
        torch.nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step(), optimizer.zero_grad()
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(images.to(dtype)).float(), labels).item()


TASKS = {"small GPT": (gpt, "bits per byte"), "digits": (digits, "cross entropy")}


def run(path: Path) -> dict[str, dict[str, list[float]]]:
    """All that is not there yet; a run of one seed of every way before the next seed."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for seed in SEEDS:
        for task, (train, _) in TASKS.items():
            for way, (dtype, wrap) in WAYS.items():
                losses = found.setdefault(task, {}).setdefault(way, [])
                if len(losses) <= seed:
                    losses.append(train(dtype, wrap, seed))
                    path.write_text(json.dumps(found, indent=1))
                    print(f"{task}, {way}, seed {seed}: {losses[-1]:.4f}", flush=True)
    return found


def show(found: dict[str, dict[str, list[float]]], picture: Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (task, runs) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        exact = runs["float32"]
        for row, (way, losses) in enumerate(runs.items()):
            off = [loss - own for loss, own in zip(losses, exact, strict=True)]
            print(f"{task:9} {way:36} {statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}, ", end="")
            error = statistics.stdev(off) / math.sqrt(len(off))
            print(f"against float32 of the same seed {statistics.mean(off):+.4f} ± {error:.4f}")
            axes.plot(losses, [row] * len(losses), "o", alpha=0.6)
            axes.plot(statistics.mean(losses), row, "k|", markersize=14)
        axes.axvspan(min(exact), max(exact), alpha=0.1, color="gray")
        axes.set(title=task, xlabel=f"{TASKS[task][1]}, five seeds; grey: float32")
        axes.set_yticks(range(len(runs)), list(runs))
    figure.axes[0].invert_yaxis()
    figure.savefig(picture, dpi=110, transparent=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # rounding then depends on nothing but the seed
    show(run(HERE / "quality.json"), HERE.parent / "docs" / "guides" / "images" / "quality.png")
