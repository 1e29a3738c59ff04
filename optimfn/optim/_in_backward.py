"""Steps in the backward pass: a gradient is used, and freed, as soon as it is there."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._base import GradientTransformation
from .._gate import unasked
from ._optimizer import Optimizer


def in_backward(
    params: Any, tx: GradientTransformation | Callable[..., GradientTransformation], **options: Any
) -> "InBackward":
    """Step each parameter in the backward pass, when its gradient is complete, and free the gradient at once.

    So at no time do all gradients exist: of a model in float32 that saves a quarter of what Adam needs besides the
    activations. The steps are those of an `Optimizer` to the bit. Every `backward` is a step, so gradients cannot be
    accumulated; and no rule can look at all of them, as a global norm does.

    The rest of a loop stays: `step()` does nothing but call a closure, schedulers write into `param_groups`, and
    checkpoints are those of an `Optimizer`, into which they load.

    Args:
        params: As for `Optimizer`: a module, parameters, pairs with names, or groups.
        tx: The transformation, or its factory. It must be leafwise: no leaf may see another. A schedule counts the
            steps of each parameter.
        **options: As for `Optimizer`: the arguments of the factory, `maximize`, `fused`.

    Returns:
        An `Optimizer`; `remove()` takes it off the parameters.

    Raises:
        ValueError: if the transformation is not leafwise, naming the part that is not.

    Example:
        >>> import torch, optimfn as of
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = of.optim.in_backward(model, of.adamw, learning_rate=1e-3)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> model.weight.grad is None, opt.state[model.weight]["scale_by_adam.count"]
        (True, tensor(1))
    """
    return InBackward(params, tx, **options)


class InBackward(Optimizer):
    """What `in_backward` returns: an `Optimizer` whose steps are taken by hooks of its parameters."""

    def __init__(
        self, params: Any, tx: GradientTransformation | Callable[..., GradientTransformation], **options: Any
    ) -> None:
        self._given = tx, options
        self._alone: dict[Tensor, tuple[Optimizer, int]] = {}  # and which group the parameter is of
        self._hooks: list[Any] = []
        super().__init__(params, tx, **options)
        coupled = [one.recipe.factory.__name__ if one.recipe else repr(one) for one in _coupled(self.tx)]
        if coupled:
            raise ValueError(
                f"in_backward steps one parameter at a time, and {', '.join(coupled)} is not leafwise: clip by value "
                "or by block, as clip and clip_by_block_rms do, or use Optimizer"
            )
        for place in range(len(self.param_groups)):
            self._hook(place)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as to an `Optimizer`."""
        before = len(self.param_groups)
        super().add_param_group(param_group)
        if self._alone:
            for place in range(before, len(self.param_groups)):
                self._hook(place)

    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """Nothing is left to do: backward has stepped.

        Args:
            closure: Evaluated, with gradients enabled; its value is returned.
            **extra: Refused, since no rule sees it.
        """
        self._check_training()
        if extra:
            raise TypeError(f"in_backward steps in backward, where {', '.join(extra)} is not known yet; use Optimizer")
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> Any:
        """Load a state dict of this optimizer or of an `Optimizer` of the same transformation."""
        report = super().load_state_dict(state_dict, strict=strict)
        for p, (alone, _) in self._alone.items():
            alone.state.clear()
            if p in self.state:
                alone.state[p] = self.state[p]
            alone._begin()
        return report

    def remove(self) -> None:
        """Take the hooks off the parameters, which are then stepped no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._alone.clear()

    def _hook(self, place: int) -> None:
        """Give each parameter of a group an optimizer of its own, and a hook that calls it."""
        (tx, options), group = self._given, self.param_groups[place]
        start = sum(len(one["params"]) for one in self.param_groups[:place])
        names = group.get("param_names") or [str(start + i) for i in range(len(group["params"]))]
        for name, p in zip(names, group["params"], strict=True):
            with unasked():  # masks match some other parameter
                alone = Optimizer([{**self._options_of(group), "params": [(name, p)]}], tx, **options)
            self._alone[p] = alone, place
            self._hooks.append(p.register_post_accumulate_grad_hook(self._take_one))

    def _take_one(self, p: Tensor) -> None:
        self._check_training()
        alone, place = self._alone[p]
        own, group = alone.param_groups[0], self.param_groups[place]  # which loading makes anew
        own.update(self._options_of(group))
        alone.step()
        for key in self._driven(group):
            group[key].copy_(own[key])
        if p in alone.state:
            self.state[p] = alone.state[p]
        p.grad = None

    def _driven(self, group: dict[str, Any]) -> list[str]:
        """The keys that show what schedules say."""
        return [key for key, (_, value) in self._found(group).items() if callable(value)]

    def _options_of(self, group: dict[str, Any]) -> dict[str, Any]:
        """What a group says of its parameters, but for what schedules drive."""
        own = ("params", "param_names", "label", *self._driven(group))
        return {key: value for key, value in group.items() if key not in own}


def _coupled(tx: GradientTransformation) -> Iterator[GradientTransformation]:
    """The parts that must see more than a leaf at a time; a schedule counts the same steps for each."""
    if tx.leafwise:
        return
    if tx.members:
        for member in tx.members.values():
            yield from _coupled(member)
        return
    schedules = {key: 0.0 for key, value in tx.arguments.items() if callable(value) and key in _SCHEDULED}
    if not schedules or not tx.replace(**schedules).leafwise:
        yield tx


_SCHEDULED = ("learning_rate", "weight_decay", "step_size_fn")
