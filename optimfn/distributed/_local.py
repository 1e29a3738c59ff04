"""The known algorithms of replicas that meet now and then, each an `outer_sync` or a variation of it."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import torch

from .. import tree
from .._algorithms.momentum._sgd import sgd
from .._base import GradientTransformation, chain, check_transformation
from .._checks import check_decay, check_nonnegative, check_rate, check_steps, need_params
from .._recipe import factory, find_arguments
from .._state_spec import LeafSpec
from .._typing import Assign, Count, Params, Scalar, ScalarOrSchedule, State, Updates
from ._comm import Peers, check_whole, mean
from ._compressors import Compressor
from ._outer import count_step, next_params, outer_sync, wide


class HierarchicalState(NamedTuple):
    """The state of the inner rule, and the steps taken."""

    inner: Annotated[State, LeafSpec("per_replica")]  # each replica's own
    count: Annotated[Count, LeafSpec("host")]  # () int64 on the CPU

    @property
    def params_are_own(self) -> bool:
        """Whether each replica has other parameters, as checkpoints must know: between meetings they do."""
        return True


class SlowMomentumState(NamedTuple):
    """The momentum of the meetings."""

    count: Count  # () int64, meetings
    momentum: Updates  # like params


class SwitchState(NamedTuple):
    """The steps taken."""

    count: Annotated[Count, LeafSpec("host")]  # () int64 on the CPU


@factory
def local_sgd(inner: GradientTransformation, group: Any, every: int, warmup: int = 0) -> GradientTransformation:
    """Let every replica step by itself, and every so many steps take the mean of all parameters.

    Maths:
        x_r <- x_r + inner update         on each replica r, every step
        x_r <- mean over r of x_r         every `every` steps

    Args:
        inner: The rule of every step, such as `sgd`; its state stays each replica's own.
        group: The replicas, see `outer_sync`.
        every: Steps between two means, >= 1.
        warmup: Steps before the first period begins, >= 0.

    Shapes:
        params: needed, all of them on every replica.
        state: that of `inner`; count () int64 on the CPU.
        Sends: 1 all-reduce of the parameters every `every` steps.

    Raises:
        TypeError, ValueError: as `outer_sync`.

    Differs from: torch's PeriodicModelAverager, which counts steps from 0 and so averages after the first; with
        `warmup_steps=every - 1` it averages when this does.

    Source: Stich, 2018, arXiv:1805.09767, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.local_sgd(of.sgd(0.5), None, every=4)
        >>> params = torch.tensor([1.0])
        >>> of.apply_updates(params, tx.update(torch.tensor([1.0]), tx.init(params), params)[0])
        tensor([0.5000])
    """
    return outer_sync(inner, None, group, every, warmup=warmup)


@factory
def post_local_sgd(
    inner: GradientTransformation, group: Any, subgroup: Any, start: int, every: int
) -> GradientTransformation:
    """Average gradients over all replicas at first; later over some of them, and the parameters now and then.

    Maths:
        g <- mean of g over the group       in the first `start` steps
        g <- mean of g over the subgroup    afterwards
        x <- mean of x over the group       every `every` steps, after those

    Args:
        inner: The rule of every step.
        group: All replicas, see `outer_sync`.
        subgroup: Those of them that go on together, such as the processes of one machine; `None` for each by itself.
        start: Steps with the mean of all, >= 0.
        every: Steps between two means of the parameters, >= 1.

    Shapes:
        params: needed, all of them on every replica.
        state: that of `inner`; two counts () int64 on the CPU.
        Sends: 1 all-reduce of the gradients a step; 1 of the parameters every `every` steps.

    Raises:
        TypeError, ValueError: as `outer_sync`.

    Differs from: torch's PostLocalSGDOptimizer with its communication hook, whose first mean of the parameters comes
        one step after `start`.

    Source: Lin et al., 2018, arXiv:1808.07217, Section 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.post_local_sgd(of.sgd(0.5), None, None, start=100, every=4)
        >>> params = torch.tensor([1.0])
        >>> of.apply_updates(params, tx.update(torch.tensor([1.0]), tx.init(params), params)[0])
        tensor([0.5000])
    """
    check_steps(start=start)
    Peers(subgroup)
    return local_sgd(chain(_mean_gradients(group, subgroup, start), inner), group, every, start)


@factory
def _mean_gradients(group: Any, subgroup: Any, start: int) -> GradientTransformation:
    """The mean over a group, and after some steps over a part of it."""
    everyone, near = Peers(group), Peers(subgroup)

    def init(params: Params) -> SwitchState:
        return SwitchState(tree.host_count(params))

    def update(
        updates: Updates, state: SwitchState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SwitchState]:
        count, steps = count_step(state.count, start)
        if steps <= 0 or subgroup is not None:
            updates = mean(updates, everyone if steps <= 0 else near)
        return updates, SwitchState(count)

    return GradientTransformation(init, update)


@factory
def hierarchical_sgd(
    inner: GradientTransformation, periods: Sequence[tuple[int, Any]], warmup: int = 0
) -> GradientTransformation:
    """Take the mean of all parameters often among near replicas, and rarely among all.

    Maths:
        x_r <- x_r + inner update              on each replica r, every step
        x_r <- mean of x_r over a group        of the largest period that divides the steps after the warm-up

    Args:
        inner: The rule of every step; its state stays each replica's own.
        periods: Pairs of a number of steps, >= 1, and the group that meets then, see `outer_sync`; a group of a longer
            period contains those of the shorter ones.
        warmup: Steps before the first period begins, >= 0, as for `outer_sync`.

    Shapes:
        params: needed, all of them on every replica.
        state: that of `inner`; count () int64 on the CPU.
        Sends: 1 all-reduce of the parameters whenever a group meets.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; if two periods are the same.

    Differs from: torch's HierarchicalModelAverager, which counts steps from 0 and so averages after the first; with
        `warmup_steps=1` it averages when this does with `warmup=1`.

    Source: Lin et al., 2018, arXiv:1808.07217, Appendix D; torch.distributed.algorithms.model_averaging.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.hierarchical_sgd(of.sgd(0.5), [(2, None), (8, None)])
        >>> params = torch.tensor([1.0])
        >>> of.apply_updates(params, tx.update(torch.tensor([1.0]), tx.init(params), params)[0])
        tensor([0.5000])
    """
    check_transformation(inner=inner)
    check_steps(warmup=warmup)
    if not periods:
        raise ValueError(f"periods must be pairs of a number of steps and a group, got {periods!r}")
    for period, _ in periods:
        check_steps(**{"a period of hierarchical_sgd": period}, at_least=1)
    groups = {period: Peers(group) for period, group in periods}
    if len(groups) != len(periods):
        raise ValueError(f"the periods must differ, got {[period for period, _ in periods]}")

    def init(params: Params) -> HierarchicalState:
        return HierarchicalState(inner.init(params), tree.host_count(params))

    def update(
        updates: Updates, state: HierarchicalState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, HierarchicalState]:
        need_params("hierarchical_sgd", params)
        check_whole("hierarchical_sgd", updates)
        step, own = inner.rule(updates, state.inner, params, **extra)
        count, steps = count_step(state.count, warmup)
        due = [period for period in groups if steps > 0 and steps % period == 0]
        if due:
            step = tree.map(Assign, mean(wide(next_params(step, params)), groups[max(due)]))
        return step, HierarchicalState(own, count)

    return GradientTransformation(init, update, takes_shards=False)


@factory
def slowmo(
    inner: GradientTransformation,
    group: Any,
    every: int = 48,
    beta: Scalar = 0.5,
    slow_lr: Scalar = 1.0,
    lr: ScalarOrSchedule | None = None,
) -> GradientTransformation:
    """Let every replica step by itself, and every so many steps follow the mean with momentum.

    With a constant rate it is `outer_sync` with an outer `sgd(slow_lr, momentum=beta)`.

    Maths:
        x_r <- x_r + inner update                         on each replica r, every step
        every `every` steps:
        u <- beta u + (anchor - mean of x_r) / lr
        anchor <- anchor - slow_lr lr u,  x_r <- anchor

    Args:
        inner: The rule of every step; its state stays each replica's own.
        group: The replicas, see `outer_sync`.
        every: Steps between two meetings, >= 1.
        beta: Decay of the momentum, no unit, in [0, 1).
        slow_lr: How far to follow it, no unit, >= 0.
        lr: The learning rate of `inner`, > 0, or its schedule, asked for the last step before a meeting; `None` takes
            the one that `inner` has.

    Shapes:
        params: needed, all of them on every replica.
        state: that of `outer_sync`, with a momentum like params.
        Memory: 2 x params beside the state of `inner`.
        Sends: 1 all-reduce of the parameters every `every` steps.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; if `lr` is `None` and `inner` has no
            learning rate, or several.

    Source: Wang et al., 2019, arXiv:1910.00643, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.slowmo(of.sgd(0.5), None, every=1)
        >>> params = torch.tensor([1.0])
        >>> of.apply_updates(params, tx.update(torch.tensor([1.0]), tx.init(params), params)[0])
        tensor([0.5000])
    """
    check_decay(beta=beta)
    check_nonnegative(slow_lr=slow_lr)
    if lr is None:
        rates = list(find_arguments(inner, "learning_rate"))
        if len(rates) != 1:
            raise ValueError(f"lr must be given where inner has not one learning rate but {len(rates)}")
        lr = rates[0]
    check_rate(lr=lr)
    return outer_sync(inner, _slow_momentum(beta, slow_lr, lr, every), group, every)


@factory
def _slow_momentum(beta: Scalar, slow_lr: Scalar, rate: ScalarOrSchedule, every: int) -> GradientTransformation:
    """The momentum of SlowMo, in units of gradients."""

    def init(params: Params) -> SlowMomentumState:
        return SlowMomentumState(tree.count(params), tree.init_moment(params))

    def update(
        updates: Updates, state: SlowMomentumState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SlowMomentumState]:
        lr = rate(state.count * every + (every - 1)) if callable(rate) else rate
        momentum = tree.map(lambda d, u: None if d is None else beta * u + d / lr, updates, state.momentum)
        new = SlowMomentumState(state.count + 1, tree.carry(momentum, state.momentum))
        return tree.scale(-slow_lr * lr, momentum), new

    return GradientTransformation(init, update)


@factory
def diloco(
    inner: GradientTransformation,
    group: Any,
    every: int = 500,
    *,
    outer: GradientTransformation | None = None,
    fragments: int = 1,
    split: str | Callable[[str], int] = "strided",
    delay: int = 0,
    alpha: float = 0.0,
    compress: torch.dtype | Compressor | None = None,
    warmup: int = 0,
) -> GradientTransformation:
    """Train replicas that hardly communicate: hundreds of own steps, then one step of Nesterov momentum for all.

    With `fragments`, `delay` and `alpha` it is the streaming form: parts of the parameters meet one after the other,
    while the next steps compute.

    Args:
        inner: The rule of every step, usually `adamw`; its state stays each replica's own.
        group: The replicas, see `outer_sync`.
        every: Steps between two meetings of the same parameter, >= 1.
        outer: The rule of the meetings; `None` is `sgd(0.7, momentum=0.9, nesterov=True)`.
        fragments: As for `outer_sync`.
        split: As for `outer_sync`.
        delay: As for `outer_sync`.
        alpha: As for `outer_sync`.
        compress: As for `outer_sync`.
        warmup: As for `outer_sync`.

    Shapes:
        params: needed, all of them on every replica.
        state: that of `outer_sync`.
        Memory: 2 x params beside the state of `inner`, 1 more with a delay, and 1 with a compressor.
        Sends: 1 all-reduce of a fragment every `every / fragments` steps.

    Raises:
        TypeError, ValueError: as `outer_sync`.

    Source: Douillard et al., 2023, arXiv:2311.08105, Algorithm 1; Douillard et al., 2025, arXiv:2501.18512.

    Example:
        >>> import torch, optimfn as of
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = of.Optimizer(model, of.distributed.diloco(of.adamw(3e-4), None, every=100))
        >>> opt.param_groups[0]["lr"]
        0.0003
    """
    if outer is None:
        outer = sgd(0.7, momentum=0.9, nesterov=True)
    return outer_sync(
        inner,
        outer,
        group,
        every,
        fragments=fragments,
        split=split,
        delay=delay,
        alpha=alpha,
        compress=compress,
        warmup=warmup,
    )
