"""The part of the table that covers the rest of optax's core."""

import itertools
import math

import numpy as np
import torch
from case import NEGATIVE, NO_DECAY, Case, ScheduleCase
from oracles.adam import Adam
from oracles.blocks import Each, leafwise, together
from oracles.momentum import Ema, Trace
from oracles.optax_rules import (
    SM3,
    AdaBelief,
    AdafactorAsOptax,
    Adan,
    Factored,
    Lamb,
    Lars,
    LayerwiseDoG,
    NovoGrad,
    Optimistic,
    Yogi,
    adaptive_clip,
    fromage_step,
    noise,
    polyak,
    trust_ratio,
)

import optimfn as of

RATE = of.linear_schedule(0.1, 0.0, 20)
SIGN = "the sign has a jump, and its derivative is zero elsewhere"
BAD_RATE = ({"learning_rate": -1.0}, ValueError, f"learning_rate {NEGATIVE}")
BAD_SCHEDULE = (
    {"learning_rate": RATE},
    TypeError,
    "learning_rate must be a number or a 0-dim tensor, got linear_schedule",
)
GLOBAL = "the norm is that of all leaves together"
SEARCHES = {
    "alone": "the loss is that of all leaves together",
    "dtype": "the loss is evaluated at rounded parameters; test_linesearch.py has the dtypes",
    "fused": "a step between two values magnifies the last bit of a sum; test_linesearch.py compares in float64",
}
QUASI_NEWTON = {
    "absent": "to the memory of a leaf, an absent gradient is a step that did not move it",
    "alone": "inner products are those of all leaves together",
    "fused": "one over an inner product magnifies its last bit; test_linesearch.py compares in float64",
}
TAKES_VALUE = "a copy does not have the value that the case gives to every update"


def negative(*names):
    """One bad argument for each name: -1."""
    return tuple(({name: -1.0}, ValueError, f"{name} {NEGATIVE}") for name in names)


def no_decay(*names):
    """One bad argument for each name: a decay of 1."""
    return tuple(({name: 1.0}, ValueError, f"{name} {NO_DECAY}") for name in names)


def linear(count):
    """`RATE` in plain Python."""
    return 0.1 * (1 - min(count, 20) / 20)


def bounded_decay(step, rate):
    """A decay for `scale_by_factored_rms` with a bound."""
    return of.tree.clip(1 - of.tree.wide(step + 1) ** -rate, max_value=0.7)


def matrices_in_rows(name):
    """`MATRICES` by the names of the plain parameters: `b` is a vector."""
    return name != "b"


class Times:
    """A rule of an oracle, times a schedule."""

    def __init__(self, rule, schedule):
        self.rule, self.schedule = rule, schedule

    def __call__(self, g, p, t):
        return self.schedule(t - 1) * self.rule(g, p, t)


class WarmAdamW(Adam):
    """AdamW whose beta1 is a schedule, also in the bias correction."""

    def __init__(self, alpha, beta1, weight_decay):
        super().__init__(alpha, weight_decay=weight_decay)
        self.schedule = beta1

    def __call__(self, g, p, t):
        self.beta1 = self.schedule(t - 1)
        return super().__call__(g, p, t)


class Descent:
    """Gradient descent with momentum."""

    def __init__(self, rate):
        self.rate, self.trace = rate, Trace(0.9)

    def __call__(self, g, p, t):
        return -self.rate * self.trace(g, p, t)


class Signed:
    """The sign of a rule of an oracle."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, g, p, t):
        return np.sign(self.rule(g, p, t))


class ScheduledAdafactor(AdafactorAsOptax):
    """Adafactor's rule, unclipped and whole, with a rate that is a schedule."""

    def __init__(self, schedule):
        super().__init__(d=math.inf, least=99, eps=1e-3)
        self.schedule = schedule

    def __call__(self, g, p, t):
        self.rate = self.schedule(t - 1)
        return super().__call__(g, p, t)


def global_norm(grads):
    """2-norm over all leaves."""
    return math.sqrt(sum(np.sum(g**2) for g in grads.values()))


def centred(g, p, t):
    """Without the mean over all axes but the first."""
    return g if g.ndim < 2 else g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)


class Accumulate:
    """A rule of an oracle that takes a step for every k gradients; k is a function of the steps taken."""

    def __init__(self, rule, k, mean=True):
        self.rule, self.k, self.mean, self.taken, self.held = rule, k, mean, 0, []

    def __call__(self, g, p, t):
        self.held.append(g)
        k = self.k(self.taken)
        if len(self.held) < k:
            return 0 * g
        total, self.held, self.taken = sum(self.held), [], self.taken + 1
        return self.rule(total / k if self.mean else total, p, self.taken)


class Conditional:
    """A rule of an oracle that counts its own steps, and something else at the first two."""

    def __init__(self, rule, otherwise):
        self.rule, self.otherwise = rule, otherwise

    def __call__(self, g, p, t):
        return self.otherwise * g if t <= 2 else self.rule(g, p, t - 2)


class SlowAndFast:
    """Zhang et al. 2019, Algorithm 1, in nested loops cut open."""

    def __init__(self, make_rule, k, alpha, reset=False):
        self.make_rule, self.rule, self.k, self.alpha, self.reset = make_rule, make_rule(), k, alpha, reset
        self.slow, self.inner = None, 0

    def __call__(self, g, p, t):
        self.slow = p if self.slow is None else self.slow
        self.inner += 1
        fast = p + self.rule(g, p, self.inner if self.reset else t)
        if self.inner < self.k:
            return fast - p
        self.slow = self.slow + self.alpha * (fast - self.slow)
        self.inner = 0
        if self.reset:
            self.rule = self.make_rule()
        return self.slow - p


