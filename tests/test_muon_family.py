"""What rules for whole matrices do that is no law of all: layouts, named coefficients, dtypes, no reads by the host."""

import math

import pytest
import torch
from cases import low_rank, matrix, psgd, shampoo, soap
from graphs import NoHostReads
from helpers import follow, plain_params, rough_gradients
from oracles.matrix import Dion2, NorMuon

import optimfn as of


def orthogonal(x, triples, eps=1e-7):
    """The polynomials in float64."""
    x = x / max(float(torch.linalg.vector_norm(x)), eps)
    for a, b, c in triples:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


def of_float64(x, **kwargs):
    tx = of.orthogonalize(dtype=torch.float64, **kwargs)
    return tx.update(x, tx.init(x))[0]


def assert_close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["keller", "you", "polar_express", "aol", "cubic"])
def test_coefficients_by_name_are_their_lists(name):
    torch.manual_seed(1)
    x, steps = torch.randn(5, 9, dtype=torch.float64), 4
    triples = of.ns_coefficients(name, steps)
    assert_close(of_float64(x, ns_coeffs=name, ns_steps=steps), orthogonal(x, triples))
    assert_close(of_float64(x, ns_coeffs=triples, ns_steps=steps), orthogonal(x, triples))
    assert_close(of_float64(x, ns_coeffs=triples, ns_steps=2), orthogonal(x, triples[-2:]))


def test_layouts_are_the_matrices_one_by_one():
    torch.manual_seed(2)
    x = torch.randn(6, 4, 3, 2, dtype=torch.float64)
    triples = of.ns_coefficients("keller")
    numbers = of.MuonDimensionNumbers
    flat = orthogonal(x.reshape(6, -1), triples).reshape(x.shape)
    for layout in ("flatten", numbers((1, 2, 3), 0), lambda params: "flatten", of.tree.label_by(lambda p: "flatten")):
        assert_close(of_float64(x, weight_dimension_numbers=layout), flat)
    batch = of_float64(x, weight_dimension_numbers="batch")
    positions = of_float64(x, weight_dimension_numbers="positions")
    for i, j in ((0, 0), (5, 3), (2, 1)):
        assert_close(batch[i, j], orthogonal(x[i, j], triples))
    for i, j in ((0, 0), (2, 1)):
        assert_close(positions[:, :, i, j], orthogonal(x[:, :, i, j], triples))
    with pytest.raises(
        ValueError, match=r"a layout must be dimension numbers, None or one of 'flatten', .* got 'rows'"
    ):
        of_float64(x, weight_dimension_numbers="rows")
    with pytest.raises(ValueError, match=r"orthogonalize takes matrices only, got a leaf of shape \(3,\)"):
        of_float64(x.new_ones(3), weight_dimension_numbers="flatten")


@pytest.mark.parametrize("blocks", [3, (8, 2, 2)])
def test_rows_in_blocks_are_matrices_with_the_factor_of_their_own_shape(blocks):
    torch.manual_seed(3)
    x = torch.randn(12, 5, dtype=torch.float64)
    dims = of.MuonDimensionNumbers(1, 0, blocks)
    sizes = [4] * 3 if blocks == 3 else [*blocks]
    tx = of.chain(
        of.orthogonalize(dtype=torch.float64, weight_dimension_numbers=dims), of.scale_by_matrix_shape("original", dims)
    )
    found = tx.update(x, tx.init(x))[0]
    for part, got in zip(x.split(sizes), found.split(sizes), strict=True):
        assert_close(got, max(1, len(part) / 5) ** 0.5 * orthogonal(part, of.ns_coefficients("keller")))
    # The same in optax's rule, whose first step has the gradient for its mean.
    muon = of.muon(1.0, muon_weight_dimension_numbers=dims, nesterov=False)
    assert_close(muon.update(x, muon.init(x), x)[0], -found, atol=1e-6)
    bad = of.orthogonalize(weight_dimension_numbers=of.MuonDimensionNumbers(1, 0, 5))
    with pytest.raises(ValueError, match="blocks must divide the 12 outputs of a leaf, got 5"):
        bad.update(x, bad.init(x))
    bad = of.orthogonalize(weight_dimension_numbers=of.MuonDimensionNumbers(1, 0, (5, 6)))
    with pytest.raises(ValueError, match=r"blocks must add up to the 12 outputs of a leaf, got \(5, 6\)"):
        bad.update(x, bad.init(x))
    low = of.project(of.scale_by_adam(), 2, weight_dimension_numbers=dims)
    with pytest.raises(ValueError, match="blocks must be None"):
        low.init(x)


