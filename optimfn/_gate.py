"""What stands before `init` and `update`: a look at the trees, and float32 in the place of half precision."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch

from . import tree
from ._arguments import check_kinds, mistake, warn_unmatched
from ._assign import is_assigned, refuse, values
from ._recipe import Recipe
from ._rows import are_sparse
from ._typing import Params, State, Updates


class Gate:
    """A function behind a look at the trees that come in from outside."""

    def __init__(self, function: Any) -> None:
        self.function = function
        own: Any = self
        functools.update_wrapper(own, function, updated=())

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # as for any function

    def __reduce__(self) -> Any:
        return type(self), (self.function,)


class InitGate(Gate):
    def __init__(self, function: Any, recipe: Recipe | None = None) -> None:
        super().__init__(function)
        self.recipe = recipe

    def __reduce__(self) -> Any:
        return type(self), (self.function, self.recipe)

    def __call__(self, params: Params) -> State:
        """Make the state for these parameters."""
        tree.check_tensors("params", params)
        wide = tree.widen(params)
        if torch.compiler.is_compiling():
            state: State = self.function(wide)
        else:
            look_for_unmatched(self.recipe, params)
            with unasked():
                state = self.function(wide)
        if wide is not params:
            tree.forget(wide)
        return state


# By these names Python speaks of an argument that is missing.
InitGate.__call__.__qualname__ = "init"


class _Asked(threading.local):
    """Whether the parameters are a part of those that a user has, who has been told about all of them."""

    already = False


_asked = _Asked()


def look_for_unmatched(recipe: Recipe | None, params: Params) -> None:
    """Say what in a recipe matches no parameter, if these are all that a user has."""
    if not _asked.already:
        warn_unmatched(recipe, params)


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Make states of some of the parameters, about which nothing is to be said."""
    before, _asked.already = _asked.already, True
    try:
        yield
    finally:
        _asked.already = before