def k_that_grows(step):
    """One gradient for the first step, two for the second, three for the others."""
    return of.tree.clip(step + 1, max_value=3)


def from_the_third_step(step):
    """A condition for wrappers."""
    return step >= 2


def absolute_sum(updates):
    """A measure for `monitor`."""
    return of.tree.norm(updates, ord=1)


@of.factory
def accumulated_adam(learning_rate, every_k_schedule, **kwargs):
    """Adam behind `multi_steps`."""
    return of.multi_steps(of.adam(learning_rate), every_k_schedule, **kwargs)


@of.factory
def later_adam(wrapper, learning_rate):
    """Adam behind a condition."""
    return wrapper(of.adam(learning_rate), from_the_third_step)


@of.factory
def flat_adam(learning_rate):
    """Adam on one vector."""
    return of.flatten(of.adam(learning_rate))


@of.factory
def stack_of_one(member, **arguments):
    """`stacked` for a single model, since the laws do not stack."""
    own = {name: torch.tensor([value], dtype=torch.float64) for name, value in arguments.items()}
    stack = of.stacked(member, **own)

    def add_axis(tree):
        return of.tree.map(lambda x: x.unsqueeze(0), tree)

    def init(params):
        return stack.init(add_axis(params))

    def update(updates, state, params=None, **extra):
        updates, state = stack.update(add_axis(updates), state, add_axis(params), **extra)
        return of.tree.map(lambda x: x.squeeze(0), updates), state

    return of.GradientTransformation(init, update)


@of.factory
def stack_of_adam(learning_rate):
    """A stack of a transformation."""
    return stack_of_one(of.adam(learning_rate))


@of.factory
def lookahead_in_state(learning_rate, slow_step_size, **kwargs):
    """`lookahead` of momentum, with the slow parameters in the state, since the laws know one copy only."""
    inner = of.lookahead(of.sgd(learning_rate, momentum=0.9), 3, slow_step_size, **kwargs)

    def init(params):
        pair = of.LookaheadParams.init_synced(params)
        return inner.init(pair), pair.slow

    def update(updates, state, params=None, **extra):
        pair = None if params is None else of.LookaheadParams(params, state[1])
        moved, inner_state = inner.update(updates, state[0], pair, **extra)
        return moved.fast, (inner_state, of.apply_updates(state[1], moved.slow))

    return of.GradientTransformation(init, update)


@of.factory
def frozen_matrices(learning_rate):
    """Adam on the vectors."""
    return of.selective_transform(of.adam(learning_rate), freeze_mask=of.tree.is_matrix)


@of.factory
def watched(learning_rate):
    """SGD between measuring devices."""
    return of.chain(
        of.snapshot("size", of.tree.norm),
        of.monitor({"sum": absolute_sum, "mean": of.measure_with_ema(absolute_sum, 0.9)}),
        of.sgd(learning_rate),
    )


def bowl(params):
    """A loss for rules that evaluate one."""
    size = of.tree.abs_sq(params)
    return of.tree.sum(of.tree.add(size, of.tree.mul(size, size)))


@of.factory
def backtracking(
    max_backtracking_steps, slope_rtol, decrease_factor, increase_factor, max_learning_rate, atol=0.0, rtol=0.0
):
    """Gradient descent that goes back."""
    search = of.scale_by_backtracking_linesearch(
        max_backtracking_steps, slope_rtol, decrease_factor, increase_factor, max_learning_rate, atol, rtol
    )
    return in_a_bowl(of.chain(of.sgd(1.0), search))


@of.factory
def zoom(max_linesearch_steps, max_learning_rate, increase_factor, slope_rtol, curv_rtol, **kwargs):
    """Gradient descent that zooms in."""
    search = of.scale_by_zoom_linesearch(
        max_linesearch_steps,
        max_learning_rate,
        increase_factor=increase_factor,
        slope_rtol=slope_rtol,
        curv_rtol=curv_rtol,
        **kwargs,
    )
    return in_a_bowl(of.chain(of.sgd(1.0), search))


def in_a_bowl(inner):
    """A line search along the gradients of a loss of its own, which take the place of those the laws hand over."""

    def update(updates, state, params=None, **extra):
        if params is None:
            return inner.update(updates, state)
        value, grad = of.tree.value_and_grad(bowl)(params)
        own = of.tree.cast_like(of.tree.map(lambda u, g: None if u is None else g, updates, grad), updates)
        return inner.update(own, state, params, value=value, grad=grad, value_fn=bowl)

    return of.GradientTransformation(inner.init, update)


class Backtracking:
    """Nocedal and Wright 2006, algorithm 3.1, along the gradient of the bowl, of all leaves at once."""

    def __init__(self, longest, shrink, grow, slope_rtol, tries):
        self.longest, self.shrink, self.grow = longest, shrink, grow
        self.slope_rtol, self.tries, self.last = slope_rtol, tries, 1.0

    def __call__(self, params, gradients):
        values = {name: p.numpy().copy() for name, p in params.items()}
        for _ in gradients:
            grads = {name: 2 * x + 4 * x**3 for name, x in values.items()}
            slope = -sum(np.sum(g**2) for g in grads.values())
            t = min(self.grow * self.last, self.longest)
            for _ in range(self.tries):
                moved = {name: x - t * grads[name] for name, x in values.items()}
                if loss(moved) <= loss(values) + self.slope_rtol * t * slope:
                    break
                t *= self.shrink
            values, self.last = {name: x - t * grads[name] for name, x in values.items()}, t
            yield {name: torch.from_numpy(x.copy()) for name, x in values.items()}


def loss(values):
    """The bowl in NumPy."""
    return sum(np.sum(x**2 + x**4) for x in values.values())


def noisy(rule):
    """An oracle for a rule of gradient, step and the noise of the leaf."""
    return leafwise(lambda name: Each(lambda g, p, t: rule(g, t, noise(3, t, name, g.shape))))


