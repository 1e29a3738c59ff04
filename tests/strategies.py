"""Hypothesis strategies for trees of tensors; every property test draws from here."""

import torch
from hypothesis import strategies as st

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
seeds = st.integers(0, 2**31)


@st.composite
def tensors(draw, dtypes=FLOATS, min_side=0):
    """A tensor of a drawn shape and dtype with normal entries, sometimes not contiguous."""
    shape = tuple(max(side, min_side) for side in draw(shapes))
    generator = torch.Generator().manual_seed(draw(seeds))
    x = torch.randn(shape, dtype=torch.float64, generator=generator).to(draw(st.sampled_from(dtypes)))
    return x.mT.contiguous().mT if x.ndim >= 2 and draw(st.booleans()) else x


def trees(dtypes=FLOATS, leaves=None):
    """A nest of dicts, lists and tuples with tensors, and now and then a `None`, at its leaves."""
    leaf = tensors(dtypes) if leaves is None else leaves
    keys = st.text("abcxyz", min_size=1, max_size=3)
    return st.recursive(
        leaf | st.none(),
        lambda inner: (
            st.dictionaries(keys, inner, max_size=3)
            | st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
        ),
        max_leaves=6,
    )


fractions = st.floats(0.0, 0.999)
# Sizes of gradients and parameters, from far below to far above the roots of what float32 can hold.
scales = st.sampled_from([1.0, 1e-30, 1e30]) | st.integers(-30, 30).map(lambda power: 10.0**power)
