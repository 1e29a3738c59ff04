"""The drop-in classes: for each, the rule in torch's words and torch's names for its state.

Constructors, with their signatures, defaults, checks and messages, are inherited from torch.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .. import tree
from .._algorithms.adagrad._adadelta import scale_by_adadelta
from .._algorithms.adagrad._adafactor import scale_by_row_col_rms
from .._algorithms.adagrad._adagrad import scale_by_rss
from .._algorithms.adagrad._rmsprop import scale_by_rms, scale_by_stddev
from .._algorithms.adam._adam import scale_by_adam
from .._algorithms.adam._adamax import scale_by_adamax
from .._algorithms.adam._amsgrad import scale_by_amsgrad
from .._algorithms.adam._nadam import scale_by_nadam
from .._algorithms.adam._radam import scale_by_radam
from .._algorithms.adam._sparse_adam import scale_by_sparse_adam
from .._algorithms.matrix._muon import orthogonalize, shape_factor
from .._algorithms.momentum._asgd import asgd
from .._algorithms.sign._rprop import scale_by_rprop
from .._base import GradientTransformation, chain, identity, stateless_with_tree_map
from .._transforms._block import scale_by_param_block_rms
from .._transforms._clipping import clip_by_block_rms
from .._transforms._dampening import dampened_trace
from .._transforms._decay import add_decayed_weights
from .._transforms._momentum import ema, trace
from .._transforms._rate import scale, scale_by_learning_rate, scale_by_schedule
from ._dropin import DropIn
from ._sparse import StepsTables

Group = Mapping[str, Any]


def _chain(group: Group, *scalings: GradientTransformation, decoupled: bool = False) -> GradientTransformation:
    """Weight decay before or after the scaling, then the learning rate."""
    decay = add_decayed_weights(group["weight_decay"])
    rate = scale_by_learning_rate(group["lr"])
    return chain(*scalings, decay, rate) if decoupled else chain(decay, *scalings, rate)


def _is_zero(value: Any) -> bool:
    """Whether an option is the number 0; a tensor, which is not read, never is."""
    return not isinstance(value, torch.Tensor) and value == 0


def _rate_tensor(group: Group) -> torch.Tensor:
    """The learning rate as a tensor, in the dtype it has if it is one."""
    rate = group["lr"]
    return rate if isinstance(rate, torch.Tensor) else tree.wide(rate)


class SGD(StepsTables, torch.optim.SGD):
    """torch.optim.SGD on the rules `trace` and `dampened_trace`; sparse gradients by torch's own function."""

    fields: ClassVar = {"trace": "momentum_buffer"}
    counts_steps = False

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, momentum, rate."""
        momentum, dampening, nesterov = group["momentum"], group["dampening"], group["nesterov"]
        if _is_zero(momentum):
            return _chain(group)
        if _is_zero(dampening):
            return _chain(group, trace(momentum, nesterov))
        return _chain(group, dampened_trace(momentum, dampening, nesterov))


class Adam(DropIn, torch.optim.Adam):
    """torch.optim.Adam on the rules `scale_by_adam` and `scale_by_amsgrad`."""

    refuses_sparse = "Adam does not support sparse gradients, please consider SparseAdam instead"
    fields: ClassVar = {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, Adam, rate; or Adam, decay, rate."""
        b1, b2 = group["betas"]
        scaling = (
            scale_by_amsgrad(b1, b2, group["eps"], max_of_raw=True)
            if group["amsgrad"]
            else scale_by_adam(b1, b2, group["eps"])
        )
        return _chain(group, scaling, decoupled=group["decoupled_weight_decay"])


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW: `Adam` with decoupled weight decay."""


class SparseAdam(DropIn, torch.optim.SparseAdam):
    """torch.optim.SparseAdam on the rule `scale_by_sparse_adam`."""

    refuses_sparse, wants_sparse = "", True
    fields: ClassVar = {"mu": "exp_avg", "nu": "exp_avg_sq"}
    step_is_int = True

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Adam on the rows that are there, rate."""
        (b1, b2), rate = group["betas"], _rate_tensor(group)

        def step_size(count: int | torch.Tensor) -> torch.Tensor:
            # torch multiplies the corrections into the rate, and so rounds them to the dtype of a tensor rate.
            root, rest = tree.one_minus_power(b2, count + 1).sqrt(), tree.one_minus_power(b1, count + 1)
            rounded = rate * root.to(rate.dtype) / rest.to(rate.dtype)
            return -tree.wide(rounded) * rest / root

        return chain(scale_by_sparse_adam(b1, b2, group["eps"]), scale_by_schedule(step_size))


class Adamax(DropIn, torch.optim.Adamax):
    """torch.optim.Adamax on the rule `scale_by_adamax`."""

    fields: ClassVar = {"mu": "exp_avg", "nu": "exp_inf"}

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, Adamax, rate."""
        b1, b2 = group["betas"]
        return _chain(group, scale_by_adamax(b1, b2, group["eps"]))


class NAdam(DropIn, torch.optim.NAdam):
    """torch.optim.NAdam on the rule `scale_by_nadam`."""

    fields: ClassVar = {"mu": "exp_avg", "nu": "exp_avg_sq"}
    scalars: ClassVar = ("mu_product",)

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, NAdam, rate; or NAdam, decay, rate."""
        b1, b2 = group["betas"]
        scaling = scale_by_nadam(b1, b2, group["eps"], group["momentum_decay"])
        return _chain(group, scaling, decoupled=group["decoupled_weight_decay"])


