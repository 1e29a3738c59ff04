"""Rules of optax's core that torch.optim does not have, each from its paper, in float64."""

import numpy as np


def norm(x):
    """2-norm of all elements."""
    return np.sqrt(np.sum(np.abs(x) ** 2))


class AdaBelief:
    """Zhuang et al. 2020, Algorithm 2, with the decay of the authors' code."""

    def __init__(self, alpha=-1.0, beta1=0.9, beta2=0.999, eps=1e-16, eps_root=1e-16, weight_decay=0.0, nesterov=False):
        self.alpha, self.beta1, self.beta2, self.eps, self.eps_root = alpha, beta1, beta2, eps, eps_root
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.m = self.s = 0.0

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.s = self.beta2 * self.s + (1 - self.beta2) * (g - self.m) ** 2 + self.eps_root
        m_hat = self.m / (1 - self.beta1**t)
        if self.nesterov:
            m_hat = self.beta1 * self.m / (1 - self.beta1 ** (t + 1)) + (1 - self.beta1) * g / (1 - self.beta1**t)
        s_hat = self.s / (1 - self.beta2**t)
        return -self.alpha * (m_hat / (np.sqrt(s_hat) + self.eps) + self.weight_decay * p)


class Yogi:
    """Zaheer et al. 2018, Algorithm 2, with the bias corrections of the field's implementations."""

    def __init__(self, eta=-1.0, beta1=0.9, beta2=0.999, eps=1e-3, eps_root=0.0, start=1e-6):
        self.eta, self.beta1, self.beta2, self.eps, self.eps_root = eta, beta1, beta2, eps, eps_root
        self.m = self.v = start

    def __call__(self, g, p, t):
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.v - (1 - self.beta2) * np.sign(self.v - g**2) * g**2
        m_hat, v_hat = self.m / (1 - self.beta1**t), self.v / (1 - self.beta2**t)
        return -self.eta * m_hat / (np.sqrt(v_hat + self.eps_root) + self.eps)


class Adan:
    """Xie et al. 2022, Algorithm 1 in the paper's betas, with the authors' bias corrections and decay without prox."""

    def __init__(self, eta=-1.0, beta1=0.02, beta2=0.08, beta3=0.01, eps=1e-8, eps_root=0.0, weight_decay=0.0):
        self.eta, self.beta1, self.beta2, self.beta3 = eta, beta1, beta2, beta3
        self.eps, self.eps_root, self.weight_decay = eps, eps_root, weight_decay
        self.m = self.v = self.n = 0.0
        self.last = None

    def __call__(self, g, p, t):
        d = 0 * g if self.last is None else g - self.last
        self.last = g
        self.m = (1 - self.beta1) * self.m + self.beta1 * g
        self.v = (1 - self.beta2) * self.v + self.beta2 * d
        self.n = (1 - self.beta3) * self.n + self.beta3 * (g + (1 - self.beta2) * d) ** 2
        m_hat = self.m / (1 - (1 - self.beta1) ** t)
        v_hat = self.v / (1 - (1 - self.beta2) ** t)
        n_hat = self.n / (1 - (1 - self.beta3) ** t)
        step = (m_hat + (1 - self.beta2) * v_hat) / (np.sqrt(n_hat + self.eps_root) + self.eps)
        return -self.eta * (step + self.weight_decay * p)


def trust_ratio(u, p, min_norm=0.0, coefficient=1.0, eps=0.0):
    """You et al. 2017, equation 6: what an update is multiplied by."""
    of_p, of_u = max(norm(p), min_norm), max(norm(u), min_norm)
    return 1.0 if of_p == 0 or of_u == 0 else coefficient * of_p / (of_u + eps)


class Lamb:
    """You et al. 2020, Algorithm 2."""

    def __init__(self, adam, eta, weight_decay):
        self.adam, self.eta, self.weight_decay = adam, eta, weight_decay

    def __call__(self, g, p, t):
        u = self.adam(g, p, t) + self.weight_decay * p
        return -self.eta * trust_ratio(u, p) * u


