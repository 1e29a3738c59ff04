"""States in few bits, for any rule."""

import re
from collections.abc import Mapping
from typing import Any

from .. import tree
from .._base import EvalParamsFn, GradientTransformation, check_transformation
from .._checks import check_choice, check_steps
from .._quantize import Quantized, check_format, dequantize_state, quantize, requantized
from .._recipe import factory
from .._state_spec import VALUES, Values, map_values, values_of
from .._typing import Mask, Params, State, Tree, Updates
from ..tree._shards import silence

_EMBEDDING = re.compile(r"(^|[._])(\w*embed(ding)?s?|wte|wpe)([._]|$)")


@factory
def quantize_state(
    tx: GradientTransformation,
    format: str = "companded8",
    *,
    block_size: int | None = None,
    min_size: int = 4096,
    where: Mask | None = None,
    fields: Mapping[str, str] | None = None,
) -> GradientTransformation:
    """Keep the state of a rule in few bits: read before each step and written after it.

    The step uses the moments as they are before they are written. Quantised are floats in the shape of their parameter;
    counts, factors such as the means of rows, and whatever a rule declares to be exact, such as copies of the
    parameters, stay as they are. Whether there is a sign is declared too, see `LeafSpec`.

    Maths:
        u, s' = rule(g, read(s), p);  s' is kept as write(s')

    Args:
        tx: The rule, or a whole optimizer. Outside of it, the other parts see a state of codes.
        format: As for `quantize`. `"companded8"` is the most exact of the small ones, `"dynamic8"` is that of
            bitsandbytes; 4 bits lose something.
        block_size: Elements with one scale, as for `quantize`.
        min_size: Smallest number of elements of a leaf, in all its shards, that is quantised, >= 0.
        where: For which parameters, as a mask. `None` means all but embeddings, which are known by their paths:
            `embed`, `tok_embeddings`, `wte` and the like, whose rare rows suffer.
        fields: What the numbers of fields of the state are, where a rule does not say it or says something else:
            `{"acc": "nonnegative"}`; `"signed"`, `"nonnegative"` or `"exact"`, which leaves the field as it is.

    Shapes:
        state: that of `tx`, with a `Quantized` in the place of each leaf that is quantised.
        Memory: Adam's two moments take 2.13 bytes a parameter in companded8, 2.03 in dynamic8 and fp8, 1.06 in 4bit, 4
            in bfloat16.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: bitsandbytes and torchao, which do this for one rule each; see `quantize`.

    Source: Dettmers et al., 2022, arXiv:2110.02861; see `quantize`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.quantize_state(of.adam(0.1))
        >>> state = tx.init(torch.zeros(64, 64))
        >>> state[0].nu.codes.dtype, state[0].nu.scale.shape
        (torch.uint8, torch.Size([64]))
    """
    check_transformation(tx=tx)
    check_format(format, block_size)
    check_steps(min_size=min_size, at_least=0)
    for name, values in (fields or {}).items():
        check_choice(f"fields[{name!r}]", values, VALUES)
    template = _told(values_of(tx), fields or {})
    mask = tree.mask_by_path(_EMBEDDING.pattern) if where is None else where

    def init(params: Params) -> State:
        state = tx.init(params)
        if isinstance(params, tree.ParamsPlaceholder):
            return state
        chosen = tree.resolve_mask(mask, params)
        if where is None:
            chosen = tree.map(lambda is_embedding: not is_embedding, chosen)

        def leaf(values: str, x: Any, p: Any, is_chosen: bool) -> Any:
            fits = is_chosen and x.shape == p.shape and x.numel() >= min_size
            if not (fits and values != "exact" and x.is_floating_point() and x.element_size() > _BYTES[format]):
                return x
            return quantize(x, format, block_size=block_size, signed=values == "signed")

        with silence():
            return map_values(template, leaf, state, params, chosen)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        inner = dequantize_state(state)
        updates, new = tx.rule(updates, inner, params, **extra)
        return updates, _written(state, inner, new)

    # Taken apart, a chain is that of its members, each with its part of the state.
    own: Any = {"block_size": block_size, "min_size": min_size, "where": where}
    members = {
        key: quantize_state(member, format, **own, fields=_those_of(member, fields or {}))
        for key, member in tx.members.items()
    }
    promises: Any = {"leafwise": tx.leafwise, "takes_assigned": tx.takes_assigned, "eval_params": _eval_params(tx)}
    promises |= {"takes_shards": tx.takes_shards}
    return GradientTransformation(init, update, members=members, **promises)


_BYTES = {"companded8": 1, "dynamic8": 1, "4bit": 0, "fp8": 1, "bfloat16": 2}  # what is no wider stays as it is


def _written(state: State, inner: State, new: State) -> State:
    """A new state in the format of the old. What did not change keeps its codes, to the bit."""
    rows: list[tuple[Any, Quantized]] = []

    def note(_: Any, node: Any, old: Any, x: Any) -> tuple[bool, Any]:
        if isinstance(node, Quantized) and x is not old:
            rows.append((x, node))
        return tree.is_leaf(node) or isinstance(node, Quantized), None

    tree.map_nodes(note, state, inner, new)
    made = iter(requantized(rows))

    def change(_: Any, node: Any, old: Any, x: Any) -> tuple[bool, Any]:
        if isinstance(node, Quantized):
            return True, node if x is old else next(made)
        return (True, x) if tree.is_leaf(node) else (False, None)

    return tree.map_nodes(change, state, inner, new)


def _told(template: Tree, fields: Mapping[str, str]) -> Tree:
    """What the numbers are, with what the user says of some fields."""
    names: set[str] = set()

    def change(path: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
        if not isinstance(node, Values):
            return False, None
        said = [name for name in path if name in fields]
        names.update(said)
        return True, node._replace(values=fields[said[-1]]) if said else node

    found = tree.map_nodes(change, template)
    if unknown := sorted(set(fields) - names):
        known = sorted({path[-1] for path, node in tree.walk(template) if isinstance(node, Values) and path})
        raise ValueError(f"fields names {unknown}, which the state does not have; it has {known}")
    return found


def _those_of(tx: GradientTransformation, fields: Mapping[str, str]) -> dict[str, str]:
    """What is said of fields that the state of one member has."""
    own = {name for path, node in tree.walk(values_of(tx)) if isinstance(node, Values) for name in path}
    return {name: values for name, values in fields.items() if name in own}


def _eval_params(tx: GradientTransformation) -> EvalParamsFn | None:
    of = tx.eval_params
    return None if of is None else lambda state, params: of(dequantize_state(state), params)
