"""AdaGrad with one accumulator a row: for embedding tables."""

from typing import Any, NamedTuple

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_nonnegative
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates
from ._adagrad import divide


class ScaleByRowwiseRssState(NamedTuple):
    """The mean squares of the rows of all gradients so far."""

    sum_of_squares: Updates  # one number a row, real, in shape (n, 1, ...)


@factory
def scale_by_rowwise_rss(initial_accumulator_value: Scalar = 0.0, eps: Scalar = 1e-8) -> GradientTransformation:
    """Divide each row of the updates by the root of the sum of the mean squares of that row so far.

    A row is what the first axis counts, as in a table of embeddings; an element of a vector, and a leaf without axes,
    is a row of its own. Inside `rows` it costs what the rows of a sparse gradient cost.

    Maths:
        s_i <- s_i + mean over j of |g_ij|^2
        update_ij <- g_ij / (sqrt(s_i) + eps)

    Args:
        initial_accumulator_value: Value `s` starts at, in the unit of `|g|^2`, >= 0.
        eps: Added to the root, in the unit of `|g|`, >= 0.

    Shapes:
        state: sum_of_squares, of shape (n, 1, ...) for n rows, real (float32 for float16 and bfloat16). Memory: one
            number a row.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `scale_by_rss`, where every element has an accumulator. The sum of squares over the leaf, as in
        AdaGrad-Norm, is one for all rows.

    Source: "exact row-wise Adagrad" of FBGEMM (`eps` 1e-8) and TorchRec (`eps` 1e-10); Mudigere et al., 2021,
        arXiv:2104.05158.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_rowwise_rss()
        >>> tx.update(torch.tensor([[1.0, 7.0], [0.0, 0.0]]), tx.init(torch.ones(2, 2)))[0]
        tensor([[0.2000, 1.4000],
                [0.0000, 0.0000]])
    """
    check_nonnegative(initial_accumulator_value=initial_accumulator_value, eps=eps)

    def init(params: Params) -> ScaleByRowwiseRssState:
        rows = tree.outline(_means, tree.init_moment(params, real=True))  # only the shapes are of use
        return ScaleByRowwiseRssState(tree.full_like(rows, initial_accumulator_value))

    def update(
        updates: Updates, state: ScaleByRowwiseRssState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRowwiseRssState]:
        sums = tree.add(_means(tree.abs_sq(updates)), state.sum_of_squares)
        direction = tree.map(lambda g, s: divide(g, s, eps, eps_in_sqrt=False), updates, sums)
        return tree.cast_like(direction, updates), ScaleByRowwiseRssState(tree.carry(sums, state.sum_of_squares))

    return GradientTransformation(init, update, leafwise=True)


@factory
def rowwise_adagrad(
    learning_rate: ScalarOrSchedule, initial_accumulator_value: Scalar = 0.0, eps: Scalar = 1e-8
) -> GradientTransformation:
    """Step each row by its gradient over the root of the sum of its mean squares so far.

    The optimizer of embedding tables: its state is one number a row. `scale_by_rowwise_rss` gives the maths; here the
    learning rate multiplies it. `rows(rowwise_adagrad(...))` takes sparse gradients at the cost of their rows.

    Args:
        learning_rate: Parameter units per step at first, >= 0; a number, a 0-dim tensor or a schedule.
        initial_accumulator_value: Value the sum starts at, in the unit of `|g|^2`, >= 0.
        eps: Added to the root, in the unit of `|g|`, >= 0.

    Shapes:
        state: that of `scale_by_rowwise_rss`. Memory: one number a row.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `adagrad`, where every element has an accumulator.

    Source: "exact row-wise Adagrad" of FBGEMM (`eps` 1e-8) and TorchRec (`eps` 1e-10); Mudigere et al., 2021,
        arXiv:2104.05158.

    Example:
        >>> import torch, optimfn as of
        >>> table = torch.nn.Embedding(1000, 4, sparse=True)
        >>> optimizer = of.Optimizer(table, of.rows(of.rowwise_adagrad(0.1)))
        >>> table(torch.tensor([3, 14])).sum().backward()
        >>> optimizer.step()
    """
    return chain(scale_by_rowwise_rss(initial_accumulator_value, eps), descend(learning_rate))


def _means(squares: Updates) -> Updates:
    """The mean of each row."""
    return tree.fold_each("mean", lambda x: tuple(range(1, x.ndim)) or None, squares, keepdim=True)
