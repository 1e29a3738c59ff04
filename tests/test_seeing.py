"""Tables, metrics and pictures: what is shown is what is so."""

import importlib
import math
import pickle
from typing import NamedTuple

import expecttest
import pytest
import torch
from cases import CASES
from helpers import Pair, assert_trees_equal, params_tree

import optimfn as of

PARAMS = {"weight": torch.ones(100, 10), "bias": torch.ones(10)}


class TestTables(expecttest.TestCase):
    maxDiff = None

    def test_a_chain(self):
        tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3, weight_decay=0.1, mask=of.tree.is_matrix))
        self.assertExpectedInline(
            str(of.describe(tx, PARAMS)),
            """\
transform                   arguments                                     state     read  written
chain
  clip_by_global_norm       max_norm=1.0
  adamw                     learning_rate=0.001, weight_decay=0.1,
                            mask=is_matrix
    scale_by_adam           b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0,  8.09 kB  8.09 kB  8.09 kB
                            mu_dtype=None, nesterov=False
    add_decayed_weights     weight_decay=0.1, mask=is_matrix
    scale_by_learning_rate  learning_rate=0.001, flip_sign=True
gradients                                                                        4.04 kB
parameters                                                                       4.04 kB  4.04 kB
total                                                                   8.09 kB  16.2 kB  12.1 kB""",
        )

    def test_without_parameters(self):
        self.assertExpectedInline(
            repr(of.describe(of.chain(of.sgd(0.1), of.chain()))),
            """\
transform                   arguments
chain
  sgd                       learning_rate=0.1
    identity
    scale_by_learning_rate  learning_rate=0.1, flip_sign=True
  chain""",
        )

    def test_wrappers_and_labels(self):
        labels = of.tree.label_by_path({"weight": "matrices"}, default="rest")
        rest = of.inject_hyperparams(of.adam, static_args=("b1", "b2", "eps", "eps_root"))(
            of.linear_schedule(1.0, 0.0, 9)
        )
        tx = of.multi_steps(of.partition({"matrices": of.torch_muon(0.02), "rest": rest}, labels), 4)
        self.assertExpectedInline(
            str(of.describe(tx, PARAMS)),
            """\
transform                       arguments                                              state     read  written
multi_steps                     every_k_schedule=4                                   4.06 kB  4.06 kB  4.06 kB
  partition                     param_labels=label_by_path(patterns={'weight':
                                'matrices'}, default='rest')
    matrices: torch_muon        learning_rate=0.02
      ema                       decay=0.95, debias=False, accumulator_dtype=None,    4.01 kB  4.01 kB  4.01 kB
                                nesterov=True
      orthogonalize             ns_coeffs=(3.4445, -4.775, 2.0315), ns_steps=5,
                                eps=1e-07, dtype=torch.bfloat16,
                                preconditioning='frobenius', gram=False,
                                weight_dimension_numbers=None
      scale_by_matrix_shape     mode='original', weight_dimension_numbers=None
      add_decayed_weights       weight_decay=0.0, mask=None
      scale_by_learning_rate    learning_rate=0.02, flip_sign=True
    rest: inject_hyperparams    inner_factory=adam, static_args=('b1', 'b2', 'eps',     16 B     16 B     16 B
                                'eps_root')
      adam                      learning_rate=linear_schedule(init_value=1.0,
                                end_value=0.0, transition_steps=9,
                                transition_begin=0)
        scale_by_adam           b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0,              88 B     88 B     88 B
                                mu_dtype=None, nesterov=False
        scale_by_learning_rate  learning_rate=(injected), flip_sign=True
gradients                                                                                     4.04 kB
parameters                                                                                    4.04 kB  4.04 kB
total                                                                                8.17 kB  16.2 kB  12.2 kB""",
        )

    def test_names_masks_and_devices_of_monitor(self):
        tx = of.named_chain(
            ("look", of.monitor({"norm": of.tree.norm, "mean": of.measure_with_ema(of.tree.norm, 0.5)})),
            ("rule", of.masked(of.lion(1e-3), {"weight": True, "bias": False})),
        )
        self.assertExpectedInline(
            str(of.describe(tx, PARAMS)),
            """\
transform                     arguments                                       state     read  written
named_chain
  look: monitor               measures={'norm': norm}                           8 B      8 B      8 B
    mean: measure_with_ema    measure=norm, decay=0.5, debias=True,            12 B     12 B     12 B
                              accumulator_dtype=None
  rule: masked                mask={'weight': True, 'bias': False}
    lion                      learning_rate=0.001
      scale_by_lion           b1=0.9, b2=0.99, mu_dtype=None, mode='hard',  4.01 kB  4.01 kB  4.01 kB
                              smooth_beta=1.0
      add_decayed_weights     weight_decay=0.001, mask=None
      scale_by_learning_rate  learning_rate=0.001, flip_sign=True
gradients                                                                            4.04 kB
parameters                                                                           4.04 kB  4.04 kB
total                                                                       4.03 kB  12.1 kB  8.07 kB""",
        )

    def test_no_recipe_and_an_empty_tree(self):
        def update(updates, state, params=None, **extra):
            return updates, state

        tx = of.chain(of.GradientTransformation(lambda params: params, update), of.scale(2.0))
        self.assertExpectedInline(
            str(of.describe(tx, {})),
            """\
transform                                      arguments      state  read  written
chain
  TestTables.test_no_recipe_and_an_empty_tree
  scale                                        step_size=2.0
gradients
parameters
total                                                           0 B   0 B      0 B""",
        )


