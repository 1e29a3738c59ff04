"""Second derivatives against whole matrices: exact where they are exact, and in the mean where they are random."""

import itertools
from typing import NamedTuple

import pytest
import torch
from helpers import Pair, assert_trees_equal, params_tree
from torch.nn import functional

import optimfn as of

SIGMAS = 5.0  # of the mean of the samples: of all numbers compared here, none is farther off by chance


def net(params, x):
    """Three inputs, four hidden units, three outputs."""
    return torch.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def weights():
    shapes = {"in": (3, 4), "bias": (4,), "out": (4, 3)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def inputs(n):
    return torch.randn(n, 3, dtype=torch.float64)


def to_vector(tree):
    return torch.cat([x.reshape(-1) for x in of.tree.leaves(tree)])


def from_vector(vector, like):
    pieces = vector.split([x.numel() for x in of.tree.leaves(like)])
    return of.tree.unflatten(
        like, [piece.reshape(x.shape) for piece, x in zip(pieces, of.tree.leaves(like), strict=True)]
    )


def whole_hessian(f, params):
    return torch.func.hessian(lambda vector: f(from_vector(vector, params)))(to_vector(params))


def assert_mean(samples, want):
    """The mean of independent samples, the rows, is what it should be, as far as their spread can tell."""
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - want).abs() <= SIGMAS * error + 1e-12).all()


def many(estimate, keys):
    return torch.func.vmap(lambda key: to_vector(estimate(key)))(torch.arange(keys))


def entropy(params, x, y):
    return functional.cross_entropy(net(params, x), y)


# Products with Hessians


def test_a_product_is_that_with_the_whole_hessian():
    params, x, y = weights(), inputs(6), torch.tensor([0, 1, 2, 2, 1, 0])
    v = of.tree.map(torch.randn_like, params)
    want = whole_hessian(lambda p: entropy(p, x, y), params) @ to_vector(v)
    torch.testing.assert_close(to_vector(of.hvp(entropy, params, v, x, y)), want, rtol=1e-12, atol=1e-14)


def test_products_of_every_kind_of_tree():
    params = params_tree()
    v = of.tree.map(torch.randn_like, params)

    def f(tree):
        return sum((x**3).sum() for x in of.tree.leaves(tree))

    product = of.hvp(f, params, v)
    assert_trees_equal(product, of.tree.map(lambda p, t: 6 * p * t, params, v), rtol=1e-14)
    diagonal, aux = of.hutchinson_diagonal(lambda tree: (f(tree), {"size": f(tree)}), params, 0, has_aux=True)
    assert_trees_equal(diagonal, of.tree.scale(6.0, params), rtol=1e-14)
    torch.testing.assert_close(aux["size"], f(params))


@pytest.mark.parametrize("empty", [{}, (), None, {"a": None, "b": []}])
def test_empty_trees(empty):
    one, x = torch.ones(()), torch.ones(2, 3)
    assert of.hvp(lambda p: one, empty, empty) == empty
    assert of.hvp(lambda p: (one, 7), empty, empty, has_aux=True) == (empty, 7)
    assert of.hutchinson_diagonal(lambda p: one, empty, 0) == empty
    assert of.gauss_newton_bartlett_diagonal(lambda p, x: x, empty, 0, x) == empty
    assert of.fisher_diagonal(lambda p, x: x, empty, 0, x) == empty
    assert of.empirical_fisher_diagonal(lambda p, x: x.sum(), empty, x) == empty


def test_a_product_returns_what_the_function_returns_beside_its_value():
    x = torch.tensor([1.0, 2.0])
    product, aux = of.hvp(lambda x: ((x**2).sum(), {"twice": 2 * x}), x, torch.ones(2), has_aux=True)
    assert_trees_equal(product, torch.tensor([2.0, 2.0]))
    assert_trees_equal(aux, {"twice": 2 * x})


