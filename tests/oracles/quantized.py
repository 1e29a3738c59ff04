"""Numbers in few bits, one block after the other, from the papers' words; and a rule whose state is kept so."""

import functools

import numpy as np


def dynamic_map(signed, decades=7, bits=8):
    """Dettmers 2016: decade i is cut into 2^i cells (twice as many without sign); values are the middles of cells."""
    values = [0.0, 1.0]
    for i in range(decades):
        cells = 2 ** (i + bits - 1 - decades) * (1 if signed else 2)
        low, high = 10.0 ** (i - decades), 10.0 ** (i - decades + 1)
        for cell in range(cells):
            value = low + (high - low) * (cell + 0.5) / cells
            values += [value, -value] if signed else [value]
    return np.array(sorted(values))


def nearest(table):
    """The number of a table next to each of several."""

    def read(s):
        return table[np.abs(s[:, None] - table[None, :]).argmin(1)]

    return read


def companded(signed):
    """FlashOptim: soft sign and 127 steps, or the root and 255 steps."""

    def read(s):
        if signed:
            y = np.floor(127 * (2 * s / (1 + np.abs(s))) + 0.5) / 127
            return y / (2 - np.abs(y))
        return (np.maximum(np.floor(255 * np.sqrt(s) + 0.5), s > 0) / 255) ** 2

    return read


def e4m3(s, signed=True):
    """The nearest number of four bits of exponent and three of mantissa to 448 times each, even at ties.

    Without sign what is not 0 does not become 0.
    """
    x = 448 * s
    exponent = np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6)))
    unit = 2.0 ** (exponent - 3)
    steps = np.rint(x / unit)
    return (steps if signed else np.maximum(steps, s > 0)) * unit / 448


READERS = {
    "companded8": companded,
    "dynamic8": lambda signed: nearest(dynamic_map(signed)),
    "4bit": lambda signed: nearest(dynamic_map(True, 3, 4) if signed else np.arange(1, 17) / 16),
    "fp8": lambda signed: functools.partial(e4m3, signed=signed),
}
BLOCKS = {"companded8": 64, "dynamic8": 256, "4bit": 128, "fp8": 256}


def round_trip(x, name, block, signed):
    """What is read back after writing."""
    read, flat = READERS[name](signed), np.array(x).reshape(-1)
    out = np.zeros_like(flat)
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        largest = np.abs(part).max()
        if largest > 0:
            out[start : start + block] = read(part / largest) * largest
    return out.reshape(np.shape(x))


class Kept:
    """A rule that keeps `m` and `v` in few bits between its steps."""

    def __init__(self, rule, name, block=None):
        self.rule, self.name, self.block = rule, name, block or BLOCKS[name]

    def __call__(self, g, p, t):
        step = self.rule(g, p, t)
        self.rule.m = round_trip(self.rule.m, self.name, self.block, True)
        self.rule.v = round_trip(self.rule.v, self.name, self.block, False)
        return step
