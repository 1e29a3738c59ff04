"""Learn initial parameters from which one step of gradient descent fits a new sinusoid: MAML.

The task of Finn, Abbeel and Levine, 2017, arXiv:1703.03400, section 5.1: y = a sin(x - b) with an amplitude a in
[0.1, 5] and a phase b in [0, pi], seen at 10 points x in [-5, 5]. The tasks of a meta-batch are adapted to under `vmap`,
and the gradient flows through their updates.
"""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn.functional import mse_loss

import optimfn as of

model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
inner = of.sgd(0.01)


def sample(tasks, points, generator):
    """Sinusoids at random points: x and y of shape (tasks, points, 1)."""
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator)
    phase = math.pi * torch.rand(tasks, 1, 1, generator=generator)
    x = 10 * torch.rand(tasks, points, 1, generator=generator) - 5
    return x, amplitude * torch.sin(x - phase)


def loss(params, x, y):
    return mse_loss(functional_call(model, params, x), y)


def adapt(params, x, y, steps=1):
    state = inner.init(params)
    for _ in range(steps):
        updates, state = inner.update(grad(loss)(params, x, y), state, params)
        params = of.apply_updates(params, updates)
    return params


def meta_loss(params, x, y, steps=1):
    """The mean loss of all tasks at their last points, after adapting to their first ten."""

    def task_loss(x, y):
        return loss(adapt(params, x[:10], y[:10], steps), x[10:], y[10:])

    return vmap(task_loss)(x, y).mean()


def main(iterations=15_000, tests=600, out="outputs/maml.png"):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for layer in model[::2]:
        layer.reset_parameters()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    tx = of.adam(1e-3)
    state, step = tx.init(params), of.make_step(tx, donate=True)
    test, curve = sample(tests, 110, torch.Generator().manual_seed(1)), []
    for iteration in range(iterations + 1):
        if iteration % max(1, iterations // 30) == 0:
            with torch.no_grad():
                curve.append((iteration, *(meta_loss(params, *test, steps).item() for steps in (0, 1, 10))))
            print(f"{iteration:6} " + "".join(f"{x:9.3f}" for x in curve[-1][1:]), flush=True)
        grads, _ = grad_and_value(meta_loss)(params, *sample(25, 20, generator))
        params, state = step(params, state, grads)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    return curve


if __name__ == "__main__":
    import sys
    main(int(sys.argv[1]))
