"""L-BFGS: the line search alone, the pure rule and the drop-in class against torch.optim.LBFGS."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
import torch.testing._internal.common_optimizers as database
from helpers import assert_trees_equal, params_tree

import optimfn as of
from optimfn import optim
from optimfn._algorithms.quasi_newton._strong_wolfe import Trial, strong_wolfe

INFO = next(info for info in database.optim_db if info.optim_cls is torch.optim.LBFGS)


# The problems


def rosenbrock(params):
    x = params["x"]
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(params):
    x = torch.cat([p.reshape(-1) for p in params.values()])
    return 0.5 * (torch.logspace(0, 4, x.numel(), dtype=x.dtype) * x * x).sum() + x.sum()


def logistic(params):
    w, b = params["w"], params["b"]
    x = torch.sin(torch.arange(300.0, dtype=torch.float64) ** 2).reshape(60, 5)
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0], dtype=torch.float64) + torch.cos(torch.arange(60.0)) > 0).double()
    logits = x.to(w.dtype) @ w + b
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, y.to(w.dtype)) + 1e-3 * (w**2).sum()


def complex_bowl(params):
    z = params["z"]
    return ((z - torch.tensor([1 + 2j, -1j])).abs() ** 4).sum() + (z.real * z.imag).sum() + params["x"].cosh().sum()


PROBLEMS = {
    "rosenbrock": (rosenbrock, {"x": torch.tensor([-1.2, 1.0, -0.5, 0.7], dtype=torch.float64)}),
    "quadratic": (
        quadratic,
        {"x": torch.ones(7, dtype=torch.float64), "y": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)},
    ),
    "logistic": (logistic, {"w": torch.zeros(5, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}),
    "complex": (
        complex_bowl,
        {"z": torch.tensor([3.0 + 0j, 1 + 1j], dtype=torch.complex128), "x": torch.ones(2, dtype=torch.float64)},
    ),
}
OPTIONS = {
    "default": {},
    "wolfe": {"line_search_fn": "strong_wolfe"},
    "short": {"history_size": 3, "lr": 0.5},
    "short-wolfe": {"history_size": 3, "line_search_fn": "strong_wolfe"},
    "few-evals": {"max_eval": 7},
    "few-evals-wolfe": {"max_eval": 7, "line_search_fn": "strong_wolfe"},
    "one-eval-wolfe": {"max_eval": 1, "line_search_fn": "strong_wolfe"},
    "one-iteration": {"max_iter": 1},
    "few-iterations-wolfe": {"max_iter": 4, "line_search_fn": "strong_wolfe"},
    "loose-grad": {"tolerance_grad": 1e-2, "line_search_fn": "strong_wolfe"},
    "loose-change": {"tolerance_change": 1e-2},
    "tensor-rate": {"lr": torch.tensor(0.3), "max_iter": 5, "line_search_fn": "strong_wolfe"},
}


def problem(name, dtype=torch.float64, **options):
    """The loss, where to start, and options; without a line search Rosenbrock's valley needs short steps."""
    loss, start = PROBLEMS[name]
    if name == "rosenbrock" and "line_search_fn" not in options:
        options = {**options, "lr": 1e-3}
    return loss, {k: p.to(dtype.to_complex() if p.is_complex() else dtype) for k, p in start.items()}, options


every_problem = pytest.mark.parametrize("name", list(PROBLEMS))
every_option = pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))


class Run:
    """An optimizer on parameters of its own, and the losses its closure has returned."""

    def __init__(self, cls, loss, start, options):
        self.params = {k: p.clone().requires_grad_() for k, p in start.items()}
        self.loss, self.losses = loss, []
        self.optimizer = cls(list(self.params.values()), **copy.deepcopy(options))

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.loss(self.params)
        loss.backward()
        self.losses.append(loss.detach().clone())
        return loss

    def step(self):
        return self.optimizer.step(self.closure)

    @property
    def entries(self):
        return self.optimizer.state[next(iter(self.params.values()))]


def assert_alike(ours, theirs, what="state"):
    """Equal to the last bit, with the types of torch."""
    assert type(ours) is type(theirs), what
    if isinstance(ours, list):
        assert len(ours) == len(theirs), what
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(one, other, f"{what}[{number}]")
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13, msg=lambda m: f"{what}: {m}")
    else:
        assert ours == theirs or math.isclose(ours, theirs, rel_tol=1e-13), what


