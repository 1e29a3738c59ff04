"""Grams: the size of Adam's step in the direction of the gradient's sign."""

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, State, Updates
from ._adam import scale_by_adam


@factory
def scale_by_grams(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> GradientTransformation:
    """Step as far as Adam does, in the direction of the sign of the update that comes in.

    Maths:
        update <- sign(g) |adam|,  adam as in `scale_by_adam`

    Args:
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.

    Shapes:
        state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code, which adds eps before it corrects the bias.

    Source: Cao, Li and Song, 2024, arXiv:2412.17107, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_grams()
        >>> tx.update(torch.tensor([-5.0]), tx.init(torch.ones(1)))[0]
        tensor([-1.])
    """
    adam = scale_by_adam(b1, b2, eps, eps_root)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: object) -> tuple[Updates, State]:
        step, state = adam.rule(updates, state, params)
        return tree.map(lambda d, g: tree.cast_leaf(d.abs() * torch.sgn(g), g.dtype), step, updates), state

    return GradientTransformation(adam.init, update, leafwise=True, elementwise=True)


@factory
def grams(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step as far as Adam does, against the sign of the gradient.

    `scale_by_grams` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_grams`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Cao, Li and Song, 2024, arXiv:2412.17107, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.grams(0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1000])
    """
    return chain(scale_by_grams(b1, b2, eps, eps_root), add_decayed_weights(weight_decay, mask), descend(learning_rate))
