"""Pictures of schedules and of paths, with matplotlib, which is not needed for anything else."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates, check_transformation
from .._checks import check_callable, check_choice, check_number, check_steps
from .._typing import ScalarOrSchedule


class _Landscape(NamedTuple):
    """A test function of the plane."""

    function: Callable[[Tensor], Tensor]
    minima: tuple[tuple[float, float], ...]
    x: tuple[float, float]  # what is shown at least
    y: tuple[float, float]


_LANDSCAPES = {
    "beale": _Landscape(
        lambda p: (
            (1.5 - p[0] + p[0] * p[1]) ** 2
            + (2.25 - p[0] + p[0] * p[1] ** 2) ** 2
            + (2.625 - p[0] + p[0] * p[1] ** 3) ** 2
        ),
        ((3.0, 0.5),),
        (-1.0, 4.0),
        (-1.5, 2.0),
    ),
    "booth": _Landscape(
        lambda p: (p[0] + 2 * p[1] - 7) ** 2 + (2 * p[0] + p[1] - 5) ** 2, ((1.0, 3.0),), (-6.0, 6.0), (-6.0, 6.0)
    ),
    "himmelblau": _Landscape(
        lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2,
        ((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)),
        (-5.0, 5.0),
        (-5.0, 5.0),
    ),
    "rosenbrock": _Landscape(
        lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, ((1.0, 1.0),), (-2.0, 2.0), (-1.0, 3.0)
    ),
    "three_hump_camel": _Landscape(
        lambda p: 2 * p[0] ** 2 - 1.05 * p[0] ** 4 + p[0] ** 6 / 6 + p[0] * p[1] + p[1] ** 2,
        ((0.0, 0.0),),
        (-2.5, 2.5),
        (-2.5, 2.5),
    ),
}
_GRID, _LEVELS = 200, 20


def plot_schedule(schedule: ScalarOrSchedule | Mapping[str, ScalarOrSchedule], steps: int, *, ax: Any = None) -> Any:
    """Plot the values of a schedule over its first steps, or those of several under their names.

    Args:
        schedule: A schedule, or a number; or a dict of them.
        steps: How many steps to show, >= 1, from 0 on.
        ax: The matplotlib `Axes` to draw on; `None` makes a figure with `matplotlib.pyplot`.

    Returns:
        The `Axes`; `ax.figure.savefig(path)` writes the picture.

    Raises:
        ModuleNotFoundError: if `ax` is `None` and matplotlib is not installed.
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import optimfn as of
        >>> ax = of.plot_schedule(of.linear_schedule(1.0, 0.0, transition_steps=10), steps=20)
        >>> ax.lines[0].get_ydata()[[0, 5, 19]].tolist()
        [1.0, 0.5, 0.0]
    """
    check_steps(steps=steps, at_least=1)
    several = schedule if isinstance(schedule, Mapping) else {"": schedule}
    for name, value in several.items():
        if not callable(value):
            check_number(**{f"schedule {name!r}" if name else "schedule": value})
    ax = _axes("plot_schedule") if ax is None else ax
    for name, value in several.items():
        ax.plot(range(steps), _values(value, steps), label=name or None)
    ax.set(xlabel="step", ylabel="value")
    if any(several):
        ax.legend()
    return ax


def plot_path(
    tx: GradientTransformation | Mapping[str, GradientTransformation],
    function: str | Callable[[Tensor], Tensor],
    start: Sequence[float] | Tensor,
    steps: int,
    *,
    ax: Any = None,
) -> Any:
    """Plot the way of an optimizer over the contours of a function of the plane, or those of several, by name.

    Everything is in float64. The rules are given the loss, its gradient and the function as `value`, `grad` and
    `value_fn`, so line searches run too. A path ends before a point that is not finite. The contours are those of the
    logarithm of the height above the lowest point in sight; stars are the lowest points of the named functions.

    Args:
        tx: A transformation, or a dict of them.
        function: `"beale"`, `"booth"`, `"himmelblau"`, `"rosenbrock"` or `"three_hump_camel"`; or a function of a
            tensor (2,) that returns a 0-dim tensor and runs under `vmap`.
        start: The two coordinates of the point to start from.
        steps: How many steps to make, >= 1.
        ax: The matplotlib `Axes` to draw on; `None` makes a figure with `matplotlib.pyplot`.

    Returns:
        The `Axes`; its `lines` have the points of the paths, `ax.figure.savefig(path)` writes the picture.

    Raises:
        ModuleNotFoundError: if `ax` is `None` and matplotlib is not installed.
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> ax = of.plot_path(of.sgd(0.1), "booth", start=(-4.0, 4.0), steps=100)
        >>> torch.tensor(ax.lines[0].get_xydata()[-1])
        tensor([1.0000, 3.0000], dtype=torch.float64)
    """
    check_steps(steps=steps, at_least=1)
    several = tx if isinstance(tx, Mapping) else {"": tx}
    check_transformation(**{f"tx {name!r}" if name else "tx": member for name, member in several.items()})
    known = None
    if isinstance(function, str):
        check_choice("function", function, tuple(_LANDSCAPES))
        known = _LANDSCAPES[function]
    else:
        check_callable(function=function)
    f = known.function if known else function
    begin = torch.as_tensor(start, dtype=torch.float64)
    if begin.shape != (2,):
        raise ValueError(f"start must have two coordinates, got {start!r}")
    paths = {name: _path(member, f, begin, steps) for name, member in several.items()}
    ax = _axes("plot_path") if ax is None else ax
    points = torch.cat(list(paths.values()))
    view = [_span(points[:, i], (known.x, known.y)[i] if known else None) for i in range(2)]
    _draw_contours(ax, f, *view)
    for name, points in paths.items():
        ax.plot(*points.T.numpy(), ".-", markersize=4, linewidth=1, label=name or None)
    ax.plot(*begin.numpy(), "ko", markersize=5)
    for minimum in known.minima if known else ():
        ax.plot(*minimum, "k*", markersize=9)
    ax.set(xlim=view[0], ylim=view[1])
    if any(several):
        ax.legend()
    return ax


def _axes(caller: str) -> Any:
    """Axes of a new figure. Matplotlib is looked for here, so that nothing else needs it."""
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{caller} needs matplotlib: pip install matplotlib") from error
    return pyplot.subplots(layout="constrained")[1]


def _values(schedule: ScalarOrSchedule, steps: int) -> list[float]:
    if not callable(schedule):
        return [float(schedule)] * steps
    return [float(schedule(torch.tensor(count))) for count in range(steps)]


def _path(tx: GradientTransformation, f: Any, start: Tensor, steps: int) -> Tensor:
    """The points (n, 2), up to the first that is not finite."""
    state, points = tx.init(start), [start]
    for _ in range(steps):
        value, grad = tree.value_and_grad(f)(points[-1])
        updates, state = tx.update(grad, state, points[-1], value=value, grad=grad, value_fn=f)
        point = apply_updates(points[-1], updates)
        if not point.isfinite().all():
            break
        points.append(point)
    return torch.stack(points).detach()


def _span(values: Tensor, known: tuple[float, float] | None) -> tuple[float, float]:
    """What to show along an axis: all points; of a named function its own place, and points not too far from it."""
    if known is not None:
        width = known[1] - known[0]
        near = values[(values >= known[0] - width) & (values <= known[1] + width)]
        values = torch.cat([near, torch.tensor(known, dtype=torch.float64)])
    low, high = float(values.min()), float(values.max())
    if known == (low, high):
        return known
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def _draw_contours(ax: Any, f: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    xs, ys = (torch.linspace(*span, _GRID, dtype=torch.float64) for span in (x, y))
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
    heights = torch.func.vmap(f)(points).detach().reshape(_GRID, _GRID)
    known = heights[heights.isfinite()]
    if known.numel() == 0 or known.min() == known.max():
        return
    floor = 1e-4 * (known.max() - known.min())
    shown = torch.where(heights.isfinite(), torch.log(heights - known.min() + floor), math.nan)
    ax.contour(xs.numpy(), ys.numpy(), shown.numpy(), _LEVELS, colors="0.75", linewidths=0.6, linestyles="solid")
