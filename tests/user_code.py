"""Code as users write it, for type checkers: `tests/test_types.py` runs mypy and pyright over it, strictly."""

from typing import Any, NamedTuple, assert_type

import torch
from torch import Tensor

import optimfn as of


class Model(NamedTuple):
    """A tree of the user's own type."""

    weight: Tensor
    bias: Tensor


class Memory(NamedTuple):
    """The state of a rule of the user's own."""

    mean: Model


params = Model(torch.zeros(2, 3), torch.zeros(3))
grads = Model(torch.ones(2, 3), torch.ones(3))

# Schedules remember how they were made, and a lambda is one too.
schedule = of.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
assert_type(schedule, of.Schedule)
assert_type(schedule(3), Tensor)
assert_type(schedule.replace(warmup_steps=20).arguments["warmup_steps"], Any)
tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(schedule, mask=of.tree.is_matrix))
by_hand = of.adam(lambda count: torch.as_tensor(1e-3 / (1 + count)))
rate = of.sgd(torch.tensor(0.1))
joined = of.join_schedules([schedule, lambda count: torch.as_tensor(1e-4)], [100])
assert_type(joined, of.Schedule)

# Transformations are values.
assert_type(tx, of.GradientTransformation)
assert_type(tx.replace(), of.GradientTransformation)

# Trees keep their type.
state = tx.init(params)
updates, state = tx.update(grads, state, params)
assert_type(updates, Model)
assert_type(of.apply_updates(params, updates), Model)
named = {"weight": torch.zeros(3), "bias": torch.zeros(3)}
assert_type(of.apply_updates(named, of.tree.scale(-0.1, named)), dict[str, Tensor])
step = of.make_step(tx, donate=True)
params, state = step(params, state, grads, value=torch.tensor(1.0))
assert_type(params, Model)

# A rule of one's own may be annotated narrowly.


def momentum(decay: float = 0.9) -> of.GradientTransformation:
    """A mean of gradients of one kind of tree."""

    def init(params: Model) -> Memory:
        return Memory(Model(torch.zeros_like(params.weight), torch.zeros_like(params.bias)))

    def update(updates: Model, state: Memory, params: Model | None = None, **extra: Any) -> tuple[Model, Memory]:
        mean = Model(*(decay * m + g for m, g in zip(state.mean, updates, strict=True)))
        return mean, Memory(mean)

    return of.GradientTransformation(init, update)


@of.factory
def half() -> of.GradientTransformation:
    """Half the updates."""
    return of.stateless(lambda updates, params: of.tree.scale(0.5, updates))


assert_type(half(), of.GradientTransformation)

# Masks and labels.
split = of.partition({"matrix": of.torch_muon(0.02), "rest": by_hand}, of.tree.label_by(lambda p: "rest"))
masked = of.masked(momentum(), lambda tree: of.tree.map(lambda p: p.ndim > 1, tree))

# Behind an ordinary loop.
model = torch.nn.Linear(3, 1)
optimizer = of.Optimizer(model, of.adamw, learning_rate=1e-3, weight_decay=0.1)
same = of.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
model(torch.ones(2, 3)).sum().backward()
optimizer.step()
saved: dict[str, Any] = optimizer.state_dict()
optimizer.load_state_dict(saved)
