"""QHM: gradient descent between plain and momentum."""

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_fraction
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._momentum import ema
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, State, Updates


@factory
def scale_by_qhm(momentum: Scalar = 0.999, nu: Scalar = 0.7) -> GradientTransformation:
    """Mix the newest update with the running mean.

    Maths:
        mu <- momentum mu + (1 - momentum) g
        update <- (1 - nu) g + nu mu

    Args:
        momentum: Decay of the mean, no unit, in [0, 1).
        nu: Weight of the mean, no unit, in [0, 1]; `nu = momentum` is Nesterov's form.

    Shapes:
        state: that of `ema`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Ma and Yarats, 2018, arXiv:1810.06801, section 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_qhm(0.5, 0.5)
        >>> tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))[0]
        tensor([3.])
    """
    check_decay(momentum=momentum)
    check_fraction(nu=nu)
    mean = ema(momentum, debias=False)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: object) -> tuple[Updates, State]:
        slow, state = mean.rule(updates, state, params)
        return tree.cast_like(tree.lerp(updates, slow, nu), updates), state

    return GradientTransformation(mean.init, update, leafwise=True, elementwise=True)


@factory
def qhm(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar = 0.999,
    nu: Scalar = 0.7,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Gradient descent between plain and momentum.

    `scale_by_qhm` gives the maths.

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Decay of the mean, no unit, in [0, 1).
        nu: Weight of the mean, no unit, in [0, 1].
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_qhm`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Ma and Yarats, 2018, arXiv:1810.06801, section 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.qhm(0.1, 0.5, 0.4)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.4000])
    """
    return chain(scale_by_qhm(momentum, nu), add_decayed_weights(weight_decay, mask), descend(learning_rate))
