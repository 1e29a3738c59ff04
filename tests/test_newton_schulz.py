"""Newton-Schulz and bounds of singular values, against decompositions in float64."""

import itertools

import pytest
import torch

import optimfn as of

CONDITIONS = (1.0, 1e4, 1e8, 1e12)
# As published: by dion and modded-nanogpt; by timm and pytorch_optimizer; in the paper.
DION = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
TIMM = (
    (8.237312490495555, -23.157747414558198, 16.680568411445915),
    (4.082441999064835, -2.893047735332586, 0.5252849256975648),
    (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
    (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
    (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
    (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
)
PAPER = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)


def matrix(condition, shape=(24, 40), dtype=torch.float64):
    """A matrix with singular values evenly from one down, on a scale of logarithms."""
    torch.manual_seed(11)
    r = min(shape)
    u, _ = torch.linalg.qr(torch.randn(shape[0], r, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], r, dtype=torch.float64))
    return (u * torch.logspace(0, -torch.tensor(condition).log10(), r, dtype=torch.float64) @ v.T).to(dtype)


def by_decomposition(x, triples):
    """What the polynomials make of the singular values, and how much further rounding of unit 1 can be magnified."""
    x = x.double()
    u, s, v = torch.linalg.svd(x / torch.linalg.matrix_norm(x), full_matrices=False)
    grid = torch.linspace(0, 1.2, 2001, dtype=torch.float64)
    bound, terms = 0.0, 2 * max(x.shape) + min(x.shape)
    for a, b, c in triples:
        size = max(1.0, s.max().item())
        slope = (a + 3 * b * grid**2 + 5 * c * grid**4).abs().max().item()
        # Each product of `terms` numbers rounds by their number of units at most, and so does its sum with the rest.
        local = terms * (abs(a) + 2 * abs(b) + 3 * abs(c)) * size**5 * torch.linalg.vector_norm(s).item()
        bound = slope * bound + local
        s = a * s + b * s**3 + c * s**5
    return u * s @ v, bound


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["keller", "you", "polar_express", "cubic"])
def test_singular_values_become_what_the_polynomials_make_of_them(name, dtype, condition):
    for shape in ((24, 40), (40, 24)):
        x = matrix(condition, shape, dtype)
        want, bound = by_decomposition(x, of.ns_coefficients(name))
        error = torch.linalg.matrix_norm(of.newton_schulz(x, name, eps=0.0).double() - want)
        assert error <= bound * torch.finfo(dtype).eps, (error, bound)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_the_steps_on_the_small_product_are_the_same(condition):
    """In float64 within what the square of the condition costs; the steps begin again once."""
    x = matrix(condition)
    want, bound = by_decomposition(x, of.ns_coefficients("you"))
    for y, wanted in ((x, want), (x.mT, want.mT)):
        error = torch.linalg.matrix_norm(of.newton_schulz(y, "you", eps=0.0, gram=True) - wanted)
        assert error <= bound * condition * torch.finfo(torch.float64).eps
    half = of.newton_schulz(x.float(), "keller", dtype=torch.float16, gram=True)
    assert torch.linalg.matrix_norm(half - of.newton_schulz(x.float(), "keller")) < 0.1 * torch.linalg.matrix_norm(half)


def test_what_was_published_of_polar_express():
    for ours, theirs in (
        (of.polar_express(), DION),
        (of.polar_express(8, safety=1.01), TIMM),
        (of.polar_express(8, safety=1, cushion=0.02407327424182761), PAPER),
    ):
        for triple, wanted in zip(ours[: len(theirs)], theirs, strict=True):
            torch.testing.assert_close(torch.tensor(triple), torch.tensor(wanted), rtol=1e-8, atol=0)
    assert all(abs(x - y) < 1e-5 for x, y in zip(of.polar_express(12)[-1], (1.875, -1.25, 0.375), strict=True))


@pytest.mark.parametrize("lower", [0.5, 1e-3, 1e-12])
def test_polar_express_brings_all_from_lower_up_as_near_to_one(lower):
    errors = []
    for count in (3, 6, 12, 24):
        s = torch.logspace(torch.tensor(lower).log10().item(), 0, 4001, dtype=torch.float64).clamp(lower, 1)
        for a, b, c in of.polar_express(count, lower, safety=1):
            s = a * s + b * s**3 + c * s**5
        errors.append((s - 1).abs().max().item())
        assert s.max() - 1 <= 1 - s.min() + 1e-9  # as far above as below
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-4 or (lower < 1e-3 and errors[-1] < 0.05)


@pytest.mark.parametrize("scaling", ["frobenius", "spectral", "aol", "schatten"])
def test_scaled_otherwise_and_in_batches(scaling):
    xs = torch.stack([torch.stack([matrix(c) * scale for c in (1.0, 1e4)]) for scale in (1.0, 1e9, 1e-6)])
    found = of.newton_schulz(xs, "polar_express", 8, eps=1e-30, scaling=scaling)
    for one, row in zip(xs, found, strict=True):
        for x, got in zip(one, row, strict=True):
            alone = of.newton_schulz(x, "polar_express", 8, eps=1e-30, scaling=scaling)
            torch.testing.assert_close(got, alone, rtol=0, atol=1e-9)
            turned = of.newton_schulz(x.mT, "polar_express", 8, eps=1e-30, scaling=scaling)
            torch.testing.assert_close(turned.mT, alone, rtol=0, atol=1e-9)
            assert torch.linalg.svdvals(got)[0] < 1.2
    mapped = torch.func.vmap(lambda x: of.newton_schulz(x, "polar_express", 8, eps=1e-30, scaling=scaling))(xs[0])
    torch.testing.assert_close(mapped, found[0], rtol=0, atol=1e-9)


def test_dtypes_complex_matrices_and_what_there_is_nothing_of():
    x = matrix(1e2, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        assert of.newton_schulz(x.to(dtype)).dtype == dtype
        near = of.newton_schulz(1e30 * x, dtype=dtype)  # scaled before it is cast
        assert near.dtype == x.dtype
        assert torch.linalg.matrix_norm(near - of.newton_schulz(x)) < 0.2 * torch.linalg.matrix_norm(near)
    z = torch.complex(matrix(1e1), matrix(1e1).flip(0))
    s = torch.linalg.svdvals(of.newton_schulz(z, "polar_express", 10))
    assert (s - 1).abs().max() < 1e-3
    assert of.newton_schulz(torch.zeros(3, 2)).abs().max() == 0
    assert of.newton_schulz(torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: of.newton_schulz(torch.ones(3)), r"x must be a matrix, .* got a tensor of shape \(3,\)"),
        (lambda: of.newton_schulz(torch.ones(3, 2), "best"), "ns_coeffs must be one of 'standard', .*, got 'best'"),
        (
            lambda: of.newton_schulz(torch.ones(3, 2), "you", 6),
            "ns_steps must be <= 5 for the coefficients 'you', got 6",
        ),
        (
            lambda: of.newton_schulz(torch.ones(3, 2), dtype=torch.bfloat16, gram=True),
            "gram=True is not for .*bfloat16",
        ),
        (lambda: of.ns_coefficients("deepseek", 2), "ns_steps must be >= 3 for the coefficients 'deepseek', got 2"),
        (lambda: of.polar_express(5, 2.0), "lower must be <= 1, .*, got lower=2.0"),
        (lambda: of.spectral_norm(torch.ones(3)), r"x must be a matrix, .* got a tensor of shape \(3,\)"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_largest_singular_value_lies_between_its_bounds(dtype, condition):
    for scale in (1.0, 1e-30, 1e30):
        xs = torch.stack([matrix(condition, dtype=dtype) * scale, torch.zeros(24, 40, dtype=dtype)])
        largest = torch.linalg.svdvals(xs.double())[:, 0]
        for squarings in (0, 1, 4, 8):
            lower, upper = of.spectral_norm(xs, squarings)
            # The product rounds by its number of terms; logarithms and roots by a few units more.
            slack = 1 + (40 + 16) * torch.finfo(dtype).eps
            assert (lower.double() <= largest * slack).all()
            assert (largest <= upper.double() * slack).all()
            assert (upper <= lower * 24 ** (0.5 ** (squarings + 2)) * slack).all()


@pytest.mark.parametrize("condition", CONDITIONS[1:])
def test_an_eigenvalue_lies_within_the_tolerance_of_power_iteration(condition):
    """The residual of a symmetric matrix bounds the distance to its nearest eigenvalue, whatever the condition."""
    x = matrix(condition, (24, 24))
    a = x @ x.T
    eigenvalues = torch.linalg.eigvalsh(a)
    for tolerance in (1e-2, 1e-6, 1e-10):
        value, vector = of.power_iteration(a, num_iters=2000, error_tolerance=tolerance)
        assert (eigenvalues - value).abs().min() <= tolerance * value + 1e-14
        assert value <= eigenvalues[-1] + 1e-14
        assert torch.linalg.vector_norm(a @ vector - value * vector) <= 2 * tolerance * value + 1e-14