class Lars:
    """You et al. 2017, Algorithm 1, with the momentum outside of the rate."""

    def __init__(self, rate, weight_decay, coefficient, eps, momentum, nesterov, scaled=True):
        self.rate, self.weight_decay, self.coefficient, self.eps = rate, weight_decay, coefficient, eps
        self.momentum, self.nesterov, self.scaled = momentum, nesterov, scaled
        self.t = 0.0

    def __call__(self, g, p, t):
        u = g + self.weight_decay * p
        if self.scaled:
            u = u * trust_ratio(u, p, coefficient=self.coefficient, eps=self.eps)
        self.t = -self.rate * u + self.momentum * self.t
        return -self.rate * u + self.momentum * self.t if self.nesterov else self.t


def fromage_step(eta, min_norm=1e-6):
    """Bernstein et al. 2020, Algorithm 1."""
    c = 1 / np.sqrt(1 + eta**2)
    return lambda g, p, t: c * (p - eta * g * trust_ratio(g, p, min_norm)) - p


class NovoGrad:
    """Ginsburg et al. 2019, Algorithm 1."""

    def __init__(self, alpha=-1.0, beta1=0.9, beta2=0.25, eps=1e-8, eps_root=0.0, d=0.0):
        self.alpha, self.beta1, self.beta2, self.eps, self.eps_root, self.d = alpha, beta1, beta2, eps, eps_root, d

    def __call__(self, g, p, t):
        size = np.sum(g**2)
        self.v = size if t == 1 else self.beta2 * self.v + (1 - self.beta2) * size
        u = g / (np.sqrt(self.v + self.eps_root) + self.eps) + self.d * p
        self.m = u if t == 1 else self.beta1 * self.m + u
        return -self.alpha * self.m


class Optimistic:
    """Mokhtari et al. 2019: (alpha + beta) g - beta g_prev, of any direction."""

    def __init__(self, rate, alpha, beta, direction=lambda g, p, t: g):
        self.rate, self.alpha, self.beta, self.direction, self.last = rate, alpha, beta, direction, None

    def __call__(self, g, p, t):
        g = self.direction(g, p, t)
        last = g if self.last is None else self.last
        self.last = g
        return -self.rate * ((self.alpha + self.beta) * g - self.beta * last)


class SM3:
    """Anil et al. 2019, Algorithm SM3-II with the axes as covers, and a mean of the scaled gradients."""

    def __init__(self, eta=-1.0, beta1=0.9, beta2=1.0, eps=1e-8):
        self.eta, self.beta1, self.beta2, self.eps = eta, beta1, beta2, eps
        self.m = 0.0
        self.mu = None

    def __call__(self, g, p, t):
        covers = range(g.ndim)
        if self.mu is None:
            self.mu = [np.zeros(size) for size in g.shape]
        nu = np.zeros_like(g)
        for i in np.ndindex(g.shape):
            lowest = min(self.mu[axis][i[axis]] for axis in covers)
            nu[i] = (1.0 if self.beta2 == 1 else 1 - self.beta2) * g[i] ** 2 + self.beta2 * lowest
        self.mu = [nu.max(axis=tuple(a for a in covers if a != axis)) for axis in covers]
        scaled = np.divide(g, np.sqrt(nu + self.eps), out=np.zeros_like(g), where=nu > 0)
        self.m = self.beta1 * self.m + (1 - self.beta1) * scaled
        return -self.eta * self.m


class LayerwiseDoG:
    """Ivgi et al. 2023, equation 3, with one step size per leaf."""

    def __init__(self, r=1e-6, eps=1e-8, scale=1.0):
        self.r, self.eps, self.scale = r, eps, scale

    def __call__(self, g, p, t):
        if t == 1:
            self.start, self.far, self.total = p, self.r * (1 + norm(p)), 0.0
        self.far = max(self.far, norm(p - self.start))
        self.total += norm(g) ** 2
        return self.scale * self.far / np.sqrt(self.total + self.eps) * g


