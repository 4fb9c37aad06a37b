"""Keeping a schedule in an optimizer's param groups: counter, peaks, values in force.

The param groups own all of it, as plain data, because they are what checkpoints, wrappers and
distributed engines carry about; a :class:`Schedule` adds the policy and the rules. It knows of an
optimizer only that its groups have ``lr`` and perhaps ``momentum``.

========================  ==================================================================
``group["max_lr"]``       the peak; the user's to edit
``group["lr"]``           the rate in force for the coming step: ``max_lr * lr_factor``
``group["momentum"]``     likewise, where the policy cycles it
``group["schedule_step"]``  updates applied so far: one number, the same in every group
``group["policy"]``       the policy's name and fields
``group["policy_state"]``  what the policy remembers of reports; only where it listens to any
========================  ==================================================================
"""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any, NamedTuple

import torch

from .policies import Policy, Values, describe, rebuild

Group = dict[str, Any]


class Upcoming(NamedTuple):
    """Everything that will hold after the step at hand, worked out and checked before it."""

    step: int
    rates: list[float]
    momentum: float | None


class Schedule:
    """A policy, and what it does to param groups."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def enrol(self, group: Group, peers: list[Group]) -> None:
        """Let a group join the cycle where its peers stand (at step 0, if it has none)."""
        lr: Any = group["lr"]
        if isinstance(lr, torch.Tensor):
            if lr.requires_grad:
                raise ValueError("need lr without requires_grad beside a policy, which overwrites it")
            # The rate is written in place; the caller's tensor stays the caller's.
            group["lr"] = lr.detach().clone()
        group["max_lr"] = check_rate("max_lr", float(group.get("max_lr", lr)))
        if peers:
            group["schedule_step"] = peers[0]["schedule_step"]
            state = peers[0].get("policy_state")
        else:
            group["schedule_step"] = 0
            state = self.policy.initial_state()
        group["policy"] = describe(self.policy)
        if state is not None:
            group["policy_state"] = dict(state)
        self.rewrite([group])

    def values(self, step: int, state: dict[str, Any] | None) -> Values:
        """What the policy says of a step, checked: a user's policy may say anything."""
        lr_factor, momentum = self.policy.at(step) if state is None else self.policy.after(state, step)
        if not 0 <= lr_factor < math.inf:
            raise ValueError(f"need 0 <= lr_factor < inf, got {lr_factor=} from {self.policy!r} at {step=}")
        if momentum is not None and not 0 <= momentum < math.inf:
            raise ValueError(f"need 0 <= momentum < inf, got {momentum=} from {self.policy!r} at {step=}")
        return Values(lr_factor, momentum)

    def upcoming(self, groups: list[Group], *, ahead: int = 1) -> Upcoming:
        """What will hold ``ahead`` updates from now. Nothing is written yet."""
        step = groups[0]["schedule_step"] + ahead
        lr_factor, momentum = self.values(step, groups[0].get("policy_state"))
        return Upcoming(step, [check_rate("max_lr", float(g["max_lr"])) * lr_factor for g in groups], momentum)

    def write(self, groups: list[Group], upcoming: Upcoming) -> None:
        """Put the values in force."""
        step, rates, momentum = upcoming
        for group, rate in zip(groups, rates, strict=True):
            group["schedule_step"] = step
            lr = group["lr"]
            if isinstance(lr, torch.Tensor):
                lr.fill_(rate)
            else:
                group["lr"] = rate
            if momentum is not None:
                group["momentum"] = momentum

    def rewrite(self, groups: list[Group]) -> None:
        """Put the values of the current step in force (again)."""
        self.write(groups, self.upcoming(groups, ahead=0))

    def is_dry_run(self, groups: list[Group]) -> bool:
        """Whether every rate was set to 0 from outside.

        Distributed checkpointing does so before a ``step()`` that is to create optimizer state and
        move nothing. A rate of 0 that the policy (or a peak of 0) asks for is no such sign.
        """
        if not all(_is_zero(group["lr"]) for group in groups):
            return False
        return any(rate != 0 for rate in self.upcoming(groups, ahead=0).rates)

    def report(self, groups: list[Group], metric: float) -> None:
        """Tell the policy a metric; where that changes the values, they are in force at once."""
        step, before = groups[0]["schedule_step"], groups[0].get("policy_state")
        after = self.policy.report(before, metric)
        changed = self.values(step, after) != self.values(step, before)
        for group in groups:
            group["policy_state"] = dict(after)
        if changed:
            self.rewrite(groups)


