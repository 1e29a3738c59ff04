"""Lookahead: slow parameters that follow the fast ones."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates, check_transformation
from .._checks import check_nonnegative, check_steps, need_params
from .._evaluation import kept_beside
from .._order import Place
from .._recipe import factory
from .._typing import Assign, Params, Scalar, State, Updates


class LookaheadParams(NamedTuple):
    """Two copies of the parameters."""

    fast: Params  # the ones to compute gradients with
    slow: Params  # the ones to evaluate

    @classmethod
    def init_synced(cls, params: Params) -> "LookaheadParams":
        """Two copies of the same parameters; the slow ones in memory of their own."""
        return cls(params, tree.map(lambda p: p.clone(), params))


class LookaheadState(NamedTuple):
    """The state of the fast optimizer, and where the slow parameters are."""

    fast_state: State  # that of the fast optimizer
    steps_since_sync: Tensor  # () int64, steps since the two were equal
    slow: Params = ()  # the slow parameters, with `slow_in_state`


@factory
def lookahead(
    fast_optimizer: GradientTransformation,
    sync_period: int,
    slow_step_size: Scalar,
    reset_state: bool = False,
    *,
    slow_in_state: bool = False,
) -> GradientTransformation:
    """Every few steps, move slow parameters towards the fast ones and restart the fast ones there.

    The parameters are a `LookaheadParams`, and so are the updates, whose leaves are `Assign`; the gradients are
    those at `params.fast`, in its structure. Apply the updates as they are, and evaluate with `params.slow`. With
    `slow_in_state` the parameters are the fast ones, as in any other rule, and `state.slow` those to evaluate;
    `Optimizer` does that by itself.

    Maths:
        fast' = fast + update of the fast optimizer
        every `sync_period` steps:  slow' = slow + slow_step_size (fast' - slow),  fast' <- slow'

    Args:
        fast_optimizer: The optimizer that takes the steps.
        sync_period: Steps between two moves of the slow parameters, >= 1.
        slow_step_size: How far they move, no unit, >= 0, usually in (0, 1).
        reset_state: Start the fast optimizer anew after each move.
        slow_in_state: Keep the slow parameters in the state; they begin as copies of those that `init` gets.

    Shapes:
        updates: like `params.fast`; params: needed, a `LookaheadParams`. The result is a `LookaheadParams` too.
            With `slow_in_state` all are like params.
        state: that of `fast_optimizer`; steps_since_sync () int64; slow like params, or `()`.
        Memory: 1 x params for the slow ones.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        TypeError: in `init` and `update` if the parameters are not a `LookaheadParams`, or are with `slow_in_state`.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, whose updates are differences, so that the two do not quite meet, whose `init` takes other
        parameters too, and whose reset lets a NaN through.

    Source: Zhang et al., 2019, arXiv:1907.08610, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.lookahead(of.sgd(1.0), sync_period=1, slow_step_size=0.5)
        >>> params = of.LookaheadParams.init_synced(torch.tensor([4.0]))
        >>> updates, state = tx.update(torch.tensor([2.0]), tx.init(params), params)
        >>> of.apply_updates(params, updates)
        LookaheadParams(fast=tensor([3.]), slow=tensor([3.]))
    """
    check_transformation(fast_optimizer=fast_optimizer)
    check_steps(sync_period=sync_period, at_least=1)
    check_nonnegative(slow_step_size=slow_step_size)
    if slow_in_state:
        return _within(lookahead(fast_optimizer, sync_period, slow_step_size, reset_state), fast_optimizer)

    def init(params: LookaheadParams) -> LookaheadState:
        fast = params.part("fast") if isinstance(params, tree.ParamsPlaceholder) else _check_pair(params).fast
        return LookaheadState(fast_optimizer.init(fast), tree.count(fast))

    def update(
        updates: Updates, state: LookaheadState, params: LookaheadParams | None = None, **extra: Any
    ) -> tuple[LookaheadParams, LookaheadState]:
        need_params("lookahead", params)
        fast, slow = _check_pair(params)
        sync = state.steps_since_sync == sync_period - 1
        step, fast_state = fast_optimizer.update(updates, state.fast_state, fast, **extra)
        ahead = tree.map(_moved, fast, step)
        met = tree.lerp(slow, ahead, slow_step_size)
        if reset_state:
            fast_state = tree.where(sync, fast_optimizer.init(fast), fast_state)
        # Assigned: a sum would miss the point where they meet by a rounding, in each of the two by another.
        moved = LookaheadParams(tree.where(sync, met, ahead), tree.where(sync, met, slow))
        return tree.map(Assign, moved), LookaheadState(fast_state, (state.steps_since_sync + 1) % sync_period)

    def eval_params(state: LookaheadState, params: LookaheadParams) -> Params:
        return kept_beside(_check_pair(params).fast, params.slow)

    return GradientTransformation(init, update, eval_params=eval_params)


def _within(tx: GradientTransformation, fast: GradientTransformation) -> GradientTransformation:
    """`lookahead` of the fast parameters alone."""

    def init(params: Params) -> LookaheadState:
        _check_single(params)
        state: LookaheadState = tx.init(LookaheadParams(params, params))
        return state._replace(slow=tree.map(lambda p: p.clone(), tree.narrow(params)))

    def update(
        updates: Updates, state: LookaheadState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LookaheadState]:
        need_params("lookahead", params)
        _check_single(params)
        slow = state.slow
        moved, new = tx.rule(updates, state._replace(slow=()), LookaheadParams(params, slow), **extra)
        return moved.fast, new._replace(slow=apply_updates(slow, moved.slow))

    def eval_params(state: LookaheadState, params: Params) -> Params:
        return kept_beside(params, state.slow)

    promises: Any = {"leafwise": fast.leafwise, "elementwise": fast.elementwise}
    return GradientTransformation(init, update, eval_params=eval_params, place=Place.WHOLE, **promises)


def _check_single(params: Any) -> None:
    if isinstance(params, LookaheadParams):
        raise TypeError("lookahead with slow_in_state=True wants the fast parameters alone, got LookaheadParams")


def _moved(p: Tensor, update: Any) -> Any:
    """What an update makes of a fast parameter, in at least float32."""
    if update is None:
        return None
    wide = torch.promote_types(p.dtype, torch.float32)
    return update.value.to(wide) if type(update) is Assign else tree.cast_leaf(p, wide) + update


def _check_pair(params: Any) -> LookaheadParams:
    if not isinstance(params, LookaheadParams):
        wanted = "LookaheadParams.init_synced(params), or slow_in_state=True to keep the slow ones in its state"
        raise TypeError(f"lookahead wants its parameters as {wanted}; got {type(params)}")
    return params
