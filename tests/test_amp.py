"""torch.amp.GradScaler, by its own protocol and by ours."""

import pytest
import torch
from graphs import NoHostReads
from torch import nn

import optimfn as of


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def loss_of(net, step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).to(net[0].weight.dtype)
    return (net(x) ** 2).float().mean()


def train(net, optimizer, scaler, steps, *, bad=(), unscale=False):
    """Scaled steps, of which some have an infinite gradient."""
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if step in bad:
            net[0].weight.grad[0, 0] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach().clone() for p in net.parameters()]


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)


def close(a, b, tolerance=1e-6):
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("own", [True, False], ids=["in the step", "by the scaler"])
@pytest.mark.parametrize("unscale", [False, True])
def test_scaled_training_follows_torch(own, unscale):
    ours, theirs = model(), model()
    optimizer = of.Optimizer(ours, of.adamw, learning_rate=0.05, weight_decay=0.1, fused=own)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1)
    mine, its = scaler(), scaler()
    a = train(ours, optimizer, mine, 10, bad=(0, 4, 5), unscale=unscale)
    b = train(theirs, reference, its, 10, bad=(0, 4, 5), unscale=unscale)
    assert close(a, b)
    assert mine.get_scale() == its.get_scale()
    assert {e["scale_by_adam.count"].item() for e in optimizer.state.values()} == {7}


def test_both_protocols_agree_bit_for_bit():
    ends = []
    for own in (True, False):
        net = model()
        optimizer = of.Optimizer(net, of.chain(of.clip_by_global_norm(0.5), of.adamw(0.05)), fused=True)
        optimizer._step_supports_amp_scaling = own  # the same kernels in both, since roots differ between others
        ends.append(train(net, optimizer, scaler(), 8, bad=(3,)))
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_a_skipped_step_changes_not_even_a_sign_of_zero():
    net = model()
    optimizer = of.Optimizer(net, of.chain(of.trace(0.9), of.adamw(of.linear_schedule(0.1, 0.0, 9))))
    train(net, optimizer, scaler(), 2)
    with torch.no_grad():
        net[0].weight[0, :2] = torch.tensor([0.0, -0.0])
    before = [p.detach().clone() for p in net.parameters()]
    state = [x.clone() for entries in optimizer.state.values() for x in entries.values()]
    rate = float(optimizer.param_groups[0]["lr"])
    train(net, optimizer, scaler(), 1, bad=(0,))
    for p, was in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, was)
        assert torch.equal(p.signbit(), was.signbit())
    now = [x for entries in optimizer.state.values() for x in entries.values()]
    assert all(torch.equal(x, was) for x, was in zip(now, state, strict=True))
    assert float(optimizer.param_groups[0]["lr"]) == rate


def test_nothing_is_read_on_the_host():
    net = model()
    optimizer = of.Optimizer(net, of.chain(of.clip_by_global_norm(1.0), of.adamw(0.05)))
    scaling = scaler()
    train(net, optimizer, scaling, 1)
    for bad in (False, True):
        optimizer.zero_grad()
        scaling.scale(loss_of(net, 5)).backward()
        if bad:
            net[0].weight.grad[0, 0] = float("nan")
        with NoHostReads():
            scaling.step(optimizer)
            scaling.update()
    assert not hasattr(optimizer, "found_inf")  # the scaler took it away again


def test_float16_gradients_are_unscaled_in_float32():
    """The scale is there since float16 cannot hold the gradients; unscaled in float16 they would be zero."""
    net = nn.Linear(2, 1, bias=False).half()
    with torch.no_grad():
        net.weight.fill_(1.0)
    optimizer = of.Optimizer(net, of.sgd(1e7))
    scaling = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaling.scale(net.weight.float().sum() * 1e-8).backward()
    scaling.step(optimizer)
    assert torch.allclose(net.weight.float(), torch.full((1, 2), 0.9), atol=1e-3)


@pytest.mark.parametrize("fused", [None, True, False])
def test_the_flag_survives_copies(fused):
    import copy
    import pickle

    optimizer = of.Optimizer(model(), of.adam(0.1), fused=fused)
    for copied in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copied._step_supports_amp_scaling is (fused is not False)
