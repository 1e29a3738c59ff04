"""What the paths of the leaves of `(params, state, grads, extra)` say of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Paths = Sequence[tuple[tuple[Any, ...], int]]  # each with the number of its leaf


def names_of(named: Paths) -> list[str]:
    """A name for every leaf, for readers: in a state, the field that holds it."""
    like_params = {path[1:] for path, _ in named if path[0] == 0}
    names = [""] * len(named)
    for path, i in named:
        own = path
        if path[0] == 1:
            cut = next(cut for cut in range(1, len(path) + 1) if path[cut:] in like_params or cut == len(path))
            own = path[:cut]
        words = [word for word in own[1:] if isinstance(word, str) and word]
        name = "param" if path[0] == 0 else "grad" if path[0] == 2 else words[-1] if words else "state"
        names[i] = re.sub(r"\W|^(?=\d)", "_", name)
    return names


def belongings(named: Paths, grads: Mapping[int, int]) -> list[int | None]:
    """For each leaf the parameter that it seems to belong to: its path holds that of it.

    Args:
        named: The paths.
        grads: The number of the parameter of each gradient.
    """
    leaf_of = {path[1:]: grads[i] for path, i in named if i in grads}
    belongs: list[int | None] = [None] * len(named)
    for path, i in named:
        parts = (path[a:b] for a in range(1, len(path) + 1) for b in range(len(path), a - 1, -1))
        belongs[i] = next((leaf_of[part] for part in parts if part in leaf_of), None)
    return belongs
