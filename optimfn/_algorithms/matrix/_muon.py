"""Muon: orthogonalised momentum, scaled to the shape of the matrix."""

import functools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, stateless
from ..._checks import check_choice, check_decay, check_dtype, check_nonnegative
from ..._numerics._newton_schulz import SCALINGS, check_coefficients, check_gram, iterated, polynomials
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._momentum import ema, trace
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._newton_schulz import (
    DimensionNumbers,
    MuonDimensionNumbers,
    fit_all,
    is_turned,
    on_matrices,
    orthogonal,
    resolve_dimensions,
    scaled_by_shape,
)

MODES = ("original", "match_rms_adamw", "spectral_unclamped", "none")


@factory
def orthogonalize(
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    eps: Scalar = 1e-7,
    *,
    dtype: torch.dtype = torch.bfloat16,
    preconditioning: str = "frobenius",
    gram: bool = False,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Replace every matrix by a near orthogonal one with the same singular vectors.

    A polynomial, applied again and again, drives the singular values towards one. It is made for speed, not
    accuracy: with the defaults, those above a hundredth of the norm end up between about 0.6 and 1.2. Leaves
    that are no matrices are errors; give them to another rule, with `masked` for example.

    The iteration magnifies the rounding of bfloat16: another order of the sums, as under `vmap` or on another
    device, can change an element by up to a tenth.

    Maths:
        X = g / max(|g|, eps),  transposed if it has more rows than columns
        A = X X^T
        X <- a X + (b A + c A A) X,  ns_steps times
        update <- X, transposed back

    Args:
        ns_coeffs: `(a, b, c)`, the coefficients of the polynomial, no unit; such triples for the steps, of which the
            last `ns_steps` are taken; or a name of `ns_coefficients`.
        ns_steps: Number of iterations, >= 1.
        eps: Least norm to divide by, in the unit of `|g|`, >= 0.
        dtype: Dtype in which it is computed, whatever that of the leaves; float16 after the scaling, since squares have
            no room in it.
        preconditioning: How the singular values come below one, as the `scaling` of `newton_schulz`.
        gram: Take the steps on small products of long matrices, see `newton_schulz`; not in bfloat16.
        weight_dimension_numbers: Where the matrices of a leaf are: a `MuonDimensionNumbers`; "flatten", outputs by all
            other axes, for convolutions; "batch", the last two axes, for experts and heads; "positions", the first
            two, at each position of a kernel; a tree of these or a prefix of one; or a function of the
            parameters that returns either, as `tree.label_by` makes one. `None` means leaves of two axes only.

    Shapes:
        updates: real matrices, or leaves with dimension numbers. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes or is complex.

    Source: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks".

    Example:
        >>> import torch, optimfn as of
        >>> u = of.orthogonalize(ns_steps=10).update(torch.diag(torch.tensor([3.0, 4.0])), of.EmptyState())[0]
        >>> u.diag() > 0.6, u[0, 1]
        (tensor([True, True]), tensor(0.))
    """
    check_nonnegative(eps=eps)
    check_dtype(dtype=dtype)
    check_choice("preconditioning", preconditioning, SCALINGS)
    check_gram(gram, dtype)
    steps = check_coefficients(ns_coeffs, ns_steps)

    def check(g: Tensor) -> None:
        if g.is_complex():
            raise ValueError(f"orthogonalize takes real leaves only, got one of {g.dtype}")

    def scaled(g: Tensor) -> Any:
        x = tree.cast_leaf(g, torch.promote_types(g.dtype, torch.float32) if dtype == torch.float16 else dtype)
        if preconditioning == "frobenius":
            x = x / tree.clip(tree.cast_leaf(tree.norm(x), x.dtype), min_value=eps)
        return x.mT if is_turned(x) else x

    def iterate(x: Tensor) -> Tensor:
        if preconditioning == "frobenius":
            return polynomials(tree.cast_leaf(x, dtype), steps, gram=gram)
        return iterated(x, steps, eps, preconditioning, gram, dtype)

    def on_all(gs: list[Tensor]) -> list[Tensor]:
        turned = tree.batched(iterate, tree.map(scaled, gs))
        return [*tree.map(lambda g, x: tree.cast_leaf(x.mT if is_turned(g) else x, g.dtype), gs, turned)]

    def whole(x: Tensor) -> Tensor:
        x = tree.cast_leaf(x, torch.promote_types(x.dtype, torch.float32) if dtype == torch.float16 else dtype)
        return iterated(x, steps, eps, preconditioning, gram, dtype, floor=True)

    def turn(xs: list[Tensor], dims: MuonDimensionNumbers) -> list[Tensor]:
        return [*tree.map(lambda x, o: tree.cast_leaf(o, x.dtype), xs, orthogonal(xs, dims, whole))]

    def update(updates: Updates, params: Params | None) -> Updates:
        for g in tree.leaves(updates):  # by every process, not by the owner of the matrix alone
            check(g)
        if weight_dimension_numbers is not None:
            dims = resolve_dimensions(weight_dimension_numbers, updates if params is None else params)
            return on_matrices(turn, updates, dims, "orthogonalize")
        for g in tree.leaves(updates):
            _sides("orthogonalize", g)
        return tree.on_full_matrix(on_all, updates, together=True)

    return replace(stateless(update), leafwise=fit_all(weight_dimension_numbers))


@factory
def scale_by_matrix_shape(
    mode: str = "original", weight_dimension_numbers: DimensionNumbers | None = None
) -> GradientTransformation:
    """Multiply every matrix by a factor for its shape, so that one learning rate serves all shapes.

    Maths:
        update <- sqrt(max(1, rows / cols)) g     with mode "original"
                  0.2 sqrt(max(rows, cols)) g     with mode "match_rms_adamw"
                  sqrt(rows / cols) g             with mode "spectral_unclamped"
                  g                               with mode "none"

    Args:
        mode: "original", for an orthogonal update that changes the output of a layer alike whatever its
            width; "match_rms_adamw", for one whose elements are about as large as Adam's, so that its
            learning rate and weight decay serve; "spectral_unclamped", as "original" but also smaller for a matrix that
            is wider than high; "none" for no factor.
        weight_dimension_numbers: Where the matrices of a leaf are, as in `orthogonalize`; each block has the factor of
            its own shape.

    Shapes:
        updates: matrices, outputs by inputs as in `torch.nn.Linear`, or leaves with dimension numbers. state: empty.

    Raises:
        ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes.

    Source: Jordan et al., 2024 ("original"); Liu et al., 2025, arXiv:2502.16982 ("match_rms_adamw"); Bernstein, 2025,
        "Deriving Muon" ("spectral_unclamped").

    Example:
        >>> import torch, optimfn as of
        >>> of.scale_by_matrix_shape().update(torch.ones(4, 1), of.EmptyState())[0].T
        tensor([[2., 2., 2., 2.]])
    """
    check_choice("mode", mode, MODES)

    def update(updates: Updates, params: Params | None) -> Updates:
        if weight_dimension_numbers is None:
            return tree.map(lambda g: shape_factor(mode, g) * g, updates)
        dims = resolve_dimensions(weight_dimension_numbers, updates if params is None else params)
        return scaled_by_shape(functools.partial(_factor, mode), updates, dims, "scale_by_matrix_shape")

    return replace(stateless(update), leafwise=fit_all(weight_dimension_numbers))


@factory
def torch_muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    nesterov: bool = True,
    mode: str = "original",
    momentum: str = "ema",
    dtype: torch.dtype = torch.bfloat16,
    preconditioning: str = "frobenius",
    gram: bool = False,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Move the matrices of hidden layers by their momentum made orthogonal: `orthogonalize` and what goes with it.

    It takes matrices only. Give embeddings, output layers, biases and gains to another rule, with `partition`.

    Maths:
        mu <- beta mu + (1 - beta) g,  or beta mu + g with momentum "sum"
        u <- orthogonalize(mu), or with nesterov that of beta mu + (1 - beta) g,  or g + beta mu with "sum"
        update <- -learning_rate (shape factor u + weight_decay p)

    Args:
        learning_rate: Spectral norm of a step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        ns_coeffs: The coefficients of `orthogonalize`, no unit.
        ns_steps: Iterations of `orthogonalize`, >= 1.
        beta: Decay of the momentum, no unit, in [0, 1).
        eps: Least norm to divide by, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        nesterov: Look one step ahead with the momentum.
        mode: How the factor depends on the shape, see `scale_by_matrix_shape`.
        momentum: "ema", or "sum" as of Moonlight and Dion: the same steps, but for `eps`.
        dtype: Dtype in which the momentum is made orthogonal.
        preconditioning: As in `orthogonalize`.
        gram: As in `orthogonalize`.
        weight_dimension_numbers: As in `orthogonalize`.

    Shapes:
        params: needed. state: that of `ema`, or of `trace`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes, or no parameters are given.

    Differs from: torch.optim.Muon in the names and the default of `weight_decay` (0.1 there); and `muon`, which
        corrects the bias of the momentum and brings an AdamW for the other leaves.

    Source: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks".

    Example:
        >>> import torch, optimfn as of
        >>> hidden = of.tree.label_by(lambda p: "muon" if p.ndim == 2 else "adamw")
        >>> tx = of.partition({"muon": of.torch_muon(0.02), "adamw": of.adamw(3e-4)}, hidden)
        >>> params = {"weight": torch.eye(2), "bias": torch.ones(2)}
        >>> tx.update(params, tx.init(params), params)[0]["bias"]
        tensor([-0.0003, -0.0003])
    """
    check_decay(beta=beta)
    check_choice("momentum", momentum, ("ema", "sum"))
    return chain(
        ema(beta, debias=False, nesterov=nesterov) if momentum == "ema" else trace(beta, nesterov),
        orthogonalize(
            ns_coeffs,
            ns_steps,
            eps,
            dtype=dtype,
            preconditioning=preconditioning,
            gram=gram,
            weight_dimension_numbers=weight_dimension_numbers,
        ),
        scale_by_matrix_shape(mode, weight_dimension_numbers),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )


def shape_factor(mode: str, g: Tensor) -> float:
    """The factor of `scale_by_matrix_shape` for one matrix."""
    return _factor(mode, *_sides("scale_by_matrix_shape", g))


def _factor(mode: str, rows: int, cols: int) -> float:
    if mode == "none":
        return 1.0
    if mode == "original":
        return math.sqrt(max(1.0, rows / max(cols, 1)))
    if mode == "spectral_unclamped":
        return math.sqrt(rows / max(cols, 1))
    return 0.2 * math.sqrt(max(rows, cols))


def _sides(rule: str, g: Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    if g.ndim != 2:
        raise ValueError(f"{rule} takes matrices only, got a leaf of shape {tuple(g.shape)}; mask it out")
    return g.shape[0], g.shape[1]
