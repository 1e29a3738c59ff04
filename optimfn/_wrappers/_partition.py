"""Route the leaves of a tree to different transformations."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import _hints, tree
from .._base import GradientTransformation, check_transformation
from .._evaluation import eval_params as _eval_params
from .._recipe import factory
from .._typing import Params, State, Tree, Updates
from ._masked import ADVICE, ChangedMask, masked


class PartitionState(NamedTuple):
    """The states of the transformations, by label."""

    inner_states: dict[str, State]  # each a `MaskedState`, made from the leaves with that label only


@factory
def partition(
    transforms: Mapping[str, GradientTransformation],
    param_labels: Tree | Callable[[Params], Tree],
    *,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformation:
    """Give every leaf to the transformation of its label: Muon for the matrices, AdamW for the rest.

    Each transformation sees the leaves with its label and no others: a global norm in it is theirs.

    Args:
        transforms: A transformation for each label; one that no leaf has is allowed.
        param_labels: The labels: a tree of them, a prefix of one, or a function of the parameters (in an
            `update` without parameters, of the updates) that returns either, such as `tree.label_by_path`.
        mask_compatible_extra_args: Also split those extra arguments that are shaped like the updates.

    Shapes:
        state: that of each transformation for its leaves, with `MaskedNode` in place of the others.

    Raises:
        TypeError: at construction if a value of `transforms` is not a `GradientTransformation`.
        ValueError: in `init` or `update` if a label has no transformation, naming it and the leaf; in
            `update` if a leaf has another label than it had when the state was made, naming the leaf.

    Differs from: optax, where a function is called with the updates even if there are parameters, and
        unknown labels are found by `init` only.

    Example:
        >>> import torch, optimfn as of
        >>> labels = of.tree.label_by_path({"bias$": "slow"}, default="fast")
        >>> tx = of.partition({"fast": of.sgd(1.0), "slow": of.sgd(0.1)}, labels)
        >>> updates = {"weight": torch.ones(1), "bias": torch.ones(1)}
        >>> tx.update(updates, tx.init(updates))[0]
        {'weight': tensor([-1.]), 'bias': tensor([-0.1000])}
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f"transforms must be a dict from labels to transformations, got {_hints.shown(transforms)}")
    check_transformation(**{f"transforms[{label!r}]": member for label, member in transforms.items()})

    def members(params: Params) -> dict[str, GradientTransformation]:
        if isinstance(params, tree.ParamsPlaceholder):  # which holds no leaves to label
            return {label: masked(member, True) for label, member in transforms.items()}
        labels = resolve_labels(transforms, param_labels, params)
        return {
            label: masked(
                member,
                tree.map(lambda own, label=label: own == label, labels),
                mask_compatible_extra_args=mask_compatible_extra_args,
            )
            for label, member in transforms.items()
        }

    def init(params: Params) -> PartitionState:
        return PartitionState({label: member.init(params) for label, member in members(params).items()})

    def update(
        updates: Updates, state: PartitionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PartitionState]:
        states = {}
        if state.inner_states.keys() != transforms.keys():
            parts = ", ".join(map(repr, state.inner_states))
            raise ChangedMask(
                f"the state has parts for {parts}, transforms has {', '.join(map(repr, transforms))}. {ADVICE}"
            )
        for label, member in members(updates if params is None else params).items():
            updates, states[label] = member.rule(updates, state.inner_states[label], params, **extra)
        return updates, PartitionState(states)

    def eval_params(state: PartitionState, params: Params) -> Params:
        for label, member in members(params).items():
            params = _eval_params(member, state.inner_states[label], params)
        return params

    said = eval_params if any(member.eval_params for member in transforms.values()) else None
    alone = tree.sees_leaves(param_labels) and all(member.leafwise for member in transforms.values())
    return GradientTransformation(init, update, leafwise=alone, takes_assigned=True, eval_params=said)


def resolve_labels(
    transforms: Mapping[str, GradientTransformation], param_labels: Tree | Callable[[Params], Tree], params: Params
) -> Tree:
    """The tree of labels for these parameters, each of which has a transformation."""
    given = tree.resolve(param_labels, params)
    try:
        labels = tree.broadcast(given, params)
    except ValueError as error:
        raise ValueError(f"param_labels is no prefix of the parameters: {error}") from error
    for path, label in tree.leaves_with_path(labels):
        if label not in transforms:
            known = ", ".join(map(repr, transforms))
            raise ValueError(f"{tree.join_path(path)} has the label {label!r}, transforms has only {known}")
    return labels
