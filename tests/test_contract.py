"""What torch.optim.Optimizer promises: hooks, closures, copies, subclasses, compilation, gradients of the step."""

import contextvars
import copy
import pickle
import threading
import weakref

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import optimfn as of
from optimfn.optim._contract import is_watched, report_step, watch_steps


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def loss_of(net, seed=0):
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (net(x) ** 2).mean()


def train(net, optimizer, steps, first=0):
    for step in range(first, first + steps):
        net.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def close(a, b, tolerance=1e-12):
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


class Logged(of.Optimizer):
    """A subclass that does something around the step."""

    def step(self, closure=None):
        """Step, and count."""
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure)


class Twice(Logged):
    """A subclass of a subclass."""

    def step(self, closure=None):
        """Step, by way of two others."""
        return super().step(closure)


class TestHooks:
    @pytest.mark.parametrize("kind", [of.Optimizer, Logged, Twice])
    def test_every_hook_runs_once_and_in_the_order_of_torch(self, kind):
        seen = []
        for make in (lambda net: torch.optim.SGD(net.parameters(), 0.1), lambda net: kind(net, of.sgd(0.1))):
            net, order = model(), []
            of.Optimizer(net, of.sgd(0.1))  # an instance of the class above, whose step torch has then wrapped too
            Logged(net, of.sgd(0.1))
            optimizer = make(net)
            handles = [
                register_optimizer_step_pre_hook(lambda *_, order=order: order.append("all before")),
                register_optimizer_step_post_hook(lambda *_, order=order: order.append("all after")),
                optimizer.register_step_pre_hook(lambda *_, order=order: order.append("before")),
                optimizer.register_step_post_hook(lambda *_, order=order: order.append("after")),
            ]
            try:
                train(net, optimizer, 2)
            finally:
                for handle in handles:
                    handle.remove()
            seen.append(order)
        assert seen[0] == seen[1] == 2 * ["all before", "before", "after", "all after"]

    @pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.10, once a process
    @pytest.mark.parametrize(
        "make", [lambda net: of.Optimizer(net, of.sgd(0.1)), lambda net: of.optim.SGD(net.parameters())]
    )
    def test_one_who_comes_late_sees_steps(self, make):
        net, seen = model(), []
        optimizer = make(net)
        train(net, optimizer, 2)  # nobody looks
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            train(net, optimizer, 1, first=2)
        assert f"Optimizer.step#{type(optimizer).__name__}.step" in {event.name for event in profile.events()}
        handle = register_optimizer_step_post_hook(lambda *_: seen.append("all"))
        optimizer.register_step_post_hook(lambda *_: seen.append("own"))
        train(net, optimizer, 1, first=3)
        handle.remove()
        train(net, optimizer, 1, first=4)
        assert seen == ["own", "all", "own"]

    def test_a_pre_hook_may_change_the_arguments(self):
        optimizer = of.Optimizer(model(), of.sgd(0.1))
        optimizer.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: 7.0), kwargs))
        assert optimizer.step() == 7.0

    def test_an_exception_in_a_hook_leaves_everything_and_the_next_step_works(self):
        net, twin, fail = model(), model(), [True]
        optimizer, reference = of.Optimizer(net, of.adam(0.1)), torch.optim.Adam(twin.parameters(), 0.1)
        train(net, optimizer, 1)
        train(twin, reference, 1)

        def hook(*_):
            if fail:
                raise RuntimeError("hook")

        optimizer.register_step_pre_hook(hook)
        before, state = [p.detach().clone() for p in net.parameters()], optimizer.state_dict()["state"]
        with pytest.raises(RuntimeError, match="hook"):
            train(net, optimizer, 1, first=1)
        assert close(net.parameters(), before, 0.0)
        for number, entries in optimizer.state_dict()["state"].items():
            assert close(entries.values(), state[number].values(), 0.0)
        fail.clear()
        assert close(train(net, optimizer, 2, first=1), train(twin, reference, 2, first=1))


class TestWatching:
    """Who captures a step asks which optimizers took part."""

    def test_watchers_inside_each_other_each_end_their_own(self):
        with watch_steps() as outer:
            with watch_steps() as inner:
                pass
            report_step("one")
        report_step("two")
        assert (outer, inner) == (["one"], [])

    def test_steps_of_other_threads_and_contexts_are_not_seen(self):
        with watch_steps() as seen:
            for run in (threading_run, lambda f: contextvars.Context().run(f)):
                run(lambda: report_step("elsewhere"))
                run(lambda: seen.append("watched") if is_watched() else None)
            contextvars.copy_context().run(report_step, "here")
        assert seen == ["here"]


