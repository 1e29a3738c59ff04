"""The laws of transformations, for those of your own: `check` tries them, and says which does not hold and where.

The table of this package's own rules is held to the same functions.
"""

import io
import pickle
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from . import tree
from ._assign import values
from ._base import GradientTransformation, apply_updates, check_transformation
from ._checks import check_choice
from ._state_dict import load_state_dict, state_dict
from ._typing import Params, Updates
from ._wrappers._per_leaf import per_leaf
from .fused import make_step

Extra = Mapping[str, Any]


def check(
    tx: GradientTransformation,
    params: Params | None = None,
    *,
    exempt: Collection[str] = (),
    rtol: float = 1e-9,
    **extra: Any,
) -> None:
    """Try the laws that every transformation of this package obeys on one of your own.

    - `"pure"`: `update` writes to no argument, and gives the same result again.
    - `"form"`: updates have the shapes of the gradients, and their dtypes, in float32 too; the state keeps its
      structure, shapes and dtypes.
    - `"extra"`: `update` takes arguments that are meant for others in a chain.
    - `"promises"`: if it says that it is `leafwise`, each leaf alone takes the steps that it takes among others.
    - `"absent"`: where a gradient is `None` there is no update, and the state of that leaf stays.
    - `"vmap"`: three stacked members take the steps of three runs.
    - `"halves"`: a step with parameters and gradients of bfloat16 is that of float32, rounded once.
    - `"executions"`: `make_step`, donating or not, eager and as kernels where that can be, gives the same parameters.
    - `"resume"`: a state that went through a weights-only file goes on as before.
    - `"value"`: it pickles, if a `factory` recorded it, into an equal one.

    Args:
        tx: The transformation.
        params: Parameters to try it on, in float64 where numbers are to be compared closely; `None` takes a dict of a
            matrix, a vector and a 0-dim tensor.
        exempt: Laws to leave out, by name.
        rtol: How far stacked members and kernels may be off, relative to the largest number of a leaf; > 0. Half
            precision is held to one unit of bfloat16.
        **extra: What `update` takes besides, such as `value=torch.tensor(1.0)`.

    Raises:
        AssertionError: naming the first law that does not hold, and where.
        ValueError: if `exempt` names no law.

    Example:
        >>> import torch, optimfn as of
        >>> of.testing.check(of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3)))
        >>> def forgetful(updates, state, params=None, **extra):
        ...     return of.tree.map(lambda u: u.mul_(2.0), updates), state
        >>> of.testing.check(of.GradientTransformation(lambda params: of.EmptyState(), forgetful))
        Traceback (most recent call last):
        AssertionError: pure: update has written to updates.bias
    """
    check_transformation(tx=tx)
    for name in exempt:
        check_choice("exempt", name, tuple(LAWS))
    params = _usual() if params is None else params
    for name, law in LAWS.items():
        if name not in exempt:
            try:
                law(tx, params, extra, rtol)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
            except Exception as error:
                raise AssertionError(f"{name}: raises {type(error).__name__}: {error}") from error


def _usual() -> Params:
    return like({"weight": torch.zeros(3, 2), "bias": torch.zeros(2), "gain": torch.zeros(())}, 0, torch.float64)