def test_products_under_vmap_and_through_them_a_third_derivative():
    points, v = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def f(x):
        return (x**4).sum() + x.prod()

    together = torch.func.vmap(lambda x: of.hvp(f, x, v))(points)
    for x, product in zip(points, together, strict=True):
        torch.testing.assert_close(product, torch.func.hessian(f)(x) @ v)
    third = torch.func.jacrev(lambda x: of.hvp(f, x, v))(points[0])
    torch.testing.assert_close(third, torch.func.jacrev(torch.func.hessian(f))(points[0]) @ v)


def test_a_vector_takes_the_dtypes_of_the_parameters_and_leaves_that_do_not_matter_give_zero():
    params = {"used": torch.ones(2, dtype=torch.bfloat16), "not": torch.ones(3)}
    v = of.tree.cast(params, torch.float64)
    product = of.hvp(lambda p: (p["used"] ** 2).sum(), params, v)
    assert_trees_equal(product, {"used": torch.full((2,), 2.0, dtype=torch.bfloat16), "not": torch.zeros(3)})


# Hutchinson's diagonal


def coupled(x):
    """Its Hessian depends on the point and is full."""
    return torch.sin(x[0] * x[1]) + (x**3).sum() * x[2] / 3


def test_a_diagonal_hessian_is_found_exactly_whatever_the_key():
    params = {"a": torch.randn(4, dtype=torch.float64), "b": [torch.randn((), dtype=torch.float64)]}
    curvature = {"a": torch.tensor([-1.0, 0.0, 2.0, 3.0]).double(), "b": [torch.tensor(5.0).double()]}

    def f(p):
        return of.tree.sum(of.tree.mul(curvature, of.tree.mul(p, p))) / 2

    for key in (0, 7, torch.tensor(-3)):
        assert_trees_equal(of.hutchinson_diagonal(f, params, key), curvature)


def test_hutchinson_has_the_right_mean_and_the_variance_that_is_said():
    x = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    hessian = torch.func.hessian(coupled)(x)
    want = (hessian**2).sum(0) - hessian.diagonal() ** 2
    for samples in (1, 4):
        found = many(lambda key, n=samples: of.hutchinson_diagonal(coupled, x, key, samples=n), 4000)
        assert_mean(found, hessian.diagonal())
        # The variance of a sample variance of n values is at most (kurtosis - 1) / n, and the kurtosis here below 3.
        assert ((found.var(0) - want / samples).abs() <= SIGMAS * (2 / 4000) ** 0.5 * want / samples).all()


def test_random_numbers_are_a_function_of_the_key():
    x = torch.randn(30, dtype=torch.float64)
    estimates = [of.hutchinson_diagonal(coupled, x, key) for key in (1, torch.tensor(1), 2)]
    assert torch.equal(estimates[0], estimates[1])
    assert not torch.equal(estimates[0], estimates[2])
    before = torch.get_rng_state()
    of.hutchinson_diagonal(coupled, x, 0)
    assert torch.equal(torch.get_rng_state(), before)


# Gauss-Newton and Fisher


class Likelihood(NamedTuple):
    """How the Hessian of the loss by the outputs of one example looks, written down by itself."""

    curvature: object  # outputs (d,) -> (d, d)
    observations: int  # in the outputs of one example


LIKELIHOODS = {
    "categorical": Likelihood(lambda z: torch.diag(z.softmax(0)) - torch.outer(z.softmax(0), z.softmax(0)), 1),
    "bernoulli": Likelihood(lambda z: torch.diag(torch.sigmoid(z) * (1 - torch.sigmoid(z))), 3),
    "normal": Likelihood(lambda z: torch.eye(3, dtype=z.dtype), 3),
}
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


def gauss_newton(params, x, likelihood):
    """The whole matrix, example by example: the mean of `J^T S J` over the observations."""
    curvature, observations = LIKELIHOODS[likelihood]
    total = 0
    for row in x:
        jacobian = torch.func.jacrev(lambda v, row=row: net(from_vector(v, params), row))(to_vector(params))
        total = total + jacobian.mT @ curvature(net(params, row)) @ jacobian
    return total / (len(x) * observations)


