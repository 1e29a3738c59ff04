"""What each leaf of a state is, for whoever shards, saves or merges states."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeAlias, get_type_hints

import torch

from . import tree
from ._checks import check_choice
from ._typing import Params, State, Tree
from .tree._core import map_parts

KINDS = ("param", "factor", "replicated", "per_replica", "flat_shard", "host")
ELASTIC = ("mean", "reset", "error")
VALUES = ("signed", "nonnegative", "exact")

# What fields of these names hold, where no annotation says it.
_NONNEGATIVE = "nu nu_max n v exp_avg_sq e_g e_x sum_of_squares grad_sum_sq scale subgradients reward"
_EXACT = "z x0 params0 params init_params init_particles start slow cache ax average step_sizes master compensation"
_BY_NAME = {**dict.fromkeys(_NONNEGATIVE.split(), "nonnegative"), **dict.fromkeys(_EXACT.split(), "exact")}


@dataclass(frozen=True)
class LeafSpec:
    """What a leaf of a state is.

    A state that is a named tuple says so of its fields where it annotates them:
    `error: Annotated[Updates, LeafSpec("per_replica")]`. Of numbers it says so by a word,
    `mean: Annotated[Params, "exact"]`, see `values`.

    Args:
        kind: `"param"`: in the shape of its parameter, and lies where that lies. `"factor"`: belongs to a parameter, in
            another shape, such as the mean of its rows. `"replicated"`: one for all, the same on every process, such as
            a count. `"per_replica"`: each replica's own, along a first axis, such as the error of a compressor.
            `"flat_shard"`: one vector of all parameters, in shards. `"host"`: stays on the CPU, as a count that decides
            there.
        param: The path of the parameter that it belongs to; `None` if it belongs to none.
        elastic: What becomes of a `"per_replica"` leaf when a checkpoint comes from another number of replicas: each
            gets the `"mean"`, they begin anew (`"reset"`), or it is an `"error"`.
        values: What its numbers are: `"signed"`, as the mean of gradients; `"nonnegative"`, as that of their squares;
            or `"exact"`, as parameters, which nothing may round. `None` says that the name of the field tells.

    Raises:
        ValueError: if there is no such kind, or no such word for `elastic` or `values`.
    """

    kind: str
    param: str | None = None
    elastic: str = "mean"
    values: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("elastic", self.elastic, ELASTIC)
        check_choice("values", self.values, (None, *VALUES))


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
        (LeafSpec(kind='param', param='w', elastic='mean', values='signed'), 'replicated')
    """
    return spec_of(tx, params, tx.init(params))


def spec_of(tx: Any, params: Params, state: State) -> Tree:
    """The same of a state that is there already."""

    def own(values: str, leaf: Any, path: str, p: Any) -> LeafSpec:
        return LeafSpec("param" if leaf.shape == p.shape else "factor", path, values=values)

    found = map_values(
        values_of(tx), own, state, tree.paths(params), params, others=lambda leaf: LeafSpec("replicated")
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
        return True, LeafSpec(spec.kind, spec.param or leaf.param, spec.elastic, leaf.values)

    return tree.map_nodes(change, found)


class Values(NamedTuple):
    """What stands in the place of a tree like the parameters in a state: what its numbers are."""

    values: str
    within: tuple[str, ...]  # the names that lead from the parameters to the part that it mirrors


def values_of(tx: Any) -> Tree:
    """A state with `Values` where trees like the parameters stand, and `None` for all other leaves."""
    template = getattr(tx, "init", tx)(tree.ParamsPlaceholder(torch.zeros(())))
    nodes = dict(tree.walk(template))

    def change(path: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
        if not isinstance(node, tree.ParamsPlaceholder):
            return (True, Other()) if tree.is_leaf(node) else (False, None)
        for n in range(len(path), 0, -1):
            holder = nodes[path[: n - 1]]
            if path[n - 1] in getattr(holder, "_fields", ()):  # the innermost field: what lies deeper has its name
                own = next((word for word in _metadata(holder).get(path[n - 1], ()) if word in VALUES), None)
                return True, Values(own or _BY_NAME.get(path[n - 1], "signed"), node.within())
        return True, Values("signed", node.within())

    return tree.map_nodes(change, template)


class Other(NamedTuple):
    """What stands in the place of a leaf that mirrors no parameter."""


def map_values(
    template: Tree, f: Callable[..., Any], state: State, /, *rest: Params, others: Callable[[Any], Any] | None = None
) -> State:
    """`tree.map_params` for a function that is told first what the numbers are, given what `values_of` made."""

    def on_state(_: Any, node: Any, part: Any) -> tuple[bool, Any]:
        if isinstance(node, Values):
            own = [functools.reduce(getattr, node.within, params) for params in rest]
            return True, map_parts(functools.partial(f, node.values), part, *own)
        if isinstance(node, Other):
            return True, tree.map(others, part) if others else part
        return False, None

    return tree.map_nodes(on_state, template, state)


def map_mirrors(template: Tree, f: Callable[[Tree], Tree], state: State) -> State:
    """A state with another tree in the place of each one that mirrors the parameters, given what `values_of` made."""

    def change(_: Any, node: Any, part: Any) -> tuple[bool, Any]:
        return isinstance(node, Values | Other), f(part) if isinstance(node, Values) else part

    return tree.map_nodes(change, template, state)


def _said_by(node: Any) -> dict[str, LeafSpec]:
    """What the annotations of a named tuple say of its fields."""
    return {name: one for name, said in _metadata(node).items() for one in said if isinstance(one, LeafSpec)}


def _metadata(node: Any) -> dict[str, tuple[Any, ...]]:
    if not hasattr(node, "_fields"):
        return {}
    try:
        hints = get_type_hints(type(node), include_extras=True)
    except NameError:  # a name that only a type checker knows
        return {}
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
