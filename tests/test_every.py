"""Work that is not done in every step: `tree.every` in all executions."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
import torch._dynamo.testing
from helpers import assert_trees_equal, like, params_tree

import optimfn as of
from optimfn._state_spec import HostCount

PERIOD = 3


class SquaresState(NamedTuple):
    count: HostCount
    squares: of.Updates


def squares(calls, offset=0, period=PERIOD):
    """Adds the squares of the gradient of some steps ago."""

    def init(params):
        return SquaresState(of.tree.host_count(params), of.tree.zeros_like(params))

    def compute(old, updates):
        if not torch.compiler.is_compiling():
            calls.append(None)
        return of.tree.map(lambda o, g: 0.5 * o + g * g, old, updates)

    def update(updates, state, params=None, **extra):
        new = of.tree.every(period, state.count, compute, state.squares, updates, offset=offset)
        return of.tree.add(updates, new), SquaresState(state.count + 1, new)

    return of.GradientTransformation(init, update, leafwise=True)


def start(dtype=torch.float64):
    torch.manual_seed(17)
    return params_tree(dtype)


def gradients(params, count):
    torch.manual_seed(count)
    return like(params)


def follow(step, tx, steps=8):
    params = start()
    state, seen = tx.init(params), []
    for count in range(steps):
        params, state = step(params, state, gradients(params, count))
        seen.append(copy.deepcopy((params, state)))
    return seen


def by_hand(offset=0, steps=8):
    """The same with an `if`."""
    params, seen = start(), []
    kept = of.tree.zeros_like(params)
    for count in range(steps):
        grads = gradients(params, count)
        if (count + offset) % PERIOD == 0:
            kept = of.tree.map(lambda o, g: 0.5 * o + g * g, kept, grads)
        params = of.tree.map(lambda p, g, k: p + (g + k), params, grads, kept)
        seen.append((params, kept))
    return seen


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_an_eager_step_computes_it_in_one_step_of_the_period(offset):
    calls = []
    tx = squares(calls, offset)
    found = follow(of.make_step(tx, backend="eager"), tx)
    assert len(calls) == len([count for count in range(8) if (count + offset) % PERIOD == 0])
    assert_trees_equal([(params, state.squares) for params, state in found], by_hand(offset), rtol=1e-14)


@pytest.mark.parametrize("donate", [False, True])
def test_a_fused_step_has_a_program_for_either_choice(donate):
    calls = []
    tx = squares(calls)
    step = of.make_step(tx, donate=donate)
    found = follow(step, tx)
    assert_trees_equal([(params, state.squares) for params, state in found], by_hand(), rtol=1e-14)
    assert step.explain().startswith("fused")
    traced = len(calls)
    follow(step, tx)
    assert len(calls) == traced  # nothing is traced anew


def test_a_step_without_it_moves_less_memory():
    tx, params = squares([]), torch.zeros(64)
    step, moved = of.make_step(tx, donate=True), []
    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state, torch.ones(64))
        moved.append(step.explain().split("moves ")[1].split()[0])
    assert [float(x) for x in moved] == [20.0, 16.0]


def test_a_compiled_step_has_a_branch():
    tx = squares([])
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(of.make_step(tx), fullgraph=True, backend=counter)
    found = follow(step, tx)
    assert counter.frame_count == 1
    assert_trees_equal([(params, state.squares) for params, state in found], by_hand(), rtol=1e-14)


def test_members_of_a_batch_have_a_count_each():
    tx, params = squares([]), torch.randn(2, 5, dtype=torch.float64)
    state = torch.vmap(tx.init)(params)
    state = state._replace(count=torch.tensor([0, 1]))
    grads = torch.randn(2, 5, dtype=torch.float64)
    _, state = torch.vmap(tx.update)(grads, state)
    assert_trees_equal(state.squares, torch.stack([grads[0] ** 2, torch.zeros(5, dtype=torch.float64)]))
    assert state.count.tolist() == [1, 2]


def test_a_population_steps_as_its_members():
    tx = of.stacked(squares([]))
    params = torch.randn(3, 4, dtype=torch.float64)
    step, own = of.make_step(tx), squares([])
    state, states, members = tx.init(params), [own.init(p) for p in params], list(params)
    for _ in range(5):
        grads = torch.randn(3, 4, dtype=torch.float64)
        params, state = step(params, state, grads)
        for i in range(3):
            updates, states[i] = own.update(grads[i], states[i])
            members[i] = members[i] + updates
    assert_trees_equal(params, torch.stack(members), rtol=1e-14)


def test_behind_an_optimizer_counts_are_those_of_its_parameters_and_survive_a_checkpoint():
    def make():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(2, 2))]
        return params, of.Optimizer(params, of.chain(squares([]), of.sgd(0.01)))

    def train(params, optimizer, steps):
        for step in steps:
            for i, p in enumerate(params):
                late = i == 1 and step < 2  # its first gradient comes later, and its count begins then
                p.grad = None if late else torch.full_like(p, float(step + 1))
            optimizer.step()

    params, optimizer = make()
    train(params, optimizer, range(7))
    others, resumed = make()
    train(others, resumed, range(4))
    saved = pickle.loads(pickle.dumps(resumed.state_dict()))
    last, again = make()
    with torch.no_grad():
        for p, q in zip(last, others, strict=True):
            p.copy_(q)
    again.load_state_dict(saved)
    train(last, again, range(4, 7))
    assert_trees_equal([p.detach() for p in last], [p.detach() for p in params])
    start = make()[0]
    kept = [torch.zeros(4), torch.zeros(2, 2)]
    expected = [p.detach().clone() for p in start]
    for step in range(7):
        for i, own in enumerate((step, step - 2)):
            if own >= 0:
                if own % PERIOD == 0:
                    kept[i] = 0.5 * kept[i] + float(step + 1) ** 2
                expected[i] = expected[i] - 0.01 * (step + 1 + kept[i])
    assert_trees_equal([p.detach() for p in params], expected, rtol=1e-6)


def test_the_count_is_said_to_be_of_the_host():
    params = torch.zeros(3, device="meta")
    tx = squares([])
    assert tx.init(params).count.is_cpu
    assert of.state_spec(tx, params).count.kind == "host"


def test_in_every_step_where_the_period_is_one():
    calls = []
    tx = squares(calls, period=1)
    follow(of.make_step(tx, backend="eager"), tx, steps=4)
    assert len(calls) == 4
