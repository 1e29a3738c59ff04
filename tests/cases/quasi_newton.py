"""Cases of line searches and quasi-Newton rules."""

import numpy as np
import torch
from case import NEGATIVE, Case

import optimfn as of

from .common import BAD_RATE, negative, no_decay


def bowl(params):
    """A loss for rules that evaluate one."""
    size = of.tree.abs_sq(params)
    return of.tree.sum(of.tree.add(size, of.tree.mul(size, size)))


@of.factory
def lbfgs_in_a_bowl(learning_rate, **kwargs):
    """`minimize_by_lbfgs` with a loss of its own, since the laws hand none over."""
    inner = of.minimize_by_lbfgs(learning_rate, **kwargs)

    def update(updates, state, params=None, **extra):
        return inner.update(updates, state, params, value_fn=bowl)

    return of.GradientTransformation(inner.init, update, takes_shards=inner.takes_shards)


def lbfgs_oracle(**kwargs):
    """torch.optim.LBFGS, for which the first gradient of every step is the given one."""

    def run(params, gradients):
        own = {name: p.clone().requires_grad_() for name, p in params.items()}
        optimizer = torch.optim.LBFGS(own.values(), **kwargs)

        def closure():
            optimizer.zero_grad()
            loss = bowl(own)
            loss.backward()
            for name, g in given.items():
                own[name].grad = g
            given.clear()
            return loss.item()

        for grads in gradients:
            given = dict(grads)
            optimizer.step(closure)
            yield {name: p.detach().clone() for name, p in own.items()}

    return run


DECIDES = {
    "alone": "the loss, and the direction, are those of all leaves together",
    "fused": "when to stop is decided in Python, so the rule runs eagerly; see test_fused.py",
    "vmap": "when to stop is decided in Python, so stacked models would have to stop together",
    "compile": "when to stop is decided in Python, which breaks the graph",
    "meta": "when to stop is decided in Python, by values that are not there",
    "differentiable": "derivatives take the decisions and the step lengths as given",
    "dtype": "the loss is evaluated at rounded parameters; test_lbfgs.py has the dtypes",
}
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

    return of.GradientTransformation(inner.init, update, takes_shards=inner.takes_shards)


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


CASES = (
    Case(
        "minimize_by_lbfgs",
        lbfgs_in_a_bowl,
        {"learning_rate": 0.5, "max_iter": 3, "history_size": 2},
        oracle=lbfgs_oracle(lr=0.5, max_iter=3, history_size=2),
        live=("learning_rate",),
        covers=("minimize_by_lbfgs",),
        needs_params=True,
        skips=DECIDES,
        bad=(
            BAD_RATE,
            ({"learning_rate": 0.0, "line_search": "strong_wolfe"}, ValueError, "learning_rate must be a number > 0"),
            ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
            ({"max_eval": 0}, ValueError, "max_eval must be >= 1, got 0"),
            ({"max_iter": 2.5}, TypeError, "max_iter must be a whole number of steps, got 2.5"),
            ({"history_size": 0}, ValueError, "history_size must be >= 1, got 0"),
            ({"tolerance_grad": -1.0}, ValueError, f"tolerance_grad {NEGATIVE}"),
            ({"tolerance_change": -1.0}, ValueError, f"tolerance_change {NEGATIVE}"),
            ({"line_search": "armijo"}, ValueError, "line_search must be one of None, 'strong_wolfe', got 'armijo'"),
        ),
    ),
    Case(
        "minimize_by_lbfgs_with_line_search",
        lbfgs_in_a_bowl,
        {"learning_rate": 1.0, "line_search": "strong_wolfe", "max_iter": 3, "history_size": 3},
        oracle=lbfgs_oracle(line_search_fn="strong_wolfe", max_iter=3, history_size=3),
        live=("learning_rate",),
        needs_params=True,
        skips=DECIDES,
    ),
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
