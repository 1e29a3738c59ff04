"""Running sums and means."""


class Trace:
    """Polyak 1964; Sutskever et al. 2013, equations 1 to 4 for Nesterov."""

    def __init__(self, decay, nesterov=False):
        self.decay, self.nesterov, self.sum = decay, nesterov, 0.0

    def __call__(self, g, p, t):
        self.sum = self.decay * self.sum + g
        return self.decay * self.sum + g if self.nesterov else self.sum


class Ema:
    """m = decay m + (1 - decay) g, divided by 1 - decay^t if debiased."""

    def __init__(self, decay, debias=True):
        self.decay, self.debias, self.mean = decay, debias, 0.0

    def __call__(self, g, p, t):
        self.mean = self.decay * self.mean + (1 - self.decay) * g
        return self.mean / (1 - self.decay**t) if self.debias else self.mean
