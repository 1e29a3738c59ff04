"""Parameters of half precision without copies of them: what a step loses when it is rounded, and ways not to."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import becomes
from .._base import GradientTransformation, check_transformation
from .._checks import check_choice, check_seed, need_params
from .._evaluation import eval_within
from .._recipe import factory
from .._typing import Assign, Count, Params, State, Tree, Updates
from ..tree._random import noise


class KahanState(NamedTuple):
    """What rounding took from the parameters."""

    compensation: Params  # like the parameters of half precision, in their dtype; (0,) for the others
    inner_state: State  # that of the rule


class StochasticRoundingState(NamedTuple):
    """Where the noise is."""

    count: Count  # () int64, steps taken
    rng_key: Tensor  # () int64, the seed, which does not change
    like: Tree  # (0,) in the dtype of each parameter
    inner_state: State  # that of the rule


class MasterWeightsState(NamedTuple):
    """What the parameters are before they are rounded."""

    master: Params  # float32 like those of half precision, or the lower half of its bits as int16; (0,) for the others
    like: Tree  # (0,) in the dtype of each parameter
    inner_state: State  # that of the rule


@factory
def kahan(tx: GradientTransformation) -> GradientTransformation:
    """Step parameters of float16 and bfloat16 with compensation: what a step loses by rounding is in the next.

    The parameters and the compensation together have twice the bits; the rule sees their sum in float32. Parameters of
    other dtypes are stepped as always. It goes around the whole optimizer.

    Maths:
        w = p + c in float32;  w' = w + update of the rule at w
        p <- w' rounded;  c <- w' - p rounded

    Args:
        tx: The optimizer.

    Shapes:
        params: needed. updates: `Assign` for leaves of half precision.
        state: compensation like those leaves, and the state of `tx`. Memory: 2 bytes a parameter.

    Raises:
        TypeError: at construction if `tx` is not a `GradientTransformation`.
        ValueError: in `update` if no parameters are given.

    Differs from: torch-optimi, which adds in bfloat16 and decays outside of the compensation.

    Source: Kahan, 1965; Zamirai et al., 2020, arXiv:2010.06192.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.kahan(of.sgd(1.0)), torch.ones(1, dtype=torch.bfloat16)
        >>> step, state = of.make_step(tx), tx.init(params)
        >>> for _ in range(16):  # each a sixteenth of the distance to the next number
        ...     params, state = step(params, state, torch.tensor([-(2.0**-11)], dtype=torch.bfloat16))
        >>> params
        tensor([1.0078], dtype=torch.bfloat16)
    """
    check_transformation(tx=tx)

    def init(params: Params) -> KahanState:
        zeros = tree.map(lambda p: torch.zeros_like(p, requires_grad=False), tree.narrow(params))
        return KahanState(_halves(zeros, zeros), tx.init(params))

    def update(
        updates: Updates, state: KahanState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, KahanState]:
        need_params("kahan", params)
        kept = state.compensation
        wide = _seen(_map(lambda p, c: p + c, params, kept), params)
        new, inner_state = tx.rule(updates, state.inner_state, wide, **extra)
        moved = _moved(wide, new, kept)
        rounded = _map(lambda w, c: w.to(c.dtype), moved, kept)
        lost = _map(
            lambda w, c, p: torch.where(p.abs() <= torch.finfo(p.dtype).max, w - p, 0.0).to(c.dtype),
            moved,
            kept,
            rounded,
        )
        return _assigned(new, rounded, kept), KahanState(_kept(new, lost, kept, kept), inner_state)

    promises: Any = {
        "leafwise": tx.leafwise,
        "elementwise": tx.elementwise,
        "eval_params": eval_within(tx, "inner_state"),
    }
    return GradientTransformation(init, update, **promises)


@factory
def stochastic_rounding(tx: GradientTransformation, seed: int | Tensor) -> GradientTransformation:
    """Step parameters of float16 and bfloat16 in float32, and round to one of the two neighbours by chance.

    The nearer of the two is the likelier, so that the mean is exact; a step below half a unit is not lost. The choice
    is a function of the seed, the step, and the path and place of the element: the same on every device, mesh and
    execution. Parameters of other dtypes are stepped as always. It goes around the whole optimizer.

    Maths:
        w = p + update of the rule in float32
        p <- the number above w with odds (w - below) / (above - below), else that below

    Args:
        tx: The optimizer.
        seed: Any whole number, or a 0-dim int64 tensor.

    Shapes:
        params: needed. updates: `Assign` for leaves of half precision.
        state: two numbers, and the state of `tx`. Memory: none.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Zamirai et al., 2020, arXiv:2010.06192; Ozkara et al., 2025, arXiv:2502.20566.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.stochastic_rounding(of.sgd(1.0), seed=0)
        >>> params = torch.ones(10_000, dtype=torch.bfloat16)
        >>> updates, _ = tx.update(torch.full_like(params, -(2.0**-11)), tx.init(params), params)
        >>> of.apply_updates(params, updates).unique()
        tensor([1.0000, 1.0078], dtype=torch.bfloat16)
    """
    check_transformation(tx=tx)
    check_seed(seed=seed)

    def init(params: Params) -> StochasticRoundingState:
        count = tree.count(params)
        return StochasticRoundingState(count, count + seed, _dtypes(params), tx.init(params))

    def update(
        updates: Updates, state: StochasticRoundingState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, StochasticRoundingState]:
        need_params("stochastic_rounding", params)
        count = state.count + 1
        new, inner_state = tx.rule(updates, state.inner_state, params, **extra)
        keys = tree.split_key_like(tree.fold_in(state.rng_key, count), params)
        moved = _moved(params, new, state.like)
        rounded = _map(lambda w, c, key: _by_chance(w, noise(key, w), c.dtype), moved, state.like, keys)
        return _assigned(new, rounded, state.like), state._replace(count=count, inner_state=inner_state)

    return GradientTransformation(init, update, eval_params=eval_within(tx, "inner_state"))


@factory
def master_weights(tx: GradientTransformation, store: str = "remainder") -> GradientTransformation:
    """Train in float32 with parameters of half precision: the state keeps what these lack.

    Every step is that of float32 on the gradients given. Parameters of other dtypes are stepped as always. It goes
    around the whole optimizer.

    Maths:
        w <- w + update of the rule at w, in float32;  p <- w rounded

    Args:
        tx: The optimizer.
        store: `"float32"` keeps w, 4 bytes a parameter; where somebody has changed p, w begins anew there.
            `"remainder"` keeps the lower 16 bits of w, so that p and they are w, exactly: 2 bytes. For bfloat16 only; p
            is rounded away from zero at ties, and nobody else should change it.

    Shapes:
        params: needed. updates: `Assign` for leaves of half precision.
        state: master like those leaves, float32 or int16, and the state of `tx`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `init` if a remainder is asked of float16; in `update` if no parameters are given.

    Source: Micikevicius et al., 2018, arXiv:1710.03740; the remainder as in NVIDIA's apex and TransformerEngine.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.master_weights(of.sgd(1.0)), torch.ones(1, dtype=torch.bfloat16)
        >>> step, state = of.make_step(tx), tx.init(params)
        >>> for _ in range(16):
        ...     params, state = step(params, state, torch.tensor([-(2.0**-11)], dtype=torch.bfloat16))
        >>> params, state.master.dtype
        (tensor([1.0078], dtype=torch.bfloat16), torch.int16)
    """
    check_transformation(tx=tx)
    check_choice("store", store, ("float32", "remainder"))
    in_bits = store == "remainder"

    def init(params: Params) -> MasterWeightsState:
        like = _dtypes(params)
        if in_bits and not isinstance(params, tree.ParamsPlaceholder):
            _check_bfloat16(params)
        kept = _map(
            lambda p, c: torch.zeros_like(p, dtype=torch.int16) if in_bits else p.detach().clone(), params, like
        )
        return MasterWeightsState(_halves(kept, like), like, tx.init(params))

    def update(
        updates: Updates, state: MasterWeightsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MasterWeightsState]:
        need_params("master_weights", params)
        like, kept = state.like, state.master
        if in_bits:
            wide = _map(lambda p, c, low: _join(p, low), params, like, kept)
        else:
            wide = _map(lambda p, c, w: torch.where(w.to(c.dtype).to(w.dtype) == p, w, p), params, like, kept)
        new, inner_state = tx.rule(updates, state.inner_state, _seen(wide, params), **extra)
        moved = _moved(wide, new, like)
        if in_bits:
            master = _map(lambda w, c: _low(w), moved, like)
            rounded = _map(lambda w, c: _high(w), moved, like)
        else:
            master, rounded = moved, _map(lambda w, c: w.to(c.dtype), moved, like)
        return _assigned(new, rounded, like), MasterWeightsState(_kept(new, master, kept, like), like, inner_state)

    promises: Any = {
        "leafwise": tx.leafwise,
        "elementwise": tx.elementwise,
        "eval_params": eval_within(tx, "inner_state"),
    }
    return GradientTransformation(init, update, **promises)


# Leaves of half precision are those for which the state keeps something


def _is_half(c: Tensor) -> bool:
    return c.dtype in (torch.float16, torch.bfloat16)


def _halves(values: Tree, like: Tree) -> Tree:
    """The values for leaves of half precision, and tensors without elements for the others."""
    return tree.map(lambda x, c: x if _is_half(c) else x.new_empty(0), values, like)


def _dtypes(params: Params) -> Tree:
    """An empty tensor in the dtype of each leaf."""
    return tree.map(lambda p: p.new_empty(0), tree.narrow(params))


def _map(f: Any, values: Tree, like: Tree, *rest: Tree) -> Tree:
    """Apply a function to leaves of half precision; the others stay."""
    return tree.map(lambda x, c, *more: f(x, c, *more) if _is_half(c) else x, values, like, *rest)


def _moved(wide: Params, updates: Updates, like: Tree) -> Params:
    return _map(lambda w, c, u: becomes(w, u), wide, like, updates)


def _assigned(updates: Updates, values: Tree, like: Tree) -> Updates:
    """The values, in float32 as all updates, in the place of updates of leaves of half precision."""

    def leaf(x: Tensor, c: Any, u: Any) -> Any:
        return Assign(x.to(torch.float32)) if u is not None and _is_half(c) else u

    return tree.map(leaf, values, like, updates)


def _kept(updates: Updates, new: Tree, old: Tree, like: Tree) -> Tree:
    """What is kept after a step: the old where there was no update."""
    return tree.map(lambda x, c, u, own: x if u is not None and _is_half(own) else c, new, old, updates, like)


def _seen(wide: Params, params: Params) -> Params:
    """Masks and labels judge the leaves as users know them, not these."""
    return tree.seen_as(wide, params)


def _check_bfloat16(params: Params) -> None:
    for path, p in tree.leaves_with_path(tree.narrow(params)):
        if p.dtype == torch.float16:
            place = tree.join_path(path) or "the parameter"
            raise ValueError(f'{place} is float16, which is no upper half of a float32: use store="float32"')


# Bits


def _by_chance(x: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 rounded to a neighbour of half precision, given uniform bits, of which the lower 16 are taken."""
    bits = (bits & 0xFFFF).to(torch.int32)
    is_finite = x.abs() <= torch.finfo(x.dtype).max  # one comparison
    if dtype == torch.bfloat16:
        moved = ((x.view(torch.int32) + bits) & -0x10000).view(torch.float32)
        return torch.where(is_finite, moved, x).to(dtype)
    moved = ((x.view(torch.int32) + (bits & 0x1FFF)) & -0x2000).view(torch.float32)
    small = torch.floor(x * 2.0**24 + bits / 65536.0) * 2.0**-24  # where the distance of float16 is always this
    return torch.where(is_finite, torch.where(x.abs() < 2.0**-14, small, moved), x).to(dtype)


def _low(w: Tensor) -> Tensor:
    return w.view(torch.int32).to(torch.int16)


def _high(w: Tensor) -> Tensor:
    """The upper half: rounded to nearest, since what is left is between -2^15 and 2^15."""
    bits = w.view(torch.int32)
    return ((bits - bits.to(torch.int16).to(torch.int32)) & -0x10000).view(torch.float32).to(torch.bfloat16)


def _join(p: Tensor, low: Tensor) -> Tensor:
    return (p.view(torch.int32) + low.to(torch.int32)).view(torch.float32)
