"""Loading state dicts without losing dtypes."""

from typing import Any

import torch
from torch import Tensor


class KeepsDtypes(torch.optim.Optimizer):
    """A `load_state_dict` that takes tensors as they were saved.

    torch casts every entry but `step` to the dtype of its parameter, which makes a float32 moment of a
    bfloat16 parameter bfloat16, and a count too.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, by this class or by torch's, dtypes included."""
        seen: list[dict[str, Any]] = []
        # Registered last, so it sees what the user's own hooks made of the dict.
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        loaded = seen[-1]
        numbers = [number for group in loaded["param_groups"] for number in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for key, value in loaded["state"].get(number, {}).items():
                if key in self.state[p]:
                    self.state[p][key] = _as_saved(value, self.state[p][key])


def _as_saved(value: Any, kept: Any) -> Any:
    """What was saved, on the device that torch chose: `step` may belong on the CPU."""
    if isinstance(value, Tensor) and isinstance(kept, Tensor):
        return value.detach().to(kept.device, copy=True)
    if isinstance(value, list) and isinstance(kept, list):
        return [_as_saved(one, its) for one, its in zip(value, kept, strict=True)]
    return kept
