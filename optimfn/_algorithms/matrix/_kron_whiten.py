"""PSGD with a Kronecker preconditioner that whitens gradients, or fits the Hessian, without solves."""

import functools
import math
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import (
    check_choice,
    check_decay,
    check_dtype,
    check_nonnegative,
    check_positive,
    check_seed,
    check_steps,
)
from ..._recipe import factory
from ..._state_spec import HostCount, LeafSpec
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._axes import ahead, check_spread
from ._kron_factors import (
    BALANCE,
    Fixed,
    KronFactors,
    Layout,
    Probability,
    balanced,
    check_probability,
    due,
    of_leaves,
    precondition,
    start,
)
from ._kron_fit import MODES, OF_P, Fit, moved


class KronWhitenState(NamedTuple):
    """PSGD's memory."""

    count: Count  # () int64, steps taken
    steps: HostCount  # () int64 on the CPU, steps taken
    since: HostCount  # () int64 on the CPU, steps since the factors moved; with "hessian", how often they have
    mu: Updates  # running mean of the gradients, like params; empty if momentum is 0
    factors: Annotated[Any, LeafSpec("factor"), "exact"]  # KronFactors of each leaf


@factory
def scale_by_kron_whiten(
    momentum: Scalar = 0.0,
    preconditioner_lr: ScalarOrSchedule = 0.1,
    beta_lipschitz: Scalar = 0.9,
    damping: Scalar = 1e-9,
    *,
    preconditioner_mode: str = "Q0.5EQ1.5",
    preconditioner_init_scale: float | None = None,
    preconditioner_max_size: int | None = None,
    preconditioner_max_skew: Fixed = 1.0,
    preconditioner_update_probability: Probability = 1.0,
    update_preconditioner_first: bool = True,
    fit: str = "gradient",
    grad_clip_max_amps: tuple[Scalar, Scalar] = (2.0, 10.0),
    merge_dims: bool | str = False,
    memory_save_mode: str | None = None,
    mu_dtype: torch.dtype | None = None,
    precond_dtype: torch.dtype | None = None,
    seed: int | Tensor = 0,
    spread: int = 1,
) -> GradientTransformation:
    """Multiply the mean of each leaf by a product of one matrix for each axis that whitens its gradients.

    The matrices are fitted by products alone, a little in every step, and need no inverse. What comes out has elements
    of about one, so its learning rate is that of Adam. Give `preconditioner_init_scale`, about the root of one over a
    usual gradient, if each leaf is to be scaled by itself, as under `in_backward`.

    Maths:
        beta = min((t - 1) / t, momentum),  mu <- beta mu + (1 - beta) g
        x = g + (damping + eps |g|) n,  n of unit variance;  y = P x,  P = Q^H Q,  Q = Q_1 x ... x Q_k
        for each axis T = y y^H of the unfolding, s = numel / size, l = |T| + s,  L <- max(beta_lipschitz L + (1 -
        beta_lipschitz) l, l),  m = preconditioner_lr / L
        "Q0.5EQ1.5":  Q_i <- Q_i - m (T - s) Q_i, then R = Q_i^H - Q_i over its norm, and
                      Q_i <- Q_i + a R (Q_i + a/2 R Q_i),  a = min(-tr(R Q_i) / tr(R R Q_i), 1/8), or 1/8
        "QUAD":       Q_i <- (1 - m/2 (T - s)) Q_i (1 - m/2 (T - s)), made symmetric
        "QEQ":        Q_i <- Q_i - m Q_i (T - s)
        "QEP":        Q_i <- Q_i - m (Q_i T Q_i^H - s Q_i Q_i^H) Q_i
        "EQ":         Q_i <- Q_i - m triu(A A^H - B B^H) Q_i,  A = Q x, B = Q^-H v of the unfoldings, v normal
        "QUAD4P":     as "QUAD" with m for m/2 and y = Q x:  Q is P itself
        "PRO4P":      as "Q0.5EQ1.5" with 2 m for m and y = Q x:  Q is P itself
        update <- P mu, brought down to the first of `grad_clip_max_amps` in the mean, to the second in each element

    Args:
        momentum: Largest decay of the mean, no unit, in [0, 1).
        preconditioner_lr: Step of the factors relative to what keeps them stable, no unit, >= 0; a number, a 0-dim
            tensor or a schedule.
        beta_lipschitz: Decay of the bounds `L`, no unit, in [0, 1); close to 1 for gradients that are mostly 0.
        damping: Size of noise, in the unit of `|g|`, >= 0; `P` stays below one over it.
        preconditioner_mode: How factors move, "Q0.5EQ1.5" ("PRO"), "QUAD", "QEQ", "QEP", "EQ",
            "QUAD4P" or "PRO4P".
        preconditioner_init_scale: What `Q` starts as, > 0; `None` means `(mean |g|^4 + damping^4)^(-1/8)` of that leaf
            of the first step where the mean is largest, for all.
        preconditioner_max_size: Largest axis with a matrix; longer ones get its diagonal. `None` means any.
        preconditioner_max_skew: The same by size^2 / numel of the leaf, no unit, > 0.
        preconditioner_update_probability: How often factors move: in one of 1 / p steps, p in (0, 1]; or a schedule of
            p, called with a count on the host, such as `precond_update_prob_schedule()`.
        update_preconditioner_first: Whether factors move before they are used, or after.
        fit: What is whitened: the "gradient", or its mean, the "momentum"; or pairs with the "hessian" are fitted, from
            the extra arguments `vector` and `hvp` of `update`, random numbers and what `hvp` makes of them. In steps
            without them the factors stay.
        grad_clip_max_amps: Bounds of the result of a leaf: of its root mean square, and of elements, > 0.
        merge_dims: Whether leaves of more than two axes are taken as matrices, see `scale_by_kron`.
        memory_save_mode: Which axes get no matrix in any case, see `scale_by_kron`.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        precond_dtype: Dtype of the factors; `None` means the same.
        seed: Of the random numbers.
        spread: Parts of the leaves whose factors move in steps of their own, >= 1 and at most the steps between them,
            which a number as `preconditioner_update_probability` says; see `eigenbasis`.

    Shapes:
        state: count () int64; steps, since () int64 on the CPU; mu like params, () without momentum; factors for each
            leaf one (d, d) or (d,) and one bound () per axis of a size other than 1. Leaves in shards are made whole in
            every step, and processes share the work on them.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` with "hessian", if one of `vector` and `hvp` is given without the other.

    Differs from: psgd_torch, where coins decide when factors move and are balanced (every 100 steps here), and where
        the noise is normal. Here it is a product of signs for each axis, of the same covariance, which alone counts;
        and the vectors in which norms are looked for are uniform.

    Source: Li, 2015, arXiv:1512.04202; Li, 2024, arXiv:2402.11858.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_kron_whiten()
        >>> g = torch.tensor([100.0, -100.0])
        >>> tx.update(g, tx.init(g))[0].round(decimals=3)
        tensor([ 1., -1.])
    """
    check_decay(momentum=momentum, beta_lipschitz=beta_lipschitz)
    check_nonnegative(damping=damping)
    check_positive(preconditioner_max_skew=preconditioner_max_skew)
    check_dtype(mu_dtype=mu_dtype, precond_dtype=precond_dtype)
    check_seed(seed=seed)
    _check_fit(preconditioner_mode, fit, preconditioner_lr, preconditioner_init_scale, grad_clip_max_amps)
    check_probability(preconditioner_update_probability=preconditioner_update_probability)
    _check_size(preconditioner_max_size)
    mode = "Q0.5EQ1.5" if preconditioner_mode == "PRO" else preconditioner_mode
    largest = math.inf if preconditioner_max_size is None else preconditioner_max_size
    layout = Layout(largest, float(preconditioner_max_skew), 0, True, merge_dims, memory_save_mode)
    has_mean = isinstance(momentum, Tensor) or momentum > 0
    if fit == "momentum" and not has_mean:
        raise ValueError(f"momentum must be > 0 to whiten it, got {momentum!r}")
    scale = 1.0 if preconditioner_init_scale is None else preconditioner_init_scale
    how = Fit(mode, preconditioner_lr, beta_lipschitz, damping)
    parts = _parts(spread, preconditioner_update_probability, fit)
    is_due: Any = 1 if preconditioner_update_probability == 1 else due(preconditioner_update_probability)
    fitter = _Fitter(how, layout, fit, is_due, preconditioner_init_scale is None, seed, parts)

    def init(params: Params) -> KronWhitenState:
        mu = tree.init_moment(params, mu_dtype) if has_mean else ()
        factors = start(params, layout, scale ** (2 if mode in OF_P else 1), precond_dtype, bounds=True)
        return KronWhitenState(tree.count(params), tree.host_count(params), tree.host_count(params), mu, factors)

    def update(
        updates: Updates, state: KronWhitenState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, KronWhitenState]:
        if not tree.leaves(updates):
            return updates, state
        t = tree.wide(state.count)
        beta = tree.clip(t / (t + 1), max_value=momentum)
        mean = tree.update_moment(updates, state.mu, beta, 1) if has_mean else updates
        before, factors, since = fitter.moved(state, *_target(fit, updates, mean, extra))
        used = of_leaves(factors if update_preconditioner_first else before, updates)
        found = precondition(layout, used, tree.leaves(mean), fitted=mode in OF_P)
        direction = tree.map(lambda u: clipped(u, *grad_clip_max_amps), tree.unflatten(updates, found))
        mu = tree.carry(mean, state.mu) if has_mean else ()
        new = KronWhitenState(state.count + 1, state.steps + 1, since, mu, factors)
        return tree.cast_like(direction, updates), new

    return GradientTransformation(init, update, leafwise=preconditioner_init_scale is not None)


