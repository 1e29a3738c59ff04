"""Parameters with sparse gradients, of a class that keeps their state sparse too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.sgd import sgd

from .._torch import unseen
from ._bound import Bound, Grads
from ._contract import every
from ._dropin import DropIn
from ._layout import ParamKey


class StepsTables(DropIn):
    """SGD of tables: of a sparse gradient torch makes a sparse momentum, which gains the rows of each further one.

    No rule here has such a state, and a step is no more than sparse arithmetic, so it is torch's own.
    """

    @unseen
    def _ready(
        self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]
    ) -> tuple[Bound | None, Grads, dict[str, Any]]:
        tables = {p: p.grad for p in every(self.param_groups) if p.grad is not None and p.grad.is_sparse}
        for p in tables:
            p.grad = None
        try:
            ready = super()._ready(closure, loss, extra)
        finally:
            for p, grad in tables.items():
                p.grad = grad
        groups = self._group_of() if tables else {}
        for p in tables:  # before any of them is written
            self._check_table(groups[id(p)], self._buffer(p))
        for p in tables:
            self._step_table(p, groups[id(p)])
        return ready

    def _active(self, group: Mapping[str, Any], names: Sequence[ParamKey]) -> dict[ParamKey, Tensor]:
        return {name: p for name, p in super()._active(group, names).items() if p.grad is None or not p.grad.is_sparse}

    def has_state(self, p: Tensor) -> bool:
        """Whether there are entries for a parameter; not of a table, as long as its gradients are sparse."""
        is_table = any(isinstance(x, Tensor) and x.is_sparse for x in self.state.get(p, {}).values())
        return super().has_state(p) and not (is_table and (p.grad is None or p.grad.is_sparse))

    def _buffer(self, p: Tensor) -> Tensor | None:
        found: Tensor | None = self.state.get(p, {}).get("momentum_buffer")
        return found

    def _check_table(self, group: Mapping[str, Any], buffer: Tensor | None) -> None:
        """Refuse, in the words of torch, what it refuses half-way."""
        if group["weight_decay"] != 0 or (group["nesterov"] and buffer is not None and not buffer.is_sparse):
            raise RuntimeError("add(sparse, dense) is not supported. Use add(dense, sparse) instead.")
        if group["fused"]:
            raise RuntimeError("`_fused_sgd` does not support sparse gradients")

    def _step_table(self, p: Any, group: Mapping[str, Any]) -> None:
        buffers = [self._buffer(p)]
        words = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")
        options: Any = {key: group[key] for key in words}
        sgd([p], [p.grad], buffers, has_sparse_grad=True, foreach=False, fused=False, **options)
        if buffers[0] is not None:
            self.state[p]["momentum_buffer"] = buffers[0]
