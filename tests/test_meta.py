"""Derivatives through updates: what is special to meta-learning, beyond the laws."""

import collections
import functools
import gc
import importlib.util
import resource
import types
import weakref
from pathlib import Path

import pytest
import torch
from helpers import Pair, assert_trees_equal
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import optimfn as of

DOCS = Path(__file__).parent.parent / "docs"
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
W = torch.tensor([1.0, -2.0], dtype=torch.float64)
RATE = torch.tensor(0.05, dtype=torch.float64)
RATES = []


def loss(w):
    return 0.5 * w @ A @ w + torch.sin(w).sum()


def step(params, state, rate):
    """One step of Adam with a gradient of `torch.func`."""
    updates, state = of.adam(rate, eps_root=1e-8).update(grad(loss)(params), state, params)
    return of.apply_updates(params, updates), state


def unrolled(w, rate, take=step, steps=6):
    """The loss after some steps."""
    state = of.adam(0.0).init(w)
    for _ in range(steps):
        w, state = take(w, state, rate)
    return loss(w)


def pairs(w, state, rate):
    """Two steps."""
    for _ in range(2):
        w, state = step(w, state, rate)
    return w, state


def in_three_pairs(w, rate):
    return unrolled(w, rate, of.tree.checkpoint(pairs), 3)


# Autograd


def test_autograd_with_create_graph_finds_what_torch_func_finds():
    w, rate = W.clone().requires_grad_(), RATE.clone().requires_grad_()
    params, state = w, of.adam(0.0).init(w)
    for _ in range(6):
        (slope,) = torch.autograd.grad(loss(params), params, create_graph=True)
        updates, state = of.adam(rate, eps_root=1e-8).update(slope, state, params)
        params = of.apply_updates(params, updates)
    got = torch.autograd.grad(loss(params), (w, rate))
    assert_trees_equal(got, grad(unrolled, argnums=(0, 1))(W, RATE), rtol=1e-12)


def test_a_hyperparameter_in_the_state_has_a_gradient():
    tx = of.inject_hyperparams(of.adamw)(0.05, weight_decay=0.1, eps_root=1e-8)

    def run(values):
        params, state = W, tx.init(W)
        state = state._replace(hyperparams={**state.hyperparams, **values})
        for _ in range(3):
            updates, state = tx.update(grad(loss)(params), state, params)
            params = of.apply_updates(params, updates)
        return loss(params)

    values = {name: tx.init(W).hyperparams[name] for name in ("learning_rate", "b1", "weight_decay")}
    slopes = grad(run)(values)
    for name, value in values.items():
        above, below = (run({**values, name: value + h}) for h in (1e-6, -1e-6))
        torch.testing.assert_close(slopes[name], (above - below) / 2e-6, rtol=1e-6, atol=1e-8)


def test_a_step_of_make_step_is_differentiable():
    def run(rate):
        params, state = W, of.adam(0.0).init(W)
        for _ in range(3):
            params, state = of.make_step(of.adam(rate, eps_root=1e-8))(params, state, grad(loss)(params))
        return loss(params)

    want = grad(lambda rate: unrolled(W, rate, steps=3))(RATE)
    torch.testing.assert_close(grad(run)(RATE), want)
    rate = RATE.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(run(rate), rate)[0], want)


# Truncation


def test_stop_gradient_cuts_every_kind_of_derivative():
    def cut(w):
        return loss(of.tree.stop_gradient({"w": 3 * w, "count": torch.tensor(1)})["w"]) + w.sum()

    ones = torch.ones(2, dtype=torch.float64)
    assert torch.equal(grad(cut)(W), ones)
    assert torch.equal(jacrev(grad(lambda w: cut(w) + loss(w)))(W), jacrev(grad(loss))(W))
    w = W.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(cut(w), w)[0], ones)
    assert of.tree.stop_gradient([None, w])[0] is None