def bytes_of(leaves):
    return sum(x.numel() * x.element_size() for x in of.tree.leaves(leaves))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rows_add_up_to_the_state(case):
    params = {"a": torch.randn(4, 3), "b": torch.randn(2, 3)}
    if "lookahead" in case.name:
        params = of.LookaheadParams.init_synced(params)
    tx = case.plain()
    found = of.describe(tx, params)
    assert found.params == bytes_of(params)
    assert found.state == bytes_of(tx.init(params))
    # Gradients are those of the parameters that move: of a lookahead, the fast ones.
    moving = bytes_of(params.fast if "lookahead" in case.name else params)
    assert found.gradients == moving
    assert found.read == moving + found.params + found.state
    assert found.written == found.params + found.state
    assert all(row.state >= 0 for row in found.rows)
    assert [row.name for row in of.describe(tx).rows] == [row.name for row in found.rows]


def test_states_of_models_that_do_not_fit_are_never_made():
    params = {"weight": torch.empty(2**20, 2**20, dtype=torch.bfloat16, device="meta")}  # two terabytes
    found = of.describe(of.chain(of.adam(1e-3), of.params_ema(0.999)), params)
    assert found.params == 2 * 2**40
    assert found.state == 3 * 4 * 2**40 + 16  # moments and averages of halves are float32; two counts
    assert "13.2 TB" in str(found)


def test_where_an_init_reads_a_number_the_state_is_made_for_the_parameters_themselves():
    @of.factory
    def scale_by_first():
        """Keep a number, read on the host."""

        def init(params):
            return torch.full((int(params[0].item()),), 1.0)

        return of.GradientTransformation(init, lambda updates, state, params=None, **extra: (updates, state))

    found = of.describe(of.chain(scale_by_first(), of.trace(0.9)), torch.tensor([7.0, 1.0]))
    assert [(row.name, row.state) for row in found.rows] == [("chain", 0), ("scale_by_first", 28), ("trace", 8)]


