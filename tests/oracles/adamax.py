"""Kingma and Ba 2015, Algorithm 2; Loshchilov and Hutter 2019 for the decay."""

import numpy as np


class AdaMax:
    """theta <- theta - alpha (m / (1 - beta1^t) / u + weight_decay theta)."""

    def __init__(self, alpha=-1.0, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        self.alpha, self.beta1, self.beta2, self.eps = alpha, beta1, beta2, eps
        self.weight_decay = weight_decay
        self.m = self.u = 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.u = np.maximum(self.beta2 * self.u, np.abs(g) + self.eps)
        return -self.alpha * (self.m / (1 - self.beta1**t) / self.u + self.weight_decay * p)
