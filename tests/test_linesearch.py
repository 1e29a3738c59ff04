"""Line searches and the L-BFGS that uses them."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases.quasi_newton import CASES
from helpers import assert_trees_equal, like, params_tree, plain_params
from versus_optax.specs import rosenbrock

import optimfn as of

SEARCHING = [case for case in CASES if case.name.endswith(("linesearch", "lbfgs")) and "minimize" not in case.name]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def cone(w):
    return of.tree.norm(w)


def minimize(tx, f, params, steps, given=True):
    """The losses along the way, and the last parameters and state."""
    state, losses, both = tx.init(params), [], of.value_and_grad_from_state(f)
    for _ in range(steps):
        value, grad = both(params, state=state) if given else of.tree.value_and_grad(f)(params)
        extra = {"value": value, "grad": grad} if given else {}
        updates, state = tx.update(grad, state, params, value_fn=f, **extra)
        params = of.apply_updates(params, updates)
        losses.append(f(params).item())
    return losses, params, state


def start():
    return {"a": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3), "b": torch.zeros(3, dtype=torch.float64)}


def test_lbfgs_finds_the_end_of_a_valley():
    losses, params, _ = minimize(of.lbfgs(), rosenbrock, start(), 60)
    assert losses[-1] < 1e-18
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(losses))
    assert_trees_equal(params, of.tree.ones_like(params), atol=1e-8)


def test_value_and_gradient_may_be_left_to_the_search():
    with_them, _, _ = minimize(of.lbfgs(), rosenbrock, start(), 10)
    without, _, _ = minimize(of.lbfgs(), rosenbrock, start(), 10, given=False)
    assert without == pytest.approx(with_them, rel=1e-9)


@pytest.mark.parametrize(
    "search",
    [
        of.scale_by_backtracking_linesearch(40, store_grad=True),
        of.scale_by_backtracking_linesearch(40, increase_factor=math.inf, store_grad=True),
        of.scale_by_zoom_linesearch(20),
        of.scale_by_zoom_linesearch(20, curv_rtol=math.inf),
    ],
    ids=["backtracking", "from_the_top", "zoom", "decrease_only"],
)
def test_the_state_has_loss_and_gradient_of_where_the_search_ended(search):
    losses, params, state = minimize(of.chain(of.sgd(1.0), search), rosenbrock, start(), 5)
    assert losses == sorted(losses, reverse=True)
    value, grad = of.tree.value_and_grad(rosenbrock)(params)
    assert of.tree.get(state, "value").item() == pytest.approx(value.item(), rel=1e-12)
    assert_trees_equal(of.tree.get(state, "grad"), grad, rtol=1e-9, atol=1e-12)


def test_a_known_value_is_not_computed_again():
    calls = []

    def f(w, scale=1.0):
        calls.append(1)
        return scale * (w**2).sum()

    tx, w = of.lbfgs(), torch.tensor([3.0])
    state, both = tx.init(w), of.value_and_grad_from_state(f)
    value, grad = both(w, state=state, scale=2.0)
    assert (value.item(), grad.item(), len(calls)) == (18.0, 12.0, 1)
    _, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=f)
    before = len(calls)
    both(w, state=state)
    assert len(calls) == before
    with pytest.raises(ValueError, match="the state has no value or no grad"):
        both(w, state=of.scale_by_backtracking_linesearch(3).init(w))


@pytest.mark.parametrize("make", [of.scale_by_backtracking_linesearch, of.scale_by_zoom_linesearch])
def test_the_loss_takes_the_data_that_it_has_by_name(make):
    def f(w, data):
        return ((w - data) ** 2).sum()

    tx, w, data = of.chain(of.sgd(0.5), make(20)), torch.tensor([3.0]), torch.tensor([1.0])
    _, grad = of.tree.value_and_grad(f)(w, data)
    updates, _ = tx.update(grad, tx.init(w), w, value_fn=f, data=data, other=3)
    assert (w + updates).item() == pytest.approx(1.0)
    updates, _ = tx.update(grad, tx.init(w), w, value_fn=lambda w, **data: f(w, data["data"]), data=data)
    assert (w + updates).item() == pytest.approx(1.0)


@pytest.mark.parametrize("make", [of.scale_by_backtracking_linesearch, of.scale_by_zoom_linesearch])
def test_what_is_missing_is_named(make):
    tx = make(3)
    with pytest.raises(ValueError, match=r"needs the loss: call tx\.update\(updates, state, params, value_fn=f\)"):
        tx.update(torch.ones(1), tx.init(torch.ones(1)), torch.ones(1))


@pytest.mark.parametrize("make", [of.scale_by_backtracking_linesearch, of.scale_by_zoom_linesearch])
def test_where_the_loss_is_nan_throughout_nothing_moves_and_the_next_search_begins_anew(make):
    tx, w = make(5), torch.tensor([1.0])
    updates, state = tx.update(
        -w, tx.init(w), w, value=torch.tensor(1.0), grad=w, value_fn=lambda w: w.sum() * math.nan
    )
    assert updates.item() == 0.0
    assert of.tree.get(state, "decrease_error").item() == math.inf
    updates, _ = tx.update(-w, state, w, value_fn=lambda w: (w**2).sum() / 2)
    assert updates.item() < -0.1


def test_zoom_satisfies_the_conditions_of_wolfe():
    rng = np.random.default_rng(0)
    tx, found = of.scale_by_zoom_linesearch(30, curv_rtol=0.2, approx_dec_rtol=None), 0
    for _ in range(40):
        params = {"a": torch.from_numpy(rng.normal(size=(2, 3))), "b": torch.from_numpy(rng.normal(size=3))}
        value, grad = of.tree.value_and_grad(rosenbrock)(params)
        direction = of.tree.scale(-float(10 ** rng.uniform(-4, 1)), grad)
        updates, state = tx.update(direction, tx.init(params), params, value_fn=rosenbrock)
        after, slopes = of.tree.value_and_grad(rosenbrock)(of.apply_updates(params, updates))
        slope, t = of.tree.vdot(grad, direction), state.learning_rate
        if state.info.decrease_error == 0 and state.info.curvature_error == 0:
            found += 1
            assert after <= value + 1e-4 * t * slope
            assert of.tree.vdot(slopes, direction).abs() <= 0.2 * slope.abs()
    assert found >= 38


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", [of.scale_by_backtracking_linesearch, of.scale_by_zoom_linesearch, of.lbfgs])
def test_dtypes_are_kept(make, dtype):
    params = params_tree(dtype)
    tx = of.lbfgs() if make is of.lbfgs else of.chain(of.sgd(0.1), make(10))

    def f(params):
        return of.tree.norm(params, squared=True)

    _, grad = of.tree.value_and_grad(f)(params)
    state = tx.init(params)
    updates, new = tx.update(grad, state, params, value_fn=f)
    for old, now in ((of.tree.widen(params), updates), (state, new)):
        assert of.tree.structure(old) == of.tree.structure(now)
        assert [x.dtype for x in of.tree.leaves(old)] == [x.dtype for x in of.tree.leaves(now)]
    assert f(of.apply_updates(params, updates)) < f(params)


@pytest.mark.parametrize("make", [of.scale_by_backtracking_linesearch, of.scale_by_zoom_linesearch])
def test_stacked_models_search_apart(make):
    tx = of.chain(of.sgd(1.0), make(12))
    many = torch.randn(5, 4, dtype=torch.float64)

    def step(w):
        _, grad = of.tree.value_and_grad(lambda w: rosenbrock({"w": w}))(w)
        return tx.update(grad, tx.init(w), w, value_fn=lambda w: rosenbrock({"w": w}))

    updates, state = torch.func.vmap(step)(many)
    for i in range(5):
        alone, alone_state = step(many[i])
        assert_trees_equal(updates[i], alone, rtol=1e-9, atol=1e-12)
        assert_trees_equal(
            of.tree.get(state, "num_linesearch_steps")[i], of.tree.get(alone_state, "num_linesearch_steps")
        )


def dense_bfgs(gradients, points, memory, scaled):
    """Nocedal and Wright 2006, equation 7.16: the inverse Hessian as a matrix, from the last pairs."""
    n = len(points[0])
    pairs = [(p - q, g - h) for p, q, g, h in zip(points[1:], points, gradients[1:], gradients, strict=False)]
    pairs = [(s, y) for s, y in pairs if s @ y > np.finfo(float).eps * (y @ y)][-memory:]
    if not pairs:
        gamma = min(1.0, 1 / np.linalg.norm(gradients[-1])) if scaled else 1.0
    else:
        s, y = pairs[-1]
        gamma = s @ y / (y @ y) if scaled else 1.0
    H = gamma * np.eye(n)
    for s, y in pairs:
        rho = 1 / (y @ s)
        V = np.eye(n) - rho * np.outer(y, s)
        H = V.T @ H @ V + rho * np.outer(s, s)
    return H @ gradients[-1]


@pytest.mark.parametrize("scaled", [True, False])
def test_lbfgs_multiplies_by_the_matrix_of_its_definition(scaled):
    tx, rng = of.scale_by_lbfgs(memory_size=3, scale_init_precond=scaled), np.random.default_rng(0)
    shape = {"a": (2, 2), "b": (3,)}
    state = tx.init({name: torch.zeros(size, dtype=torch.float64) for name, size in shape.items()})
    points, gradients = [], []
    for _ in range(7):
        params = {name: torch.from_numpy(rng.normal(size=size)) for name, size in shape.items()}
        grads = {name: torch.from_numpy(rng.normal(size=size)) for name, size in shape.items()}
        updates, state = tx.update(grads, state, params)
        points.append(np.concatenate([x.numpy().ravel() for x in params.values()]))
        gradients.append(np.concatenate([x.numpy().ravel() for x in grads.values()]))
        want = dense_bfgs(gradients, points, 3, scaled)
        got = np.concatenate([x.numpy().ravel() for x in updates.values()])
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)


def test_a_leaf_without_gradient_does_not_move_and_does_no_harm():
    params = {"a": torch.tensor([3.0, -4.0], dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    tx, state = of.lbfgs(), None

    def f(params):
        return (params["a"] ** 2 * torch.tensor([1.0, 9.0])).sum() + (params["b"] ** 2).sum()

    state = tx.init(params)
    for _ in range(12):
        _, grad = of.tree.value_and_grad(f)(params)
        updates, state = tx.update({**grad, "b": None}, state, params, value_fn=f)
        assert updates["b"] is None
        params = of.apply_updates(params, updates)
    assert params["a"].abs().max() < 1e-6
    assert params["b"].tolist() == [1.0, 1.0]


def test_complex_parameters_are_searched_along_their_gradient():
    def f(w):
        return ((w - (1 + 2j)).abs() ** 2).sum() + (w.abs() ** 4).sum()

    losses, w, _ = minimize(of.lbfgs(), f, torch.zeros(2, dtype=torch.complex128), 30)
    assert losses[-1] == min(losses)
    _, grad = of.tree.value_and_grad(f)(w)
    assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("case", SEARCHING, ids=lambda case: case.name)
def test_fused_steps_find_what_eager_steps_find(case):
    tx, params = case.tx(), plain_params()
    fused, eager = of.make_step(tx, backend="fused"), of.make_step(tx, backend="eager")
    ours = theirs = (params, tx.init(params))
    for _ in range(6):
        grads = like(params)
        ours, theirs = fused(*ours, grads), eager(*theirs, grads)
        assert_trees_equal(ours[0], theirs[0], rtol=1e-9, atol=1e-11)


def himmelblau(w):
    return (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2


def test_pairs_of_negative_curvature_are_not_remembered():
    tx, w = of.chain(of.scale_by_lbfgs(), of.scale(-0.01)), torch.zeros(2, dtype=torch.float64)
    state, values = tx.init(w), [170.0]
    for _ in range(60):
        grads = torch.func.grad(himmelblau)(w)
        updates, state = tx.update(grads, state, w)
        assert updates @ grads < 0
        w = w + updates
        values.append(himmelblau(w).item())
    assert values == sorted(values, reverse=True)


def test_lbfgs_stays_where_it_has_converged():
    sizes, w = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for tx in (of.lbfgs(), of.lbfgs(1.0, linesearch=None)):
        params, state = w, tx.init(w)
        for _ in range(150):
            value, grads = of.tree.value_and_grad(lambda w: (sizes * w * w).sum() / 2)(params)
            updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=lambda w: w.sum() * 0)
            params = params + updates
        assert params.isfinite().all()
        assert state[0].weights_memory.isfinite().all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("rule", ["lbfgs", "zoom"])
def test_a_minimiser_follows_its_target_in_every_mode(rule):
    def run(target):
        def loss(w):
            return ((w - target) ** 2).sum()

        tx = of.lbfgs() if rule == "lbfgs" else of.chain(of.sgd(1.0), of.scale_by_zoom_linesearch(15))
        w, state = torch.zeros(2, dtype=torch.float64), tx.init(torch.zeros(2, dtype=torch.float64))
        for _ in range(4):
            value, grads = of.tree.value_and_grad(loss)(w)
            updates, state = tx.update(grads, state, w, value=value, grad=grads, value_fn=loss)
            w = of.apply_updates(w, updates)
        return w

    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for jacobian in (torch.func.jacrev(run), torch.func.jacfwd(run)):
        torch.testing.assert_close(jacobian(target), torch.eye(2, dtype=torch.float64))
    want = torch.autograd.functional.jacobian(run, target)
    torch.testing.assert_close(want, torch.eye(2, dtype=torch.float64))
