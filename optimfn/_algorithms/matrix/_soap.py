"""SOAP: Adam in the eigenbasis of Shampoo."""

from typing import Any

from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, leafwise, stateless
from ..._checks import check_decay
from ..._recipe import factory
from ..._transforms._decay_kinds import decay_after_step
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ..adam._adam_in_two import adam_before_correction, correct_bias
from ._eigenbasis import eigenbasis

_TINY = 1e-30  # what the authors add to root mean squares


@factory
def scale_by_soap(
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    bias_correction: bool = True,
    kind: str = "shampoo",
    init_factor: float = 0.1,
    second_moment: str = "sorted",
    first: str = "skip",
    spread: int = 1,
) -> GradientTransformation:
    """Scale the updates as Adam does, in the eigenbasis of Shampoo: `eigenbasis` of Adam.

    Maths:
        h = g in the basis of `eigenbasis`
        mu <- b1 mu + (1 - b1) h,  nu <- b2 nu + (1 - b2) |h|^2
        update <- sqrt(1 - b2^t) / (1 - b1^t) mu / (sqrt(nu) + eps), turned back
        t counts from the step after the first, which moves nothing

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        shampoo_beta: Decay of the products that give the basis, no unit, in [0, 1); `None` means `b2`.
        eps: Added to the root before its bias is corrected, in the unit of `|g|`, >= 0.
        precondition_frequency: Steps from one change of the basis to the next, >= 1.
        max_precond_dim: Size of an axis up to which it has a basis, >= 1.
        merge_dims: Join neighbouring axes, as in `eigenbasis`.
        precondition_1d: Whether leaves of one axis have a basis; otherwise they see Adam alone.
        normalize_grads: Divide the step of each leaf by its root mean square, before the bias is corrected.
        bias_correction: Whether it is.
        kind: Of the products, see `eigenbasis`; "kl" with `bias_correction=False` is KL-SOAP.
        init_factor: For "kl", the eigenvalues that it begins with, > 0.
        second_moment: What becomes of `nu` when the basis changes, see `eigenbasis`.
        first: What the first step does, see `eigenbasis`; "now" has no step that moves nothing.
        spread: Parts of the leaves whose bases change in steps of their own, see `eigenbasis`.

    Shapes:
        state: that of `eigenbasis`. Memory: 2 x params, and for a matrix (m, n) twice m^2 + n^2.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code as `eigenbasis`.

    Source: Vyas et al., 2024, arXiv:2409.11321, Algorithm 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx, g = of.scale_by_soap(), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> first, state = tx.update(g, tx.init(g))
        >>> tx.update(g, state)[0].diag()
        tensor([1.0000, 1.0000])
    """
    beta = b2 if shampoo_beta is None else shampoo_beta
    check_decay(b1=b1, b2=b2, shampoo_beta=beta)
    parts = [adam_before_correction(b1, b2, eps)]
    parts += [_of_size_one()] if normalize_grads else []
    parts += [correct_bias(b1, b2)] if bias_correction else []
    return eigenbasis(
        chain(*parts),
        beta,
        precondition_frequency,
        max_precond_dim,
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        kind=kind,
        init_factor=init_factor,
        second_moment=second_moment,
        first=first,
        spread=spread,
    )


@factory
def soap(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    bias_correction: bool = True,
    second_moment: str = "sorted",
    first: str = "skip",
    spread: int = 1,
) -> GradientTransformation:
    """Step by Adam in the eigenbasis of Shampoo, with the decay of what the step makes.

    It has Adam's hyperparameters; a learning rate of 3e-3 is the authors'. The first step, and its decay, move nothing
    unless `first` says otherwise.

    Maths:
        p <- (p - learning_rate scale_by_soap(g)) (1 - learning_rate weight_decay)

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        shampoo_beta: Decay of the products that give the basis, no unit, in [0, 1); `None` means `b2`.
        eps: Added to the root before its bias is corrected, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        precondition_frequency: Steps from one change of the basis to the next, >= 1.
        max_precond_dim: Size of an axis up to which it has a basis, >= 1.
        merge_dims: Join neighbouring axes, as in `eigenbasis`.
        precondition_1d: Whether leaves of one axis have a basis.
        normalize_grads: Divide the step of each leaf by its root mean square.
        bias_correction: Whether the bias of the means is corrected.
        second_moment: What becomes of the mean square when the basis changes, see `eigenbasis`.
        first: What the first step does, see `eigenbasis`.
        spread: Parts of the leaves whose bases change in steps of their own, see `eigenbasis`.

    Shapes:
        params: needed. state: that of `scale_by_soap`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Vyas et al., 2024, arXiv:2409.11321, Algorithm 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.soap(0.1, weight_decay=0.0), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> _, state = tx.update(w, tx.init(w), w)
        >>> tx.update(w, state, w)[0].diag()
        tensor([-0.1000, -0.1000])
    """
    rule = scale_by_soap(
        b1,
        b2,
        shampoo_beta,
        eps,
        precondition_frequency,
        max_precond_dim,
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        normalize_grads=normalize_grads,
        bias_correction=bias_correction,
        second_moment=second_moment,
        first=first,
        spread=spread,
    )
    return stepped(rule, learning_rate, weight_decay, mask, skipped=first == "skip")


def stepped(
    rule: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask | None,
    *,
    skipped: bool,
) -> GradientTransformation:
    """The whole optimizer around a rule, whose first step may move nothing, decay included."""

    def after_the_first(count: Any) -> Any:
        now = weight_decay(count) if callable(weight_decay) else weight_decay
        return now * tree.wide(count > 0)  # in float64, like the rate

    none = not callable(weight_decay) and not isinstance(weight_decay, Tensor) and weight_decay == 0
    decay = decay_after_step(weight_decay, learning_rate, mask)  # whose arguments are checked
    if skipped and not none:
        decay = decay_after_step(after_the_first, learning_rate, mask)
    return chain(rule, descend(learning_rate), decay)


def _of_size_one() -> GradientTransformation:
    """Divide each leaf by its root mean square, which no rotation changes."""

    def one(updates: Updates, params: Params | None) -> Updates:
        sizes = tree.norms(updates, mean=True, wide=True)
        return tree.map(lambda u, size: tree.cast_leaf(u / (size + _TINY), u.dtype), updates, sizes)

    return leafwise(stateless(one))
