"""What other processors may answer: roots and functions of libm that are off by a unit or two.

`+`, `-`, `*`, `/` and comparisons give the same bits everywhere. A root or a function of libm does so only within one
implementation of it: ATen's is MKL's, SLEEF's or CUDA's, a kernel's is that of its compiler.
"""

import contextlib
import itertools
import warnings

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# How many units two good implementations of an operator may lie apart: a root is rounded correctly by one of them at
# least; of the others each may be off by one unit, or by two where the manual of glibc or CUDA says so.
UNITS = {
    "sqrt": 1,
    **dict.fromkeys(["rsqrt", "exp", "exp2", "log", "log2", "log10", "sin", "cos", "hypot"], 2),
    **dict.fromkeys(["expm1", "log1p", "pow", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan", "atan2"], 4),
    **dict.fromkeys(["erf", "erfc", "erfinv", "lgamma", "sigmoid"], 4),
}
EXACT_POWERS = (0, 1, 2, 3, -1)  # ATen multiplies and divides


def units_of(func, args):
    """How far two implementations of this call may lie apart; 0 where all are equal."""
    name = func.overloadpacket.__name__.rstrip("_")
    if name == "pow" and not isinstance(args[1], torch.Tensor) and args[1] in EXACT_POWERS:
        return 0
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    return UNITS.get(name, 0) if tensors and tensors[0].is_floating_point() else 0


def moved(x, units):
    """Numbers so many units in the last place away; zeros, infinities and NaN stay."""
    for _ in range(abs(units)):
        beyond = torch.nextafter(x, torch.full_like(x, np.copysign(np.inf, units)))
        x = torch.where(x.isfinite() & (x != 0), beyond, x)
    return x


class Perturbed(TorchDispatchMode):
    """Moves the results of the k-th root or function of libm of every leaf by as many units as they may be off."""

    def __init__(self, signs=()):
        super().__init__()
        self.signs, self.calls, self.dtypes = dict(signs), {}, {}

    @property
    def sites(self):
        """The places where results may be off, of all leaves together: (of a scalar?, number of the call)."""
        return sorted({(not shape, k) for shape, count in self.calls.items() for k in range(count)})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, units = kwargs or {}, units_of(func, args)
        if not units:
            return func(*args, **kwargs)
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        shape = torch.broadcast_shapes(*[x.shape for x in tensors])
        k = self.calls.get(shape, 0)
        self.calls[shape] = k + 1
        self.dtypes.setdefault((not shape, k), tensors[0].dtype)
        sign = self.signs.get((not shape, k), 0)
        if not sign:
            return func(*args, **kwargs)
        # A function of a bfloat16 number is that of a float32 number, rounded: what is off there is a unit of float32.
        narrow = tensors[0].dtype.itemsize < 4
        wide = [x.float() if narrow and isinstance(x, torch.Tensor) else x for x in args]
        return moved(func(*wide, **kwargs), sign * units).to(
            torch.result_type(*tensors) if tensors[1:] else tensors[0].dtype
        )


def reachable(run):
    """What `run()` may give on some processor: its results here, and those at every corner of what may be off.

    A result depends on each root or function of libm monotonically, and rounding keeps that, so whatever combination a
    processor makes, its results lie between those of two corners.
    """
    seen = Perturbed()
    with seen:
        yield run()
    # A unit of a float64 number is 2^-29 of one of the float32 leaf that it meets. It shows only where a rounding
    # stands at its edge, so these numbers need not be moved in all combinations: each alone, and all at once.
    leaves = {seen.dtypes[site] for site in seen.sites if not site[0]}
    fine = [s for s in seen.sites if s[0] and seen.dtypes[s] == torch.float64] if leaves - {torch.float64} else []
    coarse = [site for site in seen.sites if site not in fine]
    assert len(coarse) <= 12, f"too many corners to try: {coarse}"
    small = [{}, *({site: sign} for site in fine for sign in (-1, 1)), *(dict.fromkeys(fine, sign) for sign in (-1, 1))]
    for signs in itertools.product((-1, 1), repeat=len(coarse)) if seen.sites else ():
        for more in small if fine else small[:1]:
            with Perturbed({**dict(zip(coarse, signs, strict=True)), **more}):
                yield run()


def _rough(function):
    """A function of libm, of which a fifth of the results is off by one unit: which ones depends on the argument."""

    def rough(x):
        if x.is_complex():
            return torch.from_numpy(np.asarray(function(x.detach().resolve_conj().numpy())))
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        wide = x.float() if x.dtype.itemsize < 4 else x
        with np.errstate(all="ignore"):
            right = torch.from_numpy(np.asarray(function(wide.detach().double().numpy()))).to(wide.dtype)
        bits = wide.contiguous().view({4: torch.int32, 8: torch.int64}[wide.dtype.itemsize]).view(wide.shape)
        off = torch.where(bits % 10 == 0, moved(right, 1), torch.where(bits % 10 == 5, moved(right, -1), right))
        return off.to(x.dtype)

    return rough


ROUGH = {
    name: getattr(np, name) for name in ("sqrt", "exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tanh")
}
ROUGH["rsqrt"] = lambda x: np.asarray(1, x.dtype) / np.sqrt(x)


@contextlib.contextmanager
def rough_processor():
    """torch as on a processor whose roots and functions of libm are off by a unit in a fifth of their results."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operator is given another kernel
        for name, function in ROUGH.items():
            rough = _rough(function)
            library.impl(name, rough, "CPU")
            library.impl(f"{name}_", lambda x, rough=rough: x.copy_(rough(x)), "CPU")
            library.impl(f"{name}.out", lambda x, *, out, rough=rough: out.copy_(rough(x)), "CPU")
    try:
        yield
    finally:
        library._destroy()
