"""Look at updates on their way through a chain."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import steps
from .._base import GradientTransformation, stateless
from .._checks import check_callable
from .._order import Place
from .._recipe import factory
from .._typing import Params, Scalar, State, Tree, Updates
from ._momentum import EmaState, ema

Measure = Callable[[Updates], Tree]
"""A function of the updates that returns a tensor or a tree of them."""


class SnapshotState(NamedTuple):
    """What was measured last."""

    measurement: dict[str, Tree]  # the result under its name


class MonitorState(NamedTuple):
    """What was measured last, and what the measuring devices remember."""

    measurements: dict[str, Tree]  # the results under their names
    measure_states: tuple[State, ...]  # one for each


@factory
def snapshot(measure_name: str, measure: Measure) -> GradientTransformation:
    """Keep a measurement of the updates in the state; the updates pass through unchanged.

    Read it with `tree.get(state, measure_name)`. Before the first update it shows the measure of the parameters, or
    zeros where these lie in shards on several processes.

    Args:
        measure_name: Name of the measurement.
        measure: Function of the updates that returns a tensor or a tree of them, such as `tree.norm`.

    Shapes:
        state: the measurement, in the shapes and dtypes that it has for the parameters.

    Raises:
        TypeError: at construction if `measure` is not callable.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.snapshot("norm", of.tree.norm), of.clip_by_global_norm(1.0))
        >>> updates, state = tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.zeros(2)))
        >>> of.tree.get(state, "norm")
        tensor(5.)
    """
    check_callable(measure=measure)

    def init(params: Params) -> SnapshotState:
        return SnapshotState({measure_name: _copied(tree.outline(measure, params))})

    def update(
        updates: Updates, state: SnapshotState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SnapshotState]:
        return updates, SnapshotState(tree.keep({measure_name: measure(steps(updates, params))}, state.measurement))

    return GradientTransformation(init, update, takes_assigned=True, place=Place.WATCHES)


@factory
def monitor(measures: Mapping[str, Measure | GradientTransformation]) -> GradientTransformation:
    """Keep several measurements of the updates in the state; the updates pass through unchanged.

    Read one with `tree.get(state, name)`. Before the first update they show the measures of the parameters, or zeros
    where these lie in shards on several processes.

    Args:
        measures: For each name a function of the updates, such as `tree.norm`, or a transformation whose result is the
            measurement, such as `measure_with_ema(...)`.

    Shapes:
        state: measurements, in the shapes and dtypes that they have for the parameters; measure_states, those of the
            transformations.

    Raises:
        TypeError: at construction if a measure is neither, naming it.

    Differs from: optax, where the state gains its measurements with the first update.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.monitor({"norm": of.tree.norm, "mean norm": of.measure_with_ema(of.tree.norm, 0.5)})
        >>> state = tx.init(torch.zeros(2))
        >>> for g in (torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])):
        ...     _, state = tx.update(g, state)
        >>> of.tree.get(state, "norm"), of.tree.get(state, "mean norm")
        (tensor(10.), tensor(8.3333))
    """
    devices = {}
    for name, measure in measures.items():
        if isinstance(measure, GradientTransformation):
            devices[name] = measure
        else:
            check_callable(**{f"measure {name!r}": measure})
            devices[name] = _device(measure)

    def look(
        updates: Updates, states: tuple[State, ...], params: Params | None, extra: dict[str, Any]
    ) -> tuple[dict[str, Tree], tuple[State, ...]]:
        pairs = [
            device.update(updates, state, params, **extra)
            for device, state in zip(devices.values(), states, strict=True)
        ]
        found = {name: measurement for name, (measurement, _) in zip(devices, pairs, strict=True)}
        return found, tuple(state for _, state in pairs)

    def init(params: Params) -> MonitorState:
        states = tuple(device.init(params) for device in devices.values())
        return MonitorState(_copied(tree.outline(lambda given: look(given, states, given, {})[0], params)), states)

    def update(
        updates: Updates, state: MonitorState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MonitorState]:
        found, states = look(steps(updates, params), state.measure_states, params, extra)
        return updates, MonitorState(tree.keep(found, state.measurements), states)

    return GradientTransformation(init, update, takes_assigned=True, place=Place.WATCHES)


@factory
def measure_with_ema(
    measure: Measure, decay: Scalar, debias: bool = True, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Replace the updates by the exponential moving average of a measure of them: a device for `monitor`.

    Args:
        measure: Function of the updates that returns a tensor or a tree of them. A count or a truth value is averaged
            as a number.
        decay: Weight of the mean so far, no unit, in [0, 1).
        debias: Correct for the mean having begun at zero.
        accumulator_dtype: Dtype of the mean; `None` means that of the measure, float32 for float16 and bfloat16.

    Shapes:
        state: that of `ema` for the measure of the parameters.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.measure_with_ema(lambda updates: of.tree.norm(updates) > 4.0, decay=0.5, debias=False)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.zeros(2)))[0]
        tensor(0.5000)
    """
    check_callable(measure=measure)
    mean = ema(decay, debias, accumulator_dtype)

    def init(params: Params) -> EmaState:
        state: EmaState = mean.init(_numbers(tree.outline(measure, params)))
        return state

    def update(
        updates: Updates, state: EmaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmaState]:
        measurement, state = mean.update(_numbers(measure(updates)), state)
        return measurement, state

    return GradientTransformation(init, update)


def _device(measure: Measure) -> GradientTransformation:
    return stateless(lambda updates, params: measure(updates))


def _numbers(measurement: Tree) -> Tree:
    def leaf(x: Tensor) -> Tensor:
        return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())

    return tree.map(leaf, measurement)


def _copied(measurement: Tree) -> Tree:
    """Tensors of its own: a measure may return the parameters themselves."""
    return tree.map(lambda x: x.detach().clone(), measurement)
