"""The loss of a closure as a function of the parameters, for rules that evaluate it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._layout import ParamKey

Closure = Callable[[], Any]


def extras_of(closure: Closure, loss: Any, params: Mapping[ParamKey, Tensor]) -> dict[str, Any]:
    """What a closure gives to a rule: `value`, the loss that it returned, and `value_and_grad_fn`.

    `value_and_grad_fn(at)` calls the closure with the parameters set to `at`, and then puts parameters and
    gradients back.
    """

    def value_and_grad_fn(at: Mapping[ParamKey, Tensor]) -> tuple[Any, dict[ParamKey, Tensor | None]]:
        kept = {name: (p.detach().clone(), p.grad) for name, p in params.items()}
        try:
            with torch.no_grad():
                for name, x in at.items():
                    params[name].copy_(x)
            for p in params.values():
                p.grad = None  # the gradients of the step are not to be added to, or zeroed
            with torch.enable_grad():
                value = closure()
            return _detached(value), {name: params[name].grad for name in at}
        finally:
            with torch.no_grad():
                for name, (x, grad) in kept.items():
                    params[name].copy_(x)
                    params[name].grad = grad

    return {"value": _detached(loss), "value_and_grad_fn": value_and_grad_fn}


def _detached(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss
