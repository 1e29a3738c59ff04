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
