"""SOAP and PSGD as their authors step them: eager, leaf by leaf, in place. For `matrix.py` to compare with."""

import math
from itertools import chain

import torch
from torch import Tensor

Params = list[torch.nn.Parameter]
TINY = torch.finfo(torch.float32).smallest_normal


class Soap:
    """SOAP, nikhilvyas/SOAP: matrices by `tensordot`, the means turned out of the basis and back in every step."""

    def __init__(self, params: Params, lr: float, beta: float = 0.95, decay: float = 0.01, every: int = 10) -> None:
        self.params, self.lr, self.beta, self.decay, self.every = params, lr, beta, decay, every
        self.count, self.largest = 0, 10000
        self.m = [torch.zeros_like(p) for p in params]
        self.v = [torch.zeros_like(p) for p in params]
        self.factors = [[self._zeros(p, size) for size in p.shape] for p in params]
        self.bases: list[list[Tensor | None]] = [[] for _ in params]

    def _zeros(self, p: Tensor, size: int) -> Tensor | None:
        return p.new_zeros(size, size) if p.ndim > 1 and size <= self.largest else None

    @torch.no_grad()
    def step(self) -> None:
        """Once."""
        first = self.count == 0 and not self.bases[0]
        self.count += not first
        for i, p in enumerate(self.params):
            assert p.grad is not None
            if not first:
                self._move(i, p, p.grad)
            self._refresh(i, p.grad, first)

    def _move(self, i: int, p: Tensor, g: Tensor) -> None:
        h = self._turn(g, i, 0)
        self.m[i].mul_(self.beta).add_(h, alpha=1 - self.beta)
        self.v[i].mul_(self.beta).add_(h.square(), alpha=1 - self.beta)
        denominator = self.v[i].sqrt().add_(1e-8)
        correction = 1 - self.beta**self.count
        u = self._turn(self.m[i] / denominator, i, 1)
        p.add_(u, alpha=-self.lr * math.sqrt(correction) / correction)
        p.add_(p, alpha=-self.lr * self.decay)

    def _refresh(self, i: int, g: Tensor, first: bool) -> None:
        if not first:
            self.m[i] = self._turn(self.m[i], i, 1)
        for axis, factor in enumerate(self.factors[i]):
            if factor is not None:
                others = [*chain(range(axis), range(axis + 1, g.ndim))]
                factor.lerp_(torch.tensordot(g, g, dims=[others, others]), 1 - self.beta)
        if first:
            self.bases[i] = [None if f is None else self._eigenvectors(f) for f in self.factors[i]]
        elif self.count % self.every == 0:
            self._iterate(i)
        if not first:
            self.m[i] = self._turn(self.m[i], i, 0)

    def _eigenvectors(self, factor: Tensor) -> Tensor:
        _, q = torch.linalg.eigh(factor + 1e-30 * torch.eye(factor.shape[0]))
        return torch.flip(q, [1])

    def _iterate(self, i: int) -> None:
        for axis, (factor, q) in enumerate(zip(self.factors[i], self.bases[i], strict=True)):
            if factor is None or q is None:
                continue
            order = torch.argsort(torch.diag(q.T @ factor @ q), descending=True)
            self.v[i] = self.v[i].index_select(axis, order)
            self.bases[i][axis], _ = torch.linalg.qr(factor @ q[:, order])

    def _turn(self, x: Tensor, i: int, side: int) -> Tensor:
        for q in self.bases[i]:
            x = x.permute([*range(1, x.ndim), 0]) if q is None else torch.tensordot(x, q, dims=[[0], [side]])
        return x


