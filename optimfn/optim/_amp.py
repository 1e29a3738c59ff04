"""Mixed precision without waiting for the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._assign import choose
from .._base import GradientTransformation
from .._rows import either
from .._typing import Params, State, Updates


def skip_overflow(tx: GradientTransformation, *, unscales: bool = True, skips: bool = True) -> GradientTransformation:
    """Under `torch.amp.GradScaler`, divide the gradients by the scale, and leave all as it is if one is not finite.

    `update` takes what the scaler hands over, `found_inf` and, if the gradients are still scaled, `grad_scale`, as
    tensors and reads neither. Without them it is that of `tx`.

    Args:
        tx: The transformation.
        unscales: Whether the gradients are still to be divided.
        skips: Whether the updates are to be nothing then; the state is kept in any case.
    """

    def update(
        updates: Updates,
        state: State,
        params: Params | None = None,
        *,
        found_inf: Tensor | None = None,
        grad_scale: Tensor | None = None,
        **extra: Any,
    ) -> tuple[Updates, State]:
        if found_inf is None:
            return tx.rule(updates, state, params, **extra)
        if grad_scale is not None and unscales:
            inverse = grad_scale.double().reciprocal().float()  # as torch rounds it

            def unscale(g: Tensor) -> Tensor:
                # In float32 at least: the scale is there because float16 cannot hold the result.
                return tree.cast_leaf(g, torch.promote_types(g.dtype, torch.float32)) * inverse

            updates = tree.map(unscale, updates)
        new_updates, new_state = tx.rule(updates, state, params, **extra)
        skip = found_inf.reshape(()) > 0
        kept = tree.map(lambda old, new: old if old is new else either(~skip, new, old), state, new_state)
        # Negative zero: the only number that leaves every other as it is when it is added.
        return choose(~skip, new_updates, -0.0, params) if skips else new_updates, kept

    return GradientTransformation(tx.init, update)


@torch.no_grad()
def unscale(params: Iterable[Tensor], found_inf: Tensor, grad_scale: Tensor) -> None:
    """Leave unscaled gradients behind, as the fused classes of torch do; those of a skipped step stay as they are."""
    factor = torch.where(found_inf.reshape(()) > 0, 1.0, grad_scale.double().reciprocal().float())
    for p in params:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad.device))