def assert_same(ours, theirs):
    assert len(ours.losses) == len(theirs.losses)
    assert_alike(ours.losses, theirs.losses, "losses")
    assert_alike(list(ours.params.values()), list(theirs.params.values()), "parameters")
    assert_alike([p.grad for p in ours.params.values()], [p.grad for p in theirs.params.values()], "gradients")
    assert list(ours.entries) == list(theirs.entries)
    for key, value in theirs.entries.items():
        assert_alike(ours.entries[key], value, key)


# The drop-in class


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_option
@every_problem
def test_the_class_evaluates_moves_and_remembers_as_torch_does(name, options, dtype):
    loss, start, options = problem(name, dtype, **options)
    ours, theirs = Run(optim.LBFGS, loss, start, options), Run(torch.optim.LBFGS, loss, start, options)
    for _ in range(6):
        assert_alike(ours.step(), theirs.step(), "what step returns")
        assert_same(ours, theirs)


GOES_UPHILL = "maximize" in inspect.signature(torch.optim.LBFGS).parameters


@pytest.mark.skipif(not GOES_UPHILL, reason="torch has no LBFGS that maximizes yet")
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@every_problem
def test_the_class_goes_uphill_as_torch_does(name, line_search):
    loss, start, options = problem(name, line_search_fn=line_search, maximize=True)

    def height(params):
        return -loss(params)

    ours, theirs = Run(optim.LBFGS, height, start, options), Run(torch.optim.LBFGS, height, start, options)
    for _ in range(6):
        assert_alike(ours.step(), theirs.step(), "what step returns")
        assert_same(ours, theirs)
    with pytest.raises(ValueError, match="maximize=True: the transformation only minimises"):
        optim.LBFGS.transform(maximize=True)


@pytest.mark.skipif(not GOES_UPHILL, reason="an older torch fails with an index")
@pytest.mark.parametrize("cls", [optim.LBFGS, torch.optim.LBFGS])
def test_without_parameters_the_closure_is_evaluated(cls):
    assert cls([{"params": []}]).step(lambda: torch.tensor(3.0)) == 3.0


@pytest.mark.parametrize("one", INFO.optim_inputs_func("cpu"), ids=lambda one: one.desc)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_inputs_of_torchs_database(one, dtype):
    shapes = [(4, 3), (5,), (2, 3, 4), ()]
    start = {str(i): torch.randn(shape, dtype=dtype) for i, shape in enumerate(shapes)}

    sign = -1 if one.kwargs.get("maximize") else 1

    def loss(params):
        return sign * sum((p - 1).abs().pow(2).sum() ** 1.5 for p in params.values())

    ours, theirs = Run(optim.LBFGS, loss, start, one.kwargs), Run(torch.optim.LBFGS, loss, start, one.kwargs)
    for _ in range(5):
        ours.step()
        theirs.step()
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    "case", INFO.optim_error_inputs_func("cpu", torch.float32), ids=lambda case: case.optimizer_error_input.desc
)
def test_refuses_what_torch_refuses_in_its_words(case):
    given, messages = case.optimizer_error_input, []
    for cls in (torch.optim.LBFGS, optim.LBFGS):
        with pytest.raises(case.error_type, match=case.error_regex) as raised:
            cls(copy.deepcopy(given.params), **copy.deepcopy(given.kwargs))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_refuses_a_step_that_torch_refuses():
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    for cls in (torch.optim.LBFGS, optim.LBFGS):
        with pytest.raises(TypeError, match="closure"):
            cls([p]).step()
        with pytest.raises(ValueError, match="doesn't support per-parameter options"):
            cls([{"params": [p]}, {"params": [q]}])
        optimizer = cls([p])
        optimizer.add_param_group({"params": [q]})
        with pytest.raises(AssertionError, match="Expected exactly one param_group, but got 2"):
            optimizer.step(lambda: (p**2).sum())
        run = Run(cls, quadratic, {"x": torch.ones(2)}, {"line_search_fn": "armijo"})
        with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
            run.step()


def test_is_the_class_of_torch_with_its_signatures():
    assert issubclass(optim.LBFGS, torch.optim.LBFGS)
    assert inspect.signature(optim.LBFGS) == inspect.signature(torch.optim.LBFGS)
    own, theirs = (inspect.signature(cls.step).parameters for cls in (optim.LBFGS, torch.optim.LBFGS))
    assert [(p.name, p.default) for p in own.values()] == [(p.name, p.default) for p in theirs.values()]


