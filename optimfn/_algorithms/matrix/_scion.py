"""Scion: the steepest step in a norm for each kind of leaf."""

import math
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import EmptyState, GradientTransformation, chain, leafwise, stateless
from ..._checks import check_choice, check_fraction, check_nonnegative, check_positive
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._momentum import EmaState
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._muon import orthogonalize

NORMS = ("auto", "spectral", "bias_rms", "sign", "col", "row")
_FLOOR = 1e-8  # what the authors add to root mean squares


@factory
def scale_by_lmo(
    norm: str = "auto",
    scale: Scalar = 1.0,
    normalized: bool | None = None,
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> GradientTransformation:
    """Replace each leaf by what it has most in common with, of all that is 1 in some norm.

    Maths, of a leaf with outputs and inputs, and of a kernel of some positions:
        "spectral"  sqrt(outputs / inputs) / positions times the leaf, outputs by the rest, made orthogonal
        "bias_rms"  g / root mean square along the first axis
        "sign"      sign(g) / inputs
        "col"       g / root mean square of each column
        "row"       g / (norm of each row sqrt(inputs))
        "auto"      "spectral" with two axes and more, else "bias_rms"
        update <- scale times that

    Args:
        norm: One of these.
        scale: Radius of the ball, >= 0.
        normalized: Whether the number of inputs is divided by; `None` means the authors' default, which is so for all
            but "col". "col" is divided by all inputs then.
        ns_coeffs: The coefficients of `orthogonalize`, no unit.
        ns_steps: Its iterations, >= 1.
        dtype: Dtype in which leaves are made orthogonal.

    Shapes:
        updates: real leaves; of two axes for "sign", "col" and "row". state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has other axes, or is complex where it is made orthogonal.

    Source: Pethick et al., 2025, arXiv:2502.07529, Tables 2 to 4.

    Example:
        >>> import torch, optimfn as of
        >>> of.scale_by_lmo("sign", 4.0).update(torch.tensor([[3.0, -5.0]]), of.EmptyState())[0]
        tensor([[ 2., -2.]])
    """
    check_choice("norm", norm, NORMS)
    check_nonnegative(scale=scale)
    by_inputs = norm != "col" if normalized is None else bool(normalized)
    orthogonal = orthogonalize(ns_coeffs, ns_steps, dtype=dtype, weight_dimension_numbers="flatten")

    def kind(g: Tensor) -> str:
        found = ("spectral" if g.ndim >= 2 else "bias_rms") if norm == "auto" else norm
        if (g.ndim < 2 and found == "spectral") or (g.ndim != 2 and found in ("sign", "col", "row")):
            raise ValueError(f"the norm {found!r} is not for a leaf of shape {tuple(g.shape)}; give it to another rule")
        return found

    def factor(g: Tensor) -> float:
        if kind(g) != "spectral":
            return 1.0
        outputs, inputs, *positions = g.shape
        return math.sqrt(outputs / max(inputs, 1) if by_inputs else outputs) / max(math.prod(positions), 1)

    def axes(g: Tensor) -> tuple[int, ...] | None:
        return {"col": (0,), "row": (-1,), "bias_rms": (0,) if g.ndim else None}.get(kind(g))

    def divided(g: Tensor, sums: Tensor) -> Any:
        nothing = sums == 0  # where the root has no slope
        root = torch.where(nothing, 0.0, torch.sqrt(torch.where(nothing, 1.0, sums)))
        if kind(g) == "row":
            root = root * math.sqrt(g.shape[1]) if by_inputs else root
        elif g.ndim:
            root = root / math.sqrt(max(g.shape[0], 1))
            root = root * g.shape[1] if kind(g) == "col" and by_inputs else root
        return tree.cast_leaf(g / (root + _FLOOR), g.dtype)

    def update(updates: Updates, params: Params | None) -> Updates:
        kinds = {kind(g) for g in tree.leaves(updates)}
        found = updates
        if "spectral" in kinds:
            own = tree.map(lambda g: g if kind(g) == "spectral" else None, updates)
            turned, _ = orthogonal.rule(own, EmptyState())
            scaled = tree.map(lambda o: tree.scale(factor(o), o), turned)
            found = tree.map(lambda g, o: g if o is None else o, found, scaled)
        if kinds & {"col", "row", "bias_rms"}:
            own = tree.map(lambda g: g if kind(g) in ("col", "row", "bias_rms") else None, updates)
            # In which the squares of all float32 have room.
            wide = tree.map(lambda g: tree.cast_leaf(g, tree.wide_dtype(g.dtype, g.device)), own)
            sums = tree.fold_each("sum", axes, tree.abs_sq(wide), keepdim=True)
            even = tree.map(lambda g, x, s: tree.cast_leaf(divided(x, s), g.dtype), own, wide, sums)
            found = tree.map(lambda g, x: g if x is None else x, found, even)
        if "sign" in kinds:
            found = tree.map(lambda g: tree.scale(1 / max(g.shape[1], 1) if by_inputs else 1.0, tree.sign(g)), updates)
        return tree.scale(scale, found)

    return leafwise(stateless(update))


@factory
def scale_by_scion(
    momentum: Scalar = 0.1,
    norm: str = "auto",
    scale: Scalar = 1.0,
    normalized: bool | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> GradientTransformation:
    """Average the updates, and take the steepest step in a norm for each kind of leaf.

    Maths:
        mu <- (1 - momentum) mu + momentum g
        update <- scale_by_lmo(mu)

    Args:
        momentum: Weight of the new gradient, no unit, in (0, 1].
        norm: As in `scale_by_lmo`.
        scale: As in `scale_by_lmo`.
        normalized: As in `scale_by_lmo`.
        dtype: Dtype in which leaves are made orthogonal.

    Shapes:
        updates: leaves as `scale_by_lmo` takes them. state: that of `ema`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` for leaves that `scale_by_lmo` refuses.

    Source: Pethick et al., 2025, arXiv:2502.07529, Algorithms 1 and 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_scion(0.5, "sign"), torch.zeros(1, 2)
        >>> tx.update(torch.tensor([[3.0, -5.0]]), tx.init(params))[0]
        tensor([[ 0.5000, -0.5000]])
    """
    check_fraction(momentum=momentum)
    check_positive(momentum=momentum)
    steepest = scale_by_lmo(norm, scale, normalized, dtype=dtype)

    def init(params: Params) -> EmaState:
        return EmaState(tree.count(params), tree.init_moment(params))

    def update(
        updates: Updates, state: EmaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmaState]:
        mean = tree.update_moment(updates, state.ema, 1 - momentum, 1)
        found, _ = steepest.rule(mean, EmptyState())
        return tree.cast_like(found, updates), EmaState(state.count + 1, tree.carry(mean, state.ema))

    return GradientTransformation(init, update, leafwise=True)


@factory
def scion(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar = 0.1,
    norm: str = "auto",
    scale: Scalar = 1.0,
    weight_decay_mask: Mask | None = None,
    *,
    unconstrained: bool = False,
    normalized: bool | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> GradientTransformation:
    """Move by the steepest step in a norm for each kind of leaf, and stay in its ball: the rate is the decay as well.

    For a transformer the authors take "spectral" with scale 50 for matrices and "sign" with 3000 for the output layer,
    by `partition`, at a rate of 2^-12. Parameters should start in their ball.

    Maths:
        mu <- (1 - momentum) mu + momentum g
        update <- -learning_rate (scale_by_lmo(mu) + p),  without p if unconstrained

    Args:
        learning_rate: Step as a share of the ball, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Weight of the new gradient, no unit, in (0, 1]; 1 means none, and no memory in the authors' code.
        norm: As in `scale_by_lmo`.
        scale: As in `scale_by_lmo`.
        weight_decay_mask: Which leaves stay in their ball: a tree of bools, a prefix of one, or a function of them.
        unconstrained: Whether the parameters may go anywhere.
        normalized: As in `scale_by_lmo`.
        dtype: Dtype in which leaves are made orthogonal.

    Shapes:
        params: needed unless unconstrained. state: that of `ema`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` for leaves that `scale_by_lmo` refuses.

    Source: Pethick et al., 2025, arXiv:2502.07529, Algorithms 1 and 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scion(0.5, norm="sign"), torch.zeros(1, 2)
        >>> tx.update(torch.tensor([[3.0, -5.0]]), tx.init(params), params)[0]
        tensor([[-0.2500,  0.2500]])
    """
    parts = [scale_by_scion(momentum, norm, scale, normalized, dtype=dtype)]
    if not unconstrained:
        parts.append(add_decayed_weights(1.0, weight_decay_mask))
    return chain(*parts, descend(learning_rate))
