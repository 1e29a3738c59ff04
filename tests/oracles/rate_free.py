"""Rules that find their own rate, from their papers; each sees all leaves at once."""

import numpy as np
import torch


def run(rule):
    """An oracle from a class whose instances are called with all gradients, all parameters and the step."""

    def oracle(params, gradients):
        values, instance = {name: p.numpy().copy() for name, p in params.items()}, rule()
        for t, grads in enumerate(gradients, start=1):
            step = instance({name: g.numpy() for name, g in grads.items()}, values, t)
            values = {name: value + step[name] for name, value in values.items()}
            yield {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    return oracle


def dot(x, y):
    """Inner product of two trees."""
    return sum((x[name] * y[name]).sum() for name in x)


def total(x):
    """1-norm of a tree."""
    return sum(np.abs(x[name]).sum() for name in x)


class Rule:
    """What all have: trees of zeros, and where they started."""

    def __call__(self, g, p, t):
        if t == 1:
            self.start = p
            for name in self.moments:
                setattr(self, name, {leaf: np.zeros_like(x) for leaf, x in p.items()})
        return self.step(g, p, t)


class DoG(Rule):
    """Ivgi et al. 2023."""

    moments = ()

    def __init__(self, kind, value, eps=1e-8, rate=-1.0, weight_decay=0.0):
        self.kind, self.value, self.eps, self.rate, self.weight_decay = kind, value, eps, rate, weight_decay
        self.G, self.r = 0.0, None

    def step(self, g, p, t):
        g = {n: g[n] + self.weight_decay * p[n] for n in g}
        if t == 1:
            relative = self.value * (1 + np.sqrt(dot(p, p)))
            self.r = {"distance": self.value, "heuristic": relative, "learning_rate": 0.0}[self.kind]
        away = {n: p[n] - self.start[n] for n in p}
        self.r = max(self.r, np.sqrt(dot(away, away)))
        self.G += dot(g, g)
        eta = self.value if self.kind == "learning_rate" and t == 1 else self.r / np.sqrt(self.G + self.eps)
        return {n: -self.rate * eta * g[n] for n in g}


class DoWG(Rule):
    """Khaled, Mishchenko and Jin 2023."""

    moments = ()

    def __init__(self, r2, eps=1e-4, rate=-1.0, weight_decay=0.0):
        self.r2, self.eps, self.rate, self.weight_decay, self.v = r2, eps, rate, weight_decay, 0.0

    def step(self, g, p, t):
        g = {n: g[n] + self.weight_decay * p[n] for n in g}
        away = {n: p[n] - self.start[n] for n in p}
        self.r2 = max(self.r2, dot(away, away))
        self.v += self.r2 * dot(g, g)
        return {n: -self.rate * self.r2 / (np.sqrt(self.v) + self.eps) * g[n] for n in g}


class Cocob:
    """Orabona and Tommasi 2017, Algorithm 2, one element at a time."""

    def __init__(self, alpha=100.0, eps=1e-8, rate=1.0, weight_decay=0.0):
        self.alpha, self.L, self.rate, self.weight_decay = alpha, eps, rate, weight_decay
        self.G, self.R, self.theta, self.w1 = 0.0, 0.0, 0.0, None

    def __call__(self, g, p, t):
        self.w1 = p if self.w1 is None else self.w1
        c = -self.rate * (g + self.weight_decay * p)
        self.L = np.maximum(self.L, np.abs(c))
        self.G = self.G + np.abs(c)
        self.R = np.maximum(self.R + (p - self.w1) * c, 0)
        self.theta = self.theta + c
        bet = self.theta / (self.L * np.maximum(self.G + self.L, self.alpha * self.L))
        return self.w1 + bet * (self.L + self.R) - p


class Momo(Rule):
    """Schaipp et al. 2023: Algorithm 1, or with beta2 Algorithm 2."""

    moments = ("d", "v")

    def __init__(self, value, alpha, beta, bound=0.0, decay=0.0, adapt=False, beta2=None, eps=1e-8):
        self.value, self.alpha, self.beta, self.bound, self.decay = value, alpha, beta, bound, decay
        self.adapt, self.beta2, self.eps, self.lb, self.f, self.gamma = adapt, beta2, eps, bound, 0.0, 0.0

    def step(self, g, p, t):
        adam = self.beta2 is not None
        beta = self.beta if adam or t > 1 else 0.0
        self.f = beta * self.f + (1 - beta) * self.value
        self.gamma = beta * self.gamma + (1 - beta) * dot(g, p)
        self.d = {n: beta * self.d[n] + (1 - beta) * g[n] for n in g}
        rho, D = 1.0, dict.fromkeys(g, 1.0)
        if adam:
            self.v = {n: self.beta2 * self.v[n] + (1 - self.beta2) * g[n] ** 2 for n in g}
            D = {n: self.eps + np.sqrt(self.v[n] / (1 - self.beta2**t)) for n in g}
            rho = 1 - self.beta**t
        size = dot(self.d, {n: self.d[n] / D[n] for n in g})
        grown, inner = 1 + self.alpha * self.decay, dot(self.d, p)
        cap = grown * (self.f - self.gamma) + inner
        if self.adapt and cap < grown * rho * self.lb:
            self.lb = max(cap / (2 * rho * grown), self.bound)
        gap = max(cap - grown * rho * self.lb, 0)
        tau = min(self.alpha / rho, gap / size if size > 2.3e-16 else 0.0)
        if self.adapt:
            self.lb = max((self.f + inner - self.gamma - tau * size / 2) / rho, self.bound)
        return {n: -self.alpha * self.decay / grown * p[n] - tau * self.d[n] / D[n] for n in g}


class Prodigy(Rule):
    """Mishchenko and Defazio 2023, Algorithm 4, with the options of the authors' code."""

    moments = ("m", "v", "s")

    def __init__(
        self, gamma=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, d0=1e-6, coef=1.0, decay=0.0, safeguard=False,
        correct=True, growth=np.inf, every=1,
    ):  # fmt: skip
        self.gamma, self.betas, self.eps, self.d0, self.coef, self.decay = gamma, betas, eps, d0, coef, decay
        self.beta3, self.safeguard, self.correct = beta3 or betas[1] ** 0.5, safeguard, correct
        self.growth, self.every, self.d, self.d_max, self.r = growth, every, d0, d0, 0.0

    def step(self, g, p, t):
        beta1, beta2 = self.betas
        dlr = self.d * self.gamma * (np.sqrt(1 - beta2**t) / (1 - beta1**t) if self.correct else 1.0)
        some = {n: slice(None, None, self.every) for n in g}
        flat = {n: (g[n].ravel()[some[n]], (self.start[n] - p[n]).ravel()[some[n]]) for n in g}
        gain = sum((x * y).sum() for x, y in flat.values())
        self.r = self.beta3 * self.r + self.d / self.d0 * dlr * gain
        self.m = {n: beta1 * self.m[n] + (1 - beta1) * self.d * g[n] for n in g}
        self.v = {n: beta2 * self.v[n] + (1 - beta2) * (self.d * g[n]) ** 2 for n in g}
        weight = self.d / self.d0 * (self.d if self.safeguard else dlr)
        self.s = {n: self.beta3 * self.s[n] + weight * g[n] for n in g}
        size = sum(np.abs(self.s[n].ravel()[some[n]]).sum() for n in g)
        d = self.d
        if size:
            hat = self.coef * self.r / size
            d = max(d, hat) if d == self.d0 else d
            self.d_max = max(self.d_max, hat)
            d = min(self.d_max, d * self.growth)
        step = {n: -self.decay * dlr * p[n] - dlr * self.m[n] / (np.sqrt(self.v[n]) + d * self.eps) for n in g}
        self.d = d
        return step


class DAdaptAdam(Rule):
    """Defazio and Mishchenko 2023, Algorithm 5."""

    moments = ("m", "v", "s")

    def __init__(self, gamma=1.0, betas=(0.9, 0.999), eps=1e-8, d0=1e-6, decay=0.0):
        self.gamma, self.betas, self.eps, self.d, self.decay, self.r = gamma, betas, eps, d0, decay, 0.0

    def step(self, g, p, t):
        beta1, beta2 = self.betas
        q = np.sqrt(beta2)
        lam = self.d * self.gamma * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        gain = dot(g, {n: self.s[n] / (np.sqrt(self.v[n]) + self.eps) for n in g})
        self.r = q * self.r + (1 - q) * lam * gain
        self.m = {n: beta1 * self.m[n] + (1 - beta1) * lam * g[n] for n in g}
        self.v = {n: beta2 * self.v[n] + (1 - beta2) * g[n] ** 2 for n in g}
        self.s = {n: q * self.s[n] + (1 - q) * lam * g[n] for n in g}
        if total(self.s):
            self.d = max(self.d, self.r / ((1 - q) * total(self.s)))
        return {n: -self.decay * lam * p[n] - self.m[n] / (np.sqrt(self.v[n]) + self.eps) for n in g}


class Mechanic(Rule):
    """Cutkosky, Defazio and Mehta 2023, Algorithm 1, around gradient descent with momentum."""

    moments = ("trace",)

    def __init__(self, momentum, decay=1e-2, eps=1e-8, s_init=1e-6, n=6):
        self.momentum, self.decay, self.eps, self.s_init, self.n = momentum, decay, eps, s_init, n
        self.r, self.m, self.v, self.s = np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, s_init)
        self.beta = 1 - 0.1 ** np.arange(1, n + 1)

    def step(self, g, p, t):
        self.trace = {n: self.momentum * self.trace[n] + g[n] for n in g}
        S = self.s.sum()
        delta = {n: (self.start[n] - p[n]) / (S + self.eps) for n in p}
        pull = self.decay * S * np.sqrt(dot(g, g)) / (np.sqrt(dot(p, p)) + self.eps)
        h = dot({n: g[n] + pull * p[n] for n in g}, delta)
        self.r = self.beta * self.r + np.clip(h, -self.m, self.m) * self.s
        self.m = np.maximum(self.beta * self.m, np.abs(h) + self.eps)
        self.v = self.beta**2 * self.v + h**2
        self.s = (self.s_init / self.n * self.m + np.maximum(self.r, 0)) / (np.sqrt(self.v) + self.eps)
        return {n: self.start[n] - self.s.sum() * (delta[n] + self.trace[n]) - p[n] for n in g}