CASES = (
    Case(
        "scale_by_belief",
        of.scale_by_belief,
        {"b1": 0.9, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-6},
        oracle=leafwise(lambda _: AdaBelief(beta2=0.99, eps=1e-4, eps_root=1e-6)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=(*no_decay("b1", "b2"), *negative("eps", "eps_root")),
    ),
    Case(
        "adabelief",
        of.adabelief,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999},
        oracle=leafwise(lambda _: AdaBelief(1e-2)),
        rtol=1e-10,  # where g - mu is zero but for rounding, an eps of 1e-16 shows it
        live=("learning_rate", "b2"),
        bad=(BAD_RATE,),
    ),
    Case(
        "adabelief_nesterov",
        of.adabelief,
        {
            "learning_rate": 1e-2,
            "b2": 0.99,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "weight_decay_mask": of.tree.is_matrix,
            "nesterov": True,
        },
        oracle=leafwise(
            lambda name: AdaBelief(1e-2, beta2=0.99, eps=1e-3, weight_decay=0.1 * matrices_in_rows(name), nesterov=True)
        ),
        live=("learning_rate", "b2", "eps", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "scale_by_yogi",
        of.scale_by_yogi,
        {"b1": 0.9, "b2": 0.99, "eps": 1e-3, "eps_root": 1e-6, "initial_accumulator_value": 1e-3},
        oracle=leafwise(lambda _: Yogi(beta2=0.99, eps_root=1e-6, start=1e-3)),
        live=("b1", "b2", "eps", "eps_root"),
        bad=(*no_decay("b1", "b2"), *negative("eps", "eps_root", "initial_accumulator_value")),
    ),
    Case(
        "yogi",
        of.yogi,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.9, "eps": 1e-3},
        oracle=leafwise(lambda _: Yogi(1e-2, 0.8, 0.9)),
        live=("learning_rate", "b1", "b2", "eps"),
        bad=(BAD_RATE,),
    ),
    Case(
        "scale_by_adan",
        of.scale_by_adan,
        {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8, "eps_root": 1e-8},
        oracle=leafwise(lambda _: Adan(eps_root=1e-8)),
        live=("b1", "b2", "b3", "eps", "eps_root"),
        bad=(*no_decay("b1", "b2", "b3"), *negative("eps", "eps_root")),
    ),
    Case(
        "adan",
        of.adan,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.7, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Adan(1e-2, 0.1, 0.3, eps_root=1e-8, weight_decay=0.1 * matrices_in_rows(name))),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "scale_by_trust_ratio",
        of.scale_by_trust_ratio,
        {"min_norm": 0.5, "trust_coefficient": 0.1, "eps": 1e-3},
        oracle=leafwise(lambda _: Each(lambda g, p, t: g * trust_ratio(g, p, 0.5, 0.1, 1e-3))),
        live=("min_norm", "trust_coefficient", "eps"),
        needs_params=True,
        bad=negative("min_norm", "trust_coefficient", "eps"),
    ),
    Case(
        "scale_by_trust_ratio_plain",
        of.scale_by_trust_ratio,
        oracle=leafwise(lambda _: Each(lambda g, p, t: g * trust_ratio(g, p))),
        needs_params=True,
    ),
    Case(
        "lamb",
        of.lamb,
        {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Lamb(Adam(beta2=0.99, eps=1e-6), 1e-2, 0.1 * matrices_in_rows(name))),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "lars",
        of.lars,
        {"learning_rate": 1.0, "weight_decay": 0.1, "trust_coefficient": 0.01, "eps": 1e-3, "momentum": 0.8},
        oracle=leafwise(lambda _: Lars(1.0, 0.1, 0.01, 1e-3, 0.8, False)),
        live=("learning_rate", "weight_decay", "trust_coefficient", "eps", "momentum"),
        needs_params=True,
        bad=(BAD_RATE, *negative("weight_decay", "trust_coefficient", "eps")),
    ),
    Case(
        "lars_masked",
        of.lars,
        {
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "weight_decay_mask": of.tree.is_matrix,
            "trust_ratio_mask": of.tree.is_matrix,
            "nesterov": True,
        },
        oracle=leafwise(
            lambda name: Lars(0.1, 0.1 * matrices_in_rows(name), 1e-3, 0.0, 0.9, True, scaled=matrices_in_rows(name))
        ),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
    ),
    Case(
        "fromage",
        of.fromage,
        {"learning_rate": 1e-2, "min_norm": 1e-6},
        oracle=leafwise(lambda _: Each(fromage_step(1e-2))),
        live=("learning_rate",),
        needs_params=True,
        bad=(BAD_RATE, *negative("min_norm")),
    ),
    Case(
        "fromage_scheduled",
        of.fromage,
        {"learning_rate": RATE, "min_norm": 0.5},
        oracle=leafwise(lambda _: Each(lambda g, p, t: fromage_step(linear(t - 1), 0.5)(g, p, t))),
        live=("min_norm",),
        needs_params=True,
    ),
    Case(
        "scale_by_novograd",
        of.scale_by_novograd,
        {"b1": 0.9, "b2": 0.25, "eps": 1e-3, "eps_root": 1e-6, "weight_decay": 0.1},
        oracle=leafwise(lambda _: NovoGrad(eps=1e-3, eps_root=1e-6, d=0.1)),
        live=("b1", "b2", "eps", "eps_root", "weight_decay"),
        needs_params=True,
        bad=(
            *no_decay("b1", "b2"),
            *negative("eps", "eps_root", "weight_decay"),
            ({"mu_dtype": torch.int8}, ValueError, "mu_dtype must be a floating or complex dtype"),
        ),
    ),
    Case(
        "novograd",
        of.novograd,
        {"learning_rate": 1e-2, "b1": 0.95, "b2": 0.9, "weight_decay": 0.1},
        oracle=leafwise(lambda _: NovoGrad(1e-2, 0.95, 0.9, 1e-6, d=0.1)),
        live=("learning_rate", "b1", "b2", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "scale_by_optimistic_gradient",
        of.scale_by_optimistic_gradient,
        {"alpha": 0.7, "beta": 0.3},
        oracle=leafwise(lambda _: Optimistic(-1.0, 0.7, 0.3)),
        live=("alpha", "beta"),
        bad=(({"alpha": None}, TypeError, "alpha must be a number or a 0-dim tensor, got None"),),
    ),
    Case(
        "optimistic_gradient_descent",
        of.optimistic_gradient_descent,
        {"learning_rate": 0.1, "alpha": 1.0, "beta": 0.5},
        oracle=leafwise(lambda _: Optimistic(0.1, 1.0, 0.5)),
        live=("learning_rate", "alpha", "beta"),
        bad=(BAD_RATE,),
    ),
    Case(
        "optimistic_adam",
        of.optimistic_adam,
        {"learning_rate": 1e-2, "optimism": 0.005, "b1": 0.8, "b2": 0.99},
        oracle=leafwise(lambda _: Optimistic(1.0, 1e-2, 0.005, Adam(beta1=0.8, beta2=0.99, nesterov=True))),
        live=("learning_rate", "optimism", "b1", "b2"),
        bad=(BAD_RATE, BAD_SCHEDULE, *negative("optimism")),
    ),
    Case(
        "optimistic_adam_of_itself",
        of.optimistic_adam,
        {"learning_rate": 1e-2, "nesterov": False},
        oracle=leafwise(lambda _: Optimistic(1.0, 1e-2, 1e-2, Adam())),
        live=("learning_rate",),
    ),
    Case(
        "optimistic_adam_v2",
        of.optimistic_adam_v2,
        {"learning_rate": RATE, "alpha": 0.9, "beta": 0.4, "b1": 0.8, "b2": 0.99, "nesterov": True},
        oracle=leafwise(lambda _: Times(Optimistic(1.0, 0.9, 0.4, Adam(beta1=0.8, beta2=0.99, nesterov=True)), linear)),
        live=("alpha", "beta", "b1", "b2"),
        bad=(BAD_RATE,),
    ),
    Case(
        "scale_by_polyak",
        of.scale_by_polyak,
        {"f_min": 0.1, "max_learning_rate": 0.5, "eps": 1e-3},
        oracle=together(polyak(1.0, 0.1, 0.5, 1e-3)),
        live=("f_min", "max_learning_rate", "eps"),
        extra={"value": torch.tensor(1.0, dtype=torch.float64)},
        skips={"alone": GLOBAL, "recorded": TAKES_VALUE},
        bad=(
            *negative("max_learning_rate", "eps"),
            ({"variant": "sps++"}, ValueError, "variant must be one of 'sps', 'sps\\+', got 'sps\\+\\+'"),
            ({"f_min": None}, TypeError, "f_min must be a number or a 0-dim tensor, got None"),
        ),
    ),
    Case(
        "scale_by_polyak_below_the_bound",
        of.scale_by_polyak,
        {"f_min": 3.0, "variant": "sps+"},
        oracle=together(polyak(1.0, 3.0, plus=True)),
        live=("f_min",),
        extra={"value": 1.0},
        skips={
            "alone": GLOBAL,
            "recorded": TAKES_VALUE,
            "sensitive": "below `f_min` the step of the variant `sps+` is zero",
        },
    ),
    Case(
        "polyak_sgd",
        of.polyak_sgd,
        {"max_learning_rate": 0.5, "scaling": 0.4, "f_min": 0.1},
        oracle=together(lambda grads: {n: -u for n, u in polyak(1.0, 0.1, 0.5, scaling=0.4)(grads).items()}),
        live=("max_learning_rate", "scaling", "f_min"),
        extra={"value": 1.0},
        skips={"alone": GLOBAL, "recorded": TAKES_VALUE},
        bad=(({"scaling": -1.0}, ValueError, f"learning_rate {NEGATIVE}"),),
    ),
    Case(
        "scale_by_sign",
        of.scale_by_sign,
        oracle=leafwise(lambda _: Each(lambda g, p, t: np.sign(g))),
        skips={"sensitive": SIGN},
    ),
    Case(
        "sign_sgd",
        of.sign_sgd,
        {"learning_rate": 0.1},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -0.1 * np.sign(g))),
        live=("learning_rate",),
        skips={"sensitive": SIGN},
        bad=(BAD_RATE,),
    ),
    Case(
        "signum",
        of.signum,
        {"learning_rate": 0.1, "beta": 0.8},
        oracle=leafwise(lambda _: Times(Signed(Ema(0.8, debias=False)), lambda count: -0.1)),
        live=("learning_rate", "beta"),
        skips={"sensitive": SIGN},
        bad=(BAD_RATE, ({"beta": 1.0}, ValueError, f"decay {NO_DECAY}")),
    ),
    Case(
        "scale_by_sm3",
        of.scale_by_sm3,
        {"b1": 0.9, "b2": 0.8, "eps": 1e-4},
        oracle=leafwise(lambda _: SM3(beta2=0.8, eps=1e-4)),
        live=("b1", "b2", "eps"),
        bad=(
            *no_decay("b1"),
            ({"b2": 1.5}, ValueError, r"b2 must be in \[0, 1\], got 1.5"),
            *negative("eps"),
        ),
    ),
    Case(
        "sm3",
        of.sm3,
        {"learning_rate": 0.1, "momentum": 0.8},
        oracle=leafwise(lambda _: SM3(0.1, 0.8)),
        live=("learning_rate", "momentum"),
        bad=(BAD_RATE, *no_decay("momentum")),
    ),
    Case(
        "scale_by_distance_over_gradients",
        of.scale_by_distance_over_gradients,
        {"reps_rel": 1e-2, "eps": 1e-8, "param_dtype": None, "global_scale": -0.5},
        oracle=leafwise(lambda _: LayerwiseDoG(1e-2, scale=-0.5)),
        live=("eps", "global_scale"),
        needs_params=True,
        bad=(
            *negative("reps_rel", "eps"),
            ({"param_dtype": torch.int8}, ValueError, "param_dtype must be a floating or complex dtype"),
            ({"global_scale": None}, TypeError, "global_scale must be a number or a 0-dim tensor, got None"),
        ),
    ),
    Case(
        "scale_by_factored_rms",
        of.scale_by_factored_rms,
        {"decay_rate": 0.7, "min_dim_size_to_factor": 2, "epsilon": 1e-2},
        oracle=leafwise(lambda _: Factored(0.7, 2, 1e-2)),
        live=("decay_rate", "epsilon"),
        needs_params=True,
        bad=(
            *negative("epsilon"),
            ({"min_dim_size_to_factor": 1.5}, TypeError, "min_dim_size_to_factor must be a whole number"),
            ({"step_offset": 0.5}, TypeError, "step_offset must be a whole number of steps, got 0.5"),
            ({"decay_rate": "0.8"}, TypeError, "decay_rate must be a number or a 0-dim tensor, got '0.8'"),
            ({"decay_rate_fn": 0.9}, TypeError, "decay_rate_fn must be callable, got 0.9"),
        ),
    ),
    Case(
        "scale_by_factored_rms_whole",
        of.scale_by_factored_rms,
        {"factored": False, "epsilon": 1e-4, "decay_rate_fn": bounded_decay},
        oracle=leafwise(lambda _: Factored(least=99, eps=1e-4, beta=lambda t: min(1 - t**-0.8, 0.7))),
        live=("epsilon",),
        needs_params=True,
    ),
    Case(
        "adafactor",
        of.adafactor,
        {"learning_rate": 0.1, "min_dim_size_to_factor": 3, "decay_rate": 0.8, "eps": 1e-4},
        oracle=leafwise(lambda _: AdafactorAsOptax(0.1, least=3, eps=1e-4)),
        live=("learning_rate", "decay_rate", "eps"),
        needs_params=True,
        bad=(BAD_RATE, ({"clipping_threshold": 0.0}, ValueError, "threshold must be a number > 0, got 0.0")),
    ),
    Case(
        "adafactor_with_all",
        of.adafactor,
        {
            "learning_rate": None,
            "min_dim_size_to_factor": 2,
            "multiply_by_parameter_scale": False,
            "clipping_threshold": 0.5,
            "momentum": 0.9,
            "dtype_momentum": None,
            "weight_decay_rate": 0.01,
            "eps": 1e-3,
        },
        oracle=leafwise(lambda _: AdafactorAsOptax(1.0, 0.5, 0.9, 0.01, relative=False, least=2, eps=1e-3)),
        live=("clipping_threshold", "momentum", "weight_decay_rate", "eps"),
        needs_params=True,
    ),
    Case(
        "adafactor_unclipped",
        of.adafactor,
        {"learning_rate": RATE, "clipping_threshold": None, "factored": False, "eps": 1e-3},
        oracle=leafwise(lambda _: ScheduledAdafactor(linear)),
        live=("eps",),
        needs_params=True,
    ),
    Case(
        "nadam",
        of.nadam,
        {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.99},
        oracle=leafwise(lambda _: Adam(1e-2, 0.8, 0.99, nesterov=True)),
        live=("learning_rate", "b1", "b2"),
        bad=(BAD_RATE, *no_decay("b1", "b2")),
    ),
    Case(
        "nadamw",
        of.nadamw,
        {"learning_rate": 1e-2, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Adam(1e-2, weight_decay=0.1 * matrices_in_rows(name), nesterov=True)),
        live=("learning_rate", "weight_decay"),
        needs_params=True,
        bad=(BAD_RATE, *negative("weight_decay")),
    ),
    Case(
        "add_noise",
        of.add_noise,
        {"eta": 0.3, "gamma": 0.6, "seed": 3},
        oracle=noisy(lambda g, t, n: g + math.sqrt(0.3 / t**0.6) * n),
        live=("eta", "gamma"),
        bad=(
            *negative("eta"),
            ({"gamma": None}, TypeError, "gamma must be a number or a 0-dim tensor, got None"),
            ({"seed": 0.5}, TypeError, "seed must be a whole number or a 0-dim integer tensor, got 0.5"),
            ({"seed": 2**63}, ValueError, "seed must fit into 64 bits, got 9223372036854775808"),
            ({"seed": torch.ones(())}, ValueError, "seed must be a whole number or a 0-dim integer tensor"),
        ),
    ),
    Case(
        "noisy_sgd",
        of.noisy_sgd,
        {"learning_rate": 0.1, "eta": 0.3, "seed": 3},
        oracle=noisy(lambda g, t, n: -0.1 * (g + math.sqrt(0.3 / t**0.55) * n)),
        live=("learning_rate", "eta"),
        bad=(BAD_RATE,),
    ),
    Case(
        "normalize_by_update_norm",
        of.normalize_by_update_norm,
        {"scale_factor": 0.5, "eps": 1e-3},
        oracle=together(lambda grads: {n: 0.5 * g / (global_norm(grads) + 1e-3) for n, g in grads.items()}),
        live=("scale_factor", "eps"),
        skips={"alone": GLOBAL},
        bad=(
            *negative("eps"),
            ({"scale_factor": None}, TypeError, "scale_factor must be a number or a 0-dim tensor, got None"),
        ),
    ),
    Case(
        "centralize",
        of.centralize,
        oracle=leafwise(lambda _: Each(centred)),
    ),
    Case("zero_nans", of.zero_nans, oracle=leafwise(lambda _: Each(lambda g, p, t: g))),
    Case(
        "keep_params_nonnegative",
        of.keep_params_nonnegative,
        oracle=leafwise(lambda _: Each(lambda g, p, t: np.maximum(g, -p))),
        needs_params=True,
        skips={"complex": "complex numbers are not ordered"},
    ),
    Case(
        "adaptive_grad_clip",
        of.adaptive_grad_clip,
        {"clipping": 0.1, "eps": 0.5},
        oracle=leafwise(lambda _: Each(adaptive_clip(0.1, 0.5))),
        live=("clipping", "eps"),
        needs_params=True,
        bad=negative("clipping", "eps"),
    ),
    # Wrappers
    Case(
        "inject_hyperparams",
        of.inject_hyperparams(of.adamw),
        {"learning_rate": 1e-2, "b1": RATE, "weight_decay": 0.1, "mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: WarmAdamW(1e-2, linear, 0.1 * matrices_in_rows(name))),
        covers=("inject_hyperparams",),
        needs_params=True,
        bad=(BAD_RATE, *no_decay("b2")),
    ),
    Case(
        "multi_steps",
        accumulated_adam,
        {"learning_rate": 1e-2, "every_k_schedule": 3},
        oracle=leafwise(lambda _: Accumulate(Adam(1e-2), lambda step: 3)),
        live=("learning_rate",),
        covers=("multi_steps",),
        bad=(
            ({"every_k_schedule": 0}, ValueError, "every_k_schedule must be >= 1, got 0"),
            ({"every_k_schedule": 1.5}, TypeError, "every_k_schedule must be a whole number of steps, got 1.5"),
            ({"accumulator_dtype": torch.int8}, ValueError, "accumulator_dtype must be a floating"),
            ({"should_skip_update_fn": 3}, TypeError, "should_skip_update_fn must be callable, got 3"),
        ),
    ),
    Case(
        "multi_steps_sum",
        accumulated_adam,
        {
            "learning_rate": 1e-2,
            "every_k_schedule": k_that_grows,
            "use_grad_mean": False,
            "should_skip_update_fn": of.skip_not_finite,
        },
        oracle=leafwise(lambda _: Accumulate(Adam(1e-2), lambda step: min(step + 1, 3), mean=False)),
        live=("learning_rate",),
    ),
    Case(
        "apply_every",
        of.apply_every,
        {"k": 3},
        oracle=leafwise(lambda _: Accumulate(lambda g, p, t: g, lambda step: 3, mean=False)),
        bad=(
            ({"k": 0}, ValueError, "k must be >= 1, got 0"),
            ({"k": 2.0}, TypeError, "k must be a whole number of steps, got 2.0"),
        ),
    ),
    Case(
        "conditionally_transform",
        later_adam,
        {"wrapper": of.conditionally_transform, "learning_rate": 1e-2},
        oracle=leafwise(lambda _: Conditional(Adam(1e-2), 1.0)),
        live=("learning_rate",),
        covers=("conditionally_transform",),
        bad=(BAD_RATE,),
    ),
    Case(
        "conditionally_mask",
        later_adam,
        {"wrapper": of.conditionally_mask, "learning_rate": 1e-2},
        oracle=leafwise(lambda _: Conditional(Adam(1e-2), 0.0)),
        live=("learning_rate",),
        covers=("conditionally_mask",),
        bad=(BAD_RATE,),
    ),
    Case(
        "flatten",
        flat_adam,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda _: Adam(1e-2)),
        live=("learning_rate",),
        covers=("flatten",),
        skips={"alone": "one vector has one dtype, that of all leaves together"},
        bad=(BAD_RATE,),
    ),
    Case(
        "stacked",
        stack_of_adam,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda _: Adam(1e-2)),
        live=("learning_rate",),
        covers=("stacked",),
        bad=(BAD_RATE,),
    ),
    Case(
        "stacked_factory",
        stack_of_one,
        {"member": of.adamw, "learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=leafwise(lambda _: Adam(1e-2, weight_decay=0.1)),
        needs_params=True,
        bad=(({"nu_dtype": 1.0}, TypeError, "nu_dtype must be the same for all members"),),
    ),
    Case(
        "lookahead",
        lookahead_in_state,
        {"learning_rate": 0.1, "slow_step_size": 0.6},
        oracle=leafwise(lambda _: SlowAndFast(lambda: Descent(0.1), 3, 0.6)),
        live=("learning_rate", "slow_step_size"),
        covers=("lookahead",),
        needs_params=True,
        bad=(BAD_RATE, *negative("slow_step_size")),
    ),
    Case(
        "lookahead_reset",
        lookahead_in_state,
        {"learning_rate": 0.1, "slow_step_size": 0.6, "reset_state": True},
        oracle=leafwise(lambda _: SlowAndFast(lambda: Descent(0.1), 3, 0.6, reset=True)),
        live=("learning_rate", "slow_step_size"),
        needs_params=True,
    ),
    Case(
        "freeze",
        of.freeze,
        {"mask": of.tree.is_matrix},
        oracle=leafwise(lambda name: Each(lambda g, p, t: 0 * g if matrices_in_rows(name) else g)),
    ),
    Case(
        "selective_transform",
        frozen_matrices,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda name: Each(lambda g, p, t: 0 * g) if matrices_in_rows(name) else Adam(1e-2)),
        live=("learning_rate",),
        covers=("selective_transform",),
        bad=(BAD_RATE,),
    ),
    Case(
        "monitor",
        watched,
        {"learning_rate": 0.1},
        oracle=leafwise(lambda _: Each(lambda g, p, t: -0.1 * g)),
        live=("learning_rate",),
        covers=("snapshot", "monitor", "measure_with_ema"),
        bad=(BAD_RATE,),
    ),
    # Line searches
    Case(
        "scale_by_backtracking_linesearch",
        backtracking,
        {
            "max_backtracking_steps": 30,
            "slope_rtol": 0.1,
            "decrease_factor": 0.7,
            "increase_factor": 4.0,
            "max_learning_rate": 2.0,
        },
        oracle=lambda params, gradients: Backtracking(2.0, 0.7, 4.0, 0.1, 31)(params, gradients),
        live=("slope_rtol", "decrease_factor", "increase_factor", "max_learning_rate"),
        covers=("scale_by_backtracking_linesearch",),
        needs_params=True,
        skips={
            **SEARCHES,
            "sensitive": "it searches along gradients of its own here; the steps back are taken as given",
        },
        bad=(
            ({"max_backtracking_steps": -1}, ValueError, "max_backtracking_steps must be >= 0, got -1"),
            *negative("slope_rtol", "atol", "rtol"),
            *no_decay("decrease_factor"),
            ({"increase_factor": 0.5}, ValueError, "increase_factor must be a number >= 1, got 0.5"),
            ({"max_learning_rate": 0.0}, ValueError, "max_learning_rate must be a number > 0, got 0.0"),
        ),
    ),
    Case(
        "scale_by_zoom_linesearch",
        zoom,
        {
            "max_linesearch_steps": 8,
            "max_learning_rate": 2.0,
            "increase_factor": 4.0,
            "slope_rtol": 1e-4,
            "curv_rtol": 0.3,
        },
        oracle=None,  # tests/test_versus_optax.py follows it
        live=("max_learning_rate", "increase_factor", "slope_rtol", "curv_rtol"),
        covers=("scale_by_zoom_linesearch",),
        needs_params=True,
        skips={**SEARCHES, "differentiable": "derivatives take the points that the search has tried as given"},
        bad=(
            ({"max_linesearch_steps": 0}, ValueError, "max_linesearch_steps must be >= 1, got 0"),
            *negative("tol", "slope_rtol", "curv_rtol", "approx_dec_rtol", "stepsize_precision"),
            ({"increase_factor": 0.5}, ValueError, "increase_factor must be a number >= 1, got 0.5"),
            ({"max_learning_rate": 0.0}, ValueError, "max_learning_rate must be a number > 0, got 0.0"),
            ({"initial_guess_strategy": "two"}, ValueError, "initial_guess_strategy must be one of 'keep', 'one'"),
        ),
    ),
    Case(
        "scale_by_lbfgs",
        of.scale_by_lbfgs,
        {"memory_size": 3},
        oracle=None,  # the dense form below
        needs_params=True,
        skips=QUASI_NEWTON,
        bad=(
            ({"memory_size": 0}, ValueError, "memory_size must be >= 1, got 0"),
            ({"memory_size": 2.5}, TypeError, "memory_size must be a whole number of steps, got 2.5"),
        ),
    ),
    Case(
        "lbfgs",
        of.lbfgs,
        {"learning_rate": 0.1, "memory_size": 4, "linesearch": None},
        oracle=None,  # tests/test_versus_optax.py follows it
        live=("learning_rate",),
        needs_params=True,
        skips=QUASI_NEWTON,
        bad=(BAD_RATE, ({"linesearch": 3}, TypeError, "linesearch must be a GradientTransformation, got 3")),
    ),
)


