"""Triton kernels without CUDA: the same kernels, on the CPU, in Triton's interpreter (`TRITON_INTERPRET=1`).

The interpreter lacks what comes from CUDA's own library, and its fused multiply-add rounds twice. Numpy stands in.
"""

import math

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from optimfn.fused.run import _program
from optimfn.fused.run._cuda import Cuda

_FUNCTIONS = {
    "atan2": np.arctan2,
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "fmod": np.fmod,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "pow": np.power,
    "rint": np.rint,
    "sin": np.sin,
    "tanh": np.tanh,
    "trunc": np.trunc,
}


def install():
    """Run the kernels of every step on the CPU in the interpreter, from now on."""
    np.seterr(all="ignore")  # lanes beyond the end of a leaf compute too
    for name, function in _FUNCTIONS.items():
        setattr(libdevice, name, _of_tensors(function))
    InterpreterBuilder.create_fma = _fma
    _program.MACHINES["cpu"] = Cuda


def _of_tensors(function):
    def apply(*tensors):
        data = function(*[x.handle.data for x in tensors])
        largest = max(tensors, key=lambda x: len(x.shape))
        data = np.asarray(data, tensors[0].handle.data.dtype)
        return tl.tensor(TensorHandle(data, largest.dtype), largest.type)

    return apply


def _fma(_, x, y, z):
    """The product of two float32 is exact in float64; that of two float64 in longdouble all but is."""
    wide = np.float64 if x.data.dtype == np.float32 else np.longdouble
    exact = x.data.astype(wide) * y.data.astype(wide) + z.data.astype(wide)
    return TensorHandle(exact.astype(x.data.dtype), z.dtype.scalar)