def matrices_of(x, layout):
    """The matrices of a leaf, one by one."""
    if layout == "flatten":
        return [x.reshape(len(x), -1)]
    if layout == "batch":
        return [*x.reshape(-1, *x.shape[-2:])]
    if layout == "positions":
        return [x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])]
    return [*x.split(len(x) // layout.blocks if isinstance(layout.blocks, int) else [*layout.blocks])]


LAYOUTS = [
    ("flatten", (6, 4, 3, 2)),
    ("batch", (3, 2, 4, 5)),
    ("batch", (2, 5, 5)),
    ("positions", (6, 4, 3, 2)),
    (of.MuonDimensionNumbers(1, 0, (8, 2, 2)), (12, 5)),
    (of.MuonDimensionNumbers(1, 0, 3), (12, 5)),
]


@pytest.mark.parametrize("rule", ["normuon", "dion2"])
def test_rules_with_layouts_step_each_matrix_by_itself(rule):
    torch.manual_seed(8)
    polar = of.ns_coefficients("polar_express", 5)
    for layout, shape in LAYOUTS:
        kwargs = {"weight_decay": 0.1, "dtype": torch.float64, "weight_dimension_numbers": lambda p, own=layout: own}
        if rule == "normuon":
            tx, oracle = of.normuon(0.02, beta=0.9, b2=0.95, **kwargs), lambda: NorMuon(0.9, 0.95, 0.02, 0.1, True)
        else:
            tx, oracle = of.dion2(0.02, 0.5, 0.9, **kwargs), lambda: Dion2(0.5, 0.9, 0.02, 0.1, polar)
        p = torch.randn(shape, dtype=torch.float64)
        state, oracles = tx.init(p), [oracle() for _ in matrices_of(p, layout)]
        for t, g in enumerate(rough_gradients(p, 3)):
            updates, state = tx.update(g, state, p)
            rows = zip(oracles, *[matrices_of(x, layout) for x in (g, p, updates)], strict=True)
            for own, grad, param, found in rows:
                assert_close(found, torch.as_tensor(own(grad.numpy(), param.numpy(), t)))
            p = of.apply_updates(p, updates)


def test_a_sum_moves_as_a_mean_does():
    """They differ by a factor, which is scaled away, but for `eps`."""
    torch.manual_seed(4)
    params = {"a": torch.randn(4, 3, dtype=torch.float64), "b": torch.randn(3, 6, dtype=torch.float64)}
    gradients = rough_gradients(params, 12)
    for nesterov in (False, True):
        kinds = [
            of.torch_muon(
                0.1, beta=0.8, eps=1e-14, nesterov=nesterov, momentum=momentum, dtype=torch.float64, mode="none"
            )
            for momentum in ("ema", "sum")
        ]
        for one, other in zip(*[follow(tx, params, gradients) for tx in kinds], strict=True):
            for name in params:
                assert_close(one[name], other[name], atol=1e-6)


def test_moonlight_by_its_equations():
    torch.manual_seed(5)
    p = q = torch.randn(4, 7, dtype=torch.float64)
    tx = of.torch_muon(1e-2, weight_decay=0.1, momentum="sum", mode="match_rms_adamw", dtype=torch.float64)
    state, m = tx.init(p), 0.0
    for g in rough_gradients(p, 20):
        updates, state = tx.update(g, state, p)
        p = of.apply_updates(p, updates)
        m = 0.95 * m + g
        u = orthogonal(g + 0.95 * m, of.ns_coefficients("keller"))
        q = q * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * math.sqrt(7) * u
        assert_close(p, q, atol=1e-9)


def test_half_precision_of_the_products():
    """float16 is scaled before it is cast: 256 x 1024 numbers of size 100 have squares that have no room in it."""
    torch.manual_seed(6)
    x = 100 * torch.randn(64, 256)
    want = of.newton_schulz(x.double())
    for dtype, bound in ((torch.float16, 0.05), (torch.bfloat16, 0.2)):
        for kwargs in (
            {},
            {"weight_dimension_numbers": "flatten"},
            {"preconditioning": "schatten", "ns_coeffs": "you"},
        ):
            near = want if "ns_coeffs" not in kwargs else of.newton_schulz(x.double(), "you", scaling="schatten")
            tx = of.orthogonalize(dtype=dtype, **kwargs)
            error = torch.linalg.matrix_norm(tx.update(x, tx.init(x))[0] - near)
            assert error < bound * torch.linalg.matrix_norm(near)
    gram = of.orthogonalize(dtype=torch.float16, gram=True)
    assert torch.linalg.matrix_norm(gram.update(x, gram.init(x))[0] - want) < 0.1 * torch.linalg.matrix_norm(want)
    with pytest.raises(ValueError, match=r"gram=True is not for dtype=torch\.bfloat16"):
        of.orthogonalize(gram=True)


FAMILIES = (matrix, low_rank, psgd, soap, shampoo)


@pytest.mark.parametrize("case", [case for one in FAMILIES for case in one.CASES], ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_no_rule_for_matrices_reads_a_device(case, backend):
    """A count of the host is known as such; whatever else is read would wait for a device."""
    params = plain_params(torch.float32)
    tx = case.tx()
    state = tx.init(params)
    step = of.make_step(tx, backend=backend)
    kinds = [spec.kind for spec in of.tree.leaves(of.state_spec(tx, params))]
    for grads in rough_gradients(params, 4):
        leaves = of.tree.leaves(state)
        hosts = {id(x) for x, kind in zip(leaves, kinds, strict=True) if kind == "host"}
        with NoHostReads(hosts):
            params, state = step(params, state, grads)


def test_muon_on_its_sphere():
    """MuonH: each matrix keeps its norm, and turns by the rate along the orthogonal momentum."""
    torch.manual_seed(7)
    p = q = torch.randn(4, 6, dtype=torch.float64)
    rule = of.chain(of.ema(0.95, debias=False, nesterov=True), of.orthogonalize(dtype=torch.float64))
    tx = of.hyperball(rule, 0.02)
    state, m, radius = tx.init(p), 0.0, torch.linalg.matrix_norm(p)
    for g in rough_gradients(p, 3):
        updates, state = tx.update(g, state, p)
        p = of.apply_updates(p, updates)
        m = 0.95 * m + 0.05 * g
        d = orthogonal(0.95 * m + 0.05 * g, of.ns_coefficients("keller"))
        q = q - 0.02 * radius * d / torch.linalg.matrix_norm(d)
        q = q * radius / torch.linalg.matrix_norm(q)
        assert_close(p, q)


MATRICES_ONLY = {"torch_muon", "normuon", "adamuon", "dion", "dion2"}
REAL_ONLY = MATRICES_ONLY | {"scion", "lra_whiten"}
FAMILY = sorted(REAL_ONLY | {"muon", "soap", "kron", "kron_whiten", "shampoo", "splus", "kl_shampoo"})
SHAPES = [(4, 3), (3, 6), (3, 3), (1, 4), (4, 1), (0, 3), (3, 0), (), (5,), (1,), (0,), (4, 3, 2, 2)]


@pytest.mark.parametrize("name", FAMILY)
def test_leaves_of_any_shape_and_dtype_step_on_finite(name):
    """Each leaf by itself, with a gradient of zeros in between."""
    torch.manual_seed(9)
    tx = getattr(of, name)(0.1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.complex64):
        if dtype.is_complex and name in REAL_ONLY:
            continue
        for shape in SHAPES:
            if name in MATRICES_ONLY and len(shape) != 2:
                continue
            p = {"x": torch.randn(shape, dtype=dtype)}
            state = tx.init(p)
            for step in range(3):
                updates, state = tx.update({"x": torch.randn(shape, dtype=dtype) * (step != 1)}, state, p)
                p = of.apply_updates(p, updates)
                assert (p["x"].shape, p["x"].dtype) == (shape, dtype)
                assert torch.isfinite(p["x"]).all(), (dtype, shape)
