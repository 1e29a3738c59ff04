"""Sharpness-aware minimisation: the gradient of a point uphill, for any optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._assign import need_steps
from .._base import GradientTransformation, apply_updates, check_transformation
from .._checks import check_steps, need_params
from .._evaluation import eval_params as _eval_params
from .._order import Place, check_descends
from .._recipe import factory
from .._typing import Params, State, Updates


class SAMState(NamedTuple):
    """Where the optimizer is, and on which step of its climb."""

    steps_since_sync: Tensor  # () int64, steps of this climb taken
    opt_state: State  # that of the optimizer
    adv_state: State  # that of the optimizer that climbs
    cache: Params  # the parameters at the foot of the climb, like params; nothing in opaque mode


@factory
def sam(
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
) -> GradientTransformation:
    """Climb for `sync_period - 1` steps, and let the optimizer step from the foot with the gradient of the top.

    `adv_optimizer` is a descent, which is turned round: `chain(normalize(), sgd(0.05))` is that of the paper.

    In the transparent mode every call of `update` is a step of the climb or down, and the parameters go along: give the
    gradient wherever they are. Evaluate after a step down. In the opaque mode each call does all, and asks for further
    gradients: `tx.update(grads, state, params, grad_fn=f)` with `f(params, i)` the gradient for the climb's step `i`;
    the closure of an `Optimizer` is enough. The optimizer then gets the gradient at the foot too, as `foot_grads`.

    Maths:
        at the steps 0 ... k - 2 of a period of k:  update <- -(update of adv_optimizer)
        at the step k - 1:  update <- foot - p + update of optimizer, at the foot with the gradient at p

    Args:
        optimizer: The optimizer that steps down.
        adv_optimizer: The optimizer that climbs, as a descent.
        sync_period: Steps of a climb and the one down, >= 1; 1 is the optimizer alone.
        reset_state: Start the climbing optimizer anew after each step down.
        opaque_mode: Whether a call does the whole climb.

    Shapes:
        params: needed. state: those of both optimizers; cache like params, or `()`. Memory: 1 x params if transparent.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or neither `grad_fn` nor `value_and_grad_fn` in the opaque
            mode.

    Differs from: optax, which has a `batch_axis_name`, where here `grad_fn` averages over the batch; whose period of 1
        goes back to where it was; and which takes no other extra arguments.

    Source: Foret et al., 2020, arXiv:2010.01412, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.sam(of.sgd(0.5), of.chain(of.normalize(), of.sgd(1.0)), opaque_mode=True)
        >>> w = torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, grad_fn=lambda w, i: 2 * w)[0]
        tensor([-3.])
    """
    check_transformation(optimizer=optimizer, adv_optimizer=adv_optimizer)
    check_descends(optimizer=optimizer, adv_optimizer=adv_optimizer)
    check_steps(sync_period=sync_period, at_least=1)

    def init(params: Params) -> SAMState:
        cache = () if opaque_mode else tree.keep(params, params)
        return SAMState(tree.count(params), optimizer.init(params), adv_optimizer.init(params), cache)

    def climb(updates: Updates, state: State, params: Params | None, extra: dict[str, Any]) -> tuple[Updates, State]:
        step, state = adv_optimizer.rule(updates, state, params, **extra)
        return tree.scale(-1.0, step), state

    def transparent(
        updates: Updates, state: SAMState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SAMState]:
        need_params("sam", params)
        first, last = state.steps_since_sync == 0, state.steps_since_sync == sync_period - 1
        foot = tree.where(first, tree.keep(params, params), state.cache)
        up, adv_state = climb(updates, state.adv_state, params, extra)
        down, opt_state = optimizer.rule(updates, state.opt_state, foot, **extra)
        down = need_steps("sam", down)
        down = tree.map(lambda u, f, p: tree.cast_leaf(f - p + u, u.dtype), down, foot, params)
        restart = adv_optimizer.init(params) if reset_state else state.adv_state
        return tree.where(last, down, up), SAMState(
            (state.steps_since_sync + 1) % sync_period,
            tree.where(last, opt_state, state.opt_state),
            tree.where(last, restart, adv_state),
            foot,
        )

    def opaque(
        updates: Updates,
        state: SAMState,
        params: Params | None = None,
        *,
        grad_fn: Callable[[Params, int], Updates] | None = None,
        **extra: Any,
    ) -> tuple[Updates, SAMState]:
        need_params("sam", params)
        gradient = gradient_of("sam in opaque mode", grad_fn, extra)
        foot, at, adv_state = updates, params, state.adv_state
        for i in range(sync_period - 1):
            up, adv_state = climb(updates, adv_state, at, extra)
            at = apply_updates(at, up)
            updates = tree.cast_like(gradient(at, i), updates)
        step, opt_state = optimizer.rule(updates, state.opt_state, params, **{**extra, "foot_grads": foot})
        adv_state = adv_optimizer.init(params) if reset_state else adv_state
        return step, SAMState(state.steps_since_sync, opt_state, adv_state, ())

    def eval_params(state: SAMState, params: Params) -> Params:
        if not opaque_mode:  # they may be up the climb
            params = tree.cast_like(tree.where(state.steps_since_sync == 0, params, state.cache), params)
        return _eval_params(optimizer, state.opt_state, params)

    step, said = (opaque, optimizer.eval_params and eval_params) if opaque_mode else (transparent, eval_params)
    return GradientTransformation(init, step, eval_params=said, place=Place.WHOLE)


def gradient_of(
    who: str, grad_fn: Callable[[Params, int], Updates] | None, extra: Mapping[str, Any]
) -> Callable[[Params, int], Updates]:
    """The function that gives gradients at other parameters: `grad_fn`, or half of what a closure was made into.

    Raises:
        ValueError: if there is neither.
    """
    if grad_fn is not None:
        return grad_fn
    both = extra.get("value_and_grad_fn")
    if both is None:
        raise ValueError(
            f"{who} needs gradients elsewhere: call tx.update(updates, state, params, grad_fn=f), "
            "or Optimizer.step with a closure"
        )
    return lambda at, step: both(at)[1]
