"""DASO as heat.optim has it, for all ranks in one process: the numbered rules and names are those of its step."""

from collections import deque

import torch


class Rank:
    def __init__(self, params):
        self.x = [p.clone() for p in params]
        self.momentum = None
        self.queue = deque()


class Cluster:
    """`nodes` x `local` ranks with one schedule, which they all follow."""

    def __init__(self, params, nodes, local, total_epochs, warmup, cooldown, batches, downcast, max_gs=8, red=2, lsf=4):
        self.ranks = {(n, loc): Rank(params) for n in range(nodes) for loc in range(local)}
        self.N, self.L, self.B = nodes, local, batches - 1
        self.total, self.warmup, self.cooldown = total_epochs, warmup, cooldown
        self.downcast, self.max_gs, self.red, self.lsf = downcast, max_gs, red, lsf
        self.epoch = self.b = self.gs = self.ls = self.btw = self.send_mod = 0
        self.prev, self.sync_local = None, True
        self.best, self.bad = float("inf"), 0

    def schedule(self):
        return self.epoch, self.b, self.gs, self.ls, self.btw, self.send_mod, int(self.sync_local)

    def batch(self, gradient, rate, momentum):
        grads = {key: gradient(key, rank.x) for key, rank in self.ranks.items()}
        if self.sync_local:
            for n in range(self.N):
                mean = [sum(parts) / self.L for parts in zip(*(grads[n, loc] for loc in range(self.L)), strict=True)]
                grads.update({(n, loc): mean for loc in range(self.L)})
        for key, rank in self.ranks.items():
            g = grads[key]
            rank.momentum = (
                g if rank.momentum is None else [momentum * m + d for m, d in zip(rank.momentum, g, strict=True)]
            )
            rank.x = [x - rate * m for x, m in zip(rank.x, rank.momentum, strict=True)]
        self.after()

    def after(self):
        b, B = self.b, self.B
        gmod = b % self.gs if self.gs > 0 else 0
        lmod = b % self.ls if self.ls > 0 else 0
        w = self.btw if self.btw + b <= B else B - b
        if b == B or gmod == 0:
            self.global_sync(w)
        elif (b + 1) % self.gs == 0:
            self.sync_local = True
            self.b += 1
        elif gmod < w:
            self.b += 1
            if self.b == B:
                self.sync_local = True
        else:
            if gmod == w:
                self.merge()
                self.broadcast(self.prev)
                if self.ls > 1:
                    self.sync_local = False
            if self.ls == 1 and b + 1 != B:
                self.b += 1
                self.sync_local = True
                return
            if lmod == 0:
                self.sync_local = False
            elif (b + 1) % self.ls == 0:
                self.sync_local = True
            if b + 1 == B:
                self.sync_local = True
            self.b += 1

    def global_sync(self, w):
        dtype = self.downcast if self.gs < 1 else torch.float32
        senders = [self.ranks[n, self.send_mod] for n in range(self.N)]
        total = [
            sum(parts).to(torch.float32) for parts in zip(*([x.to(dtype) for x in r.x] for r in senders), strict=True)
        ]
        for rank in senders:
            rank.queue.append((total, w))
        if self.btw != 0:
            self.merge()
            self.broadcast(self.prev)
        if self.b == self.B or self.btw == 0:
            for rank in senders:
                assert len(rank.queue) == 1
                rank.x = [s / self.N for s in rank.queue.pop()[0]]
            self.broadcast(self.send_mod)
            self.prev = None
            if self.b == self.B:
                self.send_mod, self.b = 0, 0
                self.epoch += 1
            else:
                self.b += 1
                self.send_mod = (self.send_mod + 1) % self.L
        else:
            self.b += 1
            self.prev = self.send_mod
            self.send_mod = (self.send_mod + 1) % self.L

    def merge(self):
        for n in range(self.N):
            rank = self.ranks[n, self.prev] if self.prev is not None else None
            if rank is None or not rank.queue:
                continue
            total, waited = rank.queue.popleft()
            weight = 2 * waited if waited > 0 else 1
            parts = zip(rank.x, total, strict=True)
            rank.x = [x * (weight / (self.N + weight)) + s / (self.N + weight) for x, s in parts]

    def broadcast(self, source):
        for n in range(self.N):
            for loc in range(self.L):
                if source is not None:
                    self.ranks[n, loc].x = [x.clone() for x in self.ranks[n, source].x]

    def end_epoch(self, loss, stability):
        if self.epoch < self.warmup:
            self.gs = self.ls = self.btw = 0
            return
        if self.epoch == self.warmup:
            self.gs, self.ls, self.btw = 4, 1, 1
        if self.epoch >= self.total - self.cooldown:
            self.gs = self.ls = self.btw = 0
            return
        if loss < self.best * (1 - stability):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        stable = self.bad > 2
        self.bad = 0 if stable else self.bad
        if stable and self.gs > 1:
            self.gs //= self.red
            self.ls //= self.red
            self.btw -= 1
            if self.gs > 0:
                self.btw, self.ls = self.btw or 1, self.ls or 1
        elif stable and self.gs == 1:
            self.gs = self.max_gs
            self.ls = self.btw = self.max_gs // self.lsf
