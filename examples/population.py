"""Train 64 classifiers of digits at once, each with a learning rate of its own, and see which rates work.

One stack of parameters, one `vmap` over the gradient, one optimizer for the stack; then 64 separate models with an
instance of `torch.optim.AdamW` each, from the same weights and on the same batches.
"""

import copy
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import optimfn as of


def load_data(epochs):
    images, digits = map(torch.as_tensor, load_digits(return_X_y=True))
    x, y = images.float() / 16, digits.long()
    train, test = train_test_split(torch.arange(len(y)), test_size=0.25, stratify=y, random_state=0)
    batches = [rows for _ in range(epochs) for rows in train[torch.randperm(len(train))].split(32)]
    return [(x[rows], y[rows]) for rows in batches], (x[test], y[test])


def train_together(model, rates, batches):
    def loss(params, x, y):
        return cross_entropy(functional_call(model, params, x), y)

    gradients = vmap(grad(loss), in_dims=(0, None, None))
    params = of.tree.batch_shape({name: p.detach() for name, p in model.named_parameters()}, rates.shape)
    tx = of.stacked(of.adamw, learning_rate=rates, weight_decay=0.01)
    state, step = tx.init(params), of.make_step(tx, donate=True)
    for x, y in batches:
        params, state = step(params, state, gradients(params, x, y))
    return lambda x: vmap(lambda p: functional_call(model, p, x))(params)


def train_one_by_one(model, rates, batches):
    models = [copy.deepcopy(model) for _ in rates]
    for own, rate in zip(models, rates.tolist(), strict=True):
        optimizer = torch.optim.AdamW(own.parameters(), rate, weight_decay=0.01)
        for x, y in batches:
            optimizer.zero_grad()
            cross_entropy(own(x), y).backward()
            optimizer.step()
    return lambda x: torch.stack([own(x) for own in models])


def main(members=64, epochs=10, out="outputs/population.png"):
    torch.manual_seed(0)
    torch.set_num_threads(1)  # such small models gain little from more
    batches, (x, y) = load_data(epochs)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    rates = torch.logspace(-5, 0, members, dtype=torch.float64)
    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    results, seconds = [], []
    for train, style in (train_together, "-"), (train_one_by_one, "."):
        train(model, rates, batches[:1])  # what torch and the compiler set up on first use shall not count
        start, predict = time.perf_counter(), train(model, rates, batches)
        seconds.append(time.perf_counter() - start)
        results.append((predict(x).argmax(dim=-1) == y).float().mean(dim=1))
        axes.plot(rates, 100 * results[-1], style, label=f"{train.__name__.replace('_', ' ')}: {seconds[-1]:.1f} s")
    axes.set(xscale="log", xlabel="learning rate", ylabel="% of test images")
    figure.legend(loc="outside upper center")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    hits, best = results[0].max(dim=0)
    print(f"best of {members} rates: {rates[best]:.2g}, {hits:.1%} of the test images")
    print(f"together {seconds[0]:.2f} s, one by one {seconds[1]:.2f} s: {seconds[1] / seconds[0]:.1f} times faster")
    return results


if __name__ == "__main__":
    main()
