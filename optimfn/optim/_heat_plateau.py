"""The plateau detector of Heat, as an object that counts for itself."""

from typing import Any

import torch

from .._checks import check_choice
from .._transforms._plateau import DetectPlateauState, detect_plateau

_FIELDS = (
    "patience",
    "cooldown",
    "cooldown_counter",
    "mode",
    "threshold",
    "threshold_mode",
    "best",
    "num_bad_epochs",
    "mode_worse",
    "last_epoch",
)


class DetectMetricPlateau:
    """Tell whether a metric has stopped improving: `heat.optim.utils.DetectMetricPlateau`, by its names.

    The pure form is `optimfn.detect_plateau`, whose rule this is.

    Args:
        mode: `"min"` if a small metric is good, `"max"` if a large one is.
        patience: Metrics without improvement that are not a plateau yet, >= 0.
        threshold: Improvement that counts, >= 0: a fraction of the best metric, or in the unit of the metric.
        threshold_mode: `"rel"` or `"abs"`.
        cooldown: Metrics after a plateau that are not counted, >= 0.

    Raises:
        ValueError: if there is no such mode or threshold mode.

    Example:
        >>> import optimfn as of
        >>> detector = of.optim.DetectMetricPlateau(patience=1)
        >>> [detector.test_if_improving(loss) for loss in (3.0, 2.0, 2.0, 2.0)]
        [False, False, False, True]
    """

    patience: int
    cooldown: int
    cooldown_counter: int
    mode: str
    threshold: float
    threshold_mode: str
    best: float
    num_bad_epochs: int
    mode_worse: float
    last_epoch: int

    def __init__(
        self,
        mode: str = "min",
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
    ) -> None:
        check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        detect_plateau(mode, patience, threshold, threshold_mode, cooldown)  # which judges the others
        self.mode, self.patience, self.threshold = mode, patience, threshold
        self.threshold_mode, self.cooldown, self.last_epoch = threshold_mode, cooldown, 0
        self.mode_worse = float("inf") if mode == "min" else -float("inf")
        self.reset()

    def reset(self) -> None:
        """Forget the best metric and the counts, but for the number of metrics."""
        self.best, self.cooldown_counter, self.num_bad_epochs = self.mode_worse, 0, 0

    @property
    def in_cooldown(self) -> bool:
        """Whether metrics are not counted."""
        return self.cooldown_counter > 0

    def is_better(self, a: float, best: float) -> bool:
        """Whether a metric is better than another by more than the threshold."""
        fresh = self._seen()._replace(best=torch.tensor(best, dtype=torch.float64))
        _, seen = self._detector().update(float(a), fresh)
        return float(seen.best) != best

    def test_if_improving(self, metrics: Any) -> bool:
        """Count a metric; `True` says that there is a plateau, so that it has *not* improved, in spite of the name."""
        self.last_epoch += 1
        hit, seen = self._detector().update(float(metrics), self._seen())
        self.best, self.num_bad_epochs = float(seen.best), int(seen.num_bad_steps)
        self.cooldown_counter = int(seen.cooldown_count)
        return bool(hit)

    def get_state(self) -> dict[str, Any]:
        """The arguments, and what has been seen."""
        return {name: getattr(self, name) for name in _FIELDS}

    def set_state(self, dic: dict[str, Any]) -> None:
        """Go on from what `get_state` has returned.

        Raises:
            KeyError: if something is missing, or there is more; nothing has changed then.
        """
        if set(dic) != set(_FIELDS):
            raise KeyError(f"the state of a plateau has {sorted(_FIELDS)}, got {sorted(dic)}")
        for name in _FIELDS:
            setattr(self, name, dic[name])

    def _detector(self) -> Any:
        return detect_plateau(self.mode, self.patience, self.threshold, self.threshold_mode, self.cooldown)

    def _seen(self) -> DetectPlateauState:
        counts = torch.tensor(self.num_bad_epochs), torch.tensor(self.cooldown_counter)
        return DetectPlateauState(torch.tensor(self.best, dtype=torch.float64), *counts)
