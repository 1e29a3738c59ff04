"""Say how a step runs."""

import collections

from ..ir._kernels import Kernel
from ._program import Program


def explain(found: Program | str) -> str:
    """Stages, kernels, opaque operators with the reason, bytes moved, and where the source is."""
    if isinstance(found, str):
        return f"eager: {found}"
    plan, lines = found.plan, []
    generated = sum(len(stage.rows) > 0 for stage in plan.stages)
    lines.append(f"fused: {len(plan.inputs)} inputs, {generated} parallel stages, {len(plan.kernels)} kernels")
    moved, largest = 0.0, 0
    for k, stage in enumerate(plan.stages):
        if not (stage.opaque or stage.calls or stage.rows):
            continue
        lines.append(f"stage {k}")
        counts = collections.Counter(str(node.op) for node in stage.opaque if node.kind == "opaque")
        for name, count in counts.items():
            reason = found.code.graph.opaque.get(name, "brings an operand into the order of memory of the others")
            lines.append(f"  opaque  {count} x {name}: {reason}")
        scalars = sum(len(call.rows) for call in stage.calls)
        if scalars:
            lines.append(f"  0-dim   {scalars} values by {len(stage.calls)} calls")
        for kernel in dict.fromkeys(row.kernel for row in stage.rows):
            rows = [row for row in stage.rows if row.kernel == kernel]
            elements = sum(row.numel for row in rows)
            names = ", ".join(dict.fromkeys(f"{result.kind} {result.name}" for result in kernel.results))
            lines.append(f"  kernel  {names}: {len(rows)} leaves, {elements} elements, {_bytes(kernel):.4g} bytes each")
            moved, largest = moved + elements * _bytes(kernel), max(largest, elements)
    elements = sum(node.numel for node in plan.inputs if node.name == "param")
    if elements:
        lines.append(f"moves {moved / elements:.1f} bytes per element of the parameters")
    lines += [f"source  {path}" for path in found.sources]
    return "\n".join(lines)


def _bytes(kernel: Kernel) -> float:
    moved = [entry for entry in kernel.entries if entry.kind == "buffer"]
    moved += [kernel.entries[x.entry]._replace(dtype=x.dtype) for x in kernel.results if x.kind == "store"]
    packed = sum(x.kind == "packed" for x in kernel.entries) + sum(x.kind == "pack" for x in kernel.results)
    return packed / 2 + sum(x.dtype.itemsize / (kernel.block if x.of_block else 1) for x in moved)
