"""Cases of the transformations of transformations."""

import functools

import torch
from case import Case
from oracles.adam import Adam
from oracles.blocks import Each, leafwise, torch_optimizer
from oracles.lion import Lion
from oracles.momentum import Trace

import optimfn as of

from .common import BAD_RATE, RATE, linear, matrices_in_rows, negative, no_decay


@of.factory
def masked_lion(learning_rate):
    """Lion on the matrices, nothing on the rest."""
    return of.masked(of.lion(learning_rate, weight_decay=0.1), of.tree.is_matrix)


@of.factory
def lion_and_sgd(learning_rate, weight_decay):
    """Lion on the matrices, gradient descent on the rest."""
    rules = {"lion": of.lion(learning_rate, weight_decay=weight_decay), "sgd": of.sgd(learning_rate)}
    return of.partition(rules, of.tree.label_by(lion_or_sgd))


def lion_or_sgd(p):
    """Labels for `partition`."""
    return "lion" if p.ndim >= 2 else "sgd"


@of.factory
def protected_adam(learning_rate, max_consecutive_errors):
    """Adam that leaves out steps."""
    return of.apply_if_finite(of.adam(learning_rate), max_consecutive_errors)


@of.factory
def split_lion(learning_rate):
    """Lion with a sign of its own for the real and the imaginary part."""
    return of.split_real_and_imaginary(of.lion(learning_rate, weight_decay=0.1))


def masked_lion_oracle(params, gradients):
    """The vector `b` is masked out, so its raw gradient is added."""
    rules = {"a": Lion(1e-2, weight_decay=0.1), "b": Each(lambda g, p, t: g), "c": Lion(1e-2, weight_decay=0.1)}
    return leafwise(rules.__getitem__)(params, gradients)


def lion_and_sgd_oracle(params, gradients):
    """The vector `b` is the only leaf that is no matrix."""
    rules = {"a": Lion(1e-2, weight_decay=0.1), "b": Each(lambda g, p, t: -1e-2 * g), "c": Lion(1e-2, weight_decay=0.1)}
    return leafwise(rules.__getitem__)(params, gradients)


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


@of.factory
def accumulated_adam(learning_rate, every_k_schedule, **kwargs):
    """Adam behind `multi_steps`."""
    return of.multi_steps(of.adam(learning_rate), every_k_schedule, **kwargs)


@of.factory
def later_adam(wrapper, learning_rate):
    """Adam behind a condition."""
    return wrapper(of.adam(learning_rate), from_the_third_step)


@of.factory
def adam_per_leaf(learning_rate):
    """Adam with a count for each leaf."""
    return of.per_leaf(of.adam(learning_rate))


@of.factory
def adam_by_rows(learning_rate):
    """Adam for sparse gradients, given dense ones: tests/test_rows.py gives the others."""
    return of.rows(of.adam(learning_rate))


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
def lookahead_of_momentum(learning_rate, slow_step_size, **kwargs):
    """`lookahead` of momentum as it is in an optimizer."""
    return of.lookahead(of.sgd(learning_rate, momentum=0.9), 3, slow_step_size, slow_in_state=True, **kwargs)


@of.factory
def frozen_matrices(learning_rate):
    """Adam on the vectors."""
    return of.selective_transform(of.adam(learning_rate), freeze_mask=of.tree.is_matrix)


GATHERS = "what earlier calls brought is let out where the last brings nothing; see test_wrappers.py"

CASES = (
    Case(
        "masked",
        masked_lion,
        {"learning_rate": 1e-2},
        oracle=masked_lion_oracle,
        live=("learning_rate",),
        covers=("masked",),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "partition",
        lion_and_sgd,
        {"learning_rate": 1e-2, "weight_decay": 0.1},
        oracle=lion_and_sgd_oracle,
        live=("learning_rate", "weight_decay"),
        covers=("partition",),
        needs_params=True,
        bad=(BAD_RATE,),
    ),
    Case(
        "apply_if_finite",
        protected_adam,
        {"learning_rate": 1e-2, "max_consecutive_errors": 2},
        oracle=torch_optimizer(functools.partial(torch.optim.Adam, lr=1e-2)),
        live=("learning_rate",),
        covers=("apply_if_finite",),
        bad=(
            ({"max_consecutive_errors": -1}, ValueError, "max_consecutive_errors must be >= 0, got -1"),
            ({"max_consecutive_errors": 1.5}, TypeError, "max_consecutive_errors must be a whole number of steps"),
        ),
    ),
    Case(
        "split_real_and_imaginary",
        split_lion,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda _: Lion(1e-2, weight_decay=0.1)),
        live=("learning_rate",),
        covers=("split_real_and_imaginary",),
        needs_params=True,
        skips={"sensitive": "it is as differentiable as what it wraps, which is Lion here"},
        bad=(BAD_RATE,),
    ),
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
        skips={"absent": GATHERS},
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
        skips={"absent": GATHERS},
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
        skips={"absent": GATHERS},
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
        "per_leaf",
        adam_per_leaf,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda _: Adam(1e-2)),
        live=("learning_rate",),
        covers=("per_leaf",),
        bad=(BAD_RATE,),
    ),
    Case(
        "rows",
        adam_by_rows,
        {"learning_rate": 1e-2},
        oracle=leafwise(lambda _: Adam(1e-2)),
        live=("learning_rate",),
        covers=("rows",),
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
        bad=(({"mu_dtype": 1.0}, TypeError, "mu_dtype must be the same for all members"),),
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
        "slow_in_state",
        lookahead_of_momentum,
        {"learning_rate": 0.1, "slow_step_size": 0.6},
        oracle=leafwise(lambda _: SlowAndFast(lambda: Descent(0.1), 3, 0.6)),
        live=("learning_rate", "slow_step_size"),
        needs_params=True,
        bad=(BAD_RATE, *negative("slow_step_size")),
    ),
    Case(
        "slow_in_state_reset",
        lookahead_of_momentum,
        {"learning_rate": 0.1, "slow_step_size": 0.6, "reset_state": True},
        oracle=leafwise(lambda _: SlowAndFast(lambda: Descent(0.1), 3, 0.6, reset=True)),
        live=("learning_rate", "slow_step_size"),
        needs_params=True,
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
)
