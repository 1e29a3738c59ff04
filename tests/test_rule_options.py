"""Options beside the plain rule, each against its equations in float64, and what belongs to one rule alone."""

import numpy as np
import pytest
import torch
from cases.transforms import into_box
from helpers import plain_params
from oracles import rate_free as oracle
from oracles.adam_kin import Adopt
from oracles.blocks import leafwise
from oracles.optax_rules import Adan
from oracles.sharpness import AtOnce, Friendly, LookSAM, Momentum, asam, gap, straight

import optimfn as of

STEPS = 25


def gradients(params, steps=STEPS):
    """Of any size."""
    generator = torch.Generator().manual_seed(4)
    for t in range(steps):
        yield {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * 3.0 ** (t % 4) for n, p in params.items()}


class Proximal:
    """The decay of Adan's paper behind a rule."""

    def __init__(self, rule, share):
        self.rule, self.share = rule, share

    def __call__(self, g, p, t):
        return (p + self.rule(g, p, t)) / (1 + self.share) - p


class Raw(oracle.DAdaptAdam):
    """D-Adaptation's Adam without bias correction, whose estimate grows slowly."""

    def __init__(self, d0, growth):
        super().__init__(d0=d0)
        self.growth = growth

    def step(self, g, p, t):
        before, (beta1, beta2), gamma = self.d, self.betas, self.gamma
        self.gamma = gamma * (1 - beta1**t) / np.sqrt(1 - beta2**t)
        step = super().step(g, p, t)
        self.gamma, self.d = gamma, min(self.d, max(before, before * self.growth))
        return step


class FreeAdam:
    """Defazio et al. 2024, Algorithm 1, in x, y and z; Adam's numerator is a corrected mean."""

    def __init__(self, gamma, beta1, beta2, decay, inner):
        self.gamma, self.beta1, self.beta2, self.decay, self.inner = gamma, beta1, beta2, decay, inner
        self.m, self.v, self.total, self.x = 0.0, 0.0, 0.0, None

    def __call__(self, g, y, t):
        if self.x is None:
            self.x = self.z = y
        self.m = self.inner * self.m + (1 - self.inner) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        root = np.sqrt(self.v / (1 - self.beta2**t)) + 1e-8
        self.z = self.z - self.gamma * (self.m / (1 - self.inner**t) / root + self.decay * y)
        self.total += self.gamma**2
        self.x = self.x + self.gamma**2 / self.total * (self.z - self.x)
        return self.beta1 * self.x + (1 - self.beta1) * self.z - y


