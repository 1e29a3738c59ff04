"""PSGD beyond its cases: every geometry, what it converges to, pairs with the Hessian, and when factors move."""

import copy
import math

import pytest
import torch
from cases.psgd import whitened
from graphs import NoHostReads
from helpers import assert_close_to, assert_trees_equal, follow, like, plain_params, rough_gradients, wide_params
from oracles.blocks import leafwise
from oracles.psgd import Kron, KronWhiten

import optimfn as of
from optimfn._algorithms.matrix._kron_factors import Layout

MODES = ("Q0.5EQ1.5", "QUAD", "QEQ", "QEP", "EQ", "QUAD4P", "PRO4P")


@pytest.mark.parametrize("mode", MODES)
def test_every_geometry_follows_its_oracle(mode):
    torch.manual_seed(1)
    params = plain_params()
    gradients = rough_gradients(params, 30)
    tx = of.scale_by_kron_whiten(0.8, 0.3, 0.95, 1e-3, preconditioner_mode=mode, preconditioner_max_skew=1.5)
    want = whitened(momentum=0.8, rate=0.3, beta=0.95, damping=1e-3, mode=mode, skew=1.5, scale=start(gradients, 1e-3))
    for got, exact in zip(follow(tx, params, gradients), want(params, gradients), strict=True):
        assert_close_to(got, exact, 1e-8)


def start(gradients, damping):
    return (max(float((g**4).mean()) for g in gradients[0].values()) + damping**4) ** (-1 / 8)


def test_factors_may_move_after_they_are_used():
    torch.manual_seed(1)
    params = plain_params()
    gradients = rough_gradients(params, 12)
    tx = of.scale_by_kron_whiten(
        preconditioner_init_scale=0.5, update_preconditioner_first=False, grad_clip_max_amps=(0.5, 0.7)
    )
    want = whitened(scale=0.5, first=False, clip=(0.5, 0.7))
    for got, exact in zip(follow(tx, params, gradients), want(params, gradients), strict=True):
        assert_close_to(got, exact, 1e-9)


@pytest.mark.parametrize("save", [None, "one_diag", "all_diag"])
def test_kron_saves_memory_as_its_authors_do(save):
    torch.manual_seed(1)
    params = {"a": torch.randn(4, 4, dtype=torch.float64), "b": torch.randn(2, 3, 2, dtype=torch.float64)}
    gradients = rough_gradients(params, 8)
    tx = of.scale_by_kron(memory_save_mode=save, merge_dims=False)
    want = leafwise(lambda name: Kron(name, save=save, merge=False))
    for got, exact in zip(follow(tx, params, gradients), want(params, gradients), strict=True):
        assert_close_to(got, exact, 1e-9)


@pytest.mark.parametrize(
    ("shape", "merged", "want"),
    [
        ((64, 3, 3, 3), True, (576, 3)),
        ((64, 3, 3, 3), "square", (64, 27)),
        ((8, 2, 16), True, (16, 16)),
        ((8, 2, 16), False, (8, 2, 16)),
        ((), True, (1,)),
        ((5,), "square", (5,)),
    ],
)
def test_leaves_of_many_axes_are_taken_as_matrices(shape, merged, want):
    assert Layout(merged=merged).shape(shape) == want


