"""Running sums and means."""


class Trace:
    """Polyak 1964; Sutskever et al. 2013, equations 1 to 4 for Nesterov; dampening as torch.optim.SGD has it."""

    def __init__(self, decay, nesterov=False, dampening=0.0):
        self.decay, self.nesterov, self.dampening, self.sum = decay, nesterov, dampening, 0.0

    def __call__(self, g, p, t):
        self.sum = g if t == 1 else self.decay * self.sum + (1 - self.dampening) * g
        return self.decay * self.sum + g if self.nesterov else self.sum


class Ema:
    """m = decay m + (1 - decay) g, divided by 1 - decay^t if debiased; Dozat 2016 for the look-ahead."""

    def __init__(self, decay, debias=True, nesterov=False):
        self.decay, self.debias, self.nesterov, self.mean = decay, debias, nesterov, 0.0

    def __call__(self, g, p, t):
        self.mean = self.decay * self.mean + (1 - self.decay) * g
        now, ahead = (1 - self.decay**t, 1 - self.decay ** (t + 1)) if self.debias else (1.0, 1.0)
        if self.nesterov:
            return self.decay * self.mean / ahead + (1 - self.decay) * g / now
        return self.mean / now