@every_likelihood
def test_the_matrix_of_the_test_is_the_hessian_of_the_loss_where_the_model_is_linear(likelihood):
    """So that the oracle, its scale above all, is not only ours."""
    x, w = inputs(5), torch.randn(9, dtype=torch.float64)
    losses = {
        "categorical": lambda z: functional.cross_entropy(z, torch.tensor([0, 1, 2, 0, 1])),
        "bernoulli": lambda z: functional.binary_cross_entropy_with_logits(z, (z > 0).double().detach()),
        "normal": lambda z: functional.mse_loss(z, torch.zeros_like(z)) / 2,
    }
    curvature, observations = LIKELIHOODS[likelihood]
    hessian = torch.func.hessian(lambda w: losses[likelihood](x @ w.reshape(3, 3)))(w)
    total = 0
    for row in x:
        jacobian = torch.func.jacrev(lambda w, row=row: row @ w.reshape(3, 3))(w)
        total = total + jacobian.mT @ curvature(row @ w.reshape(3, 3)) @ jacobian
    torch.testing.assert_close(total / (len(x) * observations), hessian, rtol=1e-10, atol=1e-12)


@every_likelihood
def test_gauss_newton_bartlett_has_the_diagonal_as_its_mean(likelihood):
    params, x = weights(), inputs(4)
    want = gauss_newton(params, x, likelihood).diagonal()
    found = many(
        lambda key: of.gauss_newton_bartlett_diagonal(net, params, key, x, likelihood=likelihood),
        4000,
    )
    assert (found >= 0).all()
    assert_mean(found, want)


@every_likelihood
def test_the_fisher_diagonal_has_the_same_mean_and_less_spread(likelihood):
    params, x = weights(), inputs(4)
    want = gauss_newton(params, x, likelihood).diagonal()
    fisher = many(lambda key: of.fisher_diagonal(net, params, key, x, likelihood=likelihood), 4000)
    assert (fisher >= 0).all()
    assert_mean(fisher, want)
    bartlett = many(lambda key: of.gauss_newton_bartlett_diagonal(net, params, key, x, likelihood=likelihood), 4000)
    assert fisher.var(0).sum() < bartlett.var(0).sum()


def test_gauss_newton_bartlett_is_algorithm_2_of_sophia_at_one_of_all_labels():
    """Every sample is `B g * g` of some labels, and each labelling comes as often as the model says."""
    params, x, n = weights(), inputs(2), 3000
    labellings = [torch.tensor(y) for y in itertools.product(range(3), repeat=2)]
    possible = []
    for y in labellings:
        g = to_vector(torch.func.grad(entropy)(params, x, y))
        possible.append(2 * g * g)
    found = many(lambda key: of.gauss_newton_bartlett_diagonal(net, params, key, x), n)
    distance = (found[:, None] - torch.stack(possible)).abs().amax(-1)
    assert (distance.amin(1) < 1e-12).all()
    often = torch.bincount(distance.argmin(1), minlength=9) / n
    odds = net(params, x).softmax(1)
    want = torch.stack([odds[0, y[0]] * odds[1, y[1]] for y in labellings])
    assert ((often - want).abs() <= SIGMAS * (want * (1 - want) / n).sqrt() + 1e-12).all()


def test_classes_without_odds_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf], [0.0, -torch.inf, 0.0], [-torch.inf, -torch.inf, 3.0]])

    def score(key):
        """The gradients by the logits themselves: zero where there is one class, a quarter each where there are two."""
        return of.gauss_newton_bartlett_diagonal(lambda z: z + logits, torch.zeros(3, 3), key)

    found = torch.func.vmap(score)(torch.arange(200))
    want = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.0, 0.25], [0.0, 0.0, 0.0]]) / 3
    torch.testing.assert_close(found, want.expand_as(found))


