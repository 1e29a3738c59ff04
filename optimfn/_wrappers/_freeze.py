"""Leave some parameters as they are."""

from .. import tree
from .._base import GradientTransformation, chain, check_transformation, set_to_zero
from .._recipe import factory
from .._typing import Mask, Params, Tree
from ._masked import masked


@factory
def freeze(mask: Mask) -> GradientTransformation:
    """Replace the updates by zeros where the mask is true; elsewhere they pass unchanged.

    Put it last. Rules before it still keep states for the frozen leaves; `selective_transform` does not.

    Args:
        mask: Which leaves are frozen: a bool, a tree of Python bools, a prefix of one, or a function of the parameters.

    Shapes:
        state: empty.

    Raises:
        TypeError: in `init` or `update` if the mask holds something else than Python bools.

    Example:
        >>> import torch, optimfn as of
        >>> tx, grads = of.freeze({"a": True, "b": False}), {"a": torch.ones(1), "b": torch.ones(1)}
        >>> tx.update(grads, tx.init(grads))[0]
        {'a': tensor([0.]), 'b': tensor([1.])}
    """
    return masked(set_to_zero(), mask)


@factory
def selective_transform(optimizer: GradientTransformation, *, freeze_mask: Mask) -> GradientTransformation:
    """Apply `optimizer` to the leaves that are not frozen, and give the frozen ones zeros.

    Frozen leaves have no state, and a global norm inside does not see them.

    Args:
        optimizer: The transformation of the other leaves.
        freeze_mask: Which leaves are frozen: a bool, a tree of Python bools, a prefix of one, or a function of the
            parameters.

    Shapes:
        state: that of `masked(optimizer, ...)`, and an empty one.

    Raises:
        TypeError: at construction if `optimizer` is not a `GradientTransformation`.
        TypeError: in `init` or `update` if the mask holds something else than Python bools.

    Differs from: optax in the layout of the state, which there is that of `partition`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.selective_transform(of.sgd(1.0), freeze_mask={"a": True, "b": False})
        >>> grads = {"a": torch.ones(1), "b": torch.ones(1)}
        >>> tx.update(grads, tx.init(grads))[0]
        {'a': tensor([0.]), 'b': tensor([-1.])}
    """
    check_transformation(optimizer=optimizer)

    def trained(params: Params) -> Tree:
        return tree.map(lambda frozen: not frozen, tree.resolve_mask(freeze_mask, params))

    return chain(masked(optimizer, trained), freeze(freeze_mask))