@FORWARD_MODE
def test_stop_gradient_cuts_forward_mode():
    assert jvp(lambda w: of.tree.stop_gradient(w).sum() + w.sum(), (W,), (torch.ones_like(W),))[1] == 2.0


def test_truncated_backpropagation_sees_the_last_steps_only():
    def truncated(rate):
        w, state = W, of.adam(0.0).init(W)
        for i in range(6):
            if i % 2 == 0:
                w, state = of.tree.stop_gradient((w, state))
            w, state = step(w, state, rate)
        return loss(w)

    def last_two(rate):
        w, state = W, of.adam(0.0).init(W)
        for _ in range(4):
            w, state = step(w, state, RATE)
        for _ in range(2):
            w, state = step(w, state, rate)
        return loss(w)

    torch.testing.assert_close(truncated(RATE), unrolled(W, RATE))
    torch.testing.assert_close(grad(truncated)(RATE), grad(last_two)(RATE))


# Checkpointing

TRANSFORMED = {
    "value": lambda f: f(W, RATE),
    "grad": lambda f: grad(f, argnums=(0, 1))(W, RATE),
    "autograd": lambda f: torch.autograd.grad(f(*(leaves := _leaves())), leaves),
    "autograd twice": lambda f: _autograd_twice(f),
    "jvp": lambda f: jvp(lambda r: f(W, r), (RATE,), (torch.ones_like(RATE),)),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f))(W, RATE),
    "grad of grad": lambda f: grad(grad(lambda r: f(W, r)))(RATE),
    "vmap of grad": lambda f: vmap(grad(lambda r: f(W, r)))(torch.stack([RATE, 2 * RATE])),
    "grad of vmap": lambda f: grad(lambda r: vmap(f, in_dims=(0, None))(torch.stack([W, 2 * W]), r).sum())(RATE),
}


def _leaves():
    return W.clone().requires_grad_(), RATE.clone().requires_grad_()


def _autograd_twice(f):
    w, rate = _leaves()
    (slope,) = torch.autograd.grad(f(w, rate), rate, create_graph=True)
    return torch.autograd.grad(slope, (w, rate))


@FORWARD_MODE
@pytest.mark.parametrize("way", TRANSFORMED)
def test_a_checkpoint_changes_no_number(way):
    assert_trees_equal(TRANSFORMED[way](in_three_pairs), TRANSFORMED[way](unrolled), rtol=1e-12, atol=1e-14)


def test_a_checkpoint_keeps_nothing_of_the_way_and_goes_it_twice():
    seen = []

    def watched(params, state, rate):
        seen.append(weakref.ref(middle := grad(loss)(params) * 2))
        updates, state = of.sgd(rate).update(middle, state, params)
        return of.apply_updates(params, updates), state

    for kept, calls, alive in ((of.tree.checkpoint(watched), 12, 0), (watched, 6, 6)):
        seen.clear()
        w, rate = _leaves()
        state, params = of.sgd(0.0).init(w), w
        for _ in range(6):
            params, state = kept(params, state, rate)
        gc.collect()
        assert sum(ref() is not None for ref in seen) == alive
        torch.autograd.grad(loss(params), (w, rate))
        assert len(seen) == calls


def test_trees_and_other_things_pass_through_a_checkpoint():
    def f(tree, flag, *, shift):
        return {"pair": Pair(tree["x"] * 2 + shift, None), "same": tree["x"], "count": tree["count"] + 1, "none": None}

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    out = of.tree.checkpoint(f)({"x": x, "count": torch.tensor(3)}, True, shift=1.0)
    assert out["pair"] == Pair(out["pair"].left, None)
    assert out["count"] == 4
    assert not out["count"].requires_grad
    (slope,) = torch.autograd.grad(out["pair"].left.sum() + out["same"].sum(), x)
    assert slope.tolist() == [3.0, 3.0]


