"""DASO, an optimizer of Heat for an ordinary loop, on torch.distributed."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .._transforms._plateau import DetectPlateauState, detect_plateau
from ..distributed._daso import check_no_nan, dtype_of, mean_loss
from ..distributed._exchange import Exchange
from ..distributed._phases import Epochs, Phase, after_batch, after_epoch
from ._contract import every
from ._heat import check_optimizer, check_types


class DASO:
    """Average gradients inside a node, and exchange parameters among nodes without waiting: `heat.optim.DASO`.

    Names and arguments are Heat's. Set `last_batch`, the number of batches of an epoch less 1, and call
    `epoch_loss_logic(loss)` after every epoch. The pure form is `optimfn.distributed.daso`, which tells the rule.

    Args:
        local_optimizer: Any optimizer of torch or optimfn; all its parameters take part.
        total_epochs: Epochs in all, >= 1.
        comm: A `DeviceMesh` of two axes, the nodes and the processes of each; `None` makes one of all processes, with
            as many a node as `LOCAL_WORLD_SIZE` says, which torchrun sets.
        warmup_epochs: Epochs before the nodes begin to go on without waiting, >= 0.
        cooldown_epochs: Epochs after they have stopped to, >= 0.
        scheduler: A learning rate scheduler of `local_optimizer`, which is stepped behind it in every batch.
        stability_level: Fraction by which the loss must fall within three epochs, a float.
        max_global_skips: Batches between two sends at most, >= 0.
        sending_chunk_size: Accepted for the sake of Heat; what is sent is cut into buckets anyway. >= 1.
        downcast_type: The dtype of what is sent: `torch.bfloat16`, `torch.half` or `torch.float`.
        use_mpi_groups: Accepted for the sake of Heat; without effect.
        skip_reduction_factor: What divides the skips at a plateau, >= 1.
        local_skip_factor: Times that a node averages its gradients between two sends, at most, >= 1.
        verbose: Whether `print0` prints.
        exact: Do in every detail what Heat does; see `optimfn.distributed.daso`.

    Raises:
        TypeError, ValueError: as Heat's, naming the argument and its value.
        TypeError: at construction, if a parameter of `local_optimizer` is a DTensor.
        ValueError: in `step`, if `last_batch` has not been set.
    """

    def __init__(
        self,
        local_optimizer: Optimizer,
        total_epochs: int,
        comm: DeviceMesh | None = None,
        warmup_epochs: int = 4,
        cooldown_epochs: int = 4,
        scheduler: LRScheduler | None = None,
        stability_level: float = 0.05,
        max_global_skips: int = 8,
        sending_chunk_size: int = 10_000_000,
        downcast_type: torch.dtype = torch.bfloat16,
        use_mpi_groups: bool = True,
        skip_reduction_factor: int = 2,
        local_skip_factor: int = 4,
        verbose: bool = False,
        *,
        exact: bool = False,
    ) -> None:
        check_optimizer("local_optimizer", local_optimizer)
        if comm is not None and not isinstance(comm, DeviceMesh):
            raise TypeError(f"comm must be a DeviceMesh of two axes, got {comm!r}")
        atleast_0 = {"warmup_epochs": warmup_epochs, "cooldown_epochs": cooldown_epochs}
        atleast_0["max_global_skips"] = max_global_skips
        atleast_1 = {"total_epochs": total_epochs, "sending_chunk_size": sending_chunk_size}
        atleast_1.update(skip_reduction_factor=skip_reduction_factor, local_skip_factor=local_skip_factor)
        check_types(int, **atleast_0, **atleast_1)
        check_types(float, stability_level=stability_level)
        check_types(bool, verbose=verbose, use_mpi_groups=use_mpi_groups, exact=exact)
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler must be a learning rate scheduler of torch, or None, got {scheduler!r}")
        check_types(torch.dtype, downcast_type=downcast_type)
        if downcast_type not in (torch.bfloat16, torch.half, torch.float):
            raise ValueError(f"downcast_type must be torch.bfloat16, torch.half or torch.float, got {downcast_type}")
        for least, given in ((0, atleast_0), (1, atleast_1)):
            for name, value in given.items():
                if value < least:
                    raise ValueError(f"{name} must be at least {least}, got {value}")
        self.local_optimizer, self.scheduler = local_optimizer, scheduler
        self.downcast_type, self.verbose = downcast_type, verbose
        self.last_batch: int | None = None
        self._exchange = Exchange(_mesh() if comm is None else comm, exact)
        self._exchange.check_leaves([group["params"] for group in local_optimizer.param_groups])
        factors = max_global_skips, skip_reduction_factor, local_skip_factor
        self._epochs = Epochs(total_epochs, warmup_epochs, cooldown_epochs, *factors, exact)
        self._detector = detect_plateau(patience=2, threshold=stability_level)
        self.module: Any = None
        self.scaler: Any = None
        self.reset()

    def reset(self) -> None:
        """Begin anew with the schedule; the optimizer stays as it is."""
        self._phase, self._seen = Phase(), self._detector.init()
        self._sent: list[Tensor] = []
        self._ticket = 0
        self._sync_local(True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.local_optimizer.param_groups

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._phase.epoch

    @property
    def current_batch(self) -> int:
        """Batches of this epoch that are over."""
        return self._phase.batch

    @property
    def global_skip(self) -> int:
        """Batches between two sends; 0: the nodes wait for each other after every batch."""
        return self._phase.global_skips

    @property
    def local_skip(self) -> int:
        """Batches between two means of gradients in a node."""
        return self._phase.local_skips

    @property
    def batches_to_wait(self) -> int:
        """Batches for which what was sent may be on its way."""
        return self._phase.wait

    def add_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Step through this scaler.

        Raises:
            TypeError: if it is no `torch.amp.GradScaler`.
        """
        if not isinstance(scaler, torch.amp.GradScaler):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {scaler!r}")
        self.scaler = scaler

    def set_model(self, model: nn.Module) -> None:
        """Leave it to this model, in DDP over the processes of a node, to average the gradients there."""
        self.module = model if hasattr(model, "require_backward_grad_sync") else None
        self._sync_local(bool(self._phase.syncs_local))

    def print0(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process, if `verbose`."""
        if self.verbose and (not dist.is_initialized() or dist.get_rank() == 0):
            print(*args, **kwargs)

    @torch.no_grad()
    def step(self) -> None:
        """Take the own step, and what the schedule says.

        Raises:
            ValueError: if `last_batch` has not been set.
        """
        if self.last_batch is None:
            raise ValueError("last_batch must be set: the number of batches of an epoch, less 1")
        now = self._phase
        if now.syncs_local and self.module is None:
            self._average_local()
        if self.scaler is not None:
            self.scaler.step(self.local_optimizer)
            self.scaler.update()
        else:
            with torch.enable_grad():
                self.local_optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        then, actions = after_batch(now, self.last_batch, self._exchange.local.size, self._exchange.exact)
        if actions:
            own = [p.detach() for p in every(self.param_groups) if p.requires_grad]
            wide = [p.to(torch.promote_types(p.dtype, torch.float32)) for p in own]
            if self._exchange.exact:
                check_no_nan(wide)
            dtype = dtype_of(now, self.downcast_type, self._exchange.exact)
            new, self._sent, self._ticket = self._exchange.carry_out(actions, wide, self._sent, self._ticket, dtype)
            if new is not wide:
                for p, value in zip(own, new, strict=True):
                    p.copy_(value)
        self._phase = then
        self._sync_local(bool(then.syncs_local))

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.local_optimizer.zero_grad(set_to_none=False)

    def epoch_loss_logic(self, loss: float | Tensor, loss_globally_averaged: bool = False) -> None:
        """Say the loss of the epoch that is over, from which the schedule of the next follows.

        Args:
            loss: A number or a 0-dim tensor, the mean of this process.
            loss_globally_averaged: Whether it is the mean of all processes already.
        """
        if not loss_globally_averaged:
            loss = mean_loss(loss, self._exchange, self.param_groups[0]["params"][0].device)
        self._phase, self._seen = after_epoch(self._phase, self._seen, loss, self._detector, self._epochs)
        now = self._phase
        self.print0(f"epoch {now.epoch}: global skips {now.global_skips}, local skips {now.local_skips}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run goes on from; each process has its own, see `optimfn.distributed.save_replicas`."""
        return {
            "local_optimizer": self.local_optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "phase": torch.tensor(self._phase),
            "seen": self._seen._asdict(),
            "sent": [x.clone() for x in self._sent],
            "ticket": torch.tensor(self._ticket),
            "last_batch": self.last_batch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` has returned."""
        self.local_optimizer.load_state_dict(state_dict["local_optimizer"])
        for name in ("scheduler", "scaler"):
            if getattr(self, name) is not None and state_dict[name] is not None:
                getattr(self, name).load_state_dict(state_dict[name])
        params = [p for p in every(self.param_groups) if p.requires_grad]
        self._sent = [x.to(p.device) for x, p in zip(state_dict["sent"], params, strict=False)]
        self._phase, self._ticket = Phase.unpack(state_dict["phase"]), int(state_dict["ticket"])
        self._seen = DetectPlateauState(**state_dict["seen"])
        self.last_batch = state_dict["last_batch"]
        self._sync_local(bool(self._phase.syncs_local))

    def _average_local(self) -> None:
        grads = [p.grad for p in every(self.param_groups) if p.grad is not None]
        for own, mean in zip(grads, self._exchange.average_local(grads), strict=True):
            own.copy_(mean)

    def _sync_local(self, on: bool) -> None:
        if self.module is not None:
            self.module.require_backward_grad_sync = on


def _mesh() -> DeviceMesh:
    """All processes, by node."""
    if not dist.is_initialized():
        raise ValueError("comm=None needs torch.distributed: call init_process_group first, or give a DeviceMesh")
    size, nearby = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.accelerator.current_accelerator() if dist.get_backend() == "nccl" else None
    ranks = torch.arange(size).reshape(-1, nearby)
    return DeviceMesh("cpu" if device is None else device.type, ranks, mesh_dim_names=("node", "local"))
