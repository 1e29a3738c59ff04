"""Orthogonal matrices by polynomials."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._checks import check_choice, check_dtype, check_nonnegative, check_number, check_positive, check_steps
from .._typing import Scalar

Coefficients = tuple[float, float, float]

KELLER: Coefficients = (3.4445, -4.775, 2.0315)
YOU: tuple[Coefficients, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
AOL: tuple[Coefficients, ...] = (
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
)
CUBIC: Coefficients = (1.5, -0.5, 0.0)
_LAST: Coefficients = (2.0, -1.5, 0.5)  # what DeepSeek ends with

# optax has them as "standard" and "dion", timm as "original" and "quintic".
NAMES = ("standard", "dion", "keller", "you", "polar_express", "aol", "deepseek", "cubic")
SCALINGS = ("frobenius", "spectral", "aol", "schatten")
GRAM_FROM = 1.5  # how many times as long as wide a matrix is at least where Gram Newton-Schulz pays
_RESTART = 2  # steps after which it begins again


def ns_coefficients(name: str, ns_steps: int = 5) -> tuple[Coefficients, ...]:
    """Coefficients `(a, b, c)` of each step of `newton_schulz`, by the name under which they are known.

    A list belongs to its number of steps: the last step of one of five is not the fifth of a longer one.

    Args:
        name: "standard" or "keller", the same each step: steep at zero, never closer to one than 0.68 to 1.13; "dion"
            or "you", optax's second set, five steps at most, of which the last are taken; "polar_express", those of
            `polar_express(ns_steps)`; "aol", four steps at most for what was scaled by "aol"; "deepseek", Keller's and
            two of `(2, -1.5, 0.5)` that end close to one, three steps at least; "cubic", of the third degree, which
            converges slowly and surely.
        ns_steps: Number of steps, >= 1.

    Raises:
        ValueError: naming the argument and its value, also where the list is shorter.

    Source: Jordan et al., 2024, "Muon"; You, 2025, in modded-nanogpt; Amsel et al., 2025, arXiv:2505.16932; Boissin et
        al., 2025, arXiv:2512.04632 ("aol").

    Example:
        >>> import optimfn as of
        >>> of.ns_coefficients("dion", 2)
        ((2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))
    """
    check_choice("name", name, NAMES)
    check_steps(ns_steps=ns_steps, at_least=1)
    if name == "polar_express":
        return polar_express(ns_steps)
    if name == "deepseek":
        if ns_steps < 3:
            raise ValueError(f"ns_steps must be >= 3 for the coefficients 'deepseek', got {ns_steps}")
        return (KELLER,) * (ns_steps - 2) + (_LAST,) * 2
    if name in ("dion", "you", "aol"):
        found = AOL if name == "aol" else YOU
        if ns_steps > len(found):
            raise ValueError(f"ns_steps must be <= {len(found)} for the coefficients {name!r}, got {ns_steps}")
        return found[-ns_steps:]
    return (CUBIC if name == "cubic" else KELLER,) * ns_steps


def polar_express(
    ns_steps: int = 5, lower: float = 1e-3, *, safety: float = 1.02, cushion: float = 0.02
) -> tuple[Coefficients, ...]:
    """The coefficients that bring all singular values from `lower` to 1 as near to one as any of so many steps.

    Without safety and cushion no odd polynomials of the fifth degree, one after the other, have a smaller largest error
    there. The defaults are those of Dion and of modded-nanogpt; timm and pytorch_optimizer take the first of
    `polar_express(8, safety=1.01)`, and the paper has `polar_express(8, safety=1, cushion=0.02407327424182761)`.

    Args:
        ns_steps: Number of steps, >= 1.
        lower: Least singular value that is to be brought to one, of matrices of norm 1, no unit, in (0, 1].
        safety: By how much less each step but the last stretches, against rounding upwards, no unit, >= 1.
        cushion: Share of the largest singular value below which a step need not be exact, so that it has not
            to be steep alone, no unit, in [0, 1).

    Returns:
        A triple for each step.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Source: Amsel et al., 2025, arXiv:2505.16932, Algorithm 1 and Appendix A.

    Example:
        >>> import optimfn as of
        >>> [round(x, 4) for x in of.polar_express()[-1]]
        [2.3465, -1.7098, 0.4232]
    """
    check_steps(ns_steps=ns_steps, at_least=1)
    check_positive(lower=lower)
    check_nonnegative(cushion=cushion)
    check_positive(safety=safety)
    if not lower <= 1 or not cushion < 1 or not safety >= 1:
        raise ValueError(
            f"lower must be <= 1, cushion < 1 and safety >= 1, got lower={lower}, cushion={cushion}, safety={safety}"
        )
    low, high, found = float(lower), 1.0, list[Coefficients]()
    for step in range(ns_steps):
        a, b, c = _nearest_to_one(max(low, cushion * high), high)
        # With a cushion it is even on less than all there is; what it does to both ends is made even.
        even = 2 / (_value((a, b, c), low) + _value((a, b, c), high))
        by = 1.0 if step == ns_steps - 1 else float(safety)
        found.append((a * even / by, b * even / by**3, c * even / by**5))
        low = min(_value(found[-1], low), 1.0)
        high = 2 - low
    return tuple(found)


def newton_schulz(
    x: Tensor,
    ns_coeffs: tuple[Any, ...] | str = KELLER,
    ns_steps: int = 5,
    eps: Scalar = 1e-7,
    *,
    scaling: str = "frobenius",
    dtype: torch.dtype | None = None,
    gram: bool = False,
) -> Tensor:
    """Bring the singular values of matrices to about one, and leave their singular vectors as they are.

    In exact arithmetic a singular value `s` of the scaled matrix becomes `p(s)`, the polynomials one after the other.
    With the coefficients of `polar_express(k, lower)` those above `lower` end as near to one as `k` steps bring them;
    smaller ones grow by the slopes `a` and stay below. Rounding in a precision of unit `u` adds to that an error
    of about `u` times the largest slope of `p`, which is a thousand for most sets: elements of the result in bfloat16
    are right to a few per cent only. What lies below `u` of the norm is lost.

    Maths:
        X = x / (scale of x),  A = X X^T or, of a tall matrix, X^T X
        X <- a X + (b A + c A A) X,  in each step

    Args:
        x: Matrices (..., m, n).
        ns_coeffs: `(a, b, c)`, such triples for the steps, of which the last `ns_steps` are taken, or a name of
            `ns_coefficients`.
        ns_steps: Number of steps, >= 1.
        eps: Least scale to divide by, in the unit of `|x|`, >= 0.
        scaling: How the singular values come below one: by the norm of all elements, "frobenius"; by the largest
            singular value, "spectral"; by the sums of each row of `X X^T`, "aol"; by the norm of `X X^T`, "schatten".
        dtype: Dtype in which it is computed; `None` means that of `x`, float32 for float16 and bfloat16.
        gram: Take the steps on the small product `A` of matrices at least 1.5 times as long as wide: a third of the
            work for long ones. Not in bfloat16, in which it is wrong; less exact for small singular values in any.

    Returns:
        A tensor like `x`.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Source: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; Boissin et al., 2025,
        arXiv:2512.04632 ("aol"); Dao-AILab, 2026, "Gram Newton-Schulz".

    Example:
        >>> import torch, optimfn as of
        >>> x = torch.diag(torch.tensor([3.0, 1e-3], dtype=torch.float64))
        >>> of.newton_schulz(x, of.polar_express(8, 1e-4), 8).diag().round(decimals=3)
        tensor([1., 1.], dtype=torch.float64)
    """
    check_nonnegative(eps=eps)
    check_dtype(dtype=dtype)
    check_choice("scaling", scaling, SCALINGS)
    if x.ndim < 2:
        raise ValueError(f"x must be a matrix, or a batch of them, got a tensor of shape {tuple(x.shape)}")
    steps = check_coefficients(ns_coeffs, ns_steps)
    used = torch.promote_types(tree.real_dtype(x.dtype), torch.float32) if dtype is None else dtype
    check_gram(gram, used)
    wide = tree.cast_leaf(x, torch.promote_types(x.dtype, torch.float32))
    found: Tensor = tree.cast_leaf(iterated(wide, steps, eps, scaling, gram, used), x.dtype)
    return found


def check_coefficients(ns_coeffs: tuple[Any, ...] | str, ns_steps: int) -> tuple[Coefficients, ...]:
    """The triple of each step, of what an argument may be."""
    check_steps(ns_steps=ns_steps, at_least=1)
    if isinstance(ns_coeffs, str):
        check_choice("ns_coeffs", ns_coeffs, NAMES)
        return ns_coefficients(ns_coeffs, ns_steps)
    if len(ns_coeffs) == 3 and not isinstance(ns_coeffs[0], list | tuple):
        check_number(**{f"ns_coeffs[{i}]": value for i, value in enumerate(ns_coeffs)})
        return ((ns_coeffs[0], ns_coeffs[1], ns_coeffs[2]),) * ns_steps
    if not ns_coeffs or any(not isinstance(triple, list | tuple) or len(triple) != 3 for triple in ns_coeffs):
        raise ValueError(f"ns_coeffs must be three numbers, or such triples for the steps, got {ns_coeffs!r}")
    return tuple([(a, b, c) for a, b, c in ns_coeffs[-ns_steps:]])


def check_gram(gram: bool, dtype: torch.dtype | None) -> None:
    """Raise where Gram Newton-Schulz is asked for in a dtype in which it is wrong."""
    if gram and dtype == torch.bfloat16:
        raise ValueError("gram=True is not for dtype=torch.bfloat16, in which it is wrong; give torch.float16 or wider")


def iterated(
    x: Tensor,
    steps: Sequence[Coefficients],
    eps: Scalar,
    scaling: str,
    gram: bool,
    dtype: torch.dtype | None = None,
    floor: bool = False,
) -> Tensor:
    """`newton_schulz` of checked arguments, in some dtype, or in that of the matrices; the result is left in it.

    With `floor`, `eps` is the least norm to divide by, as in torch; else it is added to the norm.
    """
    used = x.dtype if dtype is None else dtype.to_complex() if x.is_complex() else dtype
    # Squares of float32 have no room in float16, so there it comes after the scaling.
    x = x if used == torch.float16 else tree.cast_leaf(x, used)
    x, squares = _scaled(x, eps, scaling, floor)
    squares = None if squares is None else tree.cast_leaf(squares, used)
    return polynomials(tree.cast_leaf(x, used), steps, squares, gram)


def polynomials(x: Tensor, steps: Sequence[Coefficients], squares: Tensor | None = None, gram: bool = False) -> Tensor:
    """Matrices (..., rows, cols) after `x <- a x + (b A + c A A) x`, `A = x x^T`, for each `(a, b, c)`.

    Products of a tall matrix are taken on its right: `x^T x` has the shorter side, and nothing is transposed.
    """
    tall = x.shape[-2] > x.shape[-1]
    if gram and max(x.shape[-2:]) >= GRAM_FROM * min(x.shape[-2:]):
        return _by_squares(x, steps, squares, tall)
    for a, b, c in steps:
        if squares is None:
            squares = _squares(x, tall)
        polynomial = _add_product(squares, squares, squares, b, c)
        x = _times(polynomial, x, tall, a)
        squares = None
    return x


def _by_squares(x: Tensor, steps: Sequence[Coefficients], squares: Tensor | None, tall: bool) -> Tensor:
    """The same, with `A` alone in each step. It begins again once, before what it is too small for is lost."""
    for part in (steps[:_RESTART], steps[_RESTART:]):
        if not part:
            continue
        r = _squares(x, tall) if squares is None else squares
        squares, q = None, torch.eye(r.shape[-1], dtype=r.dtype, device=r.device).expand(r.shape)
        for i, (a, b, c) in enumerate(part):
            z = _add_product(r, r, r, b, c)
            q = _add_product(q, q, z, a)
            if i + 1 < len(part):
                rz = _add_product(r, r, z, a)
                r = _add_product(rz, z, rz, a)
        x = x @ q if tall else q @ x
    return x


def _squares(x: Tensor, tall: bool) -> Tensor:
    return x.mH @ x if tall else x @ x.mH


def _times(polynomial: Tensor, x: Tensor, tall: bool, a: float) -> Tensor:
    return _add_product(x, x, polynomial, a) if tall else _add_product(x, polynomial, x, a)


def _add_product(x: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """`beta x + alpha left right`, rounded once."""
    if x.ndim == 2:
        return torch.addmm(x, left, right, beta=beta, alpha=alpha)
    if x.ndim == 3:
        return torch.baddbmm(x, left, right, beta=beta, alpha=alpha)
    batch = torch.baddbmm(*[y.flatten(0, -3) for y in (x, left, right)], beta=beta, alpha=alpha)
    return batch.reshape(x.shape)


def _scaled(x: Tensor, eps: Scalar, how: str, floor: bool) -> tuple[Tensor, Tensor | None]:
    """Matrices with their singular values below one, and what is known of the products that come first."""
    if how == "frobenius":
        size = _root_of_squares(x)
        return x / (tree.clip(size, min_value=eps) if floor else size + eps), None
    if how == "spectral":
        return x / (torch.linalg.matrix_norm(x, 2, keepdim=True) + eps), None
    # The others divide by what grows with the matrix; one that is large is brought down first, and their eps with it.
    tall = x.shape[-2] > x.shape[-1]
    large = torch.clamp(_root_of_squares(x), min=1)
    x = x / large
    squares = _squares(x, tall)
    least = eps / large / large
    if how == "aol":
        rows = torch.rsqrt(tree.clip(squares.abs().sum(-1, keepdim=True), min_value=least))
        return x * (rows.mT if tall else rows), squares * rows * rows.mT
    size = torch.rsqrt(tree.clip(_root_of_squares(squares), min_value=least))
    return x * size, squares * size * size


def _root_of_squares(x: Tensor) -> Tensor:
    wide = tree.wide_dtype(x.dtype, x.device)  # in which the squares of all float32 have room
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide)
    return tree.cast_leaf(norm, tree.real_dtype(x.dtype))


def _value(polynomial: Coefficients, s: float) -> float:
    a, b, c = polynomial
    return a * s + b * s**3 + c * s**5


def _nearest_to_one(low: float, high: float) -> Coefficients:
    """The odd polynomial of the fifth degree that is nearest to one from `low` to `high`, by Remez's exchange."""
    if low >= (1 - 5e-6) * high:  # where the equations have one solution too many, and the limit is known
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    error, last = math.inf, math.nan
    for _ in range(100):
        rows = [[s, s**3, s**5, sign, 1.0] for s, sign in ((low, 1.0), (q, -1.0), (r, 1.0), (high, -1.0))]
        a, b, c, error = _solved(rows)
        root = math.sqrt(9 * b * b - 20 * a * c)
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(last - error) <= 1e-15:
            break
        last = error
    return a, b, c


def _solved(rows: list[list[float]]) -> list[float]:
    """The solution of linear equations, each its coefficients and its right side."""
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, len(rows)):
            by = rows[k][i] / rows[i][i]
            rows[k] = [x - by * y for x, y in zip(rows[k], rows[i], strict=True)]
    found = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        known = sum([x * y for x, y in zip(rows[i][i + 1 : -1], found[i + 1 :], strict=True)])
        found[i] = (rows[i][-1] - known) / rows[i][i]
    return found
