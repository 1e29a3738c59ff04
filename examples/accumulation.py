"""Accumulate gradients: eight small batches make the step of one that is eight times as large.

`of.multi_steps` gives zero updates until the eighth gradient is there. Schedules, counts and moments inside move once
per step, and clipping sees the mean gradient.
"""

import torch
from torch.func import grad

import optimfn as of


def loss(params, x, y):
    return torch.mean((torch.tanh(x @ params["hidden"]) @ params["out"] - y) ** 2)


def main(steps: int = 50, k: int = 8) -> float:
    generator = torch.Generator().manual_seed(0)
    start = {
        "hidden": torch.randn(10, 32, generator=generator) / 3,
        "out": torch.randn(32, generator=generator) / 5,
    }
    x = torch.randn(steps, 512, 10, generator=generator)
    y = torch.sin(x.sum(-1))

    rule = of.chain(of.clip_by_global_norm(1.0), of.adamw(of.cosine_decay_schedule(0.02, steps)))
    whole, state = start, rule.init(start)
    for count in range(steps):
        updates, state = rule.update(grad(loss)(whole, x[count], y[count]), state, whole)
        whole = of.apply_updates(whole, updates)

    tx = of.multi_steps(rule, k)
    pieces, state = start, tx.init(start)
    for count in range(steps):
        for part_x, part_y in zip(x[count].chunk(k), y[count].chunk(k), strict=True):
            updates, state = tx.update(grad(loss)(pieces, part_x, part_y), state, pieces)
            pieces = of.apply_updates(pieces, updates)
        assert of.has_updated(state)

    difference = of.tree.norm(of.tree.sub(whole, pieces)) / of.tree.norm(whole)
    runs = {"start": start, f"{steps} batches of 512": whole, f"{steps} times {k} batches of {512 // k}": pieces}
    for name, params in runs.items():
        print(f"{name:24} loss {loss(params, x[-1], y[-1]):.4f}")
    print(f"relative difference of the last two: {difference:.0e}")
    return difference.item()


if __name__ == "__main__":
    main()
