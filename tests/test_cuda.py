"""Captured steps: on a pretended device everywhere, on a real one where there is one."""

import functools
import math
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES
from graphs import NoHostReads, pretend
from helpers import as_reals, assert_fused_equals_eager, like, rough_gradients, wide_params, widened
from torch import nn

import optimfn as of

COSINE = torch.optim.lr_scheduler.CosineAnnealingLR
HOST = {"minimize_by_lbfgs": "decides in Python", "minimize_by_lbfgs_with_line_search": "decides in Python"}
every_rule = pytest.mark.parametrize("case", [c for c in CASES if c.name not in HOST], ids=lambda c: c.name)


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setenv("OPTIMFN_BACKEND", "eager")  # kernels for the CPU cannot be recorded by a mode
    return pretend(monkeypatch)


def parameters(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 2), ()]
    return [nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes]


def gradients(params, step):
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in params]


def run(optimizer, params, steps, take, first=0, scheduler=None):
    for step in range(first, first + steps):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        take()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in params]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def optimizer_of(case, params):
    names = [(name, p) for name, p in zip("abcd", params, strict=True)]
    return of.Optimizer(names, case.plain())


@pytest.fixture(autouse=True)
def _device_is_well(request):
    """A device that has faulted fails every later test of its process: end it, and xdist starts another."""
    yield
    if torch.cuda.is_available() and "cuda" not in request.fixturenames:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(request.node.name, error, file=sys.__stderr__, flush=True)
            os._exit(1)


def lying_on(device, x):
    """An extra argument, its tensors on a device."""
    if isinstance(x, dict):
        return {key: lying_on(device, value) for key, value in x.items()}
    return x if callable(x) else torch.as_tensor(x, device=device)


def follow_captured(case, device, steps):
    """Parameters and state after eager steps, and after captured ones, with a cosine scheduler where there is one."""
    ends = []
    for captured in (False, True):
        params = parameters(device)
        optimizer = optimizer_of(case, params)
        scheduled = isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        scheduler = None if scheduled else COSINE(optimizer, steps)
        extra = {key: lying_on(device, x) for key, x in case.extra.items()}
        take = functools.partial(optimizer.step, **extra)
        take = of.cuda.capture(take) if captured else take
        end = run(optimizer, params, steps, take, scheduler=scheduler)
        ends.append([*end, *of.tree.leaves(optimizer.state_dict()["state"])])
    return ends


@every_rule
def test_every_rule_captures_on_the_pretended_device(case, cuda):
    eager, captured = follow_captured(case, "cpu", steps=12)
    assert all(torch.allclose(a, b, equal_nan=True, rtol=0, atol=0) for a, b in zip(eager, captured, strict=True))
    assert len(cuda.graphs) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_rule
def test_a_hundred_replays_equal_a_hundred_steps(case):
    eager, captured = follow_captured(case, "cuda", steps=100)
    assert all(torch.allclose(a, b, equal_nan=True, rtol=0, atol=0) for a, b in zip(eager, captured, strict=True))


@every_rule
def test_a_step_reads_nothing_and_stays_where_it_is(case):
    """What a capture needs, without pretending: no host read, the same addresses, no memory kept after warm-up."""
    params = parameters()
    optimizer = optimizer_of(case, params)
    run(optimizer, params, 1, functools.partial(optimizer.step, **case.extra))
    before = optimizer.addresses()
    entries = {id(x) for entries in optimizer.state.values() for x in entries.values()}

    def take():
        with NoHostReads():
            optimizer.step(**case.extra)

    run(optimizer, params, 3, take, first=1)
    assert optimizer.addresses() == before
    assert {id(x) for entries in optimizer.state.values() for x in entries.values()} == entries


def adamw(params, **options):
    return of.Optimizer(params, of.adamw, learning_rate=0.1, weight_decay=0.1, **options)


