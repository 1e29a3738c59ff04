"""Eigenvectors and roots of symmetric matrices, against known spectra, over condition numbers to 1e12."""

import pytest
import torch

import optimfn as of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
CONDITIONS = pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e8, 1e12])
N = 24


def symmetric(condition, dtype, batch=3, n=N, size=1.0):
    """Matrices of a known spectrum, rounded to a dtype, and their eigenvalues and vectors."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    q, _ = torch.linalg.qr(torch.randn(batch, n, n, dtype=wide))
    values = size * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    a = (q * values) @ q.mH
    return ((a + a.mH) / 2).to(dtype), values, q


def unit_of(dtype):
    return torch.finfo(dtype).eps


def wide(x):
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def norm(x):
    return torch.linalg.matrix_norm(x, 2)


@DTYPES
@CONDITIONS
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_eigenvectors_have_a_small_backward_error(condition, dtype, size):
    a, want, _ = symmetric(condition, dtype, size=size)
    values, vectors = of.eigenvectors(a)
    eye = torch.eye(N, dtype=wide(vectors).dtype)
    bound = 4 * N * unit_of(dtype)  # of the solver, of the input's rounding, and of one QR
    assert (norm(wide(vectors).mH @ wide(vectors) - eye) < bound).all()
    assert (norm(wide(a) @ wide(vectors) - wide(vectors) * wide(values).unsqueeze(-2)) < bound * want[0]).all()
    # Weyl: an eigenvalue is off by no more than the matrix is.
    assert ((wide(values) - want).abs() < bound * want[0]).all()
    assert (values[..., :-1] >= values[..., 1:]).all()
    assert torch.equal(of.eigenvectors(a, descending=False)[0], values.flip(-1))


@DTYPES
@CONDITIONS
@pytest.mark.parametrize("p", [1, 2, 4, 8, 2.5])
def test_an_inverse_root_is_that_of_a_matrix_nearby(condition, dtype, p):
    a, _, _ = symmetric(condition, dtype)
    u = unit_of(dtype)
    ridge = max(1 / condition, 8 * N * u)  # single precision does not know smaller eigenvalues
    root = wide(of.inverse_root(a, p, ridge))
    assert torch.equal(root, root.mH)
    found, vectors = torch.linalg.eigh(root)
    assert (found > 0).all()
    # The spectrum of the root has the condition of the matrix to the power 1 / p; its own rounding comes back p times
    # as large for the largest eigenvalue of the matrix, whose root is the smallest.
    back = (vectors * found.unsqueeze(-2) ** -p) @ vectors.mH
    eye = torch.eye(N, dtype=root.dtype)
    spread = ((1 + 2 * ridge) / ridge) ** (1 / p)
    bound = 8 * N * u * (1 + p * spread)
    assert (norm(back - wide(a) - ridge * eye) < bound).all()


@CONDITIONS
@pytest.mark.parametrize("p", [1, 2, 4])
def test_inverse_roots_are_those_of_the_known_spectrum(condition, p):
    a, values, q = symmetric(condition, torch.float64)
    want = (q * values ** (-1 / p)) @ q.mH
    # The smallest eigenvalue is off by some N u, relative to itself by the condition times that.
    bound = 8 * N * unit_of(torch.float64) * condition
    for by in ("eigh", "pseudo"):
        assert (norm(of.inverse_root(a, p, by=by) - want) < bound * norm(want)).all(), by


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_newtons_iteration_agrees(condition, p):
    a, values, q = symmetric(condition, torch.float64)
    want = (q * (values + 1e-12) ** (-1 / p)) @ q.mH
    got = of.inverse_root(a, p, 1e-12, by="newton", tolerance=1e-10)
    # It stops at an error of 1e-10 in the units of the result, and no sooner than rounding lets it.
    assert (norm(got - want) < (N * 1e-10 + 8 * N * unit_of(torch.float64) * condition) * norm(want)).all()


def test_directions_without_any_weight_are_left_out_or_raised():
    g = torch.randn(2, 6, 3, dtype=torch.float64)
    a = g @ g.mT
    assert torch.linalg.matrix_rank(of.inverse_root(a, 2, by="pseudo")).tolist() == [3, 3]
    project = torch.linalg.pinv(a) @ a
    pseudo = of.inverse_root(a, 2, by="pseudo")
    assert torch.allclose(pseudo @ pseudo @ a, project, atol=1e-10)
    raised = torch.linalg.eigvalsh(of.inverse_root(a, 2, 1e-4))
    assert torch.allclose(raised[:, -1], torch.full((2,), 100.0, dtype=torch.float64))


def test_the_space_of_the_eigenvalue_zero_has_one_basis():
    """Rounding does not choose it: a matrix that differs in its last bits has nearly the same."""
    g = torch.randn(3, 9, 2, dtype=torch.float64)
    a = g @ g.mT
    _, first = of.eigenvectors(a)
    _, second = of.eigenvectors(a * (1 + 1e-15 * torch.randn(a.shape, dtype=torch.float64)))
    assert torch.allclose(first[..., 2:], second[..., 2:], atol=1e-8)
    assert torch.equal(of.eigenvectors(torch.zeros(2, 3, 3))[1], torch.eye(3).expand(2, 3, 3))


def test_what_is_not_finite_gives_nan_and_leaves_the_others_alone():
    a = torch.eye(3).repeat(3, 1, 1)
    a[0, 0, 0], a[1, 1, 2] = torch.inf, torch.nan
    for result in (
        *of.eigenvectors(a),
        of.inverse_root(a, 2),
        of.inverse_root(a, 2, by="newton"),
        of.inverse_root(a, 2, by="pseudo"),
    ):
        assert result[:2].isnan().all()
        assert result[2].isfinite().all()
    for shape in ((0, 0), (2, 0, 0), (0, 3, 3)):
        assert of.eigenvectors(torch.zeros(shape))[1].shape == shape
        assert of.inverse_root(torch.zeros(shape), 4).shape == shape
        assert of.refine_eigenvectors(torch.zeros(shape), torch.zeros(shape)).vectors.shape == shape


@DTYPES
@CONDITIONS
def test_a_refined_basis_is_orthogonal_and_comes_nearer(condition, dtype):
    a, _, q = symmetric(condition, dtype)
    n = a.shape[-1]
    eye = torch.eye(n, dtype=wide(a).dtype)
    basis = eye.to(dtype).expand(a.shape)
    bound = 8 * N * unit_of(dtype)

    def apart(basis):
        return norm(torch.tril(wide(basis).mH @ wide(a) @ wide(basis), -1))

    before = apart(basis)
    for _ in range(3):
        found = of.refine_eigenvectors(a, basis, num_iters=8)
        assert (norm(wide(found.vectors).mH @ wide(found.vectors) - eye) < bound).all()
        basis = found.vectors
    assert (apart(basis) < torch.maximum(0.5 * before, torch.tensor(bound))).all()
    # What is there already stays, with its signs, and in order.
    again = of.refine_eigenvectors(a, q.to(dtype))
    assert (apart(again.vectors) < bound).all()
    assert torch.equal(again.order[..., :2].sort(-1).values, torch.arange(2).expand(3, 2)) or condition == 1.0


def test_one_refinement_is_one_step_of_orthogonal_iteration_in_order():
    a, _, q = symmetric(1e3, torch.float64, batch=1, n=6)
    shuffled = q[..., [3, 0, 5, 1, 4, 2]] + 1e-3 * torch.randn(1, 6, 6, dtype=torch.float64)
    shuffled = torch.linalg.qr(shuffled)[0]
    found = of.refine_eigenvectors(a, shuffled)
    assert found.order.tolist() == [[1, 3, 5, 0, 4, 2]]
    want, r = torch.linalg.qr(a @ shuffled[..., [1, 3, 5, 0, 4, 2]])
    want = want * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    assert torch.allclose(found.vectors, want, atol=1e-12)
    assert (torch.diagonal(found.vectors.mT @ shuffled[..., found.order[0]], dim1=-2, dim2=-1) > 0.9).all()


def test_directions_without_any_weight_stay_when_a_basis_is_refined():
    g = torch.randn(7, 2, dtype=torch.float64)
    _, basis = of.eigenvectors(g @ g.T)
    found = of.refine_eigenvectors(g @ g.T, basis)
    assert torch.allclose(found.vectors, basis, atol=1e-10)
    assert found.order.tolist() == list(range(7))


@pytest.mark.parametrize("fail", [1, 2])
def test_a_solver_that_fails_is_followed_by_the_next(monkeypatch, fail):
    real, calls = torch.linalg.eigh, []

    def eigh(x):
        calls.append(x.dtype)
        if len(calls) <= fail:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return real(x)

    a, want, _ = symmetric(1e3, torch.float32)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    values, vectors = of.eigenvectors(a)
    assert calls == [torch.float32, torch.float64][: max(fail, 2)]
    assert torch.allclose(values.double(), want.expand(3, N), atol=1e-5)
    assert torch.allclose(vectors * values.unsqueeze(-2) @ vectors.mT, a, atol=1e-5)


def test_they_vmap_and_compile():
    a, _, _ = symmetric(1e3, torch.float64)
    for f in (
        lambda x: of.eigenvectors(x)[0],
        lambda x: of.inverse_root(x, 4, 1e-9),
        lambda x: of.inverse_root(x, 4, 1e-9, by="newton"),
        lambda x: of.refine_eigenvectors(x, torch.eye(N, dtype=x.dtype)).vectors,
    ):
        want = torch.stack([f(x) for x in a])
        assert torch.allclose(torch.func.vmap(f)(a), want, atol=1e-9)
        assert torch.allclose(torch.compile(f, fullgraph=True, backend="eager")(a), want, atol=1e-9)


def test_arguments_are_named():
    eye = torch.eye(2)
    with pytest.raises(ValueError, match="matrix must be square"):
        of.eigenvectors(torch.ones(2, 3))
    with pytest.raises(ValueError, match="p must be a number > 0, got 0"):
        of.inverse_root(eye, 0)
    with pytest.raises(ValueError, match=r"p must be a whole number for 'newton', got 2\.5"):
        of.inverse_root(eye, 2.5, by="newton")
    with pytest.raises(ValueError, match="by must be one of 'eigh', 'pseudo', 'newton', got 'svd'"):
        of.inverse_root(eye, 2, by="svd")
    with pytest.raises(ValueError, match="num_iters must be >= 1, got 0"):
        of.refine_eigenvectors(eye, eye, 0)