class RAdam(DropIn, torch.optim.RAdam):
    """torch.optim.RAdam on the rule `scale_by_radam`."""

    fields: ClassVar = {"mu": "exp_avg", "nu": "exp_avg_sq"}

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, RAdam, rate; or RAdam, decay, rate."""
        b1, b2 = group["betas"]
        scaling = scale_by_radam(b1, b2, group["eps"], eps_after_correction=False)
        return _chain(group, scaling, decoupled=group["decoupled_weight_decay"])


class RMSprop(DropIn, torch.optim.RMSprop):
    """torch.optim.RMSprop on the rules `scale_by_rms` and `scale_by_stddev`."""

    fields: ClassVar = {"nu": "square_avg", "trace": "momentum_buffer", "mu": "grad_avg"}

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, RMSProp, momentum, rate."""
        scaling = scale_by_stddev if group["centered"] else scale_by_rms
        momentum = identity() if _is_zero(group["momentum"]) else trace(group["momentum"])
        return _chain(group, scaling(group["alpha"], group["eps"], eps_in_sqrt=False), momentum)


class Rprop(DropIn, torch.optim.Rprop):
    """torch.optim.Rprop on the rule `scale_by_rprop`."""

    fields: ClassVar = {"prev_updates": "prev", "step_sizes": "step_size"}

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Rprop; the learning rate is where its step sizes begin."""
        return chain(scale_by_rprop(group["lr"], *group["etas"], *group["step_sizes"]), scale(-1.0))


class ASGD(DropIn, torch.optim.ASGD):
    """torch.optim.ASGD on the rule `asgd`."""

    scalars: ClassVar = ("eta", "mu")
    step_on_device = True

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, ASGD."""
        averaged = asgd(group["lr"], group["lambd"], group["alpha"], group["t0"])
        return chain(add_decayed_weights(group["weight_decay"]), averaged)


class Adadelta(DropIn, torch.optim.Adadelta):
    """torch.optim.Adadelta on the rule `scale_by_adadelta`."""

    fields: ClassVar = {"e_g": "square_avg", "e_x": "acc_delta"}

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, Adadelta, rate."""
        return _chain(group, scale_by_adadelta(group["rho"], group["eps"]))


class Adagrad(DropIn, torch.optim.Adagrad):
    """torch.optim.Adagrad on the rule `scale_by_rss`."""

    fields: ClassVar = {"sum_of_squares": "sum"}
    refuses_sparse = ""

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Decay, Adagrad, a rate that falls with the steps."""
        start, fall = group["initial_accumulator_value"], group["lr_decay"]
        scaling = scale_by_rss(start, group["eps"], eps_in_sqrt=False)
        return _chain(group, scaling, scale_by_schedule(lambda count: 1 / (1 + fall * tree.wide(count))))

    def _check_sparse(self, group: Group) -> None:
        if group["weight_decay"] != 0:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")


class Adafactor(DropIn, torch.optim.Adafactor):
    """torch.optim.Adafactor on the rule `scale_by_row_col_rms`."""

    refuses_complex = True
    fields: ClassVar = {"v_row": "row_var", "v_col": "col_var", "v": "variance"}
    optional: ClassVar = ("row_var", "col_var", "variance")

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Factored scaling, clipping, relative step size, decay."""
        (eps1, eps2), rate, decay = group["eps"], group["lr"], group["weight_decay"]

        def step_size(count: Any) -> torch.Tensor:
            return torch.minimum(tree.wide(rate), torch.rsqrt(tree.wide(count + 1)))

        return chain(
            scale_by_row_col_rms(group["beta2_decay"], eps1),
            clip_by_block_rms(group["d"]),
            scale_by_param_block_rms(eps2),
            scale_by_schedule(step_size),
            add_decayed_weights(lambda count: tree.wide(rate) * decay),
            scale(-1.0),
        )


class Muon(DropIn, torch.optim.Muon):
    """torch.optim.Muon on the rule `orthogonalize`."""

    refuses_complex = True
    fields: ClassVar = {"ema": "momentum_buffer"}
    counts_steps = False

    @staticmethod
    def rule(group: Group) -> GradientTransformation:
        """Momentum, orthogonalisation, shape, decay, rate."""
        if group["ns_steps"] >= 100:  # in the words of torch
            raise ValueError("Number of steps must be less than 100 for computational efficiency")
        rate, mode = _rate_tensor(group), group["adjust_lr_fn"] or "original"
        decay = group["weight_decay"]
        decay = decay.to(rate.dtype) if isinstance(decay, torch.Tensor) else decay

        def scaled(u: torch.Tensor, p: torch.Tensor | None) -> torch.Tensor:
            # torch multiplies the factor and the decay into the rate, and so rounds them to its dtype.
            assert p is not None
            step: torch.Tensor = -(rate * shape_factor(mode, u)) * u - (1 - (1 - rate * decay)) * p
            return tree.cast_leaf(step, u.dtype)

        return chain(
            ema(group["momentum"], debias=False, nesterov=group["nesterov"]),
            orthogonalize(group["ns_coefficients"], group["ns_steps"], group["eps"]),
            stateless_with_tree_map(scaled),
        )