class TestPitfalls:
    """The thirteen ways in which a captured optimizer goes wrong, in the order of the list."""

    def test_1_a_step_is_needed_before_capture(self, cuda):
        params = parameters()
        optimizer = adamw(params)
        run(optimizer, params, 0, None)
        for p, g in zip(params, gradients(params, 0), strict=True):
            p.grad = g
        with (
            pytest.raises(RuntimeError, match="take a step before capturing one"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            optimizer.step()
        with pytest.raises(ValueError, match="warmup must be >= 1, got 0"):
            of.cuda.capture(optimizer.step, warmup=0)

    def test_2_other_threads_may_use_cuda(self, cuda):
        params = parameters()
        optimizer = adamw(params)
        run(optimizer, params, 4, of.cuda.capture(optimizer.step))
        assert cuda.modes == ["thread_local"]
        assert cuda.streams == 3  # the warm-up has a stream of its own
        assert cuda.waits == 6  # and both streams wait for each other

    @pytest.mark.parametrize("warmup", [1, 3])
    def test_3_no_step_is_lost_or_added(self, cuda, warmup):
        params, twins = parameters(), parameters()
        optimizer, reference = adamw(params), adamw(twins)
        step = of.cuda.capture(optimizer.step, warmup=warmup)
        for first in range(8):
            assert equal(run(optimizer, params, 1, step, first), run(reference, twins, 1, reference.step, first))
            assert optimizer.state[params[0]]["scale_by_adam.count"].item() == first + 1

    def test_3_a_failed_capture_publishes_no_graph(self, cuda):
        params, fail = parameters(), []
        optimizer = adamw(params)

        def train_step():
            optimizer.step()
            if fail:
                params[0].sum().item()

        step = of.cuda.capture(train_step, warmup=1)
        run(optimizer, params, 1, step)
        before = [p.detach().clone() for p in params]
        fail.append(1)
        with pytest.raises(RuntimeError, match=r"'train_step' cannot be captured: .* reads a tensor on the host"):
            run(optimizer, params, 1, step, 1)
        assert equal(params, before)
        assert optimizer.state[params[0]]["scale_by_adam.count"].item() == 1
        fail.clear()
        twins = parameters()
        reference = adamw(twins)
        assert equal(run(optimizer, params, 3, step, 1), run(reference, twins, 4, reference.step))

    def test_4_gradients_in_new_memory_reach_the_graph(self, cuda):
        params, twins = parameters(), parameters()
        optimizer, reference = adamw(params), adamw(twins)
        step = of.cuda.capture(optimizer.step, warmup=1)

        def take():
            step()
            optimizer.zero_grad()  # to None, the default

        assert equal(run(optimizer, params, 6, take), run(reference, twins, 6, reference.step))

    def test_5_a_parameter_without_gradient_is_refused(self, cuda):
        params = parameters()
        optimizer = of.Optimizer(zip("abcd", params, strict=True), of.adam(0.1))
        step = of.cuda.capture(optimizer.step, warmup=1)
        run(optimizer, params, 1, step)
        params[1].grad = None
        with pytest.raises(RuntimeError, match="no gradient for b while the step is captured: it would never move"):
            step()
        params[1].requires_grad_(False)  # a frozen one is meant to stay
        kept = params[1].detach().clone()
        step()
        assert torch.equal(params[1], kept)
        params[0].grad = None
        with pytest.raises(
            RuntimeError, match="a parameter has no gradient; the graph would take its step with the last"
        ):
            step()

    @pytest.mark.parametrize("tensor", [False, True])
    def test_6_the_learning_rate_is_live(self, cuda, tensor):
        ends = []
        for captured in (True, False):
            params = parameters()
            rate = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
            optimizer = of.Optimizer(params, of.adamw, learning_rate=rate)
            scheduler = COSINE(optimizer, 10)
            step = of.cuda.capture(optimizer.step, warmup=1) if captured else optimizer.step
            run(optimizer, params, 5, step, scheduler=scheduler)
            optimizer.param_groups[0]["lr"] = 0.05
            ends.append(run(optimizer, params, 3, step, 5))
        assert equal(*ends)
        assert len(cuda.graphs) == 1

    def test_7_so_is_every_other_hyperparameter(self, cuda):
        ends = []
        for captured in (True, False):
            params = parameters()
            optimizer = adamw([{"params": params[:2], "weight_decay": 0.5}, {"params": params[2:]}])
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)  # cycles betas
            step = of.cuda.capture(optimizer.step, warmup=1) if captured else optimizer.step
            run(optimizer, params, 5, step, scheduler=scheduler)
            optimizer.param_groups[0]["weight_decay"] = 0.2
            optimizer.param_groups[1]["eps"] = optimizer.param_groups[0]["eps"] = 1e-3
            ends.append(run(optimizer, params, 3, step, 5, scheduler))
        assert equal(*ends)
        assert len(cuda.graphs) == 1

    def test_8_counts_are_counted_by_the_graph(self, cuda):
        params = parameters()
        optimizer = of.Optimizer(params, of.adamw(of.linear_schedule(0.1, 0.0, 10)))
        run(optimizer, params, 7, of.cuda.capture(optimizer.step, warmup=2))
        assert optimizer.state[params[0]]["scale_by_adam.count"].item() == 7
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.04)  # a schedule shows the last value

    def test_9_memory_is_given_back(self, cuda):
        params, twins = parameters(), parameters()
        optimizer, reference = adamw(params), adamw(twins)
        step = of.cuda.capture(optimizer.step, warmup=1)
        run(optimizer, params, 3, step)
        step.release()
        assert [graph.released for graph in cuda.graphs] == [True]
        assert equal(run(optimizer, params, 3, step, 3), run(reference, twins, 6, reference.step))
        assert len(cuda.graphs) == 2
        step.release()
        step.release()  # there is nothing left to give back

    def test_9_a_new_group_is_captured_too(self, cuda):
        ends = []
        for captured in (True, False):
            params = parameters()
            optimizer = adamw(params[:2])
            step = of.cuda.capture(optimizer.step, warmup=1) if captured else optimizer.step
            run(optimizer, params, 3, step)
            optimizer.add_param_group({"params": params[2:]})
            ends.append(run(optimizer, params, 4, step, 3))
        assert equal(*ends)
        assert [graph.released for graph in cuda.graphs] == [True, False]

    def test_10_loading_writes_into_the_captured_buffers(self, cuda):
        params = parameters()
        optimizer = adamw(params)
        run(optimizer, params, 5, optimizer.step)
        saved, at = optimizer.state_dict(), [p.detach().clone() for p in params]
        optimizer.param_groups[0]["lr"] = 0.2
        step = of.cuda.capture(optimizer.step, warmup=1)
        run(optimizer, params, 3, step, 50)
        where = optimizer.addresses()
        optimizer.load_state_dict(state_dict=saved)  # by keyword, as torch.distributed.checkpoint does
        assert optimizer.addresses() == where
        with torch.no_grad():
            for p, value in zip(params, at, strict=True):
                p.copy_(value)
        twins = parameters()
        reference = adamw(twins)
        assert equal(run(optimizer, params, 3, step, 5), run(reference, twins, 8, reference.step))
        assert len(cuda.graphs) == 1

    def test_11_it_is_an_optimizer_with_hooks(self, cuda):
        params, seen = parameters(), []
        optimizer = adamw(params)
        optimizer.register_step_post_hook(lambda *_: seen.append(1))
        run(optimizer, params, 4, of.cuda.capture(optimizer.step, warmup=2))
        assert len(seen) == 3  # Python runs in the warm-up and in the capture, and not in a replay

    def test_12_a_closure_runs_inside(self, cuda):
        net = nn.Linear(3, 2)
        optimizer = of.Optimizer(net, of.adam(0.1))

        def train_step(x):
            def closure():
                optimizer.zero_grad()
                loss = net(x).square().mean()
                loss.backward()
                return loss

            return optimizer.step(closure)

        check_training(train_step, net, optimizer)

    def test_13_whole_training_steps_equal_eager_ones_bit_for_bit(self, cuda):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        optimizer = of.Optimizer(net, of.chain(of.clip_by_global_norm(0.1), of.adamw(0.1)))

        def train_step(x):
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            return loss

        check_training(train_step, net, optimizer)


