"""Tieleman and Hinton 2012; Graves 2013, equations 38 to 45, for the centred form."""

import numpy as np


class RmsProp:
    """Divide by the root mean square, or by the standard deviation; momentum acts after the learning rate."""

    def __init__(
        self,
        eta=-1.0,
        decay=0.9,
        eps=1e-8,
        initial_scale=0.0,
        eps_in_sqrt=True,
        centered=False,
        momentum=0.0,
        nesterov=False,
        bias_correction=False,
    ):
        self.eta, self.decay, self.eps, self.eps_in_sqrt, self.centered = eta, decay, eps, eps_in_sqrt, centered
        self.momentum, self.nesterov, self.bias_correction = momentum, nesterov, bias_correction
        self.mean, self.square, self.sum = 0.0, initial_scale, 0.0

    def __call__(self, g, p, t):
        self.mean = self.decay * self.mean + (1 - self.decay) * g
        self.square = self.decay * self.square + (1 - self.decay) * g * g
        correction = 1 - self.decay**t if self.bias_correction else 1.0
        spread = self.square / correction
        if self.centered:
            spread = np.maximum(spread - (self.mean / correction) ** 2, 0.0)
        root = np.sqrt(spread + self.eps) if self.eps_in_sqrt else np.sqrt(spread) + self.eps
        step = -self.eta * g / root
        self.sum = self.momentum * self.sum + step
        return self.momentum * self.sum + step if self.nesterov else self.sum
