"""Rules of one line, and ways to run a rule."""

import numpy as np
import torch


class Each:
    """A rule without memory: a function of gradient, parameter and step."""

    def __init__(self, f):
        self.f = f

    def __call__(self, g, p, t):
        return self.f(g, p, t)


def leafwise(make_rule):
    """An oracle from a rule that treats every leaf, and every element, alone; `make_rule` may take the leaf's name."""

    def run(params, gradients):
        values = {name: p.numpy().copy() for name, p in params.items()}
        rules = {name: make_rule(name) for name in params}
        for t, grads in enumerate(gradients, start=1):
            for name, rule in rules.items():
                values[name] = values[name] + rule(grads[name].numpy(), values[name], t)
            yield {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    return run


def together(f):
    """An oracle from a memoryless function of all leaves at once."""

    def run(params, gradients):
        values = {name: p.numpy().copy() for name, p in params.items()}
        for grads in gradients:
            updates = f({name: g.numpy() for name, g in grads.items()})
            values = {name: value + updates[name] for name, value in values.items()}
            yield {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    return run


def torch_optimizer(make):
    """An oracle from an optimizer of torch.optim."""

    def run(params, gradients):
        copies = {name: p.clone().requires_grad_() for name, p in params.items()}
        optimizer = make(list(copies.values()))
        for grads in gradients:
            for name, p in copies.items():
                p.grad = grads[name].clone()
            optimizer.step()
            yield {name: p.detach().clone() for name, p in copies.items()}

    return run


def global_norm_clip(max_norm):
    """Pascanu, Mikolov and Bengio 2013, Algorithm 1."""

    def clip(grads):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        return {name: g * (max_norm / norm) if norm >= max_norm else g for name, g in grads.items()}

    return clip
