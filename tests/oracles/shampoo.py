"""Distributed Shampoo, from its authors' equations, leaf by leaf in float64."""

import itertools

import numpy as np

from .soap import first_basis, times, unfolded


def merged(shape, largest, target):
    """Axes joined from the back, while there are more of them than wanted."""
    if target is None:
        return shape
    sizes = [n for n in shape if n != 1] or [1]
    while True:
        for i in range(len(sizes) - 2, -1, -1):
            if len(sizes) > target and sizes[i] * sizes[i + 1] <= largest:
                sizes[i : i + 2] = [sizes[i] * sizes[i + 1]]
                break
        else:
            return tuple(sizes)


class Block:
    """One block: its factors, what they are raised to, and what grafting keeps."""

    def __init__(self, shape, rule):
        self.__dict__.update(rule)
        o = len(shape)
        self.axes = [int(np.argmin(shape))] if self.sides == "one" and o else list(range(o))
        own = self.roots.get(o) if isinstance(self.roots, dict) else self.roots
        self.p = own or (2 if self.kind == "eigenvalues" else 2 * len(self.axes))
        self.L = {i: np.zeros((shape[i], shape[i])) for i in self.axes}
        self.R = {i: np.eye(shape[i]) for i in self.axes}
        self.m, self.v, self.E = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def along(self, x, matrices, but=None):
        for i in self.axes:
            x = x if i == but else times(x, matrices[i], i)
        return x

    def root(self, a):
        values, q = np.linalg.eigh(a + self.eps * np.eye(len(a)))
        if values.min() < self.eps:
            values = values + self.eps - values.min()
        return q @ np.diag(values ** (-1 / self.p)) @ q.T

    def __call__(self, g, t):
        w = 1.0 if self.b2 == 1 else 1 - self.b2
        c = 1 - self.b2**t if self.correct and self.b2 < 1 else 1.0
        for i in self.axes:
            x = unfolded(self.along(g, self.R, but=i) if self.kind == "kl" else g, i)
            self.L[i] = self.b2 * self.L[i] + w * x @ x.T
        if t == self.start or (t > self.start and (t + self.offset) % self.k == 0):
            for i in self.axes:
                self.R[i] = first_basis(self.L[i]) if self.kind == "eigenvalues" else self.root(self.L[i] / c)
        f = self.b3 * self.m + (1 - self.b3) * g
        self.m = self.b1 * self.m + (1 - self.b1) * g
        if self.correct:
            f = f / (1 - self.b3 * self.b1 ** (t - 1))
        n = self.graft(f, g, t)
        if self.kind == "eigenvalues":
            back = {i: q.T for i, q in self.R.items()}
            self.E = self.b2 * self.E + w * self.along(g, back) ** 2
            d = self.along(self.along(f, back) / ((self.E / c) ** (1 / self.p) + self.eps), self.R)
        else:
            d = self.along(f, self.R)
        if self.grafting is None:
            return d
        return n if t < self.start else d * np.linalg.norm(n) / (np.linalg.norm(d) + 1e-16)

    def graft(self, f, g, t):
        if self.grafting in (None, "sgd"):
            return f
        b = 1.0 if self.grafting == "adagrad" else self.gb2
        self.v = b * self.v + (1.0 if b == 1 else 1 - b) * g**2
        v = self.v / (1 - b**t) if self.grafting == "adam" and self.correct else self.v
        return f / (np.sqrt(v) + self.geps)


class Shampoo:
    """The whole optimizer for one parameter."""

    def __init__(
        self,
        lr=1e-2,
        betas=(0.9, 1.0),
        beta3=None,
        eps=1e-12,
        largest=1024,
        k=1,
        start=None,
        correct=True,
        grafting=None,
        gb2=0.999,
        geps=1e-8,
        kind="shampoo",
        roots=None,
        sides="both",
        target=1,
        weight_decay=0.0,
        decay="decoupled",
        peak=1.0,
        momentum=None,
        dampening=0.0,
        nesterov=False,
        offset=0,
    ):
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})
        self.rule = {
            "b1": betas[0],
            "b2": betas[1],
            "b3": betas[0] if beta3 is None else beta3,
            "start": k if start is None else start,
            **{x: getattr(self, x) for x in ("eps", "k", "correct", "grafting", "gb2", "geps")},
            **{x: getattr(self, x) for x in ("kind", "roots", "sides", "offset")},
        }
        self.blocks, self.M = None, 0.0

    def cut(self, shape):
        """Slices of each block."""
        parts = [[slice(a, min(a + self.largest, n)) for a in range(0, n, self.largest)] for n in shape]
        return list(itertools.product(*parts))

    def __call__(self, g, p, t):
        lr = self.lr(t - 1) if callable(self.lr) else self.lr
        view = merged(g.shape, self.largest, self.target)
        if self.decay == "l2":
            g = g + self.weight_decay * p
        g = g.reshape(view)
        if self.blocks is None:
            self.blocks = [(at, Block(g[at].shape, self.rule)) for at in self.cut(view)]
        d = np.zeros(view)
        for at, block in self.blocks:
            d[at] = block(g[at], t)
        d = d.reshape(p.shape)
        factor = {"decoupled": 1.0, "l2": 0.0, "corrected": lr / self.peak, "independent": 1 / self.peak}[self.decay]
        d = d + factor * self.weight_decay * p
        if self.momentum is not None:
            self.M = self.momentum * self.M + (1 - self.dampening) * d
            d = (1 - self.dampening) * d + self.momentum * self.M if self.nesterov else self.M
        return -lr * d


class SPlus:
    """The class SPlus of its authors for one parameter, with the factor of their paper; it keeps its average."""

    def __init__(
        self, lr=0.1, b1=0.9, b2=0.999, weight_decay=1e-2, k=100, max_dim=10000, other=0.001, ema_rate=0.999, offset=0
    ):
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})
        self.m, self.average, self.s, self.q = 0.0, 0.0, {}, {}

    def __call__(self, g, p, t):
        is_matrix = g.ndim == 2
        lr = self.lr * (2 / sum(g.shape) if is_matrix and max(g.shape) <= self.max_dim else self.other)
        self.m = self.b1 * self.m + (1 - self.b1) * g
        if t == 1 and is_matrix:
            for i, n in enumerate(g.shape):
                if n < self.max_dim:
                    self.s[i], self.q[i] = np.zeros((n, n)), np.eye(n)
        u = self.m
        for i, q in self.q.items():
            u = times(u, q.T, i)
        u = np.sign(u)
        for i, q in self.q.items():
            u = times(u, q, i)
        for i in self.s:
            self.s[i] = self.b2 * self.s[i] + (1 - self.b2) * unfolded(g, i) @ unfolded(g, i).T
            if t == 1 or (t + self.offset) % self.k == 0:
                self.q[i] = first_basis(self.s[i])
        moved = p - lr * u
        self.average = self.ema_rate * self.average + (1 - self.ema_rate) * moved
        self.evaluated = self.average / (1 - self.ema_rate**t)
        return moved * (1 - lr * self.weight_decay) - p