def test_long_and_skew_axes_get_diagonals():
    shape = of.tree.leaves(
        of.tree.map(lambda f: f.shape, of.scale_by_kron_whiten().init(torch.ones(1, 8, 6, 1)).factors)
    )
    assert shape == [torch.Size(s) for s in ((8,), (6, 6), (), ())] or shape[:2] == [(8,), (6, 6)]
    q = of.scale_by_kron_whiten(preconditioner_max_size=4).init(torch.ones(4, 8)).factors.q
    assert [tuple(x.shape) for x in q] == [(4, 4), (8,)]
    q = of.scale_by_kron(max_size_triangular=4).init(torch.ones(4, 8)).factors.q
    assert [tuple(x.shape) for x in q] == [(4, 4), (8,)]
    assert of.scale_by_kron().init(torch.ones(0, 3)).factors.q == []


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_a_known_covariance_become_white(mode):
    torch.manual_seed(2)
    left = torch.diag(torch.tensor([4.0, 1.0, 0.5, 0.2], dtype=torch.float64)) + 0.1
    right = torch.diag(torch.tensor([1.0, 2.0, 0.3, 0.7], dtype=torch.float64)) - 0.1
    tx = of.scale_by_kron_whiten(
        preconditioner_lr=of.exponential_decay(0.3, 300, 0.5), preconditioner_mode=mode, preconditioner_init_scale=1.0
    )
    p = torch.zeros(4, 4, dtype=torch.float64)
    state = tx.init(p)
    for _ in range(1500):
        _, state = tx.update(left @ torch.randn_like(p) @ right, state)
    ql, qr = state.factors.q
    pl, pr = (ql, qr) if mode in ("QUAD4P", "PRO4P") else (ql.mT @ ql, qr.mT @ qr)
    found = torch.kron(pl @ left @ left.mT @ pl.mT, pr @ right.mT @ right @ pr.mT)
    # The step has fallen to 0.01 of the stable one: what is left of the noise of single gradients, and of the way.
    assert (found - torch.eye(16)).norm() < 0.35 * math.sqrt(16)
    assert found.diagonal().mean().sub(1).abs() < 0.15


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_the_factors_goes_down_on_what_they_are_fitted_to(mode):
    # For a gradient g and vectors v of unit covariance: g P g + the mean of v P^-1 v, that is the trace of P^-1.
    torch.manual_seed(3)
    g = torch.randn(6, 5, dtype=torch.float64)

    def loss(q):
        ql, qr = (torch.diag(x) if x.ndim == 1 else x for x in q)
        pl, pr = (ql, qr) if mode in ("QUAD4P", "PRO4P") else (ql.mT @ ql, qr.mT @ qr)
        return (g * (pl @ g @ pr.mT)).sum() + torch.linalg.inv(pl).trace() * torch.linalg.inv(pr).trace()

    tx = of.scale_by_kron_whiten(
        preconditioner_lr=1e-3, preconditioner_mode=mode, preconditioner_init_scale=2.0, preconditioner_max_skew=9.0
    )
    # That of the triangular one has v at random: it goes down in the mean.
    changes = []
    for seed in range(60 if mode == "EQ" else 1):
        one = tx.replace(seed=seed)
        state = one.init(g)
        for _ in range(3):
            _, state = one.update(g, state)
        changes.append(loss(state.factors.q) - loss(one.init(g).factors.q))
    assert torch.stack(changes).mean() < 0


def test_pairs_with_the_hessian_give_the_inverse_of_its_magnitude():
    torch.manual_seed(4)
    hessian = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))
    hessian[0, 1] = hessian[1, 0] = 0.5
    x = {"x": torch.ones(3, 1, dtype=torch.float64)}

    def f(x):
        return (x["x"] * (hessian @ x["x"])).sum() / 2

    grads, vectors = torch.func.grad(f)(x), [of.tree.random_like(i, x) for i in range(1500)]
    pairs = [(v, of.hvp(f, x, v)) for v in vectors]
    for mode in MODES:
        steps = 1500 if mode in ("QEP", "EQ") else 400  # what the slowest two need
        tx = of.scale_by_kron_whiten(
            preconditioner_lr=of.exponential_decay(0.3, 2 * steps // 15, 0.5),
            preconditioner_mode=mode,
            preconditioner_max_skew=9.0,
            fit="hessian",
        )
        state = tx.init(x)
        for v, hv in pairs[:steps]:
            _, state = tx.update(grads, state, vector=v, hvp=hv)
        (q,) = state.factors["x"].q
        p = q if mode in ("QUAD4P", "PRO4P") else q.mT @ q
        assert (p @ hessian - torch.eye(3)).abs().max() < 0.1, mode
    kept = tx.update(grads, state)[1]
    assert_trees_equal(kept.factors, state.factors)
    with pytest.raises(ValueError, match="takes both of vector and hvp, or neither"):
        tx.update(x, state, vector=x)


def test_the_hessian_is_fitted_as_its_oracle_does():
    torch.manual_seed(5)
    p, v, h = torch.randn(3, 4, 3, dtype=torch.float64)
    for mode in MODES:
        tx = of.scale_by_kron_whiten(
            preconditioner_mode=mode, fit="hessian", preconditioner_init_scale=0.7, damping=0.0
        )
        state = tx.update({"x": p}, tx.init({"x": p}), vector={"x": v}, hvp={"x": h})[1]
        rule = KronWhiten("x", 0.7, mode=mode, damping=0.0)
        rule.start((4, 3))
        rule.fit(h.numpy(), 0, v.numpy())
        for got, want in zip(state.factors["x"].q, rule.q, strict=True):
            torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-10, atol=1e-12)