OPTIONS = {
    "adan_proximal": (
        of.adan(1e-2, weight_decay=0.3, proximal=True),
        leafwise(lambda _: Proximal(Adan(1e-2, eps_root=1e-8), 3e-3)),
    ),
    "adopt_like_timm": (
        of.adopt(1e-2, b2=0.99, clip_exponent=0.333),
        leafwise(lambda _: Adopt(beta2=0.99, rate=1e-2, power=0.333)),
    ),
    "dadapt_adamw_like_its_authors": (
        of.dadapt_adamw(estim_lr0=1e-3, growth_rate=1.1, use_bias_correction=False),
        oracle.run(lambda: Raw(1e-3, 1.1)),
    ),
    "schedule_free_adamw_with_momentum_inside": (
        of.schedule_free_adamw(0.05, b1=0.8, b2=0.95, weight_decay=0.1, inner_momentum=0.6),
        leafwise(lambda _: FreeAdam(0.05, 0.8, 0.95, 0.1, 0.6)),
    ),
    "dadapt_sgd_unbounded": (of.dadapt_sgd(estim_lr0=1e-3), oracle.run(lambda: oracle.DAdaptSGD(d0=1e-3))),
    "dadapt_adagrad_unbounded": (
        of.dadapt_adagrad(estim_lr0=1e-3),
        oracle.run(lambda: oracle.DAdaptAdaGrad(d0=1e-3)),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_follows_its_equations(name):
    tx, follow = OPTIONS[name]
    params = plain_params()
    state, given = tx.init(params), list(gradients(params))
    for grads, want in zip(given, follow(params, given), strict=True):
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        for leaf, expected in want.items():
            assert (params[leaf] - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("gamma", [0.0, 2.5, torch.tensor(6.94, dtype=torch.float64)], ids=str)
def test_a_power_average_weighs_each_step_by_a_power_of_its_number(gamma):
    """In the limit of many steps; for gamma = 0 and whole numbers of steps exactly."""
    tx, path = of.power_ema(gamma), [torch.full((2,), float(t), dtype=torch.float64) for t in (3, 1, 4, 1, 5)]
    p = torch.zeros(2, dtype=torch.float64)
    state, mean = tx.init(p), p
    for t, new in enumerate(path, start=1):
        _, state = tx.update(new - p, state, p)
        p, decay = new, (1 - 1 / t) ** (float(gamma) + 1)
        mean = decay * mean + (1 - decay) * new
        assert torch.allclose(of.eval_params(tx, state, p), mean, rtol=1e-12)
    if isinstance(gamma, float) and gamma == 0:
        assert torch.allclose(mean, torch.stack(path).mean(0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_in_a_set_is_in_it(dtype):
    """Where `p + (projection - p)` is beside the bound."""
    tx = of.chain(of.sgd(1.0), of.keep_params_in(into_box))
    params = {"far": torch.full((3,), 3e7, dtype=dtype), "still": torch.full((2,), 9.0, dtype=dtype)}
    step, state = of.make_step(tx), tx.init(params)
    moved, _ = step(params, state, {"far": torch.full((3,), -1.0, dtype=dtype), "still": None})
    assert moved["far"].equal(torch.ones(3, dtype=dtype))
    assert moved["still"].equal(params["still"])


def test_what_is_assigned_is_kept_in_a_set_too():
    tx, p = of.keep_params_in(into_box), {"w": torch.zeros(2), "v": torch.zeros(1)}
    updates, _ = tx.update({"w": of.Assign(torch.tensor([-7.0, 0.25])), "v": of.Assign(None)}, tx.init(p), p)
    moved = of.apply_updates(p, updates)
    assert moved["w"].equal(torch.tensor([-0.5, 0.25]))
    assert moved["v"].equal(p["v"])


def around(inner):
    """Wrappers that reckon with steps."""
    return {
        "schedule_free": lambda: of.schedule_free(inner, 0.1),
        "gpa": lambda: of.gpa(inner),
        "mechanize": lambda: of.mechanize(inner),
        "graft": lambda: of.graft(inner, inner),
        "sam": lambda: of.sam(inner, of.sgd(0.1)),
    }


@pytest.mark.parametrize("who", around(None))
def test_a_wrapper_that_reckons_with_steps_says_so_where_one_is_assigned(who):
    p = {"w": torch.ones(2)}
    tx = around(of.chain(of.sgd(0.1), of.keep_params_in(into_box)))[who]()
    with pytest.raises(TypeError, match=rf"{who} reckons with.*update of w is an Assign.*chain\({who}\(\.\.\.\)"):
        tx.update(p, tx.init(p), p)


def test_an_element_at_rest_may_begin_to_move_where_spikes_are_clipped():
    """As an embedding that is met for the first time: there is nothing to compare its gradient with."""
    for tx in (of.clip_spikes(2.0, grace_steps=1), of.scale_by_spam(threshold=2.0, grace_steps=1)):
        state = tx.init(torch.ones(2))
        for g in ([1.0, 0.0], [1.0, 0.0], [1.0, 5.0]):
            updates, state = tx.update(torch.tensor(g), state)
        assert (updates > 0).all()


def test_d_adaptation_waits_for_a_gradient():
    p = torch.ones(2)
    for tx in (of.dadapt_sgd(), of.dadapt_adagrad(), of.dadapt_lion(), of.dadapt_adamw()):
        state = tx.init(p)
        for g in (torch.zeros(2), torch.zeros(2)):
            updates, state = tx.update(g, state, p)
            assert not updates.any()
        updates, state = tx.update(torch.tensor([3.0, 4.0]), state, p)
        assert (updates < 0).all()
        assert of.tree.get(state, "estim_lr") >= 1e-6


def slope(p):
    """The gradient of the loss of `closures`, in numpy: of the sum of p^4 / 4 and of a coupling of two leaves."""
    return {"w": p["w"] ** 3 + p["b"].sum(), "b": p["b"] ** 3 + p["w"].sum()}


def loss(p):
    """What `slope` is the gradient of."""
    return (p["w"] ** 4).sum() / 4 + (p["b"] ** 4).sum() / 4 + p["w"].sum() * p["b"].sum()


CLIMBS = {
    "sam": (
        of.sam(of.sgd(0.02, 0.9), of.chain(of.normalize(), of.sgd(0.05)), opaque_mode=True),
        lambda: AtOnce(straight(0.05), Momentum(0.02, 0.9), slope),
    ),
    "asam": (
        of.asam(of.sgd(0.02, 0.9), 0.3, mask={"w": True, "b": False}),
        lambda: AtOnce(asam(0.3, 0.01, lambda n: n == "w"), Momentum(0.02, 0.9), slope),
    ),
    "gsam": (
        of.gsam(of.sgd(0.02, 0.9), 0.1, 0.3),
        lambda: AtOnce(straight(0.1), Momentum(0.02, 0.9), slope, gap(0.3)),
    ),
    "gsam_adaptive": (
        of.gsam(of.sgd(0.02, 0.9), 0.1, 0.3, adaptive=True),
        lambda: AtOnce(asam(0.1, 0.0, lambda n: True), Momentum(0.02, 0.9), slope, gap(0.3)),
    ),
    "friendly_sam": (
        of.friendly_sam(of.sgd(0.02, 0.9), 0.2, 0.8, 0.6),
        lambda: AtOnce(Friendly(straight(0.2), 0.8, 0.6), Momentum(0.02, 0.9), slope),
    ),
    "looksam": (
        of.looksam(of.sgd(0.02, 0.9), 0.1, 0.5, 4),
        lambda: LookSAM(straight(0.1), Momentum(0.02, 0.9), slope, 0.5, 4),
    ),
}


@pytest.mark.parametrize("name", CLIMBS)
def test_a_climb_follows_its_equations_by_a_function_and_by_a_closure(name):
    tx, follow = CLIMBS[name]
    params = {
        "w": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3),
        "b": torch.tensor([1.0, 0.5], dtype=torch.float64),
    }
    here, rule = {n: p.numpy() for n, p in params.items()}, follow()
    model = torch.nn.ParameterDict(params)
    opt, state, calls = of.Optimizer(model, tx), tx.init(params), []

    def closure():
        opt.zero_grad()
        value = loss(model)
        value.backward()
        calls.append(value.item())
        return value

    gradient = torch.func.grad(loss)
    for t in range(1, STEPS + 1):
        step = rule(slope(here), here, t)
        here = {n: p + step[n] for n, p in here.items()}
        updates, state = tx.update(gradient(params), state, params, grad_fn=lambda p, i: gradient(p))
        params = of.apply_updates(params, updates)
        opt.step(closure)
        for n, want in here.items():
            assert np.abs(params[n].numpy() - want).max() <= 1e-9 * np.abs(want).max()
            assert np.abs(model[n].detach().numpy() - want).max() <= 1e-9 * np.abs(want).max()
    assert len(calls) == (STEPS + len(range(0, STEPS, 4)) if name == "looksam" else 2 * STEPS)


def test_a_climb_without_gradients_elsewhere_says_how_to_give_them():
    p = torch.ones(2)
    for tx in (CLIMBS["sam"][0], CLIMBS["gsam"][0], CLIMBS["looksam"][0]):
        with pytest.raises(ValueError, match=r"grad_fn=f.*Optimizer\.step with a closure"):
            tx.update(p, tx.init(p), p)
    gapless = of.sam(of.chain(of.add_surrogate_gap(), of.sgd(0.1)), of.sgd(0.1))
    with pytest.raises(ValueError, match=r"add_surrogate_gap needs.*opaque_mode=True"):
        gapless.update(p, gapless.init(p), p)


def test_a_part_aside_of_nothing_but_rounding_is_none():
    """A single element has no direction aside of its gradient."""
    tx, p = of.looksam(of.sgd(1.0), period=3), {"bias": torch.tensor([0.7]), "w": torch.tensor([0.1, -0.3])}
    state = tx.init(p)
    for t in range(3):
        updates, state = tx.update(p, state, p, grad_fn=lambda p, i: of.tree.map(lambda x: x.sin() / 3, p))
        assert t == 0 or updates["bias"].equal(-p["bias"])
    assert of.tree.get(state, "aside")["w"].any()
