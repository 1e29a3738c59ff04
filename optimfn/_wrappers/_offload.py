"""States that lie elsewhere than their parameters."""

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._checks import check_device, check_steps
from .._evaluation import eval_params as _eval_params
from .._lazy import Lazy
from .._recipe import factory
from .._rows import is_donating
from .._state_spec import map_values, values_of
from .._torch import is_dtensor
from .._typing import Params, State, Updates


@factory
def offload(
    tx: GradientTransformation, device: str | torch.device = "cpu", *, min_size: int = 4096
) -> GradientTransformation:
    """Keep the state of a rule on another device, mostly in the memory of the host: fetched for a step, and sent back.

    The steps are those of the rule. On parameters that lie on that device already, nothing is done, and a step runs
    as it would without. What is kept there is pinned if the parameters are on a CUDA device, so that it is fetched
    while the host goes on. A donating step of a rule whose end is `leafwise` goes through the leaves some at a time,
    see `make_step`, so that only a fraction of the state is on the device of the parameters at once; any other step
    holds all of it there until it ends.

    Maths:
        u, s' = rule(g, fetched(s), p);  s' is sent to where s lies

    Args:
        tx: The rule, or a whole optimizer.
        device: Where the state is to lie.
        min_size: Smallest number of elements of a leaf that is sent there, >= 0: a small one saves nothing, and takes
            as long.

    Shapes:
        state: that of `tx`. Sent away are leaves that belong to a parameter; counts and the like stay, and so do
            shards, for which FSDP has a policy of its own.
        Memory: on the device of the parameters none between steps.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the paged optimizers of bitsandbytes, which leave it to the driver what is moved when, and are one
        rule each. A step that moves a state cannot be captured in a CUDA graph, and runs the rule's own operators.

    Source: Rajbhandari et al., 2021, arXiv:2104.07857 (states of an optimizer on the host).

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.offload(of.adamw(1e-3)), {"w": torch.ones(64, 64)}
        >>> state = tx.init(params)  # on the host, if params were on a CUDA device
        >>> state[0].nu["w"].device
        device(type='cpu')
    """
    check_transformation(tx=tx)
    check_device(device=device)
    check_steps(min_size=min_size, at_least=0)
    template, target = values_of(tx), torch.device(device)

    def init(params: Params) -> State:
        def leaf(_: str, x: Any, p: Any) -> Any:
            return x if x.numel() < min_size or x.is_meta or is_dtensor(x) else _sent(x, target, pin=p.is_cuda)

        return map_values(template, leaf, tx.init(params), params)

    def fetched(state: State, params: Params, updates: Updates) -> State:
        """The state on the device of the parameters; without a gradient, only when it is asked for."""

        def leaf(_: str, x: Any, p: Any, g: Any) -> Any:
            if p is None or x.device == p.device or is_dtensor(x):
                return x
            return _Away(x, p.device) if g is None else x.to(p.device, non_blocking=True)

        return map_values(template, leaf, state, params, updates)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        beside = updates if params is None else params
        if len({x.device for x in tree.leaves((beside, state)) if isinstance(x, Tensor) and x.ndim}) <= 1:
            return tx.rule(updates, state, params, **extra)
        inner = fetched(state, beside, updates)
        updates, new = tx.rule(updates, inner, params, **extra)
        return updates, tree.map(_returned, state, inner, new)

    def eval_params(state: State, params: Params) -> Params:
        return _eval_params(tx, fetched(state, params, params), params)

    members = {key: offload(member, device, min_size=min_size) for key, member in tx.members.items()}
    promises: Any = {"leafwise": tx.leafwise, "elementwise": tx.elementwise, "takes_assigned": tx.takes_assigned}
    promises |= {"takes_shards": tx.takes_shards, "eval_params": tx.eval_params and eval_params}
    return GradientTransformation(init, update, members=members, **promises)


class _Away(Lazy):
    """A tensor that is fetched when an operator asks for it.

    Args:
        x: The tensor.
        device: Where to.
    """

    fetch: Callable[[], Tensor]

    @staticmethod
    def __new__(cls: type[Self], x: Tensor, device: torch.device) -> Self:
        """Make what stands for it there."""
        stands: Self = cls.in_place_of(x, device)
        stands.fetch = functools.cache(lambda: x.to(device, non_blocking=True))
        return stands

    def whole(self) -> Tensor:
        """The tensor, which is fetched once."""
        return self.fetch()


def _sent(x: Tensor, device: torch.device, *, pin: bool) -> Tensor:
    """A tensor on that device, in pinned memory if it can be read from there."""
    if x.device == device:
        return x
    return torch.empty_like(x, device=device, pin_memory=pin and device.type == "cpu").copy_(x)


def _returned(old: Any, fetched: Any, new: Any) -> Any:
    """A new leaf of a state where the old one lies; the old one, if it is that."""
    if new is fetched:
        return old
    # A donating step writes it into the old one, and so sends it by itself.
    moves = isinstance(new, Tensor) and new.device != old.device and not (is_donating() or is_dtensor(new))
    return _sent(new, old.device, pin=old.is_pinned()) if moves else new
