"""Gradients that come and go are data to every rule of the table: a few traces serve all patterns of them."""

import functools
import gc

import pytest
import torch
from case import Case
from cases import CASES
from helpers import assert_trees_equal

import optimfn as of
from optimfn.fused.run import _known
from optimfn.fused.run._shared import shared

INNER_PRODUCTS = "it takes inner products over the memory of all leaves, and an absent leaf goes on there as it was"
SEES_ALL = "the loss that it is given is a function of all leaves, of those that move and those that do not"
ON_THE_HOST = "it reads tensors on the host, and is never traced to the end"
ONE_VECTOR = "it puts the gradients that are there into one vector, whose length they make"
APART = {
    "scale_by_lbfgs": INNER_PRODUCTS,
    "lbfgs": INNER_PRODUCTS,
    "scale_by_backtracking_linesearch": SEES_ALL,
    "scale_by_zoom_linesearch": SEES_ALL,
    "minimize_by_lbfgs": ON_THE_HOST,
    "minimize_by_lbfgs_with_line_search": ON_THE_HOST,
    "flatten": ONE_VECTOR,
    **dict.fromkeys(["momo", "momo_adapted", "momo_adam", "momo_adam_adapted"], INNER_PRODUCTS),
    **dict.fromkeys(["prodigy", "prodigy_of_the_authors", "prodigy_safeguarded", "dadapt_adamw"], INNER_PRODUCTS),
    **dict.fromkeys(["dadapt_sgd", "dadapt_adagrad", "dadapt_lion"], INNER_PRODUCTS),
    **dict.fromkeys(["dog", "dowg"], "how far all leaves have come is measured with those that do not move"),
    **dict.fromkeys(
        ["sam", "sam_of_three", "asam", "friendly_sam"],
        "the foot of a climb is remembered for leaves without gradient too",
    ),
    **dict.fromkeys(["differentially_private_aggregate", "dpsgd"], "the examples of all leaves are summed by ATen"),
}
# The first pattern; all gradients; two to learn from; and one for each kind of pattern: which of vectors and matrices
# are there, and whether that is more than one leaf.
MOST = 9


pytestmark = pytest.mark.filterwarnings("ignore:.* runs eagerly")  # the rules that read tensors on the host


@pytest.fixture
def traces(monkeypatch):
    """A list that grows by one with every trace."""
    seen, original = [], _known.trace
    monkeypatch.setattr(_known, "trace", lambda *args, **kwargs: seen.append(1) or original(*args, **kwargs))
    shared.clear()
    return seen


def leaves(count=6):
    shapes = [(4, 3), (5,), (2, 3)]
    return {f"p{i}": torch.randn(shapes[i % 3], dtype=torch.float64) for i in range(count)}


