"""Python numbers as kernels hold them."""

import math
import struct

import torch


def in_registers(value: float, dtype: torch.dtype) -> int | float:
    """A number as kernels hold it that compute in a dtype: in float32 unless that is float64, or whole numbers."""
    if not dtype.is_floating_point:
        return int(value)
    value = float(value)
    if dtype == torch.float64 or not math.isfinite(value):
        return value
    try:
        (value,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        value = math.copysign(math.inf, value)
    return value
