"""PSGD with triangular Kronecker factors, as kron_torch has it."""

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_dtype, check_nonnegative, check_positive, check_seed, check_steps
from ..._recipe import factory
from ..._schedules._exponential import precond_update_prob_schedule
from ..._state_spec import HostCount, LeafSpec
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._kron_factors import (
    BALANCE,
    Layout,
    Probability,
    balanced,
    check_probability,
    due,
    of_leaves,
    precondition,
    start,
)
from ._kron_fit import Fit, moved

_CLIP = 1.1  # of the root mean square, which should be 1


class KronState(NamedTuple):
    """Kron's memory."""

    count: Count  # () int64, steps taken
    steps: HostCount  # () int64 on the CPU, steps taken
    since: HostCount  # () int64 on the CPU, steps since the factors were changed
    mu: Updates  # running mean of the gradients, like params
    factors: Annotated[Any, LeafSpec("factor"), "exact"]  # KronFactors of each leaf


@factory
def scale_by_kron(
    b1: Scalar = 0.9,
    preconditioner_update_probability: Probability | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    preconditioner_lr: ScalarOrSchedule = 0.1,
    preconditioner_init_scale: float = 1.0,
    *,
    merge_dims: bool | str = True,
    mu_dtype: torch.dtype | None = None,
    precond_dtype: torch.dtype | None = None,
    seed: int | Tensor = 0,
) -> GradientTransformation:
    """Multiply the mean of each leaf by a product of triangular matrices and their adjoints that whitens it.

    `scale_by_kron_whiten` does the same with products alone, which is faster and has no systems to solve.

    Maths:
        mu <- b1 mu + (1 - b1) g,  m = mu / (1 - b1^t)
        Q = Q_1 x ... x Q_k upper triangular,  A = Q m,  B = Q^-H v,  v normal
        Q_i <- Q_i - preconditioner_lr triu(A A^H - B B^H) Q_i / |A A^H + B B^H|,  of the unfoldings along axis i
        update <- Q^H Q m, brought down to a root mean square of 1.1

    Args:
        b1: Decay of the mean, no unit, in [0, 1).
        preconditioner_update_probability: How often factors move: in one of 1 / p steps, p in (0, 1]; or a schedule of
            p, called with a count on the host. `None` means `precond_update_prob_schedule()`.
        max_size_triangular: Largest axis with a matrix, >= 0; longer ones get its diagonal.
        min_ndim_triangular: Least number of axes of a leaf with matrices, >= 0.
        memory_save_mode: Which axes get diagonals in any case: the largest of a leaf ("one_diag"), the largest if it
            stands out ("smart_one_diag"), or all ("all_diag").
        momentum_into_precond_update: Whether the mean is whitened, or the gradients.
        preconditioner_lr: Step of the factors, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        preconditioner_init_scale: What `Q` starts as, > 0.
        merge_dims: Whether leaves of more than two axes are taken as matrices: with `True`, by all axes but the last
            and the last where that is not the wider, else the first and all others, as in the authors' code; with
            "square", as near to square as can be.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        precond_dtype: Dtype of the factors; `None` means the same.
        seed: Of the random numbers.

    Shapes:
        state: count () int64; steps, since () int64 on the CPU; mu like params; factors for each leaf one (d, d) or
            (d,) per axis. Leaves in shards are made whole in every step, and
            processes share the work on them.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: kron_torch, which balances the factors by a coin of one in a hundred where it is every 100 steps here.

    Source: Li, 2015, arXiv:1512.04202; Pooladzandi and Li, 2024, arXiv:2402.04553.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_kron(memory_save_mode="all_diag")
        >>> g = torch.tensor([1.0, -1.0])
        >>> tx.update(g, tx.init(g))[0].sign()
        tensor([ 1., -1.])
    """
    check_decay(b1=b1)
    check_steps(max_size_triangular=max_size_triangular, min_ndim_triangular=min_ndim_triangular)
    if not callable(preconditioner_lr):
        check_nonnegative(preconditioner_lr=preconditioner_lr)
    check_positive(preconditioner_init_scale=preconditioner_init_scale)
    if preconditioner_update_probability is not None:
        check_probability(preconditioner_update_probability=preconditioner_update_probability)
    check_dtype(mu_dtype=mu_dtype, precond_dtype=precond_dtype)
    check_seed(seed=seed)
    given = preconditioner_update_probability
    is_due = due(precond_update_prob_schedule() if given is None else given)
    layout = Layout(
        max_size_triangular, min_ndim=min_ndim_triangular, merged=merge_dims, memory_save_mode=memory_save_mode
    )
    fit = Fit("EQ", preconditioner_lr, None, 0.0)

    def init(params: Params) -> KronState:
        mu = tree.init_moment(params, mu_dtype)
        factors = start(params, layout, preconditioner_init_scale, precond_dtype, bounds=False)
        return KronState(tree.count(params), tree.host_count(params), tree.host_count(params), mu, factors)

    def update(
        updates: Updates, state: KronState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, KronState]:
        count, counts = state.count + 1, (state.steps, state.since)
        mu = tree.update_moment(updates, state.mu, b1, 1)
        mean = tree.bias_correction(mu, b1, count)
        target = mean if momentum_into_precond_update else updates
        key = tree.fold_in(seed, state.count)
        factors = tree.every(BALANCE, state.steps, balanced, state.factors)
        factors = moved(fit, layout, is_due, counts, factors, target, state.count, key)
        found = precondition(layout, of_leaves(factors, updates), tree.leaves(mean), fitted=False)
        direction = tree.map(_clipped, tree.unflatten(updates, found))
        since = torch.where(is_due(*counts), 0, state.since + 1)
        return tree.cast_like(direction, updates), KronState(
            count, state.steps + 1, since, tree.carry(mu, state.mu), factors
        )

    return GradientTransformation(init, update, leafwise=True)


