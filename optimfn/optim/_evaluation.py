"""An optimizer whose parameters are for a while those to evaluate."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ._contract import every
from ._engine import Engine

TRAINED = "trained_param"  # under which a state dict holds a trained parameter, as long as another stands in its place


class Evaluation(Engine):
    """The part of an optimizer that swaps parameters."""

    _trained: dict[Tensor, Tensor]  # what was trained, of the parameters that are others now
    _evaluates: bool

    def eval(self) -> None:
        """Put the parameters to evaluate, such as their mean, in the place of the trained ones, until `train`.

        What they are, the transformation says, see `eval_params`; with one that says nothing this does nothing. A step
        in between raises. A state dict in between holds the trained parameters as well.
        """
        if self.is_evaluating:
            return
        with torch.no_grad():
            bound, _ = self._current(False)
            found = {} if bound is None else bound.eval_params()
            others = [(p, found[name]) for name, p in ({} if bound is None else bound.params).items()]
            swapped = {p: (p.detach().clone(), new) for p, new in others if new is not p}
            for p, (_, new) in swapped.items():
                p.copy_(new)
        self._trained = {p: old for p, (old, _) in swapped.items()}
        self._evaluates = True

    def train(self) -> None:
        """Put the trained parameters back, as they were."""
        if not self.is_evaluating:
            return
        with torch.no_grad():
            for p, old in self._trained.items():
                p.copy_(old)
        self._trained, self._evaluates = {}, False

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """A block in which the parameters are those to evaluate; after it they are the trained ones, whatever happens.

        Example:
            >>> import torch, optimfn as of
            >>> p = torch.nn.Parameter(torch.tensor([4.0]))
            >>> opt, p.grad = of.Optimizer([p], of.chain(of.sgd(1.0), of.params_swa())), torch.ones(1)
            >>> opt.step(), opt.step()
            (None, None)
            >>> with opt.evaluation():
            ...     mean = p.detach().clone()
            >>> mean, p.data
            (tensor([2.5000]), tensor([2.]))
        """
        was = self.is_evaluating
        self.eval()
        try:
            yield
        finally:
            if not was:
                self.train()

    @property
    def is_evaluating(self) -> bool:
        """Whether the parameters are those to evaluate."""
        return self._evaluates

    def params_to_evaluate(self) -> dict[str, Tensor]:
        """What `eval_params` says of this optimizer."""
        if self.is_evaluating:
            return {str(name): p.detach() for name, p in self._params().items()}
        with torch.no_grad():
            bound, _ = self._current(False)
            found = {} if bound is None else bound.eval_params()
            return {str(name): found.get(name, p).detach() for name, p in self._params().items()}

    def state_tree(self) -> Any:
        """The state as the transformation has it, for `tree.get`, `metrics` and the like; read it, and do not write.

        Where parameters have pasts of their own, or groups numbers, it is a tuple with the state of each kind.
        """
        with torch.no_grad():
            bound, _ = self._current(False)
        runs = () if bound is None else bound.state.runs
        return runs[0] if len(runs) == 1 else tuple(runs)

    def _check_training(self, what: str = "a step") -> None:
        if self._evaluates:
            raise RuntimeError(
                f"the parameters are those to evaluate, and {what} needs the trained ones: call train(), or leave "
                "evaluation(), first"
            )

    def _with_trained(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A state dict with the trained parameters that stand aside."""
        params = every(self.param_groups)
        for number, p in enumerate(params):
            if p in self._trained:
                state_dict["state"].setdefault(number, {})[TRAINED] = self._trained[p].clone()
        return state_dict

    def _without_trained(self, state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Tensor]]:
        """A state dict without them, and they by the number of the parameter."""
        numbers = every(state_dict["param_groups"])
        entries = {key: dict(own) for key, own in state_dict["state"].items()}
        found = {i: entries[key].pop(TRAINED) for i, key in enumerate(numbers) if TRAINED in entries.get(key, {})}
        return ({**state_dict, "state": entries}, found) if found else (state_dict, {})

    def _set_aside(self, trained: Mapping[int, Tensor]) -> None:
        """Go on where a state dict was saved between `eval` and `train`."""
        params = every(self.param_groups)
        self._trained = {params[i]: x.detach().to(params[i], copy=True) for i, x in trained.items()}
        self._evaluates = bool(trained)