def like(params: Params, seed: int, dtype: torch.dtype | None = None) -> Any:
    """A tree of normal numbers in the shapes of another."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(p: Tensor) -> Tensor:
        kind = torch.complex128 if p.is_complex() else torch.float64
        return torch.randn(p.shape, generator=generator, dtype=kind).to(p.device, dtype or p.dtype)

    return tree.map(leaf, params)


def is_pure(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """`update` writes to no argument, and gives the same result again."""
    state, grads = tx.init(params), like(params, 1)
    named = [
        (tree.join_path((name, *path)), x)
        for name, one in (("params", params), ("state", state), ("updates", grads))
        for path, x in tree.leaves_with_path(one)
        if isinstance(x, Tensor)
    ]
    versions = [x._version for _, x in named]
    first = tx.update(grads, state, params, **extra)
    for (name, x), version in zip(named, versions, strict=True):
        assert x._version == version, f"update has written to {name}"
    _same(tx.update(grads, state, params, **extra), first, "the second call of update")


def keeps_its_form(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """Updates are like gradients, and the state keeps its structure, shapes and dtypes."""
    for own in (params, tree.map(lambda p: p if p.is_complex() else p.float(), params)):
        state, grads = tx.init(own), like(own, 1)
        updates, new_state = tx.update(grads, state, own, **extra)
        _alike(new_state, state, "the new state")
        _alike(values(updates), grads, "the tree of updates")
        _alike(apply_updates(own, updates), own, "the parameters")


def takes_more(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """What is meant for others does not matter."""
    state, grads = tx.init(params), like(params, 1)
    expected = tx.update(grads, state, params, **extra)
    try:
        more = tx.update(grads, state, params, **extra, meant_for_others=torch.zeros(()))
    except TypeError as error:
        raise AssertionError(
            f"give update a parameter **extra, for what others in a chain are given: {error}"
        ) from None
    _same(more, expected, "update with an argument that is meant for others")


def keeps_promises(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 1e-9) -> None:
    """If no leaf sees another, each takes alone the steps that it takes among others."""
    if not tx.leafwise:
        return
    apart = per_leaf(tx)
    state, alone = tx.init(params), apart.init(params)
    for seed in range(3):
        grads = like(params, seed)
        updates, state = tx.update(grads, state, params, **extra)
        expected, alone = apart.update(grads, alone, params, **extra)
        _near(values(updates), values(expected), rtol, "it says that it is leafwise, and an update among others")


def leaves_out_the_absent(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """Where a gradient is `None` there is no update, and the state of that leaf stays."""
    leaves, form = tree.flatten(params)
    state = tx.update(like(params, 1), tx.init(params), params, **extra)[1]
    for absent in range(len(leaves)):
        grads = form.unflatten([None if i == absent else g for i, g in enumerate(tree.flatten(like(params, 2))[0])])
        updates, new_state = tx.update(grads, state, params, **extra)
        path = tree.leaves_with_path(params)[absent][0]
        assert tree.flatten(updates)[0][absent] is None, f"{tree.join_path(path)} has an update without a gradient"
        for (place, old), (_, new) in zip(tree.leaves_with_path(state), tree.leaves_with_path(new_state), strict=True):
            if path and place[-len(path) :] == path:
                _same(new, old, f"the state {tree.join_path(place)} of a leaf without a gradient")


def stacks(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 1e-9) -> None:
    """Stacked members under `vmap` take the steps of separate runs."""
    members, steps = [like(params, seed) for seed in range(3)], 3
    gradients = [[like(params, 10 + 3 * step + i) for i in range(3)] for step in range(steps)]

    def take(params: Params, state: Any, grads: Updates) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return apply_updates(params, updates), state

    own = _stack(members)
    state = torch.func.vmap(tx.init)(own)
    for grads in gradients:
        own, state = torch.func.vmap(take)(own, state, _stack(grads))
    for i, member in enumerate(members):
        alone = tx.init(member)
        for grads in gradients:
            member, alone = take(member, alone, grads[i])
        _near(tree.map(lambda x, i=i: x[i], own), member, rtol, f"member {i} of a stack")


def rounds_once(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """A step with leaves of bfloat16 is that of float32, rounded once."""
    if any(x.is_complex() for x in tree.leaves(params)):
        return
    half = tree.map(lambda p: p.to(torch.bfloat16), params)
    grads = tree.map(lambda g: g.to(torch.bfloat16), like(params, 1))
    updates, _ = tx.update(grads, tx.init(half), half, **extra)
    wide = tree.map(lambda p: p.float(), half)
    expected, _ = tx.update(tree.map(lambda g: g.float(), grads), tx.init(wide), wide, **extra)
    new = apply_updates(half, updates)
    assert all(x.dtype == torch.bfloat16 for x in tree.leaves(new)), "parameters of bfloat16 have become others"
    _near(tree.map(lambda x: x.float(), new), apply_updates(wide, expected), 2.0**-8, "a step in bfloat16")


def runs_alike(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 1e-9) -> None:
    """`make_step` gives what `update` and `apply_updates` give, in whatever way it runs."""
    gradients = [like(params, seed) for seed in range(3)]
    expected, state = params, tx.init(params)
    for grads in gradients:
        updates, state = tx.update(grads, state, expected, **extra)
        expected = apply_updates(expected, updates)
    for donate in (False, True):
        for backend in ("eager", "auto"):
            step = make_step(tx, donate=donate, backend=backend)
            own = tree.map(torch.clone, params)
            own_state = tx.init(own)
            for grads in gradients:
                own, own_state = step(own, own_state, grads, **extra)
            _near(own, expected, rtol, f"make_step(tx, donate={donate}, backend={backend!r})")


def resumes(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """A state that went through a weights-only file goes on as before."""
    grads = like(params, 1)
    state = tx.update(grads, tx.init(params), params, **extra)[1]
    for path, x in tree.leaves_with_path(state):
        assert isinstance(x, Tensor), f"a state must hold tensors, and has {x!r} at {tree.join_path(path)}"
    flat = state_dict(state)
    assert all(type(x) is Tensor for x in flat.values()), "a saved state must be plain tensors"
    file = io.BytesIO()
    torch.save(flat, file)
    file.seek(0)
    loaded = load_state_dict(tx.init(params), torch.load(file, weights_only=True))
    _same(loaded, state, "a loaded state")
    _same(tx.update(grads, loaded, params, **extra), tx.update(grads, state, params, **extra), "the step after loading")


def is_a_value(tx: GradientTransformation, params: Params, extra: Extra, rtol: float = 0.0) -> None:
    """A recorded transformation pickles into an equal one, if its factory can be imported."""
    made = None if tx.recipe is None else tx.recipe.factory
    here = getattr(sys.modules.get(getattr(made, "__module__", "")), getattr(made, "__qualname__", ""), None)
    if made is not None and here is made:
        assert pickle.loads(pickle.dumps(tx)) == tx, "a pickled copy is another transformation"


LAWS: dict[str, Callable[[GradientTransformation, Params, Extra, float], None]] = {
    "pure": is_pure,
    "form": keeps_its_form,
    "extra": takes_more,
    "promises": keeps_promises,
    "absent": leaves_out_the_absent,
    "vmap": stacks,
    "halves": rounds_once,
    "executions": runs_alike,
    "resume": resumes,
    "value": is_a_value,
}


def _stack(trees: Any) -> Any:
    return tree.map(lambda *xs: torch.stack(xs), *trees)


def _alike(new: Any, old: Any, what: str) -> None:
    assert tree.structure(new) == tree.structure(old), f"{what} has another structure: {new!r} instead of {old!r}"
    for (path, x), y in zip(tree.leaves_with_path(new), tree.leaves(old), strict=True):
        kinds = [(tuple(one.shape), one.dtype) if isinstance(one, Tensor) else type(one) for one in (x, y)]
        where = f" at {tree.join_path(path)}" if path else ""
        assert kinds[0] == kinds[1], f"{what} has {kinds[0]}{where}, and had {kinds[1]}"


def _same(new: Any, old: Any, what: str) -> None:
    new, old = values(new), values(old)
    _alike(new, old, what)
    for (path, x), y in zip(tree.leaves_with_path(new), tree.leaves(old), strict=True):
        equal = torch.equal(x.nan_to_num(), y.nan_to_num()) if isinstance(x, Tensor) else x == y
        assert equal, f"{what} differs at {tree.join_path(path)}"


def _near(new: Any, old: Any, rtol: float, what: str) -> None:
    _alike(new, old, what)
    for (path, x), y in zip(tree.leaves_with_path(new), tree.leaves(old), strict=True):
        if x.numel():
            largest = max(y.abs().max().item(), torch.finfo(y.dtype).tiny)
            off = (x - y).abs().max().item() / largest
            assert off <= rtol, f"{what} is {off:.1e} off at {tree.join_path(path)}, relative to its largest number"
