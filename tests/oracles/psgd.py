"""PSGD, from its authors' code, leaf by leaf in float64 with einsum; random numbers are those of the library."""

import math

import numpy as np
import torch

import optimfn as of

LETTERS = "abcdefgh"


def key_of(seed, t, name):
    """What the random numbers of a leaf are a function of, in the step with this number, from 0."""
    return of.tree.fold_in(of.tree.fold_in(seed, t), name)


def normal(key, *sizes):
    return of.tree.normal(key, torch.empty(sizes, dtype=torch.float64)).numpy()


def even(key, *sizes):
    return 2 * of.tree.uniform(key, torch.empty(sizes, dtype=torch.float64)).numpy() - 1


def signs(key, n):
    return of.tree.rademacher(key, torch.empty(n, dtype=torch.float64)).numpy()


def along(q, x, axis):
    """A factor along one axis."""
    moved = np.moveaxis(x, axis, 0)
    product = np.einsum("i,i...->i...", q, moved) if q.ndim == 1 else np.einsum("ij,j...->i...", q, moved)
    return np.moveaxis(product, 0, axis)


def apply(qs, x):
    for axis, q in enumerate(qs):
        x = along(q, x, axis)
    return x


def contract(a, b, axis, diagonal):
    """What is left of two tensors along one axis."""
    names = LETTERS[: a.ndim]
    if diagonal:
        return np.einsum(f"{names},{names}->{names[axis]}", a, b)
    other = names.replace(names[axis], "z")
    return np.einsum(f"{names},{other}->{names[axis]}z", a, b)


def subspace_norm(a, v, factor):
    factor = factor + np.finfo(float).tiny
    a = a / factor
    row = a[np.argmax(np.linalg.norm(a, axis=1))]
    v = row + np.sign(v @ row)[:, None] * v
    for _ in range(2):
        v = v @ a
        v = v / (np.linalg.norm(v, axis=1, keepdims=True) + np.finfo(float).tiny)
        v = v @ a
    return factor * np.linalg.norm(v, axis=1).max()


def row_norm(a):
    size = np.abs(a).max()
    if size == 0:
        return 0.0
    a = a / size
    x = a @ a[np.argmax((a * a).sum(1))]
    return size * np.linalg.norm(a.T @ (x / np.linalg.norm(x)))


def balance(qs):
    if len(qs) == 1:
        return qs
    sizes = [np.abs(q).max() for q in qs]
    mean = math.prod(sizes) ** (1 / len(qs))
    return [q * (mean / size) for q, size in zip(qs, sizes, strict=True)]


def procrustes(q, v):
    r = q.T - q
    r = r / (subspace_norm(r, v, np.abs(r).max()) + np.finfo(float).tiny)
    rq = r @ q
    rrq = r @ rq
    a, b = np.trace(rq), np.trace(rrq)
    s = min(-a / b, 1 / 8) if b < 0 else 1 / 8
    return q + s * (rq + 0.5 * s * rrq)


