"""Parameters that stay in a set, exactly."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import tree
from .._base import GradientTransformation, apply_updates, stateless
from .._checks import check_callable, need_params
from .._order import Place
from .._recipe import factory
from .._typing import Assign, Params, Tree, Updates


@factory
def keep_params_in(projection: Callable[[Params], Tree]) -> GradientTransformation:
    """Move what a step makes of the parameters to the nearest point of a set, exactly: the last of a chain.

    Behind `sgd` this is the projected gradient method, and behind `adam` a sound one for sets of bounds on single
    elements. It is none behind steps that mix elements, as those of `lbfgs`: at a face of the set they may stand still
    or climb.

    Maths:
        p <- projection(p + u)

    Args:
        projection: A pure function from the parameters to the nearest tree in the set, like `projection_non_negative`,
            or `functools.partial(projection_box, lower=0.0, upper=1.0)`.

    Shapes:
        params: needed. state: empty.
        The update is an `Assign`, also where one comes in. A leaf without update stays as it is, and the projection
        does not see it. The set is that of float32 for float16 and bfloat16, to which the result is rounded.

    Raises:
        TypeError: at construction if `projection` is not callable.
        ValueError: in `update` if no parameters are given.

    Source: Bertsekas, 1976, On the Goldstein-Levitin-Polyak gradient projection method.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.sgd(0.5), of.keep_params_in(of.projection_simplex))
        >>> p = torch.tensor([0.5, 0.5])
        >>> of.apply_updates(p, tx.update(torch.tensor([1.0, 4.0]), tx.init(p), p)[0])
        tensor([1., 0.])
    """
    check_callable(projection=projection)

    def keep(updates: Updates, params: Params | None) -> Updates:
        need_params("keep_params_in", params)
        moved = tree.map(
            lambda p, u, new: None if _is_absent(u) else new, params, updates, apply_updates(params, updates)
        )
        return tree.map(Assign, projection(moved))

    return replace(stateless(keep), takes_assigned=True, place=Place.LAST)


def _is_absent(update: Any) -> bool:
    return update is None or (type(update) is Assign and update.value is None)
