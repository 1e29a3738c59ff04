"""Shampoo, as its distributed implementation has it."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import (
    check_choice,
    check_decay,
    check_dtype,
    check_fraction,
    check_momentum,
    check_nonnegative,
    check_steps,
)
from ..._recipe import factory
from ..._state_spec import HostCount
from ..._transforms._decay import add_decayed_weights
from ..._transforms._decay_kinds import add_corrected_decayed_weights, add_independent_decayed_weights
from ..._transforms._momentum import trace
from ..._transforms._rate import descend, scale
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._axes import ahead, check_spread, parted
from ._blocks import Blocking
from ._shampoo_roots import Preconditioner, Roots

GRAFTING = (None, "sgd", "adagrad", "rmsprop", "adam")
DECAYS = ("decoupled", "l2", "corrected", "independent")


class ShampooState(NamedTuple):
    """Shampoo's memory."""

    count: Count  # () int64, steps taken
    steps: HostCount  # () int64 on the CPU, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # what grafting keeps of squared gradients, like params; otherwise empty
    factors: Any  # products of the unfolded gradients, (n, n) for each axis of each block of a leaf
    roots: Any  # their inverse roots, or eigenvectors, in the same order
    e_g: Updates  # "eigenvalues": mean squares of the gradients in the eigenbases, like params; otherwise empty


@dataclass(frozen=True)
class Grafting:
    """Whose length the steps of a block have."""

    rule: str | None
    b2: Scalar
    eps: Scalar
    bias_correction: bool

    def __post_init__(self) -> None:
        check_choice("grafting", self.rule, GRAFTING)
        check_decay(grafting_b2=self.b2)
        check_nonnegative(grafting_eps=self.eps)

    @property
    def keeps_squares(self) -> bool:
        """Whether it has a memory."""
        return self.rule not in (None, "sgd")

    def of(self, f: Updates, updates: Updates, nu: Updates, count: Tensor) -> tuple[Updates, Updates]:
        """What that rule makes of the filtered gradient."""
        if not self.keeps_squares:
            return f, nu
        if self.rule == "adagrad":
            nu = tree.add(nu, tree.abs_sq(updates))
        else:
            nu = tree.update_moment_per_elem_norm(updates, nu, self.b2, 2)
        is_corrected = self.rule == "adam" and self.bias_correction
        squares = tree.bias_correction(nu, self.b2, count) if is_corrected else nu
        return tree.cast_like(tree.div_by_root(f, squares, self.eps), f), nu


