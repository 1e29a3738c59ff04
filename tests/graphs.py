"""CUDA graphs without CUDA: the same API, on the CPU, for what can go wrong in a capture.

As on a device, capturing executes nothing: what was written is put back, and what was computed is made NaN. A
replay runs the recorded operators on the recorded tensors, so a Python number is what it was, a tensor that gave way
to another is still the old one, and reading a tensor on the host is an error. Versions do not change in a replay.
"""

import contextlib
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
)


class NoHostReads(TorchDispatchMode):
    """Refuse whatever waits for a device; some tensors, by their `id`, may be known to lie on the host."""

    def __init__(self, hosts=()):
        super().__init__()
        self.hosts = hosts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in HOST_READS and id(args[0]) not in self.hosts:
            raise RuntimeError(f"{func} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


class Recorder(NoHostReads):
    """Record operators, and what was there before they wrote."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        written = [
            args[i] if i < len(args) else kwargs[a.name]
            for i, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        for x in written:
            for tensor in x if isinstance(x, list | tuple) else [x]:
                self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        fresh = all(r.alias_info is None for r in func._schema.returns) and not written
        out = [x for x in (result if isinstance(result, list | tuple) else [result]) if isinstance(x, torch.Tensor)]
        self.calls.append((func, args, kwargs, out if fresh else []))
        self.made += out if fresh else []
        return result

    def undo(self):
        made = {id(x) for x in self.made}
        old = tuple(tensor for tensor, _ in self.before.values())
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(old):
            for key, (tensor, value) in self.before.items():
                if key not in made:
                    tensor.copy_(value)
            for x in self.made:
                if x.is_floating_point() and not x._is_zerotensor():  # which derivatives make: they have no memory
                    x.fill_(float("nan"))


class Graph:
    """A stand-in for `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.calls, self.written, self.released = None, (), False

    def replay(self):
        assert not self.released
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(self.written):
            for func, args, kwargs, out in self.calls:
                result = func(*args, **kwargs)
                for old, new in zip(out, result if isinstance(result, list | tuple) else [result], strict=False):
                    if not old._is_zerotensor():
                        old.copy_(new)

    def reset(self):
        self.released = True


def pretend(monkeypatch):
    """Replace what is needed of `torch.cuda`; returns a record of what was asked for."""
    seen = SimpleNamespace(capturing=False, modes=[], graphs=[], streams=0, waits=0)

    class Stream:
        def wait_stream(self, other):
            seen.waits += 1

    @contextlib.contextmanager
    def stream(which):
        seen.streams += 1
        yield

    @contextlib.contextmanager
    def graph(target, stream=None, capture_error_mode="global"):
        seen.modes.append(capture_error_mode)
        seen.graphs.append(target)
        recorder, seen.capturing = Recorder(), True
        try:
            with recorder:
                yield
        finally:
            seen.capturing = False
            recorder.undo()
        target.calls, target.written = recorder.calls, tuple(tensor for tensor, _ in recorder.before.values())

    for name, value in {
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: seen.capturing,
        "Stream": Stream,
        "stream": stream,
        "graph": graph,
        "CUDAGraph": Graph,
        "current_stream": Stream,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("optimfn.optim._contract._is_on_device", lambda p: True)
    return seen
