"""Half precision: what underflows or overflows in float16 does neither on the way through a chain."""

import math

import pytest
import torch
from helpers import assert_trees_equal, wide_params

import optimfn as of

EXECUTIONS = {
    "pure": lambda tx, p, g, **extra: of.apply_updates(p, tx.update(g, tx.init(p), p, **extra)[0]),
    "fused": lambda tx, p, g, **extra: of.make_step(tx, backend="fused")(p, tx.init(p), g, **extra)[0],
    "donating": lambda tx, p, g, **extra: of.make_step(tx, donate=True)(p.clone(), tx.init(p), g, **extra)[0],
    "eager": lambda tx, p, g, **extra: of.make_step(tx, donate=True, backend="eager")(p.clone(), tx.init(p), g)[0],
    "vmap": lambda tx, p, g, **extra: EXECUTIONS["pure"](of.stacked(tx), p[None], g[None])[0],
    "optimizer": lambda tx, p, g, **extra: _stateful(tx, p, g, None),
    "optimizer, eager": lambda tx, p, g, **extra: _stateful(tx, p, g, False),
}


def _stateful(tx, p, g, fused):
    p = p.clone().requires_grad_()
    if p.dtype != g.dtype:
        p.grad_dtype = None  # any
    p.grad = g.clone()
    of.Optimizer([p], tx, fused=fused).step()
    return p.detach()


every = pytest.mark.parametrize("take", EXECUTIONS.values(), ids=EXECUTIONS)

SMALLEST, LARGE = 2**-24, 6e4


@every
@pytest.mark.parametrize(
    ("tx", "gradient", "step"),
    [
        (of.signum(0.25), 1e-7, -0.25),
        (of.signum(0.25), SMALLEST, -0.25),
        (of.sign_sgd(0.25), -SMALLEST, 0.25),
        (of.sgd(1e-4, 0.9, nesterov=True), 5e4, -9.5),
        (of.sgd(1e-3, momentum=0.9), LARGE, -60.0),
        (of.nadam(0.1), 6600.0, -0.1473684),
        (of.nadam(0.1), -LARGE, 0.1473684),
        (of.adam(0.25), SMALLEST, -0.25 * SMALLEST / (SMALLEST + 1e-8)),
        (of.adam(0.25), LARGE, -0.25),
        (of.lion(0.25), SMALLEST, -0.25),
        (of.rmsprop(0.25), LARGE, -0.25 / math.sqrt(0.1)),
        (of.chain(of.scale(1e-4), of.scale(1e4), of.scale(-1.0)), 1e-3, -1e-3),
        (of.chain(of.scale(1e4), of.scale(1e-4), of.scale(-1.0)), 100.0, -100.0),
        (of.chain(of.add_decayed_weights(0.5), of.scale(-1e-6), of.scale(1e6)), 1.0, -1.0),
        (of.chain(of.clip_by_global_norm(1.0), of.sgd(0.5)), LARGE, -0.5 / math.sqrt(3)),
        (of.masked(of.chain(of.scale(1e-6), of.scale(-1e6)), True), 1.0, -1.0),
        (of.inject_hyperparams(of.sgd)(learning_rate=1e-3), LARGE, -60.0),
        (of.per_leaf(of.signum(0.25)), 1e-7, -0.25),
        (of.flatten(of.signum(0.25)), 1e-7, -0.25),
        (of.multi_steps(of.signum(0.25), 1), 1e-7, -0.25),
        (of.apply_if_finite(of.signum(0.25), 1), 1e-7, -0.25),
        (of.conditionally_transform(of.signum(0.25), lambda step: step >= 0), 1e-7, -0.25),
        (of.split_real_and_imaginary(of.signum(0.25)), 1e-7, -0.25),
    ],
    ids=str,
)
def test_float16_neither_underflows_nor_overflows_between_links(take, tx, gradient, step):
    params = torch.zeros(3, dtype=torch.float16)
    new = take(tx, params, torch.full((3,), gradient, dtype=torch.float16))
    assert new.dtype == torch.float16
    torch.testing.assert_close(new, torch.full((3,), step).half(), rtol=2**-10, atol=0.0)


