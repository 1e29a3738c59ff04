"""How near donating steps come to what memory allows on this machine.

    python benchmarks/roofline.py [workload ...] [--threads N]

The limit is a loop by hand, in C, that reads four arrays and writes three of them and does nothing but add: what AdamW
moves. It works on tensors of the same shapes, in the same process, in turns with the steps, and its pages are joined
like theirs. A share of 1 is a step at the limit; above 1 is noise.
"""

import argparse
import ctypes
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from step import ADAMW, WORKLOADS, Ours, adamw_step, measure, parameters

import optimfn as of
from optimfn.fused.run._huge_pages import join_pages

SOURCE = r"""
#include <stdint.h>
void limit(float **p, float **m, float **v, float **g, const int64_t *size, int64_t leaves, int threads) {
  #pragma omp parallel num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < leaves; k++) {
    float *a = p[k], *b = m[k], *c = v[k];
    const float *d = g[k];
    #pragma omp for simd schedule(static) nowait
    for (int64_t i = 0; i < size[k]; i++) { a[i] += d[i]; b[i] += d[i]; c[i] += d[i]; }
  }
}
void copy(float **p, float **m, float **v, float **g, const int64_t *size, int64_t leaves, int threads) {
  #pragma omp parallel num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < leaves; k++) {
    float *a = p[k];
    const float *d = g[k];
    #pragma omp for simd schedule(static) nowait
    for (int64_t i = 0; i < size[k]; i++) a[i] = d[i];
  }
}
"""


def compiled(directory: str) -> ctypes.CDLL:
    source, library = Path(directory, "limit.c"), Path(directory, "limit.so")
    source.write_text(SOURCE)
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    command = [compiler, "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def loop(function: Callable[..., None], params: list[torch.nn.Parameter]) -> Callable[[], None]:
    """The loop on parameters, moments and gradients."""
    own = [[p.detach() for p in params], *([torch.zeros_like(p) for p in params] for _ in range(2))]
    arrays = [*own, [p.grad for p in params if p.grad is not None]]
    join_pages([x for array in arrays for x in array])
    tables = [(ctypes.c_void_p * len(params))(*[x.data_ptr() for x in array]) for array in arrays]
    sizes = (ctypes.c_int64 * len(params))(*[p.numel() for p in params])
    threads = torch.get_num_threads()

    def run(held: object = arrays) -> None:
        function(*tables, sizes, ctypes.c_int64(len(params)), ctypes.c_int(threads))

    return run


def report(workload: str, library: ctypes.CDLL, rounds: int, seconds: float) -> None:
    shapes = WORKLOADS[workload]()

    def made() -> list[torch.nn.Parameter]:
        return parameters(shapes, torch.float32)

    steps = {
        "limit": loop(library.limit, made()),
        "copy": loop(library.copy, made()),
        "donating": Ours(ADAMW, made()).donating(),
        "bound": Ours(ADAMW, made()).bound(),
        "class": of.Optimizer(made(), ADAMW).step,
        "torch fused": adamw_step(made()),
        "pure": Ours(ADAMW, made()).pure(),
    }
    times, dropped = measure(steps, rounds, seconds)
    if len(times["limit"]) < 2:
        print(f"{workload}: disturbed, {dropped} rounds dropped")
        return
    elements = sum(torch.Size(s).numel() for s in shapes)
    print(f"{workload}: limit {28e-9 * elements / statistics.median(times['limit']):.0f} GB/s, ", end="")
    print(f"copy {8e-9 * elements / statistics.median(times['copy']):.0f} GB/s; {dropped} rounds dropped")
    for name in ("donating", "bound", "class", "torch fused", "pure"):
        shares = [limit / own for limit, own in zip(times["limit"], times[name], strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4)
        print(f"  {name:12} {middle:.2f} of the limit, quartiles {low:.2f} and {high:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=["big", "gpt"], help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=0.04)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(0)
    with tempfile.TemporaryDirectory() as directory:
        library = compiled(directory)
        for workload in args.workloads:
            report(workload, library, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
