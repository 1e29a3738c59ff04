"""Matrices in a few directions: what a rule of low rank is given, and what becomes of its answer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._assign import need_steps
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_choice, check_seed, check_steps
from ..._state_spec import HostCount
from ..._typing import Params, State, Updates
from ..matrix._newton_schulz import Box, DimensionNumbers, MuonDimensionNumbers, resolve_dimensions, sides


class Left(NamedTuple):
    """Directions in which the columns of a matrix are seen."""

    basis: Tensor  # rows by rank


class Right(NamedTuple):
    """Directions in which its rows are seen."""

    basis: Tensor  # columns by rank


Basis = Left | Right | tuple[()]  # nothing of a leaf that stays as it is


class LowRankState(NamedTuple):
    """The memory of a rule that sees matrices in a few directions."""

    count: HostCount  # () int64 on the CPU, steps taken
    opt_state: State  # that of the rule, for what it sees
    basis: Any  # `Left` or `Right` directions of each matrix
    limiter: State  # that of what the answer goes through, if anything


class Answer(NamedTuple):
    """What there is of one matrix: all a way of going back may use."""

    g: Tensor  # the update, as a matrix
    low: Tensor  # what the rule saw
    step: Tensor  # what it made of it
    basis: Basis


@dataclass(frozen=True)
class Space:
    """How directions are chosen, and when."""

    rank: int
    period: int
    side: str
    by: str
    seed: int | Tensor = 0
    dims: DimensionNumbers | None = None
    period_name: str = "period"

    def __post_init__(self) -> None:
        check_steps(rank=self.rank, at_least=1)
        check_steps(**{self.period_name: self.period}, at_least=1)
        check_choice("side", self.side, ("short", "long", "left", "right"))
        check_choice("by", self.by, ("svd", "gaussian"))
        check_seed(seed=self.seed)

    def boxes(self, params: Params) -> Any:
        """Which axes of each leaf are rows, and which columns; nothing of a leaf that stays as it is."""

        def axes(p: Tensor, dims: Any) -> Box:
            given: MuonDimensionNumbers | None = dims.content
            if given is None or not p.numel():
                return Box(None)
            if given.blocks is not None:
                raise ValueError(f"blocks must be None where a leaf is one matrix, got {given.blocks}")
            batch, inputs, outputs = sides(p, given)
            if batch:
                raise ValueError(
                    f"reduction_axis and output_axis must name all axes of a leaf, got {tuple(given[:2])} for the "
                    f"shape {tuple(p.shape)}"
                )
            return Box((outputs, inputs))

        return tree.map(axes, params, resolve_dimensions(self.dims, params))

    def start(self, params: Params) -> tuple[Params, Any]:
        """What the rule is made for, and bases that are not chosen yet."""
        boxes = self.boxes(params)
        bases = tree.map(self._empty, params, boxes)

        def low(p: Tensor, basis: Basis, box: Box) -> Tensor:
            if not basis:
                return p
            rows, cols = _sizes(p, box)
            rank = basis.basis.shape[1]
            shape = (rank, cols) if isinstance(basis, Left) else (rows, rank)
            return torch.zeros(shape, dtype=p.dtype, device=p.device)

        return tree.map(low, params, bases, boxes), bases

    def fresh(self, kept: Any, flat: Updates, count: Tensor) -> Any:
        """New bases for updates that are matrices; that of a leaf without one stays."""
        if self.by == "gaussian":
            key = tree.fold_in(self.seed, torch.div(count, self.period, rounding_mode="floor"))
            return tree.map(lambda x: x / math.sqrt(x.shape[1]), tree.random_like(key, kept))
        found = dict(tree.leaves_with_path(tree.stop_gradient(flat)))

        def change(path: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
            is_basis = isinstance(node, Left | Right)
            return is_basis, _leading(found[path], node) if is_basis and path in found else node

        return tree.map_nodes(change, kept)

    def _empty(self, p: Tensor, box: Box) -> Basis:
        if box.content is None:
            return ()
        rows, cols = _sizes(p, box)
        rank = min(self.rank, rows, cols)
        is_left = self.side == "left" or (self.side != "right" and (rows >= cols) == (self.side == "long"))
        dtype = torch.promote_types(p.dtype, torch.float32)
        basis = torch.zeros((rows if is_left else cols, rank), dtype=dtype, device=p.device)
        return Left(basis) if is_left else Right(basis)


def _sizes(x: Tensor, box: Box) -> tuple[int, int]:
    """Rows and columns of the matrix that a leaf stands for."""
    assert box.content is not None
    rows, cols = (math.prod([x.shape[axis] for axis in axes]) for axes in box.content)
    return rows, cols


def _matrix(x: Tensor, box: Box) -> Tensor:
    """A leaf as a matrix, outputs by inputs, whole."""
    if box.content is None:
        return x
    whole: Tensor = tree.whole(x)
    return whole.permute(box.content[0] + box.content[1]).reshape(_sizes(x, box))


def _leaf(x: Tensor, like: Tensor, box: Box) -> Tensor:
    """The leaf that a matrix stands for."""
    if box.content is None:
        return x
    order = box.content[0] + box.content[1]
    moved = x.reshape([like.shape[axis] for axis in order])
    return moved.permute([order.index(axis) for axis in range(like.ndim)])


def _leading(g: Tensor, kept: Left | Right) -> Left | Right:
    """The leading singular vectors, in single precision as in the authors' code: which they are, not their digits."""
    single = tree.cast_leaf(g, torch.complex64 if g.is_complex() else torch.float32)
    finite = torch.where(torch.isfinite(single), single, 0)  # LAPACK raises on others
    u, _, vh = torch.linalg.svd(finite, full_matrices=False)
    rank = kept.basis.shape[1]
    return Left(u[:, :rank]) if isinstance(kept, Left) else Right(_adjoint(vh[:rank]))


