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