def test_sequences_count_every_token_and_padding_is_left_out_by_the_model():
    params, x = weights(), inputs(6)
    flat = of.gauss_newton_bartlett_diagonal(net, params, 0, x)
    folded = of.gauss_newton_bartlett_diagonal(net, params, 0, x.reshape(2, 3, 3))
    assert_trees_equal(folded, flat, rtol=1e-12)
    keep = torch.tensor([True, True, False, True, False, True])
    padded = of.gauss_newton_bartlett_diagonal(lambda p, x: net(p, x)[keep], params, 0, x)
    assert_trees_equal(padded, of.gauss_newton_bartlett_diagonal(net, params, 0, x[keep]), rtol=1e-12)


def test_the_empirical_fisher_diagonal_is_the_mean_of_squared_gradients():
    params, x, y = weights(), inputs(5), torch.tensor([0, 2, 2, 1, 0])
    grads = [torch.func.grad(entropy)(params, row, label) for row, label in zip(x, y, strict=True)]
    want = of.tree.scale(1 / 5, of.tree.add(*[of.tree.mul(g, g) for g in grads]))
    for chunk_size in (None, 1, 2, 5, 9):
        found = of.empirical_fisher_diagonal(entropy, params, x, y, chunk_size=chunk_size)
        assert_trees_equal(found, want, rtol=1e-12)
    batch = {"x": x, "more": Pair(y, None)}
    found = of.empirical_fisher_diagonal(lambda p, b: entropy(p, b["x"], b["more"].left), params, batch)
    assert_trees_equal(found, want, rtol=1e-12)


def test_chunks_do_not_change_the_fisher_diagonal():
    params, x = weights(), inputs(5)
    want = of.fisher_diagonal(net, params, 3, x)
    for chunk_size in (1, 2, 5):
        assert_trees_equal(of.fisher_diagonal(net, params, 3, x, chunk_size=chunk_size), want, rtol=1e-12)


def test_a_batch_without_examples_gives_zeros():
    params, zeros = weights(), of.tree.zeros_like(weights())
    assert_trees_equal(of.gauss_newton_bartlett_diagonal(net, params, 0, inputs(0)), zeros)
    assert_trees_equal(of.fisher_diagonal(net, params, 0, inputs(0)), zeros)


