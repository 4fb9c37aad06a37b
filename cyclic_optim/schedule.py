"""Keeping a schedule in an optimizer's param groups: counter, peaks, values in force.

The param groups own all of it, as plain data, because they are what checkpoints, wrappers and
distributed engines carry about; a :class:`Schedule` adds the policy and the rules. It knows of an
optimizer only that its groups have ``lr`` and perhaps ``momentum``.

========================  ==================================================================
``group["max_lr"]``       the peak; the user's to edit
``group["lr"]``           the rate in force for the coming step: ``max_lr * lr_factor``
``group["momentum"]``     likewise, where the policy cycles it
``group["schedule_step"]``  updates applied so far: one number, the same in every group
``group["policy"]``       the policy's name and fields, as JSON: one value to all who carry it
``group["policy_state"]``  what the policy remembers of reports; only where it listens to any
========================  ==================================================================
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import deque
from functools import partial
from typing import Any

import torch

from . import native
from .policies.asked import checked, is_ordinary, values_at
from .policies.base import Policy
from .policies.spec import check_description, describe, rebuild
from .rules import MOST_STEPS, finite, shown

Group = dict[str, Any]

#: Counters that are loaded are below this: half of what there is, so that there is room to go on.
_MOST_LOADED_STEPS = MOST_STEPS // 2

#: Every floating-point dtype of parameters that torch's updates take (so none of 8 bits) holds rates up to this; for
#: higher ones somebody has to look.
_HELD_BY_ALL = torch.finfo(torch.float16).max

#: What will hold after the step at hand, worked out and checked before it: the next step's number, factor and momentum.
Upcoming = tuple[int, float, float | None]


class Schedule:
    """A policy, and what it does to param groups."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._first_rates: list[Any] = []  # the very objects, by which a rate of another's is told from these

    def enrol(self, group: Group, peers: list[Group]) -> None:
        """Let a group join the cycle where its peers stand (at step 0, if it has none)."""
        lr: Any = group["lr"]
        if isinstance(lr, torch.Tensor):
            check_tensor_lr(lr)
            # The rate is written in place; the caller's tensor stays the caller's.
            group["lr"] = lr.detach().clone()
            lr = lr.item()
        group["max_lr"] = finite("max_lr", group.get("max_lr", lr), minimum=0)
        if peers:
            group["schedule_step"] = peers[0]["schedule_step"]
            state = peers[0].get("policy_state")
        else:
            group["schedule_step"] = 0
            state = self.policy.initial_state()
        group["policy"] = encode(self.policy)
        if state is not None:
            group["policy_state"] = dict(state)
        self.rewrite([group])
        self._first_rates.append(group["lr"])

    def wrote_first(self, groups: list[Group]) -> bool:
        """Whether the rates in force are those with which the groups joined, and not equal ones from outside."""
        return all(any(group["lr"] is rate for rate in self._first_rates) for group in groups)

    def upcoming(self, groups: list[Group], *, ahead: int = 1) -> Upcoming:
        """What will hold ``ahead`` updates from now. Nothing is written yet."""
        return self._told(groups, groups[0]["schedule_step"] + ahead, groups[0].get("policy_state"))

    def _told(self, groups: list[Group], step: int, state: dict[str, Any] | None) -> Upcoming:
        """What holds at a step after these reports, checked against the groups."""
        answer: Any = self.policy.at(step) if state is None else self.policy.after(state, step)
        if native.compiled is not None and native.compiled.check(groups, answer):
            return step, answer[0], answer[1]
        lr_factor, momentum = checked(answer, self.policy, step)
        for group in groups:
            peak = group["max_lr"]
            if not is_ordinary(peak):
                peak = finite("max_lr", peak, minimum=0)
            if isinstance(group["lr"], torch.Tensor):
                check_tensor_lr(group["lr"])
            if peak * lr_factor > _HELD_BY_ALL and peak * lr_factor > (highest := highest_held(group)):
                raise ValueError(
                    f"need max_lr * lr_factor to be a number that lr can hold, and the parameters (up to {highest}), "
                    f"got max_lr={peak}, {lr_factor=} at {step=}"
                )
        return step, lr_factor, momentum

    def write(self, groups: list[Group], upcoming: Upcoming) -> None:
        """Put the values in force, in all groups or, where an interrupt comes first, in none."""
        step, lr_factor, momentum = upcoming
        if self._first_rates and step > 0:
            self._first_rates = []  # of no use any more; there may be tensors among them
        if native.compiled is None or not native.compiled.write(groups, step, lr_factor, momentum):
            at_once(_writes(groups, upcoming))

    def rewrite(self, groups: list[Group]) -> None:
        """Put the values of the current step in force (again)."""
        self.write(groups, self.upcoming(groups, ahead=0))

    def is_dry_run(self, groups: list[Group]) -> bool:
        """Whether every rate was set to 0 from outside.

        Distributed checkpointing does so before a ``step()`` that is to create optimizer state and
        move nothing. A rate of 0 that the policy (or a peak of 0) asks for is no such sign.
        """
        if not all_zero(groups):
            return False
        return any(_as_held(group["lr"], rate) != 0 for group, rate in zip(groups, self._rates(groups), strict=True))

    def is_edited(self, groups: list[Group]) -> bool:
        """Whether some rate in force is not the policy's."""
        return any(
            group["lr"] != _as_held(group["lr"], rate) for group, rate in zip(groups, self._rates(groups), strict=True)
        )

    def _rates(self, groups: list[Group]) -> list[float]:
        """The rates in force as far as the policy is asked."""
        _, lr_factor, _ = self.upcoming(groups, ahead=0)
        return [group["max_lr"] * lr_factor for group in groups]

    def report(self, groups: list[Group], metric: float) -> None:
        """Tell the policy a metric; where that changes the values, they are in force at once."""
        step, before = groups[0]["schedule_step"], groups[0].get("policy_state")
        after = self.policy.report(before, metric)
        if not isinstance(after, dict):
            raise TypeError(f"need report() to return the new state, a dict, got {shown(after)} from {self.policy!r}")
        changes = [partial(group.update, policy_state=dict(after)) for group in groups]
        if values_at(self.policy, step, after) != values_at(self.policy, step, before):
            changes += _writes(groups, self._told(groups, step, after))
        at_once(changes)