class _Fitter(NamedTuple):
    """How the factors of a state are fitted."""

    how: Fit
    layout: Layout
    fit: str
    is_due: Any
    finds_scale: bool
    seed: int | Tensor
    parts: list[Any]  # when the leaves of other parts than the first are due

    def moved(
        self, state: KronWhitenState, target: Updates | None, vectors: tuple[Updates, ...]
    ) -> tuple[Any, Any, Tensor]:
        """Factors that have their scale, those after the step, and what is counted of it."""
        if target is None:
            return state.factors, state.factors, state.since
        of_pairs = self.fit == "hessian"
        counts, begun, since = (state.steps, state.since), state.factors, state.since
        if self.finds_scale:
            start_at = functools.partial(scaled, self.how)
            begun = tree.every(
                lambda n: n == 0, state.since if of_pairs else state.steps, start_at, begun, target, *vectors
            )
        is_due = 1 if of_pairs else self.is_due
        key = tree.fold_in(self.seed, state.count)
        after = moved(self.how, self.layout, is_due, counts, begun, target, state.count, key, vectors, self.parts)
        if of_pairs:
            since = since + 1
        elif self.is_due != 1:
            since = torch.where(self.is_due(*counts), 0, since + 1)
        return begun, tree.every(BALANCE, state.steps, balanced, after), since


