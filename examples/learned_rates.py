"""Learn a learning rate for each layer by the gradient of the loss after training.

Five steps of gradient descent are unrolled, and the loss after them is differentiated with respect to the logarithm of
every layer's rate. The tasks are sinusoids with random amplitude and phase; the initial parameters are random too.
"""

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

import optimfn as of

model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
LAYERS = "0", "2", "4"


def loss(params, x, y):
    return nn.functional.mse_loss(functional_call(model, params, x), y)


def train(params, log_rates, x, y, steps=5):
    """The parameters after some steps in which each layer has a rate of its own."""
    rules = {layer: of.sgd(log_rates[layer].exp()) for layer in LAYERS}
    tx = of.partition(rules, lambda params: {name: name.split(".")[0] for name in params})
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(torch.func.grad(loss)(params, x, y), state, params)
        params = of.apply_updates(params, updates)
    return params


def meta_loss(log_rates, inits, x, y):
    """The mean loss over tasks, each with initial parameters of its own, at points not trained on."""

    def task_loss(params, x, y):
        return loss(train(params, log_rates, x[:20], y[:20]), x[20:], y[20:])

    return vmap(task_loss)(inits, x, y).mean()


def sample(tasks):
    x = 10 * torch.rand(tasks, 40, 1) - 5
    amplitude, phase = torch.rand(2, tasks, 1, 1)
    inits = {name: torch.randn(tasks, *p.shape) / p.shape[-1] ** 0.5 for name, p in model.named_parameters()}
    return inits, x, (0.1 + amplitude) * torch.sin(x - 3 * phase)


def main(iterations=300):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    log_rates = {layer: torch.tensor(0.01).log() for layer in LAYERS}
    tx = of.adam(0.05)
    state, test, losses = tx.init(log_rates), sample(100), []
    for iteration in range(iterations + 1):
        if iteration % max(1, iterations // 5) == 0:
            losses.append(meta_loss(log_rates, *test).item())
            rates = ", ".join(f"{rate.exp():.4f}" for rate in log_rates.values())
            print(f"{iteration:4}: rates {rates}; loss after five steps {losses[-1]:.4f}")
        grads, _ = grad_and_value(meta_loss)(log_rates, *sample(16))
        updates, state = tx.update(grads, state, log_rates)
        log_rates = of.apply_updates(log_rates, updates)
    best_shared = min(
        (meta_loss(dict.fromkeys(LAYERS, rate.log()), *test).item(), rate.item()) for rate in torch.logspace(-3, 0, 31)
    )
    print(f"best shared rate: {best_shared[1]:.4f}; loss after five steps {best_shared[0]:.4f}")
    return losses, best_shared[0]


if __name__ == "__main__":
    main()
