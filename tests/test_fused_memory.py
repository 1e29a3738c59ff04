"""Where kernels find what they read: on the device of the step, alive, and as it was when they were launched."""

import contextlib

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, like, wide_params

import optimfn as of
from optimfn.fused.run import _cuda, _program


def product(g):
    return g @ g.T


REDUCTIONS = {
    "sum": lambda g: torch.sum(product(g)),
    "max": lambda g: torch.amax(product(g)),
    "norm": lambda g: torch.linalg.vector_norm(product(g)),
    "sums of rows": lambda g: torch.sum(product(g), 1, keepdim=True),
    "means of rows": lambda g: torch.mean(product(g), 1, keepdim=True),
    "greatest of columns": lambda g: torch.amax(product(g), 0)[:, None],
    "a stack": lambda g: torch.stack([torch.trace(product(g)), torch.sum(product(g))]).sum(),
    "one of several": lambda g: torch.linalg.svd(g, full_matrices=False)[1].sum(),
    "a view": lambda g: product(g).T.sum(),
    "spread": lambda g: product(g)[:, :1].expand(6, 4),
    "spread sums": lambda g: product(g).sum(1, keepdim=True) * torch.ones_like(g),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_aten_has_computed_is_reduced_where_it_lies(name):
    tx = of.stateless(lambda updates, params: of.tree.map(lambda g: g * REDUCTIONS[name](g), updates))
    params = torch.ones(6, 4, dtype=torch.float64)
    for _ in range(3):
        grads = torch.randn(6, 4, dtype=torch.float64)
        got, want = (of.make_step(tx, backend=b)(params, tx.init(params), grads) for b in ("fused", "eager"))
        assert_trees_equal(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if "fused" not in c.skips], ids=lambda c: c.name)
def test_a_step_makes_nothing_on_the_default_device(case):
    """On a CUDA device that is the CPU, of whose memory kernels know nothing; here it is one without memory."""
    tx, params = case.tx(**case.tensors()), {"wide": wide_params(), "tall": torch.randn(6, 4)}
    step, state, grads = of.make_step(tx, backend="fused"), tx.init(params), like(params)
    torch.manual_seed(1)
    want = step(params, state, grads)
    torch.manual_seed(1)
    with torch.device("meta"):
        got = step(params, state, grads)
    assert_trees_equal(got, want)


class Late:
    """A device that comes to copies and launches long after the host has asked for them; kernels compute nothing."""

    def __init__(self):
        self.queue, self.graph, self.machine, self.stale = [], None, None, 0

    def ask(self, work):
        (self.queue if self.graph is None else self.graph).append(work)

    def launch(self, addresses, *arguments, **options):
        wanted = list(self.machine.buffers)

        def work():
            self.stale += addresses[: len(wanted)].tolist() != wanted

        self.ask(work)

    def synchronize(self):
        for work in self.queue:
            work()
        self.queue.clear()

    @contextlib.contextmanager
    def capture(self):
        self.graph = graph = []
        yield graph
        self.graph = None


class Kernels(dict):
    """Stands for a module of kernels under any name, each of which is launched by `kernel[grid](...)`."""

    def __init__(self, device):
        super().__init__(__file__="")
        self.device = device

    def __missing__(self, key):
        return self

    def __getitem__(self, key):
        return self.device.launch if isinstance(key, tuple) else super().__getitem__(key)


@pytest.fixture
def device(monkeypatch):
    late, copy, stream = Late(), torch.Tensor.copy_, object()

    def copy_late(target, source, non_blocking=False):
        if not non_blocking:
            return copy(target, source)
        late.ask(lambda: copy(target, source))
        return target

    class Pretended(_cuda.Cuda):
        def __init__(self, code):
            super().__init__(code)
            self._is_gpu, late.machine = True, self

    monkeypatch.setitem(_program.MACHINES, "cpu", Pretended)
    monkeypatch.setattr(_cuda._modules, "load", lambda source: Kernels(late))
    monkeypatch.setattr(_cuda, "_pinned", lambda *shape: torch.empty(shape, dtype=torch.int64))
    monkeypatch.setattr(torch.Tensor, "copy_", copy_late)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: late.graph is not None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return late


RULES = {
    "adamw": of.adamw(0.1),
    "clipped": of.chain(of.clip_by_global_norm(1.0), of.adam(0.1)),
    "muon": of.torch_muon(0.1),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_launch_reads_the_addresses_it_was_launched_with(rule, device):
    """The tables may be read late, by steps as by replays, in any order."""
    tx, params = RULES[rule], {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    step, state = of.make_step(tx, donate=True, backend="fused"), tx.init(params)
    kept = [like(params) for _ in range(4)]
    for grads in kept:
        step(params, state, grads)
    with device.capture() as first:
        step(params, state, kept[3])  # where the last step found them too
    step(params, state, kept[0])
    with device.capture() as second:
        step(params, state, kept[1])
    assert any(work for work in first)
    for graph in (first, second, first):
        device.queue += graph
        step(params, state, kept[2])
        step(params, state, kept[3])
    device.synchronize()
    assert device.stale == 0


def test_more_graphs_than_there_are_tables_for_hold_the_rule_itself(device):
    tx, params = of.adamw(0.1), {"a": torch.randn(6, 4)}
    step, state, grads = of.make_step(tx, donate=True, backend="fused"), tx.init(params), like(params)
    step(params, state, grads)
    before = params["a"].clone()
    for _ in range(_cuda._GRAPHS):
        with device.capture():
            step(params, state, grads)
        assert torch.equal(params["a"], before)
    with device.capture() as graph:
        step(params, state, grads)
    assert graph == []
    assert not torch.equal(params["a"], before)


def test_a_product_waits_with_the_memory_of_what_is_still_to_be_read():
    """What comes first in the graph may be computed later: it waits for sums that others need not wait for."""

    def rule(updates, params):
        g = updates["w"]
        doubled = g * 2 + 1  # in memory, for products alone
        deep = g / (1 + (g / (1 + (g @ g).sum())).abs().sum())
        late = deep @ doubled
        early = doubled @ params["w"]
        return {"w": late.exp() + early * early}

    tx = of.stateless(rule)
    torch.manual_seed(0)
    params, grads = {"w": torch.randn(8, 8, dtype=torch.float64)}, {"w": 0.1 * torch.randn(8, 8, dtype=torch.float64)}
    expected, _ = of.make_step(tx, backend="eager")(params, tx.init(params), grads)
    for _ in range(3):
        found, _ = of.make_step(tx, backend="fused")(params, tx.init(params), grads)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
