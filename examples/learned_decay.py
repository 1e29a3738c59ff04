"""Differentiate the validation loss with respect to the weight decay, through 200 steps of training, and follow it.

Linear regression with more unknowns than observations, where the weight decay decides about everything. The gradient is
compared with a difference quotient at the start, and then the logarithm of the decay descends along it. The steps are
checkpointed ten at a time, so that of the 200 only every tenth state is kept.
"""

import torch
from torch.func import grad, grad_and_value

import optimfn as of


def make_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 60, generator=generator, dtype=torch.float64)
    truth = torch.randn(60, generator=generator, dtype=torch.float64) / 8
    y = x @ truth + torch.randn(200, generator=generator, dtype=torch.float64)
    return (x[:40], y[:40]), (x[40:], y[40:])


def loss(weights, x, y):
    return (x @ weights - y).square().mean()


@of.tree.checkpoint
def ten_steps(weights, state, decay, x, y):
    tx = of.chain(of.add_decayed_weights(decay), of.sgd(0.02, momentum=0.9))
    for _ in range(10):
        updates, state = tx.update(grad(loss)(weights, x, y), state, weights)
        weights = of.apply_updates(weights, updates)
    return weights, state


def validation_loss(log_decay, train, valid, steps=200):
    weights = torch.zeros(60, dtype=torch.float64)
    state = of.chain(of.add_decayed_weights(0.1), of.sgd(0.02, momentum=0.9)).init(weights)
    for _ in range(steps // 10):
        weights, state = ten_steps(weights, state, log_decay.exp(), *train)
    return loss(weights, *valid)


def main(iterations=60):
    train, valid = make_data()
    log_decay = torch.tensor(-6.0, dtype=torch.float64)
    h = 1e-5
    slope = grad(validation_loss)(log_decay, train, valid).item()
    above, below = (validation_loss(log_decay + step, train, valid).item() for step in (h, -h))
    quotient = (above - below) / (2 * h)
    print(f"slope at the start: {slope:.10f} by differentiation, {quotient:.10f} by a difference quotient")
    tx = of.adam(0.1)
    state = tx.init(log_decay)
    for iteration in range(iterations + 1):
        step, value = grad_and_value(validation_loss)(log_decay, train, valid)
        if iteration % max(1, iterations // 6) == 0:
            print(f"{iteration:3}: decay {log_decay.exp():.4f}, validation loss {value:.4f}, slope {step:.1e}")
        updates, state = tx.update(step, state, log_decay)
        log_decay = of.apply_updates(log_decay, updates)
    return slope, quotient, log_decay.exp().item()


if __name__ == "__main__":
    main()