class Factored:
    """Shazeer and Stern 2018, Algorithm 4, over the two largest axes of any leaf."""

    def __init__(self, decay_rate=0.8, least=128, eps=1e-30, offset=0, beta=None):
        self.decay_rate, self.least, self.eps, self.offset, self.beta = decay_rate, least, eps, offset, beta
        self.R = self.C = self.V = 0.0

    def __call__(self, g, p, t):
        beta = 1 - float(t - self.offset) ** -self.decay_rate if self.beta is None else self.beta(t)
        order = np.argsort(g.shape, kind="stable")
        square = np.abs(g) ** 2 + self.eps
        if g.ndim < 2 or g.shape[order[-2]] < self.least:
            self.V = beta * self.V + (1 - beta) * square
            return g / np.sqrt(self.V)
        self.R = beta * self.R + (1 - beta) * square.mean(axis=order[-1], keepdims=True)
        self.C = beta * self.C + (1 - beta) * square.mean(axis=order[-2], keepdims=True)
        return g / np.sqrt(self.R * self.C / self.R.mean(axis=order[-2], keepdims=True))


class AdafactorAsOptax:
    """Shazeer and Stern 2018, Algorithm 6 with a mean of the updates, and a decay that the rate does not multiply."""

    def __init__(self, rate=1.0, d=1.0, momentum=0.0, decay=0.0, relative=True, **kwargs):
        self.u, self.rate, self.d, self.momentum, self.decay = Factored(**kwargs), rate, d, momentum, decay
        self.relative = relative
        self.m = 0.0

    def __call__(self, g, p, t):
        u = self.u(g, p, t)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / self.d)
        size = max(np.sqrt(np.mean(p**2)), 1e-3) if self.relative else 1.0
        self.m = self.momentum * self.m + (1 - self.momentum) * self.rate * size * u
        return -(self.m + self.decay * p)


def polyak(value, f_min=0.0, longest=1.0, eps=0.0, plus=False, scaling=1.0):
    """Loizou et al. 2021, equation 5, of all leaves at once, for one value of the loss."""

    def step(grads):
        grads = {name: scaling * g for name, g in grads.items()}
        size = sum(np.sum(np.abs(g) ** 2) for g in grads.values()) + eps
        gap = max(value - f_min, 0.0) if plus else value - f_min
        length = 0.0 if size <= np.finfo(np.float64).eps else min(gap / size, longest)
        return {name: length * g for name, g in grads.items()}

    return step


def unitwise(x):
    """Norms over all axes but the first; of everything, if there is one axis."""
    axes = tuple(range(x.ndim)) if x.ndim < 2 else tuple(range(1, x.ndim))
    return np.sqrt(np.sum(x**2, axis=axes, keepdims=True))


def adaptive_clip(clipping, eps):
    """Brock et al. 2021, equation 3."""

    def rule(g, p, t):
        of_g, bound = unitwise(g), clipping * np.maximum(unitwise(p), eps)
        return np.where(of_g < bound, g, g * bound / np.maximum(of_g, 1e-6))

    return rule


_MASK = 2**64 - 1


def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _fold(key, data):
    if isinstance(data, str):
        text, data = data, 0x811C9DC5
        for byte in text.encode():
            data = (data ^ byte) * 0x01000193 & 0xFFFFFFFF
    return _mix(_mix(key) + data * 0x9E3779B97F4A7C15 & _MASK)


def _uniform(key, shape):
    start = _mix(key)
    bits = [_mix(start + (i + 1) * 0x9E3779B97F4A7C15 & _MASK) for i in range(int(np.prod(shape)))]
    return np.array([((b >> 12) + 0.5) * 2.0**-52 for b in bits]).reshape(shape)


def noise(seed, t, path, shape):
    """Normal numbers by Box and Muller from SplitMix64 (Steele, Lea and Flood 2014), in Python's own integers."""
    key = _fold(_fold(seed, t), path)
    return np.sqrt(-2 * np.log(_uniform(_fold(key, 0), shape))) * np.cos(2 * np.pi * _uniform(_fold(key, 1), shape))