def through(count, kind, points):
    """A line, or half cosine waves, through points."""
    for (begin, low), (end, high) in itertools.pairwise(points):
        if begin <= count < end:
            phase = (count - begin) / (end - begin)
            weight = phase if kind == "linear" else (1 - math.cos(math.pi * phase)) / 2
            return low + (high - low) * weight
    return points[-1][1]


def stable(count, shape):
    """Up in 10 steps, 30 at the top, down in 20."""
    phase = min(max((count - 40) / 20, 0.0), 1.0)
    return 0.1 + 0.9 * count / 10 if count < 10 else 0.05 + 0.95 * shape(phase)


SHAPES = {
    "linear": lambda f: 1 - f,
    "cosine": lambda f: (1 + math.cos(math.pi * f)) / 2,
    "sqrt": lambda f: 1 - math.sqrt(f),
}
CYCLES = [
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20},
    {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 0, "decay_steps": 40, "end_value": 0.1},
]
BAD_CYCLE = (
    ({"transition_steps": 0}, ValueError, "transition_steps must be >= 1, got 0"),
    ({"pct_start": 1.5}, ValueError, r"pct_start must be in \[0, 1\], got 1.5"),
    ({"div_factor": 0.0}, ValueError, "div_factor must be a number > 0, got 0.0"),
    ({"final_div_factor": 0.0}, ValueError, "final_div_factor must be a number > 0, got 0.0"),
    ({"peak_value": None}, TypeError, "peak_value must be a number or a 0-dim tensor, got None"),
)


