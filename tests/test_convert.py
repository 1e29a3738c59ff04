"""Checkpoints of torch's classes go on behind `Optimizer`, and those of `Optimizer` in torch's classes."""

import pytest
import torch

import optimfn as of

PAIRS = {
    "Adam": ({"lr": 0.1}, of.adam(1e-3)),
    "AdamW": (
        {"lr": 0.1, "weight_decay": 0.05},
        of.chain(of.clip_by_global_norm(1e9), of.adamw(1e-3, weight_decay=0.05)),
    ),
    "amsgrad": ({"lr": 0.1, "amsgrad": True}, None),
    "SGD": ({"lr": 0.1, "momentum": 0.9}, of.sgd(1e-3, momentum=0.9)),
    "RMSprop": ({"lr": 0.01}, None),
    "Adagrad": ({"lr": 0.1}, None),
    "Adadelta": ({"lr": 1.0}, None),
    "Adamax": ({"lr": 0.1}, None),
    "NAdam": ({"lr": 0.1}, None),
    "RAdam": ({"lr": 0.1}, None),
    "Muon": ({"lr": 0.1}, None),
    "Adafactor": ({"lr": 0.1}, None),
}


def pair(name):
    kwargs, tx = PAIRS[name]
    cls = "Adam" if name == "amsgrad" else name
    return getattr(torch.optim, cls), kwargs, tx or getattr(of.optim, cls).transform(**kwargs)


def fresh():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2)]


def walk(opt, params, steps):
    generator = torch.Generator().manual_seed(steps[0])
    for _ in range(*steps):
        for p in params:
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        opt.step()


def copied(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


@pytest.mark.parametrize("name", PAIRS)
def test_torch_goes_on_here(name):
    make, kwargs, tx = pair(name)
    params = fresh()
    theirs = make(params, **kwargs)
    walk(theirs, params, (0, 5))
    ours = copied(params)
    opt = of.Optimizer(ours, tx)
    before = opt.state_dict()
    loadable = of.optim.convert(theirs.state_dict(), opt)
    assert opt.state_dict() == before
    opt.load_state_dict(loadable)
    assert opt.param_groups[0]["lr"] == (kwargs["lr"] if PAIRS[name][1] else 1.0)
    walk(theirs, params, (5, 10))
    walk(opt, ours, (5, 10))
    bound = 2e-2 if name == "Muon" else 1e-10  # its products are in bfloat16
    torch.testing.assert_close(ours, params, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("NAdam", "Adafactor", "RMSprop", "Adagrad")])
def test_ours_goes_on_in_torch(name):
    make, kwargs, tx = pair(name)
    ours = fresh()
    opt = of.Optimizer(ours, tx)
    if "lr" in opt.numbers_of(opt.param_groups[0]):
        opt.param_groups[0]["lr"] = kwargs["lr"]
    walk(opt, ours, (0, 5))
    params = copied(ours)
    theirs = make(params, **kwargs)
    theirs.load_state_dict(of.optim.convert(opt.state_dict(), theirs))
    walk(theirs, params, (5, 10))
    walk(opt, ours, (5, 10))
    bound = 2e-2 if name == "Muon" else 1e-10
    torch.testing.assert_close(ours, params, rtol=bound, atol=bound)


def test_what_does_not_fit_is_named():
    params = fresh()
    opt = of.Optimizer(params, of.adam(0.1))
    walk(opt, params, (0, 1))
    with pytest.raises(KeyError, match="momentum_buffer"):
        of.optim.convert(opt.state_dict(), torch.optim.SGD(params, 0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters and like of \[1\]"):
        of.optim.convert(opt.state_dict(), torch.optim.Adam(params[:1]))
    with pytest.raises(TypeError, match="like must be"):
        of.optim.convert(opt.state_dict(), torch.optim.LBFGS(params))
    with pytest.raises(KeyError, match="'state'"):
        of.optim.convert({}, opt)