def down(g: Tensor, basis: Basis) -> Tensor:
    """The matrix in the directions of its basis."""
    if isinstance(basis, Left):
        return _adjoint(basis.basis) @ tree.cast_leaf(g, basis.basis.dtype)
    return tree.cast_leaf(g, basis.basis.dtype) @ basis.basis if isinstance(basis, Right) else g


def up(low: Tensor, basis: Basis) -> Tensor:
    """The matrix that lies in the directions of a basis."""
    if isinstance(basis, Left):
        return basis.basis @ tree.cast_leaf(low, basis.basis.dtype)
    return tree.cast_leaf(low, basis.basis.dtype) @ _adjoint(basis.basis) if isinstance(basis, Right) else low


def _adjoint(x: Tensor) -> Tensor:
    return torch.conj_physical(x.transpose(-1, -2))  # no view that is still to be resolved: it rests in the state


def in_low_rank(
    rule: GradientTransformation,
    space: Space,
    back: Callable[[Answer], Tensor],
    limiter: GradientTransformation,
    whole: Callable[[Answer, Tensor], Tensor],
) -> GradientTransformation:
    """Show a rule each matrix in a few directions.

    `back` makes the part of the answer that goes through the limiter, and `whole` of that and the rest the answer.
    """
    check_transformation(rule=rule)

    def init(params: Params) -> LowRankState:
        low, bases = space.start(params)
        return LowRankState(tree.host_count(params), rule.init(low), bases, limiter.init(params))

    def update(
        updates: Updates, state: LowRankState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LowRankState]:
        boxes = space.boxes(updates)
        flat = tree.map(_matrix, updates, boxes)
        basis = tree.every(space.period, state.count, space.fresh, state.basis, flat, state.count)
        low = tree.map(lambda g, b: tree.cast_leaf(down(g, b), g.dtype), flat, basis)
        step, opt_state = rule.rule(low, state.opt_state, None, **extra)
        step = need_steps("project", step)
        # None where a leaf stays as it is, which the limiter passes by.
        answers = tree.map(lambda g, low, u, b: Answer(g, low, u, b) if b else None, flat, low, step, basis)
        part = tree.map(lambda g, a: None if a is None else back(a), flat, answers)
        part, limiter_state = limiter.rule(part, state.limiter)
        full = tree.map(lambda u, a, x: u if a is None else whole(a, x), step, answers, part)
        found = tree.map(lambda g, x, box: _leaf(x, g, box), updates, full, boxes)
        return tree.carry(found, updates), LowRankState(state.count + 1, opt_state, basis, limiter_state)

    return GradientTransformation(init, update, leafwise=space.dims is None and rule.leafwise)
