"""KL-Shampoo: Shampoo whose factors minimise the Kullback-Leibler divergence, without a root of any."""

from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative, check_positive
from ..._recipe import factory
from ..._transforms._momentum import ema
from ..._typing import Mask, Scalar, ScalarOrSchedule
from ._axes import Layouts
from ._eigenbasis import Eigenbasis, in_eigenbasis
from ._soap import stepped


@factory
def scale_by_kl_shampoo(
    b1: Scalar = 0.9,
    b2: Scalar = 0.98,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    init_factor: float = 0.1,
    first: str = "skip",
) -> GradientTransformation:
    """Multiply the mean of each leaf by inverse roots of covariances of its gradients that know of each other.

    It is Shampoo with the exponents of a Gaussian's covariance, and no second moment: eigenvalues move in every step,
    and eigenvectors by one QR decomposition now and then. `scale_by_soap(kind="kl", bias_correction=False)` is KL-SOAP,
    and `scale_by_shampoo(kind="kl")` the form that Distributed Shampoo has.

    Maths:
        mu <- b1 mu + (1 - b1) g
        W = e_1 x ... x e_k,  e_i the inverse roots of the eigenvalues of S_i, Q_i its eigenvectors
        update <- (mu in Q) W / (1 + eps W), turned back
        S_i <- b2 S_i + (1 - b2) d_i/n w_(i) w_(i)^H,  w the gradient that all other axes have whitened, n its elements

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of the covariances and their eigenvalues, no unit, in [0, 1).
        shampoo_beta: The same, where it is to be another; `None` means `b2`.
        eps: Bounds `W`, in the unit of `|g|`, >= 0.
        precondition_frequency: Steps from one change of the basis to the next, >= 1.
        max_precond_dim: Size of an axis up to which it has a covariance, >= 1.
        merge_dims: Join neighbouring axes, as in `eigenbasis`.
        precondition_1d: Whether leaves of one axis have a covariance; otherwise they see the mean alone.
        init_factor: The eigenvalues that it begins with, > 0.
        first: What the first step does, see `eigenbasis`.

    Shapes:
        state: that of `eigenbasis`. Memory: 1 x params, and for a matrix (m, n) twice m^2 + n^2.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code, which computes in bfloat16 and drops axes of size 1, as `eigenbasis`.

    Source: Lin et al., 2025, arXiv:2509.03378.

    Example:
        >>> import torch, optimfn as of
        >>> tx, g = of.scale_by_kl_shampoo(b1=0.0), torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> _, state = tx.update(g, tx.init(g))
        >>> tx.update(g, state)[0].diag()
        tensor([40.0000, 10.0000])
    """
    beta = b2 if shampoo_beta is None else shampoo_beta
    check_decay(b1=b1, b2=b2, shampoo_beta=beta)
    check_nonnegative(eps=eps)
    check_positive(init_factor=init_factor)
    layouts = Layouts(max_precond_dim, merge_dims, precondition_1d)
    how = Eigenbasis(beta, precondition_frequency, layouts, init_factor, "sorted", first, eps=eps)
    return in_eigenbasis(ema(b1, debias=False), how)


@factory
def kl_shampoo(
    learning_rate: ScalarOrSchedule = 1e-4,
    b1: Scalar = 0.9,
    b2: Scalar = 0.98,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    init_factor: float = 0.1,
    first: str = "skip",
) -> GradientTransformation:
    """Step by KL-Shampoo, with the decay of what the step makes.

    The first step, and its decay, move nothing unless `first` says otherwise.

    Maths:
        p <- (p - learning_rate scale_by_kl_shampoo(g)) (1 - learning_rate weight_decay)

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the covariances, no unit, in [0, 1).
        shampoo_beta: The same, where it is to be another; `None` means `b2`.
        eps: Bounds what the mean is multiplied by, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        precondition_frequency: Steps from one change of the basis to the next, >= 1.
        max_precond_dim: Size of an axis up to which it has a covariance, >= 1.
        merge_dims: Join neighbouring axes, as in `eigenbasis`.
        precondition_1d: Whether leaves of one axis have a covariance.
        init_factor: The eigenvalues that it begins with, > 0.
        first: What the first step does, see `eigenbasis`.

    Shapes:
        params: needed. state: that of `scale_by_kl_shampoo`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Lin et al., 2025, arXiv:2509.03378.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.kl_shampoo(0.1, weight_decay=0.0), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> _, state = tx.update(w, tx.init(w), w)
        >>> tx.update(w, state, w)[0].diag()
        tensor([-0.1000, -0.1000])
    """
    rule = scale_by_kl_shampoo(
        b1,
        b2,
        shampoo_beta,
        eps,
        precondition_frequency,
        max_precond_dim,
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        init_factor=init_factor,
        first=first,
    )
    return stepped(rule, learning_rate, weight_decay, mask, skipped=first == "skip")
