"""The table of operators: every one as ATen has it, for all dtypes, as near as the table says."""

import pytest
import torch
from helpers import assert_trees_equal

import optimfn as of
from optimfn.fused.ir import _ops

FLOATING = (torch.float32, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
CALLS = {
    "__rshift__": [lambda a, b: a >> 3, lambda a, b: a >> 7],
    "bitwise_right_shift": [lambda a, b: torch.bitwise_right_shift(a, 3)],
    "addcdiv": [lambda a, b: torch.addcdiv(a, b, b, value=0.25)],
    "addcmul": [lambda a, b: torch.addcmul(a, b, b, value=0.25)],
    "add": [lambda a, b: a + b, lambda a, b: torch.add(a, b, alpha=3)],
    "sub": [lambda a, b: a - b, lambda a, b: torch.sub(a, b, alpha=3)],
    "rsub": [lambda a, b: torch.rsub(a, b)],
    "clamp": [lambda a, b: a.clamp(2), lambda a, b: a.clamp(max=2), lambda a, b: a.clamp(1, 2)],
    "clamp_max": [lambda a, b: a.clamp_max(2)],
    "clamp_min": [lambda a, b: a.clamp_min(2)],
    "floor_divide": [lambda a, b: a // 3],
    "lerp": [lambda a, b: a.lerp(b, 0.25), lambda a, b: a.lerp(b, 0.75)],
    "pow": [lambda a, b, k=k: a**k for k in (2, 3, 0.5, -0.5, -1, -2, 1.7)],
    "remainder": [lambda a, b: a % 3],
    "where": [lambda a, b: torch.where(a > b, a, b)],
}
UNARY = [name for name in _ops.POINTWISE - set(CALLS) if "{1}" not in str(_ops.OPERATORS[name][:3])]
BINARY = _ops.POINTWISE - set(UNARY) - set(CALLS)


def calls(name):
    function = getattr(torch, name, None)
    if name in UNARY:
        return [lambda a, b: function(a)]
    return [lambda a, b: function(a, b)] if name in BINARY else CALLS[name]


def operands(dtype):
    """Numbers between 1 and 4, where no operator is ill conditioned, and of whole ones also 0 and less."""
    if dtype.is_floating_point:
        return [1 + 3 * torch.rand(512, dtype=torch.float64).to(dtype) for _ in range(2)]
    low = 0 if dtype in (torch.uint8, torch.bool) else -9
    return [torch.randint(low, 2 if dtype == torch.bool else 10, (512,)).to(dtype) for _ in range(2)]


def computed(call, a, b):
    """What a kernel makes of two leaves, and what eager makes of them; `None` where ATen refuses."""
    tx = of.GradientTransformation(
        lambda params: params, lambda updates, state, params=None, **extra: (updates, call(*state))
    )
    try:
        want = call(a, b)
    except (RuntimeError, NotImplementedError):
        return None
    step = of.make_step(tx, backend="fused")
    params = torch.zeros(1)
    return step(params, (a, b), params)[1], want, step


def truth(call, a, b):
    """The result as float64 has it, from the very same operands."""
    return call(a.double(), b.double())


SPREAD = {"log", "log2", "cos", "sin", "sub", "rsub"}  # whose values come near 0, so units are those of 1


@pytest.mark.parametrize("name", sorted(_ops.POINTWISE))
def test_floating_point_operators_are_as_near_as_the_table_says(name):
    ran = 0
    for dtype in FLOATING:
        for call in calls(name):
            a, b = operands(dtype)
            found = computed(call, a, b)
            if found is None:
                continue
            got, want, step = found
            if "1 x aten." + name in step.explain():  # no expression for these arguments
                continue
            ran += 1
            assert got.dtype == want.dtype
            if not got.is_floating_point() or dtype == torch.float64:
                torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
                continue
            exact = truth(call, a, b)
            unit = torch.finfo(dtype).eps * (exact.abs().clamp_min(1.0) if name in SPREAD else exact.abs())
            assert ((got.double() - exact).abs() <= (0.51 + _ops.OPERATORS[name].units) * unit).all()
    assert ran or _ops.OPERATORS[name].floating is None


@pytest.mark.parametrize("name", sorted(_ops.POINTWISE))
def test_operators_on_whole_numbers_and_truth_values_are_exact(name):
    taken = [(call, *operands(dtype)) for dtype in (*WHOLE, torch.bool) for call in calls(name)]
    taken = [(call, a, b) for call, a, b in taken if is_whole(call, a, b)]
    if not taken:
        return
    functions, firsts, seconds = zip(*taken, strict=True)

    def all_calls(a, b):  # in one step, whose kernels are compiled at once
        return [call(*own) for call, *own in zip(functions, a, b, strict=True)]

    found = computed(all_calls, [*firsts], [*seconds])
    for got, want in zip(*found[:2], strict=True):
        assert got.dtype == want.dtype
        assert_trees_equal(got, want)


def is_whole(call, a, b):
    """Whether ATen takes these operands, and makes whole numbers or truth values of them."""
    try:
        return not call(a, b).is_floating_point()
    except (RuntimeError, NotImplementedError):
        return False


def test_every_word_stands_in_an_expression():
    """What no operator uses is no part of the table."""
    texts = []
    for name in _ops.OPERATORS:
        for dtype in (*FLOATING, torch.bfloat16, torch.float16, torch.int64, torch.bool):
            for args in ((None, 3, 1), (None, 2, 1), (None, -2.0, None), (None, None, None)):
                texts.append(_ops.rounded(dtype, _ops.template(name, args, dtype) or ""))
    text = "\n".join(texts)
    assert [word for word in _ops.WORDS if word.split("(")[0] + "(" not in text] == []
    assert [name for name in _ops.FUNCTIONS if name + "{s}(" not in text] == []
