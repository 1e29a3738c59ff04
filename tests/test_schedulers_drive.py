"""torch's schedulers and averages on our classes, next to torch's."""

import copy

import pytest
import torch
from torch import nn

import optimfn as of

S = of.optim.lr_scheduler

SCHEDULERS = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: S.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: S.ConstantLR(o),
    "LinearLR": lambda o: S.LinearLR(o),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.1, total_steps=30),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, 0.9)]),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.LinearLR(o), S.CosineAnnealingLR(o, 9)], [5]),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: of.optim.swa_utils.SWALR(o, 0.02, anneal_epochs=5),
}
CLASSES = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "AdamW": {"lr": 0.1},
    "NAdam": {"lr": 0.1},
    "RMSprop": {"lr": 0.1, "momentum": 0.5},
}


def run(module, name, scheduler, tensor_lr, steps=20):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    kwargs = copy.deepcopy(CLASSES[name])
    if tensor_lr:
        kwargs["lr"] = torch.tensor(kwargs["lr"], dtype=torch.float64)
    optimizer = getattr(module, name)(net.parameters(), **kwargs)
    driver = SCHEDULERS[scheduler](optimizer)
    average = of.optim.swa_utils.AveragedModel(net)
    for step in range(steps):
        x = torch.randn(8, 3, dtype=torch.float64)
        optimizer.zero_grad()
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        driver.step(1.0 if step > 5 else loss.item()) if scheduler == "ReduceLROnPlateau" else driver.step()
        average.update_parameters(net)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return [p.detach() for p in (*net.parameters(), *average.parameters())], group


def test_every_scheduler_of_torch_is_here():
    assert set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", CLASSES)
def test_drives_our_class_as_it_drives_torchs(name, scheduler, tensor_lr):
    ours, group = run(of.optim, name, scheduler, tensor_lr)
    theirs, reference = run(torch.optim, name, scheduler, tensor_lr)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    assert group.keys() == reference.keys()
    assert float(group["lr"]) == float(reference["lr"])