def check_rate(name: str, value: Any) -> Any:
    """A learning rate is a finite number >= 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"need 0 <= {name} < inf, got {name}={value!r}")
    return value


def _is_zero(lr: Any) -> bool:
    # A rate that lives on a device is not asked: that would make the host wait for the device.
    return bool(lr == 0) if not isinstance(lr, torch.Tensor) or lr.device.type == "cpu" else False


def adopt(schedule: Schedule | None, groups: list[Group], previous: list[Group]) -> Schedule | None:
    """Make sense of freshly loaded groups: returns the schedule that now holds, or None for none.

    The policy in the code wins over the one in the checkpoint, with a warning where they differ;
    without one in the code the checkpoint's is taken. Groups of an optimizer that kept no schedule
    (``torch.optim.SGD``) start at step 0, with the peaks that the code gave. Groups saved at some step
    have that step's values in them already, hand edits included, and keep them.

    Raises:
        ValueError: the groups hold something that no schedule can have written.
    """
    scheduled = ["schedule_step" in group for group in groups]
    if not any(scheduled):
        if schedule is not None:
            _start(schedule, groups, previous)
        return schedule
    if not all(scheduled):
        raise ValueError("need schedule_step in every param group of the checkpoint or in none")
    if schedule is not None:
        # What an older dict does not say is as the code says.
        described = describe(schedule.policy)
        for group, old in zip(groups, previous, strict=True):
            group.setdefault("max_lr", old["max_lr"])
            group.setdefault("policy", described)
    _check(groups)
    saved = groups[0]["policy"]
    if schedule is None:
        schedule, described = _from_checkpoint(saved), saved
    _adopt_state(schedule.policy, groups)
    if saved == described:
        schedule.upcoming(groups, ahead=0)  # for its checks
        return schedule
    warnings.warn(
        f"the checkpoint was written under the policy {_text(saved)}; going on at step "
        f"{groups[0]['schedule_step']} under the one in the code, {_text(described)}",
        UserWarning,
        stacklevel=2,
    )
    for group in groups:
        group["policy"] = described
    schedule.rewrite(groups)
    return schedule


def _from_checkpoint(saved: object) -> Schedule:
    try:
        return Schedule(rebuild(saved))
    except ValueError as error:
        raise ValueError(f"{error}; pass the policy to the optimizer to load this checkpoint") from error


def _start(schedule: Schedule, groups: list[Group], previous: list[Group]) -> None:
    for group, old in zip(groups, previous, strict=True):
        # torch's OneCycleLR leaves a max_lr of its own behind; the code's peak is the one meant.
        group["max_lr"] = old["max_lr"]
    for i, group in enumerate(groups):
        schedule.enrol(group, groups[:i])


def _check(groups: list[Group]) -> None:
    steps = [group["schedule_step"] for group in groups]
    if any(type(step) is not int or step < 0 for step in steps) or len(set(steps)) > 1:
        raise ValueError(f"need one schedule_step, an int >= 0, in all param groups, got {steps}")
    for group in groups:
        for key in ("max_lr", "policy"):
            if key not in group:
                raise ValueError(f"need {key} beside schedule_step in a param group of the checkpoint")
        if not isinstance(group["max_lr"], numbers.Real):
            raise ValueError(f"need max_lr to be a number, got max_lr={group['max_lr']!r}")
        if group["policy"] != groups[0]["policy"]:
            raise ValueError("need the same policy in all param groups of the checkpoint")


def _adopt_state(policy: Policy, groups: list[Group]) -> None:
    initial = policy.initial_state()
    for group in groups:
        state = group.pop("policy_state", initial)
        if initial is not None:
            policy.check_state(state)
            group["policy_state"] = dict(state)


def _text(description: Any) -> str:
    if not isinstance(description, dict) or not isinstance(description.get("fields"), dict):
        return repr(description)
    fields = ", ".join(f"{key}={_text(value)}" for key, value in description["fields"].items())
    return f"{description.get('name')}({fields})"
