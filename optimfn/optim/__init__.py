"""The stateful world: transformations behind `torch.optim.Optimizer`."""

from ._optimizer import Optimizer as Optimizer
