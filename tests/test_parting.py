"""Groups whose rates part after the first step, over the table: each goes on with what they had in common."""

import copy
import warnings

import pytest
import torch
from case import Case
from helpers import assert_trees_equal
from test_laws import cases

import optimfn as of

# Their norm is over the parameters that run together, which a checkpoint does not say once rates are equal again.
NORMS = {"sam", "sam_of_three", "sam_at_once", "asam", "friendly_sam", "gsam", "looksam", "msam"}
VECTORS = {"flatten", "minimize_by_lbfgs", "minimize_by_lbfgs_with_line_search"}  # one vector of all parameters


def made(case, params, order=(0, 1, 2)):
    """An optimizer of two groups with names."""
    first, *others = [(f"p{i}", params[i]) for i in order]
    return of.Optimizer([{"params": [first]}, {"params": others}], case.plain(), fused=False)


def step(case, opt, params):
    for p in params:
        p.grad = p.detach() * 0.3 + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opt.step(**case.extra)


@cases("pure")
def test_groups_part_with_copies_or_are_told_why_not_and_checkpoints_know(case: Case):
    params = [torch.nn.Parameter(torch.randn(3, width, dtype=torch.float64)) for width in (4, 2, 3)]
    try:
        opt = made(case, params)
        step(case, opt, params)
    except (TypeError, ValueError) as error:
        pytest.skip(f"not behind an optimizer, or not with these parameters: {error}")
    group, other = opt.param_groups
    if isinstance(group["lr"], torch.Tensor):
        pytest.skip("a schedule drives it")
    saved, rate = opt.state_dict(), group["lr"]
    other["lr"] = rate / 2
    before = [p.detach().clone() for p in params]
    if case.name in VECTORS:
        with pytest.raises(ValueError, match="from the first step on"):
            step(case, opt, params)
        assert_trees_equal(params, before)
        other["lr"] = rate
    step(case, opt, params)
    opt.load_state_dict(saved)  # from before they parted
    step(case, opt, params)
    if case.name not in VECTORS:
        opt.param_groups[1]["lr"] = rate / 2
        step(case, opt, params)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = made(case, copies)
    again.load_state_dict(opt.state_dict())
    step(case, opt, params)
    step(case, again, copies)
    assert_trees_equal(copies, params, rtol=1e-9, atol=1e-12)
    if case.name in VECTORS | NORMS:
        return
    for one in (opt, again):  # rates are equal once more; what the groups had in common is not
        one.param_groups[1]["lr"] = rate
    step(case, opt, params)
    step(case, again, copies)
    last = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = made(case, last)
    resumed.load_state_dict(opt.state_dict())
    copied, there = copy.deepcopy((again, copies))
    for _ in range(2):
        for one, own in ((opt, params), (again, copies), (resumed, last), (copied, there)):
            step(case, one, own)
    for own in (copies, last, there):
        assert_trees_equal(own, params, rtol=1e-9, atol=1e-12)