def through_a_file(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("options", [{}, {"line_search_fn": "strong_wolfe", "history_size": 3}], ids=["fixed", "wolfe"])
@every_problem
def test_checkpoints_change_hands_in_the_middle(name, options):
    loss, start, options = problem(name, max_iter=3, **options)
    classes = [optim.LBFGS, torch.optim.LBFGS]
    ours, theirs = Run(classes[0], loss, start, options), Run(classes[1], loss, start, options)
    for _ in range(5):
        for run in (ours, theirs):
            run.step()
        classes.reverse()
        for run, other in ((ours, classes[0]), (theirs, classes[1])):
            saved = through_a_file(run.optimizer)
            run.optimizer = other(list(run.params.values()), **options)
            run.optimizer.load_state_dict(saved)
        assert_same(ours, theirs)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_go_on_by_themselves(duplicate):
    loss, start, options = problem("rosenbrock", line_search_fn="strong_wolfe", max_iter=3)
    run, whole = Run(optim.LBFGS, loss, start, options), Run(torch.optim.LBFGS, loss, start, options)
    run.step()
    other = duplicate(run)
    for _ in range(2):
        whole.step()
    before = copy.deepcopy(run.entries)
    other.step()
    assert_same(other, whole)
    assert_alike(list(run.entries.values()), list(before.values()))
    assert other.optimizer._gather_flat_grad().shape == (4,)  # a method of torch's class that it would lose


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_closure_that_raises_leaves_everything_as_it_was(fails_at, line_search):
    loss, start, options = problem("rosenbrock", line_search_fn=line_search, lr=1e-3 if line_search is None else 1.0)
    run = Run(optim.LBFGS, loss, start, {**options, "max_iter": 8})
    run.step()
    before, entries = copy.deepcopy(run.params), copy.deepcopy(run.entries)
    whole = copy.deepcopy(run)
    whole.step()
    closure, calls = run.closure, []

    def failing():
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(failing)
    assert_trees_equal(run.params, before)
    assert_alike(list(run.entries.values()), list(entries.values()))
    run.step()
    assert_trees_equal(run.params, whole.params)


def test_parameters_are_written_in_place_and_hooks_run():
    run, calls = Run(optim.LBFGS, *problem("quadratic")[:2], {}), []
    run.optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    run.optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    addresses = [p.data_ptr() for p in run.params.values()]
    returned = run.step()
    assert returned.requires_grad
    assert calls == ["pre", "post"]
    assert [p.data_ptr() for p in run.params.values()] == addresses


def test_absent_and_sparse_gradients_count_as_torch_counts_them():
    def losses(cls):
        table, unused = torch.nn.Embedding(5, 2, sparse=True, dtype=torch.float64), torch.nn.Parameter(torch.ones(2))
        with torch.no_grad():
            table.weight.copy_(torch.arange(10.0).reshape(5, 2))
        optimizer, seen = cls([table.weight, unused], lr=0.1, max_iter=5), []

        def closure():
            optimizer.zero_grad()
            loss = (table(torch.tensor([0, 2, 2])) ** 4).sum()
            loss.backward()
            seen.append(loss.item())
            return seen[-1]

        for _ in range(3):
            optimizer.step(closure)
        return seen, table.weight.detach(), unused.detach()

    for ours, theirs in zip(losses(optim.LBFGS), losses(torch.optim.LBFGS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_a_scheduler_drives_the_rate():
    loss, start, options = problem("quadratic", max_iter=4)
    ours, theirs = Run(optim.LBFGS, loss, start, options), Run(torch.optim.LBFGS, loss, start, options)
    for run in (ours, theirs):
        schedule = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.7)
        for _ in range(4):
            run.step()
            schedule.step()
    assert_same(ours, theirs)


def test_mixed_dtypes_survive_loading():
    start = {"x": torch.ones(3, dtype=torch.bfloat16), "y": torch.ones(3)}
    run = Run(optim.LBFGS, quadratic, start, {"max_iter": 3, "lr": 1e-4})
    run.step()
    saved = through_a_file(run.optimizer)
    run.optimizer.load_state_dict(saved)
    assert_alike(list(run.entries.values()), list(saved["state"][0].values()))
    assert run.entries["old_dirs"][0].dtype == torch.float32
    run.step()


# The pure rule


def words(options):
    """The arguments of the pure rule for options in torch's words."""
    options = dict(options)
    return {
        "learning_rate": options.pop("lr", 1.0),
        "line_search": options.pop("line_search_fn", None),
        **options,
    }


@every_option
@every_problem
def test_the_pure_rule_takes_the_steps_of_torch(name, options):
    """From the points of torch, for a rounding of the update would grow from step to step; the state is its own."""
    loss, params, options = problem(name, **options)
    theirs, evaluations = Run(torch.optim.LBFGS, loss, params, options), []
    tx = of.minimize_by_lbfgs(**words(options))
    state = tx.init(params)

    def value_fn(params):
        evaluations.append(1)
        return loss(params)

    for _ in range(6):
        grads, value = torch.func.grad_and_value(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, value=value)
        theirs.step()
        ours = of.apply_updates(params, updates)
        params = {k: p.detach().clone() for k, p in theirs.params.items()}
        for key, want in params.items():
            scale = max(1.0, want.abs().max().item())
            assert (ours[key] - want).abs().max().item() <= 1e-12 * scale
        assert len(evaluations) == len(theirs.losses) == state.func_evals.item() == theirs.entries["func_evals"]
        assert state.n_iter.item() == theirs.entries["n_iter"]


@pytest.mark.parametrize("name", ["rosenbrock", "quadratic", "logistic", "complex"])
def test_by_itself_it_stays_with_torch_for_several_updates(name):
    loss, params, options = problem(name, max_iter=4, line_search_fn="strong_wolfe")
    theirs, tx = Run(torch.optim.LBFGS, loss, params, options), optim.LBFGS.transform(**options)
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(torch.func.grad(loss)(params), state, params, value_fn=loss)
        params = of.apply_updates(params, updates)
        theirs.step()
        assert_trees_equal(params, {k: p.detach() for k, p in theirs.params.items()}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_it_arrives(name):
    loss, params, _ = problem(name)
    tx = of.minimize_by_lbfgs(line_search="strong_wolfe", max_iter=200, tolerance_change=1e-12)
    updates, state = tx.update(torch.func.grad(loss)(params), tx.init(params), params, value_fn=loss)
    grads = torch.func.grad(loss)(of.apply_updates(params, updates))
    assert max(g.abs().max().item() for g in grads.values()) < 1e-4
    assert state.n_iter < 60


def test_a_stationary_point_is_left_alone():
    params = {"x": torch.zeros(3, dtype=torch.float64)}
    tx = of.minimize_by_lbfgs()
    state = tx.init(params)
    updates, new = tx.update(params, state, params, value_fn=lambda p: (p["x"] ** 2).sum())
    assert_trees_equal(updates, params)
    assert_trees_equal(new, state._replace(count=state.count + 1, func_evals=state.func_evals + 1))


def test_loss_and_gradients_may_come_together_from_a_backward_pass():
    loss, params, _ = problem("logistic")

    def value_and_grad_fn(params):
        leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
        value = loss(leaves)
        return value, dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    tx = of.minimize_by_lbfgs(line_search="strong_wolfe")
    grads, state = torch.func.grad(loss)(params), tx.init(params)
    together = tx.update(grads, state, params, value_and_grad_fn=value_and_grad_fn)
    assert_trees_equal(together, tx.update(grads, state, params, value_fn=loss), rtol=1e-9, atol=1e-12)


def test_a_missing_loss_is_named():
    tx = of.minimize_by_lbfgs()
    with pytest.raises(ValueError, match=r"minimize_by_lbfgs needs the loss: call tx\.update\(.*value_fn=f\)"):
        tx.update(torch.ones(2), tx.init(torch.ones(2)), torch.ones(2))


def test_an_absent_leaf_stays_and_the_rest_moves_as_without_it():
    a, b = torch.tensor([3.0, -2.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)

    def loss(params):
        return (params["a"].cosh() * params.get("b", b) ** 2).sum()

    tx = of.minimize_by_lbfgs(line_search="strong_wolfe", max_iter=5)
    both, alone = {"a": a, "b": b}, {"a": a}
    state, state_alone = tx.init(both), tx.init(alone)
    for _ in range(3):
        grads = torch.func.grad(loss)(both)
        updates, state = tx.update({**grads, "b": None}, state, both, value_fn=loss)
        updates_alone, state_alone = tx.update({"a": grads["a"]}, state_alone, alone, value_fn=loss)
        assert updates["b"] is None
        assert_trees_equal(updates["a"], updates_alone["a"], rtol=1e-12)
        both, alone = of.apply_updates(both, updates), of.apply_updates(alone, updates_alone)
    assert both["b"] is b


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_are_kept_and_the_memory_is_float32_at_least(dtype):
    params = params_tree(dtype)

    def loss(params):
        return of.tree.sum(of.tree.abs_sq(params))

    tx = of.minimize_by_lbfgs(0.1, max_iter=3, history_size=2)
    state = tx.init(params)
    for gradient_dtype in (dtype, torch.float32, torch.bfloat16):
        grads = of.tree.cast(of.tree.scale(2.0, params), gradient_dtype)
        updates, new = tx.update(grads, state, params, value_fn=loss)
        assert all(u.dtype == torch.promote_types(gradient_dtype, torch.float32) for u in of.tree.leaves(updates))
        assert [(x.shape, x.dtype) for x in new] == [(x.shape, x.dtype) for x in state]
        assert new.y.dtype == torch.promote_types(dtype, torch.float32)
        assert loss(of.apply_updates(params, updates)) < loss(params)


def test_the_rate_may_be_a_schedule_of_the_updates():
    loss, params, _ = problem("logistic")
    tx = of.minimize_by_lbfgs(of.linear_schedule(0.5, 0.1, 4), max_iter=2)
    state = tx.init(params)
    for rate in (0.5, 0.4, 0.3):
        grads = torch.func.grad(loss)(params)
        now, new = tx.update(grads, state, params, value_fn=loss)
        want, _ = of.minimize_by_lbfgs(rate, max_iter=2).update(grads, state, params, value_fn=loss)
        assert_trees_equal(now, want, rtol=1e-12)
        params, state = of.apply_updates(params, now), new


def test_derivatives_flow_where_nothing_is_decided():
    """After the first update, whose step length depends on the gradient, fixed steps are smooth."""
    loss, params, _ = problem("rosenbrock")
    tx = of.minimize_by_lbfgs(1e-3, max_iter=3)
    _, state = tx.update(torch.func.grad(loss)(params), tx.init(params), params, value_fn=loss)

    def run(x):
        updates, _ = tx.update(torch.func.grad(loss)({"x": x}), state, {"x": x}, value_fn=loss)
        return updates["x"]

    assert torch.autograd.gradcheck(run, [(params["x"] + 0.01).requires_grad_()], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(torch.func.jacrev(run)(params["x"])).all()


# The transformation of the class


def test_transform_takes_the_words_of_torch_and_refuses_others():
    assert optim.LBFGS.transform(max_iter=5, line_search_fn="strong_wolfe") == of.minimize_by_lbfgs(
        1, 5, 6, line_search="strong_wolfe"
    )
    with pytest.raises(TypeError):
        optim.LBFGS.transform(no_such_option=1)
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        optim.LBFGS.transform(lr=-1.0)
    with pytest.raises(ValueError, match="line_search must be one of"):
        optim.LBFGS.transform(line_search_fn="armijo")


# The line search


def on_line(f, slope):
    return lambda t: Trial(t, f(t), slope(t), payload=f"at {t}")


LINES = {
    "parabola": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "quartic": (lambda t: (t - 2) ** 4 - t, lambda t: 4 * (t - 2) ** 3 - 1),
    "wave": (lambda t: math.sin(t + 2) + 0.1 * t, lambda t: math.cos(t + 2) + 0.1),
    "pole": (lambda t: t**2 - math.log(t + 1e-2), lambda t: 2 * t - 1 / (t + 1e-2)),
    "far": (lambda t: (t / 1000 - 1) ** 2, lambda t: (t / 1000 - 1) / 500),
}


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("line", list(LINES))
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_the_line_search_satisfies_the_wolfe_conditions(line, t, c2):
    f, slope = LINES[line]
    calls = []

    def phi(t):
        calls.append(t)
        return on_line(f, slope)(t)

    best, evaluations = strong_wolfe(phi, Trial(0, f(0), slope(0)), t, c2=c2, max_steps=40)
    assert evaluations == len(calls)
    assert best.payload == f"at {best.t}"
    assert best.f <= f(0) + 1e-4 * best.t * slope(0)
    assert abs(best.slope) <= c2 * abs(slope(0))


def test_the_line_search_stops_at_its_limit_and_at_a_narrow_bracket():
    f, slope = LINES["far"]
    best, evaluations = strong_wolfe(on_line(f, slope), Trial(0, f(0), slope(0)), 1e-9, max_steps=3)
    assert evaluations == 4
    assert best.f < f(0)

    def kink(t):  # falls up to 1 and rises behind, so that no slope is flat
        return Trial(t, abs(t - 1), -1.0 if t < 1 else 1.0)

    best, evaluations = strong_wolfe(kink, kink(0), 3.0, tolerance_change=1e-3, max_steps=100)
    assert evaluations < 100
    assert abs(best.t - 1) < 1e-3

    origin = Trial(0, 0.0, -1.0)
    best, _ = strong_wolfe(lambda t: Trial(t, t, 1.0), origin, 1.0, max_steps=5)
    assert best is origin