def _writes(groups: list[Group], upcoming: Upcoming) -> list[partial[Any]]:
    """The calls that put values in force."""
    step, lr_factor, momentum = upcoming
    changes: list[partial[Any]] = []
    for group in groups:
        peak, lr = group["max_lr"], group["lr"]
        if type(peak) is not float:  # plain data, whatever kind of number the user put there
            peak = finite("max_lr", peak, minimum=0)
        values = {"schedule_step": step, "max_lr": peak}
        if type(lr) is float or not isinstance(lr, torch.Tensor):
            values["lr"] = peak * lr_factor
        else:
            changes.append(partial(lr.fill_, peak * lr_factor))
        if momentum is not None:
            values["momentum"] = momentum
        changes.append(partial(group.update, values))
    return changes


def at_once(changes: list[partial[Any]]) -> None:
    """Make all of these calls of C functions, or none as far as an interrupt goes.

    Python looks for signals between its own instructions, and this is a single one. For the same reason no other
    thread sees a part of it, unless a call waits for something, as an operation on tensors may.
    """
    deque(map(partial.__call__, changes), maxlen=0)


def _as_held(lr: Any, rate: float) -> Any:
    """The rate as ``group["lr"]`` can hold it: a tensor rounds."""
    return torch.full((), rate, dtype=lr.dtype, device="cpu").item() if isinstance(lr, torch.Tensor) else rate


def all_zero(groups: list[Group]) -> bool:
    """Whether every rate in force is 0, as far as the host can tell.

    One that lives on a device is not asked, as the host would have to wait, nor one that is no single number:
    whoever is to write into it refuses it.
    """
    for group in groups:
        lr = group["lr"]
        if (type(lr) is not float and isinstance(lr, torch.Tensor) and not _is_one_number(lr)) or lr != 0:
            return False
    return True


