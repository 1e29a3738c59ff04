"""Learn initial parameters from which one step of gradient descent fits a new sinusoid: MAML.

The task of Finn, Abbeel and Levine, 2017, arXiv:1703.03400, section 5.1: y = a sin(x - b) with an amplitude a in
[0.1, 5] and a phase b in [0, pi], seen at 10 points x in [-5, 5]. All tasks of a meta-batch are adapted to at once, and
the gradient flows through their updates.
"""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call, grad, vmap

import optimfn as of

model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
inner = of.sgd(0.01)


def sample(tasks, points):
    """Sinusoids at random points: x and y of shape (tasks, points, 1)."""
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1)
    phase = math.pi * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, points, 1) - 5
    return x, amplitude * torch.sin(x - phase)


def loss(params, x, y):
    return nn.functional.mse_loss(functional_call(model, params, x), y)


def adapt(params, x, y, steps=1):
    state = inner.init(params)
    for _ in range(steps):
        updates, state = inner.update(grad(loss)(params, x, y), state, params)
        params = of.apply_updates(params, updates)
    return params


def meta_loss(params, x, y):
    """The mean loss of all tasks at their last points, after adapting to their first ten."""
    return vmap(lambda x, y: loss(adapt(params, x[:10], y[:10]), x[10:], y[10:]))(x, y).mean()


def plot(curve, params, x, y, out):
    figure = Figure(figsize=(9, 3.5), layout="constrained")  # without pyplot, so it needs no window
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*curve, strict=True))
    left.set(xlabel="meta-iteration", ylabel="mean squared error after one step", ylim=(0, None))
    grid = torch.linspace(-5, 5, 200).unsqueeze(1)
    for steps in (0, 1, 10):
        fit = functional_call(model, adapt(params, x[:10], y[:10], steps), grid)
        right.plot(grid, fit.detach(), label=f"steps: {steps}")
    right.plot(x[:10], y[:10], "k^", label="what is seen")
    right.legend()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def main(iterations=15_000, tests=600, out="outputs/maml.png"):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    params = {name: torch.randn_like(p) / math.sqrt(p.shape[-1]) for name, p in model.named_parameters()}
    tx = of.adam(1e-3)
    state, step, curve = tx.init(params), of.make_step(tx, donate=True), []
    x, y = sample(tests, 110)
    for iteration in range(iterations + 1):
        if iteration % max(1, iterations // 30) == 0:
            curve.append((iteration, meta_loss(params, x, y).item()))
        params, state = step(params, state, grad(meta_loss)(params, *sample(25, 20)))
    plot(curve, params, x[1], y[1], out)
    print(f"mean squared error on {tests} new tasks, after one step: {curve[-1][1]:.3f}")
    return curve


if __name__ == "__main__":
    main()