@every
def test_muon_steps_by_matrices_whose_squares_are_no_float16(take):
    tx, params = of.torch_muon(0.1), torch.zeros(2, 2, dtype=torch.float16)
    new = take(tx, params, torch.full((2, 2), 1e-7, dtype=torch.float16))
    want = take(tx, params.float(), torch.full((2, 2), 1e-7, dtype=torch.float16).float())
    torch.testing.assert_close(new, want.half(), rtol=5e-3, atol=0.0)  # computed in bfloat16, see the case of muon
    assert 0.03 < -new.float().mean() < 0.05


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_float32_parameter_gets_what_its_gradient_in_half_precision_says(take, dtype):
    """The rate times the direction is no float16."""
    params, gradient = torch.zeros(3), torch.full((3,), 2**-14, dtype=dtype)
    new = take(of.sgd(2.0**-20), params, gradient)
    assert_trees_equal(new, torch.full((3,), -(2.0**-34)))
    new = take(of.chain(of.scale_by_sign(), of.scale(-(2.0**-30))), params, gradient)
    assert_trees_equal(new, torch.full((3,), -(2.0**-30)))


def test_updates_are_float32_and_the_parameters_are_rounded_once():
    """1 + 2^-12 + 2^-12 is rounded up to the next float16 only if nothing was rounded before."""
    tx = of.chain(of.scale(2.0**-12), of.add_decayed_weights(2.0**-12))
    params, grads = torch.ones(3, dtype=torch.float16), torch.full((3,), 1.5, dtype=torch.float16)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_trees_equal(updates, torch.full((3,), 2.5 * 2**-12))
    assert_trees_equal(of.apply_updates(params, updates), torch.full((3,), 1 + 2.0**-10, dtype=torch.float16))


# What users write


