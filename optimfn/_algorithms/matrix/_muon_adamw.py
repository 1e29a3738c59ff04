"""Muon in optax's form: orthogonalised means for matrices, AdamW for the rest."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import EmptyState, GradientTransformation, chain, init_empty_state
from ..._checks import (
    check_choice,
    check_decay,
    check_dtype,
    check_nonnegative,
    check_positive,
    check_rate,
)
from ..._numerics._newton_schulz import SCALINGS, check_coefficients, check_gram, iterated
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates
from ..._wrappers._partition import partition
from ..adam._adam import adamw
from ._newton_schulz import (
    DimensionNumbers,
    MuonDimensionNumbers,
    fit_all,
    on_matrices,
    orthogonal,
    resolve_dimensions,
    scaled_by_shape,
)


class MuonState(NamedTuple):
    """Muon's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params


@factory
def scale_by_muon(
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    weight_dimension_numbers: DimensionNumbers | None = None,
    momentum: str = "ema",
    dtype: torch.dtype | None = None,
    gram: bool = False,
) -> GradientTransformation:
    """Average the updates and make each matrix of the mean orthogonal, in the dtype of the leaf.

    Maths:
        mu <- beta mu + (1 - beta) g
        m = mu / (1 - beta^t), or with `nesterov` beta mu / (1 - beta^(t+1)) + (1 - beta) g / (1 - beta^t)
        with momentum "sum":  mu <- beta mu + g,  m = mu or g + beta mu
        update <- o = orthogonal(m),  or with `adaptive` <m, o> o

    Args:
        ns_coeffs: `(a, b, c)`, or a tuple of such triples for the steps, of which the last `ns_steps`
            are taken, or a name of `ns_coefficients`.
        ns_steps: Number of steps of the polynomial, >= 1.
        beta: Decay of the mean, no unit, in [0, 1).
        eps: Added to the norm that is divided by, in the unit of `|g|`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean, as NAdam does.
        adaptive: Multiply by the inner product of mean and result, its nuclear norm.
        preconditioning: How the singular values come below one: "frobenius", "spectral", "aol" or "schatten".
        weight_dimension_numbers: As in `orthogonalize`; `None` means matrices in torch's layout, outputs by inputs.
        momentum: "ema", or "sum" as of Moonlight and Dion.
        dtype: Dtype in which the mean is made orthogonal; `None` means that of the mean.
        gram: As in `orthogonalize`.

    Shapes:
        updates: leaves of two and more axes. state: count () int64; mu like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf is no matrix.

    Differs from: optax in the layout that `None` means, and in that the coefficients are no part of the state.

    Source: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; Boissin et al., 2025,
        arXiv:2512.04632 ("aol").

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_muon(ns_steps=10), torch.eye(2)
        >>> tx.update(torch.diag(torch.tensor([3.0, 4.0])), tx.init(params), params)[0].diag() > 0.6
        tensor([True, True])
    """
    check_decay(beta=beta)
    check_nonnegative(eps=eps)
    check_dtype(mu_dtype=mu_dtype)
    check_choice("preconditioning", preconditioning, SCALINGS)
    check_choice("momentum", momentum, ("ema", "sum"))
    check_dtype(dtype=dtype)
    check_gram(gram, dtype)
    steps = check_coefficients(ns_coeffs, ns_steps)

    def turn(means: list[Tensor], dims: MuonDimensionNumbers) -> list[Tensor]:
        turned = orthogonal(means, dims, lambda x: iterated(x, steps, eps, preconditioning, gram, dtype))
        turned = [*tree.map(lambda m, o: tree.cast_leaf(o, m.dtype), means, turned)]
        return [*tree.map(lambda m, o: tree.scale(tree.vdot(m, o), o), means, turned)] if adaptive else turned

    def init(params: Params) -> MuonState:
        return MuonState(tree.count(params), tree.init_moment(params, mu_dtype))

    def update(
        updates: Updates, state: MuonState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MuonState]:
        dims = resolve_dimensions(weight_dimension_numbers, updates if params is None else params)
        count = state.count + 1
        if momentum == "sum":
            mu = tree.add_scale(updates, beta, state.mu)
            mean = tree.add_scale(updates, beta, mu) if nesterov else mu
        else:
            mu = tree.update_moment(updates, state.mu, beta, 1)
            mean = tree.debiased_mean(updates, mu, beta, count, nesterov=nesterov)
        turned = on_matrices(turn, mean, dims)
        return tree.cast_like(turned, updates), MuonState(count, tree.carry(mu, state.mu))

    return GradientTransformation(init, update, leafwise=fit_all(weight_dimension_numbers))


