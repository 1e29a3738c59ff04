"""Functions that mark the leaves of a tree: by shape, by predicate, by name.

Their results go wherever a mask or labels are asked for. They are called on the parameters, so the
same one serves every model.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from .._checks import check_callable, check_steps
from .._hints import shown
from .._recipe import Recorded, factory
from .._typing import Mask, Params, Tree
from ._core import ParamsPlaceholder, broadcast, join_path, leaves, leaves_with_path, map, paths
from ._views import resolve


def is_matrix(params: Params) -> Tree:
    """Mark the leaves with two or more axes: weights, but no biases, norms or gains.

    A convolution kernel counts, as a stack of matrices. The usual mask for weight decay.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.is_matrix({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
        {'weight': True, 'bias': False}
    """
    return map(lambda p: p.ndim >= 2, params)


@factory
def mask_by(predicate: Callable[[Tensor], bool]) -> Callable[[Params], Tree]:
    """Make a mask of the leaves for which a predicate holds.

    Args:
        predicate: Function of one leaf, which it is given itself, however a step runs: it may look at `requires_grad`,
            at attributes, at the class. It is asked in every step.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.mask_by(lambda p: p.numel() > 2)({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
        {'weight': True, 'bias': False}
    """
    check_callable(predicate=predicate)
    return lambda params: map(lambda p: bool(predicate(p)), params)


@factory
def mask_by_path(pattern: str) -> Callable[[Params], Tree]:
    r"""Make a mask of the leaves whose path contains a match of a regular expression.

    Args:
        pattern: Searched for in paths such as `layers.0.bias`; anchor it with `^` and `$` if need be.

    Raises:
        re.error: if `pattern` is not a regular expression.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.mask_by_path(r"\.bias$")({"head": {"weight": torch.ones(2), "bias": torch.ones(2)}})
        {'head': {'weight': False, 'bias': True}}
    """
    regex = _compiled(pattern)
    return lambda params: map(lambda path: regex.search(path) is not None, paths(params))


@factory
def label_by(labeller: Callable[[Tensor], str]) -> Callable[[Params], Tree]:
    """Make labels with a function of the leaf.

    Args:
        labeller: Function of one leaf, which it is given itself, however a step runs, and in every step.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.label_by(lambda p: f"{p.ndim}d")({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
        {'weight': '2d', 'bias': '1d'}
    """
    check_callable(labeller=labeller)
    return lambda params: map(labeller, params)


@factory
def label_by_path(patterns: Mapping[str, str], default: str) -> Callable[[Params], Tree]:
    """Make labels with regular expressions on the path; the first that matches decides.

    Args:
        patterns: Label for each regular expression, tried in order.
        default: Label of the leaves that none matches.

    Raises:
        re.error: if a pattern is not a regular expression.

    Example:
        >>> import torch, optimfn as of
        >>> labels = of.tree.label_by_path({"^head": "new"}, default="pretrained")
        >>> labels({"body": torch.ones(1), "head": torch.ones(1)})
        {'body': 'pretrained', 'head': 'new'}
    """
    if not isinstance(patterns, Mapping):
        raise TypeError(f"patterns must be a dict from regular expressions to labels, got {shown(patterns)}")
    compiled = [(_compiled(pattern), label) for pattern, label in patterns.items()]

    def label(path: str) -> str:
        return next((label for pattern, label in compiled if pattern.search(path)), default)

    return lambda params: map(label, paths(params))


@factory
def label_by_layer(pattern: str, layers: int, first: str = r"embed|stem|cls_token") -> Callable[[Params], Tree]:
    r"""Make labels of the number of a layer, for learning rates that fall toward the input: layer-wise rate decay.

    The labels are "0" for what is `first`, "1" to `layers` for the layers, and `layers + 1` for all else, the head. The
    usual rate of a layer is that of the head times a decay to the power of its distance from it, as below.

    Args:
        pattern: Regular expression on the path with one group, the number of the layer, counted from 0.
        layers: How many there are, >= 1.
        first: Regular expression on the paths of what comes before the layers.

    Raises:
        TypeError, ValueError: at construction for `layers`, or if the pattern has no group; with parameters, if it
            finds a layer that is not below `layers`.
        re.error: if a pattern is not a regular expression.

    Example:
        >>> import torch, optimfn as of
        >>> labels = of.tree.label_by_layer(r"blocks\.(\d+)", layers=2)
        >>> params = {"embed": torch.ones(1), "blocks": [torch.ones(1), torch.ones(1)], "head": torch.ones(1)}
        >>> tx = of.partition({str(i): of.sgd(0.5 ** (3 - i)) for i in range(4)}, labels)
        >>> tx.update(params, tx.init(params))[0]["blocks"]
        [tensor([-0.2500]), tensor([-0.5000])]
    """
    check_steps(layers=layers, at_least=1)
    found, before = _compiled(pattern), _compiled(first)
    if found.groups < 1:
        raise ValueError(
            f"pattern must have a group for the number of the layer, as in r'blocks\\.(\\d+)', got {pattern!r}"
        )

    def label(path: str) -> str:
        match = found.search(path)
        if match is None:
            return "0" if before.search(path) else str(layers + 1)
        if int(match[1]) >= layers:
            raise ValueError(f"layers must be above the number of every layer, got {layers} and {path}")
        return str(int(match[1]) + 1)

    return lambda params: map(label, paths(params))


def _compiled(pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        several = ': for several give "one|another"' if isinstance(pattern, list | tuple) else ""
        raise TypeError(f"pattern must be the text of a regular expression, got {shown(pattern)}{several}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise re.error(f"{pattern!r} is no regular expression, {error.msg}", pattern, error.pos) from error


def looks_at_shapes_only(function: Callable[[Params], Tree]) -> bool:
    """Whether a mask or labels are known to depend on the shapes and paths of leaves alone."""
    recipe = getattr(function, "recipe", None)
    return function is is_matrix or (
        recipe is not None and recipe.factory in (mask_by_path, label_by_path, label_by_layer)
    )


def sees_leaves(marks: object) -> bool:
    """Whether a mask, or labels, are known to judge each leaf by itself, by what it is and what it is called."""
    if marks is None or isinstance(marks, bool | str) or marks is is_matrix:
        return True
    return isinstance(marks, Recorded) and marks.recipe is not None and marks.recipe.factory in _MAKERS


_MAKERS = (mask_by, mask_by_path, label_by, label_by_path)


def resolve_mask(mask: Mask, params: Params) -> Tree:
    """The tree of bools that a mask stands for: a function is called, a prefix is spread over its subtrees.

    A tree is one also if its class can be called, as long as optree knows the class.

    Raises:
        TypeError: if a leaf of the mask is not a Python bool.
        ValueError: if the mask is not a prefix of the parameters.
    """
    if isinstance(params, ParamsPlaceholder):  # a mask is about leaves, and here there are none yet
        return broadcast(True, params)
    mask = resolve(mask, params)
    if not all(isinstance(value, bool) for value in leaves(mask)):
        path, value = next((path, value) for path, value in leaves_with_path(mask) if not isinstance(value, bool))
        place = f" at {join_path(path)}" if path else ""
        raise TypeError(f"mask must hold Python bools, since it is static; got {value!r}{place}")
    try:
        return broadcast(mask, params)
    except ValueError as error:
        raise ValueError(f"mask is no prefix of the parameters: {error}") from error


def select(mask: Mask | None, params: Params) -> Params:
    """The leaves that a mask marks, and `None` in place of the others; all of them if the mask is `None`."""
    if mask is None:
        return params
    return map(lambda p, keep: p if keep else None, params, resolve_mask(mask, params))
