"""Evaluate with a moving average of the parameters, which at a high, constant learning rate is well ahead of them.

`of.params_ema` comes last in the chain, and its average stands in the state, under `ema`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

import optimfn as of


def main(epochs: int = 10) -> tuple[float, float]:
    torch.manual_seed(0)
    x, y = map(torch.as_tensor, load_digits(return_X_y=True))
    x, y = x.float() / 16, y.long()
    order = torch.randperm(len(y))
    train, test = order[:1200], order[1200:]

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, rows):
        return cross_entropy(functional_call(model, params, x[rows]), y[rows])

    tx = of.chain(of.sgd(0.1, momentum=0.9), of.params_ema(0.99, debias=True))
    step, state = of.make_step(tx), tx.init(params)
    for epoch in range(1, epochs + 1):
        for rows in train[torch.randperm(len(train))].split(16):
            params, state = step(params, state, grad(loss)(params, rows))
        ema = of.tree.get(state, "ema")
        now, mean = loss(params, test).item(), loss(ema, test).item()
        print(f"epoch {epoch:2}: test loss {now:.3f} with the parameters, {mean:.3f} with their average")
    return now, mean


if __name__ == "__main__":
    main()
