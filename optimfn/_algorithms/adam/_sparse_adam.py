"""Adam for gradients that touch few rows at a time."""

from typing import Any

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._typing import Params, Scalar, Updates
from ..._wrappers._by_rows import rows
from ._adam import ScaleByAdamState


@factory
def scale_by_sparse_adam(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> GradientTransformation:
    """Adam that leaves the moments of the rows that have no gradient as they are.

    For embeddings: a row that is not looked up neither moves nor forgets. A dense leaf is one whose rows
    all have a gradient.

    Maths:
        mu <- mu + (1 - b1) (g - mu)       in the rows of g, else mu
        nu <- nu + (1 - b2) (g^2 - nu)     in the rows of g, else nu
        update <- sqrt(1 - b2^t) / (1 - b1^t) mu / (sqrt(nu) + eps)    in the rows of g, else 0

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, before the bias is corrected, in the unit of `|g|`, >= 0.

    Shapes:
        updates: real leaves, sparse in COO layout or dense; the result has the same layout.
        state: count () int64; mu, nu like params, dense. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `scale_by_adam`, where moments decay everywhere and `eps` is added after the correction.

    Source: torch.optim.SparseAdam, after Kingma and Ba, 2015, arXiv:1412.6980.

    Example:
        >>> import torch, optimfn as of
        >>> rows = torch.sparse_coo_tensor([[1]], [5.0], (3,), check_invariants=True)
        >>> tx = of.scale_by_sparse_adam()
        >>> tx.update(rows, tx.init(torch.ones(3)))[0].to_dense()
        tensor([0.0000, 1.0000, 0.0000])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        correction = tree.one_minus_power(b2, count).sqrt() / tree.one_minus_power(b1, count)
        direction = tree.scale(correction, tree.div_by_root(mu, nu, eps))
        mu, nu = tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        return tree.cast_like(direction, updates), ScaleByAdamState(count, mu, nu)

    return rows(GradientTransformation(init, update, leafwise=True, elementwise=True))