def _parts(spread: int, probability: Probability, fit: str) -> list[Any]:
    """When each part of the leaves but the first is due."""
    check_steps(spread=spread, at_least=1)
    if spread == 1:
        return []
    if callable(probability) or fit == "hessian":
        raise ValueError(
            "spread must be 1 where preconditioner_update_probability, a number, does not say alone when factors move, "
            f"got {spread} with fit={fit!r} and {probability!r}"
        )
    period = math.ceil(1 / float(probability))
    check_spread(spread, **{"the steps from one move of the factors to the next": period})

    def is_due(part: int, steps: Tensor, since: Tensor) -> Any:
        return (steps + 1 + ahead(part, spread, period)) % period == 0

    return [functools.partial(is_due, part) for part in range(1, spread)]


def _check_fit(
    mode: str, fit: str, preconditioner_lr: ScalarOrSchedule, scale: Scalar | None, amps: tuple[Scalar, Scalar]
) -> None:
    check_choice("preconditioner_mode", mode, (*MODES, "PRO"))
    check_choice("fit", fit, ("gradient", "momentum", "hessian"))
    if not callable(preconditioner_lr):
        check_nonnegative(preconditioner_lr=preconditioner_lr)
    if scale is not None:
        check_positive(preconditioner_init_scale=scale)
    for i, amp in enumerate(amps):
        check_positive(**{f"grad_clip_max_amps[{i}]": amp})


def _check_size(preconditioner_max_size: int | None) -> None:
    if preconditioner_max_size is not None:
        check_steps(preconditioner_max_size=preconditioner_max_size)