@factory
def scale_by_shampoo(
    b1: Scalar = 0.9,
    b2: Scalar = 1.0,
    b3: Scalar | None = None,
    eps: Scalar = 1e-12,
    max_preconditioner_dim: int = 1024,
    precondition_frequency: int = 1,
    start_preconditioning_step: int | None = None,
    *,
    bias_correction: bool = True,
    grafting: str | None = None,
    grafting_b2: Scalar = 0.999,
    grafting_eps: Scalar = 1e-8,
    kind: str = "shampoo",
    roots: Roots = None,
    by: str = "eigh",
    sides: str = "both",
    target_dims: int | None = 1,
    mu_dtype: torch.dtype | None = None,
    spread: int = 1,
) -> GradientTransformation:
    """Multiply the mean of each leaf by inverse roots of the products of its gradients, along each axis.

    Leaves are cut into blocks first, which do not see each other: small neighbouring axes are merged, so that a leaf of
    up to `max_preconditioner_dim` elements is a vector with one full matrix, and long axes are cut. Where the paper's
    factors are wanted, one for each axis of a leaf, set `target_dims` to `None`.

    Maths:
        for a block of o axes:
        f = (b3 mu + (1 - b3) g) / (1 - b3 b1^(t-1)),  mu <- b1 mu + (1 - b1) g
        L_i <- b2 L_i + (1 - b2) g_(i) g_(i)^H  for each axis i; with b2 = 1, L_i + g_(i) g_(i)^H
        at start and when t mod precondition_frequency is 0: R_i = (L_i / (1 - b2^t) + eps I)^(-1/(2 o))
        d = f times R_i along each axis,  n = what grafting makes of f
        update <- d |n| / |d|;  before start n, or f without grafting

        "kl": L_i takes in g times R_j along all other axes j
        "eigenvalues": Q_i the eigenvectors of L_i, E <- b2 E + (1 - b2) |g in Q|^2, and
            d = (f in Q) / ((E / (1 - b2^t))^(1/2) + eps), turned back

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of the factors, no unit, in [0, 1]; with 1 they are sums, as AdaGrad's.
        b3: Weight of `mu` in the filtered gradient, no unit, in [0, 1); `None` means `b1`, which is Adam's mean.
        eps: Least eigenvalue of a factor, in the unit of `|g|^2`, >= 0; for "eigenvalues" added to the root.
        max_preconditioner_dim: Size of the axes of blocks at most, >= 1.
        precondition_frequency: Steps from one computation of roots to the next, >= 1.
        start_preconditioning_step: Step of the first, >= 1; `None` means `precondition_frequency`.
        bias_correction: Whether the means are corrected for having begun at zero.
        grafting: Whose length a block of the update has: "sgd", "adagrad", "rmsprop" or "adam"; `None`: its own.
        grafting_b2: Decay of the mean squares of grafting, no unit, in [0, 1).
        grafting_eps: Added to their root, in the unit of `|g|`, >= 0.
        kind: "shampoo"; "kl", after KL-Shampoo; or "eigenvalues", eigenvalue-corrected: SOAP without a lag.
        roots: The root whose inverse each factor acts by, > 0, or a dict of such by the number of axes of a block; for
            "eigenvalues" that of `E`, 2 by default.
        by: How inverse roots are found, see `inverse_root`: "eigh", "pseudo" or "newton".
        sides: "both": of all axes; or "one": of the smallest axis alone, by the inverse square root.
        target_dims: Number of axes below which none are merged, >= 1; `None`: leaves keep their axes.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        spread: Parts of the leaves whose roots are computed in steps of their own after the first, at most
            `precondition_frequency`, see `eigenbasis`.

    Shapes:
        state: count () int64; steps () int64 on the CPU; mu like params; nu, e_g like params or empty; factors, roots
            (n, n) for each axis of each block, float32 for float16 and bfloat16.
        Memory: 1 x params, 1 more with grafting and for "eigenvalues", and for a block (m, n) twice m^2 + n^2. Leaves
            in shards are made whole in each step, and processes share the work on them.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: facebookresearch/optimizers in roots and eigenvectors that are not finite, which leave the last ones
        without an end; in products too large for their dtype, which are left out; and in eigenvectors of directions
        that no gradient has had, which `eigenvectors` defines.

    Source: Gupta, Koren and Singer, 2018, arXiv:1802.09568; Shi et al., 2023, arXiv:2309.06497; Lin et al., 2025,
        arXiv:2509.03378 ("kl"); Xie et al., 2025, arXiv:2503.20762 (one-sided).

    Example:
        >>> import torch, optimfn as of
        >>> tx, g = of.scale_by_shampoo(target_dims=None), torch.tensor([[4.0, 0.0], [0.0, 9.0]])
        >>> tx.update(g, tx.init(g))[0].diag()
        tensor([1., 1.])
    """
    b3 = b1 if b3 is None else b3
    check_decay(b1=b1, b3=b3)
    check_dtype(mu_dtype=mu_dtype)
    start = precondition_frequency if start_preconditioning_step is None else start_preconditioning_step
    check_steps(precondition_frequency=precondition_frequency, start_preconditioning_step=start, at_least=1)
    check_spread(spread, precondition_frequency=precondition_frequency)
    how = Preconditioner(b2, eps, Blocking(max_preconditioner_dim, target_dims, sides), kind, roots, by)
    length = Grafting(grafting, grafting_b2, grafting_eps, bias_correction)
    has_own = kind == "eigenvalues"
    directed = functools.partial(how.directed, grafting is not None)

    def init(params: Params) -> ShampooState:
        nu = tree.init_moment(params, real=True) if length.keeps_squares else ()
        e_g = tree.init_moment(params, real=True) if has_own else ()
        counts = tree.count(params), tree.host_count(params)
        return ShampooState(*counts, tree.init_moment(params, mu_dtype), nu, *how.begun(params), e_g)

    def update(
        updates: Updates, state: ShampooState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ShampooState]:
        one = tree.wide(state.count) * 0 + 1
        f = tree.update_moment(updates, state.mu, b3, 1)
        if bias_correction:
            f = tree.scale(1 / (1 - b3 + b3 * tree.one_minus_power(b1, state.count)), f)
        f, mu = tree.cast_like(f, updates), tree.update_moment(updates, state.mu, b1, 1)
        n, nu = length.of(f, updates, state.nu, state.count + 1)
        factors = how.collected(updates, state.factors, state.roots)
        correction = one if how.is_sum or not bias_correction else tree.one_minus_power(b2, state.count + 1)
        kept = state.roots
        for part, own in enumerate(parted(kept, tree.stop_gradient(updates), spread)):
            due = functools.partial(_is_due, start, precondition_frequency, spread, part)
            kept = tree.every(due, state.steps, how.rooted, kept, factors, own, correction, one * eps)
        e_g = how.squares(updates, state.e_g, kept) if has_own else ()
        corrected = tree.map(lambda x: tree.cast_leaf(x / correction, x.dtype), e_g)

        arguments = n, f, kept, corrected, one * eps
        late = start > 1 and not (has_own and grafting is None)
        u = tree.every(lambda t: t >= start - 1, state.steps, directed, *arguments) if late else directed(*arguments)
        mu, nu, e_g = tree.carry((mu, nu, e_g), (state.mu, state.nu, state.e_g))
        state = ShampooState(state.count + 1, state.steps + 1, mu, nu, factors, kept, e_g)
        return tree.cast_like(u, updates), state

    return GradientTransformation(init, update, leafwise=True)