def _clipped(u: Tensor) -> Tensor:
    bounded: Tensor = tree.scale(torch.clamp(_CLIP / (tree.rms(u, wide=True) + 1e-12), max=1.0), u)
    return bounded


@factory
def kron(
    learning_rate: ScalarOrSchedule = 0.0003,
    b1: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = tree.is_matrix,
    preconditioner_update_probability: Probability | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    preconditioner_lr: ScalarOrSchedule = 0.1,
    preconditioner_init_scale: float = 1.0,
    *,
    merge_dims: bool | str = True,
    mu_dtype: torch.dtype | None = None,
    precond_dtype: torch.dtype | None = None,
    seed: int | Tensor = 0,
) -> GradientTransformation:
    """Step along whitened means, PSGD with triangular Kronecker factors, with decoupled decay.

    Maths:
        update <- -learning_rate (scale_by_kron(g) + weight_decay p)

    Args:
        learning_rate: Parameter units per step, roughly, >= 0, about a third of Adam's; a number, a 0-dim tensor or a
            schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters; those
            of two and more axes by default.
        preconditioner_update_probability: How often factors move, see `scale_by_kron`.
        max_size_triangular: Largest axis with a matrix, >= 0.
        min_ndim_triangular: Least number of axes of a leaf with matrices, >= 0.
        memory_save_mode: Which axes get diagonals in any case, see `scale_by_kron`.
        momentum_into_precond_update: Whether the mean is whitened, or the gradients.
        preconditioner_lr: Step of the factors, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        preconditioner_init_scale: What `Q` starts as, > 0.
        merge_dims: Whether leaves of more than two axes are taken as matrices, see `scale_by_kron`.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        precond_dtype: Dtype of the factors; `None` means the same.
        seed: Of the random numbers.

    Shapes:
        params: needed. state: that of `scale_by_kron`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: kron_torch as `scale_by_kron` says.

    Source: Li, 2015, arXiv:1512.04202; Pooladzandi and Li, 2024, arXiv:2402.04553.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.kron(0.1), torch.tensor([1.0, -1.0])
        >>> tx.update(w, tx.init(w), w)[0].sign()
        tensor([-1.,  1.])
    """
    return chain(
        scale_by_kron(
            b1,
            preconditioner_update_probability,
            max_size_triangular,
            min_ndim_triangular,
            memory_save_mode,
            momentum_into_precond_update,
            preconditioner_lr,
            preconditioner_init_scale,
            merge_dims=merge_dims,
            mu_dtype=mu_dtype,
            precond_dtype=precond_dtype,
            seed=seed,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