@factory
def _scale_by_fans(given: DimensionNumbers | None, rms: Scalar | None) -> GradientTransformation:
    def factor(fan_out: int, fan_in: int) -> Any:
        if rms is None:
            return max(1.0, fan_out / max(fan_in, 1)) ** 0.5
        return rms * max(fan_in, fan_out) ** 0.5

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        dims = resolve_dimensions(given, updates if params is None else params)
        return scaled_by_shape(factor, updates, dims, "muon"), state

    return GradientTransformation(init_empty_state, update, leafwise=fit_all(given))


@factory
def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps_root: Scalar = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: DimensionNumbers | None = None,
    consistent_rms: Scalar | None = None,
    momentum: str = "ema",
    dtype: torch.dtype | None = None,
    gram: bool = False,
) -> GradientTransformation:
    """Move matrices by their momentum made orthogonal, and all other leaves by AdamW.

    Embeddings and output layers are matrices too, which the authors give to AdamW: say so with
    `muon_weight_dimension_numbers`, `None` for what is no matrix. `torch_muon` is for matrices alone.

    Maths:
        matrices:  update <- -learning_rate (factor scale_by_muon(g) + weight_decay p)
        factor = sqrt(max(1, outputs / inputs)), or with `consistent_rms` r:  r sqrt(max(inputs, outputs))
        others:  those of `adamw` with `nesterov`

    Args:
        learning_rate: Spectral norm of a step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        ns_coeffs: As in `scale_by_muon`.
        ns_steps: Number of steps of the polynomial, >= 1.
        beta: Decay of the mean, no unit, in [0, 1).
        eps: Added to the norm that is divided by, and to the root of AdamW, in the unit of `|g|`, >= 0.
        weight_decay: Decay of matrices per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which matrices decay: a tree of bools, a prefix of one, or a function of the parameters.
        mu_dtype: Dtype of the means; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the means.
        adaptive: As in `scale_by_muon`.
        preconditioning: As in `scale_by_muon`.
        adam_b1: Decay of the mean of the others, no unit, in [0, 1).
        adam_b2: Decay of their mean square, no unit, in [0, 1).
        adam_eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        adam_weight_decay: Decay of the others per unit of learning rate, >= 0.
        adam_learning_rate: Learning rate of the others, >= 0; `None` means `learning_rate`.
        muon_weight_dimension_numbers: Which leaves are matrices, and how, see `scale_by_muon`.
        consistent_rms: Root mean square of the elements of a step, no unit, > 0; 0.2 is about AdamW's.
        momentum: As in `scale_by_muon`.
        dtype: As in `scale_by_muon`.
        gram: As in `scale_by_muon`.

    Shapes:
        params: needed. state: that of `partition` of both. Memory: 1 x matrices, 2 x the others.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax in the layout: without dimension numbers a matrix is outputs by inputs, as torch has it.

    Source: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al., 2025,
        arXiv:2502.16982 (`consistent_rms`).

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.muon(0.02, adam_learning_rate=3e-4), {"weight": torch.eye(2), "bias": torch.ones(2)}
        >>> tx.update(params, tx.init(params), params)[0]["bias"]
        tensor([-0.0004, -0.0004])
    """
    check_decay(beta=beta, adam_b1=adam_b1, adam_b2=adam_b2)
    check_nonnegative(eps=eps, adam_eps_root=adam_eps_root)
    check_rate(adam_weight_decay=adam_weight_decay)
    if adam_learning_rate is not None:
        check_rate(adam_learning_rate=adam_learning_rate)
    if consistent_rms is not None:
        check_positive(consistent_rms=consistent_rms)
    rest = learning_rate if adam_learning_rate is None else adam_learning_rate

    def labels(params: Params) -> Any:
        dims = resolve_dimensions(muon_weight_dimension_numbers, params)
        return tree.map(lambda _, box: "adam" if box.content is None else "muon", params, dims)

    matrices = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            mu_dtype,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            weight_dimension_numbers=muon_weight_dimension_numbers,
            momentum=momentum,
            dtype=dtype,
            gram=gram,
        ),
        _scale_by_fans(muon_weight_dimension_numbers, consistent_rms),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
    others = adamw(rest, adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, adam_weight_decay, nesterov=nesterov)
    by_shape = tree.label_by(lambda p: "muon" if p.ndim == 2 else "adam")
    return partition({"muon": matrices, "adam": others}, by_shape if muon_weight_dimension_numbers is None else labels)