def patterns(params, number, seed=0):
    """Gradients of which any may be absent, and in the end none is."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(number):
        here = (torch.rand(len(params), generator=generator) < 0.5) | (i == number - 1)
        yield {name: torch.randn_like(p) if x else None for (name, p), x in zip(params.items(), here, strict=True)}


def check(tx, traces, params, most=MOST, number=24, donate=(True,), off=1e-11, **extra):
    """Follow a rule over many patterns, donating or not, compare it with its eager steps, and count the traces."""
    eager, want = of.make_step(tx, backend="eager"), (params, tx.init(params))
    steps = {way: of.make_step(tx, donate=way) for way in donate}
    own, made = {way: of.tree.map(torch.clone, want) for way in steps}, dict.fromkeys(steps, 0)
    for grads in patterns(params, number):
        want = eager(*want, grads, **extra)
        for way, step in steps.items():
            before = len(traces)
            own[way] = step(*own[way], grads, **extra)
            made[way] += len(traces) - before
            assert_trees_equal(own[way], want, rtol=1e-9, atol=off)
    assert max(made.values()) <= most


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_patterns_of_absent_gradients_are_data(case: Case, traces):
    tx, params = case.plain(), leaves()
    # Where a count on the host chooses what is computed, there are two programs; of two counts four.
    choices = 2 ** sum(spec.kind == "host" for spec in of.tree.leaves(of.state_spec(tx, params)))
    most = 1000 if case.name in APART else choices * MOST
    # Eager steps multiply the matrices that are there together, with sums in another order; in bfloat16 an element of
    # an orthogonal matrix is then a unit off, times the rate, in each of 24 steps.
    in_half = case.skips.get("differentiable", "").startswith("computed in bfloat16")
    off = 24 * case.kwargs["learning_rate"] * 2**-8 if in_half else max(1e-11, case.layouts)
    check(tx, traces, params, most, donate=(True, False), off=off, **case.extra)


def test_every_exemption_is_a_case():
    assert set(APART) <= {case.name for case in CASES}


@pytest.mark.parametrize("name", ["adam", *APART])
def test_no_pattern_leaves_anything_behind(name):
    case = next(case for case in CASES if case.name == name)
    params = leaves(3 if name in APART else 16)
    tx = case.plain()
    state, step, sizes = tx.init(params), of.make_step(tx, donate=True), []
    for seed in range(3):
        for grads in patterns(params, 40, seed):
            step(params, state, grads, **case.extra)
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert sizes[2] <= sizes[1] + 50


def averaged(inner):
    """What goes on without a gradient: a mean of the parameters."""
    return of.chain(inner, of.params_ema(0.9))


RULES = {
    "an average behind clipping": lambda: averaged(of.chain(of.clip_by_global_norm(1.0), of.adam(0.1))),
    "averages of averages": lambda: averaged(averaged(of.sgd(0.1))),
    "accumulation of what is averaged": lambda: of.multi_steps(averaged(of.adam(0.1)), 3),
    "several rules": lambda: of.partition(
        {"a": averaged(of.adam(0.1)), "b": of.lamb(0.1), "c": of.set_to_zero()},
        lambda params: {name: "abc"[int(name[1:]) % 3] for name in params},
    ),
    "a rule of one leaf": lambda: of.partition(
        {"a": of.adam(0.1), "b": of.adafactor(0.1)},
        lambda params: {name: "a" if name == "p0" else "b" for name in params},
    ),
    "noise": lambda: of.chain(of.add_noise(0.1, 0.5, 0), of.lars(0.1)),
    "finite steps of each leaf": lambda: of.per_leaf(of.apply_if_finite(of.adam(0.1), 2)),
    "a sum written by hand": lambda: of.stateless(
        lambda updates, params: of.tree.scale(1 / (1 + sum(u.square().sum() for u in of.tree.leaves(updates))), updates)
    ),
    "all are finite": lambda: of.stateless(
        lambda updates, params: of.tree.where(
            functools.reduce(torch.logical_or, [u.isnan().any() for u in of.tree.leaves(updates)], torch.tensor(False)),
            of.tree.zeros_like(updates),
            updates,
        )
    ),
}


@pytest.mark.parametrize("donate", [True, False], ids=["donating", "pure"])
@pytest.mark.parametrize("name", RULES)
def test_composed_rules(name, donate, traces):
    check(RULES[name](), traces, leaves(9), donate=(donate,))


def test_a_list_of_parameters(traces):
    tx = of.chain(of.adam(0.1), averaged(of.per_leaf(of.sgd(0.1, momentum=0.9))))
    params = [*leaves().values()]
    step, eager, want = of.make_step(tx), of.make_step(tx, backend="eager"), (params, tx.init(params))
    own = want
    for grads in patterns(leaves(), 24):
        own, want = step(*own, [*grads.values()]), eager(*want, [*grads.values()])
        assert_trees_equal(own, want, rtol=1e-9, atol=1e-11)
    assert len(traces) <= MOST


def test_what_is_computed_without_a_gradient_may_be_used_by_others(traces):
    """The sum goes over all leaves, so its part without a gradient is nobody's alone."""

    def update(updates, state, params, **extra):
        kept = of.tree.map(lambda s, u: s * 0.5 if u is None else s + u, state, updates)
        total = of.tree.sum(kept)
        return of.tree.map(lambda u: u * total, updates), kept

    check(of.GradientTransformation(of.tree.zeros_like, update), traces, leaves(), 1000)


def test_complex_leaves_whose_averages_go_on(traces):
    params = {name: torch.complex(p, p.flip(0)) for name, p in leaves().items()}
    check(averaged(of.adam(0.1)), traces, params)
