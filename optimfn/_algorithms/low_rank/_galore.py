"""GaLore: a rule whose memory is that of a few directions of each matrix."""

from ... import tree
from ..._base import GradientTransformation, chain, check_transformation, identity
from ..._checks import check_number, check_steps
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Scalar, ScalarOrSchedule
from ..adam._adam import scale_by_adam
from ..adam._adam_in_two import adam_before_correction, corrected_and_decayed_last
from ..matrix._newton_schulz import DimensionNumbers
from ..parts._cautious import rule_and_decay
from ._space import Space, in_low_rank, up


@factory
def project(
    rule: GradientTransformation,
    rank: int = 128,
    period: int = 200,
    side: str = "short",
    by: str = "svd",
    scale: Scalar = 1.0,
    *,
    seed: int = 0,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Show a rule each matrix in a few directions only, and turn its answer back: its memory is as small.

    The directions are chosen anew every `period` steps. The state of the rule is not turned with them, as in the
    authors' code. Leaves that are no matrices pass through the rule as they are.

    Maths:
        P = the leading `rank` singular vectors of g, at the steps 0, period, ...
        update <- scale P rule(P^H g),  or from the right scale rule(g P) P^H

    Args:
        rule: Any rule that needs no parameters, such as `scale_by_adam()` or `scale_by_lion()`.
        rank: Number of directions, >= 1; at most the smaller side of the matrix.
        period: Steps between two choices, >= 1.
        side: Which side of the matrix becomes small: the "short" or the "long" one, or "left" (rows) or "right"
            (columns). With "short" the state of the rule is larger and the basis smaller.
        by: "svd", or "gaussian": random directions, of variance 1 / rank, that cost nothing.
        scale: Factor of what comes back, no unit.
        seed: Of the random directions.
        weight_dimension_numbers: As in `scale_by_muon`, but with all axes of a leaf named.

    Shapes:
        state: count () int64 on the CPU; opt_state that of the rule for (m, r) or (r, n); basis (n, r) or (m, r), one
            for each matrix, float32 for float16 and bfloat16. Leaves in shards are made whole in every step.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Zhao et al., 2024, arXiv:2403.03507.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.project(of.scale_by_sign(), rank=1)
        >>> g = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> tx.update(g, tx.init(g))[0].abs()
        tensor([[1., 0., 0.],
                [0., 0., 0.]])
    """
    check_number(scale=scale)
    check_transformation(rule=rule)
    space = Space(rank, period, side, by, seed, weight_dimension_numbers)
    rule, rest = rule_and_decay("project", rule)
    if rest:
        whole = project(
            rule, rank, period, side, by, scale, seed=seed, weight_dimension_numbers=weight_dimension_numbers
        )
        return chain(whole, *rest)
    return in_low_rank(rule, space, lambda a: tree.scale(scale, up(a.step, a.basis)), identity(), lambda a, back: back)


@factory
def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    base_optimizer: GradientTransformation | None = None,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Adam, or another rule, on the leading directions of the longer side of each matrix: `project` in optax's form.

    Args:
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        scale: Factor of what comes back, no unit.
        base_optimizer: A rule that needs no parameters; `None` means `scale_by_adam()`.
        weight_dimension_numbers: As in `scale_by_muon`, but with all axes of a leaf named.

    Shapes:
        state: that of `project`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax in the layout: without dimension numbers a matrix is outputs by inputs, as torch has it, which
        decides for square ones.

    Source: Zhao et al., 2024, arXiv:2403.03507.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_galore(rank=1)
        >>> g = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> tx.update(g, tx.init(g))[0].round(decimals=4)
        tensor([[1., 0., 0.],
                [0., 0., 0.]])
    """
    rule = scale_by_adam() if base_optimizer is None else base_optimizer
    check_steps(update_proj_gap=update_proj_gap, at_least=1)
    return project(rule, rank, update_proj_gap, "long", scale=scale, weight_dimension_numbers=weight_dimension_numbers)


@factory
def galore(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    base_optimizer: GradientTransformation | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Step by Adam, or another rule, on the leading directions of each matrix, with decoupled decay: optax's form.

    `scale_by_galore` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        scale: Factor of what comes back, no unit.
        base_optimizer: A rule that needs no parameters; `None` means `scale_by_adam()`.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        weight_dimension_numbers: As in `scale_by_galore`.

    Shapes:
        params: needed. state: that of `project`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: `galore_adamw`, the authors' form.

    Source: Zhao et al., 2024, arXiv:2403.03507.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.galore(0.1, rank=1)
        >>> w = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> tx.update(w, tx.init(w), w)[0].round(decimals=4)[0, 0]
        tensor(-0.1000)
    """
    return chain(
        scale_by_galore(rank, update_proj_gap, scale, base_optimizer, weight_dimension_numbers),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )


@factory
def galore_adamw(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 0.25,
    side: str = "short",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by Adam on the leading directions of each matrix, as the authors do.

    Maths:
        P as in `project`
        update <- -learning_rate sqrt(1 - b2^t) / (1 - b1^t) scale P (mu / (sqrt(nu) + eps)),  then `decay_after_step`
        mu, nu the running means of P^H g and of |P^H g|^2

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        scale: Factor of what comes back, no unit.
        side: Which side becomes small, see `project`: "short" is the authors' "std", "long" their "reverse_std".
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added to the root before its bias is corrected, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `project` of Adam.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Zhao et al., 2024, arXiv:2403.03507.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.galore_adamw(0.1, rank=1, scale=1.0)
        >>> w = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> tx.update(w, tx.init(w), w)[0].round(decimals=4)[0, 0]
        tensor(-0.1000)
    """
    check_steps(update_proj_gap=update_proj_gap, at_least=1)
    directions = project(adam_before_correction(b1, b2, eps), rank, update_proj_gap, side, scale=scale)
    return corrected_and_decayed_last(directions, learning_rate, b1, b2, weight_decay, mask)