def threading_run(f):
    """Call a function in another thread."""
    thread = threading.Thread(target=f)
    thread.start()
    thread.join()


class TestFailures:
    def failing(self, optimizer, net, match, kind):
        before, state = [p.detach().clone() for p in net.parameters()], optimizer.state_dict()["state"]
        with pytest.raises(kind, match=match):
            optimizer.step()
        assert close(net.parameters(), before, 0.0)
        now = optimizer.state_dict()["state"]
        assert now.keys() == state.keys()
        for number, entries in now.items():
            assert close(entries.values(), state[number].values(), 0.0)

    @pytest.mark.parametrize("started", [False, True])
    def test_a_gradient_of_another_shape(self, started):
        net = model()
        optimizer = of.Optimizer(net, of.adam(0.1))
        if started:
            train(net, optimizer, 1)
        net.zero_grad()
        loss_of(net).backward()
        net[2].weight.grad.data = torch.ones(
            3, 5, dtype=torch.float64
        )  # assigning to `grad` itself is checked by torch
        self.failing(
            optimizer, net, r"the gradient of 2\.weight has shape \(3, 5\) and its parameter \(2, 4\)", ValueError
        )

    def test_a_rule_that_breaks_in_the_last_group(self):
        def update(updates, state, params=None, **extra):
            if any(p.numel() == 2 for p in of.tree.leaves(params)):
                raise ZeroDivisionError("broken")
            return updates, state

        rule = of.GradientTransformation(lambda params: of.EmptyState(), update)
        net = model()
        groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.5}]
        optimizer = of.Optimizer(groups, of.chain(of.adam(0.1), rule))
        loss_of(net).backward()
        self.failing(optimizer, net, "broken", ZeroDivisionError)

    def test_gradients_that_are_not_finite(self):
        net = model()
        optimizer = of.Optimizer(net, of.apply_if_finite(of.adamw(0.1), 5))
        train(net, optimizer, 2)
        before, adam = [p.detach().clone() for p in net.parameters()], "apply_if_finite.inner_state.0.count"
        net[0].weight.grad[0, 0] = float("nan")
        optimizer.step()
        assert close(net.parameters(), before, 0.0)
        assert optimizer.state[net[0].weight][adam].item() == 2
        assert optimizer.state[net[0].weight]["apply_if_finite.total_notfinite"].item() == 1

    def test_a_hyperparameter_that_is_no_number(self):
        net = model()
        optimizer = of.Optimizer(net, of.adam(0.1))
        train(net, optimizer, 1)
        optimizer.param_groups[0]["lr"] = "fast"
        self.failing(optimizer, net, "lr of a group must be a number or a 0-dim tensor, got 'fast'", TypeError)
        optimizer.param_groups[0]["lr"] = 0.2
        optimizer.step()


class TestClosures:
    @pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
    def test_rules_that_evaluate_the_loss(self, line_search):
        ours, theirs = model(), model()
        optimizer = of.Optimizer(ours, of.minimize_by_lbfgs(0.5, max_iter=4, line_search=line_search))
        reference = torch.optim.LBFGS(theirs.parameters(), 0.5, max_iter=4, line_search_fn=line_search)
        for net, each in ((ours, optimizer), (theirs, reference)):

            def closure(net=net, each=each):
                each.zero_grad(set_to_none=False)
                loss = loss_of(net)
                loss.backward()
                return loss

            losses = [each.step(closure).item() for _ in range(3)]
            net.losses = losses
        assert close(ours.parameters(), theirs.parameters(), 1e-9)
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-9)

    def test_a_search_that_fails_puts_parameters_and_gradients_back(self):
        net = model()
        optimizer = of.Optimizer(net, of.minimize_by_lbfgs(0.5, max_iter=4))
        calls = []

        def closure():
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("no more data")
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            return loss

        before = [p.detach().clone() for p in net.parameters()]
        with pytest.raises(RuntimeError, match="no more data"):
            optimizer.step(closure)
        assert close(net.parameters(), before, 0.0)
        wanted = torch.autograd.grad(loss_of(net), list(net.parameters()))
        assert close([p.grad for p in net.parameters()], wanted, 0.0)

    def test_the_loss_reaches_plateau(self):
        net = model()
        tx = of.chain(of.sgd(0.1), of.plateau(factor=0.5, patience=0))
        by_closure, by_hand = of.Optimizer(net, tx), of.Optimizer(model(), tx)
        for p in (p for optimizer in (by_closure, by_hand) for p in optimizer.param_groups[0]["params"]):
            p.grad = torch.ones_like(p)
        for _ in range(3):
            by_closure.step(lambda: 1.0)
            by_hand.step(value=1.0)
        for optimizer in (by_closure, by_hand):
            assert optimizer.state[optimizer.param_groups[0]["params"][0]]["plateau.scale"].item() == 0.25
        with pytest.raises(ValueError, match="plateau needs a metric"):
            by_hand.step()


