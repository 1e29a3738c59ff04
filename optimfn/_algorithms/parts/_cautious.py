"""Caution: no element moves against its gradient."""

from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, check_transformation
from ..._checks import check_choice, check_positive, need_params
from ..._order import Place, flat
from ..._recipe import factory, find_arguments, uses_factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._decay_kinds import add_decay_toward_start
from ..._transforms._rate import scale, scale_by_learning_rate, scale_by_schedule
from ..._transforms._trust_ratio import scale_by_trust_ratio
from ..._typing import Params, Scalar, State, Updates
from ..._wrappers._masked import masked

RATES = (scale_by_learning_rate, scale_by_schedule, scale)
RATE = "learning_rate"  # what rules that take whole steps call theirs
BEHIND = (*RATES, add_decayed_weights, add_decay_toward_start, scale_by_trust_ratio)


def rule_and_rest(name: str, tx: GradientTransformation) -> tuple[GradientTransformation, list[GradientTransformation]]:
    """A whole optimizer as the rule that gives its directions, and what follows: decay, rate, averages.

    Raises:
        ValueError: if there is a learning rate inside the rule, so that nobody knows which way its result points.
    """
    members = list(flat([tx]))
    end = len(members)
    while end and _follows(members[end - 1]):
        end -= 1
    for member in members[:end]:
        if any(uses_factory(member, rate) for rate in RATES) or any(True for _ in find_arguments(member, RATE)):
            raise ValueError(
                f"{name} must see directions, before learning rate and decay; {member!r} has its learning rate inside: "
                "give the rule without it"
            )
    rule = members[0] if end == 1 else chain(*members[:end])
    return rule, members[end:]


def rule_and_decay(
    name: str, tx: GradientTransformation
) -> tuple[GradientTransformation, list[GradientTransformation]]:
    """The same where a rate inside does no harm, and only what needs the parameters must follow.

    Raises:
        ValueError: if a part makes whole steps from the parameters, or decays them inside the rule.
    """
    members = list(flat([tx]))
    if whole := next((member for member in members if member.place is Place.WHOLE), None):
        raise ValueError(f"{name} shows a rule no parameters, and {whole!r} needs them: put it around")
    end = len(members)
    while end and _follows(members[end - 1]):
        end -= 1
    if not any(map(_needs_params, members[end:])):
        return tx, []
    return (members[0] if end == 1 else chain(*members[:end])), members[end:]


def _needs_params(tx: GradientTransformation) -> bool:
    if tx.recipe is not None and tx.recipe.factory is masked:
        return _needs_params(tx.arguments["inner"])
    rates = tx.recipe is not None and any(tx.recipe.factory is make for make in RATES)
    return not rates and tx.place is not Place.WATCHES


def _follows(tx: GradientTransformation) -> bool:
    """Whether it belongs behind a rule: decay, rate, averages; for some of the leaves or for all."""
    if tx.recipe is None or tx.place is not None:
        return tx.place in (Place.DECAY, Place.LAST, Place.WATCHES)
    if tx.recipe.factory is masked:
        return _follows(tx.arguments["inner"])
    return any(tx.recipe.factory is make for make in BEHIND)


@factory
def cautious(tx: GradientTransformation, floor: Scalar = 1e-3, *, scaling: str = "mean") -> GradientTransformation:
    """Let only those elements of a rule move that go downhill by the gradient of this step; and these further.

    It takes a rule or a whole optimizer; in the latter, decay and learning rate act on what is left, as in the papers.

    Maths:
        keep = [d g > 0],  d the direction that the rule makes of the gradient g
        update <- d keep / max(mean(keep), floor)       with scaling "mean", the mean over the leaf
                  d keep n / (sum(keep) + 1)            with scaling "count", n the elements of the leaf
                  d keep                                with scaling "none"

    Args:
        tx: The rule, such as `scale_by_adam()`, or a whole optimizer, such as `lion(1e-4)`.
        floor: Least mean to divide by, no unit, > 0.
        scaling: How what is kept makes up for what is not: "mean", "count" (the first form of the paper) or "none".

    Shapes:
        params: needed if the optimizer needs them. state: that of the rule, then of what follows it. Memory: none.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; also if the learning rate of the
            optimizer is inside its rule.

    Source: Liang et al., 2024, arXiv:2411.16085, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.cautious(of.scale_by_lion())
        >>> state = tx.init(torch.zeros(2))._replace(mu=torch.tensor([1.0, 1.0]))
        >>> tx.update(torch.tensor([0.5, -0.5]), state)[0]
        tensor([2., 0.])
    """
    check_transformation(tx=tx)
    check_positive(floor=floor)
    check_choice("scaling", scaling, ("mean", "count", "none"))
    rule, rest = rule_and_rest("cautious", tx)
    if rest:
        return chain(cautious(rule, floor, scaling=scaling), *rest)
    return _agreeing(rule, floor, scaling)


def _agreeing(rule: GradientTransformation, floor: Scalar, scaling: str) -> GradientTransformation:
    def leaf(d: Tensor, keep: Tensor, kept: Tensor) -> Tensor:
        left, size = torch.where(keep, d, torch.zeros_like(d)), max(d.numel(), 1)
        factor = size / (kept + 1) if scaling == "count" else 1 / torch.clamp(kept / size, min=floor)
        return left if scaling == "none" else tree.cast_leaf(left * factor, d.dtype)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        direction, state = rule.rule(updates, state, params, **extra)
        keep = tree.map(lambda d, g: ~against(d, g), direction, updates)
        kept = tree.reduce_each(
            lambda k: torch.where(k, 1.0, 0.0).sum(dtype=tree.wide_dtype(torch.float32, k.device)), "sum", keep
        )
        return tree.map(leaf, direction, keep, kept), state

    return GradientTransformation(rule.init, update, leafwise=rule.leafwise, place=Place.RULE)


def against(d: Tensor, g: Tensor) -> Tensor:
    """Where a direction and a gradient do not point the same way, whatever their sizes; a NaN is not against."""
    if d.is_complex():
        return (torch.sgn(d) * torch.sgn(g).conj()).real <= 0
    return ((d >= 0) & (g <= 0)) | ((d <= 0) & (g >= 0))


@factory
def add_cautious_decayed_weights(weight_decay: Scalar = 0.0, mask: Any = None) -> GradientTransformation:
    """Add `weight_decay` times the parameters to the updates, where the updates pull them to zero as well.

    Its place is behind the rule and before the learning rate.

    Maths:
        update <- d + weight_decay p [d p >= 0]

    Args:
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `add_decayed_weights`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Chen et al., 2025, arXiv:2510.12402.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.add_cautious_decayed_weights(0.1)
        >>> tx.update(torch.tensor([1.0, -1.0]), tx.init(None), torch.tensor([2.0, 2.0]))[0]
        tensor([ 1.2000, -1.0000])
    """
    decay = add_decayed_weights(weight_decay, mask)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        need_params("add_cautious_decayed_weights", params)
        inward = tree.map(lambda d, p: torch.where(_outward(d, p), torch.zeros_like(p), p), updates, params)
        return decay.rule(updates, state, inward, **extra)

    promises: Any = {"leafwise": decay.leafwise, "elementwise": decay.elementwise}
    return GradientTransformation(decay.init, update, place=Place.DECAY, **promises)


def _outward(d: Tensor, p: Tensor) -> Tensor:
    if d.is_complex():
        return (torch.sgn(d) * torch.sgn(p).conj()).real < 0
    return ((d > 0) & (p < 0)) | ((d < 0) & (p > 0))
