"""The laws of schedules, over every schedule of the table."""

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from case import ScheduleCase
from cases import SCHEDULES

import optimfn as of

every_schedule = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SCHEDULES])
LARGE = 2**24 + 1  # the first count that float32 cannot hold


@every_schedule
def test_equals_plain_python_at_every_step(case: ScheduleCase):
    schedule = case.schedule()
    for count in (*range(120), LARGE, 2**40 + 1):
        want = case.value(count)
        for given in (count, torch.tensor(count)):
            got = schedule(given)
            assert got.dtype == torch.float64
            assert got.ndim == 0
            assert got.item() == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_large_counts_are_exact():
    begin = 2**40
    schedule = of.linear_schedule(0.0, 1.0, 10, transition_begin=begin)
    assert schedule(torch.tensor(begin + 3)).item() == pytest.approx(0.3, rel=1e-12)


@every_schedule
def test_vmaps_over_counts_and_values(case: ScheduleCase):
    counts = torch.arange(0, 120, 7)
    batched = torch.func.vmap(case.schedule())(counts)
    assert batched.tolist() == pytest.approx([case.value(int(c)) for c in counts], rel=1e-12, abs=1e-15)
    for name in case.live:
        values = torch.tensor([1.0, 0.5], dtype=torch.float64) * case.kwargs[name]
        both = torch.func.vmap(lambda value, name=name: case.schedule(**{name: value})(7))(values)
        alone = [case.schedule(**{name: value.item()})(7).item() for value in values]
        assert both.tolist() == pytest.approx(alone, rel=1e-12, abs=1e-15)


@every_schedule
def test_one_graph_serves_every_count(case: ScheduleCase):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(case.schedule(), fullgraph=True, backend=counter)
    for count in range(40):
        assert compiled(torch.tensor(count)).item() == pytest.approx(case.value(count), rel=1e-12, abs=1e-15)
    assert counter.frame_count == 1


@every_schedule
def test_a_tensor_is_read_at_every_call_and_has_a_gradient(case: ScheduleCase):
    for name in case.live:
        value = torch.tensor(case.kwargs[name], dtype=torch.float64)
        schedule = case.schedule(**{name: value})
        value.mul_(0.5)
        assert schedule(7).item() == case.schedule(**{name: value.item()})(7).item()
        value.requires_grad_()
        assert torch.autograd.gradcheck(lambda v, name=name: case.schedule(**{name: v})(7), (value,))


@every_schedule
def test_runs_without_values(case: ScheduleCase):
    assert case.schedule()(torch.zeros((), dtype=torch.int64, device="meta")).is_meta


@every_schedule
def test_recorded(case: ScheduleCase):
    schedule = case.schedule()
    assert eval(repr(schedule), vars(of)) == schedule
    for twin in (case.schedule(), pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(3) == schedule(3)
    for name in case.live:
        assert schedule.replace(**{name: case.kwargs[name] * 0.5 + 0.1}) != schedule


@pytest.mark.parametrize(
    ("case", "changes", "error", "words"),
    [pytest.param(case, *bad, id=f"{case.name}-{i}") for case in SCHEDULES for i, bad in enumerate(case.bad)],
)
def test_bad_arguments_are_named_at_construction(case: ScheduleCase, changes, error, words):
    with pytest.raises(error, match=words):
        case.schedule(**changes)


def test_a_schedule_keeps_its_own_copy_of_a_dict():
    drops = {10: 0.5}
    schedule = of.piecewise_constant_schedule(1.0, drops)
    drops[10] = 0.0
    assert schedule(10) == 0.5
    assert schedule.arguments["boundaries_and_scales"] == {10: 0.5}


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(("start", "final"), [(0.3, 1.0), (0.4, 0.4), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_one_cycle_schedules_whose_boundaries_fall_together(steps, start, final):
    linear = of.linear_onecycle_schedule(steps, 1.0, start, final, div_factor=10.0, final_div_factor=100.0)
    cosine = of.cosine_onecycle_schedule(steps, 1.0, start, div_factor=10.0, final_div_factor=100.0)
    for schedule in (linear, cosine):
        values = [schedule(count).item() for count in range(steps + 3)]
        assert values[steps:] == pytest.approx([1e-3] * 3)
        up = int(start * steps)
        if up < steps:
            assert values[up] == max(values) == pytest.approx(1.0)
        else:
            assert values[0] == pytest.approx(0.1)
            assert values[:steps] == sorted(values[:steps])
    back = int(final * steps)
    if int(start * steps) < back < steps:
        assert linear(back).item() == pytest.approx(0.1)