def test_diagonals_are_stacked_by_vmap_with_a_key_for_each_member():
    members, keys = [weights() for _ in range(3)], torch.arange(3)
    stacked = of.tree.map(lambda *xs: torch.stack(xs), *members)
    x, y = inputs(4), torch.tensor([0, 1, 2, 1])
    functions = (
        lambda p, key: of.hutchinson_diagonal(entropy, p, key, x, y),
        lambda p, key: of.gauss_newton_bartlett_diagonal(net, p, key, x),
        lambda p, key: of.fisher_diagonal(net, p, key, x),
        lambda p, key: of.empirical_fisher_diagonal(entropy, p, x, y),
    )
    for function in functions:
        together = torch.func.vmap(function)(stacked, keys)
        apart = [function(p, key) for p, key in zip(members, keys, strict=True)]
        assert_trees_equal(together, of.tree.map(lambda *xs: torch.stack(xs), *apart), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_diagonals_of_half_precision_are_float32_and_do_not_underflow(dtype):
    w, x = torch.full((2,), 1e-2, dtype=dtype), torch.full((8, 2), 1e-3, dtype=dtype)

    def model(w, x):
        return x * w

    want = (x[0].double() ** 2 / 4).float()  # odds of a half
    one = of.fisher_diagonal(model, w, 0, x, likelihood="bernoulli")
    assert one.dtype == torch.float32
    torch.testing.assert_close(one, want / 2, rtol=2e-2, atol=0.0)  # two observations in each example
    assert of.gauss_newton_bartlett_diagonal(model, w, 0, x, likelihood="bernoulli").dtype == torch.float32
    assert of.empirical_fisher_diagonal(lambda w, x: (x * w).sum(), w, x).dtype == torch.float32
    diagonal = of.hutchinson_diagonal(lambda w: (w.float() ** 2).sum() * 1e-4, w, 0)
    torch.testing.assert_close(diagonal, torch.full((2,), 2e-4), rtol=1e-2, atol=0.0)


def test_large_batches_in_float16_do_not_overflow():
    """The sum of the gradients of all examples would be infinite; over the root of their number it is not."""
    w, x = torch.zeros(1, dtype=torch.float16), torch.full((4096, 1), 64.0, dtype=torch.float16)
    found = many(lambda key: of.gauss_newton_bartlett_diagonal(lambda w, x: x * w, w, key, x, likelihood="normal"), 200)
    assert found.isfinite().all()
    assert_mean(found, torch.tensor([4096.0]))


# What is refused


def test_complex_and_whole_numbers_are_refused_in_words():
    bad = {"w": torch.ones(2), "z": [torch.ones(2, dtype=torch.complex64)]}
    x = torch.ones(2, 2)
    calls = (
        lambda p: of.hvp(lambda p: p["w"].sum(), p, p),
        lambda p: of.hutchinson_diagonal(lambda p: p["w"].sum(), p, 0),
        lambda p: of.gauss_newton_bartlett_diagonal(lambda p, x: x * p["w"], p, 0, x),
        lambda p: of.fisher_diagonal(lambda p, x: x * p["w"], p, 0, x),
        lambda p: of.empirical_fisher_diagonal(lambda p, x: (x * p["w"]).sum(), p, x),
    )
    for call in calls:
        with pytest.raises(
            TypeError, match=r"params must be real, got torch.complex64 at 'z.0'; .* torch.view_as_real"
        ):
            call(bad)
        with pytest.raises(TypeError, match=r"params must hold floating tensors, got tensor\(\[1\]\) at 'n'"):
            call({"w": torch.ones(2), "n": torch.tensor([1])})


def test_bad_arguments_are_refused_in_words():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="v must have the structure of params"):
        of.hvp(lambda p: p["a"].sum(), {"a": x}, {"b": x})
    with pytest.raises(ValueError, match=r"v has the shape \(2,\) at 'a', params \(3,\)"):
        of.hvp(lambda p: p["a"].sum(), {"a": x}, {"a": torch.ones(2)})
    with pytest.raises(TypeError, match="f must be callable, got 3"):
        of.hvp(3, x, x)
    with pytest.raises(TypeError, match="key must be a whole number"):
        of.hutchinson_diagonal(torch.sum, x, 0.5)
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        of.hutchinson_diagonal(torch.sum, x, 0, samples=0)
    with pytest.raises(
        ValueError, match="likelihood must be one of 'categorical', 'bernoulli', 'normal', got 'poisson'"
    ):
        of.gauss_newton_bartlett_diagonal(lambda p: p, x, 0, likelihood="poisson")
    with pytest.raises(TypeError, match="model must return a real tensor with 1 axes or more, got 3"):
        of.gauss_newton_bartlett_diagonal(lambda p: 3, x, 0)
    with pytest.raises(TypeError, match="model must return a real tensor with 1 axes or more"):
        of.fisher_diagonal(lambda p, x: p.sum(), x, 0, x)
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        of.fisher_diagonal(lambda p, x: p * x, x, 0, x, chunk_size=0)
    for batch in ((), (x, torch.ones(2)), (torch.ones(()),), (x, 7)):
        with pytest.raises(ValueError, match="batch must hold tensors with the examples along the first axis"):
            of.empirical_fisher_diagonal(lambda p, *b: p.sum(), x, *batch)


def test_rademacher_numbers_are_plus_and_minus_one():
    z = of.tree.random_like(
        0, {"w": torch.empty(10_000), "c": torch.empty((), dtype=torch.float64)}, of.tree.rademacher
    )
    assert set(z["w"].unique().tolist()) == {-1.0, 1.0}
    assert z["w"].mean().abs() <= SIGMAS / 100
    assert z["w"].dtype == torch.float32
    assert z["c"].dtype == torch.float64
