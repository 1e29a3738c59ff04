"""Rules that see matrices in a few directions, from their authors' code, leaf by leaf in float64."""

import math

import numpy as np
import torch


class RawAdam:
    """The means as they are, with eps beside the root; the bias is corrected by who multiplies by the rate."""

    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-6):
        self.beta1, self.beta2, self.eps, self.m, self.v = beta1, beta2, eps, 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        return self.m / (np.sqrt(self.v) + self.eps)


class LowRank:
    """`project`, and what Fira and APOLLO make of it; directions as LAPACK gives them in single precision."""

    def __init__(
        self, rule, rank, period, side="short", scale=1.0, kind="back", per="channel", layout=None, growth=1.01
    ):
        self.rule, self.rank, self.period, self.side, self.scale = rule, rank, period, side, scale
        self.kind, self.per, self.layout, self.growth, self.last = kind, per, layout, growth, None

    def __call__(self, g, p, t):
        if self.layout is not None and g.ndim == len(self.layout[0] + self.layout[1]):
            order = self.layout[0] + self.layout[1]
            moved = g.transpose(order)
            rows = math.prod(g.shape[i] for i in self.layout[0])
            return self.matrix(moved.reshape(rows, -1), t).reshape(moved.shape).transpose(np.argsort(order))
        return self.matrix(g, t) if self.layout is None and g.ndim == 2 else self.rule(g, p, t)

    def matrix(self, g, t):
        if (t - 1) % self.period == 0:
            u, _, vh = (x.double().numpy() for x in torch.linalg.svd(torch.from_numpy(g).float(), full_matrices=False))
            self.u, self.v = u[:, : self.rank], vh[: self.rank].T
        tall = g.shape[0] >= g.shape[1]
        left = {"left": True, "right": False, "short": not tall, "long": tall}[self.side]
        low = self.u.T @ g if left else g @ self.v
        step = self.rule(low, 0.0, t)

        def back(x):
            return self.scale * (self.u @ x if left else x @ self.v.T)

        if self.kind == "back":
            return back(step)
        axis = None if self.per == "tensor" else 0 if left else 1
        factor = np.linalg.norm(step, axis=axis, keepdims=True) / (np.linalg.norm(low, axis=axis, keepdims=True) + 1e-8)
        if self.kind == "fira":
            return back(step) + self.limited((g - back(low)) * factor)
        return math.sqrt(self.scale) * self.limited(g * factor)

    def limited(self, x):
        if self.growth is None:
            return x
        size = np.linalg.norm(x)
        limiter = 1.0 if self.last is None else max(size / (self.last + 1e-8), self.growth) / self.growth
        self.last = size / limiter
        return x / limiter


class DecayedLast:
    """A rate, corrected for the bias of both means, and then a decay of what came out."""

    def __init__(self, rule, rate, decay, beta1=0.9, beta2=0.999):
        self.rule, self.rate, self.decay, self.betas = rule, rate, decay, (beta1, beta2)

    def __call__(self, g, p, t):
        factor = math.sqrt(1 - self.betas[1] ** t) / (1 - self.betas[0] ** t)
        moved = p - self.rate * factor * self.rule(g, p, t)
        return moved * (1 - self.rate * self.decay) - p
