"""SOAP and what came of it, from their authors' code, leaf by leaf in float64.

Where a gradient leaves a space free, LAPACK's rounding would choose; its basis comes from projections of the axes.
"""

import math

import numpy as np


def unfolded(x, axis):
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def times(x, matrix, axis):
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def first_basis(s):
    """Largest first; the space of the eigenvalue zero as `eigenvectors` says."""
    values, q = np.linalg.eigh(s)
    values, q = values[::-1], q[:, ::-1].copy()
    n = len(s)
    if not np.any(s):
        return np.eye(n)
    null = np.abs(values) <= n * np.finfo(float).eps * np.abs(values).max()
    i = np.arange(1, n + 1)
    axes = np.eye(n) + 0.01 * np.cos(i[:, None] ** 2 * i * 0.6180339887)
    q[:, null] = q[:, null] @ (q[:, null].T @ axes)[:, null]
    found, r = np.linalg.qr(q)
    return np.where(null, found * np.sign(np.diag(r)), q)


def next_basis(s, q, sort=True):
    """One power iteration, and the order of the old vectors."""
    values = np.diag(q.T @ s @ q)
    there = values > len(s) * np.finfo(float).eps * values.max()
    order = np.argsort(-np.where(there, values, 0), kind="stable") if sort else np.arange(len(s))
    found, r = np.linalg.qr(np.where(there, s @ q, q)[:, order])
    return found * np.sign(np.diag(r)), order


class Soap:
    """The class SOAP and KLOpt of the authors, for one parameter."""

    def __init__(
        self,
        lr=1.0,
        betas=(0.95, 0.95),
        shampoo_beta=None,
        eps=1e-8,
        weight_decay=0.0,
        k=10,
        largest=10000,
        merge=False,
        vectors=False,
        normalize=False,
        correct=True,
        kl=False,
        init_factor=0.1,
        whiten=False,
        rule=None,
        offset=0,
    ):
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})
        self.sb = betas[1] if shampoo_beta is None else shampoo_beta
        self.q = None

    def view(self, shape):
        if not self.merge or len(shape) < 2:
            return shape
        found, product = [], 1
        for n in shape:
            if product * n > self.largest:
                found.append(product if product > 1 else n)
                product = n if product > 1 else 1
            else:
                product *= n
        return (*found, product) if product > 1 or not found else tuple(found)

    def __call__(self, g, p, t):
        shape, g = g.shape, g.reshape(self.view(g.shape))
        if self.q is None:
            self.has = [n <= self.largest and (len(shape) > 1 or self.vectors) for n in g.shape]
            self.s = [np.zeros((n, n)) for n in g.shape]
            self.q = [np.eye(n) for n in g.shape]
            self.e = [np.ones(n) for n in g.shape]
            self.m, self.v, self.t = np.zeros(g.shape), np.zeros(g.shape), 0
            self.gather(g)
            for i, there in enumerate(self.has):
                if there:
                    self.q[i] = first_basis(self.s[i])
                    self.e[i] = np.full(g.shape[i], self.init_factor**-0.5)
            return np.zeros(shape)
        self.t += 1
        b1, b2 = self.betas
        h = self.turn(g, [q.T for q in self.q])
        factor = 1.0
        if self.rule is not None:
            u = self.rule(h, 0.0, self.t)
        else:
            self.m = b1 * self.m + (1 - b1) * h
            self.v = b2 * self.v + (1 - b2) * h**2
            u = self.m / (np.sqrt(self.v) + self.eps)
            if self.whiten and not any(self.has):
                u = self.m
            elif self.whiten:
                w = np.ones(g.shape)
                for i, there in enumerate(self.has):
                    w = w * np.expand_dims(self.e[i], [j for j in range(g.ndim) if j != i]) if there else w
                u = self.m * w / (1 + self.eps * w)
            if self.correct:
                factor = math.sqrt(1 - b2**self.t) / (1 - b1**self.t)
        u = self.turn(u, self.q)
        if self.normalize:
            u = u / (1e-30 + math.sqrt(np.mean(u**2)))
        moved = (p - self.lr * factor * u.reshape(shape)) * (1 - self.lr * self.weight_decay)
        self.gather(g)
        if (self.t + self.offset) % self.k == 0:
            state = self if self.rule is None else self.rule
            names = [name for name in ("m", "m1", "m2") if hasattr(state, name)]
            means = {name: self.turn(getattr(state, name), self.q) for name in names}
            for i, there in enumerate(self.has):
                if there:
                    self.q[i], order = next_basis(self.s[i], self.q[i], not self.kl)
                    state.v = np.take(state.v, order, axis=i)
            for name, m in means.items():
                setattr(state, name, self.turn(m, [q.T for q in self.q]))
        return moved - p

    def turn(self, x, matrices):
        for i, there in enumerate(self.has):
            x = times(x, matrices[i], i) if there else x
        return x

    def gather(self, g):
        """Products of the gradient, and for "kl" the eigenvalues, from what the others were before."""
        if not self.kl:
            for i, there in enumerate(self.has):
                if there:
                    self.s[i] = self.sb * self.s[i] + (1 - self.sb) * unfolded(g, i) @ unfolded(g, i).T
            return
        e = [x.copy() for x in self.e]
        for i, there in enumerate(self.has):
            if not there:
                continue
            w = g
            for j, other in enumerate(self.has):
                if j != i and other:
                    w = times(w, np.diag(e[j]) @ self.q[j].T, j)
            rows = unfolded(w, i)
            self.s[i] = self.sb * self.s[i] + (1 - self.sb) * g.shape[i] / g.size * rows @ rows.T
            d = self.sb / self.e[i] ** 2 + (1 - self.sb) * np.mean((self.q[i].T @ rows) ** 2, axis=1)
            self.e[i] = np.minimum(1 / np.sqrt(d), max(10, min(g.shape[i], 4000)))
