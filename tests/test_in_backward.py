"""Steps in the backward pass are the steps after it, with no gradient left."""

import pytest
import torch

import optimfn as of

TXS = {
    "adamw": (of.adamw(0.1, weight_decay=0.1, mask=of.tree.is_matrix), {}),
    "factory": (of.adamw, {"learning_rate": 0.1, "weight_decay": 0.1}),
    "schedule": (of.chain(of.clip(0.5), of.sgd(of.linear_schedule(0.5, 0.1, 4), momentum=0.9)), {}),
    "labels": (
        of.partition({"w": of.adam(0.1), "b": of.sgd(0.1)}, of.tree.label_by_path({"bias": "b"}, default="w")),
        {},
    ),
    "maximized": (of.lion(0.01), {"maximize": True}),
}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


def backward(net, seed):
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    net(x).square().sum().backward()


def pair(name):
    tx, options = TXS[name]
    nets = model(), model()
    return *nets, of.Optimizer(nets[0], tx, **options), of.optim.in_backward(nets[1], tx, **options)


def walk(net, opt, steps):
    for step in steps:
        backward(net, step)
        opt.step()
        opt.zero_grad()


def assert_alike(net, other, opt, twin):
    torch.testing.assert_close(list(net.parameters()), list(other.parameters()), rtol=0, atol=0)
    ours, theirs = opt.state_dict(), twin.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entries in ours["state"].items():
        torch.testing.assert_close(theirs["state"][number], entries, rtol=0, atol=0)
    assert [group["lr"] for group in ours["param_groups"]] == [group["lr"] for group in theirs["param_groups"]]


@pytest.mark.parametrize("name", TXS)
def test_steps_are_those_of_an_optimizer(name):
    net, other, opt, twin = pair(name)
    walk(net, opt, range(4))
    for step in range(4):
        backward(other, step)
        assert all(p.grad is None for p in other.parameters())
    assert_alike(net, other, opt, twin)


@pytest.mark.parametrize("name", ["adamw", "factory", "labels"])
def test_schedulers_of_torch_drive_it(name):
    net, other, opt, twin = pair(name)
    schedules = [torch.optim.lr_scheduler.StepLR(one, 2, 0.1) for one in (opt, twin)]
    for step in range(5):
        for one, its, schedule in zip((net, other), (opt, twin), schedules, strict=True):
            walk(one, its, [step])
            schedule.step()
    assert_alike(net, other, opt, twin)


@pytest.mark.parametrize("name", TXS)
def test_checkpoints_go_on_and_are_those_of_an_optimizer(name):
    net, other, opt, twin = pair(name)
    walk(net, opt, range(3))
    other.load_state_dict(net.state_dict())
    twin.load_state_dict(opt.state_dict())
    walk(net, opt, range(3, 6))
    walk(other, twin, range(3, 6))
    assert_alike(net, other, opt, twin)
    third = model()
    third.load_state_dict(other.state_dict())
    tx, options = TXS[name]
    last = of.Optimizer(third, tx, **options)
    last.load_state_dict(twin.state_dict())
    walk(net, opt, [6])
    walk(third, last, [6])
    assert_alike(net, third, opt, last)


def test_groups_that_were_loaded_are_those_that_are_read():
    net, other, opt, twin = pair("factory")
    walk(net, opt, range(2))
    walk(other, twin, range(2))
    for one in (opt, twin):
        one.load_state_dict(one.state_dict())
        one.param_groups[0]["lr"] = 0.01
    walk(net, opt, [2])
    walk(other, twin, [2])
    assert_alike(net, other, opt, twin)


def test_masks_are_judged_by_all_parameters(recwarn):
    opt = of.optim.in_backward(model(), of.adamw(0.1, mask=of.tree.mask_by_path("weight")))
    assert len(opt.param_groups[0]["params"]) == 4
    assert not recwarn.list
    with pytest.warns(UserWarning, match="no parameter matches the pattern 'weigth'"):
        of.optim.in_backward(model(), of.adamw(0.1, mask=of.tree.mask_by_path("weigth")))


def test_evaluation_swaps_and_steps_in_between_are_refused():
    tx = of.chain(of.sgd(0.1), of.params_ema(0.5))
    net, other = model(), model()
    opt, twin = of.Optimizer(net, tx), of.optim.in_backward(other, tx)
    walk(net, opt, range(2))
    walk(other, twin, range(2))
    with opt.evaluation(), twin.evaluation():
        torch.testing.assert_close(list(net.parameters()), list(other.parameters()), rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="evaluate"):
            backward(other, 2)
    other.zero_grad()
    walk(net, opt, range(2, 4))
    walk(other, twin, range(2, 4))
    assert_alike(net, other, opt, twin)


def test_groups_come_later_hooks_go_and_tied_parameters_step_once():
    net = model()
    first, last = list(net[0].parameters()), list(net[2].parameters())
    twin = of.optim.in_backward(first, of.sgd, learning_rate=0.1)
    twin.add_param_group({"params": last, "lr": 0.5})
    other = model()
    opt = of.Optimizer([{"params": list(other[0].parameters())}], of.sgd, learning_rate=0.1)
    opt.add_param_group({"params": list(other[2].parameters()), "lr": 0.5})
    walk(net, twin, range(2))
    walk(other, opt, range(2))
    torch.testing.assert_close(list(net.parameters()), list(other.parameters()), rtol=0, atol=0)
    twin.remove()
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 5)
    torch.testing.assert_close(list(net.parameters()), before, rtol=0, atol=0)
    assert all(p.grad is not None for p in net.parameters())
    p = torch.nn.Parameter(torch.ones(2))
    of.optim.in_backward([p], of.sgd(0.1))
    (p.sum() + 2 * p.sum()).backward()
    torch.testing.assert_close(p.data, torch.full((2,), 0.7))


def test_what_sees_all_leaves_is_refused():
    with pytest.raises(ValueError, match=r"clip_by_global_norm is not leafwise: clip by value"):
        of.optim.in_backward(model(), of.chain(of.clip_by_global_norm(1.0), of.adam(0.1)))
    opt = of.optim.in_backward(model(), of.adam(0.1))
    with pytest.raises(TypeError, match="value is not known yet"):
        opt.step(value=1.0)
    assert opt.step(lambda: 3.0) == 3.0
