"""A scheduler that only reports, for frameworks that require one."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .policies import Policy
from .policies.asked import values_at


class PassiveScheduler(LRScheduler):
    """What ``optimizer.passive_scheduler()`` returns: a view of the schedules that the optimizer owns.

    It changes nothing: :meth:`step` may be called any number of times, and loading its state dict restores nothing,
    because the optimizer's has everything. torch's schedulers replace
    ``optimizer.step`` by a counting one and leave ``initial_lr`` in the param groups; this one does neither.

    As with torch's schedulers, :meth:`get_last_lr` between ``optimizer.step()`` and :meth:`step` is the rate of the
    step just made, and after :meth:`step` the next step's.
    """

    # Some frameworks count the calls here.
    _step_count = 1

    def __init__(self, optimizer: Optimizer) -> None:
        if not hasattr(optimizer, "policies"):
            raise TypeError(f"need an optimizer that owns its schedule, like CyclicSGD, got {type(optimizer).__name__}")
        self.optimizer = optimizer  # no super().__init__, which would wrap optimizer.step and write to the groups
        self._remember_rates()

    def _remember_rates(self) -> None:
        """Remember the current rates, and at which step."""
        self._groups = self.optimizer.param_groups  # another list after loading
        rates = [group["lr"] for group in self._groups]
        # A clone does not synchronize with the host.
        self._rates = [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates]
        self._seen_at = self.last_epoch

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Updates applied so far (in the first group that has a clock), as torch's schedulers count calls; else 0."""
        clocks = [group["schedule_step"] for group in self.optimizer.param_groups if "schedule_step" in group]
        return int(clocks[0]) if clocks else 0

    @property
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """The peak of each param group."""
        return [float(group.get("max_lr", group["lr"])) for group in self.optimizer.param_groups]

    @property
    def _last_lr(self) -> list[float]:  # type: ignore[override]
        return self.get_last_lr()

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each param group: of the step just made, or the next step's once :meth:`step` was called."""
        groups, made = self.optimizer.param_groups, self.last_epoch - self._seen_at
        # Loading replaces the groups. accelerate loads the optimizer's own state before the first step, which is then
        # a step like any other.
        if groups is not self._groups and made != 1:
            self._remember_rates()
            made = 0
        if made == 0:
            return [float(group["lr"]) for group in groups]
        if made == 1 and len(self._rates) == len(groups):
            return [float(rate) for rate in self._rates]
        policies: Any = self.optimizer.policies  # type: ignore[attr-defined]
        return [_rate_before(*pair) for pair in zip(groups, policies, strict=True)]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The same as :meth:`get_last_lr`."""
        return self.get_last_lr()

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Change no value; an epoch or a metric is ignored (see ``optimizer.report``)."""
        self._remember_rates()

    def state_dict(self) -> dict[str, Any]:
        """What it reports, as plain data."""
        return {"last_epoch": self.last_epoch, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: the optimizer's state dict holds the schedules."""
        self._remember_rates()


def _rate_before(group: dict[str, Any], policy: Policy | None) -> float:
    """The schedule's rate of the step just made."""
    step = int(group.get("schedule_step", 0))
    if policy is None or step == 0:
        return float(group["lr"])
    return float(group["max_lr"]) * values_at(policy, step - 1, group.get("policy_state"))[0]