def _is_one_number(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.numel() == 1


def highest_held(group: Group) -> float:
    """The largest number that a group's rate, and the dtypes of all of its parameters, can hold."""
    dtypes = {tensor.dtype for tensor in (group["lr"], *group.get("params", ())) if isinstance(tensor, torch.Tensor)}
    floating = (torch.finfo(dtype).max for dtype in dtypes if dtype.is_floating_point or dtype.is_complex)
    return min(floating, default=sys.float_info.max)


def check_tensor_lr(lr: torch.Tensor) -> None:
    """A tensor that a policy is to write rates into must be able to hold them."""
    if lr.numel() != 1 or lr.layout is not torch.strided or lr.device.type == "meta":
        raise ValueError(f"need lr as a number, or a dense tensor with one element, got lr={shown(lr)}")
    if lr.requires_grad:
        raise ValueError("need lr without requires_grad beside a policy, which overwrites it")
    if not lr.is_floating_point():
        raise ValueError(f"need lr as a floating-point tensor beside a policy, got lr={lr!r}")


def encode(policy: Policy) -> str:
    """The policy's description as one string: engines that split checkpoints into leaves keep it whole."""
    return json.dumps(describe(policy))


def warn(message: str) -> None:
    """Warn where the user called, however deep inside torch and this package that was."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "cyclic_optim"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


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
            schedule = Schedule(schedule.policy)  # the one at hand stays as it is, should loading fail
            _start(schedule, groups, previous)
        return schedule
    if not all(scheduled):
        raise ValueError("need schedule_step in every param group of the checkpoint or in none")
    if schedule is not None:
        # What an older dict does not say is as the code says.
        for group, old in zip(groups, previous, strict=True):
            group.setdefault("max_lr", old["max_lr"])
            group.setdefault("policy", encode(schedule.policy))
    _check(groups)
    saved = groups[0]["policy"]
    schedule = schedule or _from_checkpoint(saved)
    if isinstance(saved, str) and saved == encode(schedule.policy):
        _adopt_state(schedule.policy, groups)
        schedule.upcoming(groups, ahead=0)  # for its checks
    else:
        _change_policy(schedule, groups, previous, saved)
    return schedule


def _change_policy(schedule: Schedule, groups: list[Group], previous: list[Group], saved: Any) -> None:
    ours = encode(schedule.policy)
    warn(
        f"the checkpoint was written under the policy {_text(saved)}; going on at step "
        f"{groups[0]['schedule_step']} under the one in the code, {_text(ours)}"
    )
    try:
        _adopt_state(schedule.policy, groups)
    except ValueError:  # the other policy's memory
        _restart_state(schedule.policy, groups)
    for group, old in zip(groups, previous, strict=True):
        group["policy"] = ours
        # Where the old policy left momentum is of no meaning; the new one may leave it alone.
        group["momentum"] = old["momentum"]
    schedule.rewrite(groups)


def _text(saved: str) -> str:
    """A policy from a checkpoint as it would print."""
    name, fields = check_description(_decoded(saved))
    return f"{name}({', '.join(f'{key}={shown(value)}' for key, value in fields.items())})"


def _from_checkpoint(saved: Any) -> Schedule:
    try:
        return Schedule(rebuild(_decoded(saved)))
    except ValueError as error:
        raise ValueError(f"{error}; pass the policy to the optimizer to load this checkpoint") from error


def _decoded(saved: Any) -> Any:
    if not isinstance(saved, str):
        raise ValueError(f"need the policy in a param group to be JSON, got {shown(saved)}")
    try:
        return json.loads(saved)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"need the policy in a param group to be JSON, got {shown(saved)} ({error})") from error


def _start(schedule: Schedule, groups: list[Group], previous: list[Group]) -> None:
    for group, old in zip(groups, previous, strict=True):
        # torch's schedulers leave a max_lr of their own behind, and momentum wherever it was.
        group["max_lr"] = old["max_lr"]
        if "max_momentum" in group:
            group["momentum"] = old["momentum"]
        group.pop("initial_lr", None)  # the sign of a scheduler, which stayed behind
    for i, group in enumerate(groups):
        schedule.enrol(group, groups[:i])


def _check(groups: list[Group]) -> None:
    steps = [group["schedule_step"] for group in groups]
    if any(type(step) is not int or not 0 <= step < _MOST_LOADED_STEPS for step in steps) or len(set(steps)) > 1:
        raise ValueError(f"need one schedule_step, an int >= 0 and < 2**62, in all param groups, got {shown(steps)}")
    for group in groups:
        for key in ("max_lr", "policy"):
            if key not in group:
                raise ValueError(f"need {key} beside schedule_step in a param group of the checkpoint")
        group["max_lr"] = finite("max_lr", group["max_lr"], minimum=0)
    policies = [group["policy"] for group in groups]
    if any(isinstance(policy, str) for policy in policies) and any(
        not isinstance(policy, str) or policy != policies[0] for policy in policies
    ):
        raise ValueError(f"need the same policy in all param groups of the checkpoint, got {shown(policies)}")


def _adopt_state(policy: Policy, groups: list[Group]) -> None:
    states = [group.get("policy_state", policy.initial_state()) for group in groups]
    for state in states:
        policy.check_state(state)
        if state != states[0]:
            raise ValueError(f"need the same policy_state in all param groups, got {shown(states)}")
    for group, state in zip(groups, states, strict=True):
        group.pop("policy_state", None)
        if state is not None:
            group["policy_state"] = dict(state)


def _restart_state(policy: Policy, groups: list[Group]) -> None:
    state = policy.initial_state()
    for group in groups:
        group.pop("policy_state", None)
        if state is not None:
            group["policy_state"] = dict(state)
