"""Time the steps of an optimizer, of torch or of `of.make_step`, apart from forward and backward."""

import statistics
import time

import torch

import optimfn as of


class Clock(list):
    """The seconds that each step has taken."""

    def start(self, *_) -> None:
        self.append(-time.perf_counter())

    def stop(self, *_) -> None:
        self[-1] += time.perf_counter()

    def make_step(self, tx, **kwargs):
        step = of.make_step(tx, **kwargs)
        return lambda *args: (self.start(), step(*args), self.stop())[1]

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Of hooks that run before a step, those registered from now on count."""
        optimizer.register_step_pre_hook(self.start)
        optimizer.register_step_post_hook(self.stop)
        return optimizer

    def milliseconds(self) -> float:
        return 1000 * statistics.median(self)


def main(steps: int = 50, size: int = 512) -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Linear(size, size), torch.randn(64, size)
    for make in (of.optim.AdamW, torch.optim.AdamW):
        clock = Clock()
        optimizer = clock.watch(make(model.parameters(), lr=1e-3, fused=True))
        for _ in range(steps):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"{make.__module__.split('.')[0]}: {len(clock)} steps, {clock.milliseconds():.3f} ms the median")


if __name__ == "__main__":
    main()
