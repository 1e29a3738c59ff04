"""Python numbers as kernels hold them."""

import math
import struct


def nearest_float32(value: float) -> float:
    """A number as float32 holds it."""
    if not math.isfinite(value):
        return value
    try:
        (value,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        value = math.copysign(math.inf, value)
    return value