class TestCopies:
    def test_deepcopy_and_pickle_go_on_alike(self):
        net = model()
        optimizer = of.Optimizer(net, of.adamw, learning_rate=0.05, b1=0.8, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        for step in range(3):
            train(net, optimizer, 1, first=step)
            scheduler.step()
        twins = [copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))]
        wanted = train(net, optimizer, 3, first=3)
        for twin, other in twins:
            assert close(train(twin, other, 3, first=3), wanted, 0.0)
            assert repr(other) == repr(optimizer)

    def test_subclasses_are_copied_as_such(self):
        net = model()
        optimizer = Logged(net, of.adam(0.1))
        twin, other = copy.deepcopy((net, optimizer))
        assert type(other) is Logged
        assert close(train(twin, other, 2), train(net, optimizer, 2), 0.0)
        assert other.calls == 2

    def test_it_can_be_referred_to_weakly_and_its_step_replaced(self):
        optimizer = of.Optimizer(model(), of.sgd(0.1))
        assert weakref.ref(optimizer)() is optimizer
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        assert optimizer.step() is None


class TestDifferentiable:
    def test_gradients_flow_to_parameters_hyperparameters_and_state(self):
        def after(p0, rate, decay, steps=3):
            p = p0.clone()
            optimizer = of.Optimizer([p], of.adamw, learning_rate=rate, weight_decay=decay, differentiable=True)
            for step in range(steps):
                p.grad = (p0 * (step + 1)).sin()
                optimizer.step()
            mu = optimizer.state[p]["scale_by_adam.mu"]
            return p.sum() + mu.pow(2).sum()

        p0 = torch.tensor([0.3, -0.8, 1.2], dtype=torch.float64, requires_grad=True)
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        decay = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(after, (p0, rate, decay))

    def test_it_computes_what_the_plain_one_does(self):
        ours, theirs = [[torch.ones(3, dtype=torch.float64).requires_grad_().clone()] for _ in range(2)]
        first = of.Optimizer(ours, of.adamw(0.1), differentiable=True)
        second = of.Optimizer([theirs[0].detach().requires_grad_()], of.adamw(0.1))
        for step in range(3):
            for optimizer in (first, second):
                p = optimizer.param_groups[0]["params"][0]
                p.grad = torch.full((3,), 1.0 + step, dtype=torch.float64)
                optimizer.step()
        assert torch.equal(ours[0].detach(), second.param_groups[0]["params"][0].detach())


class TestCompile:
    @pytest.fixture(autouse=True)
    def _eager(self, monkeypatch):
        monkeypatch.setenv("OPTIMFN_BACKEND", "eager")  # the rule, which is what is compiled

    def compiled(self, optimizer, backend="eager"):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        return torch.compile(optimizer.step, backend=counter if backend == "eager" else backend), counter

    @pytest.mark.parametrize(
        "make",
        [
            lambda net: of.Optimizer(net, of.chain(of.clip_by_global_norm(0.5), of.adamw(0.05))),
            lambda net: of.Optimizer(net, of.adamw, learning_rate=0.05),
            lambda net: of.Optimizer(
                [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.1}], of.adam(0.1)
            ),
            lambda net: of.Optimizer(net, of.lion(of.linear_schedule(0.1, 0.0, 20))),
        ],
        ids=["chain", "factory", "groups", "schedule"],
    )
    def test_a_compiled_step_is_the_step_and_is_compiled_once(self, make):
        net, twin = model(), model()
        optimizer, reference = make(net), make(twin)
        scheduled = isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        step, counter = self.compiled(optimizer)
        for number in range(8):
            for n, o, take in ((net, optimizer, step), (twin, reference, reference.step)):
                n.zero_grad()
                loss_of(n, number).backward()
                if not scheduled:
                    for group in o.param_groups:
                        group["lr"] = 0.1 / (1 + number)
                take()
            if number == 1:
                compiled = counter.frame_count
        assert close(net.parameters(), twin.parameters(), 0.0)
        assert counter.frame_count == compiled
        assert counter.op_count > 10

    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when inductor is imported
    def test_by_inductor(self):
        try:
            torch.compile(lambda x: x + 1)(torch.ones(3))
        except torch._dynamo.exc.BackendCompilerFailed as error:
            pytest.skip(f"inductor compiles nothing here, as where torch lies in a path with a space: {error!s:.80}")
        net, twin = model(), model()
        optimizer, reference = (of.Optimizer(n, of.adamw(0.05)) for n in (net, twin))
        step, _ = self.compiled(optimizer, "inductor")
        for number in range(3):
            for n, take in ((net, step), (twin, reference.step)):
                n.zero_grad()
                loss_of(n, number).backward()
                take()
        assert close(net.parameters(), twin.parameters(), 1e-12)


