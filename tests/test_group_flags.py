"""What single groups say about how a step runs."""

import pytest
import torch

import optimfn as of

MAKERS = {
    "drop-in": lambda groups, **options: of.optim.Adam(groups, lr=0.1, **options),
    "optimizer": lambda groups, **options: of.Optimizer(groups, of.adam, learning_rate=0.1, **options),
}


def make(kind, *groups, **options):
    """An optimizer of a parameter for each group, its gradient ready."""
    params = [torch.ones(2, requires_grad=True) for _ in groups]
    for p in params:
        p.grad = torch.ones(2)
    return params, MAKERS[kind]([{"params": [p], **own} for p, own in zip(params, groups, strict=True)], **options)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("later", [False, True])
def test_groups_that_contradict_each_other_are_named(kind, later):
    params, opt = make(kind, {"fused": True}, {} if later else {"fused": False})
    if later:
        opt.step()
        opt.param_groups[1]["fused"] = False
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="group 1 has fused=False and another True"):
        opt.step()
    assert all(map(torch.equal, params, before))
    opt.param_groups[1]["fused"] = None
    opt.step()
    assert not any(map(torch.equal, params, before))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("number", [0, 1])
def test_a_group_that_is_to_run_the_rule_has_all_run_it(kind, number):
    params, opt = make(kind, {}, {})
    opt.step()
    opt.param_groups[number]["fused"] = False
    opt.step()
    assert opt._bound.is_eager
    for p in params:
        torch.testing.assert_close(p.detach(), torch.full((2,), 0.8))
        assert float(opt.state[p]["step" if kind == "drop-in" else "scale_by_adam.count"]) == 2


@pytest.mark.parametrize("kind", MAKERS)
def test_one_differentiable_group_is_refused_by_name(kind):
    params, opt = make(kind, {}, {"differentiable": True})
    with pytest.raises(ValueError, match="group 1 has differentiable=True"):
        opt.step()
    assert all(p.eq(1).all() for p in params)
    assert not opt.state


@pytest.mark.parametrize("kind", MAKERS)
def test_each_group_has_a_direction_of_its_own(kind):
    params, opt = make(kind, {"maximize": True}, {"foreach": True, "capturable": False}, {})
    opt.step()
    opt.param_groups[2]["maximize"] = True
    opt.step()
    for p, value in zip(params, (1.2, 0.8), strict=False):
        torch.testing.assert_close(p.detach(), torch.full((2,), value))
    assert (params[2] > 0.9 - 1e-6).all()
