"""Where the laws do not look: torch's scalars in the default dtype, averages, late branches, refused shapes."""

import pytest
import torch
from cases.adam import nadam_as_torch
from helpers import assert_close_to, follow, plain_params, rough_gradients
from oracles.blocks import torch_optimizer

import optimfn as of

DEFAULTS = pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)


@DEFAULTS
def test_nadam_keeps_the_product_of_its_momenta_in_the_dtype_that_torch_keeps_it_in(default):
    torch.set_default_dtype(default)
    tx = nadam_as_torch(0.1, 0.9, 0.999, 1e-8, 4e-3)
    params = plain_params()
    gradients = rough_gradients(params, 50)
    assert of.tree.get(tx.init(params), "mu_product").dtype == default
    expected = torch_optimizer(lambda ps: torch.optim.NAdam(ps, lr=0.1))(params, gradients)
    for ours, want in zip(follow(tx, params, gradients), expected, strict=True):
        assert_close_to(ours, want, 1e-12)


@DEFAULTS
def test_asgd_keeps_torchs_average_and_rates(default):
    torch.set_default_dtype(default)
    settings = {"lr": 0.1, "lambd": 0.1, "alpha": 0.6, "t0": 3}
    tx = of.asgd(0.1, lambd=0.1, alpha=0.6, t0=3)
    params = plain_params()
    theirs = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = torch.optim.ASGD(theirs.values(), **settings)
    state = tx.init(params)
    for grads in rough_gradients(params, 30):
        for name, p in theirs.items():
            p.grad = grads[name].clone()
        optimizer.step()
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        assert_close_to(params, {name: p.detach() for name, p in theirs.items()}, 1e-12)
        assert_close_to(state.ax, {name: optimizer.state[p]["ax"] for name, p in theirs.items()}, 1e-12)
        for key in ("eta", "mu"):
            want = optimizer.state[theirs["a"]][key]
            assert getattr(state, key).dtype == want.dtype == default
            torch.testing.assert_close(getattr(state, key), want, rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("eps_after_correction", [True, False])
def test_gradients_flow_through_both_branches_of_radam(eps_after_correction):
    """The threshold is passed at the sixth step; before it, `r` would be the root of a negative number."""
    gradients = [torch.randn(3, dtype=torch.float64) for _ in range(8)]

    def run(scale, b2):
        tx = of.scale_by_radam(b2=b2, eps=1e-4, eps_after_correction=eps_after_correction)
        return follow(tx, torch.zeros(3, dtype=torch.float64), [scale * g for g in gradients])[-1]

    inputs = tuple(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.1, 0.99))
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("b2", [0.0, 0.6, torch.tensor(0.0), torch.tensor(0.6)], ids=str)
def test_radam_with_a_short_memory_is_never_rectified(b2):
    tx = of.scale_by_radam(b1=0.0, b2=b2, threshold=-10.0)
    grads = torch.tensor([2.0, -3.0])
    state = tx.init(grads)
    for _ in range(10):
        updates, state = tx.update(grads, state)
        assert torch.equal(updates, grads)


@pytest.mark.parametrize("rule", [of.orthogonalize(), of.scale_by_matrix_shape()], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_muon_names_the_shape_that_is_no_matrix(rule, shape):
    grads = {"w": torch.ones(2, 2), "b": torch.ones(shape)}
    with pytest.raises(ValueError, match=r"takes matrices only, got a leaf of shape \("):
        rule.update(grads, rule.init(grads))


def test_orthogonalize_refuses_complex_matrices():
    grads = torch.ones(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"takes real leaves only, got one of torch\.complex64"):
        of.orthogonalize().update(grads, of.EmptyState())


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_orthogonalize_brings_the_singular_values_near_one(shape):
    update, _ = of.orthogonalize().update(torch.randn(shape), of.EmptyState())
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_empty_leaves_leave_no_nan_in_a_factored_state():
    params = {"rows": torch.ones(0, 4), "cols": torch.ones(4, 0), "none": torch.ones(0), "stack": torch.ones(2, 0, 3)}
    tx = of.chain(of.scale_by_row_col_rms(), of.clip_by_block_rms(1.0), of.scale_by_param_block_rms())
    updates, state = tx.update(params, tx.init(params), params)
    assert all(torch.isfinite(x).all() for x in of.tree.leaves((updates, state)))
    assert state[0].v["stack"].shape == (2, 0, 3)
    assert state[0].v_row["stack"].shape == state[0].v_col["stack"].shape == (0,)
