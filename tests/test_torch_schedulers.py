"""Every scheduler of torch, stepped beside its pure counterpart."""

import warnings

import pytest
import torch
from torch.optim import swa_utils

import optimfn as of

STEPS = 60
TORCH = torch.optim.lr_scheduler
BASE = 0.05


def run(make, key="lr", steps=STEPS):
    """What stands in the group at every step, the scheduler being stepped after the optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SequentialLR about its own use of deprecated arguments
        scheduler, seen = make(optimizer), []
        for _ in range(steps):
            seen.append(float(optimizer.param_groups[0][key]))
            optimizer.step()
            scheduler.step()
    return seen


def assert_equal(schedule, seen):
    for count, want in enumerate(seen):
        assert schedule(count).item() == pytest.approx(want, rel=1e-12, abs=1e-15), count
        assert schedule(torch.tensor(count)).item() == schedule(count).item()


def decreasing(count):
    """A factor for LambdaLR, of an int as of a tensor."""
    return 0.95**count


def drifting(count):
    """A factor for MultiplicativeLR."""
    return 0.95 + 0.001 * count


PAIRS = {
    "LambdaLR": (lambda o: TORCH.LambdaLR(o, decreasing), of.lambda_lr(BASE, decreasing)),
    "MultiplicativeLR": (lambda o: TORCH.MultiplicativeLR(o, drifting), of.multiplicative_lr(BASE, drifting, STEPS)),
    "StepLR": (lambda o: TORCH.StepLR(o, 7), of.step_lr(BASE, 7)),
    "MultiStepLR": (
        lambda o: TORCH.MultiStepLR(o, [20, 5, 5], 0.5),
        of.multi_step_lr(BASE, [20, 5, 5], 0.5),
    ),
    "MultiStepLR_at_0": (lambda o: TORCH.MultiStepLR(o, [0, 9]), of.multi_step_lr(BASE, [0, 9])),
    "ConstantLR": (lambda o: TORCH.ConstantLR(o), of.constant_lr(BASE)),
    "LinearLR": (lambda o: TORCH.LinearLR(o), of.linear_lr(BASE)),
    "LinearLR_down": (lambda o: TORCH.LinearLR(o, 0.9, 0.2, 20), of.linear_lr(BASE, 0.9, 0.2, 20)),
    "ExponentialLR": (lambda o: TORCH.ExponentialLR(o, 0.9), of.exponential_lr(BASE, 0.9)),
    "PolynomialLR": (lambda o: TORCH.PolynomialLR(o), of.polynomial_lr(BASE)),
    "PolynomialLR_root": (lambda o: TORCH.PolynomialLR(o, 40, 0.5), of.polynomial_lr(BASE, 40, 0.5)),
    "CosineAnnealingLR": (
        lambda o: TORCH.CosineAnnealingLR(o, 17, 0.001),
        of.cosine_annealing_lr(BASE, 17, 0.001),
    ),
    "CosineAnnealingLR_to_0": (lambda o: TORCH.CosineAnnealingLR(o, 70), of.cosine_annealing_lr(BASE, 70)),
    "CosineAnnealingWarmRestarts": (
        lambda o: TORCH.CosineAnnealingWarmRestarts(o, 5),
        of.cosine_annealing_warm_restarts(BASE, 5),
    ),
    "CosineAnnealingWarmRestarts_2": (
        lambda o: TORCH.CosineAnnealingWarmRestarts(o, 5, 2, 0.001),
        of.cosine_annealing_warm_restarts(BASE, 5, 2, 0.001),
    ),
    "CosineAnnealingWarmRestarts_1_3": (
        lambda o: TORCH.CosineAnnealingWarmRestarts(o, 1, 3, 0.001),
        of.cosine_annealing_warm_restarts(BASE, 1, 3, 0.001),
    ),
    "CyclicLR": (lambda o: TORCH.CyclicLR(o, 0.01, 0.1, 7, 4), of.cyclic_lr(0.01, 0.1, 7, 4)),
    "CyclicLR_triangular2": (
        lambda o: TORCH.CyclicLR(o, 0.01, 0.1, 7, mode="triangular2"),
        of.cyclic_lr(0.01, 0.1, 7, mode="triangular2"),
    ),
    "CyclicLR_exp_range": (
        lambda o: TORCH.CyclicLR(o, 0.01, 0.1, 7, mode="exp_range", gamma=0.97),
        of.cyclic_lr(0.01, 0.1, 7, mode="exp_range", gamma=0.97),
    ),
    "OneCycleLR": (lambda o: TORCH.OneCycleLR(o, 0.1, STEPS), of.one_cycle_lr(0.1, STEPS)),
    "OneCycleLR_three_phases": (
        lambda o: TORCH.OneCycleLR(o, 0.1, STEPS, pct_start=0.4, three_phase=True),
        of.one_cycle_lr(0.1, STEPS, pct_start=0.4, three_phase=True),
    ),
    "OneCycleLR_linear": (
        lambda o: TORCH.OneCycleLR(o, 0.1, STEPS, pct_start=0.31, anneal_strategy="linear", three_phase=True),
        of.one_cycle_lr(0.1, STEPS, pct_start=0.31, anneal_strategy="linear", three_phase=True),
    ),
    "OneCycleLR_without_rise": (
        lambda o: TORCH.OneCycleLR(o, 0.1, STEPS, pct_start=0.0),
        of.one_cycle_lr(0.1, STEPS, pct_start=0.0),
    ),
    "OneCycleLR_without_fall": (
        lambda o: TORCH.OneCycleLR(o, 0.1, STEPS + 1, pct_start=1.0),  # at count `total_steps` torch divides by 0
        of.one_cycle_lr(0.1, STEPS + 1, pct_start=1.0),
    ),
    "SWALR": (lambda o: swa_utils.SWALR(o, 0.01), of.swa_lr(BASE, 0.01)),
    "SWALR_linear": (
        lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=20, anneal_strategy="linear"),
        of.swa_lr(BASE, 0.01, anneal_epochs=20, anneal_strategy="linear"),
    ),
    "SWALR_at_once": (lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=0), of.swa_lr(BASE, 0.01, anneal_epochs=0)),
    "SequentialLR": (
        lambda o: TORCH.SequentialLR(
            o, [TORCH.LinearLR(o, 0.1, 1.0, 5), TORCH.CosineAnnealingLR(o, 20, 0.001), TORCH.StepLR(o, 3)], [5, 40]
        ),
        of.join_schedules(
            [of.linear_lr(BASE, 0.1, 1.0, 5), of.cosine_annealing_lr(BASE, 20, 0.001), of.step_lr(BASE, 3)], [5, 40]
        ),
    ),
    "ChainedScheduler": (
        lambda o: TORCH.ChainedScheduler(
            [TORCH.LinearLR(o, 0.1, 1.0, 6), TORCH.ExponentialLR(o, 0.9), TORCH.MultiStepLR(o, [9, 30])], optimizer=o
        ),
        of.chained_schedules(
            [of.linear_lr(BASE, 0.1, 1.0, 6), of.exponential_lr(1.0, 0.9), of.multi_step_lr(1.0, [9, 30])]
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_scheduler_of_torch(name):
    make, schedule = PAIRS[name]
    assert_equal(schedule, run(make))


def test_every_scheduler_of_torch_has_a_counterpart():
    stateful = {"LRScheduler", "ReduceLROnPlateau"}  # the base class; and the one in test_plateau.py
    assert {name.split("_")[0] for name in PAIRS} == {*TORCH.__all__, "SWALR"} - stateful


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_momentum_cycles_with_swapped_bounds(mode):
    seen = run(lambda o: TORCH.CyclicLR(o, 0.01, 0.1, 7, 4, mode=mode, gamma=0.97), "momentum")
    assert_equal(of.cyclic_lr(0.9, 0.8, 7, 4, mode=mode, gamma=0.97), seen)


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_momentum_with_swapped_bounds(three_phase):
    seen = run(lambda o: TORCH.OneCycleLR(o, 0.1, STEPS, three_phase=three_phase), "momentum")
    schedule = of.one_cycle_lr(0.85, STEPS, div_factor=0.85 / 0.95, final_div_factor=1.0, three_phase=three_phase)
    assert_equal(schedule, seen)


def test_one_cycle_stays_at_its_end_where_torch_overshoots_and_raises():
    schedule = of.one_cycle_lr(0.1, 10)
    assert schedule(10) == schedule(9) == schedule(2**40)
    assert run(lambda o: TORCH.OneCycleLR(o, 0.1, 10), steps=10)[9] == pytest.approx(schedule(9).item(), rel=1e-12)
    with pytest.raises(ValueError, match="Tried to step 11 times"):
        run(lambda o: TORCH.OneCycleLR(o, 0.1, 10), steps=11)


def test_one_cycle_has_a_value_where_the_rise_takes_no_step():
    schedule = of.one_cycle_lr(0.1, 10, pct_start=0.1)
    assert schedule(0).item() == pytest.approx(0.1 / 25)
    assert schedule(1) < 0.1
    assert of.one_cycle_lr(0.1, 1)(0).item() == pytest.approx(0.1 / 25 / 1e4)


@pytest.mark.parametrize(("first", "ratio"), [(2, 2), (5, 2), (7, 3), (10, 10), (3, 1)])
def test_restarts_are_exact_at_any_count(first, ratio):
    schedule = of.cosine_annealing_warm_restarts(1.0, first, ratio, eta_min=0.5)
    start = 0
    for fall in range(13):
        start += first * ratio**fall
        assert schedule(torch.tensor(start)).item() == 1.0
        # One step before, the wave is at its lower end.
        assert schedule(torch.tensor(start - 1)).item() < 0.9


def test_a_schedule_of_a_join_that_is_not_taken_does_not_spoil_the_gradient():
    gamma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    pieces = [
        of.constant_schedule(1.0),
        of.exponential_lr(1.0, gamma),
        of.step_lr(1.0, 1, gamma),
        of.cyclic_lr(0.1, 1.0, 3, mode="exp_range", gamma=gamma),
    ]
    boundaries = [10**6, 2 * 10**6, 3 * 10**6]
    (gradient,) = torch.autograd.grad(of.join_schedules(pieces, boundaries)(5), gamma)
    assert gradient == 0


def test_a_function_may_return_a_plain_number():
    assert of.lambda_lr(0.5, lambda count: 1)(3).item() == 0.5
    assert of.multiplicative_lr(0.5, lambda count: 0.5, 10)(3).item() == 0.0625


def test_the_modules_of_torch_are_re_exported():
    for ours, theirs in ((of.optim.lr_scheduler, TORCH), (of.optim.swa_utils, swa_utils)):
        assert {name for name in vars(ours) if not name.startswith("_")} == set(theirs.__all__)
        for name in theirs.__all__:
            assert getattr(ours, name) is getattr(theirs, name)


def test_a_scheduler_drives_the_optimizer():
    optimizer = of.Optimizer([torch.nn.Parameter(torch.zeros(1))], of.sgd(BASE))
    scheduler = of.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == BASE / 2
