"""SAM's kin, from their papers: all gradients, all parameters and the step, to a step for all leaves."""

import numpy as np


def size(x):
    """2-norm of a tree."""
    return np.sqrt(sum((v**2).sum() for v in x.values()))


def dot(x, y):
    """Inner product of two trees."""
    return sum((x[n] * y[n]).sum() for n in x)


class Momentum:
    """Gradient descent with momentum, of trees."""

    def __init__(self, eta, mu):
        self.eta, self.mu, self.v = eta, mu, None

    def __call__(self, g):
        self.v = g if self.v is None else {n: self.mu * self.v[n] + g[n] for n in g}
        return {n: -self.eta * self.v[n] for n in g}


class Transparent:
    """Up by `climb(g, p)` at one call, down from the foot at the next."""

    def __init__(self, climb, descent):
        self.climb, self.descent = climb, descent

    def __call__(self, g, p, t):
        if t % 2:
            self.foot = p
            return self.climb(g, p)
        step = self.descent(g)
        return {n: self.foot[n] - p[n] + step[n] for n in g}


class AtOnce:
    """Up and down in one call; `mix(g, h)` is what the descent sees of the gradients at the foot and at the top."""

    def __init__(self, climb, descent, gradient, mix=lambda g, h: h):
        self.climb, self.descent, self.gradient, self.mix = climb, descent, gradient, mix

    def __call__(self, g, p, t):
        up = self.climb(g, p)
        return self.descent(self.mix(g, self.gradient({n: p[n] + up[n] for n in g})))


def asam(rho, eta, measured):
    """Kwon et al. 2021, equation 7; `measured(name)` says whether the leaf has the unit of its elements."""

    def climb(g, p):
        unit = {n: np.abs(p[n]) + eta if measured(n) else np.ones_like(p[n]) for n in g}
        norm = size({n: unit[n] * g[n] for n in g})
        return {n: rho * unit[n] ** 2 * g[n] / norm if norm else 0 * g[n] for n in g}

    return climb


def straight(rho):
    """Foret et al. 2020, equation 2."""
    return lambda g, p: {n: rho * g[n] / size(g) if size(g) else 0 * g[n] for n in g}


class Friendly:
    """Li et al. 2024, equation 13, around a climb."""

    def __init__(self, climb, sigma, decay):
        self.climb, self.sigma, self.decay, self.m = climb, sigma, decay, None

    def __call__(self, g, p):
        own = g if self.m is None else {n: g[n] - self.sigma * self.m[n] for n in g}
        self.m = g if self.m is None else {n: self.decay * self.m[n] + (1 - self.decay) * g[n] for n in g}
        return self.climb(own, p)


def gap(alpha):
    """Zhuang et al. 2022, equation 13."""

    def mix(g, h):
        cosine = dot(g, h) / (size(g) * size(h)) if size(g) and size(h) else 0.0
        unit = {n: h[n] / (size(h) or 1.0) for n in h}
        return {n: h[n] - alpha * (g[n] - cosine * size(g) * unit[n]) for n in h}

    return mix


class LookSAM:
    """Liu et al. 2022, Algorithm 1, leaf by leaf as in the code that is in use."""

    def __init__(self, climb, descent, gradient, alpha, k):
        self.climb, self.descent, self.gradient, self.alpha, self.k = climb, descent, gradient, alpha, k

    def __call__(self, g, p, t):
        if (t - 1) % self.k == 0:
            up = self.climb(g, p)
            h = self.gradient({n: p[n] + up[n] for n in g})
            self.v = {n: self.aside(g[n], h[n]) for n in g}
            return self.descent(h)
        norm = np.linalg.norm
        return self.descent(
            {n: g[n] + self.alpha * norm(g[n]) / (norm(self.v[n]) + 1e-8) * self.v[n] for n in g},
        )

    def aside(self, g, h):
        unit = g / (np.linalg.norm(g) or 1.0)
        return h - (h * unit).sum() * unit


class MomentumSAM:
    """Becker et al. 2024, Algorithm 1: ahead of where it is."""

    def __init__(self, rho, descent):
        self.rho, self.descent, self.z = rho, descent, None

    def __call__(self, g, p, t):
        self.z = p if self.z is None else self.z
        step = self.descent(g)
        self.z = {n: self.z[n] + step[n] for n in g}
        return {n: self.z[n] + (self.rho * step[n] / size(step) if size(step) else 0.0) - p[n] for n in g}
