"""Treat a complex leaf as the pair of reals that it is."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import becomes
from .._base import GradientTransformation, check_transformation
from .._evaluation import eval_params as _eval_params
from .._recipe import factory
from .._typing import Assign, Params, State, Updates
from ..tree import SplitRealAndImaginaryArrays as SplitRealAndImaginaryArrays


class SplitRealAndImaginaryState(NamedTuple):
    """The state of the transformation inside."""

    inner_state: State  # made from leaves whose last axis holds real and imaginary part


@factory
def split_real_and_imaginary(inner: GradientTransformation) -> GradientTransformation:
    """Apply `inner` to the real and imaginary parts of complex leaves, as if they were separate parameters.

    Most rules here measure a complex number by its magnitude. Behind this wrapper they treat its two parts
    as torch.optim does, independently. Masks and labels inside that are functions see the complex leaves themselves.

    Args:
        inner: The transformation to apply.

    Shapes:
        updates, params: any leaves; a complex one reaches `inner` as two real ones of its shape, `real` and
            `imaginary` in a `SplitRealAndImaginaryArrays`. A mask or labels that are a tree have one value for both.
        state: that of `inner` for these leaves.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.

    Differs from: optax.contrib, where masks and labels must be made for the real leaves.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.split_real_and_imaginary(of.clip(1.0))
        >>> tx.update(torch.tensor([3 + 0.5j]), tx.init(torch.ones(1)))[0]
        tensor([1.+0.5000j])
    """
    check_transformation(inner=inner)

    def init(params: Params) -> SplitRealAndImaginaryState:
        parts = tree.split_parts(params, params)
        state = SplitRealAndImaginaryState(inner.init(parts))
        tree.forget(parts)
        return state

    def update(
        updates: Updates, state: SplitRealAndImaginaryState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SplitRealAndImaginaryState]:
        like = _like(updates, state.inner_state) if params is None else params
        own = None if params is None else tree.split_parts(params, params)
        given = tree.split_parts(updates, like)
        parts, inner_state = inner.update(given, state.inner_state, own, **extra)
        tree.forget((given, own))
        joined = tree.map(lambda u, part, p: _of_parts(u, part, p), updates, parts, like)
        return joined, SplitRealAndImaginaryState(inner_state)

    def eval_params(state: SplitRealAndImaginaryState, params: Params) -> Params:
        own = tree.split_parts(params, params)
        parts = _eval_params(inner, state.inner_state, own)
        tree.forget(own)
        return tree.map(lambda p, part: _of_parts(p, part, p), params, parts)

    said = None if inner.eval_params is None else eval_params
    return GradientTransformation(
        init, update, leafwise=inner.leafwise, elementwise=inner.elementwise, eval_params=said
    )


def _like(updates: Updates, state: State) -> Updates:
    """The updates; where one is absent, a complex number in its place if the state has two parts for it."""
    parts = [path for path, node in tree.walk(state) if isinstance(node, SplitRealAndImaginaryArrays)]

    def leaf(path: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
        absent = node is None and any(own[len(own) - len(path) :] == path for own in parts)
        return absent, torch.zeros((), dtype=torch.complex64) if absent else None

    return tree.map_nodes(leaf, updates) if parts else updates


def _of_parts(update: Tensor, parts: Any, param: Any) -> Any:
    """The complex update of two real ones."""
    if not isinstance(parts, SplitRealAndImaginaryArrays):
        return parts
    if not any(type(part) is Assign for part in parts):
        return None if parts.real is None else torch.complex(*parts)
    assert param is not None
    real, imaginary = tree.as_real(param).unbind(-1)
    return Assign(torch.complex(becomes(real, parts.real), becomes(imaginary, parts.imaginary)))


@factory
def through_pairs(inner: GradientTransformation) -> GradientTransformation:
    """Apply `inner` to real leaves with a last axis of two in the place of complex ones, as the classes of torch do."""
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

    def eval_params(state: SplitRealAndImaginaryState, params: Params) -> Params:
        return tree.map(_joined, params, _eval_params(inner, state.inner_state, tree.as_reals(params)))

    said = None if inner.eval_params is None else eval_params
    return GradientTransformation(
        init, update, leafwise=inner.leafwise, elementwise=inner.elementwise, eval_params=said
    )


def _joined(like: Tensor, part: Any) -> Any:
    if part is None:
        return None
    return Assign(_joined(like, part.value)) if type(part) is Assign else tree.as_complex(part, like)
