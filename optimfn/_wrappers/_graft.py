"""The length of one rule's step in the direction of another's."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import need_steps
from .._base import GradientTransformation, check_transformation
from .._order import Place, check_directions
from .._recipe import factory
from .._typing import Params, State, Updates


class GraftState(NamedTuple):
    """The states of both rules."""

    norm_state: State  # that of the rule that gives the norm
    direction_state: State  # that of the rule that gives the direction


@factory
def graft(norm_of: GradientTransformation, direction_of: GradientTransformation) -> GradientTransformation:
    """Step in the direction of one rule, as far as another goes, leaf by leaf.

    It carries the learning rate of a known rule over to a new one. Put it before the learning rate and decay.

    Maths:
        update <- d |n| / |d|,  n and d what the two rules make of the same gradient;  0 where d is

    Args:
        norm_of: The rule that gives the norm of each leaf.
        direction_of: The rule that gives its direction.

    Shapes:
        state: those of both rules.

    Raises:
        TypeError: at construction if an argument is not a `GradientTransformation`.
        ValueError: at construction if one of them has decay behind its rule, or only one has a learning rate.

    Source: Agarwal et al., 2020, arXiv:2002.11803.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.graft(of.identity(), of.scale_by_sign())
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.ones(2)))[0]
        tensor([3.5355, 3.5355])
    """
    check_transformation(norm_of=norm_of, direction_of=direction_of)
    check_directions(norm_of=norm_of, direction_of=direction_of)

    def init(params: Params) -> GraftState:
        return GraftState(norm_of.init(params), direction_of.init(params))

    def update(
        updates: Updates, state: GraftState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, GraftState]:
        n, norm_state = norm_of.rule(updates, state.norm_state, params, **extra)
        d, direction_state = direction_of.rule(updates, state.direction_state, params, **extra)
        found = grafted(need_steps("graft", d), need_steps("graft", n))
        return found, GraftState(norm_state, direction_state)

    return GradientTransformation(init, update, leafwise=norm_of.leafwise and direction_of.leafwise, place=Place.RULE)


def grafted(direction: Updates, like: Updates) -> Updates:
    """Each leaf of a tree as long as that of another; zero where it is."""

    def leaf(d: Tensor, size: Tensor, wanted: Tensor) -> Any:
        return tree.scale(wanted / torch.where(size == 0, 1.0, size), d)

    return tree.map(leaf, direction, tree.norms(direction, wide=True), tree.norms(like, wide=True))
