"""QK-clip: heads of attention whose logits have grown too large, brought down in the weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import EmptyState, GradientTransformation, init_empty_state
from .._checks import check_fraction, check_positive, check_steps, need_params
from .._order import Place
from .._recipe import factory
from .._typing import Params, Scalar, Updates

PARTS = ("query", "key", "rope", None)


class AttentionRows(NamedTuple):
    """Whose the rows of a leaf are, along its first axis."""

    parts: Sequence[str | None] = ("query",)  # "query", "key", "rope" (queries whose keys are left as they are) or None
    sizes: Sequence[int] | None = None  # rows of each part; None means equal ones
    by_head: bool = False  # whether each head has all parts, one head below the other, rather than each part all heads


@factory
def qk_clip(
    rows: Mapping[str, str | AttentionRows],
    threshold: Scalar = 100.0,
    alpha: Scalar = 0.5,
    *,
    key_heads: int | None = None,
) -> GradientTransformation:
    r"""Shrink the queries and keys of every head whose largest logit is beyond a threshold, after the step.

    With Muon it is MuonClip. It must come last in a chain. The forward pass measures the logits; hand them over as the
    extra argument `max_logits`: for each layer one number for each head, or one for all of them.

    Maths:
        S = max_logits of the head,  gamma = min(1, threshold / S)
        rows of queries <- gamma^alpha (p + g),  of keys <- gamma^(1 - alpha) (p + g),  of "rope" <- gamma (p + g)
        a key that several heads share takes the least gamma of them

    Args:
        rows: For a regular expression on the path of a leaf, with one group, the name of the layer: "query", "key" or
            "rope", or an `AttentionRows` where a leaf holds several of them. Biases are leaves of that kind too.
        threshold: The largest logit that is left alone, no unit, > 0.
        alpha: The share of the queries, no unit, in [0, 1].
        key_heads: Heads of the keys, where fewer than those of the queries; `None` means as many.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` without parameters or `max_logits`, if that lacks a layer, or if the heads do not divide
            the rows.

    Source: Kimi Team, 2025, arXiv:2507.20534, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.qk_clip({r"^(.*)\.query$": "query", r"^(.*)\.key$": "key"})
        >>> params = {"layer": {"query": torch.ones(2, 1), "key": torch.ones(2, 1)}}
        >>> zeros = of.tree.zeros_like(params)
        >>> u, _ = tx.update(zeros, tx.init(params), params, max_logits={"layer": torch.tensor([50.0, 400.0])})
        >>> u["layer"]["key"].T
        tensor([[ 0.0000, -0.5000]])
    """
    check_positive(threshold=threshold)
    check_fraction(alpha=alpha)
    if key_heads is not None:
        check_steps(key_heads=key_heads)
    kinds = [(_pattern(given), _checked(own)) for given, own in rows.items()]

    def update(
        updates: Updates,
        state: EmptyState,
        params: Params | None = None,
        *,
        max_logits: Mapping[str, Tensor] | None = None,
        **extra: Any,
    ) -> tuple[Updates, EmptyState]:
        need_params("qk_clip", params)
        if max_logits is None:
            raise ValueError(
                "qk_clip needs the extra argument max_logits, the largest logits of the heads of each layer"
            )
        powers = {"query": alpha, "key": 1 - alpha, "rope": 1.0}
        named = tree.map(lambda path: _found(kinds, path), tree.paths(updates))
        _check_layers(max_logits, {own.layer for own in tree.leaves(named) if own.layer is not None})

        def leaf(u: Tensor, own: _Found, p: Tensor) -> Any:
            if own.layer is None:
                return u
            gamma = _gamma(torch.as_tensor(max_logits[own.layer], device=p.device), threshold)
            parts = _by_part(own.rows, gamma, powers, key_heads)
            factors = _factors(own, parts, p)
            return torch.where(factors == 1, u, (p + u) * factors - p)

        return tree.cast_like(tree.map(leaf, updates, named, params), updates), state

    return replace(GradientTransformation(init_empty_state, update), place=Place.LAST)


class _Found:
    """What a leaf is; no tuple, which would be walked into."""

    def __init__(self, path: str, layer: str | None, rows: AttentionRows) -> None:
        self.path, self.layer, self.rows = path, layer, rows


def _pattern(given: str) -> re.Pattern[str]:
    compiled = re.compile(given)
    if compiled.groups != 1:
        raise ValueError(f"rows must have patterns with one group, the name of the layer, got {given!r}")
    return compiled


def _checked(given: str | AttentionRows) -> AttentionRows:
    own = AttentionRows((given,)) if isinstance(given, str) else given
    if not isinstance(own, AttentionRows) or any(part not in PARTS for part in own.parts):
        raise ValueError(f"rows must be 'query', 'key', 'rope' or AttentionRows of these and None, got {given!r}")
    if own.sizes is not None and len(own.sizes) != len(own.parts):
        raise ValueError(f"rows must have a size for each part, got {given!r}")
    return own


def _found(kinds: Sequence[tuple[re.Pattern[str], AttentionRows]], path: str) -> _Found:
    for pattern, own in kinds:
        match = pattern.search(path)
        if match is not None:
            return _Found(path, match.group(1), own)
    return _Found(path, None, AttentionRows())


def _check_layers(max_logits: Mapping[str, Any], layers: set[str]) -> None:
    missing = sorted(layers - set(max_logits))
    if missing:
        raise ValueError(f"max_logits must have the layer {missing[0]!r}, got {', '.join(map(repr, max_logits))}")


def _gamma(logits: Tensor, threshold: Scalar) -> Tensor:
    """By what the logits of each head are to be multiplied; those that are no finite numbers are left alone."""
    wide = tree.wide(logits if logits.ndim else logits[None])
    large = (wide > threshold) & torch.isfinite(wide)
    return torch.where(large, threshold / torch.where(large, wide, 1.0), 1.0)


def _by_part(
    rows: AttentionRows, gamma: Tensor, powers: Mapping[str, Scalar], key_heads: int | None
) -> list[Tensor | None]:
    """The factors of the heads of each part."""
    found: list[Tensor | None] = []
    for part in rows.parts:
        own = gamma
        if part == "key" and key_heads is not None and not rows.by_head:
            if gamma.shape[-1] % key_heads:
                raise ValueError(f"key_heads must divide the {gamma.shape[-1]} heads of max_logits, got {key_heads}")
            own = gamma.reshape(key_heads, -1).amin(-1)
        found.append(None if part is None else own ** powers[part])
    return found


def _factors(own: _Found, parts: Sequence[Tensor | None], p: Tensor) -> Tensor:
    """A factor for each element of a leaf."""
    total = p.shape[0] if p.ndim else 1
    blocks = max([len(x) for x in parts if x is not None], default=1) if own.rows.by_head else 1
    sizes = own.rows.sizes or [total // blocks // len(parts)] * len(parts)
    if sum(sizes) * blocks != total:
        raise ValueError(f"rows must add up to the {total} of {own.path!r}, got {own.rows} for {blocks} blocks")
    made = []
    for part, size in zip(parts, sizes, strict=True):
        if part is None:
            made.append(torch.ones((blocks, size), dtype=torch.float64, device=p.device))
            continue
        own_part = part[:, None]
        if not own.rows.by_head and size % len(part):
            raise ValueError(f"the heads must divide the {size} rows of {own.path!r}, got {len(part)} in max_logits")
        made.append(own_part.expand(-1, size if own.rows.by_head else size // len(part)).reshape(blocks, -1))
    factors = tree.cast_leaf(torch.cat(made, -1), tree.real_dtype(torch.promote_types(p.dtype, torch.float32)))
    column = factors.reshape([-1, *[1] * (p.ndim - 1)] if p.ndim else [])
    placed: Tensor = tree.settled(column.expand(p.shape), p)
    return placed
