"""Train the small GPT with five optimizers, for as many steps and for as much time, and draw their losses.

Rules for matrices leave embeddings, norms and biases to AdamW; the rates are those that the atlas finds best for a GPT.
"""

import math
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

import optimfn as of

sys.path.insert(0, str(Path(__file__).parent))
from gpt import GPT, load_text, loss_of

LABELS = of.tree.label_by_path({r"^blocks\..*(qkv|out|up|down)\.weight$": "matrices"}, default="rest")


def with_adamw(rule: of.GradientTransformation) -> of.GradientTransformation:
    return of.partition({"matrices": rule, "rest": of.adamw(1e-2, b2=0.95, weight_decay=0.01)}, LABELS)


def normuon() -> of.GradientTransformation:
    direction = of.scale_by_normuon(), of.scale_by_matrix_shape()
    return of.chain(*direction, of.add_cautious_decayed_weights(0.01), of.scale_by_learning_rate(0.02))


OPTIMIZERS = {
    "AdamW": lambda: of.adamw(1e-2, b2=0.95, weight_decay=0.01),
    "Muon + AdamW": lambda: with_adamw(of.torch_muon(0.02, weight_decay=0.01)),
    "NorMuon + cautious decay": lambda: with_adamw(normuon()),
    "SOAP": lambda: of.soap(1e-2, weight_decay=0.01),
    "PSGD Kron": lambda: of.kron_whiten(1e-2, weight_decay=0.01),
}


def train(make, steps: int) -> tuple[list[int], list[float], float]:
    """Steps, bits per byte of unseen text at each of them, and the processor seconds of training."""
    torch.manual_seed(0)
    model, generator, (text, valid) = GPT(), torch.Generator().manual_seed(0), load_text()
    rate = of.warmup_stable_decay_schedule(0.0, 1.0, steps // 20, steps // 2, steps - steps // 2 - steps // 20)
    optimizer = of.Optimizer(model, of.chain(of.clip_by_global_norm(1.0), make(), of.scale_by_schedule(rate)))
    at, bits, spent = [], [], 0.0
    for step in range(steps + 1):
        if step % max(1, steps // 10) == 0:
            fixed = torch.Generator().manual_seed(1)
            at.append(step)
            bits.append(sum(loss_of(model, valid, fixed).item() for _ in range(10)) / 10 / math.log(2))
        start = time.process_time()
        loss_of(model, text, generator).backward()
        optimizer.step(), optimizer.zero_grad()
        spent += (time.process_time() - start) * (step > 0)  # the first compiles
    return at, bits, spent


def main(steps: int = 300, picture: str = "gpt_optimizers.png") -> dict[str, tuple[float, float]]:
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots(1, 2, sharey=True)
    found, limit = {}, 0.0
    for name, make in OPTIMIZERS.items():
        at, bits, spent = train(make, steps)
        limit = limit or spent  # AdamW's
        fewer = max(2, min(steps, round(steps * limit / spent)))
        timed, later, _ = (at, bits, spent) if fewer == steps else train(make, fewer)
        found[name] = bits[-1], later[-1]
        axes[0].plot(at, bits, label=name)
        axes[1].plot([limit * step / fewer for step in timed], later)
        print(f"{name:24} {bits[-1]:.3f} bits after {steps} steps, {later[-1]:.3f} after AdamW's time, {fewer} steps")
    axes[0].set(xlabel="steps", ylabel="bits per byte of unseen text", ylim=(2, 5)), axes[0].legend()
    axes[1].set(xlabel="processor seconds, as many for each")
    figure.savefig(picture, bbox_inches="tight")
    return found


if __name__ == "__main__":
    main()
