"""CUDA: host time of a step, eager and replayed, and the time of the device.

Workloads: 148 and 1,000 tensors, where the host is busy; 32 of 2048 x 2048, where memory is; and rules for matrices on
the latter, beside the products that Muon cannot do without. Contenders take turns in
random order in one process; a ratio compares times of one round. Host time is that until the call returns, total time
that until the work is done. A copy on the device tells the bandwidth that there is.
"""

import argparse
import functools
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

import optimfn as of

WORKLOADS = {
    "gpt": [(512, 512)] * 36 + [(512,)] * 112,
    "many": [(256, 256)] * 250 + [(256,)] * 750,
    "wide": [(2048, 2048)] * 32,
    "matrices": [(2048, 2048)] * 32,
}
Step = Callable[[], object]


def parameters(shapes: list[tuple[int, ...]], device: str) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(device)
    return params


def replayed(optimizer: torch.optim.Optimizer) -> Step:
    """A graph of the step, captured by hand."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()

    def step() -> None:
        graph.replay()
        # What the graph writes to must live as long as it: freed, it becomes the memory of the next contender.
        assert optimizer.state

    return step


def composed(params: list[torch.nn.Parameter]) -> Step:
    """Clipping, AdamW and an average of the parameters, of torch's fastest parts."""
    module = torch.nn.ParameterList(params)
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.AdamW(params, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        average.update_parameters(module)

    return step


def bound(params: list[torch.nn.Parameter], tx: of.GradientTransformation) -> Step:
    """A step of the rule alone."""
    step = of.make_step(tx, donate=True).bind(params, tx.init(params))
    grads = [p.grad for p in params]
    return lambda: step(grads)


def copy(params: list[torch.nn.Parameter]) -> Step:
    """As many bytes as AdamW must move for these parameters, 28 for each element, copied."""
    words = 28 * sum(p.numel() for p in params) // 8
    source, target = (torch.empty(words, dtype=torch.float32, device=params[0].device) for _ in range(2))
    return lambda: target.copy_(source)


def products(params: list[torch.nn.Parameter]) -> Step:
    """The products of five Newton-Schulz steps of every matrix, and nothing else."""
    x = torch.stack([p.detach() for p in params]).bfloat16()
    gram, out = x @ x.mT, torch.empty_like(x)

    def step() -> None:
        for _ in range(5):
            torch.bmm(x, x.mT, out=gram), torch.bmm(gram, gram, out=gram), torch.bmm(gram, x, out=out)

    return step


def of_matrices(shapes: list[tuple[int, ...]], device: str) -> dict[str, Step]:
    made = functools.partial(parameters, shapes, device)
    return {
        "torch.optim.Muon": torch.optim.Muon(made(), lr=1e-3).step,
        "the products of Muon alone": products(made()),
        "make_step: muon": bound(made(), of.torch_muon(1e-3, weight_decay=0.1)),
        "of.Optimizer(params, of.torch_muon)": of.Optimizer(made(), of.torch_muon(1e-3, weight_decay=0.1)).step,
        "make_step: normuon": bound(made(), of.normuon(1e-3)),
        "make_step: soap, every 10": bound(made(), of.soap(1e-3, precondition_frequency=10)),
        "make_step: kron_whiten": bound(made(), of.kron_whiten(1e-3)),
    }


def contenders(shapes: list[tuple[int, ...]], device: str) -> dict[str, Step]:
    adamw, made = torch.optim.AdamW, lambda: parameters(shapes, device)
    clipped = of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3))
    averaged = of.chain(clipped, of.params_ema(0.999))
    return {
        "torch.optim.AdamW(fused=True)": adamw(made(), fused=True).step,
        "torch.optim.AdamW(foreach=True)": adamw(made(), foreach=True).step,
        "torch: clip + fused AdamW + average": composed(made()),
        "copy of the bytes that AdamW moves": copy(made()),
        "make_step: adamw": bound(made(), of.adamw(1e-3)),
        "make_step: clip + adamw": bound(made(), clipped),
        "make_step: clip + adamw + average": bound(made(), averaged),
        "make_step: adamw, states in 8 bits": bound(made(), of.quantize_state(of.adamw(1e-3))),
        "of.optim.AdamW": of.optim.AdamW(made(), lr=1e-3).step,
        "of.Optimizer(params, of.adamw)": of.Optimizer(made(), of.adamw(1e-3)).step,
        "of.Optimizer(params, clip + adamw)": of.Optimizer(made(), clipped).step,
        "replay: torch.optim.AdamW(fused=True)": replayed(adamw(made(), fused=True, capturable=True)),
        "replay: of.adamw": of.cuda.capture(of.Optimizer(made(), of.adamw(1e-3)).step),
        "replay: clip + of.adamw": of.cuda.capture(of.Optimizer(made(), clipped).step),
    }


def measure(steps: dict[str, Step], rounds: int, repeats: int, warmup: int = 6) -> dict[str, list[tuple[float, float]]]:
    """`(host seconds, device seconds)` per step, of each contender in each round."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            step = steps[name]
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            called = time.perf_counter()
            torch.cuda.synchronize()
            found[name].append(((called - start) / repeats, (time.perf_counter() - start) / repeats))
    return found


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=10, help="steps of each contender in a round")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--out", help="a file for the medians, as JSON")
    args = parser.parse_args(argv)
    random.seed(0)

    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"{device}, torch {torch.__version__}, optimfn {of.__version__}")
    medians = {}
    for workload in WORKLOADS if args.workload == "all" else [args.workload]:
        make, rounds = (of_matrices, max(2, args.rounds // 20)) if workload == "matrices" else (contenders, args.rounds)
        found = measure(make(WORKLOADS[workload], args.device), rounds, args.repeats)
        print(f"\n{workload + ', ' + str(len(WORKLOADS[workload])) + ' tensors':40}", end="")
        print(f"{'host us':>9}{'total us':>10}{'ratio':>8}{'quartiles':>14}")
        baseline = next(iter(found.values()))
        for name, times in found.items():
            host, total = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
            ratios = [own[1] / base[1] for own, base in zip(times, baseline, strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4)
            medians[f"{workload}: {name}"] = (host, total)
            print(f"{name:40}{host:9.1f}{total:10.1f}{ratio:8.2f}{low:8.2f}{high:6.2f}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(medians, file, indent=1)
    return medians


if __name__ == "__main__":
    main()
