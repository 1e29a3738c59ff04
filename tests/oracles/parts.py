"""Parts that go with any rule, from their papers; leaf by leaf, or all gradients at once."""

import numpy as np


def norm(x):
    """2-norm of a leaf."""
    return np.sqrt((x**2).sum())


class Cautious:
    """Liang et al. 2024: what goes uphill stays; then decay and rate."""

    def __init__(self, rule, floor=1e-3, scaling="mean", rate=-1.0, decay=0.0, careful=False):
        self.rule, self.floor, self.scaling, self.rate = rule, floor, scaling, rate
        self.decay, self.careful = decay, careful

    def __call__(self, g, p, t):
        u = self.rule(g, p, t)
        if self.scaling:
            keep = (u * g > 0).astype(float)
            u = (
                u
                * keep
                * (keep.size / (keep.sum() + 1) if self.scaling == "count" else 1 / max(keep.mean(), self.floor))
            )
        decayed = p * (u * p >= 0) if self.careful else p
        return -self.rate * (u + self.decay * decayed)


class Mars:
    """Yuan et al. 2024, the approximate form, in front of a rule."""

    def __init__(self, rule, gamma=0.025, beta1=0.95, bound=1.0):
        self.rule, self.gamma, self.beta1, self.bound, self.last = rule, gamma, beta1, bound, 0.0

    def __call__(self, g, p, t):
        c = g + self.gamma * self.beta1 / (1 - self.beta1) * (g - self.last)
        self.last = g
        return self.rule(c / norm(c) * self.bound if self.bound and norm(c) > self.bound else c, p, t)


class Grokfast:
    """Lee et al. 2024, Algorithm 2."""

    def __init__(self, alpha, lamb):
        self.alpha, self.lamb, self.h = alpha, lamb, None

    def __call__(self, g, p, t):
        self.h = g if self.h is None else self.alpha * self.h + (1 - self.alpha) * g
        return g + self.lamb * self.h


def orthograd(g, p, t):
    """Prieto et al. 2025."""
    if g.size <= 1:
        return g
    o = g - (p * g).sum() / ((p * p).sum() + 1e-30) * p
    return o * norm(g) / (norm(o) + 1e-30)


class NormGrowth:
    """The limiter of Fira and APOLLO."""

    def __init__(self, growth, eps):
        self.growth, self.eps, self.last = growth, eps, None

    def __call__(self, g, p, t):
        if self.last is not None:
            g = g / max(norm(g) / (self.last + self.eps) / self.growth, 1.0)
        self.last = norm(g)
        return g


class ZClip:
    """Kumar et al. 2025, with the names of the authors' code; takes all gradients."""

    def __init__(self, alpha, z, most, warm, mode="zscore", option="adaptive_scaling", factor=1.0, skip=False):
        self.alpha, self.z, self.most, self.warm, self.mode = alpha, z, most, warm, mode
        self.option, self.factor, self.skip, self.buffer, self.mean = option, factor, skip, [], None

    def limit(self, n):
        sd = np.sqrt(self.var)
        if self.mode == "percentile":
            return self.mean + self.z * sd if n > self.mean + self.z * sd else None
        z = (n - self.mean) / (sd + 1e-6)
        if z <= self.z:
            return None
        return self.mean if self.option == "mean" else self.factor * (self.mean + self.z * sd / (z / self.z))

    def __call__(self, g, p, t):
        n = np.sqrt(sum((x**2).sum() for x in g.values()))
        limit = None if self.mean is None else self.limit(n)
        seen = n if limit is None else limit
        if self.mean is None:
            self.buffer.append(n)
            if len(self.buffer) == self.warm:
                self.mean, self.var = np.mean(self.buffer), np.var(self.buffer)
        elif not (self.skip and limit is not None):
            self.mean = self.alpha * self.mean + (1 - self.alpha) * seen
            self.var = self.alpha * self.var + (1 - self.alpha) * (seen - self.mean) ** 2
        bound = min(seen, self.most)
        return {name: x * (min(1.0, bound / n) if n else 1.0) for name, x in g.items()}


class AutoClip:
    """Seetharaman et al. 2020, over a window."""

    def __init__(self, percentile, window):
        self.percentile, self.window, self.norms = percentile, window, []

    def __call__(self, g, p, t):
        n = np.sqrt(sum((x**2).sum() for x in g.values()))
        self.norms = [*self.norms, n][-self.window :]
        level = np.percentile(self.norms, self.percentile)
        return {name: x * (min(1.0, level / n) if n else 1.0) for name, x in g.items()}


class Hyperball:
    """Every matrix on its sphere."""

    def __init__(self, rule, rate, decay, keep=True):
        self.rule, self.rate, self.decay, self.keep, self.R = rule, rate, decay, keep, None

    def __call__(self, g, p, t):
        d = self.rule(g, p, t) + self.decay * p
        if p.ndim < 2:
            return -self.rate * d
        self.R = norm(p) if self.R is None or not self.keep else self.R
        q = p - self.rate * self.R * d / max(norm(d), 1e-12)
        return q * self.R / max(norm(q), 1e-12) - p


class Graft:
    """Agarwal et al. 2020."""

    def __init__(self, norm_of, direction_of):
        self.norm_of, self.direction_of = norm_of, direction_of

    def __call__(self, g, p, t):
        n, d = self.norm_of(g, p, t), self.direction_of(g, p, t)
        return d * norm(n) / norm(d) if norm(d) else d
