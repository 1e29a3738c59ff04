"""Later rules of Adam's family, from their papers and their authors' code."""

import numpy as np


def cosine(x, y, eps):
    """Of each row."""
    sizes = (np.linalg.norm(x, axis=1) + eps) * (np.linalg.norm(y, axis=1) + eps)
    return np.abs((x * y).sum(1)) / sizes


class Tangential:
    """Heo et al. 2021, Algorithms 1 and 2, around a rule with the sign of a direction."""

    def __init__(self, rule, rate=-1.0, decay=0.0, delta=0.1, ratio=0.1, eps=1e-8):
        self.rule, self.rate, self.decay, self.delta, self.ratio, self.eps = rule, rate, decay, delta, ratio, eps

    def __call__(self, g, p, t):
        d = self.rule(g, p, t)
        ratio = 1.0
        if p.ndim > 1:
            for rows in (p.shape[0], 1):
                view = (rows, -1)
                own = p.reshape(view)
                if cosine(g.reshape(view), own, self.eps).max() < self.delta / np.sqrt(own.shape[1]):
                    unit = own / (np.linalg.norm(own, axis=1, keepdims=True) + self.eps)
                    along = (unit * d.reshape(view)).sum(1, keepdims=True)
                    d, ratio = (d.reshape(view) - unit * along).reshape(p.shape), self.ratio
                    break
        return -self.rate * (d + self.decay * ratio * p)


class AheadAdam:
    """The direction of their Adam with Nesterov's momentum."""

    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-8):
        self.beta1, self.beta2, self.eps, self.m, self.v = beta1, beta2, eps, 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        ahead = self.beta1 * self.m + (1 - self.beta1) * g
        return ahead / (1 - self.beta1**t) / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)


class Momentum:
    """torch's, with dampening from the first step on."""

    def __init__(self, mu, damping=0.0, nesterov=False):
        self.mu, self.damping, self.nesterov, self.buf = mu, damping, nesterov, 0.0

    def __call__(self, g, p, t):
        self.buf = self.mu * self.buf + (1 - self.damping) * g
        return g + self.mu * self.buf if self.nesterov else self.buf


class AdamMini:
    """Zhang et al. 2024; `blocks(p)` gives the number of the block of each element."""

    def __init__(self, blocks, beta1=0.9, beta2=0.999, eps=1e-8, rate=-1.0, decay=0.0):
        self.blocks, self.beta1, self.beta2, self.eps = blocks, beta1, beta2, eps
        self.rate, self.decay, self.m, self.v = rate, decay, 0.0, {}

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        number, step = self.blocks(p), np.zeros_like(g)
        for block in np.unique(number):
            own = number == block
            square = np.mean(g[own] ** 2)
            self.v[block] = self.beta2 * self.v.get(block, 0.0) + (1 - self.beta2) * square
            root = np.sqrt(self.v[block] / (1 - self.beta2**t)) + self.eps
            step[own] = self.m[own] / (1 - self.beta1**t) / root
        return -self.rate * (step + self.decay * p)


def elements(p):
    """Every element its own block."""
    return np.arange(p.size).reshape(p.shape)


def rows(count):
    """So many equal blocks along the first axis."""
    return lambda p: np.repeat(np.arange(count), p.size // count).reshape(p.shape)


class Came:
    """Luo et al. 2023, Algorithm 2, as their code has it."""

    def __init__(self, rate=-1.0, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), bound=1.0, decay=0.0):
        self.rate, self.betas, self.eps, self.bound, self.decay = rate, betas, eps, bound, decay
        self.m, self.row, self.col, self.v, self.res_row, self.res_col = (0.0,) * 6

    @staticmethod
    def approx(row, col):
        return 1 / np.sqrt(row / row.mean(-1, keepdims=True))[..., None] / np.sqrt(col)[..., None, :]

    def __call__(self, g, p, t):
        b1, b2, b3 = self.betas
        square = g**2 + self.eps[0]
        if g.ndim > 1:
            self.row = b2 * self.row + (1 - b2) * square.mean(-1)
            self.col = b2 * self.col + (1 - b2) * square.mean(-2)
            u = self.approx(self.row, self.col) * g
        else:
            self.v = b2 * self.v + (1 - b2) * square
            u = g / np.sqrt(self.v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / self.bound)
        self.m = b1 * self.m + (1 - b1) * u
        step = self.m
        if g.ndim > 1:
            res = (u - self.m) ** 2 + self.eps[1]
            self.res_row = b3 * self.res_row + (1 - b3) * res.mean(-1)
            self.res_col = b3 * self.res_col + (1 - b3) * res.mean(-2)
            step = self.approx(self.res_row, self.res_col) * self.m
        return -self.rate * (step + self.decay * p)


