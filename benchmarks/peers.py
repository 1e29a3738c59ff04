"""The time of one AdamW step in other libraries, beside `torch.optim.AdamW(fused=True)` and ours.

    scripts/peers                                        # makes an environment for each library, and measures
    python benchmarks/peers.py --python heavyball=venv/bin/python --python optax=other/bin/python
    python benchmarks/peers.py --draw docs/images/peers.svg     # the picture, from benchmarks/peers.json

Each contender lives in a process of its own, with the Python in which its library is installed, and holds parameters,
gradients and state of one workload. The processes take turns, one at a time and on one thread: in a round each makes
as many steps as take it about 0.1 s. What is shown is the median, over the rounds, of the time of a step as a ratio to
that of torch in the same round. The rule is AdamW with weight decay 0.1, or as near as a library has it: the 8-bit ones
round their moments.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, Shapes

Step = Callable[[], object]

HERE = Path(__file__)
RECORD = HERE.with_name("peers.json")
RATE, DECAY = 1e-3, 0.1


# Each makes a step of its library from shapes; it imports what it needs, since the others are not there.


def of_torch(shapes: Shapes) -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=generator)
    return params


def torch_step(shapes: Shapes) -> Step:
    import torch

    return torch.optim.AdamW(of_torch(shapes), RATE, weight_decay=DECAY, fused=True).step


def compiled_step(shapes: Shapes) -> Step:
    import torch

    optimizer = torch.optim.AdamW(of_torch(shapes), RATE, weight_decay=DECAY, foreach=True)
    optimizer.step()  # the state is not compiled

    @torch.compile
    def run() -> None:
        optimizer.step()

    return run


def our_step(shapes: Shapes, *, donate: bool = True, quantized: bool = False) -> Step:
    import optimfn as of

    leaves = of_torch(shapes)
    params = {str(i): p.detach() for i, p in enumerate(leaves)}
    grads = {str(i): p.grad for i, p in enumerate(leaves)}
    rule = of.adamw(RATE, weight_decay=DECAY)
    tx = of.quantize_state(rule) if quantized else rule
    step, state = of.make_step(tx, donate=donate), tx.init(params)

    def run() -> None:
        nonlocal params, state
        params, state = step(params, state, grads)

    return run


def heavyball_step(shapes: Shapes) -> Step:
    import heavyball

    params = of_torch(shapes)
    optimizer = heavyball.AdamW(params, lr=RATE, weight_decay=DECAY, warmup_steps=0)
    grads = [p.grad for p in params]

    def run() -> None:
        for p, g in zip(params, grads, strict=True):  # it takes them away
            p.grad = g
        optimizer.step()

    return run


def torchopt_step(shapes: Shapes) -> Step:
    import torchopt

    leaves = of_torch(shapes)
    params = {str(i): p.detach() for i, p in enumerate(leaves)}
    grads = {str(i): p.grad for i, p in enumerate(leaves)}
    optimizer = torchopt.adamw(RATE, weight_decay=DECAY)
    state = optimizer.init(params)

    def run() -> None:
        nonlocal state
        updates, state = optimizer.update(grads, state, params=params, inplace=True)
        torchopt.apply_updates(params, updates, inplace=True)

    return run


def optax_step(shapes: Shapes) -> Step:
    import jax
    import optax

    keys = jax.random.split(jax.random.PRNGKey(0), len(shapes))
    params = {str(i): 0.02 * jax.random.normal(key, s) for i, (key, s) in enumerate(zip(keys, shapes, strict=True))}
    grads = {name: 0.5 * p for name, p in params.items()}
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    state = optimizer.init(params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))

    def run() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(donating(params, state, grads))

    return run


def pytorch_optimizer_step(shapes: Shapes) -> Step:
    import pytorch_optimizer

    optimizer: Any = pytorch_optimizer.StableAdamW(of_torch(shapes), lr=RATE, weight_decay=DECAY)
    return lambda: optimizer.step()


def bitsandbytes_step(shapes: Shapes) -> Step:
    import bitsandbytes

    optimizer: Any = bitsandbytes.optim.AdamW8bit(of_torch(shapes), lr=RATE, weight_decay=DECAY)
    return lambda: optimizer.step()


def torchao_step(shapes: Shapes) -> Step:
    from torchao.optim import AdamW8bit

    optimizer: Any = AdamW8bit(of_torch(shapes), lr=RATE, weight_decay=DECAY)
    return lambda: optimizer.step()


TORCH = "torch.optim.AdamW(fused=True)"
CONTENDERS: dict[str, tuple[str, Callable[[Shapes], Step]]] = {  # a label, the library it needs, its step
    TORCH: ("torch", torch_step),
    "optimfn, donating": ("optimfn", our_step),
    "optimfn, pure": ("optimfn", lambda shapes: our_step(shapes, donate=False)),
    "optimfn, 8-bit state": ("optimfn", lambda shapes: our_step(shapes, quantized=True)),
    "torch.compile of AdamW.step": ("torch", compiled_step),
    "optax.adamw, jit with donation": ("optax", optax_step),
    "heavyball.AdamW": ("heavyball", heavyball_step),
    "torchopt.adamw, in place": ("torchopt", torchopt_step),
    "pytorch_optimizer.StableAdamW": ("pytorch_optimizer", pytorch_optimizer_step),
    "bitsandbytes AdamW8bit": ("bitsandbytes", bitsandbytes_step),
    "torchao AdamW8bit": ("torchao", torchao_step),
}
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def serve(name: str, workload: str) -> None:
    """Answer each number of steps on the standard input with their seconds, after a first answer when ready."""
    step = CONTENDERS[name][1](WORKLOADS[workload]())
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


class Contender:
    """A process that makes steps when it is asked to."""

    def __init__(self, name: str, python: str, workload: str) -> None:
        command = [python, "-W", "ignore", str(HERE), "--serve", name, "--workload", workload]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}
        )
        self.failure = "" if self._answer() == "ready" else self._last_words()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word = line.strip()
            if word == "ready" or word.replace(".", "").replace("e-", "").isdigit():  # libraries print, too
                return word
        return ""

    def _last_words(self) -> str:
        _, errors = self._process.communicate()
        return (errors.strip().splitlines() or ["it ended without a word"])[-1]

    def seconds(self, steps: int) -> float:
        """The time of some steps."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def contenders(pythons: dict[str, str], workload: str) -> Iterator[dict[str, Contender]]:
    """The processes of those whose libraries there are."""
    found: dict[str, Contender] = {}
    try:
        for name, (library, _) in CONTENDERS.items():
            one = Contender(name, pythons.get(library, sys.executable), workload)
            if one.failure:
                print(f"{name}: not here, {one.failure}", file=sys.stderr)
                one.close()
            else:
                found[name] = one
        yield found
    finally:
        for one in found.values():
            one.close()


