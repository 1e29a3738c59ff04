"""What benchmarks step: the shapes of the tensors. It imports nothing, so that any environment can."""

from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def gpt() -> Shapes:
    """148 tensors, 11.7 M elements: a small transformer with its biases and norms."""
    d, shapes = 256, [(8192, 256), (512, 256)]
    for _ in range(12):
        shapes += [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [*shapes, (d,), (d,)]


WORKLOADS: dict[str, Callable[[], Shapes]] = {
    "gpt": gpt,
    "big": lambda: [(4096, 4096), (4096, 1024)],
    "tiny": lambda: [(32, 32), (32,)] * 50,
    "many": lambda: [(64, 64), (64,), (64, 16), (64,)] * 250,
}