def _target(fit: str, updates: Updates, mean: Updates, extra: dict[str, Any]) -> tuple[Any, tuple[Updates, ...]]:
    """What the factors are fitted to, if anything, and the vectors that belong to it."""
    if fit != "hessian":
        return updates if fit == "gradient" else mean, ()
    vector, hvp = extra.get("vector"), extra.get("hvp")
    if (vector is None) != (hvp is None):
        raise ValueError('scale_by_kron_whiten with fit="hessian" takes both of vector and hvp, or neither, got one')
    if hvp is None:
        return None, ()
    return tree.map(lambda _, h: h, updates, hvp), (tree.map(lambda _, v: v, updates, vector),)


def scaled(fit: Fit, factors: Any, target: Updates, vector: Updates | None = None) -> Any:
    """Factors that have not moved yet, times what makes the first results about one."""
    own = [x for x in tree.leaves(target) if x.numel()]
    sizes = [tree.wide(x.abs()) for x in tree.whole(own)]
    if not sizes:
        return factors
    fourth = torch.stack([(x**4).mean() for x in sizes]).amax() + fit.damping**4
    nothing = fourth == 0
    scale = torch.where(nothing, 1.0, torch.where(nothing, 1.0, fourth) ** (-1 / 8))
    if vector is not None:
        scale = scale * (tree.norm(vector, squared=True, wide=True) / max(tree.size(vector), 1)) ** (1 / 4)
    scale = scale**2 if fit.mode in OF_P else scale

    def change(_: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
        if not isinstance(node, KronFactors):
            return False, None
        each = scale ** (1 / max(len(node.q), 1))
        return True, KronFactors([tree.cast_leaf(x * each, x.dtype) for x in node.q], node.lipschitz)

    return tree.map_nodes(change, factors)


def clipped(u: Tensor, mean: Scalar, element: Scalar) -> Tensor:
    """A leaf brought down to a root mean square, and its elements to a magnitude."""
    size = tree.rms(u, wide=True)
    small: Tensor = tree.shrink(u, size, mean)
    if small.is_complex():
        return small / torch.clamp(small.abs() / element, min=1.0)
    bounded: Tensor = tree.clip(small, min_value=-element, max_value=element)
    return bounded


@factory
def kron_whiten(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar = 0.9,
    preconditioner_lr: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    preconditioner_mode: str = "Q0.5EQ1.5",
    preconditioner_init_scale: float | None = None,
    preconditioner_update_probability: Probability = 1.0,
    fit: str = "gradient",
    seed: int | Tensor = 0,
    spread: int = 1,
) -> GradientTransformation:
    """Step along whitened gradients, PSGD with a Kronecker preconditioner, with decoupled decay.

    `scale_by_kron_whiten` gives the maths, and has more to set.

    Maths:
        update <- -learning_rate (scale_by_kron_whiten(g) + weight_decay p)

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Largest decay of the mean, no unit, in [0, 1).
        preconditioner_lr: Step of the factors relative to what keeps them stable, no unit, >= 0; a number, a 0-dim
            tensor or a schedule.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        preconditioner_mode: How factors move, see `scale_by_kron_whiten`.
        preconditioner_init_scale: What `Q` starts as, > 0; `None` means one found in the first step, for all leaves.
        preconditioner_update_probability: How often factors move, in (0, 1], or a schedule.
        fit: What is whitened: "gradient", "momentum", or "hessian".
        seed: Of the random numbers.
        spread: Parts of the leaves whose factors move in steps of their own, >= 1 and at most the steps between them,
            which a number as `preconditioner_update_probability` says; see `eigenbasis`.

    Shapes:
        params: needed. state: that of `scale_by_kron_whiten`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: psgd_torch's `KronWhiten`, which has no decay and no momentum by default, and as
        `scale_by_kron_whiten` says.

    Source: Li, 2015, arXiv:1512.04202; Li, 2024, arXiv:2402.11858.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.kron_whiten(0.1), torch.tensor([100.0, -100.0])
        >>> tx.update(w, tx.init(w), w)[0].round(decimals=3)
        tensor([-0.1000,  0.1000])
    """
    return chain(
        scale_by_kron_whiten(
            momentum,
            preconditioner_lr,
            preconditioner_mode=preconditioner_mode,
            preconditioner_init_scale=preconditioner_init_scale,
            preconditioner_update_probability=preconditioner_update_probability,
            fit=fit,
            seed=seed,
            spread=spread,
        ),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
