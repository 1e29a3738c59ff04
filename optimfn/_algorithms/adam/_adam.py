"""Adam, and Adam with decoupled weight decay."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_dtype, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByAdamState(NamedTuple):
    """Adam's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean of their squared magnitudes, like params but real


@factory
def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Divide the running mean of the updates by the root of the running mean of their squares.

    Maths:
        mu <- b1 mu + (1 - b1) g
        nu <- b2 nu + (1 - b2) |g|^2
        mu_hat = mu / (1 - b1^t),  nu_hat = nu / (1 - b2^t)
        update <- mu_hat / (sqrt(nu_hat + eps_root) + eps)
        with `nesterov`, mu_hat = b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0; above 0 the update has a gradient
            also where `g` is 0.
        mu_dtype: Dtype of `mu`; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        state: count () int64; mu, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adam for complex leaves (squared magnitude here, real and imaginary parts
        apart there) and for bfloat16 leaves (whose moments are bfloat16 there, as in optax).

    Source: Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 1; Dozat, 2016 (`nesterov`).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adam()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root)
    check_dtype(mu_dtype=mu_dtype)

    def init(params: Params) -> ScaleByAdamState:
        mu, nu = tree.init_moment(params, mu_dtype), tree.init_moment(params, real=True)
        return ScaleByAdamState(tree.count(params), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        mu_hat = tree.debiased_mean(updates, mu, b1, count, nesterov=nesterov)
        direction = tree.div_by_root(mu_hat, tree.bias_correction(nu, b2, count), eps, eps_root)
        state = ScaleByAdamState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(direction, updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Step by the debiased mean of the gradients over the root of their debiased mean square.

    `scale_by_adam` gives the maths; here the learning rate multiplies it.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adam: see `scale_by_adam`; and its `weight_decay` is L2 regularisation,
        here `chain(add_decayed_weights(...), adam(...))`.

    Source: Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adam(1e-3)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.0010])
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        descend(learning_rate),
    )


@factory
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with weight decay that does not pass through the preconditioner.

    Maths:
        update <- -learning_rate (adam + weight_decay p),  adam as in `scale_by_adam`

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        params: needed. state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: torch.optim.AdamW in the default of `weight_decay` (1e-2 there) and as `scale_by_adam`
        says. The decay is multiplied by the learning rate in both; in the paper it is not.

    Source: Loshchilov and Hutter, 2019, arXiv:1711.05101, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adamw(1e-3, weight_decay=0.1, mask=of.tree.is_matrix)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.0010])
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )


@factory
def nadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Adam that looks one step ahead with its mean: `adam` with `nesterov`.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.NAdam, whose momentum warms up; see `scale_by_nadam`.

    Source: Dozat, 2016, "Incorporating Nesterov momentum into Adam".

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.nadam(0.1, b1=0.5)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.1333])
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True)


@factory
def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
) -> GradientTransformation:
    """AdamW that looks one step ahead with its mean: `adamw` with `nesterov`.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Dozat, 2016; Loshchilov and Hutter, 2019, arXiv:1711.05101.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.nadamw(0.1, b1=0.5, weight_decay=1.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.2333])
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=True)
