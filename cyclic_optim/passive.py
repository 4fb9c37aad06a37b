"""A scheduler that only reports, for frameworks that insist on one."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from .optimizer import CyclicSGD


class PassiveScheduler(LRScheduler):
    """What :meth:`CyclicSGD.passive_scheduler` returns: a view of the schedule that the optimizer owns.

    It keeps nothing of its own, writes nothing and moves nothing: :meth:`step` may be called as often as a
    framework likes, and loading its state dict changes nothing, since all there is to restore is in the
    optimizer's. torch's schedulers replace ``optimizer.step`` by a counting one and leave ``initial_lr`` in the
    param groups; this one does neither.
    """

    # Some frameworks count the calls here.
    _step_count = 1

    def __init__(self, optimizer: CyclicSGD) -> None:
        if not isinstance(optimizer, CyclicSGD):
            raise TypeError(f"need a CyclicSGD, which moves its own rates, got {type(optimizer).__name__}")
        self.optimizer = optimizer  # super().__init__ would do all that this class is there to avoid

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Updates applied so far, as torch's schedulers count calls; 0 without a policy, which counts none."""
        step: int = self.optimizer.param_groups[0].get("schedule_step", 0)
        return step

    @property
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """The peak of each param group."""
        return [float(group.get("max_lr", group["lr"])) for group in self.optimizer.param_groups]

    @property
    def _last_lr(self) -> list[float]:  # type: ignore[override]
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rate in force in each param group: the one that the coming step will use."""
        return self._last_lr

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The same as :meth:`get_last_lr`."""
        return self._last_lr

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; an epoch or a metric given is not looked at (see :meth:`CyclicSGD.report`)."""

    def state_dict(self) -> dict[str, Any]:
        """What it reports, as plain data."""
        return {"last_epoch": self.last_epoch, "_last_lr": self._last_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the optimizer's state dict holds the schedule."""