def test_masks_partitions_and_flat_vectors_show_what_is_theirs():
    tree = {"weight": torch.ones(4, 3), "bias": torch.ones(3), "gone": None}
    labels = {"weight": "yes", "bias": "no", "gone": "no"}
    nested = of.partition({"yes": of.trace(0.9), "no": of.flatten(of.trace(0.9)), "unused": of.adam(0.1)}, labels)
    rows = of.describe(nested, tree).rows
    assert [(row.depth, row.name, row.state) for row in rows] == [
        (0, "partition", 0),
        (1, "yes: trace", 48),
        (1, "no: flatten", 0),
        (2, "trace", 12),
        (1, "unused: adam", 0),
        (2, "scale_by_adam", 8),
        (2, "scale_by_learning_rate", 0),
    ]


def test_only_transformations_are_described():
    with pytest.raises(TypeError, match="tx must be a GradientTransformation, got 3"):
        of.describe(3)


# Metrics


def names(state):
    return {name: value.item() for name, value in of.metrics(state).items()}


def test_metrics_of_monitor_snapshot_and_hyperparameters():
    tx = of.chain(
        of.monitor({"norm": of.tree.norm, "mean": of.measure_with_ema(of.tree.norm, 0.5), "all": lambda g: g}),
        of.inject_hyperparams(of.sgd)(of.linear_schedule(1.0, 0.0, 4), momentum=0.5),
        of.snapshot("per leaf", lambda g: of.tree.map(torch.linalg.vector_norm, g)),
    )
    grads = {"a": torch.tensor([3.0, 4.0]), "b": [torch.tensor([1.0])]}
    state = tx.init(grads)
    for _ in range(2):
        _, state = tx.update(grads, state, grads)
    found = names(state)
    assert list(found) == ["mean", "norm", "learning_rate", "momentum", "per leaf.a", "per leaf.b.0"]
    assert found["norm"] == pytest.approx(26**0.5)
    assert found["mean"] == pytest.approx(26**0.5)
    assert found["learning_rate"] == 0.75
    assert found["momentum"] == 0.5
    assert found["per leaf.a"] == pytest.approx(0.75 * 1.5 * 5)


def test_names_are_short_where_they_can_be():
    rate = of.inject_hyperparams(of.sgd)
    labels = {"a": "fast", "b": "slow"}
    tx = of.named_chain(
        ("before", of.chain(of.snapshot("norm", of.tree.norm))),
        ("rule", of.partition({"fast": rate(1.0), "slow": rate(0.1)}, labels)),
        ("after", of.chain(of.snapshot("norm", of.tree.norm), of.snapshot("norm", of.tree.max))),
    )
    state = tx.init({"a": torch.ones(1), "b": torch.ones(1)})
    assert list(of.metrics(state)) == [
        "after.0.measurement.norm",
        "after.1.measurement.norm",
        "before.norm",
        "rule.fast.learning_rate",
        "rule.slow.learning_rate",
    ]


def test_metrics_of_skipped_steps():
    tx = of.apply_if_finite(of.chain(of.zero_nans(), of.sgd(1.0)), max_consecutive_errors=5)
    params = {"w": torch.zeros(2), "b": torch.zeros(1)}
    bad = {"w": torch.tensor([1.0, math.nan]), "b": torch.ones(1)}
    _, state = tx.update(bad, tx.init(params), params)
    _, state = tx.update(bad, state, params)
    assert names(state) == {
        "notfinite_count": 2,
        "last_finite": False,
        "total_notfinite": 2,
        "found_nan.b": False,  # a step left out leaves the state inside as it was
        "found_nan.w": False,
    }


def test_metrics_of_accumulation():
    tx = of.multi_steps(of.sgd(1.0), 3, should_skip_update_fn=of.skip_not_finite)
    state = tx.init(torch.zeros(2))
    for g in (torch.ones(2), torch.tensor([1.0, math.inf])):
        _, state = tx.update(g, state)
    assert names(state) == {"mini_step": 1, "gradient_step": 0, "should_skip": True, "num_not_finite": 1}


