"""Scale each leaf of the updates by the size of its parameter."""

from .. import tree
from .._base import GradientTransformation, leafwise, stateless
from .._checks import check_nonnegative, need_params
from .._recipe import factory
from .._typing import Params, Scalar, Updates


@factory
def scale_by_param_block_norm(min_scale: Scalar = 1e-3) -> GradientTransformation:
    """Multiply each leaf of the updates by the norm of its parameter.

    Maths:
        update <- g max(|p|, min_scale),  |p| the 2-norm of the leaf

    Args:
        min_scale: Least factor, so that a parameter at zero can move, in the unit of `|p|`, >= 0.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_param_block_norm()
        >>> tx.update(torch.ones(2), tx.init(None), torch.tensor([3.0, 4.0]))[0]
        tensor([5., 5.])
    """
    check_nonnegative(min_scale=min_scale)

    return _by_block("scale_by_param_block_norm", min_scale, mean=False)


@factory
def scale_by_param_block_rms(min_scale: Scalar = 1e-3) -> GradientTransformation:
    """Multiply each leaf of the updates by the root mean square of its parameter.

    The learning rate then is a relative one: 0.01 changes a parameter by about a hundredth.

    Maths:
        update <- g max(rms(p), min_scale),  rms(p) = |p| / sqrt(number of elements)

    Args:
        min_scale: Least factor, so that a parameter at zero can move, in the unit of `p`, >= 0.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Shazeer and Stern, 2018, arXiv:1804.04235, section 8.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_param_block_rms()
        >>> tx.update(torch.ones(2), tx.init(None), torch.tensor([3.0, -3.0]))[0]
        tensor([3., 3.])
    """
    check_nonnegative(min_scale=min_scale)

    return _by_block("scale_by_param_block_rms", min_scale, mean=True)


def _by_block(rule: str, min_scale: Scalar, *, mean: bool) -> GradientTransformation:
    """Multiply each leaf by the size of its parameter, but at least by `min_scale`."""

    def scale(updates: Updates, params: Params | None) -> Updates:
        need_params(rule, params)
        sizes = tree.norms(tree.map(lambda _, p: p, updates, params), mean=mean, wide=True)
        return tree.map(lambda u, size: tree.scale(size, u), updates, tree.clip(sizes, min_value=min_scale))

    return leafwise(stateless(scale))
