"""Kingma and Ba 2015, Algorithm 1; Dozat 2016 for the look-ahead mean; Loshchilov and Hutter 2019 for the decay."""

import numpy as np


class Adam:
    """theta <- theta - alpha (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay theta)."""

    def __init__(self, alpha=-1.0, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0, weight_decay=0.0, nesterov=False):
        self.alpha, self.beta1, self.beta2, self.eps, self.eps_root = alpha, beta1, beta2, eps, eps_root
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.m = self.v = 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * abs(g) ** 2
        m_hat = self.m / (1 - self.beta1**t)
        if self.nesterov:
            m_hat = self.beta1 * self.m / (1 - self.beta1 ** (t + 1)) + (1 - self.beta1) * g / (1 - self.beta1**t)
        v_hat = self.v / (1 - self.beta2**t)
        step = m_hat / (np.sqrt(v_hat + self.eps_root) + self.eps)
        return -self.alpha * (step + self.weight_decay * p)


class UncorrectedEps:
    """torch.optim.SparseAdam on rows that are all there: eps joins the root before the bias is corrected."""

    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-8):
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m = self.v = 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        return np.sqrt(1 - self.beta2**t) / (1 - self.beta1**t) * self.m / (np.sqrt(self.v) + self.eps)