class AdaHessian:
    """Yao et al. 2021, Algorithm 1, with an exact diagonal; kernels average over the last two of four axes."""

    def __init__(self, diagonal, beta1=0.9, beta2=0.999, eps=1e-4, k=1.0, rate=-1.0, decay=0.0, axes=None):
        self.diagonal, self.beta1, self.beta2, self.eps, self.k = diagonal, beta1, beta2, eps, k
        self.rate, self.decay, self.axes, self.m, self.v = rate, decay, axes, 0.0, 0.0

    def __call__(self, g, p, t):
        h = np.abs(self.diagonal(p))
        h = h if self.axes is None or p.ndim < 2 else h.mean(self.axes, keepdims=True)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * h**2
        step = self.m / (1 - self.beta1**t) / (np.sqrt(self.v / (1 - self.beta2**t)) ** self.k + self.eps)
        return -self.rate * (step + self.decay * p)


class SophiaG:
    """Liu et al. 2023, Algorithm 3, as their code has it; `drawn(g, t)` are the gradients of drawn labels, if any."""

    def __init__(self, drawn, beta1=0.965, beta2=0.99, rho=0.04, bs=1.0, rate=-1.0, decay=0.0):
        self.drawn, self.beta1, self.beta2, self.rho, self.bs = drawn, beta1, beta2, rho, bs
        self.rate, self.decay, self.m, self.h = rate, decay, 0.0, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        step = np.sign(self.m) * np.minimum(1, np.abs(self.m) / (self.rho * self.bs * self.h + 1e-15))
        self.h = self.beta2 * self.h + (1 - self.beta2) * self.drawn(g) ** 2
        return -self.rate * (step + self.decay * p)


class Tiger:
    """Su 2023: the sign of a mean, and decay."""

    def __init__(self, rate, beta, decay):
        self.rate, self.beta, self.decay, self.m = rate, beta, decay, 0.0

    def __call__(self, g, p, t):
        self.m = self.beta * self.m + (1 - self.beta) * g
        return -self.rate * (np.sign(self.m) + self.decay * p)


class ClipSpikes:
    """Huang et al. 2025, equation 1, with the mean of what was let through."""

    def __init__(self, threshold, beta2, grace):
        self.threshold, self.beta2, self.grace, self.v = threshold, beta2, grace, 0.0

    def __call__(self, g, p, t):
        g = cut(g, self.v, self.threshold) if t >= self.grace else g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        return g


def cut(g, v, threshold):
    """Elements whose squares are too large, where there is something to compare them with."""
    v = np.zeros_like(g) + v
    spike = (g**2 > threshold * v) & (v > 0)
    return np.where(spike, np.sign(g) * np.sqrt(threshold * v), g)


class Spam:
    """Huang et al. 2025, Algorithm 1, with the counts of their code: two of them, one of which starts anew."""

    def __init__(self, rate=-1.0, beta1=0.9, beta2=0.999, eps=1e-6, threshold=5000.0, gap=500, warmup=150, grace=20):
        self.rate, self.beta1, self.beta2, self.eps, self.threshold = rate, beta1, beta2, eps, threshold
        self.gap, self.warmup, self.grace, self.current, self.decay = gap, warmup, grace, warmup + 1, 0.0

    def __call__(self, g, p, t):
        death = 0.0
        if self.current < self.warmup:
            death = 0.99 * (1 + np.cos(np.pi * self.current / (self.warmup + 1))) / 2
        if t == 1 or t % self.gap == 0:
            self.m, self.v = np.zeros_like(g), np.zeros_like(g)
        if t >= self.grace and t % self.gap >= self.grace:
            g = cut(g, self.v, self.threshold)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        size = self.rate * np.sqrt(1 - self.beta2**t) / (1 - self.beta1**t) * (1 - death)
        moved = p - size * self.m / (np.sqrt(self.v) + self.eps)
        self.current += 1
        if (t + 1) % self.gap == 0:
            self.current = 0
        return moved - self.rate * self.decay * moved - p

    def with_decay(self, decay):
        """The whole optimizer, whose decay comes last."""
        self.decay = decay
        return self