@factory
def shampoo(
    learning_rate: ScalarOrSchedule = 0.01,
    b1: Scalar = 0.9,
    b2: Scalar = 1.0,
    b3: Scalar | None = None,
    eps: Scalar = 1e-12,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    max_preconditioner_dim: int = 1024,
    precondition_frequency: int = 1,
    start_preconditioning_step: int | None = None,
    *,
    momentum: Scalar | None = None,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    decay: str = "decoupled",
    peak: Scalar | None = None,
    bias_correction: bool = True,
    grafting: str | None = None,
    grafting_b2: Scalar = 0.999,
    grafting_eps: Scalar = 1e-8,
    kind: str = "shampoo",
    roots: Roots = None,
    by: str = "eigh",
    sides: str = "both",
    target_dims: int | None = 1,
    mu_dtype: torch.dtype | None = None,
    spread: int = 1,
) -> GradientTransformation:
    """Step by Shampoo, with any of its kinds of decay, and momentum of the whole direction.

    With `grafting="adam"`, Adam's learning rate carries over; roots every 10 to 100 steps cost little.

    Maths:
        d = scale_by_shampoo(g) + weight_decay p;  "l2": of g + weight_decay p;  "corrected": weight_decay
            learning_rate / peak p;  "independent": weight_decay / peak p
        M <- momentum M + (1 - dampening) d,  p <- p - learning_rate M
        with nesterov, p <- p - learning_rate ((1 - dampening) d + momentum M)

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the factors, no unit, in [0, 1]; with 1 they are sums.
        b3: Weight of the mean in the filtered gradient, no unit, in [0, 1); `None` means `b1`.
        eps: Least eigenvalue of a factor, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or, where it is decoupled or "l2",
            a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        max_preconditioner_dim: Size of the axes of blocks at most, >= 1.
        precondition_frequency: Steps from one computation of roots to the next, >= 1.
        start_preconditioning_step: Step of the first, >= 1; `None` means `precondition_frequency`.
        momentum: Decay of the sum of directions, no unit, in [0, 1]; `None`: there is none.
        dampening: Share of a direction that does not go into the sum, no unit, in [0, 1].
        nesterov: Look one step ahead.
        decay: "decoupled", "l2", "corrected" or "independent".
        peak: For the last two, the largest learning rate, > 0.
        bias_correction: Whether means are corrected for having begun at zero.
        grafting: Whose length a block of the update has, see `scale_by_shampoo`.
        grafting_b2: Decay of the mean squares of grafting, no unit, in [0, 1).
        grafting_eps: Added to their root, in the unit of `|g|`, >= 0.
        kind: "shampoo", "kl" or "eigenvalues", see `scale_by_shampoo`.
        roots: The root whose inverse each factor acts by, see `scale_by_shampoo`.
        by: How inverse roots are found, see `inverse_root`.
        sides: "both", or "one": of the smallest axis alone.
        target_dims: Number of axes below which none are merged, >= 1; `None`: leaves keep their axes.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        spread: Parts of the leaves whose roots are computed in steps of their own after the first, at most
            `precondition_frequency`, see `eigenbasis`.

    Shapes:
        params: needed with decay. state: that of `scale_by_shampoo`, and a trace like params with momentum.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given where they are needed.

    Differs from: facebookresearch/optimizers as `scale_by_shampoo` says.

    Source: Shi et al., 2023, arXiv:2309.06497.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.shampoo(0.1, grafting="adam"), torch.tensor([1.0, -1.0])
        >>> tx.update(w, tx.init(w), w)[0]
        tensor([-0.1000,  0.1000])
    """
    check_choice("decay", decay, DECAYS)
    check_momentum(momentum, nesterov)
    check_fraction(dampening=dampening)
    rule = scale_by_shampoo(
        b1,
        b2,
        b3,
        eps,
        max_preconditioner_dim,
        precondition_frequency,
        start_preconditioning_step,
        bias_correction=bias_correction,
        grafting=grafting,
        grafting_b2=grafting_b2,
        grafting_eps=grafting_eps,
        kind=kind,
        roots=roots,
        by=by,
        sides=sides,
        target_dims=target_dims,
        mu_dtype=mu_dtype,
        spread=spread,
    )
    decayed = _decay(decay, weight_decay, learning_rate, peak, mask)
    parts = [decayed, rule] if decay == "l2" else [rule, decayed]
    if momentum is not None:
        parts += [scale(1 - dampening), trace(momentum, nesterov)]
    return chain(*parts, descend(learning_rate))


def _is_due(start: int, period: int, spread: int, part: int, steps: Any) -> Any:
    """Whether roots are computed: all in the first step, and then of each part of the leaves once in a period."""
    return (steps == start - 1) | ((steps >= start) & ((steps + 1 + ahead(part, spread, period)) % period == 0))


def _decay(
    kind: str, weight_decay: ScalarOrSchedule, learning_rate: ScalarOrSchedule, peak: Scalar | None, mask: Mask | None
) -> GradientTransformation:
    """Decay of one of the kinds."""
    if (peak is None) != (kind in ("decoupled", "l2")):
        raise ValueError(f"peak must be a number for 'corrected' and 'independent' alone, got {peak!r} for {kind!r}")
    if peak is None:
        return add_decayed_weights(weight_decay, mask)
    if callable(weight_decay):
        raise ValueError(
            f"weight_decay must be a number for {kind!r} decay, which follows the learning rate, got {weight_decay!r}"
        )
    if kind == "corrected":
        return add_corrected_decayed_weights(weight_decay, learning_rate, peak, mask)
    return add_independent_decayed_weights(weight_decay, peak, mask)
