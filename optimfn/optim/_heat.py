"""Gradients averaged before every step: an optimizer of Heat for an ordinary loop, on torch.distributed."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed._comm import Departure, Peers, start_mean
from ._contract import every


class DataParallelOptimizer:
    """Average the gradients of all processes before every step: `heat.optim.DataParallelOptimizer`, by its names.

    Every process has the whole model and its own part of the data. Not for gradients that DDP has averaged already:
    there any optimizer will do. Start from the same parameters everywhere.

    Args:
        torch_optimizer: Any optimizer of torch or optimfn.
        blocking: Wait for the gradients in `step`. Else they are on their way from `step` to the next `zero_grad`, or
            to the next forward pass of the model of `set_model`, and the step is taken there. Without `set_model`, call
            `zero_grad` before the forward pass; and `flush` before parameters are read, as for an evaluation.
        group: The processes: a process group, a mesh of one axis, a pair of a mesh and an axis; `None` means all.

    Raises:
        TypeError: if `torch_optimizer` is no optimizer, `blocking` no bool, or `group` none.

    Example:
        >>> import torch, optimfn as of
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = of.optim.DataParallelOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), blocking=True)
        >>> opt.zero_grad()
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> opt.step()
    """

    def __init__(self, torch_optimizer: Optimizer, blocking: bool = False, *, group: Any = None) -> None:
        check_optimizer("torch_optimizer", torch_optimizer)
        check_types(bool, blocking=blocking)
        self.torch_optimizer, self.blocking_parameter_updates = torch_optimizer, blocking
        self.update_next = False
        self.params_ref = torch_optimizer.param_groups[0]["params"]
        self._peers = Peers(group)
        self._departure: Departure | None = None
        self._grads: list[Tensor] = []
        self._hook: Any = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.torch_optimizer.param_groups

    def set_model(self, model: nn.Module) -> None:
        """Finish a step that is on its way right before the next forward pass of this model."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = model.register_forward_pre_hook(lambda *_: self.flush())

    def step(self) -> None:
        """Average the gradients in `.grad` and take a step with them, now or as soon as they are there."""
        self.flush()
        params = every(self.param_groups)
        self._grads = [p.grad for p in params if p.grad is not None]
        self._departure, self.update_next = start_mean([g.detach() for g in self._grads], self._peers), True
        if self.blocking_parameter_updates:
            self.flush()

    def flush(self) -> None:
        """Take the step whose gradients are on their way, if there is one."""
        if self._departure is None:
            return
        found = self._departure.wait()
        with torch.no_grad():
            for own, mean in zip(self._grads, found, strict=True):
                own.copy_(mean)
        self._departure, self._grads, self.update_next = None, [], False
        self.torch_optimizer.step()

    def zero_grad(self) -> None:
        """Finish what is on its way, and set all gradients to zero."""
        self.flush()
        self.torch_optimizer.zero_grad(set_to_none=False)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer, when nothing is on its way any more."""
        self.flush()
        return {"torch_optimizer": self.torch_optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` has returned."""
        self.flush()
        self.torch_optimizer.load_state_dict(state_dict["torch_optimizer"])


def check_optimizer(name: str, value: object) -> None:
    if not isinstance(value, Optimizer):
        raise TypeError(f"{name} must be a torch.optim.Optimizer, got {value!r}")


def check_types(kind: type, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{name} must be {kind.__name__}, got {value!r}")
