"""The schedulers of torch as formulas in plain Python, for the value after `t` steps; periods are taken off first."""

import math
from bisect import bisect_right


def step(t, base, size, gamma):
    return base * gamma ** (t // size)


def multi_step(t, base, milestones, gamma):
    return base * gamma ** bisect_right(sorted(milestones), t)


def linear(t, base, start, end, total):
    return base * (start + (end - start) * min(total, t) / total)


def polynomial(t, base, total, power):
    return base * (1 - min(total, t) / total) ** power


def cosine(t, base, period, low):
    return low + (base - low) * (1 + math.cos(math.pi * (t % (2 * period)) / period)) / 2


def warm_restarts(t, base, period, mult, low):
    if mult == 1:
        t %= period
    while t >= period:
        t, period = t - period, period * mult
    return low + (base - low) * (1 + math.cos(math.pi * t / period)) / 2


def cyclic(t, base, top, up, down, mode, gamma):
    n, r = divmod(t, up + down)
    height = r / up if r <= up else (up + down - r) / down
    return base + (top - base) * height * {"triangular": 1.0, "triangular2": 0.5**n, "exp_range": gamma**t}[mode]


def one_cycle(t, top, total, rise, strategy, div, final_div, three_phase):
    initial = top / div
    last = initial / final_div
    phases = [(rise * total - 1, initial, top), (2 * rise * total - 2, top, initial), (total - 1, initial, last)]
    if not three_phase:
        phases = [phases[0], (total - 1, top, last)]
    begin, t = 0.0, min(t, total - 1)
    for position, (end, a, b) in enumerate(phases):
        if t <= end or position == len(phases) - 1:
            f = (t - begin) / (end - begin)
            return b + (a - b) / 2 * (math.cos(math.pi * f) + 1) if strategy == "cos" else (b - a) * f + a
        begin = end


def swa(t, base, target, epochs, strategy):
    f = min(t / epochs, 1) if epochs else 1
    a = (1 - math.cos(math.pi * f)) / 2 if strategy == "cos" else f
    return target * a + base * (1 - a)


def multiplicative(t, base, factor, total):
    return base * math.prod(factor(i) for i in range(1, min(t, total) + 1))