def check_training(train_step, net, optimizer):
    start = [p.detach().clone() for p in net.parameters()]
    xs = [torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    wanted = [train_step(x).item() for x in xs]
    with torch.no_grad():
        for p, value in zip(net.parameters(), start, strict=True):
            p.copy_(value)
            p.grad = None
    optimizer.state.clear()
    step = of.cuda.capture(train_step, xs[0], warmup=2)
    scheduler = COSINE(optimizer, math.inf)
    losses = []
    for x in xs:
        losses.append(step(x).item())
        scheduler.step()
    assert losses == wanted


def test_a_graph_captured_by_hand_reads_tensors_and_what_is_written(cuda):
    params, twins = parameters(), parameters()
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = of.Optimizer(params, of.adamw, learning_rate=rate, weight_decay=0.1)
    reference = adamw(twins)
    run(optimizer, params, 2, optimizer.step)
    static = gradients(params, 2)
    for p, g in zip(params, static, strict=True):
        p.grad = g
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    run(reference, twins, 2, reference.step)
    for step, (lr, decay) in enumerate([(0.1, 0.1), (0.05, 0.1), (0.05, 0.3)], start=2):
        rate.fill_(lr)  # a tensor is read by the graph
        optimizer.param_groups[0]["weight_decay"] = decay  # a number has to be written
        optimizer.write_hyperparameters()
        reference.param_groups[0].update(lr=lr, weight_decay=decay)
        for g, new in zip(static, gradients(params, step), strict=True):
            g.copy_(new)
        graph.replay()
        assert equal(params, run(reference, twins, 1, reference.step, step))


DROP_INS = {
    "SGD": {"momentum": 0.9},
    "Adam": {"capturable": True, "amsgrad": True},
    "AdamW": {"capturable": True},
    "Adamax": {"capturable": True},
    "NAdam": {"capturable": True},
    "RAdam": {"capturable": True},
    "RMSprop": {"capturable": True, "momentum": 0.5, "centered": True},
    "Rprop": {"capturable": True},
    "ASGD": {"capturable": True},
    "Adadelta": {"capturable": True},
    "Muon": {},
}


@pytest.mark.parametrize("name", DROP_INS)
def test_drop_in_classes_capture_too(cuda, name):
    ends = []
    for captured in (False, True):
        params = [p for p in parameters() if name != "Muon" or p.ndim == 2]
        optimizer = getattr(of.optim, name)(params, lr=0.1, **DROP_INS[name])
        scheduler = COSINE(optimizer, 10)
        step = of.cuda.capture(optimizer.step, warmup=2) if captured else optimizer.step
        run(optimizer, params, 6, step, scheduler=scheduler)
        key = "weight_decay" if "weight_decay" in optimizer.param_groups[0] else "lr"
        was = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = 0.2  # of a rule without decay this makes another, which is captured anew
        end = run(optimizer, params, 4, step, 6, scheduler)
        ends.append([*end, *of.tree.leaves(optimizer.state_dict()["state"])])
    assert equal(*ends)
    assert len(cuda.graphs) == (1 if was else 2)


def test_a_drop_in_class_that_counts_on_the_host_is_refused(cuda):
    params = parameters()
    optimizer = of.optim.AdamW(params)
    step = of.cuda.capture(optimizer.step, warmup=1)
    run(optimizer, params, 1, step)
    with pytest.raises(RuntimeError, match="for an instance of AdamW but param_groups' capturable is False"):
        run(optimizer, params, 1, step, 1)


def test_inputs_must_be_like_the_examples(cuda):
    step = of.cuda.capture(lambda x, n: x * n, torch.ones(2), 3)
    assert torch.equal(step(torch.ones(2), 3), torch.full((2,), 3.0))
    with pytest.raises(ValueError, match=r"input 0 is torch.float32 \(3,\), the example torch.float32 \(2,\)"):
        step(torch.ones(3), 3)
    with pytest.raises(ValueError, match="input 1 is 4; 3 was captured, and only tensors may change"):
        step(torch.ones(2), 4)
    with pytest.raises(ValueError, match="the inputs are "):
        step(torch.ones(2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_capture_says_so():
    with pytest.raises(RuntimeError, match="capture needs a CUDA device"):
        of.cuda.capture(lambda: None)
    with pytest.raises(TypeError, match="fn must be callable, got 3"):
        of.cuda.capture(3)


@every_rule
def test_every_rule_makes_its_step_on_the_meta_device(case):
    params = [nn.Parameter(p.to("meta")) for p in parameters()]
    optimizer = optimizer_of(case, params)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step(**case.extra)
    optimizer.step(**case.extra)


def assert_as_close_as(eager, got, accurate):
    """Within twice the error of the eager step.

    On a CUDA device torch rounds 0-dim tensors to the dtype of the leaf that they meet, and joins products and sums;
    kernels do neither, so steps in half precision cannot be compared bit for bit as on the CPU.
    """
    for (path, x), y, z in zip(of.tree.leaves_with_path(got), *map(of.tree.leaves, (eager, accurate)), strict=True):
        if x.is_floating_point() or x.is_complex():
            own, allowed = (as_reals(value) - as_reals(z) for value in (x, y))
            assert own.numel() == 0 or own.abs().nan_to_num().max() <= 2 * allowed.abs().nan_to_num().max(), path
            assert torch.equal(x.isnan(), y.isnan()), path
        else:
            assert torch.equal(x, y), path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestKernels:
    """What the interpreter cannot show: kernels on a device, and how they get there."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("case", [c for c in CASES if "fused" not in c.skips], ids=lambda c: c.name)
    def test_every_rule_runs_fused(self, case, dtype):
        tx = case.tx(**case.tensors())
        fused, eager = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager")
        params = of.tree.map(lambda x: x.cuda(), wide_params(dtype))
        state = tx.init(params)
        for grads in rough_gradients(params, 4):
            got = fused(params, state, grads)
            if dtype == torch.bfloat16:
                want = eager(params, state, grads)
                assert_as_close_as(want, got, eager(*map(widened, (params, state, grads))))
            else:
                want = assert_fused_equals_eager(fused, got, eager, params, state, grads)
            params, state = want

    def test_leaves_of_many_chunks_with_gradients_in_new_memory_each_time(self):
        tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1), of.params_ema(0.9))
        params = {"a": torch.randn(1_000_003, device="cuda"), "b": torch.randn(7, device="cuda")[1:]}
        fused, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
        state = tx.init(params)
        kept = []
        for _ in range(5):
            grads = like(params)
            kept.append(grads)
            want = eager(params, state, grads)
            params, state = fused(params, state, grads)
            for x, y in zip(of.tree.leaves((params, state)), of.tree.leaves(want), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("make", [of.adamw, of.lamb, of.lion, of.adafactor], ids=lambda make: make.__name__)
    def test_gradients_come_and_go(self, make):
        tx = of.chain(of.clip_by_global_norm(1.0), make(0.1))
        params = {f"{name}{k}": p.cuda() for k in range(2) for name, p in wide_params().items()}
        step, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
        own = of.tree.map(torch.clone, (params, tx.init(params)))
        for there in (0b111111, 0b101101, 0b011010, 0b000001, 0b110100, 0, 0b010110, 0b101101, 0b111111):
            grads = {name: g if there >> i & 1 else None for i, (name, g) in enumerate(like(params).items())}
            want = eager(*own, grads)
            step(*own, grads)
            for x, y in zip(of.tree.leaves(own), of.tree.leaves(want), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
    def test_nothing_waits_for_the_device(self):
        params = parameters("cuda")
        optimizer = of.Optimizer(params, of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1)), fused=True)
        run(optimizer, params, 2, optimizer.step)
        for p in params:
            p.grad = torch.randn_like(p)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_streams_take_turns(self):
        tx, params = of.adamw(0.1), {"a": torch.randn(3_000_000, device="cuda")}
        step, state = of.make_step(tx, donate=True, backend="fused"), tx.init(params)
        want, other = of.tree.map(torch.clone, params), torch.cuda.Stream()
        want_state, eager = tx.init(want), of.make_step(tx, backend="eager")
        grads = like(params)
        for k in range(6):
            with torch.cuda.stream(other if k % 2 else torch.cuda.default_stream()):
                step(params, state, grads)
        torch.cuda.synchronize()
        for _ in range(6):
            want, want_state = eager(want, want_state, grads)
        torch.testing.assert_close(params, want, rtol=1e-5, atol=1e-6)

    def test_several_graphs_of_one_step_each_keep_their_addresses(self):
        tx, params = of.adamw(0.1), {"a": torch.ones(1000, device="cuda")}
        step, state = of.make_step(tx, donate=True, backend="fused"), tx.init(params)
        grads = [{"a": torch.full((1000,), float(k), device="cuda")} for k in range(1, 20)]
        step(params, state, grads[0])
        graphs = []
        for g in grads[1:]:  # more than there are spare tables: the last are captured as eager steps
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                step(params, state, g)
        want, want_state = {"a": torch.ones(1000, device="cuda")}, tx.init(params)
        eager = of.make_step(tx, backend="eager")
        for g in grads:
            want, want_state = eager(want, want_state, g)
        for graph in graphs:
            graph.replay()
        torch.testing.assert_close((params, state), (want, want_state), rtol=1e-5, atol=1e-6)


def test_the_benchmark_runs(cuda, monkeypatch):
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    benchmark = runpy.run_path(str(path), run_name="benchmark")
    medians = benchmark["main"](["--device", "cpu", "--workload", "gpt", "--rounds", "2", "--repeats", "1"])
    assert all(0 < host <= total for host, total in medians.values())
    for step in benchmark["of_matrices"]([(16, 16)] * 3, "cpu").values():
        step()