def test_metrics_of_plateau_and_of_line_searches():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def f(x):
        return (x**2).sum()

    value, grad = of.tree.value_and_grad(f)(x)
    for tx in (of.lbfgs(), of.chain(of.sgd(1.0), of.scale_by_backtracking_linesearch(10))):
        _, state = tx.update(grad, tx.init(x), x, value=value, grad=grad, value_fn=f)
        found = names(state)
        assert found["learning_rate"] == of.tree.get(state, "learning_rate").item()
        assert found["value"] == of.tree.get(state, "value").item()
        assert found["num_linesearch_steps"] == of.tree.get(state, "num_linesearch_steps").item()
        assert found["decrease_error"] == 0
    tx = of.plateau(factor=0.5, patience=0)
    _, state = tx.update(x, tx.init(x), value=torch.tensor(3.0))
    assert names(state) == {"scale": 1.0, "best": 3.0, "num_bad_steps": 0, "cooldown_count": 0}
    tx = of.minimize_by_lbfgs(max_iter=3)
    _, state = tx.update(grad, tx.init(x), x, value=value, grad=grad, value_fn=f)
    assert names(state)["n_iter"] == of.tree.get(state, "n_iter").item()


def test_metrics_are_copies_and_stack_under_vmap():
    tx = of.chain(of.snapshot("norm", of.tree.norm), of.trace(0.9))
    params = torch.zeros(2)
    step = of.make_step(tx, donate=True)
    state, seen = tx.init(params), []
    for size in (1.0, 2.0):
        params, state = step(params, state, torch.tensor([size, 0.0]))
        seen.append(of.metrics(state)["norm"])
    assert [x.item() for x in seen] == [1.0, 2.0]
    states = torch.func.vmap(tx.init)(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert_trees_equal(torch.func.vmap(of.metrics)(states), {"norm": torch.tensor([5.0, 1.0])})


def test_what_says_nothing_has_no_metrics():
    params = params_tree()
    assert of.metrics(of.adamw(1e-3).init(params)) == {}
    assert of.metrics(()) == {}
    assert of.metrics(of.snapshot("all", lambda g: Pair(g["bias"], None)).init(params)) == {}


# Pictures


def test_a_schedule_is_drawn_as_it_is():
    from_above = of.linear_schedule(1.0, 0.0, 4)
    ax = of.plot_schedule({"down": from_above, "flat": 0.5, "live": torch.tensor(0.25)}, steps=6)
    assert [line.get_label() for line in ax.lines] == ["down", "flat", "live"]
    assert list(ax.lines[0].get_xdata()) == list(range(6))
    assert list(ax.lines[0].get_ydata()) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert list(ax.lines[1].get_ydata()) == [0.5] * 6
    assert list(ax.lines[2].get_ydata()) == [0.25] * 6
    same = of.plot_schedule(from_above, steps=2, ax=ax)
    assert same is ax
    assert len(ax.lines) == 4


def test_a_path_is_that_of_the_optimizer(tmp_path):
    tx, x = of.adam(0.1), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    ax = of.plot_path({"adam": tx, "lbfgs": of.lbfgs()}, "rosenbrock", (-1.0, 2.0), steps=5)
    state, want = tx.init(x), [x]
    for _ in range(5):
        grad = torch.func.grad(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)(x)
        updates, state = tx.update(grad, state, x)
        x = of.apply_updates(x, updates)
        want.append(x)
    torch.testing.assert_close(torch.tensor(ax.lines[0].get_xydata()), torch.stack(want))
    ax.figure.savefig(tmp_path / "path.png")
    assert (tmp_path / "path.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["beale", "booth", "himmelblau", "rosenbrock", "three_hump_camel"])
def test_the_stars_are_minima(name):
    ax = of.plot_path(of.sgd(1e-4), name, (0.0, 0.0), steps=1)
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert stars
    for star in stars:
        start = torch.tensor(star.get_xydata()[0])
        end = torch.tensor(
            of.plot_path(of.lbfgs(), name, start, steps=20, ax=ax).lines[-2 - len(stars)].get_xydata()[-1]
        )
        torch.testing.assert_close(end, start, rtol=0.0, atol=1e-5)


def test_a_path_ends_before_what_is_not_finite():
    ax = of.plot_path(of.sgd(10.0), lambda p: (p**4).sum(), (3.0, 3.0), steps=50)
    points = torch.tensor(ax.lines[0].get_xydata())
    assert points.isfinite().all()
    assert 1 < len(points) < 50
    assert not of.plot_path(of.sgd(0.1), lambda p: (0 * p).sum(), (3.0, 3.0), steps=2).collections  # it is flat


def test_bad_arguments_of_pictures_are_refused_in_words():
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        of.plot_schedule(0.1, 0)
    with pytest.raises(TypeError, match="schedule 'a' must be a number or a 0-dim tensor, got 'x'"):
        of.plot_schedule({"a": "x"}, 3)
    with pytest.raises(TypeError, match="tx must be a GradientTransformation"):
        of.plot_path(0.1, "booth", (0.0, 0.0), 3)
    with pytest.raises(ValueError, match=r"function must be one of 'beale', .* got 'banana'"):
        of.plot_path(of.sgd(0.1), "banana", (0.0, 0.0), 3)
    with pytest.raises(ValueError, match=r"start must have two coordinates, got \(1.0,\)"):
        of.plot_path(of.sgd(0.1), "booth", (1.0,), 3)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="plot_schedule needs matplotlib: pip install matplotlib"):
        of.plot_schedule(0.1, 3)
    with pytest.raises(ModuleNotFoundError, match="plot_path needs matplotlib: pip install matplotlib"):
        of.plot_path(of.sgd(0.1), "booth", (0.0, 0.0), 3)


def test_what_an_optimizer_holds_is_found_as_in_a_state():
    """`metrics`, `tree.get` and `eval_params` take an optimizer, before its first step and after."""
    model = torch.nn.Linear(3, 2)
    tx = of.chain(of.snapshot("norm", of.tree.norm), of.adamw(0.1), of.params_ema(0.5))
    opt = of.Optimizer(model, tx)
    assert of.metrics(opt) == {}
    assert of.tree.get(opt, "mu") is None
    assert {name: x.data_ptr() for name, x in of.eval_params(opt).items()} == {
        name: p.data_ptr() for name, p in model.named_parameters()
    }
    params, state = {k: p.detach().clone() for k, p in model.named_parameters()}, None
    state = tx.init(params)
    for _ in range(3):
        opt.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        updates, state = tx.update({k: p.grad for k, p in model.named_parameters()}, state, params)
        params = of.apply_updates(params, updates)
        opt.step()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(of.metrics(opt)["norm"], of.metrics(state)["norm"], **close)
    torch.testing.assert_close(dict(of.tree.get(opt, "mu")), of.tree.get(state, "mu"), **close)
    torch.testing.assert_close(of.eval_params(opt), of.eval_params(tx, state, params), **close)
    torch.testing.assert_close(dict(model.named_parameters()), params, **close)
    with opt.evaluation():
        torch.testing.assert_close(of.eval_params(opt), dict(model.named_parameters()))


def test_optimizers_and_steps_print_what_they_run():
    tx = of.sgd(0.1)
    assert repr(of.make_step(tx, donate=True)) == f"make_step({tx!r}, donate=True, backend='auto')"
    assert repr(tx) in repr(of.Optimizer([torch.ones(1, requires_grad=True)], tx))
    assert repr(of.optim.Adam.transform(lr=0.1)) == "Adam.transform(lr=0.1)"


def test_describe_notes_a_second_learning_rate():
    assert of.describe(of.chain(of.clip(1.0), of.adam(1e-3))).note == ""
    twice = of.describe(of.chain(of.adam(1e-3), of.scale_by_learning_rate(0.1)))
    assert "adam and scale_by_learning_rate each multiply" in repr(twice)


def test_describe_says_how_many_bytes_are_of_which_dtype():
    params = {"weight": torch.zeros(64, 64)}
    assert "dtype:" not in repr(of.describe(of.adam(1e-3), params))
    small = of.describe(of.quantize_state(of.adam(1e-3)), params)
    state = of.quantize_state(of.adam(1e-3)).init(params)
    assert sum(small.dtypes.values()) == small.state == sum(x.numel() * x.element_size() for x in of.tree.leaves(state))
    assert repr(small).splitlines()[-1].startswith("state by dtype: ")
    assert small.dtypes[torch.int8] == small.dtypes[torch.uint8] == 64 * 64


class OwnState(NamedTuple):
    seen: dict


def test_states_print_as_dtypes_and_shapes():
    params = {f"layer{i}": torch.ones(30, 40) for i in range(20)}
    state = of.chain(of.clip(1.0), of.adam(1e-3)).init(params)
    assert repr(state[1][0]).startswith(
        "ScaleByAdamState(\n    count=tensor(0),\n    mu={\n        'layer0': float32[30, 40],"
    )
    assert repr(state).count("and 13 more") == 2
    assert "tensor(7)" in repr(state[1][0]._replace(count=torch.tensor(7)))
    assert pickle.loads(pickle.dumps(state[0])) == state[0] == of.EmptyState()
    assert of.tree.summary(OwnState({"a": [torch.ones(3), 2, None]})) == "OwnState(seen={'a': [float32[3], 2, None]})"
    assert of.tree.summary((torch.nn.Parameter(torch.ones(2)),)) == "(float32[2],)"
    assert of.tree.summary(torch.ones(2, device="meta")) == "float32[2] on meta"
    torch.func.vmap(lambda x: [of.tree.summary({"x": x, "n": x.sum()}), x][1])(torch.ones(2, 3))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_state_prints_no_numbers(case):
    for _, node in of.tree.walk(case.plain().init(params_tree(torch.float32))):
        if hasattr(node, "_fields") and not isinstance(node, Pair):  # which is a tree of users
            values = [x for x in of.tree.leaves(node) if isinstance(x, torch.Tensor)]
            assert not [x for x in values if x.ndim and repr(x) in repr(node)]
            assert len(repr(node)) < 100 * (len(values) + 10)


class TestInside(expecttest.TestCase):
    maxDiff = None

    def test_members_of_a_stack(self):
        tx = of.stacked(of.sgd, learning_rate=torch.ones(3), momentum=0.9)
        self.assertExpectedInline(
            str(of.describe(tx, {"w": torch.ones(3, 100)})),
            """\
transform                   arguments                                            state     read  written
stacked                     inner=sgd                                             48 B     48 B     48 B
  sgd                       learning_rate=float32[3], momentum=0.9
    trace                   decay=0.9, nesterov=False, accumulator_dtype=None  1.20 kB  1.20 kB  1.20 kB
    scale_by_learning_rate  learning_rate=(injected), flip_sign=True
gradients                                                                               1.20 kB
parameters                                                                              1.20 kB  1.20 kB
total                                                                          1.25 kB  3.65 kB  2.45 kB
state by dtype: float32 1.20 kB, int64 24 B, float64 24 B""",
        )

    def test_a_stack_of_stacks_inside_a_chain(self):
        tx = of.chain(of.stacked(of.stacked(of.trace(0.5))), of.optim.SGD.transform(lr=0.1))
        self.assertExpectedInline(
            str(of.describe(tx, torch.ones(3, 2, 10))),
            """\
transform        arguments                                          state   read  written
chain
  stacked
    stacked
      trace      decay=0.5, nesterov=False, accumulator_dtype=None  240 B  240 B    240 B
  SGD.transform  lr=0.1
gradients                                                                  240 B
parameters                                                                 240 B    240 B
total                                                               240 B  720 B    480 B""",
        )