class UpdateGate(Gate):
    def __init__(self, function: Any, takes_assigned: bool = False, recipe: Recipe | None = None) -> None:
        super().__init__(function)
        self.takes_assigned, self.recipe = takes_assigned, recipe

    def __reduce__(self) -> Any:
        return type(self), (self.function, self.takes_assigned, self.recipe)

    def rule(self, updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        """Transform the updates, without a look at them but for leaves that are assigned."""
        if not self.takes_assigned and is_assigned(updates):
            name = getattr(self.function, "__qualname__", repr(self.function))
            refuse(name if self.recipe is None else self.recipe.factory.__name__, updates)
        new: tuple[Updates, State] = self.function(updates, state, params, **extra)
        return new

    def __call__(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        """Transform the updates; nothing that is passed in is written to."""
        like = updates if params is None else params
        usual = tree.fits(updates, like)
        if not usual:
            tree.check_tensors("updates", updates)
            tree.check_tensors("params", params)
            # A rule may take the gradients of many examples, along a first axis, as long as one update comes out.
            tree.check_shapes(updates, like, examples=True)
        elif params is not None:
            updates = tree.settled(updates, params)
        if usual and not torch.compiler.is_compiling():
            self._look_at_dtypes(updates, like)
        try:
            rule = self.function if usual else self.rule
            new = on_wide(rule, updates, state, params, extra)
        except Exception as error:
            if not usual:
                tree.check_shapes(updates, like)
            wrong = mistake(values(updates), state, params, extra, error) or self._no_sparse(updates, error)
            if wrong is None:
                raise
            raise wrong from error
        if not (usual and params is not None) and not tree.fits(new[0], like):
            if params is None:
                tree.check_shapes(updates, new[0], "the update that it meets in the state", examples=True)
            else:
                tree.check_shapes(new[0], params)
        return new

    def _no_sparse(self, updates: Updates, error: Exception) -> Exception | None:
        """What to say of a sparse gradient that an operator has not taken."""
        if not isinstance(error, RuntimeError) or "parse" not in str(error) or not are_sparse(updates):
            return None
        name = "this rule" if self.recipe is None else self.recipe.factory.__name__
        return TypeError(
            f"{name} takes no sparse gradients: put rows(...) around the whole optimizer, or give it gradients made "
            "dense with .to_dense()"
        )

    def _look_at_dtypes(self, updates: Updates, like: Params) -> None:
        """What goes through a rule without an error, and does not do what was meant."""
        dtypes = {u.dtype for u in tree.leaves(updates)}
        parameters = tree.leaves(like)
        grown = len(parameters) > 0 and parameters[0].grad_fn is not None
        if not dtypes and parameters:
            if grown:  # the loop would go on without moving, or end in an error of torch about graphs
                raise ValueError(_NO_LEAVES)
            warnings.warn("no gradient: all updates are None; was backward called on these parameters?", stacklevel=3)
        elif grown and not any(u.requires_grad for u in tree.leaves(updates)):
            _warn_of_graphs(parameters[0])
        if not all(dtype in _FLOATING for dtype in dtypes):
            check_kinds(updates, like)


UpdateGate.__call__.__qualname__ = "update"


def _warn_of_graphs(parameter: torch.Tensor) -> None:
    """Say once that parameters carry the graphs of steps through which nothing is likely to be differentiated."""
    node, steps = parameter.grad_fn, 0
    while node is not None and steps < _MOST_STEPS:
        node, steps = node.next_functions[0][0] if node.next_functions else None, steps + 1
    if steps == _MOST_STEPS and not _told:
        _told.append(True)
        warnings.warn(
            f"the parameters carry the graph of the last {steps} steps, which takes memory and time at each, though "
            "the gradients have no graph. Begin with {name: p.detach() for name, p in model.named_parameters()} and "
            "torch.func.grad; or with torch.autograd.grad step under torch.no_grad() and mark the new parameters by "
            "requires_grad_()",
            stacklevel=5,
        )


_told: list[bool] = []
_MOST_STEPS = 32  # through more, first-order meta-learning seldom goes
_NO_LEAVES = (
    "no gradient: all updates are None, since these parameters are results of a step and no leaves, in which backward "
    "leaves nothing. Use torch.func.grad of a loss that calls torch.func.functional_call(model, params, x); or step "
    "under torch.no_grad() and mark the new ones, params = {name: p.requires_grad_() for name, p in params.items()}"
)
_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def on_wide(
    rule: Callable[..., tuple[Updates, State]],
    updates: Updates,
    state: State,
    params: Params | None,
    extra: Mapping[str, Any],
) -> tuple[Updates, State]:
    """Call a rule with float32 in the place of leaves of float16 and bfloat16; the updates are float32 then.

    So a chain rounds nothing between its links. What is rounded is what leaves the rule: the parameters for which it
    wants the loss, and in the end the new ones, by `apply_updates`.
    """
    given = updates, params
    wide = (tree.widen(updates), _widen_but_tables(params, updates)) if are_sparse(updates) else tree.widen(given)
    if wide is given:
        return rule(updates, state, params, **extra)
    extra = {key: _from_wide(key, value, params) for key, value in extra.items()}
    # Compilers do not follow what is kept for a thread.
    known = params is not None or torch.compiler.is_compiling()
    with contextlib.nullcontext() if known else tree.shown(updates):
        new = rule(wide[0], state, wide[1], **extra)
    tree.forget(wide)
    return new


def _widen_but_tables(params: Params | None, updates: Updates) -> Params | None:
    """The parameters in float32, but for those of which a step takes out some rows, and widens them itself."""
    if params is None:
        return None
    others = tree.widen(tree.map(lambda p, u: None if u is not None and u.is_sparse else p, params, updates))
    return tree.map(lambda p, other: p if other is None else other, params, others)


def _from_wide(key: str, value: Any, params: Params | None) -> Any:
    """An extra argument for a rule on float32: functions of the parameters are given them as users have them."""
    if key == "grad":
        return tree.widen(value)
    if key not in ("value_fn", "obj_fn", "value_and_grad_fn", "grad_fn") or not callable(value):
        return value

    @functools.wraps(value)
    def of_rounded(at: Params, *args: Any, **kwargs: Any) -> Any:
        form = tree.structure(at)
        # In `lookahead` the parameters are two trees, of which rules inside see one.
        like = [p for p in (params, *(params if isinstance(params, tuple) else ())) if tree.structure(p) == form]
        found = value(tree.cast_like(at, like[0]) if like else at, *args, **kwargs)
        return tree.widen(found) if key in ("value_and_grad_fn", "grad_fn") else found

    return of_rounded
