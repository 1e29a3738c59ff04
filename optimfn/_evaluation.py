"""The parameters to evaluate, where they are others than those that are trained."""

from typing import Any

from . import tree
from ._base import EvalParamsFn, GradientTransformation, check_transformation
from ._typing import Params, State, Tree


def eval_params(tx: Any, state: State = None, params: Params | None = None) -> Params:
    """The parameters to evaluate: what a transformation keeps beside those that it trains, else these themselves.

    `params_ema`, `params_swa`, `power_ema`, `lookahead`, `schedule_free`, `gpa` and `msam` keep such, wherever they
    stand in chains and wrappers. Of several in a chain the last decides. `Optimizer.evaluation` swaps them in and back.

    Args:
        tx: The transformation; or an `Optimizer`, alone.
        state: Its state.
        params: The parameters that it trains.

    Returns:
        A tree like `params`, in its dtypes; of a `lookahead` without `slow_in_state` the slow ones. Of an `Optimizer` a
        dict by the names of the parameters, which are untouched: copies where they are others.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.chain(of.sgd(1.0), of.params_ema(0.5)), torch.tensor([4.0])
        >>> step, state = of.make_step(tx), tx.init(params)
        >>> for _ in range(2):
        ...     params, state = step(params, state, torch.tensor([1.0]))
        >>> params, of.eval_params(tx, state, params)
        (tensor([2.]), tensor([2.5000]))
    """
    if hasattr(tx, "params_to_evaluate"):
        return tx.params_to_evaluate()
    check_transformation(tx=tx)
    return params if tx.eval_params is None else tx.eval_params(state, params)


def eval_within(inner: GradientTransformation, field: str) -> EvalParamsFn | None:
    """What a wrapper says to evaluate whose state has that of `inner` in a field."""
    of = inner.eval_params
    return None if of is None else lambda state, params: of(getattr(state, field), params)


def kept_beside(params: Params, values: Tree) -> Params:
    """Values from a state as parameters: in their dtypes, and in memory of their own."""
    return tree.map(lambda p, x: x.detach().to(p.dtype, copy=True), params, values)
