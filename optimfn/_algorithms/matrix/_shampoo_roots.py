"""The factors of Shampoo, block by block: how they take in gradients, their inverse roots, and how these act."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._checks import check_choice, check_fraction, check_nonnegative, check_positive, check_steps
from ..._numerics._eigenbasis import eigenvectors
from ..._numerics._inverse_root import inverse_root
from ..._typing import Params, Scalar, Tree, Updates
from ..._wrappers._graft import grafted
from ._axes import Axes, Layout, adjoint, apply, in_batches, nodes, outer, replaced, split
from ._blocks import Blocking

KINDS = ("shampoo", "kl", "eigenvalues")
Roots = float | Mapping[int, float] | None


@dataclass(frozen=True)
class Preconditioner:
    """What is kept of the blocks of each leaf, and what is done with it."""

    decay: Scalar
    eps: Scalar
    blocking: Blocking
    kind: str
    roots: Roots
    by: str

    def __post_init__(self) -> None:
        check_fraction(b2=self.decay)
        check_nonnegative(eps=self.eps)
        check_steps(max_preconditioner_dim=self.blocking.largest, at_least=1)
        if self.blocking.target is not None:
            check_steps(target_dims=self.blocking.target, at_least=1)
        check_choice("kind", self.kind, KINDS)
        check_choice("sides", self.blocking.sides, ("both", "one"))
        check_choice("by", self.by, ("eigh", "pseudo", "newton"))
        given = self.roots if isinstance(self.roots, Mapping) else {} if self.roots is None else {0: self.roots}
        for value in given.values():
            check_positive(roots=value)

    @property
    def is_sum(self) -> bool:
        """Whether factors are sums, and not means."""
        return not isinstance(self.decay, Tensor) and self.decay == 1

    def root_of(self, layout: Layout) -> float:
        """The root whose inverse each factor of a block acts by; of "eigenvalues", that of the mean squares."""
        default = 2 if self.kind == "eigenvalues" else 2 * max(len(layout.axes), 1)
        if isinstance(self.roots, Mapping):
            return self.roots.get(len(layout.shape), default)
        return default if self.roots is None else self.roots

    def begun(self, params: Params) -> tuple[Tree, Tree]:
        """Factors of nothing, and roots that do nothing."""

        def axes(make: Callable[..., Tensor]) -> Tree:
            def leaf(p: Tensor) -> Axes:
                dtype = torch.promote_types(p.dtype, torch.float32)
                sizes = [one.shape[axis] for one in self.blocking.layouts(p.shape) for axis in one.axes]
                return Axes(tuple([make(n, dtype, p.device) for n in sizes]))

            return tree.map(leaf, params)

        factors = axes(lambda n, dtype, device: torch.zeros(n, n, dtype=dtype, device=device))
        return factors, axes(lambda n, dtype, device: torch.eye(n, dtype=dtype, device=device))

    def rows(self, updates: Updates, given: Tree) -> list[tuple[Layout, tuple[Tensor, ...]]]:
        """Each block of each leaf, whole, with what belongs to it."""
        found: list[tuple[Layout, tuple[Tensor, ...]]] = []
        for x, node in zip(tree.whole(tree.leaves(updates)), nodes(given, updates), strict=True):
            left = iter(node.axes)
            for layout, block in zip(self.blocking.layouts(x.shape), self.blocking.split(x), strict=True):
                own = [*itertools.islice(left, len(layout.axes))]
                if len(own) < len(layout.axes):
                    raise ValueError(f"a gradient has shape {tuple(x.shape)}, and the state is of another one")
                found.append((layout, (tree.cast_leaf(block, own[0].dtype) if own else block, *own)))
        return found

    def whose(self, updates: Updates) -> list[Any]:
        """The leaf of each block."""
        return [x for x in tree.leaves(updates) for _ in self.blocking.layouts(x.shape)]

    def acted(self, f: Callable[..., Tensor], updates: Updates, given: Tree) -> list[Tensor]:
        """What a function of blocks and what belongs to them makes of each."""
        rows = self.rows(updates, given)
        return in_batches(f, rows, self.whose(updates), [[row[0]] for _, row in rows])

    def joined(self, blocks: Sequence[Tensor], like: Updates) -> Updates:
        """The leaves that blocks make."""
        left = iter(blocks)
        found: list[Tensor] = []
        for x in tree.leaves(like):
            own = [next(left) for _ in self.blocking.layouts(x.shape)]
            found.append(self.blocking.join(own, x) if own else x)
        return tree.cast_like(tree.unflatten(like, found), like)

    def collected(self, updates: Updates, factors: Tree, roots: Tree) -> Tree:
        """Factors that have taken in a gradient; for "kl", one that the roots of the other axes have whitened."""
        g = tree.stop_gradient(updates)
        pairs = [pair for pair in zip(self.rows(g, roots), self.whose(g), strict=True) if pair[0][0].axes]
        rows, whose = [row for row, _ in pairs], [x for _, x in pairs]
        f = _whitened if self.kind == "kl" else _products
        products = [x for row in in_batches(f, rows, whose, [row[1:] for _, row in rows]) for x in row]
        old = nodes(factors, updates)
        flat = [x for node in old for x in node.axes]
        taken = tree.add(flat, products) if self.is_sum else tree.lerp(flat, products, 1 - self.decay)
        # A product too large for its dtype leaves a factor as it is, lest a root never comes back.
        kept = tree.map(lambda was, now: torch.where(torch.isfinite(now), now, was), flat, taken)
        return replaced(factors, updates, split(kept, old))

    def rooted(self, kept: Tree, factors: Tree, updates: Updates, correction: Tensor, eps: Tensor) -> Tree:
        """The inverse roots of factors, or their eigenvectors; one that is not finite leaves the last."""
        old, own = nodes(kept, updates), nodes(factors, updates)
        kinds = [
            self.root_of(layout)
            for x in tree.leaves(updates)
            for layout in self.blocking.layouts(x.shape)
            for _ in layout.axes
        ]
        before, flat = ([x for node in given for x in node.axes] for given in (old, own))
        flat = [tree.cast_leaf(x / correction, x.dtype) for x in flat]
        whose = [x for x, node in zip(tree.leaves(updates), old, strict=True) for _ in node.axes]

        def some(chosen: list[int]) -> list[tuple[Tensor, ...]]:
            found: dict[int, tuple[Tensor, ...]] = {}
            for root in dict.fromkeys([kinds[i] for i in chosen]):
                members = [i for i in chosen if kinds[i] == root]
                f = _basis if self.kind == "eigenvalues" else functools.partial(self._root, root, eps)
                made = tree.batched(f, [flat[i] for i in members], [before[i] for i in members])
                found.update(zip(members, [(x,) for x in made], strict=True))
            return [found[i] for i in chosen]

        found = [x for (x,) in tree.shared(some, whose, [[x] for x in before])]
        return replaced(kept, updates, split(found, old))

    def _root(self, root: float, eps: Tensor, factor: Tensor, before: Tensor) -> Tensor:
        found = inverse_root(factor, root, eps, by=self.by)
        return torch.where(torch.isfinite(found).all((-2, -1), keepdim=True), found, before)

    def squares(self, updates: Updates, nu: Updates, roots: Tree) -> Updates:
        """Mean squares, or sums of squares, of the gradients in their eigenbases."""
        g = tree.stop_gradient(updates)
        turned = self.joined(self.acted(_into, g, roots), g)
        if self.is_sum:
            return tree.add(nu, tree.abs_sq(turned))
        return tree.update_moment_per_elem_norm(turned, nu, self.decay, 2)

    def directed(
        self, is_grafted: bool, like: Updates, updates: Updates, roots: Tree, nu: Updates, eps: Tensor
    ) -> Updates:
        """What the roots make of updates, each block as long as it is in another tree if it is grafted."""
        own = updates
        if self.kind == "eigenvalues":
            turned = self.joined(self.acted(_into, updates, roots), updates)
            own = tree.map(functools.partial(self._scaled, eps), turned, nu)
        blocks = self.acted(apply, own, roots)
        if is_grafted:
            blocks = grafted(blocks, [block for _, (block, *_) in self.rows(like, roots)])
        return self.joined(blocks, like)

    def _scaled(self, eps: Tensor, x: Tensor, squares: Tensor) -> Tensor:
        """A leaf in its eigenbases, divided by the roots of mean squares."""
        root = self.root_of((*self.blocking.layouts(x.shape), Layout(0, (), ()))[0])
        return tree.cast_leaf(x / ((squares.sqrt() if root == 2 else squares ** (1 / root)) + eps), x.dtype)


def _products(layout: Layout, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return tuple([outer(layout, i, x) for i in range(len(layout.axes))])


def _whitened(layout: Layout, x: Tensor, *roots: Tensor) -> tuple[Tensor, ...]:
    """The products of a block that the roots of all axes but one have been at."""
    found: list[Tensor] = []
    for i in range(len(layout.axes)):
        others = [j for j in range(len(layout.axes)) if j != i]
        rest = layout._replace(axes=tuple([layout.axes[j] for j in others]))
        found.append(outer(layout, i, apply(rest, x, *[roots[j] for j in others])))
    return tuple(found)


def _basis(factor: Tensor, before: Tensor) -> Tensor:
    _, vectors = eigenvectors(factor)
    return torch.where(torch.isfinite(vectors).all((-2, -1), keepdim=True), vectors, before)


def _into(layout: Layout, x: Tensor, *basis: Tensor) -> Tensor:
    return apply(layout, x, *[adjoint(q) for q in basis])
