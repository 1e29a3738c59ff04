"""Apply a transformation to some leaves only."""

from typing import Any, NamedTuple

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._evaluation import eval_params as _eval_params
from .._recipe import factory
from .._typing import Mask, Params, State, Tree, Updates


class MaskedNode(NamedTuple):
    """Stands where a leaf is masked out. It has no leaves, so maps and `vmap` pass it by."""


ADVICE = (
    "Make a new state and keep what fits of the old one: "
    "load_state_dict(tx.init(params), state_dict(state), strict=False)"
)


class ChangedMask(ValueError):
    """A state was made with another mask, or other labels, than it is used with."""


class MaskedState(NamedTuple):
    """The state of the transformation inside."""

    inner_state: State  # made from the chosen leaves only


@factory
def masked(
    inner: GradientTransformation, mask: Mask, *, mask_compatible_extra_args: bool = False
) -> GradientTransformation:
    """Apply `inner` where the mask is true; elsewhere the incoming update passes through *unchanged*.

    It does not zero what it does not choose. Inside, masked-out leaves do not exist: no state is kept
    for them, and a global norm does not see them.

    Args:
        inner: The transformation to apply.
        mask: Which leaves it applies to: a tree of Python bools, a prefix of one, or a function of the
            parameters (in an `update` without parameters, of the updates) that returns either.
        mask_compatible_extra_args: Also mask those extra arguments that are shaped like the updates.

    Shapes:
        state: that of `inner` for the chosen leaves, with `MaskedNode` in place of the others.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.
        TypeError: in `init` or `update` if the mask holds something else than Python bools.
        ValueError: in `init` or `update` if the mask is not a prefix of the parameters; in `update` if it chooses
            other leaves than it did when the state was made, naming one.

    Differs from: optax, where a function is called with the updates even if there are parameters.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.masked(of.scale(10.0), {"a": True, "b": False})
        >>> updates = {"a": torch.ones(1), "b": torch.ones(1)}
        >>> tx.update(updates, tx.init(updates))[0]
        {'a': tensor([10.]), 'b': tensor([1.])}
    """
    check_transformation(inner=inner)

    def init(params: Params) -> MaskedState:
        return MaskedState(inner.init(_hide(params, tree.resolve_mask(mask, params))))

    def update(
        updates: Updates, state: MaskedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MaskedState]:
        chosen = tree.resolve_mask(mask, updates if params is None else params)
        if mask_compatible_extra_args:
            shape = tree.structure(updates)
            extra = {k: _hide(v, chosen) if tree.structure(v) == shape else v for k, v in extra.items()}
        own = _hide(updates, chosen)
        inner_params = None if params is None else _hide(params, chosen)
        try:
            inner_updates, inner_state = inner.rule(own, state.inner_state, inner_params, **extra)
        except ChangedMask:
            raise
        except Exception as problem:
            _explain(problem, inner, state.inner_state, own if params is None else inner_params)
            raise
        shown = tree.map(lambda keep, new, old: new if keep else old, chosen, inner_updates, updates)
        return shown, MaskedState(inner_state)

    def eval_params(state: MaskedState, params: Params) -> Params:
        chosen = tree.resolve_mask(mask, params)
        own = _eval_params(inner, state.inner_state, _hide(params, chosen))
        return tree.map(lambda keep, new, p: new if keep else p, chosen, own, params)

    alone = inner.leafwise and tree.sees_leaves(mask)
    said = None if inner.eval_params is None else eval_params
    return GradientTransformation(
        init, update, leafwise=alone, takes_assigned=True, eval_params=said, place=inner.place
    )


def _hide(leaves: Tree, chosen: Tree) -> Tree:
    return tree.map(lambda keep, leaf: leaf if keep else MaskedNode(), chosen, leaves)


def _explain(problem: Exception, inner: GradientTransformation, state: State, params: Params) -> None:
    """Say so if the reason of a failure is that the state was made with another mask."""
    old, new = dict(tree.walk(state)), dict(tree.walk(inner.init(params)))
    for path in old.keys() & new.keys():
        was, now = (not isinstance(nodes[path], MaskedNode) for nodes in (old, new))
        if was != now:
            names = [tree.join_path(path[start:]) for start in range(len(path))]
            known = {tree.join_path(place) for place, _ in tree.walk(params)}
            leaf = next((name for name in names if name in known), "the leaf")
            verb, did = ("choose", "did not") if now else ("do not choose", "did")
            raise ChangedMask(
                f"the mask, or the labels, {verb} {leaf}, and {did} when the state was made. {ADVICE}"
            ) from problem