def restarts(count):
    """`CYCLES` by hand."""
    if count < 5:
        return 0.1 + 0.9 * count / 5
    if count < 20:
        return SHAPES["cosine"](min((count - 5) / 15, 1.0))
    return 0.1 + 0.4 * SHAPES["cosine"](min((count - 20) / 40, 1.0))


SCHEDULES = (
    *(
        ScheduleCase(
            f"piecewise_interpolate_{kind}",
            of.piecewise_interpolate_schedule,
            {"interpolate_type": kind, "init_value": 2.0, "boundaries_and_scales": {30: 3.0, 10: 0.5}},
            lambda count, kind=kind: through(count, kind, [(0, 2.0), (10, 1.0), (30, 3.0)]),
            live=("init_value",),
            bad=(
                ({"interpolate_type": "cubic"}, ValueError, "interpolate_type must be one of 'linear', 'cosine'"),
                ({"boundaries_and_scales": {-1: 0.5}}, ValueError, "boundary -1 must be >= 0, got -1"),
                ({"boundaries_and_scales": {1: -0.5}}, ValueError, "scale at 1 must be a number >= 0, got -0.5"),
                ({"init_value": None}, TypeError, "init_value must be a number or a 0-dim tensor, got None"),
            ),
        )
        for kind in ("linear", "cosine")
    ),
    ScheduleCase(
        "piecewise_interpolate_from_nothing",
        of.piecewise_interpolate_schedule,
        {"interpolate_type": "linear", "init_value": 2.0},
        lambda count: 2.0,
        live=("init_value",),
    ),
    ScheduleCase(
        "piecewise_interpolate_from_a_jump",
        of.piecewise_interpolate_schedule,
        {"interpolate_type": "linear", "init_value": 2.0, "boundaries_and_scales": {0: 0.5, 10: 0.5}},
        lambda count: through(count, "linear", [(0, 1.0), (10, 0.5)]),
    ),
    ScheduleCase(
        "linear_onecycle",
        of.linear_onecycle_schedule,
        {"transition_steps": 77, "peak_value": 0.5, "pct_start": 0.3, "div_factor": 10.0, "final_div_factor": 100.0},
        lambda count: through(count, "linear", [(0, 0.05), (23, 0.5), (65, 0.05), (77, 0.0005)]),
        live=("peak_value", "div_factor", "final_div_factor"),
        bad=(
            *BAD_CYCLE,
            ({"pct_final": 0.1}, ValueError, "pct_start must be at most pct_final, got 0.3 and 0.1"),
        ),
    ),
    ScheduleCase(
        "cosine_onecycle",
        of.cosine_onecycle_schedule,
        {"transition_steps": 77, "peak_value": 0.5, "pct_start": 0.3, "div_factor": 10.0, "final_div_factor": 100.0},
        lambda count: through(count, "cosine", [(0, 0.05), (23, 0.5), (77, 0.0005)]),
        live=("peak_value", "div_factor", "final_div_factor"),
        bad=BAD_CYCLE,
    ),
    ScheduleCase(
        "warmup_constant",
        of.warmup_constant_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 20},
        lambda count: 0.1 + 0.9 * min(count, 20) / 20,
        live=("init_value", "peak_value"),
        bad=(({"warmup_steps": -1}, ValueError, "transition_steps must be >= 0, got -1"),),
    ),
    ScheduleCase(
        "warmup_exponential",
        of.warmup_exponential_decay_schedule,
        {
            "init_value": 0.1,
            "peak_value": 1.0,
            "warmup_steps": 10,
            "transition_steps": 5,
            "decay_rate": 0.5,
            "transition_begin": 3,
            "end_value": 0.01,
        },
        lambda count: 0.1 + 0.9 * count / 10 if count < 10 else max(0.5 ** min(max(count - 13, 0) / 5, 99), 0.01),
        live=("init_value", "peak_value", "end_value"),
        bad=(({"decay_rate": -1.0}, ValueError, f"decay_rate {NEGATIVE}"),),
    ),
    ScheduleCase(
        "sgdr",
        of.sgdr_schedule,
        {"cosine_kwargs": CYCLES},
        restarts,
        bad=(
            ({"cosine_kwargs": []}, ValueError, r"cosine_kwargs must hold at least one cycle, got \[\]"),
            ({"cosine_kwargs": [{**CYCLES[0], "decay_steps": 5}]}, ValueError, "decay_steps must be >= 6, got 5"),
        ),
    ),
    *(
        ScheduleCase(
            f"warmup_stable_decay_{decay}",
            of.warmup_stable_decay_schedule,
            {
                "init_value": 0.1,
                "peak_value": 1.0,
                "warmup_steps": 10,
                "stable_steps": 30,
                "decay_steps": 20,
                "end_value": 0.05,
                "decay": decay,
            },
            lambda count, shape=shape: stable(count, shape),
            live=("init_value", "peak_value", "end_value"),
            bad=(
                ({"decay": "exp"}, ValueError, "decay must be one of 'linear', 'cosine', 'sqrt', got 'exp'"),
                ({"decay_steps": 0}, ValueError, "decay_steps must be >= 1, got 0"),
                ({"stable_steps": -1}, ValueError, "stable_steps must be >= 0, got -1"),
            ),
        )
        for decay, shape in SHAPES.items()
    ),
    ScheduleCase(
        "trapezoidal",
        of.trapezoidal_schedule,
        {"peak_value": 0.5, "total_steps": 100, "warmup_steps": 10, "cooldown_steps": 30},
        lambda count: 0.5 * max(min(1.0, count / 10, (100 - count) / 30), 0.0),
        live=("peak_value",),
        bad=(
            ({"total_steps": 39}, ValueError, "total_steps must be >= 40, got 39"),
            ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0, got -1"),
        ),
    ),
    ScheduleCase(
        "trapezoidal_without_slopes",
        of.trapezoidal_schedule,
        {"peak_value": 0.5, "total_steps": 100},
        lambda count: 0.5,
    ),
    ScheduleCase(
        "warmup_inverse_sqrt",
        of.warmup_inverse_sqrt_schedule,
        {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 16},
        lambda count: 0.1 + 0.9 * count / 16 if count < 16 else math.sqrt(16 / count),
        live=("init_value", "peak_value"),
        bad=(({"warmup_steps": 0}, ValueError, "warmup_steps must be >= 1, got 0"),),
    ),
)
