"""Products with Hessians, and estimates of the diagonals of curvature matrices.

None of these makes a matrix. Diagonals come in the structure of the parameters and in at least float32, ready to go
into a moment. Call them every few steps and hand the result to a rule as an extra argument.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._checks import check_callable, check_choice, check_seed, check_steps
from .._torch import is_dtensor, placed_like
from .._typing import Params, Tree


def hvp(f: Callable[..., Any], params: Params, v: Tree, *args: Any, has_aux: bool = False) -> Tree:
    """Multiply a vector by the Hessian of a function: `H v`, for the work of three gradients.

    The derivative of the gradient along `v`, forward over reverse. Custom operators need a forward derivative, and
    attention its plain implementation: `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Maths:
        H v = d/dt grad f(params + t v) at t = 0

    Args:
        f: Function `f(params, *args)` that returns a 0-dim real tensor; with `has_aux` a pair of it and a tree.
        params: Where to take the Hessian: a tree of real tensors.
        v: A tree like `params`; it is cast to the dtypes of `params`.
        *args: Further arguments of `f`, such as the batch.
        has_aux: Whether `f` returns a pair.

    Returns:
        A tree like `params`; with `has_aux` a pair of it and what came second.

    Raises:
        TypeError: if `f` is not callable, or a leaf of `params` is not real and floating.
        ValueError: if `v` differs from `params` in structure or shapes.

    Differs from: optax, where it is `hvp(loss, v, params, inputs, targets)` and `v` one long vector.

    Source: Pearlmutter, 1994, "Fast exact multiplication by the Hessian".

    Example:
        >>> import torch, optimfn as of
        >>> x = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
        >>> of.hvp(lambda x: x["a"] ** 2 * x["b"], x, {"a": torch.tensor(1.0), "b": torch.tensor(0.0)})
        {'a': tensor(6.), 'b': tensor(4.)}
    """
    check_callable(f=f)
    parts = _real_leaves(params, "params")
    if tree.structure(v) != tree.structure(params):
        raise ValueError("v must have the structure of params")
    for (path, p), t in zip(tree.leaves_with_path(params), tree.leaves(v), strict=True):
        if t.shape != p.shape:
            raise ValueError(f"v has the shape {tuple(t.shape)} at {_place(path)}, params {tuple(p.shape)}")

    def call(*xs: Tensor) -> tuple[Tensor, Tree]:
        result = f(tree.unflatten(params, list(xs)), *args)
        return result if has_aux else (result, ())

    products: Sequence[Tensor]
    if any(map(is_dtensor, parts)):
        products, aux = _by_reverse_twice(call, parts, tree.leaves(tree.cast_like(v, params)))
    elif parts:
        gradient = torch.func.grad(call, argnums=tuple(range(len(parts))), has_aux=True)
        tangents = tuple(tree.leaves(tree.cast_like(v, params)))
        _, products, aux = _with_aux(torch.func.jvp(gradient, parts, tangents, has_aux=True))
    else:
        products, aux = (), call()[1]
    product = tree.unflatten(params, list(products))
    return (product, aux) if has_aux else product


def hutchinson_diagonal(
    f: Callable[..., Any], params: Params, key: int | Tensor, *args: Any, samples: int = 1, has_aux: bool = False
) -> Tree:
    """Estimate the diagonal of the Hessian of a function, without bias.

    A diagonal Hessian is found exactly; else the variance of entry i is the sum of `H_ij^2` over the other j, divided
    by `samples`. AdaHessian and the Hutchinson variant of Sophia average one sample per call over many steps.

    Maths:
        E[z * (H z)] = diag(H)   for z with independent entries, +1 or -1 with equal odds

    Args:
        f: Function `f(params, *args)` that returns a 0-dim real tensor; with `has_aux` a pair of it and a tree.
        params: Where to take the Hessian: a tree of real tensors.
        key: What the random numbers are a function of, such as a seed with the step folded in by `tree.fold_in`.
        *args: Further arguments of `f`, such as the batch.
        samples: Products with the Hessian to average, >= 1, one after the other.
        has_aux: Whether `f` returns a pair.

    Returns:
        A tree like `params`, in at least float32; with `has_aux` a pair of it and what came second.

    Raises:
        TypeError, ValueError: naming the argument and its value; of leaves as in `hvp`.

    Differs from: optax, whose `hessian_diag` is exact and takes a product for every parameter.

    Source: Bekas, Kokiopoulou and Saad, 2007, "An estimator for the diagonal of a matrix"; Yao et al., 2020,
        arXiv:2006.00719.

    Example:
        >>> import torch, optimfn as of
        >>> x = torch.tensor([1.0, 2.0])
        >>> of.hutchinson_diagonal(lambda x: (x**3).sum(), x, key=0)
        tensor([ 6., 12.])
    """
    check_seed(key=key)
    check_steps(samples=samples, at_least=1)
    total, aux = None, None
    for sample in range(samples):
        z = tree.random_like(tree.fold_in(key, sample), params, tree.rademacher)
        product = hvp(f, params, z, *args, has_aux=has_aux)
        product, aux = product if has_aux else (product, None)
        found = tree.map(_wide_product, z, product)
        total = found if total is None else tree.add(total, found)
    diagonal = tree.scale(1 / samples, total)
    return (diagonal, aux) if has_aux else diagonal


def gauss_newton_bartlett_diagonal(
    model: Callable[..., Any],
    params: Params,
    key: int | Tensor,
    *args: Any,
    likelihood: str = "categorical",
    has_aux: bool = False,
) -> Tree:
    """Estimate the diagonal of the Gauss-Newton matrix of a mean loss, for the time of one gradient, without bias.

    Labels are drawn from the model, and by Bartlett's second identity the squared gradient of their loss has the
    diagonal as its mean. It is the same matrix as the Fisher matrix of the model. It is never negative, unlike that of
    `hutchinson_diagonal`.

    Maths:
        diag(1/B sum_b J_b^T S_b J_b) = E[B g * g],  g = 1/B sum_b J_b^T r_b
        J the Jacobian of the outputs z, S the Hessian of the loss by them, r its gradient at the drawn label y:
        categorical:  r = softmax(z) - onehot(y),  the loss is cross_entropy
        bernoulli:    r = sigmoid(z) - y,          the loss is binary_cross_entropy_with_logits
        normal:       r = z - y,                   the loss is mse_loss / 2

    Args:
        model: Function `model(params, *args)` that returns the outputs of a batch, a real tensor; with `has_aux` a pair
            of it and a tree. To leave out padding, return the outputs of the rest.
        params: Where to take the matrix: a tree of real tensors.
        key: What the labels are a function of, such as a seed with the step folded in by `tree.fold_in`.
        *args: Further arguments of `model`, such as the inputs.
        likelihood: `"categorical"` takes the last axis of the outputs for the logits of the classes, and all others for
            the B observations; for `"bernoulli"` (logits) and `"normal"` (means, variance 1) every number is one.
        has_aux: Whether `model` returns a pair.

    Returns:
        A tree like `params`, in at least float32; with `has_aux` a pair of it and what came second.

    Raises:
        TypeError, ValueError: naming the argument and its value; of leaves as in `hvp`.

    Source: Liu et al., 2023, arXiv:2305.14342, algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> model = lambda w, x: x * w
        >>> of.gauss_newton_bartlett_diagonal(model, torch.zeros(()), 0, torch.ones(1), likelihood="bernoulli")
        tensor(0.2500)
    """
    check_callable(model=model)
    check_seed(key=key)
    check_choice("likelihood", likelihood, tuple(_SCORES))

    def call(*xs: Tensor) -> tuple[Tensor, Tree]:
        result = model(tree.unflatten(params, list(xs)), *args)
        outputs, aux = result if has_aux else (result, ())
        return _checked(outputs, likelihood), aux

    outputs, pull_back, aux = _with_aux(torch.func.vjp(call, *_real_leaves(params, "params"), has_aux=True))
    grads = tree.unflatten(params, list(pull_back(_scores(likelihood, key, outputs))))
    diagonal = tree.abs_sq(grads)
    return (diagonal, aux) if has_aux else diagonal


def fisher_diagonal(
    model: Callable[..., Tensor],
    params: Params,
    key: int | Tensor,
    *inputs: Tree,
    likelihood: str = "categorical",
    chunk_size: int | None = None,
) -> Tree:
    """Estimate the diagonal of the Fisher matrix with a gradient for each example, labels drawn from the model.

    It has the mean of `gauss_newton_bartlett_diagonal`, to which cross terms between examples add variance, for the
    time and memory of a gradient per example.

    Maths:
        1/B sum_b g_b * g_b,  g_b the gradient of -log p(y_b | x_b, params),  y_b drawn from the model

    Args:
        model: Function `model(params, *example)` that returns the outputs of *one* example, a real tensor.
        params: Where to take the matrix: a tree of real tensors.
        key: What the labels are a function of, such as a seed with the step folded in by `tree.fold_in`.
        *inputs: Trees of tensors with the examples along the first axis.
        likelihood: As in `gauss_newton_bartlett_diagonal`. Several observations in an example are averaged.
        chunk_size: Examples whose gradients are held at a time, >= 1; `None` means all.

    Returns:
        A tree like `params`, in at least float32.

    Raises:
        TypeError, ValueError: naming the argument and its value; of leaves as in `hvp`.

    Source: Martens, 2014, arXiv:1412.1193, section 5; Kunstner, Balles and Hennig, 2019, arXiv:1905.12558.

    Example:
        >>> import torch, optimfn as of
        >>> model, x = lambda w, x: w * x, torch.tensor([1.0, 3.0])
        >>> of.fisher_diagonal(model, torch.zeros(()), 0, x, likelihood="bernoulli")
        tensor(1.2500)
    """
    check_callable(model=model)
    check_seed(key=key)
    check_choice("likelihood", likelihood, tuple(_SCORES))
    parts = _real_leaves(params, "params")

    def gradient(index: Tensor, *example: Tree) -> tuple[Tensor, ...]:
        outputs, pull_back, *_ = torch.func.vjp(
            lambda *xs: _checked(model(tree.unflatten(params, list(xs)), *example), likelihood), *parts
        )
        grads: tuple[Tensor, ...] = pull_back(_scores(likelihood, tree.fold_in(key, index), outputs))
        return grads

    return tree.unflatten(params, _mean_square(gradient, parts, inputs, "inputs", chunk_size))


def empirical_fisher_diagonal(
    f: Callable[..., Tensor], params: Params, *batch: Tree, chunk_size: int | None = None
) -> Tree:
    """Average the squared gradients of the examples: the diagonal of the empirical Fisher matrix.

    The labels are those of the data, so it is no estimate of the Fisher matrix: far from a good fit, or where the model
    is wrong, the two differ, and only `fisher_diagonal` is a curvature.

    Maths:
        1/B sum_b g_b * g_b,  g_b = grad f(params, *example_b)

    Args:
        f: Function `f(params, *example)` that returns the loss of *one* example, a 0-dim real tensor.
        params: Where to take the gradients: a tree of real tensors.
        *batch: Trees of tensors with the examples along the first axis, such as inputs and labels.
        chunk_size: Examples whose gradients are held at a time, >= 1; `None` means all.

    Returns:
        A tree like `params`, in at least float32.

    Raises:
        TypeError, ValueError: naming the argument and its value; of leaves as in `hvp`.

    Differs from: optax, whose `fisher_diag` is the square of the gradient of the whole batch.

    Source: Kunstner, Balles and Hennig, 2019, arXiv:1905.12558, equation 3.

    Example:
        >>> import torch, optimfn as of
        >>> loss = lambda w, x, y: (w * x - y) ** 2 / 2
        >>> of.empirical_fisher_diagonal(loss, torch.tensor(1.0), torch.ones(2), torch.tensor([2.0, 4.0]))
        tensor(5.)
    """
    check_callable(f=f)
    parts = _real_leaves(params, "params")

    def gradient(index: Tensor, *example: Tree) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = torch.func.grad(
            lambda *xs: f(tree.unflatten(params, list(xs)), *example), argnums=tuple(range(len(parts)))
        )(*parts)
        return grads

    return tree.unflatten(params, _mean_square(gradient, parts, batch, "batch", chunk_size))


def _mean_square(
    gradient: Callable[..., tuple[Tensor, ...]],
    parts: tuple[Tensor, ...],
    batch: tuple[Tree, ...],
    name: str,
    chunk_size: int | None,
) -> list[Tensor]:
    """The mean over the examples of the squares of `gradient(index, *example)`."""
    if chunk_size is not None:
        check_steps(chunk_size=chunk_size, at_least=1)
    columns = tree.leaves(batch)
    if not columns or not all(isinstance(x, Tensor) and x.ndim and len(x) == len(columns[0]) for x in columns):
        raise ValueError(f"{name} must hold tensors with the examples along the first axis, the same number in each")
    if not parts:
        return []

    def squares(index: Tensor, *xs: Tensor) -> list[Tensor]:
        found: list[Tensor] = tree.abs_sq(list(gradient(index, *tree.unflatten(batch, list(xs)))))
        return found

    count = len(columns[0])
    index = torch.arange(count, device=columns[0].device)
    total: list[Tensor] = tree.abs_sq([torch.zeros_like(p) for p in parts])
    for start in range(0, count, chunk_size or max(count, 1)):
        rows = slice(start, None if chunk_size is None else start + chunk_size)
        found = torch.func.vmap(squares)(index[rows], *[x[rows] for x in columns])
        total = [t + s.sum(0) for t, s in zip(total, found, strict=True)]
    return [t / max(count, 1) for t in total]


def _categorical(key: int | Tensor, logits: Tensor) -> tuple[Tensor, int]:
    odds = torch.softmax(logits, -1)
    sums = odds.cumsum(-1)
    drawn = tree.uniform(key, logits[..., 0]).to(odds.dtype) * sums[..., -1]
    label = (sums < drawn[..., None]).sum(-1, keepdim=True)
    return odds - (torch.arange(logits.shape[-1], device=logits.device) == label).to(odds.dtype), logits[..., 0].numel()


def _bernoulli(key: int | Tensor, logits: Tensor) -> tuple[Tensor, int]:
    odds = torch.sigmoid(logits)
    return odds - (tree.uniform(key, logits) < odds).to(odds.dtype), logits.numel()


def _normal(key: int | Tensor, means: Tensor) -> tuple[Tensor, int]:
    return tree.normal(key, means).to(means.dtype), means.numel()


# Gradients of the loss of every observation by the outputs, at labels drawn from the model; and how many there are.
_SCORES = {"categorical": _categorical, "bernoulli": _bernoulli, "normal": _normal}


def _checked(outputs: Any, likelihood: str) -> Tensor:
    least = 1 if likelihood == "categorical" else 0
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim < least:
        raise TypeError(f"model must return a real tensor with {least} axes or more, got {outputs!r}")
    return outputs


def _scores(likelihood: str, key: int | Tensor, outputs: Tensor) -> Tensor:
    """What to pull back, over the root of the number of observations: its square is then of the size of the result."""
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    score, count = _SCORES[likelihood](key, outputs.detach().to(dtype))
    return (score / math.sqrt(max(count, 1))).to(outputs.dtype)


def _wide_product(x: Tensor, y: Tensor) -> Tensor:
    """`x y` in at least float32."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    return x.to(dtype) * y.to(dtype)


def _by_reverse_twice(call: Callable[..., Any], parts: Sequence[Any], v: Sequence[Any]) -> tuple[list[Tensor], Tree]:
    """The product of leaves in shards, of which torch.func takes no derivative."""
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in parts]
        value, aux = call(*given)
        grads = torch.autograd.grad(tree.whole(value), given, create_graph=True, allow_unused=True)
        pairs = [(placed_like(g, x), x, t) for g, x, t in zip(grads, given, v, strict=True) if g is not None]
        moving = [(g, placed_like(t, x)) for g, x, t in pairs if g.requires_grad]
        found: Sequence[Tensor | None] = [None for _ in given]
        if moving:
            outputs, along = zip(*moving, strict=True)
            found = torch.autograd.grad(outputs, given, along, allow_unused=True)
    products = [torch.zeros_like(x) if h is None else placed_like(h, x) for h, x in zip(found, parts, strict=True)]
    return [h.detach() for h in products], tree.stop_gradient(aux)


def _with_aux(results: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Torch's own types say that there are two, with `has_aux` too."""
    first, second, aux = results
    return first, second, aux


def _real_leaves(leaves: Tree, name: str) -> tuple[Tensor, ...]:
    for path, leaf in tree.leaves_with_path(leaves):
        if isinstance(leaf, Tensor) and leaf.is_complex():
            raise TypeError(
                f"{name} must be real, got {leaf.dtype} at {_place(path)}; make real pairs of complex leaves, "
                f"with torch.view_as_real"
            )
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            raise TypeError(f"{name} must hold floating tensors, got {leaf!r} at {_place(path)}")
    return tuple(tree.leaves(leaves))


def _place(path: tuple[Any, ...]) -> str:
    return repr(tree.join_path(path)) if path else "the root"
