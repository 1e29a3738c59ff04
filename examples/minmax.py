"""Find a saddle point: a generator learns the mean of a Gaussian from a linear critic, which is trained against it.

In min over g, max over c of c . (mean - g), simultaneous gradient steps circle around the solution and drift away.
Optimistic steps, which count on the gradient to change again as it just did, arrive (Daskalakis et al., 2018,
arXiv:1711.00141).
"""

import torch
from torch.func import grad

import optimfn as of

MEAN = torch.tensor([3.0, 4.0])


def payoff(players, data, noise):
    """How well the critic tells data from what the generator makes of noise."""
    made = players["generator"] + noise
    return (data @ players["critic"]).mean() - (made @ players["critic"]).mean()


def play(tx: of.GradientTransformation, steps: int) -> list[float]:
    """The distance of the generator from the mean at every step."""
    generator = torch.Generator().manual_seed(0)
    players = {"generator": torch.zeros(2), "critic": torch.zeros(2)}
    state, distances = tx.init(players), []
    for _ in range(steps):
        data, noise = MEAN + torch.randn(256, 2, generator=generator), torch.randn(256, 2, generator=generator)
        grads = grad(payoff)(players, data, noise)
        grads["critic"] = -grads["critic"]  # it goes uphill
        updates, state = tx.update(grads, state, players)
        players = of.apply_updates(players, updates)
        distances.append(torch.dist(players["generator"], MEAN).item())
    return distances


def main(steps: int = 1000) -> tuple[float, float]:
    plain = play(of.sgd(0.1), steps)
    optimistic = play(of.optimistic_gradient_descent(0.1), steps)
    print("distance of the generator from the mean")
    print(" step    gradient  optimistic")
    for step in range(0, steps, max(1, steps // 5)):
        print(f"{step:5}  {plain[step]:10.3g}  {optimistic[step]:10.3g}")
    print(f"{steps:5}  {plain[-1]:10.3g}  {optimistic[-1]:10.3g}")
    return plain[-1], optimistic[-1]


if __name__ == "__main__":
    main()
