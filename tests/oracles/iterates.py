"""Rules that keep an iterate beside the parameters, from their papers."""

import numpy as np


class ScheduleFree:
    """Defazio et al. 2024, Algorithm 1: y is trained, z moves, x is the average."""

    def __init__(self, rule, gamma, beta=0.9, power=2.0, r=0.0, at_z=False):
        self.rule, self.gamma, self.beta, self.power, self.r, self.at_z = rule, gamma, beta, power, r, at_z
        self.z, self.x, self.W, self.most = None, None, 0.0, 0.0

    def __call__(self, g, y, t):
        if self.z is None:
            self.z = self.x = y
        self.most = max(self.most, self.gamma(t - 1) if callable(self.gamma) else self.gamma)
        w = t**self.r * self.most**self.power
        self.W += w
        c = w / self.W if self.W else 0.0
        self.z = self.z + self.rule(g, self.z if self.at_z else y, t)
        self.x = (1 - c) * self.x + c * self.z
        return self.beta * self.x + (1 - self.beta) * self.z - y


class Rms:
    """AdamW without its first moment."""

    def __init__(self, rate, beta2=0.999, eps=1e-8, decay=0.0):
        self.rate, self.beta2, self.eps, self.decay, self.v = rate, beta2, eps, decay, 0.0

    def __call__(self, g, p, t):
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        rate = self.rate(t - 1) if callable(self.rate) else self.rate
        return -rate * (g / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps) + self.decay * p)


class Sam:
    """Foret et al. 2020, a call for each step: up by `rho` times the unit gradient of all leaves, or down."""

    def __init__(self, rho, eta, momentum, period=2):
        self.rho, self.eta, self.momentum, self.period = rho, eta, momentum, period
        self.trace = None

    def __call__(self, g, p, t):
        at = (t - 1) % self.period
        self.foot = p if at == 0 else self.foot
        if at < self.period - 1:
            size = np.sqrt(sum((x**2).sum() for x in g.values()))
            return {n: self.rho * g[n] / size if size else g[n] for n in g}
        self.trace = g if self.trace is None else {n: self.momentum * self.trace[n] + g[n] for n in g}
        return {n: self.foot[n] - p[n] - self.eta * self.trace[n] for n in g}


class PrimalAveraging:
    """Defazio et al. 2025: y is trained, z moves, x is its running mean."""

    def __init__(self, rule, mu_y, mu_x, at_z=False):
        self.rule, self.mu_y, self.mu_x, self.at_z, self.z, self.x = rule, mu_y, mu_x, at_z, None, None

    def __call__(self, g, y, t):
        if self.z is None:
            self.z = self.x = y
        self.z = self.z + self.rule(g, self.z if self.at_z else y, t)
        self.x = self.mu_x * self.x + (1 - self.mu_x) * self.z
        return self.mu_y * self.x + (1 - self.mu_y) * self.z - y


class Rectified:
    """The iterate of schedule-free RAdam, and its rates."""

    def __init__(self, rate, beta2, eps=1e-8, decay=0.0, silent=True):
        self.gamma, self.beta2, self.eps, self.decay, self.silent, self.v = rate, beta2, eps, decay, silent, 0.0

    def r(self, t):
        most = 2 / (1 - self.beta2) - 1
        rho = most - 2 * t * self.beta2**t / (1 - self.beta2**t)
        if rho <= 4:
            return None
        return np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))

    def rate(self, count):
        r = self.r(count + 1)
        return self.gamma * (float(not self.silent) if r is None else r)

    def __call__(self, g, p, t):
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        d = g if self.r(t) is None else g / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)
        return -self.rate(t - 1) * (d + self.decay * p)
