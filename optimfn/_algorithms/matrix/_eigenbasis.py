"""Any rule in the eigenbasis of Shampoo's matrices: a change of coordinates that follows the gradients."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_choice, check_decay, check_positive, check_steps
from ..._numerics._eigenbasis import eigenvectors, refine_eigenvectors
from ..._recipe import factory
from ..._state_spec import HostCount, map_values, values_of
from ..._typing import Params, Scalar, State, Tree, Updates
from ._axes import (
    Axes,
    Layout,
    Layouts,
    adjoint,
    ahead,
    apply,
    check_spread,
    in_batches,
    nodes,
    outer,
    parted,
    replaced,
    sorted_along,
    split,
)
from ._kl import new_scales, statistics, whitened
from ._newton_schulz import Box


class EigenbasisState(NamedTuple):
    """Where the basis came from, the basis, and the memory of the rule in it."""

    count: HostCount  # () int64 on the CPU, steps taken
    factors: Any  # running means of the products of unfolded gradients, (n, n) for each axis of a leaf
    basis: Any  # their eigenvectors in columns, (n, n) for each axis
    scales: Any  # "kl": inverse roots of their eigenvalues, (n,) for each axis; otherwise empty
    opt_state: State  # that of the rule, for what it sees


class _Turn(NamedTuple):
    """What a new basis does to what lies in the old one."""

    vectors: list[Tensor]  # from the old one to the new, for each axis
    orders: list[Tensor]  # which of the old vectors each new one came of


@dataclass(frozen=True)
class Eigenbasis:
    """How a basis is found, and when."""

    decay: Scalar
    period: int
    layouts: Layouts
    init_factor: float | None  # eigenvalues to begin with, of products of gradients that the other axes have whitened
    second_moment: str
    first: str
    start: int = 1
    by: str = "qr"
    spread: int = 1  # parts of the leaves whose bases follow in steps of their own
    eps: Scalar | None = None  # beside scales by which the answer of the rule is divided; `None`: it is not

    def __post_init__(self) -> None:
        check_decay(decay=self.decay)
        check_steps(precondition_frequency=self.period, max_precond_dim=self.layouts.largest, at_least=1)
        check_steps(start=self.start, at_least=1)
        check_spread(self.spread, precondition_frequency=self.period)
        check_choice("second_moment", self.second_moment, ("sorted", "rotated", "kept"))
        check_choice("first", self.first, ("skip", "identity", "now"))
        check_choice("by", self.by, ("qr", "eigh"))
        check_choice("sides", self.layouts.sides, ("both", "one"))
        if self.first == "skip" and self.start != 1:
            raise ValueError(f"start must be 1 where the first step is skipped, got {self.start}")

    @property
    def sort(self) -> bool:
        """Whether vectors that are followed are ordered; those of "kl", which have scales, never are."""
        return self.init_factor is None

    def begun(self, params: Params) -> tuple[Tree, Tree, Tree]:
        """Factors of nothing, the axes as their basis, and scales of one."""

        def axes(make: Any) -> Tree:
            def leaf(p: Tensor) -> Axes:
                dtype = torch.promote_types(p.dtype, torch.float32)
                layout = self.layouts.of(p)
                return Axes(tuple([make(layout.shape[axis], dtype, p.device) for axis in layout.axes]))

            return tree.map(leaf, params)

        factors = axes(lambda n, dtype, device: torch.zeros(n, n, dtype=dtype, device=device))
        basis = axes(lambda n, dtype, device: torch.eye(n, dtype=dtype, device=device))
        if self.init_factor is None:
            return factors, basis, ()
        return factors, basis, axes(lambda n, dtype, device: torch.ones(n, dtype=tree.real_dtype(dtype), device=device))

    def collected(self, updates: Updates, state: EigenbasisState) -> tuple[Tree, Tree]:
        """Factors, and scales, that have taken in a gradient."""
        given = tree.leaves(tree.stop_gradient(updates))
        whole = tree.whole(given)
        old, basis = nodes(state.factors, updates), nodes(state.basis, updates)
        scales = nodes(state.scales, updates) if self.init_factor is not None else [Axes(())] * len(old)
        rows: list[tuple[Layout, tuple[Tensor, ...]]] = []
        whose, like = [], []
        for leaf, g, factors, own, e in zip(given, whole, old, basis, scales, strict=True):
            if factors.axes:
                x = tree.cast_leaf(g, factors.axes[0].dtype)
                rows.append((self.layouts.of(g), (x,) if self.init_factor is None else (x, *own.axes, *e.axes)))
                whose.append(leaf)
                like.append((*factors.axes, *e.axes))
        found = in_batches(_products if self.init_factor is None else statistics, rows, whose, like)
        count = [len(layout.axes) for layout, _ in rows]
        products = [x for row, n in zip(found, count, strict=True) for x in row[:n]]
        blended = _taken_in([x for node in old for x in node.axes], products, self.decay)
        factors = replaced(state.factors, updates, split(blended, old))
        if self.init_factor is None:
            return factors, state.scales
        squares = [x for row, n in zip(found, count, strict=True) for x in row[n:]]
        return factors, replaced(state.scales, updates, split(new_scales(scales, squares, self.decay), old))

    def renewed(self, kept: Tree, factors: Tree, updates: Updates, template: Tree, *, anew: bool) -> Tree:
        """Another basis, and the state of the rule turned into it."""
        basis, scales, opt_state = kept
        own, old = nodes(factors, updates), nodes(basis, updates)
        flat = [x for node in own for x in node.axes], [x for node in old for x in node.axes]
        if not flat[0]:
            return kept
        f = functools.partial(_found, self.second_moment == "kept") if anew else functools.partial(_followed, self.sort)
        new, vectors, orders = _shared_out(
            f, *flat, [x for x, node in zip(tree.leaves(updates), old, strict=True) for _ in node.axes]
        )
        turns = zip(tree.leaves(updates), split(vectors, old), split(orders, old), strict=True)
        boxes = tree.unflatten(updates, [Box((self.layouts.of(g), _Turn(*turn))) for g, *turn in turns])
        how = "kept" if anew and self.second_moment == "sorted" else self.second_moment
        turned = _all_turned(how, template, opt_state, boxes)
        if anew and self.init_factor is not None:
            constant = self.init_factor**-0.5
            begun = [[torch.full_like(x, constant) for x in node.axes] for node in nodes(scales, updates)]
            scales = replaced(scales, updates, begun)
        return replaced(basis, updates, split(new, old)), scales, turned

    def is_first(self, count: Any) -> Any:
        """Whether a basis is found anew after, or before, this step."""
        return count == self.start - 1

    def is_due(self, part: int, count: Any) -> Any:
        """Whether that of a part of the leaves is followed."""
        t = (count if self.first == "skip" else count + 1) + ahead(part, self.spread, self.period)
        return (t % self.period == 0) & (count > self.start - 1)


def _taken_in(old: list[Tensor], new: list[Tensor], decay: Scalar) -> list[Tensor]:
    """Running means; a product too large for its dtype leaves them as they are, lest a basis never comes back."""

    def leaf(was: Tensor, now: Tensor) -> Tensor:
        return torch.where(torch.isfinite(now), now, was)

    found: list[Tensor] = tree.map(leaf, old, tree.lerp(old, new, 1 - decay))
    return found


def _products(layout: Layout, x: Tensor) -> tuple[Tensor, ...]:
    return tuple([outer(layout, i, x) for i in range(len(layout.axes))])


def _found(ascending: bool, factor: Tensor, old: Tensor) -> tuple[Tensor, ...]:
    """Eigenvectors, what turns the old ones to them, and no other order."""
    _, vectors = eigenvectors(factor, descending=not ascending)
    order = torch.zeros_like(factor[..., 0].real, dtype=torch.int64) + torch.arange(old.shape[-1], device=old.device)
    return vectors.contiguous(), adjoint(vectors) @ old, order


def _followed(sort: bool, factor: Tensor, old: Tensor) -> tuple[Tensor, ...]:
    refined = refine_eigenvectors(factor, old, sort=sort)
    return refined.vectors.contiguous(), adjoint(refined.vectors) @ old, refined.order


def _shared_out(f: Any, factors: list[Tensor], old: list[Tensor], own: list[Any]) -> Any:
    """What becomes of bases; where leaves lie in shards, each process finds its share."""

    def some(chosen: list[int]) -> list[tuple[Tensor, ...]]:
        return [*zip(*tree.batched(f, [factors[i] for i in chosen], [old[i] for i in chosen]), strict=True)]

    like = [(x, x, torch.zeros_like(x[..., 0].real, dtype=torch.int64)) for x in old]
    return [[*column] for column in zip(*tree.shared(some, own, like), strict=True)]


def _all_turned(second_moment: str, template: Tree, state: State, boxes: Tree) -> State:
    """The state of the rule, in the new basis."""
    noted: list[tuple[str, Any, Any]] = []

    def note(values: str, x: Any, box: Any) -> Any:
        noted.append((values, x, box))
        return x

    map_values(template, note, state, boxes)
    moving = [i for i, row in enumerate(noted) if _is_turned(second_moment, *row)]
    own = [noted[i][1] for i in moving]
    whole = tree.whole(own)

    def some(chosen: list[int]) -> list[tuple[Tensor, ...]]:
        return [(_turned(second_moment, noted[moving[i]][0], whole[i], noted[moving[i]][2]),) for i in chosen]

    found = [x for _, x, _ in noted]
    for i, (x,) in zip(moving, tree.shared(some, own, [[x] for x in whole]), strict=True):
        found[i] = tree.cast_like(x, found[i])
    left = iter(found)
    return map_values(template, lambda *_: next(left), state, boxes)


def _is_turned(second_moment: str, values: str, x: Any, box: Box | None) -> bool:
    if box is None or (values == "nonnegative" and second_moment == "kept"):
        return False
    layout, _ = box.content
    return bool(layout.axes) and x.numel() == _numel(layout.shape)


def _turned(second_moment: str, values: str, x: Tensor, box: Box) -> Tensor:
    """A part of the state of the rule, in the new basis."""
    layout, turn = box.content
    if values != "nonnegative":
        found = apply(layout, x, *[tree.cast_leaf(v, _common(v, x)) for v in turn.vectors])
    elif second_moment == "sorted":
        found = sorted_along(layout, x, *turn.orders)
    else:
        found = apply(layout, x, *[tree.cast_leaf(tree.abs_sq(v), x.dtype) for v in turn.vectors])
    return tree.cast_leaf(found, x.dtype)


def _common(vectors: Tensor, x: Tensor) -> torch.dtype:
    return torch.promote_types(vectors.dtype, x.dtype)


def _numel(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda a, b: a * b, shape, 1)


def _into(layout: Layout, x: Tensor, *basis: Tensor) -> Tensor:
    return apply(layout, tree.cast_leaf(x, _common(basis[0], x)), *[adjoint(q) for q in basis])


def _out_of(layout: Layout, x: Tensor, *basis: Tensor) -> Tensor:
    return apply(layout, tree.cast_leaf(x, _common(basis[0], x)), *basis)


def in_eigenbasis(rule: GradientTransformation, how: Eigenbasis) -> GradientTransformation:
    """The transformation that `eigenbasis` documents."""
    template = values_of(rule)

    def moved(f: Any, updates: Updates, basis: Tree) -> Updates:
        """A function of each leaf that has a basis and of that, or of its scales, small ones of one shape together."""
        given = tree.leaves(updates)
        own = tree.whole(given)
        rows = list(zip(own, nodes(basis, updates), strict=True))
        turning = [(how.layouts.of(x), (x, *node.axes)) for x, node in rows if node.axes]
        whose = [leaf for leaf, (_, node) in zip(given, rows, strict=True) if node.axes]
        found = iter(in_batches(f, turning, whose, [[row[0]] for _, row in turning]))
        done = [next(found) if node.axes else x for x, node in rows]
        return tree.cast_like(tree.unflatten(updates, done), updates)

    def init(params: Params) -> EigenbasisState:
        return EigenbasisState(tree.host_count(params), *how.begun(params), rule.init(params))

    def update(
        updates: Updates, state: EigenbasisState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EigenbasisState]:
        def step(kept: Tree, basis: Tree, scales: Tree) -> Tree:
            u, opt_state = rule.rule(moved(_into, kept[0], basis), kept[1], None, **extra)
            if how.eps is not None:
                u = moved(functools.partial(whitened, how.eps), u, scales)
            return moved(_out_of, u, basis), opt_state

        def renew(anew: bool, kept: Tree, factors: Tree, given: Updates) -> Tree:
            return how.renewed(kept, factors, given, template, anew=anew)

        def follow(held: Tree, factors: Tree) -> Tree:
            given = tree.stop_gradient(updates)
            for part, own in enumerate(parted(state.basis, given, how.spread)):
                is_due, renewed = functools.partial(how.is_due, part), functools.partial(renew, how.by == "eigh")
                held = tree.every(is_due, state.count, renewed, held, factors, own)
            return tree.every(how.is_first, state.count, functools.partial(renew, True), held, factors, given)

        factors, scales = how.collected(updates, state)
        held = (state.basis, scales, state.opt_state)
        if how.first == "now":
            basis, scales, opt_state = follow(held, factors)
            u, opt_state = step((updates, opt_state), basis, scales)
            return u, EigenbasisState(state.count + 1, factors, basis, scales, opt_state)
        begun = (updates, state.opt_state)
        if how.first == "skip":
            u, opt_state = tree.every(lambda t: t > 0, state.count, step, begun, state.basis, state.scales)
            u = tree.every(lambda t: t == 0, state.count, tree.zeros_like, u)
        else:
            u, opt_state = step(begun, state.basis, state.scales)
        basis, scales, opt_state = follow((state.basis, scales, opt_state), factors)
        return u, EigenbasisState(state.count + 1, factors, basis, scales, opt_state)

    return GradientTransformation(init, update, leafwise=rule.leafwise)


@factory
def eigenbasis(
    rule: GradientTransformation,
    decay: Scalar = 0.95,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    sides: str = "both",
    kind: str = "shampoo",
    init_factor: float = 0.1,
    second_moment: str = "sorted",
    first: str = "skip",
    start: int = 1,
    by: str = "qr",
    spread: int = 1,
) -> GradientTransformation:
    """Show a rule each matrix in the eigenbasis of its gradients, and turn its answer back: SOAP with any rule inside.

    The rule works element by element there. When the basis changes, what its state keeps in the units of the gradient
    is turned into the new one, and what it keeps of their squares goes with the vectors that it belongs to. Under
    `vmap` all branches are computed in every step: right, but not amortised.

    Maths:
        h = g in the basis, u = rule(h) turned back
        G_i <- decay G_i + (1 - decay) g_(i) g_(i)^H  for each axis i; g_(i) is the unfolding
        first step: basis = eigenvectors of G_i, largest first, and no update
        when t mod precondition_frequency is 0, t the steps after it: the basis follows as in `refine_eigenvectors`,
            for "kl" without an order

    Args:
        rule: Any rule that works element by element and needs no parameters, such as `scale_by_adam()`.
        decay: Decay of the products, no unit, in [0, 1).
        precondition_frequency: Steps from one change of the basis to the next, >= 1.
        max_precond_dim: Size of an axis up to which it has a basis, >= 1.
        merge_dims: Join neighbouring axes, from the first on, as long as their product is at most `max_precond_dim`.
        precondition_1d: Whether leaves of one axis have a basis.
        sides: "both": of all axes; or "one": of the smallest alone.
        kind: Of the products: "shampoo", as above; or "kl", of gradients that the other axes whiten, divided by their
            number, with scales beside the basis.
        init_factor: For "kl", the eigenvalues that it begins with, > 0.
        second_moment: What becomes of squares when the basis changes: "sorted" with its vectors, "rotated" by the
            squares of the rotation, or "kept" as they are.
        first: "skip": the first step finds a basis and moves nothing; "identity": it moves along the axes; "now":
            products and basis come before the step, in every step.
        start: Step in which the basis is found, >= 1; before, it is that of the axes. With "skip" it is 1.
        by: How it follows: "qr", one iteration; or "eigh", found anew.
        spread: Parts of the leaves whose bases follow in steps of their own, >= 1 and at most
            `precondition_frequency`: leaf i, of those with a basis, is in part i mod spread, and part j comes
            j precondition_frequency / spread steps earlier, rounded down. No step then does the work of all; in kernels
            each part has a program of its own.

    Shapes:
        state: count () int64 on the CPU; factors, basis (n, n) for each axis, float32 for float16 and bfloat16; scales
            (n,) for "kl"; opt_state that of the rule.
        Memory: that of the rule, and for a matrix (m, n) twice m^2 + n^2. Leaves in shards are made whole in each step,
            and processes share the work on them.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code in one count of steps for all leaves, where theirs begins with the first gradient
        of each; in directions that no gradient has had, which `eigenvectors` defines; and in products that are too
        large for their dtype, which are left out.

    Source: Vyas et al., 2024, arXiv:2409.11321; Lin et al., 2025, arXiv:2509.03378 ("kl").

    Example:
        >>> import torch, optimfn as of
        >>> tx, g = of.eigenbasis(of.scale_by_sign()), torch.tensor([[3.0, 4.0], [4.0, -3.0]])
        >>> _, state = tx.update(g, tx.init(g))
        >>> tx.update(g, state)[0].square().sum()
        tensor(4.)
    """
    check_transformation(rule=rule)
    check_choice("kind", kind, ("shampoo", "kl"))
    check_positive(init_factor=init_factor)
    begin = init_factor if kind == "kl" else None
    layouts = Layouts(max_precond_dim, merge_dims, precondition_1d, sides)
    return in_eigenbasis(
        rule, Eigenbasis(decay, precondition_frequency, layouts, begin, second_moment, first, start, by, spread)
    )
