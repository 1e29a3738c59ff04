"""Compressed means of several replicas in one process, transcribed from the papers: every replica's gradients at hand.

Each takes the gradients of all replicas, as lists of tensors, and a memory that it writes to; it returns the mean and
what was sent of each.
"""

import math

import torch


def flat(leaves):
    return torch.cat([x.reshape(-1) for x in leaves])


def like(vector, leaves):
    return [x.reshape(y.shape) for x, y in zip(vector.split([y.numel() for y in leaves]), leaves, strict=True)]


def cast(replicas, memory, dtype=torch.bfloat16):
    low = [[x.to(dtype) for x in own] for own in replicas]
    mean = [(sum(x / len(replicas) for x in xs)).float() for xs in zip(*low, strict=True)]
    return mean, [[x.to(own[0].dtype) for x in own] for own in low]


def topk(replicas, memory, ratio=0.1):
    sent = []
    for own in replicas:
        kept = []
        for x in own:
            size = math.ceil(ratio * x.numel())
            least = x.abs().reshape(-1).sort(descending=True)[0][size - 1]
            kept.append(torch.where(x.abs() >= least, x, 0.0))
        sent.append(kept)
    return [sum(xs) / len(replicas) for xs in zip(*sent, strict=True)], sent


def orthogonal(a):
    if a.shape[1] > 2:
        return torch.linalg.qr(a)[0]
    columns = []
    for i in range(a.shape[1]):
        column = a[:, i]
        for other in columns:
            column = column - (other * column).sum() * other
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


def powersgd(replicas, memory, rank=1, min_rate=2.0):
    means, sent = [], [[] for _ in replicas]
    for i, xs in enumerate(zip(*replicas, strict=True)):
        n, m = xs[0].shape[0], xs[0].numel() // xs[0].shape[0]
        r = min(n, m, rank)
        if xs[0].ndim < 2 or (n + m) * r * min_rate >= n * m:
            means.append(sum(x / len(xs) for x in xs))
            for own, x in zip(sent, xs, strict=True):
                own.append(x)
            continue
        matrices = [x.reshape(n, m) for x in xs]
        q = orthogonal(memory[i])
        p = orthogonal(sum(a @ q for a in matrices))
        memory[i] = sum((a.mT @ p) / len(xs) for a in matrices)
        means.append((p @ memory[i].mT).reshape(xs[0].shape))
        for own in sent:
            own.append(means[-1])
    return means, sent


def by_owners(replicas, memory, code):
    """`code(vector, whole)` is the vector after compression; `whole` are the bounds of what is one owner's."""
    vectors = [flat(own) for own in replicas]
    total, number = vectors[0].numel(), len(replicas)
    part = -(-total // number)
    bounds = [(i * part, min((i + 1) * part, total)) for i in range(number)]
    sent = [code(v, bounds) for v in vectors]
    owned = sum(sent) / number + memory.setdefault("owned", torch.zeros_like(vectors[0]))
    mean = torch.cat([code(owned[a:b], [(0, b - a)]) for a, b in bounds])
    memory["owned"] = owned - mean
    return like(mean, replicas[0]), [like(v, replicas[0]) for v in sent]


def sign_1bit(replicas, memory):
    def code(vector, bounds):
        return vector.norm() / vector.numel() ** 0.5 * torch.where(vector >= 0, 1.0, -1.0)

    return by_owners(replicas, memory, code)


def int8_block(replicas, memory, size=16):
    def code(vector, bounds):
        found = vector.clone()
        for a, b in bounds:
            for start in range(a, b, size):
                block = vector[start : min(start + size, b)]
                scale = block.abs().max() / 127
                found[start : min(start + size, b)] = (block / scale).round() * scale
        return found

    return by_owners(replicas, memory, code)


def simulate(rule, sequence, memory, error_feedback=True):
    """The means of all steps, and the errors of the replicas after the last."""
    errors = [[torch.zeros_like(x) for x in own] for own in sequence[0]]
    means = []
    for replicas in sequence:
        whole = [[g + e for g, e in zip(*pair, strict=True)] for pair in zip(replicas, errors, strict=True)]
        mean, sent = rule(whole, memory)
        means.append(mean)
        if error_feedback:
            errors = [[c - s for c, s in zip(*pair, strict=True)] for pair in zip(whole, sent, strict=True)]
        else:
            memory.pop("owned", None)
    return means, errors
