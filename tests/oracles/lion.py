"""Chen et al. 2023, Algorithm 2, and the two softer signs of the field's common implementation."""

import numpy as np


class Lion:
    """c = beta1 m + (1 - beta1) g; theta <- theta - eta (sign(c) + lambda theta); m = beta2 m + (1 - beta2) g."""

    def __init__(self, eta=-1.0, beta1=0.9, beta2=0.99, weight_decay=0.0, mode="hard", smooth_beta=1.0):
        self.eta, self.beta1, self.beta2, self.weight_decay = eta, beta1, beta2, weight_decay
        self.mode, self.smooth_beta = mode, smooth_beta
        self.m = 0.0

    def __call__(self, g, p, t):
        c = self.beta1 * self.m + (1 - self.beta1) * g
        self.m = self.beta2 * self.m + (1 - self.beta2) * g
        if self.mode == "hard":
            step = np.sign(c)
        elif self.mode == "smooth":
            step = np.tanh(self.smooth_beta * c)
        else:
            step = np.where(np.abs(c) < 1, c, np.sign(c))
        return -self.eta * (step + self.weight_decay * p)
