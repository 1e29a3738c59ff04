"""Shazeer and Stern 2018, Algorithms 1 and 4, with the regularisation that torch.optim.Adafactor documents."""

import numpy as np


class RowCol:
    """R and C are means of the squares along the last two axes; V = R C / mean(R); U = G / sqrt(V)."""

    def __init__(self, decay=-0.8, eps=2.0**-52):
        self.decay, self.eps = decay, eps
        self.row = self.col = self.v = 0.0

    def __call__(self, g, p, t):
        beta = 1 - t**self.decay
        if g.ndim < 2:
            self.v = v = beta * self.v + (1 - beta) * g**2
        else:
            self.row = beta * self.row + (1 - beta) * (g**2).mean(axis=-1)
            self.col = beta * self.col + (1 - beta) * (g**2).mean(axis=-2)
            mean = np.maximum(self.row.mean(axis=-1), self.eps)
            v = np.einsum("...i,...j->...ij", self.row, self.col) / mean[..., None, None]
        return g / np.sqrt(np.maximum(v, self.eps**2))
