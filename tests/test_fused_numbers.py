"""Python numbers of a rule are no part of the source of its kernels, but for those that decide what is computed."""

import pytest
import torch
from helpers import assert_trees_equal, like, wide_params

import optimfn as of
from optimfn.fused.run import _build


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As if this process had loaded no kernel, with a cache of its own."""
    monkeypatch.setattr(_build, "_loaded", _build._Loaded())
    monkeypatch.setenv("OPTIMFN_CACHE", str(tmp_path))
    return tmp_path


def files_after(steps, cache):
    """The sources in the cache when each of these transformations has taken a fused step."""
    params = wide_params()
    grads = like(params)
    for tx in steps:
        step = of.make_step(tx, backend="fused")
        want = of.make_step(tx, backend="eager")(params, tx.init(params), grads)
        assert_trees_equal(step(params, tx.init(params), grads), want, rtol=1e-5, atol=1e-6)
    return sorted(path.name for path in cache.glob("**/*.c"))


def test_fifty_learning_rates_are_compiled_once(unbuilt, monkeypatch):
    ran, build = [], _build._compile
    monkeypatch.setattr(_build, "_compile", lambda *args: ran.append(args) or build(*args))
    assert len(files_after([of.adamw(1e-3 * (1 + i)) for i in range(50)], unbuilt)) == 1
    assert len(ran) == 1


@pytest.mark.parametrize(
    "make",
    [
        # Some of these numbers are equal now and then, which must not make another kernel.
        lambda x: of.adamw(x, b1=1 - x, b2=1 - x / 7, eps=x / 10, weight_decay=0.01),
        lambda x: of.chain(of.clip_by_global_norm(10 * x), of.clip(x), of.sgd(0.01, momentum=1 - x)),
        lambda x: of.lion(x, b1=1 - 2 * x, weight_decay=0.02),
        lambda x: of.rmsprop(x, decay=1 - x, eps=x / 10),
        lambda x: of.lamb(x, weight_decay=x),
        lambda x: of.adafactor(x),
    ],
    ids=["adamw", "clipped", "lion", "rmsprop", "lamb", "adafactor"],
)
def test_rules_that_differ_in_numbers_only_share_their_kernels(make, unbuilt):
    assert len(files_after([make(x) for x in (0.01, 0.02, 0.0371)], unbuilt)) == 1


@pytest.mark.parametrize(
    "schedule",
    [
        lambda n: of.warmup_cosine_decay_schedule(0.0, 0.1, 2 + n, 10 + 3 * n),
        lambda n: of.linear_schedule(0.1, 0.01, 5 + n, n),
        lambda n: of.piecewise_constant_schedule(0.1, {3 + n: 0.5, 9 * n: 0.1}),
        lambda n: of.polynomial_schedule(0.1, 0.01, 2, 4 + n),
    ],
    ids=["cosine", "linear", "piecewise", "polynomial"],
)
def test_lengths_of_schedules_are_no_part_of_the_source(schedule, unbuilt):
    assert len(files_after([of.sgd(schedule(n)) for n in (1, 2, 7)], unbuilt)) == 1


def test_whole_numbers_are_exact_and_as_eager_takes_them():
    """Beyond what a float holds, negative, and as a divisor."""
    tx = of.GradientTransformation(
        lambda params: {"n": torch.tensor(2**60 + 1), "x": torch.tensor(0.5)},
        lambda updates, state, params: (
            updates,
            {"n": (state["n"] - (2**59 + 3)) * -1 + 2**62 % 7, "x": state["x"] * 3 - 2**24 - 1 + state["n"] % 5},
        ),
    )
    leaf = torch.ones(3)
    state = tx.init(leaf)
    got, want = state, state
    for _ in range(2):
        got = of.make_step(tx, backend="fused")(leaf, got, leaf)[1]
        want = of.make_step(tx, backend="eager")(leaf, want, leaf)[1]
    assert_trees_equal(got, want, rtol=0, atol=0)


def test_numbers_that_decide_what_is_computed_make_kernels_of_their_own(unbuilt):
    """A small weight of `lerp` is taken from one end, a large one from the other; a square is no power."""
    leaf = torch.rand(40) + 0.5

    def powers(exponent, weight):
        return of.stateless(lambda updates, params: (updates**exponent).lerp(params, weight))

    for exponent, weight in ((2.0, 0.3), (2.5, 0.3), (2.7, 0.4), (2.0, 0.7), (float("inf"), -0.0)):
        tx = powers(exponent, weight)
        got, want = (of.make_step(tx, backend=b)(leaf, tx.init(leaf), leaf / 2)[0] for b in ("fused", "eager"))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert len(list(unbuilt.glob("**/*.c"))) == 3


def test_only_the_first_file_of_a_process_has_the_driver(unbuilt):
    files_after([of.adamw(0.1), of.lion(0.1), of.rmsprop(0.1)], unbuilt)
    texts = [path.read_text() for path in unbuilt.glob("**/*.c")]
    assert len(texts) == 3
    assert sum("void run(const Plan *plan" in text for text in texts) == 1
