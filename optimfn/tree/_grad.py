"""Values and gradients of functions of trees."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from .._typing import Tree
from ._core import flatten, leaves, map, unflatten

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
        grads, value = torch.func.grad_and_value(
            lambda *xs: f(unflatten(tree, list(xs)), *args, **kwargs), argnums=tuple(range(len(parts)))
        )(*parts)
        return value, unflatten(tree, list(grads))

    return both


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
        RuntimeError: when called, if `f` holds a tensor that a derivative is taken by.

    Example:
        >>> import torch, optimfn as of
        >>> twice = of.tree.checkpoint(lambda x: {"y": torch.sin(torch.sin(x["x"]))})
        >>> torch.func.grad(lambda x: twice({"x": x})["y"])(torch.tensor(0.0))
        tensor(1.)
    """

    def kept(*args: Any, **kwargs: Any) -> Tree:
        if _holds_tracked(f, set()):
            raise RuntimeError(_CAPTURED)
        given, structure = flatten((args, kwargs))
        where = [i for i, x in enumerate(given) if isinstance(x, Tensor)]
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


def _holds_tracked(x: Any, seen: set[int]) -> bool:
    """Whether a function holds, in its closure and what lies in it, a tensor that a transformation differentiates by.

    Inside the custom function below it would be a constant without a word.
    """
    if id(x) in seen:
        return False
    seen.add(id(x))
    if isinstance(x, Tensor):
        return _is_tracked(x)
    inside: list[Any] = []
    if isinstance(x, dict):
        inside = [*x.values()]
    elif isinstance(x, list | tuple | set):
        inside = [*x]
    elif isinstance(x, functools.partial):
        inside = [x.func, *x.args, *x.keywords.values()]
    elif inspect.isfunction(x):
        inside = [cell.cell_contents for cell in x.__closure__ or ()] + [*(x.__defaults__ or ())]
    elif inspect.ismethod(x) or dataclasses.is_dataclass(x):
        inside = [x.__self__] if inspect.ismethod(x) else [*vars(x).values()]
    return any(_holds_tracked(each, seen) for each in inside)


def _is_tracked(x: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_gradtrackingtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False
