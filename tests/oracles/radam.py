"""Liu et al. 2020, Algorithm 2; Dozat 2016 for the look-ahead mean."""

import numpy as np


class RAdam:
    """theta <- theta - alpha r m_hat / (sqrt(v_hat + eps_root) + eps), or alpha m_hat while rho is small."""

    def __init__(self, alpha=-1.0, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, nesterov=False):
        self.alpha, self.beta1, self.beta2, self.eps, self.eps_root = alpha, beta1, beta2, eps, eps_root
        self.threshold, self.nesterov = threshold, nesterov
        self.m = self.v = 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * abs(g) ** 2
        m_hat = self.m / (1 - self.beta1**t)
        if self.nesterov:
            m_hat = self.beta1 * self.m / (1 - self.beta1 ** (t + 1)) + (1 - self.beta1) * g / (1 - self.beta1**t)
        rho_inf = 2 / (1 - self.beta2) - 1
        rho = rho_inf - 2 * t * self.beta2**t / (1 - self.beta2**t)
        if rho < self.threshold:
            return -self.alpha * m_hat
        r = np.sqrt(((rho - 4) * (rho - 2) * rho_inf) / ((rho_inf - 4) * (rho_inf - 2) * rho))
        v_hat = self.v / (1 - self.beta2**t)
        return -self.alpha * r * m_hat / (np.sqrt(v_hat + self.eps_root) + self.eps)
