"""What stands before `init` and `update`: a look at the trees that come in from outside."""

import functools
from typing import Any, Self

from . import tree
from ._assign import is_assigned, refuse
from ._recipe import Recipe
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
    def __call__(self, params: Params) -> State:
        """Make the state for these parameters."""
        tree.check_tensors("params", params)
        return self.function(params)


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
        try:
            rule = self.function if usual else self.rule
            new: tuple[Updates, State] = rule(updates, state, params, **extra)
        except Exception:
            if not usual:
                tree.check_shapes(updates, like)
            raise
        if not (usual and params is not None) and not tree.fits(new[0], like):
            if params is None:
                tree.check_shapes(updates, new[0], "the update that it meets in the state", examples=True)
            else:
                tree.check_shapes(new[0], params)
        return new
