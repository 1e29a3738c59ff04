"""What each leaf of a state is, for whoever shards, saves or merges states."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, get_type_hints

from . import tree
from ._checks import check_choice
from ._typing import Params, State, Tree

KINDS = ("param", "factor", "replicated", "per_replica", "flat_shard", "host")
ELASTIC = ("mean", "reset", "error")


@dataclass(frozen=True)
class LeafSpec:
    """What a leaf of a state is.

    A state that is a named tuple says so of its fields where it annotates them:
    `error: Annotated[Updates, LeafSpec("per_replica")]`.

    Args:
        kind: `"param"`: in the shape of its parameter, and lies where that lies. `"factor"`: belongs to a parameter, in
            another shape, such as the mean of its rows. `"replicated"`: one for all, the same on every process, such as
            a count. `"per_replica"`: each replica's own, along a first axis, such as the error of a compressor.
            `"flat_shard"`: one vector of all parameters, in shards. `"host"`: stays on the CPU, as a count that decides
            there.
        param: The path of the parameter that it belongs to; `None` if it belongs to none.
        elastic: What becomes of a `"per_replica"` leaf when a checkpoint comes from another number of replicas: each
            gets the `"mean"`, they begin anew (`"reset"`), or it is an `"error"`.

    Raises:
        ValueError: if there is no such kind, or no such word for `elastic`.
    """

    kind: str
    param: str | None = None
    elastic: str = "mean"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("elastic", self.elastic, ELASTIC)


HostCount: TypeAlias = Annotated[Any, LeafSpec("host")]
"""A `tree.host_count`: a 0-dim int64 tensor on the CPU, by which the host chooses what a step computes."""


def state_spec(tx: Any, params: Params) -> Tree:
    """Say of every leaf of a state what it is.

    What mirrors the parameters is found as by `tree.map_params`. The rest is taken to be the same on all processes,
    unless the state itself says otherwise, see `LeafSpec`.

    Args:
        tx: A transformation.
        params: Its parameters; a state is made of them, to see what it holds.

    Returns:
        A tree in the structure of the state, of `LeafSpec`.

    Example:
        >>> import torch, optimfn as of
        >>> spec = of.state_spec(of.adam(1e-3), {"w": torch.ones(2)})
        >>> spec[0].mu["w"], spec[0].count.kind
        (LeafSpec(kind='param', param='w', elastic='mean'), 'replicated')
    """
    return spec_of(tx, params, tx.init(params))


def spec_of(tx: Any, params: Params, state: State) -> Tree:
    """The same of a state that is there already."""

    def own(leaf: Any, path: str, p: Any) -> LeafSpec:
        return LeafSpec("param" if leaf.shape == p.shape else "factor", path)

    found = tree.map_params(
        tx, own, state, tree.paths(params), params, transform_non_params=lambda leaf: LeafSpec("replicated")
    )
    said: dict[tuple[Any, ...], LeafSpec] = {
        (*path, name): spec for path, node in tree.walk(state) for name, spec in _said_by(node).items()
    }
    if not said:
        return found

    def change(path: tuple[Any, ...], leaf: Any) -> tuple[bool, Any]:
        if not isinstance(leaf, LeafSpec):
            return False, None
        spec = next((said[path[:n]] for n in range(len(path), 0, -1) if path[:n] in said), leaf)
        return True, LeafSpec(spec.kind, spec.param or leaf.param, spec.elastic)

    return tree.map_nodes(change, found)


def _said_by(node: Any) -> dict[str, LeafSpec]:
    """What the annotations of a named tuple say of its fields."""
    if not hasattr(node, "_fields"):
        return {}
    try:
        hints = get_type_hints(type(node), include_extras=True)
    except NameError:  # a name that only a type checker knows
        return {}
    extras = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: one for name, metadata in extras.items() for one in metadata if isinstance(one, LeafSpec)}
