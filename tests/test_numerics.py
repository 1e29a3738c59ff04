"""Projections, numerics, linear algebra and the loop they share."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from helpers import assert_trees_equal

import optimfn as of

X = {"a": torch.tensor([[0.5, 2.1, -3.5], [1.0, 2.0, 3.0]], dtype=torch.float64), "b": [torch.tensor(-0.7).double()]}
A = {"a": torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64), "b": [torch.tensor(2.0).double()]}


def flat(tree):
    return np.concatenate([np.ravel(x.numpy()) for x in of.tree.leaves(tree)])


# Projections: what each set is, and its nearest point by another way

SETS = {
    "non_negative": (lambda x: of.projection_non_negative(x), lambda v: v.min() >= 0),
    "box": (lambda x: of.projection_box(x, -0.5, 1.5), lambda v: v.min() >= -0.5 and v.max() <= 1.5),
    "hypercube": (lambda x: of.projection_hypercube(x, 2.0), lambda v: v.min() >= 0 and v.max() <= 2.0),
    "simplex": (lambda x: of.projection_simplex(x, 3.0), lambda v: v.min() >= 0 and abs(v.sum() - 3) < 1e-9),
    "l1_ball": (lambda x: of.projection_l1_ball(x, 2.0), lambda v: np.abs(v).sum() <= 2 + 1e-9),
    "l1_sphere": (lambda x: of.projection_l1_sphere(x, 2.0), lambda v: abs(np.abs(v).sum() - 2) < 1e-9),
    "l2_ball": (lambda x: of.projection_l2_ball(x, 2.0), lambda v: np.linalg.norm(v) <= 2 + 1e-9),
    "l2_sphere": (lambda x: of.projection_l2_sphere(x, 9.0), lambda v: abs(np.linalg.norm(v) - 9) < 1e-9),
    "linf_ball": (lambda x: of.projection_linf_ball(x, 0.6), lambda v: np.abs(v).max() <= 0.6),
    "vector": (lambda x: of.projection_vector(x, A), lambda v: np.linalg.matrix_rank([v, flat(A)], tol=1e-9) == 1),
    "hyperplane": (lambda x: of.projection_hyperplane(x, A, 4.0), lambda v: abs(v @ flat(A) - 4) < 1e-9),
    "halfspace": (lambda x: of.projection_halfspace(x, A, -1.0), lambda v: v @ flat(A) <= -1 + 1e-9),
}
NOT_CONVEX = ("l1_sphere", "l2_sphere")
every_set = pytest.mark.parametrize("name", SETS)


@every_set
def test_a_projection_is_inside_keeps_the_tree_and_stays_when_repeated(name):
    project, inside = SETS[name]
    for dtype in (torch.float32, torch.float64):
        x = of.tree.cast(X, dtype)
        y = project(of.tree.cast(x, torch.float64))
        assert inside(flat(y))
        assert of.tree.structure(y) == of.tree.structure(x)
        assert_trees_equal(project(y), y, rtol=1e-9, atol=1e-9)
        if name not in ("vector", "hyperplane", "halfspace"):
            assert {leaf.dtype for leaf in of.tree.leaves(project(x))} == {dtype}


@every_set
def test_no_point_of_the_set_is_nearer(name):
    """For a convex set: x - p makes an obtuse angle with every q - p. For a sphere, random points of it are farther."""
    project, inside = SETS[name]
    x, p = flat(X), flat(project(X))
    rng = np.random.default_rng(0)
    for _ in range(200):
        raw = {"a": torch.from_numpy(rng.normal(size=(2, 3)) * 3), "b": [torch.tensor(rng.normal() * 3).double()]}
        q = flat(project(raw))
        assert inside(q)
        if name not in NOT_CONVEX:
            assert (x - p) @ (q - p) <= 1e-9
        assert np.linalg.norm(x - p) <= np.linalg.norm(x - q) + 1e-9


@every_set
def test_projections_vmap_and_differentiate(name):
    project, _ = SETS[name]
    many = torch.randn(5, 3, dtype=torch.float64)

    def one(v):
        return project({"a": torch.stack([v, 2 * v]), "b": [v.sum()]})["a"]

    together = torch.func.vmap(one)(many)
    for v, result in zip(many, together, strict=True):
        assert_trees_equal(result, one(v), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(one, many[0].clone().requires_grad_(), atol=1e-6)


def test_a_scale_may_be_a_tensor_with_a_gradient():
    for project in (
        of.projection_simplex,
        of.projection_l1_ball,
        of.projection_l1_sphere,
        of.projection_l2_ball,
        of.projection_l2_sphere,
        of.projection_linf_ball,
        of.projection_hypercube,
    ):
        scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda s, project=project: project(X["a"], s), scale)
        assert_trees_equal(project(X, scale.detach()), project(X, 0.8), rtol=1e-12)


def test_projections_at_the_points_where_optax_fails():
    zeros = [torch.zeros(3), torch.zeros(1)]
    assert of.tree.norm(of.projection_l2_sphere(zeros, 2.0)).item() == pytest.approx(2.0)
    assert of.tree.norm(of.projection_l1_sphere(zeros, 2.0), ord=1).item() == pytest.approx(2.0)
    assert of.projection_simplex(torch.tensor([0.0, 0.0, -math.inf])).tolist() == [0.5, 0.5, 0.0]
    assert of.projection_vector(torch.ones(2), torch.zeros(2)).tolist() == [0.0, 0.0]
    for ball in (of.projection_l1_ball, of.projection_l2_ball):
        assert torch.func.grad(lambda x, ball=ball: ball(x))(torch.tensor(0.0)).item() == 1.0
        assert ball([]) == []


def test_bounds_of_a_box_may_be_prefixes_and_tensors():
    box = of.projection_box(X, {"a": torch.zeros(2, 3), "b": -0.1}, {"a": 1.0, "b": [torch.tensor(0.0)]})
    assert box["a"].tolist() == [[0.5, 1.0, 0.0], [1.0, 1.0, 1.0]]
    assert box["b"][0].item() == -0.1


@pytest.mark.parametrize(
    ("project", "scale"), list(itertools.product((of.projection_simplex, of.projection_l2_ball), (0, -1.0)))
)
def test_a_scale_must_be_positive(project, scale):
    with pytest.raises(ValueError, match=f"scale must be a number > 0, got {scale}"):
        project(X, scale)


# Numerics


def test_counts_stop_at_the_largest_number():
    for dtype in (torch.int8, torch.int32, torch.int64):
        most = torch.iinfo(dtype).max
        given = torch.tensor([0, most - 1, most], dtype=dtype)
        assert of.safe_increment(given).tolist() == [1, most, most]
    assert of.safe_increment(torch.tensor(1.5)).item() == 2.5
    assert torch.isfinite(of.safe_increment(torch.tensor(torch.finfo(torch.float32).max)))
    with pytest.raises(TypeError, match="count must hold whole or floating numbers"):
        of.safe_increment(torch.tensor(True))


@pytest.mark.parametrize(
    ("ord", "axis"), [(None, None), (1, None), (2, 0), (math.inf, 1), (None, (0, 1)), ("fro", (0, 1))]
)
@pytest.mark.parametrize("keepdims", [False, True])
def test_safe_norm_is_the_norm_or_the_bound(ord, axis, keepdims):
    x = torch.randn(3, 4, dtype=torch.float64)
    want = np.linalg.norm(x.numpy().ravel() if axis is None else x.numpy(), ord, axis)
    got = of.safe_norm(x, 1e-3, ord, axis, keepdims)
    np.testing.assert_allclose(got.numpy().ravel(), np.ravel(want), rtol=1e-12)
    assert got.ndim == (2 if keepdims else np.ndim(want))
    assert (of.safe_norm(x, 1e9, ord, axis) == 1e9).all()
    assert torch.autograd.gradcheck(lambda x: of.safe_norm(x, 1e-3, ord, axis, keepdims), x.requires_grad_())
    zero = torch.zeros(3, 4, dtype=torch.float64)
    assert (torch.func.jacrev(lambda x: of.safe_norm(x, 0.0, ord, axis, keepdims))(zero) == 0).all()


def test_safe_rms():
    x = torch.randn(7, dtype=torch.float64)
    assert of.safe_root_mean_squares(x, 0.0).item() == pytest.approx(math.sqrt((x**2).mean()))
    assert of.safe_root_mean_squares(x, 9.0).item() == 9.0
    assert torch.func.grad(lambda x: of.safe_root_mean_squares(x, 0.0))(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -2.0, torch.tensor(0.5)])
def test_gradients_are_scaled_and_values_are_not(scale):
    x = {"a": torch.randn(3, dtype=torch.float64), "b": torch.tensor(math.inf)}
    assert_trees_equal(of.scale_gradient(x, scale), x)
    grad = torch.func.grad(lambda a: (of.scale_gradient(a, scale) ** 3).sum())
    assert_trees_equal(grad(x["a"]), 3 * x["a"] ** 2 * float(scale), rtol=1e-12)
    rows = torch.stack([x["a"], 2 * x["a"]])
    assert_trees_equal(torch.func.vmap(grad)(rows)[1], grad(rows[1]), rtol=1e-12)
    second = torch.func.grad(lambda a: grad(a).sum())(x["a"])
    assert_trees_equal(second, 6 * x["a"] * float(scale) ** 2, rtol=1e-12)


# Linear algebra


def spd(n, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return torch.from_numpy(q @ np.diag(np.linspace(0.5, 3.0, n)) @ q.T)


def test_power_iteration_finds_the_largest_eigenvalue():
    matrix = spd(6)
    values, vectors = np.linalg.eigh(matrix.numpy())
    value, vector = of.power_iteration(matrix, num_iters=1000, error_tolerance=1e-10)
    assert value.item() == pytest.approx(values[-1], rel=1e-12)
    assert abs(vector.numpy() @ vectors[:, -1]) == pytest.approx(1.0, abs=1e-9)
    value, _ = of.power_iteration(-matrix, num_iters=1000, error_tolerance=1e-10)
    assert value.item() == pytest.approx(-values[-1], rel=1e-12)


def test_power_iteration_takes_functions_of_trees():
    matrix = spd(4)

    def times(v):
        image = matrix @ torch.cat([v["a"], v["b"]])
        return {"a": image[:1], "b": image[1:]}

    start = {"a": torch.ones(1, dtype=torch.float64), "b": torch.arange(3.0, dtype=torch.float64)}
    value, vector = of.power_iteration(times, v0=start, num_iters=1000, error_tolerance=1e-10)
    assert value.item() == pytest.approx(3.0, rel=1e-12)
    assert of.tree.norm(vector).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="v0 must be given where matrix is a function, got None"):
        of.power_iteration(times)
    with pytest.raises(ValueError, match="matrix must be square"):
        of.power_iteration(torch.ones(2, 3))


def test_power_iteration_stops_where_it_is_told_and_vmaps():
    matrices = torch.stack([spd(5, seed) for seed in range(3)])
    together = torch.func.vmap(lambda m: of.power_iteration(m, num_iters=50))(matrices)
    for i in range(3):
        alone = of.power_iteration(matrices[i], num_iters=50)
        assert_trees_equal((together[0][i], together[1][i]), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_inverse_roots(p):
    matrix = spd(5)
    root, error = of.matrix_inverse_pth_root(matrix, p, ridge_epsilon=0.0, error_tolerance=1e-12)
    assert_trees_equal(torch.linalg.matrix_power(root, -p), matrix, rtol=1e-9, atol=1e-9)
    assert error < 1e-12
    low, _ = of.matrix_inverse_pth_root(matrix.to(torch.bfloat16), p)
    assert low.dtype == torch.bfloat16
    one, _ = of.matrix_inverse_pth_root(torch.tensor([[16.0]]), p)
    assert one.item() == pytest.approx(16 ** (-1 / p), rel=1e-4)


def test_inverse_roots_vmap_and_compile():
    matrices = torch.stack([spd(4, seed) for seed in range(3)])
    together, _ = torch.func.vmap(lambda m: of.matrix_inverse_pth_root(m, 4, num_iters=30))(matrices)
    compiled = torch.compile(
        lambda m: of.matrix_inverse_pth_root(m, 4, num_iters=12)[0], fullgraph=True, backend="eager"
    )
    for i in range(3):
        alone, _ = of.matrix_inverse_pth_root(matrices[i], 4, num_iters=30)
        assert_trees_equal(together[i], alone, rtol=1e-10, atol=1e-12)
        assert_trees_equal(
            compiled(matrices[i]), of.matrix_inverse_pth_root(matrices[i], 4, num_iters=12)[0], rtol=1e-9
        )


@pytest.mark.parametrize("columns", [(), (2,)])
def test_nnls_satisfies_the_optimality_conditions(columns):
    rng = np.random.default_rng(0)
    A, b = torch.from_numpy(rng.normal(size=(8, 4))), torch.from_numpy(rng.normal(size=(8, *columns)))
    for L in (None, float(torch.linalg.matrix_norm(A, 2) ** 2)):
        x = of.nnls(A, b, 5000, L)
        slope = A.mT @ (A @ x - b)
        assert (x >= 0).all()
        assert (slope >= -1e-8).all()
        assert (x * slope).abs().max() < 1e-8
    with pytest.raises(ValueError, match="A and b must have the shapes"):
        of.nnls(A, b[:3], 10)


# The loop


def test_an_eager_loop_ends_and_a_traced_one_drops_the_rest():
    calls = []

    def body(x):
        calls.append(1)
        return x / 2

    def halve(x):
        return of.tree.while_loop(lambda x: x > 1.0, body, x, at_most=20)

    assert halve(torch.tensor(5.0)).item() == 0.625
    assert len(calls) == 3
    assert torch.func.grad(halve)(torch.tensor(5.0)).item() == 0.125
    assert len(calls) == 6
    assert torch.func.vmap(halve)(torch.tensor([5.0, 0.5, 3.0])).tolist() == [0.625, 0.5, 0.75]
    assert len(calls) == 26
    traced = torch.fx.experimental.proxy_tensor.make_fx(halve)(torch.tensor(5.0))
    assert traced(torch.tensor(3.0)).item() == 0.75
    assert halve(torch.tensor(5.0, device="meta")).is_meta
    compiled = torch.compile(halve, fullgraph=True, backend="eager")
    assert compiled(torch.tensor(5.0)).item() == 0.625
    assert compiled(torch.tensor(3.0)).item() == 0.75


# At the edges of float32


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e8, 1e20])
def test_projections_onto_sums_of_far_larger_elements(size):
    for x, want in (([size, 5e-8 * size, 3e-8 * size], [1, 0, 0]), ([size, size, -size], [0.5, 0.5, 0.0])):
        if size < 1:  # then no element is far above the sum
            continue
        x, want = torch.tensor(x), torch.tensor(want)
        torch.testing.assert_close(of.projection_simplex(x), want, check_dtype=False)
        sphere = of.projection_l1_sphere(x)
        assert sphere.abs().sum() == pytest.approx(1.0)
        torch.testing.assert_close(of.projection_l1_ball(2 * x), of.projection_l1_sphere(2 * x))
    assert of.projection_simplex(torch.full((7,), size)).sum() == pytest.approx(1.0)
    assert of.projection_simplex(torch.tensor([1e8, 5.0, 3.0])).tolist() == [1.0, 0.0, 0.0]


def test_matrices_of_zeros():
    root, error = of.matrix_inverse_pth_root(torch.zeros(2, 2), 2)
    torch.testing.assert_close(root, torch.eye(2) * 1e-22**-0.5, rtol=1e-4, atol=0)
    assert error < 1e-5
    value, vector = of.power_iteration(torch.zeros(3, 3))
    assert value == 0
    assert vector.norm() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e-15, 1e10, 1e25])
def test_roots_of_matrices_of_any_size(size):
    root, _ = of.matrix_inverse_pth_root(size * torch.eye(3), 2)
    torch.testing.assert_close(root / size**-0.5, torch.eye(3), rtol=1e-4, atol=1e-6)
    value, _ = of.power_iteration(size * torch.diag(torch.tensor([1.0, 3.0])))
    assert value == pytest.approx(3 * size, rel=1e-4)


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_nnls_of_any_size(size):
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])
    for scale_a, scale_b in ((size, size), (1.0, size), (size, 1.0)):
        x = of.nnls(scale_a * a, scale_b * b, 100) * scale_a / scale_b
        torch.testing.assert_close(x, torch.tensor([0.0, 1.7]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        of.nnls(size * a, size * b, 300, L=30.0 * size**2), torch.tensor([0.0, 1.7]), rtol=1e-3, atol=1e-4
    )
