"""Compile the kernels of common rules before anybody needs them.

    python -m optimfn.fused warm                            # the common rules, float32 and bfloat16
    python -m optimfn.fused warm lion lamb --dtype float64  # these

What is compiled goes into the cache of kernels (`OPTIMFN_CACHE`), as in a first step. It serves every model and all
numbers: kernels depend on neither. In the image of a container it saves each process the compiler, but not the need of
one, whose version is part of what an entry is called.
"""

import argparse
import functools
import importlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .run import _build
from .run._cache import cache_directory

COMMON = ("adamw", "adam", "sgd", "nesterov", "lion", "rmsprop", "adagrad", "nadamw", "radam", "adafactor", "lamb")
CLASSES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its status."""
    parser = argparse.ArgumentParser(prog="python -m optimfn.fused", description=__doc__.splitlines()[0])
    warm = parser.add_subparsers(required=True).add_parser("warm", help="compile into the cache")
    warm.add_argument("rules", nargs="*", help=f"names of optimizers; by default {', '.join(COMMON)}")
    warm.add_argument("--dtype", action="append", help="of the parameters; float32 and bfloat16 by default")
    args = parser.parse_args(argv)
    library: Any = importlib.import_module("optimfn")  # which is made of this, and more
    rules, dtypes = args.rules or COMMON, args.dtype or ["float32", "bfloat16"]
    for name in rules:
        if name != "nesterov" and not callable(getattr(library, name, None)):
            parser.error(f"there is no optimizer {name!r}")
    for dtype in dtypes:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            parser.error(f"there is no dtype {dtype!r}")
    failed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # that a rule runs eagerly
        for name in rules:
            for dtype in dtypes:
                failed += not _compile(library, name, getattr(torch, dtype))
    print(f"kernels are in {cache_directory()}")
    return int(failed > 0)


def _compile(library: Any, name: str, dtype: torch.dtype) -> bool:
    """Take first steps; whether that was possible."""
    start, count = time.perf_counter(), 0
    try:
        for step in _steps(library, name, dtype):
            _build.forget()  # each as the first of its process
            step()
            count += 1
    except (RuntimeError, RuntimeWarning, TypeError, ValueError) as error:
        print(f"{name}, {str(dtype).removeprefix('torch.')}: {error}")
        return False
    print(
        f"{name}, {str(dtype).removeprefix('torch.')}: {count} steps, {time.perf_counter() - start:.2f} s", flush=True
    )
    return True


def _steps(library: Any, name: str, dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """Steps of a rule in the ways it is used: alone, clipped, and averaged as well; called, and as an optimizer."""
    params = {"matrix": torch.ones(6, 4, dtype=dtype), "vector": torch.ones(4, dtype=dtype)}
    rule = library.sgd(0.1, momentum=0.9, nesterov=True) if name == "nesterov" else _rule(library, name)
    clip = library.clip_by_global_norm(1.0)
    for tx in (rule, library.chain(clip, rule), library.chain(clip, rule, library.params_ema(0.999))):
        for donate in (True, False):
            step, trees = library.make_step(tx, donate=donate, backend="fused"), library.tree.map(torch.clone, params)
            yield functools.partial(step, trees, tx.init(trees), params)
        yield _stepping(params, functools.partial(library.Optimizer, tx=tx, fused=True))
    if name in CLASSES:
        kind = getattr(library.optim, CLASSES[name])
        yield _stepping(
            params, lambda own: kind(own, lr=0.1, fused=True, **({"momentum": 0.9} if name == "sgd" else {}))
        )


def _rule(library: Any, name: str) -> Any:
    return library.sgd(0.1, momentum=0.9) if name == "sgd" else getattr(library, name)(0.1)


def _stepping(params: dict[str, torch.Tensor], make: Callable[[list[Any]], Any]) -> Callable[[], None]:
    """A step of an optimizer."""

    def run() -> None:
        own = [torch.nn.Parameter(p.clone()) for p in params.values()]
        for p in own:
            p.grad = torch.ones_like(p)
        make(own).step()

    return run


if __name__ == "__main__":
    raise SystemExit(main())
