"""The drop-in class for L-BFGS, which evaluates a closure along the way."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._algorithms.quasi_newton._lbfgs import Memory, Settings, flatten, iterate, minimize_by_lbfgs, number, on_host
from .._base import GradientTransformation
from ._layout import Entries
from ._load import KeepsDtypes


class LBFGS(KeepsDtypes, torch.optim.LBFGS):
    """torch.optim.LBFGS on the rule `minimize_by_lbfgs`."""

    @classmethod
    def transform(cls, **options: Any) -> GradientTransformation:
        """The pure transformation with exactly the rule of this class.

        Args:
            **options: Arguments of the constructor, without `params`.

        Raises:
            TypeError, ValueError: as the constructor does, and for options with which no step can be taken.
        """
        probe: Any = cls([torch.zeros(1, requires_grad=True)], **options)
        if probe.param_groups[0].get("maximize"):
            raise ValueError("maximize=True: the transformation only minimises; give it the negative of the loss")
        settings = _settings(probe.param_groups[0])
        return minimize_by_lbfgs(*settings)

    @torch.no_grad()
    def step(self: Any, closure: Callable[[], Any]) -> Any:  # type: ignore[override]  # torch's demands it too
        """Take one step of up to `max_iter` iterations; if the closure raises, no step is taken.

        Args:
            closure: Clears the gradients, computes the loss and its gradients, and returns the loss. It is
                evaluated with gradients enabled, once or more.

        Returns:
            What the closure returned first.
        """
        if len(self.param_groups) != 1:
            raise AssertionError(f"Expected exactly one param_group, but got {len(self.param_groups)}")
        params, settings = self.param_groups[0]["params"], _settings(self.param_groups[0])
        if settings.line_search not in (None, "strong_wolfe"):
            raise RuntimeError("only 'strong_wolfe' is supported")
        closure = torch.enable_grad()(closure)
        loss = closure()
        if not params:
            return loss
        sign = -1 if self.param_groups[0].get("maximize") else 1  # older versions have no such argument
        start = [p.clone() for p in params]

        def evaluate(x: Sequence[Tensor]) -> tuple[float, Tensor]:
            _write(params, x)
            f = sign * number(closure())
            return f, sign * _flat_grad(params)

        entries = self.state[params[0]]
        try:
            f, g = sign * number(loss), sign * _flat_grad(params)
            end, memory = iterate(evaluate, start, f, g, _recall(entries), settings)
        except BaseException:
            _write(params, start)
            raise
        _write(params, end)
        _show(entries, memory, settings.history_size)
        return loss

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch's class forgets these two when it is copied.
        self._params, self._numel_cache = self.param_groups[0]["params"], None


def _settings(group: dict[str, Any]) -> Settings:
    rate = group["lr"]
    if isinstance(rate, Tensor):
        rate = on_host(rate.reshape(())).clone()  # the step is kept, and a scheduler may change the rate in place
    keys = ("max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn")
    return Settings(rate, *[group[key] for key in keys])


def _flat_grad(params: list[Tensor]) -> Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    return flatten([g.to_dense() if g.is_sparse else g for g in grads])


def _write(params: list[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)


def _recall(entries: Entries) -> Memory:
    """The memory that torch's entries hold."""
    nothing = torch.empty(0)
    return Memory(
        n_iter=entries.get("n_iter", 0),
        func_evals=entries.get("func_evals", 0),
        d=entries.get("d", nothing),
        t=entries.get("t", 0),
        y=tuple(entries.get("old_dirs", ())),
        s=tuple(entries.get("old_stps", ())),
        rho=tuple(entries.get("ro", ())),
        gamma=entries.get("H_diag", 1),
        prev_g=entries.get("prev_flat_grad", nothing),
        prev_f=entries.get("prev_loss", 0.0),
    )


def _show(entries: Entries, memory: Memory, history_size: int) -> None:
    """Make torch's entries of the memory, in torch's order."""
    entries.update({"func_evals": memory.func_evals, "n_iter": memory.n_iter})
    if memory.n_iter == 0:
        return
    if memory.alpha or (memory.n_iter > 1 and "al" not in entries):
        entries["al"] = [*memory.alpha, *[None] * (history_size - len(memory.alpha))]
    t = memory.t.to(memory.d.device) if isinstance(memory.t, Tensor) else memory.t
    entries.update({"d": memory.d, "t": t, "old_dirs": list(memory.y), "old_stps": list(memory.s)})
    entries.update({"ro": list(memory.rho), "H_diag": memory.gamma})
    entries.update({"prev_flat_grad": memory.prev_g, "prev_loss": memory.prev_f})
