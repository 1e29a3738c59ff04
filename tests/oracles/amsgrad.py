"""Reddi, Kale and Kumar 2018, Algorithm 2, with and without Adam's corrections of the bias."""

import numpy as np


class AmsGrad:
    """v_hat = max(v_hat, v); x <- x - alpha m / sqrt(v_hat)."""

    def __init__(
        self, alpha=-1.0, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0, debias_m=True, debias_v=True, raw=False
    ):
        self.alpha, self.beta1, self.beta2, self.eps, self.eps_root = alpha, beta1, beta2, eps, eps_root
        self.debias_m, self.debias_v, self.raw = debias_m, debias_v, raw
        self.m = self.v = self.v_hat = 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * abs(g) ** 2
        correction_m = 1 - self.beta1**t if self.debias_m else 1.0
        correction_v = 1 - self.beta2**t if self.debias_v else 1.0
        if self.raw:
            self.v_hat = np.maximum(self.v_hat, self.v)
            v = self.v_hat / correction_v
        else:
            self.v_hat = np.maximum(self.v_hat, self.v / correction_v)
            v = self.v_hat
        return -self.alpha * (self.m / correction_m) / (np.sqrt(v + self.eps_root) + self.eps)
