"""The shortest training loop: a tree of parameters, a loss, an optimizer, and nothing that is changed in place."""

import torch

import optimfn as of


def loss_fn(params, x, y):
    return torch.mean((x @ params["weight"] + params["bias"] - y) ** 2)


def main(steps: int = 200) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 3.0]) + 0.5

    params = {"weight": torch.zeros(3), "bias": torch.zeros(())}
    tx = of.chain(of.clip_by_global_norm(1.0), of.adam(of.cosine_decay_schedule(0.1, steps)))
    state = tx.init(params)

    before = loss_fn(params, x, y).item()
    for _ in range(steps):
        grads = torch.func.grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    after = loss_fn(params, x, y).item()

    print(f"loss before {before:.4f}, after {after:.2g}")
    return before, after


if __name__ == "__main__":
    main()
