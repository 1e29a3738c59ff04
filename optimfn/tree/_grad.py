"""Values and gradients of functions of trees."""

import gc
import itertools
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .._torch import is_differentiating, is_dtensor, is_tracked, placed_like
from .._typing import Tree
from ._core import flatten, leaves, map, unflatten
from ._shared import whole

_CAPTURED = "checkpoint: the function holds a tensor that a derivative is taken by; make it one of its arguments"


def value_and_grad(f: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tree]]:
    """The function that returns the value of `f` and its gradient by the first argument, a tree.

    `torch.func.grad_and_value` does not know all nodes of a tree, and takes `None` for a tensor; and the order here is
    that of the name.

    Args:
        f: A function of a tree, and of anything else, that returns a 0-dim real tensor.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.value_and_grad(of.tree.norm)({"a": torch.tensor([3.0, 4.0]), "b": None})
        (tensor(5.), {'a': tensor([0.6000, 0.8000]), 'b': None})
    """

    def both(tree: Tree, *args: Any, **kwargs: Any) -> tuple[Tensor, Tree]:
        parts = leaves(tree)
        if not parts:
            return f(tree, *args, **kwargs), tree
        if any(is_dtensor(x) for x in parts):
            return _by_autograd(f, tree, args, kwargs)
        grads, value = torch.func.grad_and_value(
            lambda *xs: f(unflatten(tree, list(xs)), *args, **kwargs), argnums=tuple(range(len(parts)))
        )(*parts)
        return value, unflatten(tree, list(grads))

    return both


def _by_autograd(f: Callable[..., Tensor], tree: Tree, args: Any, kwargs: Any) -> tuple[Tensor, Tree]:
    """The same of leaves in shards, which torch.func does not take."""
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in leaves(tree)]
        value = whole(f(unflatten(tree, given), *args, **kwargs))
        grads = torch.autograd.grad(value, given, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else placed_like(g, x) for x, g in zip(given, grads, strict=True)]
    return value.detach(), unflatten(tree, [x.detach() for x in found])


def stop_gradient(tree: Tree) -> Tree:
    """The same values, through which no derivative flows, whichever transformation or mode takes it.

    Applied to parameters and state every k steps it truncates backpropagation through the loop.

    Args:
        tree: Any tree.

    Example:
        >>> import torch, optimfn as of
        >>> torch.func.grad(lambda x: x * of.tree.stop_gradient(x))(torch.tensor(3.0))
        tensor(3.)
    """
    return map(torch.detach, tree)


def checkpoint(f: Callable[..., Tree]) -> Callable[..., Tree]:
    """The same function, which keeps its arguments for the backward pass rather than what it computed on the way.

    The backward pass calls it a second time. Around one step, or some steps, of a loop that is differentiated, the
    memory of the loop is that of its states rather than that of its whole graph.

    It works under autograd and under the transformations of `torch.func`, forward and reverse, and to any order; `f`
    may use these as well. (`torch.utils.checkpoint` cannot have `torch.func` inside of it or around it.)

    Args:
        f: A pure function of trees that returns a tree of tensors. What a derivative is to be taken by must be among
            its arguments.

    Raises:
        RuntimeError: when called, if `f` holds a tensor that a derivative is taken by: in its closure, its defaults or
            the globals it names, or in a module or another object there or among the arguments.

    Example:
        >>> import torch, optimfn as of
        >>> twice = of.tree.checkpoint(lambda x: {"y": torch.sin(torch.sin(x["x"]))})
        >>> torch.func.grad(lambda x: twice({"x": x})["y"])(torch.tensor(0.0))
        tensor(1.)
    """

    def kept(*args: Any, **kwargs: Any) -> Tree:
        given, structure = flatten((args, kwargs))
        where = [i for i, x in enumerate(given) if isinstance(x, Tensor)]
        if _holds_tracked([f, *(x for x in given if not isinstance(x, Tensor))]):
            raise RuntimeError(_CAPTURED)
        results: list[Tree] = []

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            now = list(given)
            for i, x in zip(where, tensors, strict=True):
                now[i] = x
            own_args, own_kwargs = structure.unflatten(now)
            results[:] = [f(*own_args, **own_kwargs)]
            return tuple(leaves(results[0]))

        outputs: Any = _Checkpoint.apply(run, *[given[i] for i in where])  # type: ignore[no-untyped-call]  # torch has no types here
        return unflatten(results[0], list(outputs))

    return kept


class _Checkpoint(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            outputs = run(*[x.detach() for x in tensors])
        if any(x.requires_grad for x in outputs):
            raise RuntimeError(_CAPTURED)
        return tuple(x.view_as(x) for x in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, *tensors = inputs
        ctx.moves = [_moves(x) for x in output]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*[x for x in output if not _moves(x)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        pull_back: Any = torch.func.vjp(_moving(ctx.run, tensors), *filter(_moves, tensors))[1]
        back = iter(pull_back(tuple(itertools.compress(grads, ctx.moves))))
        return None, *[next(back) if _moves(x) else None for x in tensors]

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        given = [torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents, strict=True) if _moves(x)]
        forth = iter(torch.func.jvp(_moving(ctx.run, tensors), tuple(filter(_moves, tensors)), tuple(given))[1])
        return tuple([next(forth) if moves else None for moves in ctx.moves])


def _moving(run: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """`run` as a function of those tensors, and with those results, that have derivatives."""

    def moving(*parts: Tensor) -> tuple[Tensor, ...]:
        own = iter(parts)
        return tuple(filter(_moves, run(*[next(own) if _moves(x) else x for x in tensors])))

    return moving


def _moves(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _holds_tracked(roots: list[Any]) -> bool:
    """Whether something holds, however deep, a tensor that a transformation differentiates by.

    Inside the custom function above it would be a constant without a word.
    """
    if not is_differentiating():
        return False  # autograd's own tensors are found by what the function returns
    rest, seen = list(roots), dict[int, Any]()  # what is seen is kept, so that no other thing gets its id
    while rest:
        x = rest.pop()
        if id(x) not in seen and not isinstance(x, _HOLD_NOTHING):
            seen[id(x)] = x
            if not isinstance(x, Tensor):
                rest += _inside(x)
            elif is_tracked(x):
                return True
    return False


_HOLD_NOTHING = (str, bytes, int, float, complex, type(None), torch.dtype, types.ModuleType, types.CodeType)
_FOREIGN = sys.stdlib_module_names | {
    "torch",
    "optree",
    __name__.partition(".")[0],
}  # whose globals are no one's tensors


def _inside(x: Any) -> Iterable[Any]:
    """What an object holds: a function in its closure, its defaults, and the globals that it names."""
    if isinstance(x, type):
        return () if _is_foreign(x) else [*vars(x).values(), *x.__bases__]
    if not isinstance(x, types.FunctionType):
        return gc.get_referents(x)
    own = [x.__dict__, x.__defaults__, x.__kwdefaults__, *(x.__closure__ or ())]
    return own if _is_foreign(x) else [*own, *(x.__globals__.get(name) for name in _names(x.__code__))]


def _is_foreign(x: Any) -> bool:
    return str(x.__module__).partition(".")[0] in _FOREIGN


def _names(code: types.CodeType) -> list[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [*code.co_names, *itertools.chain.from_iterable(_names(each) for each in inner)]
