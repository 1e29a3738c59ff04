"""The kernels for CUDA devices, compiled by Triton, which needs no device.

What they compute is tested by all tests of fused steps, in the interpreter: `scripts/triton` runs both.
"""

import os

import pytest
import torch
from cases import CASES
from helpers import like, wide_params

import optimfn as of
from optimfn.fused.run import _program
from optimfn.fused.run._cuda import Cuda

triton = pytest.importorskip("triton", reason="Triton is not installed: scripts/triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

TARGET = triton.backends.compiler.GPUTarget("cuda", 90, 32)


def compiled(function, arguments, is_kernel):
    """The assembly of a kernel for arguments like these."""
    signature, names = {}, function.arg_names
    for name, argument in zip(names, arguments, strict=False):
        is_tensor = isinstance(argument, torch.Tensor)
        signature[name] = ("*fp64" if argument.dtype == torch.float64 else "*i64") if is_tensor else "i32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    constants = {}
    if is_kernel:
        signature["ALIGNMENT"], constants = "constexpr", {(names.index("ALIGNMENT"),): 16}
    source = triton.compiler.ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=TARGET, options={"enable_fp_fusion": False}).asm["ptx"]


class Compiler(Cuda):
    """Compiles instead of launching."""

    def run(self, first, last):
        """Compile the kernels of stages."""
        for launches in self._launches[first:last]:
            for function, _, arguments, is_kernel in launches:
                self.assembly.append((is_kernel, compiled(function, (self._addresses, *arguments), is_kernel)))

    assembly = []  # noqa: RUF012  # for the test to read


@pytest.fixture
def assembly(monkeypatch):
    monkeypatch.setitem(_program.MACHINES, "cpu", Compiler)
    monkeypatch.setattr(Compiler, "assembly", [])
    return Compiler.assembly


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if "fused" not in case.skips], ids=lambda case: case.name)
def test_kernels_compile_for_a_device(case, dtype, assembly):
    tx, params = case.tx(), wide_params(dtype)
    of.make_step(tx, backend="fused")(params, tx.init(params), like(params))
    assert assembly


def test_a_thread_moves_four_numbers_at_a_time(assembly):
    tx, params = of.adamw(0.1), wide_params()
    of.make_step(tx, backend="fused")(params, tx.init(params), like(params))
    (kernel,) = [text for is_kernel, text in assembly if is_kernel]
    whole, rest = kernel.count("global.v4.b32"), kernel.count("global.b32")
    assert whole == 7 * 2  # 8 elements of 3 leaves that are read and written and one that is read
    assert rest == 7 * 8  # of the last chunk of a leaf, one by one
