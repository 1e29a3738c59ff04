"""The one engine behind `Optimizer` and the drop-in classes.

Each of the two is a source: it says what rules its groups stand for, with which numbers, and what an entry of the
state is called. What is done with that stands here once: parameters that share a past step together in one donating
step, which is bound to parameters, state and numbers as long as nobody changes what the optimizer holds.
"""

import os
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._base import GradientTransformation
from .._torch import unseen
from ..fused.run._process import without_collecting
from ._amp import unscale
from ._bound import Bound, Grads, is_all_absent
from ._closure import extras_of
from ._contract import every, is_capturing, is_watched, report_step
from ._counts import Counts
from ._groups import check_memory, check_runs, common_fused
from ._layout import Entries, ParamKey
from ._mould import Mould, mould_for
from ._numbers import Numbers
from ._pipeline import EngineState, Part, build, whole
from ._runs import Place, Placed, apart, cohorts, common_places, place_run, told_apart
from ._source import Said, Source

_BACKENDS = {None: "auto", True: "fused", False: "eager"}  # what `fused` stands for


class Engine(Source):
    """The part of an optimizer that takes steps."""

    _bound: Bound | None = None

    # Steps

    @partial(unseen, recursive=False)  # a compiler compiles what it calls: the closure, and the rule itself
    def _step(self, closure: Callable[[], Any] | None, extra: dict[str, Any]) -> Any:
        """Take a step; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lock = self.__dict__.setdefault("_lock", threading.RLock())
        with lock, torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            if self._bound is not None and self._bound.is_eager:
                self._take(closure, loss, extra)
            else:
                self._take_alone(closure, loss, extra)
        return loss

    @unseen  # kernels are no operators
    def _take_alone(self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]) -> None:
        self._take(closure, loss, extra)

    @partial(unseen, recursive=False)
    def _take(self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]) -> None:
        bound, grads, extra = self._ready(closure, loss, extra)
        if bound is None:
            return
        try:
            bound.take(grads, **extra)
        except (TypeError, ValueError) as error:
            if not extra and re.search("value|loss", str(error)):
                hint = "an optimizer hands it over in step(closure), or by name, as in step(value=loss)"
                raise type(error)(f"{error}; {hint}") from error
            raise
        self._finish(bound, grads, extra)

    @unseen  # bookkeeping, which would be compiled again for every number
    def _ready(
        self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]
    ) -> tuple[Bound | None, Grads, dict[str, Any]]:
        """What is to step, the gradients, and what else the rule is given; nothing if there is no step to take."""
        if all(p.grad is None for group in self.param_groups for p in group["params"]):  # the first tells, mostly
            return None, {}, {}
        if not self.state and self._bound is None and self._is_rehearsal():
            self._rehearse()
            return None, {}, {}
        bound, grads = self._current(True)
        assert bound is not None
        assert grads is not None
        if is_capturing(self.param_groups):
            self._check_capture()
        if closure is not None:
            extra = {**extras_of(closure, loss, bound.params), **extra}
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            extra = dict(extra, found_inf=found_inf, grad_scale=getattr(self, "grad_scale", None))
        return bound, grads, extra

    @unseen
    def _finish(self, bound: Bound, grads: Grads, extra: Mapping[str, Any]) -> None:
        if extra.get("grad_scale") is not None:
            unscale(bound.params.values(), extra["found_inf"], extra["grad_scale"])
        self._count(bound, grads, extra)
        self._publish(bound)
        report_step(self)

    def _current(self, is_step: bool) -> tuple[Bound | None, Grads | None]:
        """What is bound to groups and state as they are, its numbers written; and for a step the gradients."""
        capturing = is_capturing(self.param_groups)
        said = self._say(capturing)
        rules, values = [one for one, _ in said], [own for _, own in said]
        numbers, bound = self._live_numbers(), self._bound
        were_apart, separated = numbers.apart(), numbers.separate(values)
        differentiable = self.defaults.get("differentiable", False)  # tensors are used as they are, and may be new ones
        fits = not (self._runs_otherwise() or bound is None or separated or differentiable) and bound.fits(
            rules, self.param_groups, self.state
        )
        grads = bound.gradients() if fits and bound is not None and is_step else None
        if not fits or (is_step and grads is None):
            if capturing:
                raise RuntimeError("take a step before capturing one, so that the state is there, and lies still")
            try:
                with without_collecting():
                    bound = self._join(said)
            except BaseException:  # the numbers may be those of other runs already
                self._bound = None
                numbers.rejoin(were_apart)
                raise
            grads = [p.grad for p in bound.params.values()]
        elif not (capturing and is_watched()):
            numbers.write(values, capturing)
        if bound is None or grads is None:
            return bound, None
        return bound, self._named(bound, grads)

    def _join(self, said: Sequence[Said]) -> Bound:
        """Bind the parameters that have had gradients, with their state, to one donating step."""
        names = self._names()
        here = [self._active(group, own) for group, own in zip(self.param_groups, names, strict=True)]
        params = {name: p for own in here for name, p in own.items()}
        self._own("_parted", set).update(p for p in params.values() if p.grad is None and self.has_state(p))
        differentiable = self.defaults.get("differentiable", False)
        parts, numbers = self._parts(said, differentiable)
        rates = self._rates()
        mould = mould_for(type(self), parts, numbers, rates)
        chosen = list(map(list, here))
        places = common_places(mould, chosen)
        if keys := told_apart(mould, places, chosen, params, self):
            self._live_numbers().keep_apart(keys)
            return self._join(said)
        placed, waiting = self._place(mould, places, params)
        state = EngineState(apart(placed), rates, numbers)
        runs = tuple([each.run for each in placed])

        def fixed() -> GradientTransformation:
            # A compiler traces twice what has plain 0-dim tensors of float64: it tries to make numbers of them first.
            own = numbers if differentiable else [torch.nn.Parameter(x, requires_grad=False) for x in numbers]
            return whole(build(parts, runs, own, rates), parts, runs)

        counts = Counts(self._shown(params, placed))
        rules, tx = [one for one, _ in said], mould.whole(runs)
        bound = self._bound = Bound(rules, tx, fixed, placed, params, state, counts, self._backend())
        self._watch(bound, waiting)
        return bound

    def _shown(self, params: Mapping[ParamKey, Tensor], placed: Sequence[Placed]) -> dict[ParamKey, Entries]:
        """What torch shows of the counts of each parameter."""
        return {}

    def _count(self, bound: Bound, grads: Grads, extra: Mapping[str, Any]) -> None:
        """Bring that up to date after a step."""

    def _publish(self, bound: Bound) -> None:
        """Put the state where the optimizer keeps it."""
        raise NotImplementedError

    def _active(self, group: Mapping[str, Any], names: Sequence[ParamKey]) -> dict[ParamKey, Tensor]:
        """The parameters of a group that have, or have had, a gradient."""
        was = set() if self._bound is None else set(map(id, self._bound.params.values()))
        everyone = dict(zip(names, group["params"], strict=True))
        some = {name: p for name, p in everyone.items() if p.grad is not None or self.has_state(p) or id(p) in was}
        return everyone if len(some) < len(everyone) and self._sees_all() else some

    def _parts(self, said: Sequence[Said], differentiable: bool) -> tuple[tuple[Part, ...], tuple[Tensor, ...]]:
        """What the groups contribute, and the tensors for their numbers."""
        some = every(self.param_groups)[0]
        near = [next(iter(group["params"]), some) for group in self.param_groups]
        slots, tensors = self._live_numbers().bind([values for _, values in said], near, differentiable)
        rules, schedules = [one for one, _ in said], map(self._schedules, self.param_groups)
        return tuple(map(Part, rules, slots, schedules)), tensors

    def _place(
        self, mould: Mould, places: Sequence[Place], params: Mapping[ParamKey, Tensor]
    ) -> tuple[list[Placed], set[ParamKey]]:
        """The runs in order, and the parameters that are still to begin in one of them."""
        positions = {name: i for i, name in enumerate(params)}
        placed, waiting = [], set()
        for place in places:
            found = cohorts(mould, place, params, self)
            waiting |= set(place.names).difference(*(cohort.names for cohort in found))
            placed += [place_run(mould, place, one, params, positions, self) for one in found if one.names]
        return placed, waiting

    def _watch(self, bound: Bound, waiting: Collection[ParamKey] | None = None) -> None:
        bound.watch([group["params"] for group in self.param_groups], self.state, waiting)

    def _named(self, bound: Bound, grads: Sequence[Tensor | None]) -> Grads:
        """The gradients by name."""
        return dict(zip(bound.params, grads, strict=True))

    def _backend(self) -> str | None:
        """How steps run, as for `make_step`; `None` for those through which gradients flow."""
        if self.defaults.get("differentiable", False):
            return None
        backend = _BACKENDS[common_fused(self.param_groups)]
        return (os.environ.get("OPTIMFN_BACKEND") or backend) if backend == "auto" else backend

    def _runs_otherwise(self) -> bool:
        """Whether groups say something else than before about how steps run."""
        said = [(group.get("fused"), group.get("differentiable")) for group in self.param_groups]
        if said == self.__dict__.get("_said_of_runs"):
            return False
        check_runs(self.param_groups, self.defaults.get("differentiable", False))
        self.__dict__["_said_of_runs"] = said
        return True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters."""
        super().add_param_group(param_group)
        try:
            check_memory(self.param_groups, self._own("_memory", dict))
        except ValueError:
            self.param_groups.pop()
            raise

    def write_hyperparameters(self) -> None:
        """Put the hyperparameters of the groups into the tensors that the rule reads.

        A step does it by itself. It is for a CUDA graph captured by hand: call it before a replay, and changed
        numbers in `param_groups` take effect in it.
        """
        self._current(False)

    def settle(self) -> None:
        """Bind the step to the gradients as they are now; for who is about to capture it."""
        if not is_all_absent([p.grad for p in every(self.param_groups)]):
            self._current(True)

    def addresses(self) -> tuple[int, ...]:
        """Where parameters, state and hyperparameters lie; a captured graph holds as long as that stays so.

        Like `write_hyperparameters`, it first puts the hyperparameters of the groups where the rule reads them.
        """
        bound, _ = self._current(False)
        return () if bound is None else (*map(id, bound.rules), *bound.addresses())

    def _live_numbers(self) -> Numbers:
        numbers: Numbers = self._own("_numbers", lambda: Numbers(not self.counts_alone))
        return numbers

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("_bound", "_parted"):
            self.__dict__.pop(name, None)
        super().__setstate__(state)
