"""Write the leaves of one tree into those of another, all or nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._checks import plain
from .._rows import Replaced
from .._torch import are_cut, foreach_copy_
from .._typing import Tree
from ._spans import Taken, overlaps_itself, share_elements, span


def overwrite(old: Tree, new: Tree) -> None:
    """Copy every leaf of `new` into the leaf of `old` in its place.

    Everything that can be wrong is found before the first write. A new leaf that shares memory with an old
    one, as when a state keeps the previous parameters, is set aside first.

    Raises:
        ValueError: if the trees differ in structure, or a leaf in shape or dtype; if the memory of two old leaves
            overlaps, or that of one leaf with itself, in which case something could not keep its value; or if an
            old leaf was made in inference mode and that is over.
    """
    if tree.structure(old) != tree.structure(new):
        raise ValueError(f"the new tree has another structure: {tree.structure(new)} instead of {tree.structure(old)}")
    targets, values = tree.leaves(old), tree.leaves(new)
    for position, (target, value) in enumerate(zip(targets, values, strict=True)):
        if target.shape != value.shape or target.dtype != value.dtype:
            raise ValueError(f"{_name(old, position)} would change from {_kind(target)} to {_kind(value)}")
    safe = _set_aside(old, targets, values)
    with torch.no_grad():
        pairs = [(target, value) for target, value in zip(targets, safe, strict=True) if value is not target]
        rows = any(isinstance(value, Replaced) for _, value in pairs)
        if torch.compiler.is_compiling() and pairs and not rows and not are_cut(targets):
            foreach_copy_(
                [target for target, _ in pairs], [value for _, value in pairs]
            )  # traced faster than many calls
            return
        for target, value in pairs:
            if isinstance(value, Replaced):
                value.write_into(target)
            else:
                target.copy_(value)


def targets_apart(old: Tree) -> Taken:
    """Where the memory of the leaves of a tree lies, if each can be written without another.

    Raises:
        ValueError: if one overlaps another or itself, or was made in inference mode and that is over.
    """
    targets = tree.leaves(old)
    for position, target in enumerate(targets):
        _check_target(old, position, target)
    return _taken(old, targets)


def settle(old: Tree, new: Tree) -> tuple[Tree, Tree]:
    """Both trees with tensors where they hold numbers, which someone has put in the place of tensors that change.

    A dict of `old` that holds some is changed itself; elsewhere the result is another tree.
    """
    if not _has_numbers(old) or tree.structure(old) != tree.structure(new):
        return old, new
    new = tree.map(lambda x: _as_tensor(x) if is_number(x) else x, new)
    filled = tree.map(lambda was, now: now.clone() if is_number(was) else was, old, new)
    for (_, node), (_, full) in zip(tree.walk(old), tree.walk(filled), strict=True):
        if type(node) is dict:
            node.update({key: full[key] for key, x in node.items() if is_number(x)})
    return filled if _has_numbers(old) else old, new


def _has_numbers(node: Tree) -> bool:
    return any(is_number(x) for x in tree.leaves(node) if not isinstance(x, Tensor))


def is_number(x: Any) -> bool:
    """Whether a leaf is a number of Python or NumPy."""
    return type(plain(x)) in (int, float)


def _as_tensor(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.int64 if isinstance(plain(x), int) else torch.float64)


def _set_aside(old: Tree, targets: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The values, copied where writing a target would change them."""
    if torch.compiler.is_compiling():  # memory has no addresses yet; the compiler drops needless copies
        return [value.clone() for value in values]
    for position, (target, value) in enumerate(zip(targets, values, strict=True)):
        if value is not target:
            _check_target(old, position, target)
    taken, pairs = _taken(old, targets), zip(targets, values, strict=True)
    return [value if value is target else _kept(target, value, taken) for target, value in pairs]


def _kept(target: Tensor, value: Tensor, taken: Taken) -> Tensor:
    if isinstance(value, Replaced):
        return value if value.table is target else value.whole()
    return value.clone() if taken.holds(value) else value


def _check_target(old: Tree, position: int, target: Tensor) -> None:
    if target.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{_name(old, position)} was made in inference mode; write to it there, or to a clone of it")
    if target.layout == torch.strided and overlaps_itself(target):
        raise ValueError(
            f"{_name(old, position)} overlaps itself: elements lie in one place; make it dense with .clone()"
        )


def _taken(old: Tree, targets: Sequence[Tensor]) -> Taken:
    """Where the memory of the targets lies; they may lie between each other.

    Raises:
        ValueError: if two have an element in common.
    """
    starts: list[int] = []
    ends: list[int] = []
    near: list[int] = []  # those that reach into the stretch of memory that is open
    for start, end, position in sorted((*span(target), position) for position, target in enumerate(targets)):
        if start == end:
            continue
        if not ends or start >= ends[-1]:
            starts.append(start)
            ends.append(end)
            near = []
        for other in near:
            if span(targets[other])[1] > start and share_elements(targets[position], targets[other]):
                names = _name(old, min(position, other)), _name(old, max(position, other))
                raise ValueError(f"{names[0]} and {names[1]} share memory, so only one could be kept")
        ends[-1] = max(ends[-1], end)
        near.append(position)
    return Taken(starts, ends)


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"


def _name(old: Tree, position: int) -> str:
    return tree.join_path(tree.leaves_with_path(old)[position][0])