@FORWARD_MODE
def test_what_a_checkpointed_function_holds_is_no_constant_in_silence():
    def held(rate):
        def inside(w):
            return step(w, of.adam(0.0).init(w), rate)[0]

        return loss(of.tree.checkpoint(inside)(W))

    words = "the function holds a tensor that a derivative is taken by; make it one of its arguments"
    with pytest.raises(RuntimeError, match=words):
        grad(held)(RATE)
    with pytest.raises(RuntimeError, match=words):
        held(RATE.clone().requires_grad_())
    torch.testing.assert_close(vmap(held)(RATE.reshape(1))[0], held(RATE))
    tx = of.sgd(RATE)
    for hold in (
        lambda rate: functools.partial(lambda w, r: r * w, r=rate),
        lambda rate: lambda w: of.sgd(rate).update(w, of.sgd(rate).init(w))[0],
        lambda rate: lambda w, rate=rate: of.sgd(rate).update(w, of.sgd(rate).init(w))[0],
        lambda rate: of.chain(tx, of.sgd(rate)).update,
        lambda rate: lambda w, rates=({"r": [rate]},): w * rates[0]["r"][0],
        lambda rate: lambda w, *, rate=rate: w * rate,
        lambda rate: holding(Slots(rate), lambda held: held.rate),
        lambda rate: holding(types.SimpleNamespace(deep=collections.deque([[rate]])), lambda held: held.deep[0][0]),
        lambda rate: holding(type("Held", (), {"rate": rate}), lambda held: held().rate),
        lambda rate: Slots(rate).times,
        Slots,
        in_a_module,
        in_a_global,
    ):
        for derivative in (grad, lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))):
            with pytest.raises(RuntimeError, match=words):
                derivative(lambda rate, hold=hold: of.tree.checkpoint(hold(rate))(W).sum())(RATE)
    with pytest.raises(RuntimeError, match=words):  # also in an argument that is no tree of tensors
        grad(lambda rate: of.tree.checkpoint(lambda w, held: held(w))(W, Slots(rate)).sum())(RATE)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(RATE, torch.ones_like(RATE))
        with pytest.raises(RuntimeError, match=words):
            of.tree.checkpoint(lambda w: w * dual)(W)


class Slots:
    """An object without a `__dict__`."""

    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, w):
        return w * self.rate

    times = __call__


def holding(thing, get):
    """A function of a thing that holds a tensor."""
    return lambda w: w * get(thing)


def in_a_module(rate):
    """A module whose buffer a derivative is taken by."""
    net = torch.nn.Sequential(torch.nn.Identity())
    net[0].register_buffer("rate", rate)
    return lambda w: net(w) * net[0].rate


def in_a_global(rate):
    """A function of a global."""
    RATES[:] = [rate]
    return lambda w: sum(RATES[0] * x for x in [w])


# Memory


def test_memory_does_not_grow_with_outer_steps():
    def meta_loss(hyper):
        params, state = {"w": torch.ones(200, 50)}, of.adam(0.0).init({"w": torch.ones(200, 50)})
        tx = of.adam(hyper["rate"], eps_root=1e-8)
        for _ in range(2):
            updates, state = tx.update(grad(lambda p: (p["w"] ** 2).sum())(params), state, params)
            params = of.apply_updates(params, updates)
        return (params["w"] ** 2).sum()

    hyper = {"rate": torch.tensor(0.01)}
    tx = of.adam(1e-4)
    state, outer = tx.init(hyper), of.make_step(tx)

    def live():
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    for i in range(1000):
        hyper, state = outer(hyper, state, grad(meta_loss)(hyper))
        if i == 99:
            tensors, peak = live(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert live() <= tensors
    # A leak of one leaf of 40 kB a step would be 36 MB by now.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 10_000  # KiB


# The page


def test_the_page_says_which_rules_are_differentiable():
    specification = importlib.util.spec_from_file_location("_differentiable", DOCS / "_differentiable.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    text = (DOCS / "guides" / "meta-learning.md").read_text()
    assert text == script.page(text), "the cases have changed, run: python docs/_differentiable.py"
