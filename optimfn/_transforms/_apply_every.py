"""Sum updates up and let them out now and then."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._checks import check_steps
from .._recipe import factory
from .._typing import Count, Params, Updates


class ApplyEvery(NamedTuple):
    """The sum so far."""

    count: Count  # () int64, updates since the last sum was let out
    grad_acc: Updates  # sum of the updates since, like params


@factory
def apply_every(k: int = 1) -> GradientTransformation:
    """Let out the sum of k updates every k steps, and zeros in between.

    Other members of the chain still work at every step, so this is no larger batch; `multi_steps` is.

    Args:
        k: Steps between sums, >= 1.

    Shapes:
        state: count () int64; grad_acc like params (float32 for float16 and bfloat16). Memory: 1 x params.
        An absent update adds nothing, and what came before it is let out all the same.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, where a NaN in the sum stays there for ever.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.apply_every(2)
        >>> first, state = tx.update(torch.tensor([1.0]), tx.init(torch.zeros(1)))
        >>> first, tx.update(torch.tensor([3.0]), state)[0]
        (tensor([0.]), tensor([4.]))
    """
    check_steps(k=k, at_least=1)

    def init(params: Params) -> ApplyEvery:
        return ApplyEvery(tree.count(params), tree.init_moment(params))

    def update(
        updates: Updates, state: ApplyEvery, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyEvery]:
        def add(acc: Tensor, g: Tensor | None) -> Tensor:
            now = torch.zeros_like(acc) if g is None else g
            return torch.where(state.count == 0, now, acc + now)

        total = tree.map(add, state.grad_acc, updates)
        out = tree.where(state.count == k - 1, total, tree.zeros_like(total))
        like = tree.map(lambda acc, g: acc if g is None else g, state.grad_acc, updates)
        return tree.cast_like(out, like), ApplyEvery((state.count + 1) % k, tree.carry(total, state.grad_acc))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)