def _plain_momentum():
    """A rule in plain torch operators, with a state like the parameters, of which some take one dtype only."""

    def update(updates, state, params=None, **extra):
        state = {name: torch.lerp(state[name], updates[name], 0.5) for name in updates}
        return {name: m + 0.25 * params[name] + m @ m.mT @ params[name] for name, m in state.items()}, state

    return of.GradientTransformation(lambda params: {k: torch.zeros_like(p) for k, p in params.items()}, update)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda rule: rule,
        lambda rule: of.chain(of.clip_by_global_norm(1.0), rule, of.scale(-0.5)),
        lambda rule: of.chain(of.chain(rule), of.chain(of.trace(0.9))),
        lambda rule: of.masked(rule, True),
        lambda rule: of.partition({"own": rule}, "own"),
        lambda rule: of.multi_steps(rule, 2),
    ],
)
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_a_rule_in_plain_operators_works_alone_and_anywhere(wrap, dtype, backend):
    tx = wrap(_plain_momentum())
    params = {name: p.to(dtype) for name, p in wide_params().items() if p.ndim == 2}
    step, state = of.make_step(tx, backend=backend), tx.init(params)
    kinds = [x.dtype for x in of.tree.leaves(state)]
    wide, wide_state = of.tree.cast(params, torch.float32), tx.init(of.tree.cast(params, torch.float32))
    for _ in range(3):
        wide, wide_state = of.make_step(tx, backend="eager")(
            of.tree.cast(params, torch.float32), state, of.tree.cast(params, torch.float32)
        )
        params, state = step(params, state, params)
        assert [x.dtype for x in of.tree.leaves(state)] == kinds
        assert_trees_equal(params, of.tree.cast(wide, dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert_trees_equal(state, wide_state, rtol=1e-5, atol=1e-6)


def test_masks_and_labels_judge_leaves_in_the_dtypes_that_users_gave_them():
    def is_half(params):
        return of.tree.map(lambda p: p.dtype == torch.float16, params)

    params = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2)}
    label = of.tree.label_by(lambda p: str(p.dtype))
    for tx in (
        of.masked(of.scale(0.0), is_half),
        of.partition({"torch.float16": of.set_to_zero(), "torch.float32": of.identity()}, label),
        of.chain(of.trace(0.9), of.masked(of.scale(0.0), is_half)),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            assert updates["a"].tolist() == [0.0, 0.0]
            assert updates["b"].all()
        for step in (of.make_step(tx, backend=backend) for backend in ("eager", "fused")):
            new, _ = step(params, tx.init(params), params)
            assert torch.equal(new["a"], params["a"])
            assert not torch.equal(new["b"], params["b"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("wrap", [lambda tx: tx, of.split_real_and_imaginary], ids=["plain", "split"])
def test_masks_and_labels_of_updates_alone_judge_what_users_gave(wrap, dtype):
    """There are no parameters to ask about, and earlier links have made other tensors."""
    grads = {"a": torch.ones(2, dtype=dtype), "b": torch.ones(2), "c": torch.ones(2, 2, dtype=dtype)}
    label = of.tree.label_by(lambda p: f"{p.ndim} {p.dtype}")
    others = {f"2 {dtype}": of.identity(), "1 torch.float32": of.identity()}
    for judge in (
        of.masked(of.scale(0.0), of.tree.mask_by(lambda p: p.dtype == dtype and p.ndim == 1)),
        of.masked(
            of.masked(of.scale(0.0), of.tree.mask_by(lambda p: p.dtype == dtype)), {"a": True, "b": True, "c": False}
        ),
        of.partition({f"1 {dtype}": of.set_to_zero(), **others}, label),
    ):
        for tx in (judge, of.chain(of.trace(0.9), of.scale(2.0), judge)):
            tx = wrap(tx)
            state = tx.init(grads)
            for _ in range(2):
                updates, state = tx.update(grads, state)
                assert not updates["a"].any()
                assert updates["b"].all()
                assert updates["c"].all()


@pytest.mark.parametrize("by", ["value_fn", "value_and_grad_fn"])
def test_the_loss_is_asked_about_parameters_in_their_dtype(by):
    """The layers of a model in half precision take no others."""
    x = torch.ones(4, 2, dtype=torch.bfloat16)

    def loss(params):
        return (x @ params["w"]).square().mean()

    given = {by: loss if by == "value_fn" else of.tree.value_and_grad(loss)}
    params = {"w": torch.ones(2, 1, dtype=torch.bfloat16)}
    value, grad = of.tree.value_and_grad(loss)(params)
    for tx in (of.lbfgs(), of.minimize_by_lbfgs(0.1), of.chain(of.sgd(1.0), of.scale_by_zoom_linesearch(5))):
        state = tx.init(params)
        new = of.apply_updates(params, tx.update(grad, state, params, value=value, grad=grad, **given)[0])
        assert new["w"].dtype == torch.bfloat16
        assert loss(new) < value


@pytest.mark.parametrize("name", ["sam", "asam", "gsam", "friendly_sam", "looksam", "sophia", "adahessian"])
def test_gradients_and_curvature_are_asked_of_a_model_in_its_dtype(name):
    x = torch.eye(2, dtype=torch.bfloat16)  # so that its curvature is that of single elements

    def loss(params):
        return (x @ params["w"]).float().square().mean()

    rules = {
        "sam": of.sam(of.sgd(0.1), of.chain(of.normalize(), of.sgd(0.5)), opaque_mode=True),
        "asam": of.asam(of.sgd(0.1)),
        "gsam": of.gsam(of.sgd(0.1)),
        "friendly_sam": of.friendly_sam(of.sgd(0.1)),
        "looksam": of.looksam(of.sgd(0.1), period=2),
        "sophia": of.sophia(0.1),
        "adahessian": of.adahessian(0.1),
    }
    tx, params, gradient = rules[name], {"w": torch.ones(2, 1, dtype=torch.bfloat16)}, torch.func.grad(loss)
    state, first = tx.init(params), loss(params)
    for _ in range(3):
        updates, state = tx.update(gradient(params), state, params, grad_fn=lambda p, i: gradient(p), obj_fn=loss)
        params = of.apply_updates(params, updates)
    assert params["w"].dtype == torch.bfloat16
    assert loss(params) < first


def test_nothing_of_what_rules_were_shown_goes_out():
    """Views of half precision know their leaves; what is returned are tensors like others."""

    def update(updates, state, params=None, **extra):
        return updates, {"kept": updates, "seen": params}

    tx = of.GradientTransformation(lambda params: {"kept": params, "seen": params}, update)
    params = {"a": torch.ones(2, dtype=torch.float16)}
    state = tx.init(params)
    for tree in (state, tx.update(params, state, params)):
        assert all(not vars(leaf) for leaf in of.tree.leaves(tree))


def test_lookahead_keeps_its_slow_parameters_like_the_parameters():
    params = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2)}
    state = of.lookahead(of.sgd(0.1), 2, 0.5, slow_in_state=True).init(params)
    assert {name: x.dtype for name, x in state.slow.items()} == {"a": torch.bfloat16, "b": torch.float32}
