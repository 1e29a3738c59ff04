"""Rules of whole matrices, from their papers."""

import numpy as np


class NorMuon:
    """Li et al. 2025, Algorithm 1, with the polynomial in the precision of the matrices."""

    def __init__(self, beta1, beta2, rate, weight_decay, nesterov, eps=1e-7):
        self.beta1, self.beta2, self.rate, self.weight_decay = beta1, beta2, rate, weight_decay
        self.nesterov, self.eps, self.m, self.v = nesterov, eps, 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        x = self.beta1 * self.m + (1 - self.beta1) * g if self.nesterov else self.m
        x = x / max(np.sqrt((x**2).sum()), self.eps)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
        self.v = self.beta2 * self.v + (1 - self.beta2) * (x**2).mean(1)
        hat = x / (np.sqrt(self.v)[:, None] + 1e-10)
        hat = hat * np.sqrt((x**2).sum()) / (np.sqrt((hat**2).sum()) + 1e-10)
        rows, columns = g.shape
        return -self.rate * (max(1, rows / columns) ** 0.5 * hat + self.weight_decay * p)


def newton_schulz(x, steps):
    for a, b, c in steps:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


class AdaMuon:
    """Si et al. 2025, Algorithm 1, with a sum for a momentum, as the authors have it."""

    def __init__(self, beta, rate, weight_decay, nesterov=True, eps=1e-8):
        self.beta, self.rate, self.weight_decay, self.nesterov, self.eps = beta, rate, weight_decay, nesterov, eps
        self.m, self.v = 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta * self.m + g
        x = np.sign(g + self.beta * self.m if self.nesterov else self.m)
        o = newton_schulz(x / max(np.sqrt((x**2).sum()), 1e-7), [(3.4445, -4.775, 2.0315)] * 5)
        self.v = self.beta * self.v + (1 - self.beta) * o**2
        o = o / (np.sqrt(self.v) + self.eps)
        u = 0.2 * np.sqrt(o.size) * o / (np.sqrt((o**2).sum()) + self.eps)
        return -self.rate * (u + self.weight_decay * p)


class Dion:
    """Ahn et al. 2025 (2504.05295), Algorithm 1, with numbers that begin as the library draws them."""

    def __init__(self, q, mu, rate, weight_decay, eps=1e-8):
        self.q, self.mu, self.rate, self.weight_decay, self.eps, self.m = q, mu, rate, weight_decay, eps, 0.0

    def __call__(self, g, p, t):
        self.m = self.m + g
        if not self.m.any():
            self.q = self.q / (np.sqrt((self.q**2).sum(0)) + self.eps)
            return -self.rate * self.weight_decay * p
        left, _ = np.linalg.qr(self.m @ self.q)
        r = self.m.T @ left
        self.m = self.m - (1 - self.mu) * left @ r.T
        self.q = r / (np.sqrt((r**2).sum(0)) + self.eps)
        return -self.rate * (np.sqrt(g.shape[0] / g.shape[1]) * left @ self.q.T + self.weight_decay * p)


class Dion2:
    """Ahn et al. 2025: the rows of the shorter side with the largest sums of magnitudes."""

    def __init__(self, fraction, decay, rate, weight_decay, steps, eps=1e-8):
        self.fraction, self.decay, self.rate, self.weight_decay = fraction, decay, rate, weight_decay
        self.steps, self.eps, self.m = steps, eps, 0.0

    def __call__(self, g, p, t):
        self.m = self.m + g
        rows, columns = g.shape
        m = self.m.T.copy() if rows > columns else self.m.copy()
        best = np.argsort(-np.abs(m).sum(1))[: int(np.ceil(self.fraction * len(m)))]
        x = m[best] / (1.02 * np.sqrt((m[best] ** 2).sum()) + self.eps)
        u = np.zeros_like(m)
        u[best] = newton_schulz(x, self.steps)
        m[best] *= self.decay
        self.m, u = (m.T, u.T) if rows > columns else (m, u)
        return -self.rate * (np.sqrt(rows / columns) * u + self.weight_decay * p)


class Scion:
    """Pethick et al. 2025, in the norms of the authors' code."""

    def __init__(self, rate, momentum, scale, norm="auto"):
        self.rate, self.momentum, self.scale, self.norm, self.m = rate, momentum, scale, norm, 0.0

    def __call__(self, g, p, t):
        self.m = (1 - self.momentum) * self.m + self.momentum * g
        m = self.m
        if self.norm == "col":
            u = m / (np.sqrt((m**2).mean(0)) + 1e-8)
        elif self.norm == "row":
            u = m / (np.sqrt((m**2).sum(1, keepdims=True)) * np.sqrt(m.shape[1]) + 1e-8)
        elif self.norm == "sign":
            u = np.sign(m) / m.shape[1]
        elif m.ndim < 2:
            u = m / (np.sqrt((m**2).mean()) + 1e-8)
        else:
            x = m.reshape(len(m), -1)
            x = newton_schulz(x / max(np.sqrt((x**2).sum()), 1e-7), [(3.4445, -4.775, 2.0315)] * 5)
            u = np.sqrt(m.shape[0] / m.shape[1]) / np.prod(m.shape[2:]) * x.reshape(m.shape)
        return -self.rate * (self.scale * u + p)