class KronWhiten:
    """One leaf of `KronWhiten`; `scale` is that of all leaves together."""

    def __init__(
        self,
        name,
        scale,
        momentum=0.0,
        rate=0.1,
        mode="Q0.5EQ1.5",
        beta=0.9,
        damping=1e-9,
        skew=1.0,
        whiten="gradient",
        probability=1.0,
        clip=(2.0, 10.0),
        first=True,
        offset=0,
    ):
        self.offset = offset
        self.name, self.scale, self.momentum, self.rate, self.mode = name, scale, momentum, rate, mode
        self.beta, self.damping, self.skew, self.whiten = beta, damping, skew, whiten
        self.probability, self.clip, self.first = probability, clip, first
        self.q, self.m, self.since = None, 0.0, 0

    def start(self, shape):
        numel = math.prod(shape)
        scale = self.scale**2 if self.mode in ("QUAD4P", "PRO4P") else self.scale
        each = scale ** (1 / len(shape))
        diagonal = [n <= 1 or n**2 > self.skew * numel for n in shape]
        self.q = [each * (np.ones(n) if d else np.eye(n)) for n, d in zip(shape, diagonal, strict=True)]
        self.bounds = [0.0] * len(shape)

    def __call__(self, g, p, t):
        shape, g = g.shape, g.squeeze() if g.squeeze().ndim else g.reshape(1)
        if self.q is None:
            self.start(g.shape)
        beta = min((t - 1) / t, self.momentum)
        self.m = beta * self.m + (1 - beta) * g
        self.since += 1
        due = (t + self.offset) % math.ceil(1 / self.probability) == 0
        old = list(self.q)
        if due:
            self.since = 0
            self.fit(g if self.whiten == "gradient" else self.m, t - 1)
        qs = self.q if self.first else old
        u = apply(qs, self.m) if self.mode in ("QUAD4P", "PRO4P") else apply([q.T for q in qs], apply(qs, self.m))
        size = np.sqrt((u * u).mean())
        u = u * min(1.0, self.clip[0] / size) if size > 0 else u
        return np.clip(u, -self.clip[1], self.clip[1]).reshape(shape)

    def noise(self, key, shape):
        """Noise, and vectors for the norms of each axis with a matrix."""
        of_axes = iter(np.split(signs(of.tree.fold_in(key, 0), sum(shape)), np.cumsum(shape)[:-1]))
        n = 1.0
        for axis in range(len(shape)):
            n = n * next(of_axes).reshape(*[1] * axis, -1, *[1] * (len(shape) - 1 - axis))
        return n

    def probes(self, key):
        count = 2 if self.mode in ("Q0.5EQ1.5", "PRO4P") else 1
        sizes = [len(q) for q in self.q if q.ndim == 2 for _ in range(count)]
        drawn = even(of.tree.fold_in(key, 1), 32, sum(sizes)) if sizes else None
        return iter(np.split(drawn, np.cumsum(sizes)[:-1], axis=1) if sizes else [])

    def terms(self, x, v, key):
        if self.mode == "EQ":
            v = normal(of.tree.fold_in(key, 0), *x.shape) if v is None else v
            a = apply(self.q, x + self.damping * v)
            b = apply([1 / q if q.ndim == 1 else np.linalg.inv(q).T for q in self.q], v)
            return [(contract(a, a, i, q.ndim == 1), contract(b, b, i, q.ndim == 1)) for i, q in enumerate(self.q)]
        x = x + (self.damping + np.finfo(float).eps * np.abs(x)) * self.noise(key, x.shape)
        y = apply(self.q, x)
        y = y if self.mode in ("QUAD4P", "PRO4P") else apply([q.T for q in self.q], y)
        found = []
        for i, q in enumerate(self.q):
            diagonal, share = q.ndim == 1, x.size / len(q)
            left = along(q, y, i) if self.mode == "QEP" else y
            if v is not None:
                right = along(q, v, i) if self.mode == "QEP" else v
                second = contract(right, right, i, diagonal)
            elif self.mode == "QEP":
                second = share * (q * q if diagonal else q @ q.T)
            else:
                second = share if diagonal else share * np.eye(len(q))
            found.append((contract(left, left, i, diagonal), second))
        return found

    def fit(self, x, t, v=None):
        key = key_of(0, t, self.name)
        if self.mode == "QEP":
            self.q = balance(self.q)
        probes, changed = self.probes(key), []
        for i, (q, (first, second)) in enumerate(zip(self.q, self.terms(x, v, key), strict=True)):
            diagonal = q.ndim == 1
            apart = v is None and self.mode not in ("EQ", "QEP")  # the identity is added to the norm
            total = first if apart else first + second
            size = total.max() if diagonal else subspace_norm(total, next(probes), np.diagonal(total).max())
            size += x.size / len(q) if apart else 0.0
            self.bounds[i] = max(self.beta * self.bounds[i] + (1 - self.beta) * size, size)
            step = self.rate / self.bounds[i]
            changed.append(self.moved(q, first - second, step, probes))
        self.q = changed
        if t % 100 == 0:
            self.q = balance(self.q)

    def moved(self, q, e, step, probes):
        diagonal = q.ndim == 1
        if self.mode in ("QUAD", "QUAD4P"):
            step = step / 2 if self.mode == "QUAD" else step
            if diagonal:
                return q * (1 - step * e) ** 2
            q = q - step * e @ q
            q = q - step * q @ e
            return (q + q.T) / 2
        step = 2 * step if self.mode == "PRO4P" else step
        if diagonal:
            return q - step * e * q
        if self.mode in ("Q0.5EQ1.5", "PRO4P"):
            return procrustes(q - step * e @ q, next(probes))
        if self.mode == "QEQ":
            return q - step * q @ e
        return q - step * (np.triu(e) if self.mode == "EQ" else e) @ q


