"""Duchi, Hazan and Singer 2011, Algorithm 1 with diagonal matrices."""

import numpy as np


class AdaGrad:
    """G = G + g^2; x <- x - eta g / sqrt(G + delta), and no step where G is 0."""

    def __init__(self, eta=-1.0, start=0.1, delta=1e-7):
        self.eta, self.delta, self.G = eta, delta, start

    def __call__(self, g, p, t):
        self.G = self.G + abs(g) ** 2
        step = g / np.where(self.G > 0, np.sqrt(self.G + self.delta), 1.0)
        return -self.eta * np.where(self.G > 0, step, 0.0)


class RowwiseAdaGrad:
    """s_i = s_i + mean over j of g_ij^2; x_ij <- x_ij - eta g_ij / (sqrt(s_i) + eps)."""

    def __init__(self, eta=-1.0, start=0.0, eps=1e-8):
        self.eta, self.eps, self.s = eta, eps, start

    def __call__(self, g, p, t):
        rows = abs(g.reshape(len(g) if g.ndim else 1, -1)) ** 2 if g.size else abs(g) ** 2
        means = rows.mean(1).reshape([*g.shape[:1], *[1] * (g.ndim - 1)]) if g.size else rows
        self.s = self.s + means
        divisor = np.sqrt(self.s) + self.eps
        return -self.eta * g / np.where(divisor > 0, divisor, 1.0)