class Kron:
    """PSGD with "Q0.5EQ1.5", lixilinx/psgd_torch: gradients are whitened, the mean of them steps."""

    def __init__(self, params: Params, lr: float, momentum: float = 0.9, rate: float = 0.1) -> None:
        self.params, self.lr, self.momentum, self.rate, self.count = params, lr, momentum, rate, 0
        self.m = [torch.zeros_like(p.squeeze()) for p in params]
        self.q: list[list[Tensor]] = []
        self.bounds = [[torch.zeros(()) for _ in m.shape] for m in self.m]

    @torch.no_grad()
    def step(self) -> None:
        """Once."""
        grads = [p.grad.squeeze() for p in self.params if p.grad is not None]
        if not self.q:
            size = max((g**4).mean() for g in grads).add(1e-36) ** (-1 / 8)
            self.q = [[self._start(g, d, size ** (1 / g.ndim)) for d in g.shape] for g in grads]
        beta, self.count = min(self.count / (1 + self.count), self.momentum), self.count + 1
        for i, g in enumerate(grads):
            self.m[i].mul_(beta).add_(g, alpha=1 - beta)
            noise = 1e-9 + torch.finfo(g.dtype).eps * g.abs()
            self._fit(i, self._precondition(self.q[i], g + noise * torch.randn_like(g)))
        for i, p in enumerate(self.params):
            u = self._precondition(self.q[i], self.m[i])
            size = u.square().mean().sqrt()
            if size > 2:
                u *= 2 / size
            p.sub_(u.clamp_(-10, 10).view_as(p), alpha=self.lr)

    def _start(self, g: Tensor, d: int, scale: Tensor) -> Tensor:
        return scale * (torch.ones(d) if d <= 1 or d * d > g.numel() else torch.eye(d))

    def _precondition(self, q: list[Tensor], g: Tensor) -> Tensor:
        """In the order of fewest operations, which `opt_einsum` finds for the authors."""
        for axis, own in enumerate(q):
            if own.ndim < 2:
                g = g * (own * own).reshape([-1 if k == axis else 1 for k in range(g.ndim)])
            elif axis == 0:
                g = own.T @ (own @ g) if own.shape[0] > g.shape[1] else (own.T @ own) @ g
            else:
                g = (g @ own.T) @ own if own.shape[0] > g.shape[0] else g @ (own.T @ own)
        return g

    def _fit(self, i: int, y: Tensor) -> None:
        for axis, q in enumerate(self.q[i]):
            if q.ndim < 2:
                t = (y * y).sum([k for k in range(y.ndim) if k != axis]) if y.ndim > 1 else y * y
            else:
                t = y @ y.T if axis == 0 else y.T @ y
            s = y.numel() / q.shape[0]
            bound = (t.max() if q.ndim < 2 else _bound(t, t.diagonal().amax() + TINY)) + s
            own = self.bounds[i][axis]
            own.copy_(torch.max(0.9 * own + 0.1 * bound, bound))
            if q.ndim < 2:
                q.mul_(1 - self.rate / own * (t - s))
            else:
                q.sub_(self.rate / own * (t @ q - s * q))
                _procrustes(q)


def _procrustes(q: Tensor) -> None:
    r = q.T - q
    r /= _bound(r, r.abs().amax() + TINY) + TINY
    rq = r @ q
    rrq = r @ rq
    a, b = rq.diagonal().sum(), rrq.diagonal().sum()
    step = torch.where(b < 0, torch.clamp(-a / b, max=1 / 8), 1 / 8)
    q.add_(step * (rq + 0.5 * step * rrq))


def _bound(a: Tensor, scale: Tensor, directions: int = 32) -> Tensor:
    """A bound of the norm of a symmetric or skew matrix: two steps of a subspace that begins near its longest row."""
    a = a / scale
    row = a[torch.argmax(torch.linalg.vector_norm(a, dim=1))]
    v = torch.randn(directions, a.shape[1])
    v = row + torch.sgn((row * v).sum(1, keepdim=True)) * v
    for _ in range(2):
        v = v @ a
        v /= torch.linalg.vector_norm(v, dim=1, keepdim=True) + TINY
        v = v @ a
    return scale * torch.linalg.vector_norm(v, dim=1).amax()
