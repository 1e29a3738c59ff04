"""The words the signatures are written in."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

Tree: TypeAlias = Any
"""Any nest of dicts, lists, tuples and named tuples with tensors at its leaves; `None` is an empty leaf."""

Params: TypeAlias = Tree
"""The tree of tensors that is trained."""

Updates: TypeAlias = Tree
"""A tree like the parameters: gradients, or what a rule has made of them so far."""

State: TypeAlias = Tree
"""What a transformation remembers from step to step: a tree of tensors."""

Scalar: TypeAlias = float | Tensor
"""A Python number, or a 0-dim tensor that may change between steps, be batched or require grad."""

ScheduleFn: TypeAlias = Callable[[int | Tensor], Tensor]
"""A pure function from the number of steps taken before this one to a 0-dim float64 tensor: a `Schedule`, a lambda."""


class Schedule(Protocol):
    """What the factories of schedules return: a `ScheduleFn` that remembers how it was made."""

    def __call__(self, count: int | Tensor, /) -> Tensor:
        """The value after `count` steps."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments it was made with, defaults included."""

    def replace(self, **changes: Any) -> "Schedule":
        """The same schedule with some arguments changed."""


ScalarOrSchedule: TypeAlias = Scalar | ScheduleFn
"""What a learning rate may be."""

Mask: TypeAlias = Tree | Callable[[Params], Tree]
"""A tree of Python bools, a prefix of one, or a function of the parameters that returns either."""

Count: TypeAlias = Any
"""A 0-dim int64 tensor. Named apart because a field `count` hides a method of tuples, which checkers object to."""


class Assign(NamedTuple):
    """An update that is no step: its parameter becomes this value, bit for bit, where `p + (value - p)` may not be it.

    A transformation returns it in the place of a leaf of the updates; `tree.map(Assign, values)` makes a tree of them.
    `apply_updates`, `make_step` and `Optimizer` write the value, rounded once if its dtype is another. What comes after
    it in a chain may look at it (`params_ema`, `monitor`) or leave it alone; what would change it is refused by name.

    Example:
        >>> import torch, optimfn as of
        >>> p, mean = torch.tensor([3e8]), torch.tensor([0.1])
        >>> of.apply_updates(p, mean - p), of.apply_updates(p, of.Assign(mean))
        (tensor([0.]), tensor([0.1000]))
    """

    value: Tensor  # what the parameter is to be, in its shape