class DAdaptSGD(Rule):
    """Defazio and Mishchenko 2023, Algorithm 4, with the momentum and the decay of their code."""

    moments = ("s",)

    def __init__(self, gamma=1.0, momentum=0.0, d0=1e-6, decay=0.0, growth=np.inf):
        self.gamma, self.momentum, self.d, self.decay, self.growth = gamma, momentum, d0, decay, growth
        self.gain, self.first = 0.0, 0.0

    def step(self, g, p, t):
        self.first = self.first or np.sqrt(dot(g, g))
        lam = self.d * self.gamma / self.first if self.first else 0.0
        g = {n: g[n] + self.decay * p[n] for n in g}
        self.gain += lam * dot(g, self.s)
        self.s = {n: self.s[n] + lam * g[n] for n in g}
        size = np.sqrt(dot(self.s, self.s))
        if size:
            self.d = max(self.d, min(2 * self.gain / size, self.d * self.growth))
        z = {n: self.start[n] - self.s[n] for n in g}
        return {n: self.momentum * p[n] + (1 - self.momentum) * z[n] - p[n] for n in g}


class DAdaptAdaGrad(Rule):
    """Defazio and Mishchenko 2023, Algorithm 3, with the sums of their code."""

    moments = ("s", "a")

    def __init__(self, gamma=1.0, momentum=0.0, eps=1e-6, d0=1e-6, decay=0.0, growth=np.inf):
        self.gamma, self.momentum, self.eps, self.d, self.decay, self.growth = gamma, momentum, eps, d0, decay, growth
        self.alone = 0.0

    def step(self, g, p, t):
        lam = self.d * self.gamma
        g = {n: g[n] + self.decay * p[n] for n in g}
        self.a = {n: (self.a[n] if t > 1 else 1e-6) + g[n] ** 2 for n in g}
        w = {n: np.sqrt(self.a[n]) + self.eps for n in g}
        self.s = {n: self.s[n] + lam * g[n] for n in g}
        self.alone += lam**2 * sum((g[n] ** 2 / w[n]).sum() for n in g)
        if total(self.s):
            hat = (sum((self.s[n] ** 2 / w[n]).sum() for n in g) - self.alone) / total(self.s)
            self.d = max(self.d, min(hat, self.d * self.growth))
        z = {n: self.start[n] - self.s[n] / w[n] for n in g}
        return {n: self.momentum * p[n] + (1 - self.momentum) * z[n] - p[n] for n in g}


class DAdaptLion(Rule):
    """Defazio and Mishchenko 2023, in their code."""

    moments = ("m", "s")

    def __init__(self, gamma=1.0, betas=(0.9, 0.99), d0=1e-6, decay=0.0):
        self.gamma, self.betas, self.d, self.decay, self.gain = gamma, betas, d0, decay, 0.0

    def step(self, g, p, t):
        beta1, beta2 = self.betas
        lam, q = self.d * self.gamma, np.sqrt(beta2)
        u = {n: np.sign(beta1 * self.m[n] + (1 - beta1) * g[n]) for n in g}
        self.m = {n: beta2 * self.m[n] + (1 - beta2) * lam * g[n] for n in g}
        self.gain = q * self.gain + (1 - q) * lam * dot(u, self.s)
        self.s = {n: q * self.s[n] + (1 - q) * lam * u[n] for n in g}
        if total(self.s):
            self.d = max(self.d, self.gain / ((1 - q) * total(self.s)))
        return {n: -self.decay * lam * p[n] - lam * u[n] for n in g}
