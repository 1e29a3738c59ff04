"""Collect what a state has to say into a flat dict."""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._algorithms.quasi_newton._lbfgs import MinimizeByLbfgsState
from .._base import GradientTransformation
from .._hints import shown
from .._transforms._constraints import ZeroNansState
from .._transforms._linesearch import ScaleByBacktrackingLinesearchState
from .._transforms._monitor import MonitorState, SnapshotState
from .._transforms._plateau import PlateauState
from .._transforms._zoom import ScaleByZoomLinesearchState
from .._typing import State
from .._wrappers._finite import ApplyIfFiniteState
from .._wrappers._hyperparams import InjectHyperparamsState
from .._wrappers._multi_steps import MultiStepsState
from ..tree._query import as_tree


class _Fields(NamedTuple):
    """What is collected from a state."""

    named: tuple[str, ...] = ()  # under the name of the field
    unpacked: tuple[str, ...] = ()  # under the names inside


_SEARCH = _Fields(("learning_rate", "value"), ("info",))
_COLLECTED = {
    ApplyIfFiniteState: _Fields(("notfinite_count", "last_finite", "total_notfinite")),
    InjectHyperparamsState: _Fields((), ("hyperparams",)),
    MinimizeByLbfgsState: _Fields(("n_iter", "func_evals")),
    MonitorState: _Fields((), ("measurements",)),
    MultiStepsState: _Fields(("mini_step", "gradient_step"), ("skip_state",)),
    PlateauState: _Fields(("scale", "best", "num_bad_steps", "cooldown_count")),
    ScaleByBacktrackingLinesearchState: _SEARCH,
    ScaleByZoomLinesearchState: _SEARCH,
    SnapshotState: _Fields((), ("measurement",)),
    ZeroNansState: _Fields(("found_nan",)),
}


def metrics(state: State) -> dict[str, Any]:
    """Collect the scalars of a state that are worth a curve, as a flat dict ready for a logger.

    These are: what `monitor` and `snapshot` measured; the hyperparameters of `inject_hyperparams`; the counts of
    `apply_if_finite` and `multi_steps` and what the latter's skip function said; the scale and the counts of `plateau`;
    the step, the loss and the errors of line searches; the counts of `minimize_by_lbfgs`; the leaves in which
    `zero_nans` found a NaN. Measurements that are no scalars are left out.

    A name is that of the measurement, hyperparameter or field, behind the names and labels of the `named_chain` and
    `partition` it stands in: `"norm"`, `"muon.learning_rate"`. Where two would be the same, both are the whole paths,
    such as `"0.measurements.norm"`.

    Args:
        state: The state of any transformation, or an `Optimizer`.

    Returns:
        0-dim tensors by name, in the order of `tree.leaves`. They are copies, so a step that works in place does not
        change them; none is read back from the device. A stack of states under `vmap` gives stacked values.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.snapshot("norm", of.tree.norm), of.inject_hyperparams(of.sgd)(0.1))
        >>> _, state = tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.zeros(2)))
        >>> {name: round(value.item(), 3) for name, value in of.metrics(state).items()}
        {'norm': 5.0, 'learning_rate': 0.1}
    """
    if isinstance(state, GradientTransformation):
        raise TypeError(f"state must be a state, or an Optimizer, got {shown(state)}: it is made by tx.init(params)")
    found = [
        (short, path, leaf)
        for short, path, leaf in _collect(as_tree(state))
        if not isinstance(leaf, Tensor) or not leaf.ndim
    ]
    often = collections.Counter(short for short, _, _ in found)
    return {
        tree.join_path(path if often[short] > 1 else short): leaf.clone() if isinstance(leaf, Tensor) else leaf
        for short, path, leaf in found
    }


def _collect(state: State) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], Any]]:
    """`(short path, whole path, leaf)` for every leaf of the fields that are collected."""
    nodes = dict(tree.walk(state))
    for path, node in nodes.items():
        fields = _COLLECTED.get(type(node), _Fields())
        names = tuple(key for place, key in enumerate(path) if isinstance(nodes[path[:place]], dict))
        for field in (*fields.unpacked, *fields.named):
            for inner, leaf in tree.leaves_with_path(getattr(node, field)):
                own = inner if field in fields.unpacked else (field, *inner)
                yield (*names, *own), (*path, field, *inner), leaf
