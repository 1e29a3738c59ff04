"""Treat a complex leaf as the pair of reals that it is."""

from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._recipe import factory
from .._typing import Assign, Params, State, Updates


class SplitRealAndImaginaryState(NamedTuple):
    """The state of the transformation inside."""

    inner_state: State  # made from leaves whose last axis holds real and imaginary part


@factory
def split_real_and_imaginary(inner: GradientTransformation) -> GradientTransformation:
    """Apply `inner` to the real and imaginary parts of complex leaves, as if they were separate parameters.

    Most rules here measure a complex number by its magnitude. Behind this wrapper they treat its two parts
    as torch.optim does, independently. Masks and labels inside that are functions see the complex leaves themselves: a
    complex bias is no matrix. Rules that look at axes, such as factored moments, see one more, of two.

    Args:
        inner: The transformation to apply.

    Shapes:
        updates, params: any leaves; a complex one of shape `s` reaches `inner` as a real one of shape `(*s, 2)`.
        state: that of `inner` for these leaves.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.

    Differs from: optax.contrib, which gives `inner` two leaves for each complex one.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.split_real_and_imaginary(of.clip(1.0))
        >>> tx.update(torch.tensor([3 + 0.5j]), tx.init(torch.ones(1)))[0]
        tensor([1.+0.5000j])
    """
    check_transformation(inner=inner)

    def init(params: Params) -> SplitRealAndImaginaryState:
        return SplitRealAndImaginaryState(inner.init(tree.as_reals(params)))

    def update(
        updates: Updates, state: SplitRealAndImaginaryState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SplitRealAndImaginaryState]:
        real_params = None if params is None else tree.as_reals(params)
        parts, inner_state = inner.update(tree.as_reals(updates), state.inner_state, real_params, **extra)
        joined = tree.map(_joined, updates, parts)
        return joined, SplitRealAndImaginaryState(inner_state)

    return GradientTransformation(init, update, leafwise=inner.leafwise)


def _joined(like: Tensor, part: Any) -> Any:
    if part is None:
        return None
    return Assign(_joined(like, part.value)) if type(part) is Assign else tree.as_complex(part, like)