@pytest.mark.parametrize("fused", [None, False], ids=["kernels", "rule"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p, **how: of.Optimizer(p, of.adamw, learning_rate=0.1, **how),
        lambda p, **how: of.optim.AdamW(p, 0.1, **how),
    ],
    ids=["optimizer", "drop-in"],
)
def test_a_compiled_step_breaks_the_graph_a_few_times(make, fused, monkeypatch):
    monkeypatch.delenv("OPTIMFN_BACKEND", raising=False)  # as users run it
    net, twin = model(), model()
    for one in (net, twin):
        loss_of(one).backward()
    optimizer, reference = make(net.parameters(), fused=fused), make(twin.parameters(), fused=fused)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(optimizer.step, backend=(counter := torch._dynamo.testing.CompileCounter()))
    for number in range(4):
        for one, take in ((optimizer, step), (reference, reference.step)):
            one.param_groups[0]["lr"] = 0.1 / (1 + number)
            take()
    assert close(net.parameters(), twin.parameters(), 0.0)
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) <= 3
    assert counter.frame_count == (0 if fused is None else 1)  # the whole rule is one graph, made once


@pytest.mark.parametrize("keys", ["ba", (1, "a", 2.0), ((1, "b"), (0, "c"))], ids=["names", "mixed", "tuples"])
def test_a_compiled_donating_step_is_one_graph(keys):
    tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1))
    params, state, results = {key: torch.ones(2, dtype=torch.float64) for key in keys}, None, []
    for how in (lambda step: torch.compile(step, fullgraph=True, backend="eager"), lambda step: step):
        own = {key: p.clone() for key, p in params.items()}
        state, step = tx.init(own), how(of.make_step(tx, donate=True, backend="eager"))
        for _ in range(2):
            new, state = step(own, state, params)
        assert new is own
        results.append(own)
    assert of.tree.allclose(*results, rtol=0.0, atol=0.0)


class TestParameters:
    def test_edges_of_leaves(self):
        leaves = [
            nn.Parameter(torch.tensor(2.0)),
            nn.Parameter(torch.ones(0, 3)),
            nn.Parameter(torch.ones(4, 3).T),
            nn.Parameter(torch.ones(2, dtype=torch.complex64)),
            nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
            nn.Parameter(torch.ones(2), requires_grad=False),
        ]
        optimizer = of.Optimizer(leaves, of.adamw(0.1))
        for p in leaves[:-1]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert all(torch.allclose(p, 0.9 * torch.ones_like(p), rtol=1e-2) for p in leaves[1:-1])
        assert torch.equal(leaves[-1], torch.ones(2))

    def test_a_tied_parameter_is_stepped_once(self):
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        optimizer = of.Optimizer(net, of.sgd(1.0))
        assert len(optimizer.param_groups[0]["params"]) == 1
        net[0].weight.grad = torch.ones(3, 3)
        before = net[0].weight.detach().clone()
        optimizer.step()
        assert torch.equal(net[0].weight, before - 1)

    def test_sparse_gradients_are_made_dense(self):
        table = nn.Embedding(5, 2, sparse=True)
        before = table.weight.detach().clone()
        optimizer = of.Optimizer(table, of.sgd(1.0))
        table(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
        assert torch.equal((before - table.weight.detach()).sum(1), torch.tensor([0.0, 4.0, 0.0, 2.0, 0.0]))