class Kron:
    """One leaf of `kron_torch`."""

    def __init__(self, name, b1=0.9, rate=0.1, scale=1.0, probability=None, save=None, from_mean=True, merge=True):
        self.name, self.b1, self.rate, self.scale, self.probability = name, b1, rate, scale, probability
        self.save, self.from_mean, self.merge = save, from_mean, merge
        self.q, self.m, self.since = None, 0.0, 0

    def start(self, shape):
        diagonal = [n == 1 or len(shape) < 2 for n in shape]
        if self.save == "one_diag" or (self.save == "smart_one_diag" and sorted(shape)[-1] > ([0, *sorted(shape)])[-2]):
            diagonal[int(np.argsort(shape)[::-1][0])] = True
        diagonal = [True] * len(shape) if self.save == "all_diag" else diagonal
        each = self.scale ** (1 / len(shape))
        self.q = [each * (np.ones(n) if d else np.eye(n)) for n, d in zip(shape, diagonal, strict=True)]

    def __call__(self, g, p, t):
        shape = g.shape
        if g.ndim > 2 and self.merge:
            one = (math.prod(shape[:-1]), shape[-1])
            other = (shape[0], math.prod(shape[1:]))
            g = g.reshape(one if one[1] - one[0] <= other[1] - other[0] else other)
        if self.q is None:
            self.start(g.shape)
        self.m = self.b1 * self.m + (1 - self.b1) * g
        mean = self.m / (1 - self.b1**t)
        probability = max(0.03, min(1.0, math.exp(-0.001 * (t - 1 - 500))))
        probability = probability if self.probability is None else self.probability
        if (t - 1) % 100 == 0:
            self.q = balance(self.q)
        self.since += 1
        if self.since >= 1 / probability:
            self.since = 0
            self.fit(mean if self.from_mean else g, t - 1)
        u = apply([q.T for q in self.q], apply(self.q, mean))
        return (u * min(1.0, 1.1 / (np.sqrt((u * u).mean()) + 1e-12))).reshape(shape)

    def fit(self, x, t):
        v = normal(of.tree.fold_in(key_of(0, t, self.name), 0), *x.shape)
        a = apply(self.q, x)
        b = apply([1 / q if q.ndim == 1 else np.linalg.inv(q).T for q in self.q], v)
        changed = []
        for i, q in enumerate(self.q):
            first, second = contract(a, a, i, q.ndim == 1), contract(b, b, i, q.ndim == 1)
            if q.ndim == 1:
                changed.append(q - self.rate * (first - second) * q / (first + second).max())
            else:
                changed.append(q - self.rate * np.triu(first - second) @ q / row_norm(first + second))
        self.q = changed


class Stepped:
    """A rate, and decay of the leaves of two and more axes, or of all."""

    def __init__(self, rule, rate, decay, of_all=False):
        self.rule, self.rate, self.decay, self.of_all = rule, rate, decay, of_all

    def __call__(self, g, p, t):
        decay = self.decay if self.of_all or p.ndim >= 2 else 0.0
        return -self.rate * (self.rule(g, p, t) + decay * p)


def lra(rank, rate, momentum=0.9, step=0.1, beta=0.9, damping=1e-9, scale=None, decay=0.0):
    """`LRAWhiten` of all leaves as one vector; random numbers are those of the library."""

    def run(params, gradients):
        names = list(params)
        sizes = np.cumsum([params[name].numel() for name in names])[:-1]

        def whole(values):
            return np.concatenate([np.asarray(values[name]).reshape(-1) for name in names])[:, None]

        def drawn(key, columns):
            like = {name: torch.empty(params[name].numel(), columns, dtype=torch.float64) for name in names}
            return np.concatenate([x.numpy() for x in of.tree.random_like(key, like).values()])

        u, v = (drawn(of.tree.fold_in(0, -1 - part), rank) for part in range(2))
        u, v = u * math.sqrt(0.1) / np.linalg.norm(u), v * math.sqrt(0.1) / np.linalg.norm(v)
        first = whole(gradients[0])
        d = np.full_like(first, (np.mean(first**4) + damping**4) ** (-1 / 8) if scale is None else scale)
        bounds, m, p, n = [0.0] * 3, 0.0, whole(params), len(first)
        for t, grads in enumerate(gradients):
            g = whole(grads)
            low = min(t / (t + 1), momentum)
            m = low * m + (1 - low) * g
            key = of.tree.fold_in(0, t)
            noise = drawn(key, 1)
            h = g + damping * noise
            uu, vv = u.T @ u, v.T @ v
            rho = (np.trace(uu) / np.trace(vv)) ** 0.25
            e = 0.1 * (uu / rho**2 - vv * rho**2) / (np.trace(uu) / rho**2 + np.trace(vv) * rho**2)
            u, v = u / rho, v * rho
            u, v = u - u @ (e - 0.5 * e @ e), v + v @ (e + 0.5 * e @ e)
            q = (np.eye(n) + u @ v.T) * d.T
            a, b = q @ h, np.linalg.solve(q.T, noise)
            ph, pn = q.T @ a, np.linalg.solve(q, b)

            def bound(i, size):
                bounds[i] = max(beta * bounds[i] + (1 - beta) * size, size)
                return step / bounds[i]

            size = np.linalg.norm
            new_d = d - bound(2, np.abs(ph * h).max() + np.abs(noise * pn).max()) * (ph * h - noise * pn) * d
            if of.tree.uniform(of.tree.fold_in(key, "coin"), torch.zeros(())) < 0.5:
                rise = bound(0, size(a) * size(v @ (v.T @ a)) + size(b) * size(v @ (v.T @ b)))
                u = u - rise * (a @ (a.T @ v) - b @ (b.T @ v)) @ (np.eye(rank) + v.T @ u)
            else:
                rise = bound(1, size(a) * size(u @ (u.T @ a)) + size(b) * size(u @ (u.T @ b)))
                v = v - rise * ((np.eye(n) + v @ u.T) @ (a @ (a.T @ u) - b @ (b.T @ u)))
            d = new_d
            q = (np.eye(n) + u @ v.T) * d.T
            p = p + rate * (q.T @ (q @ m) + decay * p)
            parts = np.split(p[:, 0], sizes)
            yield {name: torch.from_numpy(x.reshape(params[name].shape)) for name, x in zip(names, parts, strict=True)}

    return run
