"""The stateful wrapper: what a training loop, a scheduler and a checkpoint expect of it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import optimfn as of


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def backward(net, seed):
    net.zero_grad()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (net(x) ** 2).mean().backward()


def train(net, optimizer, steps, first=0, scheduler=None):
    for step in range(first, first + steps):
        backward(net, step)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in net.parameters()]


def same(a, b, tolerance=1e-13):
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [4]
        ),
    ],
    ids=["cosine", "step", "onecycle", "lambda", "sequential"],
)
def test_schedulers_of_torch_drive_the_learning_rate(make):
    ours, theirs = model(), model()
    optimizer = of.Optimizer(ours.parameters(), of.adamw(0.05, weight_decay=0.1))
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1)
    a = train(ours, optimizer, 12, scheduler=make(optimizer))
    b = train(theirs, reference, 12, scheduler=make(reference))
    assert same(a, b)
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


def test_reduce_on_plateau_and_assignment_reach_the_rule():
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.sgd(0.1))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in net.parameters()]
    assert same(train(net, optimizer, 1), before, 0.0)


def test_a_tensor_learning_rate_stays_the_same_object():
    rate = torch.tensor(0.1, dtype=torch.float64)
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.sgd(rate))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    reference_net = model()
    reference = torch.optim.SGD(reference_net.parameters(), lr=0.1)
    reference_scheduler = torch.optim.lr_scheduler.StepLR(reference, 1, 0.5)
    assert same(
        train(net, optimizer, 4, scheduler=scheduler), train(reference_net, reference, 4, scheduler=reference_scheduler)
    )
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1 / 16)


def test_a_schedule_is_shown_and_cannot_be_overruled():
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.sgd(of.linear_schedule(1.0, 0.0, 10)))
    assert optimizer.param_groups[0]["lr"] == 1.0
    train(net, optimizer, 3)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.8)  # the value of the last step
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match=r"lr was set to 0.5, but the schedule linear_schedule\(.* drives it"):
        train(net, optimizer, 1)
    assert same([p.detach() for p in net.parameters()], before, 0.0)


@pytest.mark.parametrize(
    "tx",
    [of.scale(-0.1), of.chain(of.masked(of.sgd(0.1), of.tree.is_matrix), of.sgd(0.2)), of.scale_by_learning_rate(None)],
    ids=["none", "several", "left out"],
)
def test_without_a_rate_or_with_several_lr_is_a_factor(tx):
    halved, plain = model(), model()
    optimizer = of.Optimizer(halved, tx)
    assert optimizer.param_groups[0]["lr"] == optimizer.defaults["lr"] == 1.0
    train(plain, of.Optimizer(plain, tx), 1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    train(halved, optimizer, 1)
    start = [p.detach() for p in model().parameters()]
    assert same([(a + b) / 2 for a, b in zip(start, plain.parameters(), strict=True)], halved.parameters())


class TestFactoryForm:
    def test_hyperparameters_live_in_the_groups_and_follow_torch(self):
        ours, theirs = model(), model()
        optimizer = of.Optimizer(ours.parameters(), of.adamw, learning_rate=0.05, weight_decay=0.1)
        reference = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1)
        group, other = optimizer.param_groups[0], reference.param_groups[0]
        assert {k: group[k] for k in ("lr", "b1", "b2", "eps", "weight_decay")} == {
            "lr": 0.05,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.1,
        }
        for step in range(6):
            group["lr"] = other["lr"] = 0.05 / (1 + step)
            group["b1"] = 0.9 - 0.05 * step
            other["betas"] = (0.9 - 0.05 * step, 0.999)
            group["weight_decay"] = other["weight_decay"] = 0.1 * step
            a, b = train(ours, optimizer, 1, first=step), train(theirs, reference, 1, first=step)
            assert same(a, b, 1e-12)

    def test_groups_override_and_checkpoints_keep_them(self):
        ours, theirs = model(), model()

        def groups(net, decay):
            return [{"params": net[0].parameters(), decay: 0.5}, {"params": net[2].parameters(), "lr": 0.02}]

        optimizer = of.Optimizer(groups(ours, "weight_decay"), of.adamw, learning_rate=0.05, weight_decay=0)
        reference = torch.optim.AdamW(groups(theirs, "weight_decay"), lr=0.05, weight_decay=0.0)
        assert same(train(ours, optimizer, 3), train(theirs, reference, 3))
        twin = copy.deepcopy((ours, optimizer))
        resumed = of.Optimizer(groups(ours, "weight_decay"), of.adamw, learning_rate=1.0, weight_decay=1.0)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        want = train(theirs, reference, 3, first=3)
        assert same(train(twin[0], twin[1], 3, first=3), want)
        assert same(train(ours, resumed, 3, first=3), want)

    def test_static_arguments_and_schedules(self):
        net = model()
        optimizer = of.Optimizer(
            net, of.adamw, learning_rate=of.linear_schedule(0.1, 0.0, 10), mask=of.tree.is_matrix, nesterov=True
        )
        assert "mask" not in optimizer.param_groups[0]
        assert "nesterov" not in optimizer.param_groups[0]
        train(net, optimizer, 3)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.08)

    def test_refuses_what_is_no_factory(self):
        net = model()
        with pytest.raises(TypeError, match=r"weight_decay: hyperparameters go with a factory, not with adamw\("):
            of.Optimizer(net, of.adamw(1e-3), weight_decay=0.1)
        with pytest.raises(TypeError, match="tx must be a GradientTransformation"):
            of.Optimizer(net, dict, learning_rate=0.1)
        with pytest.raises(TypeError, match=r"decorate it with optimfn\.factory"):
            of.Optimizer(net, lambda: of.GradientTransformation(*of.identity()))
        with pytest.raises(ValueError, match="b1 must be in"):
            of.Optimizer(net, of.adamw, learning_rate=0.1, b1=2.0)


def test_a_failed_step_does_not_confuse_a_schedule():
    net = model()
    fail = []
    broken = of.stateless(lambda updates, params: 1 / 0 if fail else updates)
    tx = of.chain(of.sgd(of.linear_schedule(1.0, 0.0, 10)), broken)
    optimizer = of.Optimizer(net.parameters(), tx)
    train(net, optimizer, 2)
    net[0].weight.grad = None  # another pattern of gradients, which is traced
    fail.append(1)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    fail.clear()
    train(net, optimizer, 1, first=2)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.8)


def test_groups_have_their_own_rate_and_state():
    ours, theirs = model(), model()

    def groups(net):
        return [{"params": net[0].parameters(), "lr": 0.01}, {"params": net[2].parameters()}]

    optimizer = of.Optimizer(groups(ours), of.adam(0.1))
    reference = torch.optim.Adam(groups(theirs), lr=0.1)
    assert same(train(ours, optimizer, 5), train(theirs, reference, 5))


def test_a_group_can_be_added_later():
    ours, theirs = model(), model()
    optimizer = of.Optimizer(ours[0].parameters(), of.adam(0.1))
    reference = torch.optim.Adam(theirs[0].parameters(), lr=0.1)
    train(ours, optimizer, 2)
    train(theirs, reference, 2)
    optimizer.add_param_group({"params": ours[2].parameters(), "lr": 0.02})
    reference.add_param_group({"params": theirs[2].parameters(), "lr": 0.02})
    assert same(train(ours, optimizer, 3), train(theirs, reference, 3))


def test_names_reach_masks():
    net = model()
    tx = of.chain(of.masked(of.set_to_zero(), of.tree.mask_by_path(r"^0\.|bias")), of.sgd(0.1))
    for params in (net, net.named_parameters()):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer = of.Optimizer(params, tx)
        backward(net, 0)
        optimizer.step()
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {"2.weight"}


def test_a_parameter_without_gradient_keeps_its_value_and_state():
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.adam(0.1))
    train(net, optimizer, 2)
    frozen = net[0].weight
    before, mu = frozen.detach().clone(), optimizer.state[frozen]["scale_by_adam.mu"].clone()
    backward(net, 3)
    frozen.grad = None
    optimizer.step()
    assert torch.equal(frozen, before)
    assert torch.equal(optimizer.state[frozen]["scale_by_adam.mu"], mu)


def test_state_is_flat_plain_and_lazy():
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.adam(0.1))
    assert optimizer.state_dict()["state"] == {}
    train(net, optimizer, 2)
    entries = optimizer.state_dict()["state"][0]
    assert list(entries) == ["scale_by_adam.count", "scale_by_adam.mu", "scale_by_adam.nu"]
    assert all(type(x) is torch.Tensor for x in entries.values())
    assert entries["scale_by_adam.count"].item() == 2


def test_a_stateless_rule_leaves_no_entries():
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.sgd(0.1))
    train(net, optimizer, 2)
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("how", ["file", "pickle", "deepcopy"])
def test_a_checkpoint_goes_on_where_it_was(how):
    net = model()
    tx = of.adamw(0.05, weight_decay=0.1)
    optimizer = of.Optimizer(net.named_parameters(), tx)
    train(net, optimizer, 3)
    if how == "file":
        file = io.BytesIO()
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        twin = model(seed=1)
        twin.load_state_dict(saved["model"])
        resumed = of.Optimizer(twin.named_parameters(), tx)
        resumed.load_state_dict(saved["optimizer"])
    else:
        both = (net, optimizer)
        twin, resumed = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    assert same(train(twin, resumed, 3, first=3), train(net, optimizer, 3, first=3), 0.0)
    assert resumed.tx == tx


def test_loading_keeps_dtypes_and_takes_copies():
    net = model().bfloat16()
    optimizer = of.Optimizer(net.parameters(), of.adam(0.1))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = optimizer.state_dict()
    twin = model().bfloat16()
    resumed = of.Optimizer(twin.parameters(), of.adam(0.1))
    resumed.load_state_dict(saved)
    entries = resumed.state[twin[0].weight]
    assert entries["scale_by_adam.mu"].dtype == torch.float32
    assert entries["scale_by_adam.count"].dtype == torch.int64
    for p in twin.parameters():
        p.grad = torch.ones_like(p)
    resumed.step()
    assert entries["scale_by_adam.count"].item() == 2
    assert saved["state"][0]["scale_by_adam.count"].item() == 1


def test_closure_is_evaluated_once_with_gradients_on():
    net, calls = model(), []
    optimizer = of.Optimizer(net.parameters(), of.sgd(0.1))

    def closure():
        calls.append(torch.is_grad_enabled())
        backward(net, 0)
        return 3.5

    with torch.no_grad():
        assert optimizer.step(closure) == 3.5
    assert calls == [True]
    assert optimizer.step() is None


def test_hooks_run_once():
    net, seen = model(), []
    optimizer = of.Optimizer(net.parameters(), of.sgd(0.1))
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(net, optimizer, 1)
    assert seen == ["before", "after"]


def test_a_failed_step_changes_nothing_in_any_group():
    def update(updates, state, params=None, **extra):
        if any(p.numel() == 2 for p in of.tree.leaves(params)):
            raise RuntimeError("broken rule")
        return updates, of.TraceState(of.tree.add(state.trace, updates))

    tx = of.GradientTransformation(lambda params: of.TraceState(of.tree.zeros_like(params)), update)
    net = model()
    optimizer = of.Optimizer([{"params": net[0].parameters()}, {"params": net[2].parameters()}], tx)
    backward(net, 0)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="broken rule"):
        optimizer.step()
    assert same([p.detach() for p in net.parameters()], before, 0.0)
    assert optimizer.state_dict()["state"] == {}


def test_bad_arguments():
    net = model()
    with pytest.raises(TypeError, match=r"tx must be a GradientTransformation, got 0\.1"):
        of.Optimizer(net.parameters(), 0.1)
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        of.Optimizer([], of.sgd(0.1))
    with pytest.raises(ValueError, match=r"lr must be a number >= 0, got -1"):
        of.Optimizer([{"params": net.parameters(), "lr": -1}], of.sgd(0.1))
    with pytest.raises(TypeError, match="optimizer parameters need to be organized in ordered collections"):
        of.Optimizer([{"params": set(net.parameters())}], of.sgd(0.1))


def test_repr_and_zero_grad():
    net = model()
    optimizer = of.Optimizer(net.parameters(), of.sgd(0.1))
    assert "lr: 0.1" in repr(optimizer)
    backward(net, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    optimizer.step()  # no gradients: a step of nothing


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch makes sparse tensors on the way
@pytest.mark.parametrize("options", [{}, {"fused": False}], ids=str)
def test_sparse_gradients_are_made_dense(options):
    models = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    ours = [of.Optimizer([p], of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1)), **options) for p in models]
    for step in range(4):
        dense = torch.zeros(4, 3).index_fill(0, torch.tensor([step]), 2.0)
        for p, grad in zip(models, (dense, dense.to_sparse() if step % 2 else dense), strict=True):
            p.grad = grad
        for optimizer in ours:
            optimizer.step()
        torch.testing.assert_close(models[1], models[0], rtol=0, atol=0)