def moves(tx, steps):
    """In which steps factors move."""
    p = torch.ones(2, 2, dtype=torch.float64)
    state, found = tx.init(p), []
    for t in range(steps):
        before = state.factors.q[0]
        with NoHostReads():
            state = tx.update(torch.randn_like(p), state)[1]
        if not torch.equal(before, state.factors.q[0]):
            found.append(t)
    return found


def test_factors_move_when_it_is_time():
    assert moves(of.scale_by_kron(preconditioner_update_probability=0.3), 13) == [3, 7, 11]
    assert moves(of.scale_by_kron(preconditioner_update_probability=1.0), 3) == [0, 1, 2]
    rises = of.precond_update_prob_schedule(1.0, 0.2, 1.0, 2)
    assert moves(of.scale_by_kron(preconditioner_update_probability=rises), 15) == [0, 1, 2, 7, 12]


def test_a_resumed_run_goes_on_exactly(tmp_path):
    torch.manual_seed(6)

    def begin():
        torch.manual_seed(7)
        own = {"a": torch.nn.Parameter(torch.randn(6, 5)), "b": torch.nn.Parameter(torch.randn(7))}
        rule = of.partition(
            {"w": of.kron_whiten(0.1, preconditioner_update_probability=0.5), "t": of.kron(0.1)},
            of.tree.label_by(lambda p: "w" if p.ndim == 2 else "t"),
        )
        return own, of.Optimizer(own.items(), rule)

    def train(own, optimizer, steps):
        for step in steps:
            torch.manual_seed(100 + step)
            for p in own.values():
                p.grad = torch.randn_like(p)
            optimizer.step()

    own, optimizer = begin()
    train(own, optimizer, range(5))
    torch.save(optimizer.state_dict(), tmp_path / "state")
    saved = {name: p.detach().clone() for name, p in own.items()}
    train(own, optimizer, range(5, 9))
    again, other = begin()
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    with torch.no_grad():
        for name, p in again.items():
            p.copy_(saved[name])
    train(again, other, range(5, 9))
    for name, p in own.items():
        assert torch.equal(p, again[name])


@pytest.mark.parametrize("make", [lambda: of.kron_whiten(0.1), lambda: of.kron(0.1)], ids=["kron_whiten", "kron"])
def test_a_fused_step_is_the_eager_one_up_to_sums(make):
    torch.manual_seed(8)
    tx, params = make(), {**wide_params(), "d": torch.randn(8, 32), "e": torch.randn(8, 32)}
    fused, eager = of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")
    state = tx.init(params)
    for _ in range(4):
        grads = like(params)
        got = fused(*of.tree.map(torch.clone, (params, state)), grads)
        params, state = eager(params, state, grads)
        assert_trees_equal(got, (params, state), rtol=1e-4, atol=1e-5)


def test_factors_of_halves_are_float32_and_dtypes_may_be_chosen():
    state = of.scale_by_kron_whiten(0.9).init(torch.ones(4, 4, dtype=torch.bfloat16))
    assert {x.dtype for x in of.tree.leaves((state.mu, state.factors))} == {torch.float32}
    chosen = of.scale_by_kron(mu_dtype=torch.bfloat16, precond_dtype=torch.float64)
    state = chosen.update(torch.ones(4, 4), chosen.init(torch.ones(4, 4)))[1]
    assert (state.mu.dtype, state.factors.q[0].dtype) == (torch.bfloat16, torch.float64)


def test_first_gradients_of_zero_stand_still():
    for tx in (of.scale_by_kron_whiten(), of.scale_by_kron_whiten(damping=0.0), of.scale_by_kron()):
        p = torch.zeros(3, 3)
        state = copy.deepcopy(tx.init(p))
        for _ in range(3):
            u, state = tx.update(p, state)
        assert not u.any()
        assert all(x.isfinite().all() for x in of.tree.leaves(state))
