"""Write a rule of your own: a state, two functions, and it composes with all the others.

The rule is Signum: step by the sign of the running mean of the gradients (Bernstein et al., 2018,
arXiv:1802.04434). `of.factory` records how it was made, which gives it a telling `repr`, equality, pickling
and `replace`.
"""

from typing import NamedTuple

import torch

import optimfn as of


class ScaleBySignumState(NamedTuple):
    """Signum's memory."""

    mu: of.Updates  # running mean of the gradients, like params


@of.factory
def scale_by_signum(decay: float = 0.9) -> of.GradientTransformation:
    """Replace the updates by the sign of their running mean."""

    def init(params):
        return ScaleBySignumState(of.tree.init_moment(params))

    def update(updates, state, params=None, **extra):
        mu = of.tree.update_moment(updates, state.mu, decay, order=1)
        direction = of.tree.map(torch.sign, mu)
        return of.tree.cast_like(direction, updates), ScaleBySignumState(of.tree.carry(mu, state.mu))

    return of.GradientTransformation(init, update)


def bowl(w):
    """A valley 10,000 times as steep along one axis as along another, which the sign of a gradient does not mind."""
    return torch.sum(torch.logspace(-2, 2, len(w)) * w**2)


def main(steps: int = 200) -> list[float]:
    tx = of.chain(
        scale_by_signum(),
        of.add_decayed_weights(0.01),
        of.scale_by_learning_rate(of.exponential_decay(0.1, transition_steps=10, decay_rate=0.8)),
    )
    print(tx)

    step = of.make_step(tx)
    w = torch.ones(5)
    state, losses = tx.init(w), []
    for _ in range(steps):
        grad, loss = torch.func.grad_and_value(bowl)(w)
        w, state = step(w, state, grad)
        losses.append(loss.item())

    for count in range(0, steps, max(1, steps // 5)):
        print(f"step {count:3}: loss {losses[count]:.2e}")
    print(f"at the end: loss {bowl(w):.2e}")
    return losses


if __name__ == "__main__":
    main()