def compare(pythons: dict[str, str], workload: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, and the ratio to torch."""
    with contenders(pythons, workload) as there:
        counts = {name: max(1, round(0.1 / max(one.seconds(3) / 3, 1e-6))) for name, one in there.items()}
        times: dict[str, list[float]] = {name: [] for name in there}
        for _ in range(rounds):
            for name, one in there.items():
                times[name].append(one.seconds(counts[name]) / counts[name])
    ratios = {name: [t / base for t, base in zip(own, times[TORCH], strict=True)] for name, own in times.items()}
    return {
        name: {"milliseconds": 1e3 * statistics.median(own), "ratio": statistics.median(ratios[name])}
        for name, own in times.items()
    }


def draw(found: dict[str, dict[str, dict[str, float]]], into: Path) -> None:
    """Bars of the ratios, one panel a workload."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "peers"  # the same file for the same numbers
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 3.2))
    for ax, (workload, rows) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        names = [name for name in CONTENDERS if any(name in other for other in found.values())][::-1]
        values = [rows.get(name, {}).get("ratio", 0.0) for name in names]
        ax.barh(names, values, color=["tab:orange" if name.startswith("optimfn") else "tab:gray" for name in names])
        for i, value in enumerate(values):
            ax.text(value, i, f" {value:.2f}" if value else " not here", va="center", fontsize=7, color="gray")
        ax.set_xscale("log")
        ax.set_title(workload, fontsize=9, color="gray")
        ax.tick_params(labelsize=7, colors="gray")
        ax.axvline(1.0, color="gray", linewidth=0.7)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(into, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["gpt", "big", "tiny"], help=", ".join(WORKLOADS))
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH", help="where a library is")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--draw", type=Path, help="draw benchmarks/peers.json into this file, and measure nothing")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.workload)
    elif args.draw:
        draw(json.loads(RECORD.read_text()), args.draw)
    else:
        found = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        for workload in args.workloads:
            found[workload] = compare(dict(one.split("=", 1) for one in args.python), workload, args.rounds)
            print(workload)
            for name, row in found[workload].items():
                print(f"  {name:34} {row['milliseconds']:9.3f} ms {row['ratio']:8.2f}", flush=True)
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
