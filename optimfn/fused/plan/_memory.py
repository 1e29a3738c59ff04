"""Which values can lie in memory that is there already."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..ir._graph import Node


def same_memory(node: Node) -> Node:
    """The value whose bytes, in the order in which kernels go over them, are those of a value too."""
    while node.kind == "pointwise" and node.op == "copy":
        (source,) = node.parents()[:1] or (node,)
        if (
            source.kind != "pointwise"
            or source.op == "fill"
            or (source.dtype, source.numel) != (node.dtype, node.numel)
        ):
            break
        node = source
    return node


def places(
    nodes: Sequence[Node],
    level: Mapping[Node, int],
    temporary: Mapping[Node, Any],
    solid: Collection[Node],
    results: Sequence[Sequence[Any]],
) -> dict[Node, Node]:
    """For results of ATen that kernels read, the temporary value that nobody reads any more when each is there.

    So a chain of products of a large matrix needs no second one to end in.

    Args:
        nodes: The graph, parents first.
        level: Their stages.
        temporary: The values that kernels leave in memory.
        solid: The results that kernels read.
        results: For each output its values, with their owners.
    """
    handed_out = {value for values in results for _, value in values if isinstance(value, Node)}
    kept = {same_memory(value) for value in handed_out}  # a root that is one is read again, when it is handed out
    children: dict[Node, list[Node]] = {}
    for node in nodes:
        for parent in node.parents():
            children.setdefault(parent, []).append(node)
    last: dict[Node, tuple[int, int]] = {}  # of the roots: when they are read last, if only ATen does

    def when(node: Node) -> tuple[int, int]:
        return level[node], node.number  # stage by stage: what comes first in the graph may have to wait for longer

    for root in temporary:
        readers = _readers(root, children) if same_memory(root) is root and root not in kept else None
        if readers:
            last[root] = max(map(when, readers))
    found: dict[Node, Node] = {}
    for node in solid:
        if node.kind != "opaque" or node.is_view or node in handed_out:
            continue
        for root in _sources(node):
            fits = (node.dtype, node.numel) == (root.dtype, root.numel)
            if fits and root in last and last[root] <= when(node):
                found[node] = root
                del last[root]  # it is taken
                break
    return found


def _sources(node: Node) -> list[Node]:
    """The values by which ATen begins to compute one."""
    found: dict[Node, None] = {}
    queue, seen = [node], {node}
    while queue:
        for parent in queue.pop().parents():
            if parent.kind == "pointwise":
                found[same_memory(parent)] = None
            elif parent.kind in ("opaque", "item") and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return [*found]


def _readers(node: Node, children: Mapping[Node, Sequence[Node]]) -> list[Node] | None:
    """The opaque nodes that read a value, or one in the same memory; `None` if a kernel does."""
    found: list[Node] = []
    for child in children.get(node, ()):
        shares = (child.kind == "pointwise" and same_memory(child) is same_memory(node)) or child.is_view
        behind = _readers(child, children) if shares else []
        if behind is None or not (shares or child.kind == "opaque"):
            return None
        found += [*behind, *([child] if child.kind == "opaque" else [])]
    return found
