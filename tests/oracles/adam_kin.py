"""Rules of Adam's family, from their papers."""

import numpy as np


class ACProp:
    """Zhuang et al. 2021: the divisor is the spread of the gradients before this one."""

    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-16, added=1e-16, rate=-1.0, weight_decay=0.0):
        self.beta1, self.beta2, self.eps, self.added = beta1, beta2, eps, added
        self.rate, self.weight_decay, self.m, self.s = rate, weight_decay, 0.0, 0.0

    def __call__(self, g, p, t):
        spread = self.s / (1 - self.beta2 ** (t - 1)) if t > 1 else 1.0
        self.s = self.beta2 * self.s + (1 - self.beta2) * (g - self.m) ** 2 + self.added
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        return -self.rate * (g / (np.sqrt(spread) + self.eps) + self.weight_decay * p)


class AdEMAMix:
    """Pagliardini et al. 2024, Algorithm 1, with its two warm-ups over T steps."""

    def __init__(self, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=6.0, eps=1e-8, T=0, rate=-1.0, weight_decay=0.0):
        self.betas, self.alpha, self.eps, self.T = (beta1, beta2, beta3), alpha, eps, T
        self.rate, self.weight_decay, self.m1, self.m2, self.v = rate, weight_decay, 0.0, 0.0, 0.0

    def warm(self, t):
        beta1, _, beta3 = self.betas
        if t >= self.T:
            return beta3, self.alpha
        half = [np.log(0.5) / np.log(beta + 1e-8) - 1 for beta in (beta1, beta3)]
        mixed = (1 - t / self.T) * half[0] + t / self.T * half[1]
        return 0.5 ** (1 / (mixed + 1)), self.alpha * t / self.T

    def __call__(self, g, p, t):
        beta1, beta2, _ = self.betas
        beta3, alpha = self.warm(t)
        self.m1 = beta1 * self.m1 + (1 - beta1) * g
        self.m2 = beta3 * self.m2 + (1 - beta3) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        step = (self.m1 / (1 - beta1**t) + alpha * self.m2) / (np.sqrt(self.v / (1 - beta2**t)) + self.eps)
        return -self.rate * (step + self.weight_decay * p)


class SimplifiedAdEMAMix:
    """Morwani et al. 2025: one heavy ball and a share of the newest gradient."""

    def __init__(self, beta1, beta2, alpha, eps=1e-8, rate=-1.0, weight_decay=0.0):
        self.beta1, self.beta2, self.alpha, self.eps = beta1, beta2, alpha, eps
        self.rate, self.weight_decay, self.m, self.v = rate, weight_decay, 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        step = (self.m + self.alpha * g) / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)
        return -self.rate * (step + self.weight_decay * p)


class Adopt:
    """Taniguchi et al. 2024, Algorithm 2."""

    def __init__(
        self,
        beta1=0.9,
        beta2=0.9999,
        eps=1e-6,
        clip=True,
        nesterov=False,
        rate=-1.0,
        l2=0.0,
        decoupled=0.0,
        power=0.25,
    ):
        self.beta1, self.beta2, self.eps, self.clip, self.nesterov = beta1, beta2, eps, clip, nesterov
        self.rate, self.l2, self.decoupled, self.m, self.v, self.power = rate, l2, decoupled, 0.0, None, power

    def __call__(self, g, p, t):
        g = g + self.l2 * p
        if self.v is None:
            self.v = g**2
            return 0 * g
        n = g / np.maximum(np.sqrt(self.v), self.eps)
        if self.clip:
            n = np.clip(n, -((t - 1) ** self.power), (t - 1) ** self.power)
        self.m = self.beta1 * self.m + (1 - self.beta1) * n
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        step = self.beta1 * self.m + (1 - self.beta1) * n if self.nesterov else self.m
        return -self.rate * (step + self.decoupled * p)


class Madgrad:
    """Defazio and Jelassi 2021, Algorithm 1, with eps beside the rate as in their code."""

    def __init__(self, rate, momentum=0.9, weight_decay=0.0, eps=1e-6):
        self.rate, self.momentum, self.weight_decay, self.eps = rate, momentum, weight_decay, eps
        self.s, self.v, self.x0 = 0.0, 0.0, None

    def __call__(self, g, p, t):
        self.x0 = p if self.x0 is None else self.x0
        g = g + self.weight_decay * p
        lam = (self.rate + self.eps) * np.sqrt(t)
        self.s, self.v = self.s + lam * g, self.v + lam * g**2
        z = self.x0 - self.s / (np.cbrt(self.v) + self.eps)
        return self.momentum * p + (1 - self.momentum) * z - p


class LaProp:
    """Ziyin et al. 2020, Algorithm 1."""

    def __init__(self, rate=-1.0, beta1=0.9, beta2=0.999, eps=1e-15, decay=0.0):
        self.rate, self.beta1, self.beta2, self.eps, self.decay = rate, beta1, beta2, eps, decay
        self.m, self.v = 0.0, 0.0

    def __call__(self, g, p, t):
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.m = self.beta1 * self.m + (1 - self.beta1) * g / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)
        return -self.rate * (self.m / (1 - self.beta1**t) + self.decay * p)


class Moments:
    """Adam's two debiased moments, and what a rule makes of them and the gradient."""

    def __init__(self, step, beta1, beta2, rate=-1.0, decay=0.0):
        self.step, self.beta1, self.beta2, self.rate, self.decay, self.m, self.v = step, beta1, beta2, rate, decay, 0, 0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        step = self.step(g, p, self.m / (1 - self.beta1**t), self.v / (1 - self.beta2**t))
        return -self.rate * (step + self.decay * p)


def atan2(a, b):
    """Everett et al. 2024."""
    return lambda g, p, m, v: a * np.arctan2(m, b * np.sqrt(v))


def grams(g, p, m, v):
    """Cao et al. 2024."""
    return np.sign(g) * np.abs(m / (np.sqrt(v) + 1e-8))


def stable(decay, eps=1e-6):
    """Wortsman et al. 2023, Algorithm 2, with its decay inside."""

    def step(g, p, m, v):
        rms = np.sqrt(np.mean((g / np.maximum(np.sqrt(v), eps)) ** 2))
        return (m / (np.sqrt(v) + eps) + decay * p) / max(1.0, rms)

    return step


def quasi(nu1, nu2, eps=1e-8):
    """Ma and Yarats 2018, section 5."""
    return lambda g, p, m, v: ((1 - nu1) * g + nu1 * m) / (np.sqrt((1 - nu2) * g**2 + nu2 * v) + eps)


class Qhm:
    """Ma and Yarats 2018, section 3."""

    def __init__(self, beta, nu, rate=-1.0, decay=0.0):
        self.beta, self.nu, self.rate, self.decay, self.m = beta, nu, rate, decay, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta * self.m + (1 - self.beta) * g
        return -self.rate * ((1 - self.nu) * g + self.nu * self.m + self.decay * p)


class AggMo:
    """Lucas et al. 2018."""

    def __init__(self, betas, rate=-1.0, decay=0.0):
        self.betas, self.rate, self.decay, self.v = betas, rate, decay, [0.0 for _ in betas]

    def __call__(self, g, p, t):
        self.v = [beta * v + g for beta, v in zip(self.betas, self.v, strict=True)]
        return -self.rate * (sum(self.v) / len(self.v) + self.decay * p)
