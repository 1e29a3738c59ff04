"""Adam-mini: Adam with one second moment a block of parameters."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_callable, check_decay, check_nonnegative, check_steps
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Tree, Updates

Blocks: TypeAlias = Callable[[str, Tensor], int | tuple[int, ...] | None]
"""Path and leaf to what shares a number: a number of equal blocks, axes along which it is shared, or `None`."""


class ScaleByAdamMiniState(NamedTuple):
    """Adam-mini's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running means of the mean squares of the blocks, with one element along the axes that share it


def block_means(squares: Tree, blocks: Blocks) -> Tree:
    """The mean of each block in the place of its elements; along the axes that share it there is one element."""

    def joined(mean: Tensor, x: Tensor, path: str) -> Tensor:
        """Rows of one block share what each of them has: as many rows, so that shards of them stay in their places."""
        count = blocks(path, x)
        if not isinstance(count, int) or x.ndim == 0 or x.numel() == 0 or count in (1, x.shape[0]):
            return mean
        rows = tree.whole(mean).unflatten(0, (count, -1))
        joint: Tensor = rows.mean(1, keepdim=True).expand_as(rows).flatten(0, 1)
        return joint

    means = row_means(squares, blocks)
    return tree.cast_like(tree.map(joined, means, squares, tree.paths(squares)), means)


def row_means(squares: Tree, blocks: Blocks) -> Tree:
    """The same before the rows of a block are joined, which takes all processes where leaves lie in shards."""

    def axes(x: Tensor, path: str) -> tuple[int, ...] | None:
        shared = blocks(path, x)
        if shared is None or x.ndim == 0 or x.numel() == 0:
            return None
        if isinstance(shared, int) and (shared < 1 or x.shape[0] % shared):
            raise ValueError(
                f"blocks must divide the first axis of a leaf, got {shared} for {path!r} of shape {tuple(x.shape)}"
            )
        return (tuple(range(shared != 1, x.ndim)) if isinstance(shared, int) else tuple(shared)) or None

    return tree.fold_each("mean", axes, squares, tree.paths(squares), keepdim=True)


_ROWS = re.compile(
    r"embed|embd|wte|lm_head|output|final_layer|v_proj\.weight|wv\.weight|o_proj\.weight|wo\.weight|attn\.proj\.weight"
    r"|feed_forward|linear|mlp"
)
_HEADS = re.compile(r"[kq]_proj\.weight|w[qk]\.weight")


@factory
def adam_mini_blocks(head_size: int = 1) -> Blocks:
    """The authors' blocks for transformers, by the names of the leaves.

    Biases have a number for each element; queries and keys one for each head; values, projections, multilayer
    perceptrons, embeddings and heads one for each row, which makes one output; all other leaves one.

    Args:
        head_size: How many rows of queries and keys make a head, >= 1.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> blocks = of.adam_mini_blocks(head_size=4)
        >>> blocks("0.q_proj.weight", torch.ones(8, 8)), blocks("0.mlp.weight", torch.ones(8, 8))
        (2, 8)
    """
    check_steps(head_size=head_size, at_least=1)

    def blocks(path: str, x: Tensor) -> int | None:
        if "bias" in path:
            return None
        if x.ndim < 2:
            return 1
        if _HEADS.search(path):
            return int(x.shape[0]) // head_size if x.shape[0] % head_size == 0 else int(x.shape[0])
        return int(x.shape[0]) if _ROWS.search(path) else 1

    return blocks


@factory
def scale_by_adam_mini(
    blocks: Blocks | None = None, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> GradientTransformation:
    """Adam whose second moment is one number for each block of elements; almost half of its memory is saved.

    Maths:
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean(|g|^2)     of each block
        update <- m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
        blocks: Function of path and leaf that says what shares a number: how many equal blocks of rows, along the first
            axis, the leaf has; or along which axes it is shared; or `None`, as in Adam. Left out, it is
            `adam_mini_blocks()`.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.

    Shapes:
        state: count () int64; mu like params; nu with one element along axes that share it.
        Memory: 1 x params and one number for each block or row.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `init` if a number of blocks does not divide the rows of a leaf.

    Source: Zhang et al., 2024, arXiv:2406.16793, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adam_mini(lambda path, x: (1,))
        >>> tx.update(torch.tensor([[1.0, 7.0], [2.0, 2.0]]), tx.init(torch.ones(2, 2)))[0]
        tensor([[0.2000, 1.4000],
                [1.0000, 1.0000]])
    """
    chosen = adam_mini_blocks() if blocks is None else blocks
    check_callable(blocks=chosen)
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleByAdamMiniState:
        # Only the shapes of these means are of use.
        nu = tree.outline(lambda x: row_means(x, chosen), tree.init_moment(params, real=True))
        return ScaleByAdamMiniState(tree.count(params), tree.init_moment(params), tree.zeros_like(nu))

    def update(
        updates: Updates, state: ScaleByAdamMiniState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamMiniState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        # Of order one, but for numbers that may be infinite.
        nu = tree.update_moment_per_elem_norm(block_means(tree.abs_sq(updates), chosen), state.nu, b2, 1)
        direction = tree.div_by_root(tree.bias_correction(mu, b1, count), tree.bias_correction(nu, b2, count), eps)
        state = ScaleByAdamMiniState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(direction, updates), state

    return GradientTransformation(init, update, leafwise=True)


@factory
def adam_mini(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    blocks: Blocks | None = None,
) -> GradientTransformation:
    """Step as AdamW does, with one second moment for each block of elements.

    `scale_by_adam_mini` gives the maths. The authors do not decay leaves with norm, ln or bias in their names.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        blocks: Function of path and leaf that says what shares a number, as for `scale_by_adam_mini`.

    Shapes:
        params: needed. state: that of `scale_by_adam_mini`. Memory: 1 x params and a number for each block or row.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Zhang et al., 2024, arXiv:2406.16793, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.adam_mini(0.1), {"weight": torch.ones(2)}
        >>> tx.update({"weight": torch.tensor([1.0, 7.0])}, tx.init(params), params)[0]
        {'weight': tensor([-0.0200, -0.1400])}
    """
    return chain(
        scale_by_adam_mini(blocks, b1, b2, eps), add_decayed_weights(weight_decay, mask), descend(learning_rate)
    )
