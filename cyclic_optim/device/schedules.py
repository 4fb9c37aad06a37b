"""Schedules whose values are tensors on the device: a step that never synchronizes with the host.

The param groups show views of the clock's tensors. The rules of schedules (:mod:`..schedule`) see param groups of plain
numbers, made from the tensors and written back into them. That synchronizes with the device. It happens when a
checkpoint is made or loaded, a metric reported, or a group added or rescheduled; never in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from ..checkpoint import fill
from ..grad_mode import with_grad
from ..groups import MARKS, SCHEDULE_KEYS, add_policy_key, check_schedule_keys, check_schedules
from ..host.schedules import gradients_are_zero, is_zero, warn_of_scheduler
from ..native import ABSENT, holds
from ..policies import Policy, Values
from ..policies.asked import values_at
from ..schedule import (
    Changes,
    Known,
    at_once,
    merged,
    own_decay,
    plan,
    policy_values,
    reported,
    undoing,
    values_of,
    warn_of_end,
    writing,
)
from ..schedules import Closure, Schedules
from ..slots import OWN_DECAY, Group, Slots, check_decay
from .capture import is_capturing, refuse_in_capture
from .clock import DeviceClock, Held, Part, Position
from .shown import LARGEST, Shown, checked_edit, holds_traced, rounded, rounded_momentum, unrounded
from .update import BaseUpdate


class DeviceSchedules:
    """See :class:`..schedules.Schedules`."""

    is_traced = True

    def __init__(self, optimizer: Any, horizon: int | None) -> None:
        groups = optimizer.param_groups
        params = [param for group in groups for param in group["params"]]
        self.clock = DeviceClock(params[0].device if params else torch.device("cpu"), horizon)
        self.update: BaseUpdate = optimizer._device_update()
        self._slots: Slots = optimizer._slots
        self._slot = self._slots.momentum
        self._known: Known = optimizer._known
        self.shown = Shown(self.clock, self.update, self._slot)
        self._warned_of_scheduler = self._warned_of_end = False
        add_policy_key(groups)  # which none has where all opt out of the optimizer's policy
        for group in groups:
            self.update.check(group, self.clock.device)
            self._make_room()
        self._put(groups, [dict(group) for group in groups], range(len(groups)))
        for i, group in enumerate(groups):
            self.update.create(self, i, group, optimizer.state)

    def _make_room(self) -> None:
        """Make room for one more group."""
        self.clock.join()
        self.shown.given.append({})

    # -- from numbers to tensors --------------------------------------------------------------------------------------

    def _put(self, groups: list[Group], plain: list[Group], indices: Iterable[int], restarts: bool = True) -> None:
        """Write plain numbers into the tensors of these groups and of edited ones, and let all groups show theirs."""
        self.clock.follow_edits()
        indices = [*indices]
        indices += self._edited(groups, indices)
        resolved = self._known.resolved(plain)
        positions = [_position(group, restarts and i in indices) for i, group in enumerate(resolved)]
        for i in indices:
            self.update.check(plain[i], self.clock.device)
        parts = self.clock.parts_for(positions)
        for i in indices:
            self.update.check_part(plain[i], parts[i])
            if parts[i].highest_decay_factor is not None:
                check_decay(self._slots.weight_decay, parts[i].highest_decay_factor, parts[i].policy)
                plain[i].setdefault(OWN_DECAY, own_decay(plain[i]))
            self._check_float32(plain[i], parts[i])
        self.clock.fill(parts, [position.step for position in positions])
        for i in indices:
            self._copy_plain(groups[i], plain[i])
            self.shown.write_all(i, plain[i])
        self.clock.refresh()
        self.shown.show(groups)

    def _check_float32(self, group: Group, part: Part) -> None:
        momentum = self._slot.read(group) if self._slot is not None else 0.0
        highest = max(group.get("max_lr", 0.0) * part.highest_factor, group["lr"], momentum)
        if part.highest_decay_factor is not None:
            highest = max(highest, group[OWN_DECAY] * part.highest_decay_factor, group["weight_decay"])
        if highest > LARGEST:
            raise ValueError(
                f"need rates, momenta and weight decays that float32 can hold with capturable=True, got up to {highest}"
            )

    def _copy_plain(self, group: Group, plain: Group) -> None:
        """Copy what stays plain data: the policy and its state, betas beside the momentum, an unmoved weight decay."""
        at_once(writing(group, {key: plain.get(key, ABSENT) for key in SCHEDULE_KEYS}))
        for slot in self._slots.present:
            group[slot.key] = plain[slot.key]

    # -- from tensors to numbers --------------------------------------------------------------------------------------

    def plain(self, groups: list[Group]) -> list[Group]:
        if not groups:
            return []
        return [self._plain(i, *pair) for i, pair in enumerate(zip(groups, self.clock.held(), strict=False))]

    def each_plain(self, groups: list[Group]) -> Iterator[Group]:
        return iter(self.plain(groups))  # one synchronization for all of them

    def _plain(self, i: int, group: Group, held: Held) -> Group:
        """A group in numbers: the float64 originals of the policy and the user, where float32 has them rounded."""
        check_schedule_keys(group)
        part, given = self.clock.parts[i], self.shown.given[i]
        assigned = {key: value for _, key, value in self.shown.assigned(i, group) if not _is_held(held, key, value)}
        (resolved,) = self._known.resolved([group])
        lr_factor = cycled = decay_factor = None
        if part.policy is not None:
            lr_factor, cycled, decay_factor = values_at(part.policy, part.row_step(held.step), part.state)
        plain = dict(group)
        if self._slot is not None and self.shown.shows_momentum(i):
            original = unrounded(held.momentum, cycled, given["momentum"], rounded=rounded_momentum)
            momentum = float(assigned.get("momentum", original))
            plain[self._slot.key] = self.shown.stored_number(i, group, momentum)
        if self.shown.moves_decay(i):
            plain["weight_decay"] = float(
                assigned.get("weight_decay", unrounded(held.weight_decay, given["weight_decay"]))
            )
            plain[OWN_DECAY] = float(assigned.get(OWN_DECAY, held.own_decay))
        if lr_factor is None or resolved["policy"] is None:
            scheduled = None if lr_factor is None else held.peak * lr_factor
            plain["lr"] = float(assigned.get("lr", unrounded(held.lr, given["lr"], scheduled)))
            return merged(plain, policy_values(None, plain))
        plain["lr"] = float(assigned.get("lr", unrounded(held.lr, given["lr"])))
        due = Values(lr_factor, cycled, decay_factor)
        return self._with_schedule(plain, i, resolved["policy"], held, assigned, due)

    def _with_schedule(self, plain: Group, i: int, policy: Policy, held: Held, assigned: Group, due: Values) -> Group:
        """Complete a group that has a policy: its clock, its peak, and the rate that follows from it unless edited."""
        part = self.clock.parts[i]
        plain["max_lr"] = float(assigned.get("max_lr", held.peak))
        plain["schedule_step"] = int(assigned.get("schedule_step", held.step))
        follows = "lr" not in assigned and held.lr == rounded(held.peak_of_lr * due.lr_factor)
        if follows:
            plain["lr"] = plain["max_lr"] * due.lr_factor
        decay_follows = self._decay_follows(held, assigned, due.weight_decay_factor)
        if decay_follows and due.weight_decay_factor is not None:
            plain["weight_decay"] = plain[OWN_DECAY] * due.weight_decay_factor
        has_new_policy = self._has_new_policy(i, plain)
        if "schedule_step" in assigned or has_new_policy:
            return self._moved(plain, policy, has_new_policy, assigned)
        # Loading tabulates anew past the horizon.
        has_ended = part.is_window and part.row_step(held.step) != held.step
        if not follows or has_ended:
            plain[MARKS["lr"]] = True
        if due.momentum is not None and (has_ended or not self._has_momentum(plain, due.momentum)):
            plain[MARKS["momentum"]] = True
        if due.weight_decay_factor is not None and (has_ended or not decay_follows):
            plain[MARKS["weight_decay"]] = True
        return plain

    def _decay_follows(self, held: Held, assigned: Group, factor: float | None) -> bool:
        """Whether a weight decay is the policy's, if the policy has one at this step."""
        if factor is None:
            return True
        return "weight_decay" not in assigned and held.weight_decay == rounded(held.own_of_decay * factor)

    def _has_momentum(self, group: Group, momentum: float) -> bool:
        """Whether a group of numbers has this momentum, as far as float32 tells."""
        return self._slot is None or rounded_momentum(self._slot.read(group)) == rounded_momentum(momentum)

    def _moved(self, group: Group, policy: Policy, is_new: bool, assigned: Group) -> Group:
        """What a group of numbers becomes with another clock or policy; a rate and a momentum assigned to it stay."""
        after = merged(group, policy_values(policy, group) if is_new else {"policy": policy})
        values = values_of(plan(after, after["schedule_step"], self._slots), after, self._slots)
        values = {**after, **values}
        for name, key in self._slots.keys.items():
            if name in assigned and group[key] != values[key]:
                values.update({key: group[key], MARKS[name]: True})
        return self._known.stored(values)

    # -- edits --------------------------------------------------------------------------------------------------------

    def _edited(self, groups: list[Group], besides: Collection[int]) -> list[int]:
        """The other groups to which something was assigned since the last step."""
        rest = [i for i in range(len(self.clock.parts)) if i not in besides]
        return [i for i in rest if self._has_new_policy(i, groups[i]) or self.shown.assigned(i, groups[i])]

    def _has_new_policy(self, i: int, group: Group) -> bool:
        """Whether a policy was assigned to a group, be it an equal one."""
        named = group["policy"]
        return isinstance(named, Policy) or self._known.policy(named) is not self.clock.parts[i].policy

    def _take_edits(self, groups: list[Group]) -> None:
        """Write what was assigned since the last step into the tensors."""
        edits = [edit for i, group in enumerate(groups) for edit in self.shown.assigned(i, group)]
        moved = {i for i, key, _ in edits if key == "schedule_step"}
        moved.update(i for i, group in enumerate(groups) if self._has_new_policy(i, group))
        if edits or moved:
            refuse_in_capture(
                "lr, momentum, weight decay, max_lr, schedule_step or policy was assigned to since the last step"
            )
            edits = [checked_edit(*edit) for edit in edits]
        if moved:
            self._replace(groups, self._known.resolved(self.plain(groups)), sorted(moved), restarts=True)
        else:
            for edit in edits:
                self.shown.write(*edit)
            self.shown.show(groups)

    # -- the step -----------------------------------------------------------------------------------------------------

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        return with_grad(False, lambda: self._update_and_tick(optimizer, closure, holds))

    def compiled_step(self, optimizer: Any, closure: Closure | None) -> Any:
        with torch.no_grad():
            return self._update_and_tick(optimizer, closure, holds_traced)

    def _update_and_tick(self, optimizer: Any, closure: Closure | None, holds: Callable[..., bool]) -> Any:
        groups, attributes = optimizer.param_groups, optimizer.__dict__
        if "step" in attributes and not torch.compiler.is_compiling():
            self._warned_of_scheduler = self._warned_of_scheduler or warn_of_scheduler(optimizer, False)
        if not holds(groups, *self.shown.compared):
            check_schedules(groups)
            if self._is_dry_run(optimizer):
                optimizer._create_state()
                self.shown.show(groups)
                return None
            self._take_edits(groups)
        if torch.compiler.is_compiling() or is_capturing() or self.clock.is_edited_in_place():
            self.clock.follow_edits()
        found_inf = attributes.get("found_inf")
        loss = self.update.apply(self, optimizer, closure, attributes.get("grad_scale"), found_inf)
        self.clock.tick(found_inf)
        return loss

    def _is_dry_run(self, optimizer: Any) -> bool:
        """As on the host; but a rate set to 0 inside its tensor is not read, and is a rate like others."""
        groups = optimizer.param_groups
        for i, group in enumerate(groups):
            if i >= len(self.shown.given) or group["lr"] is self.clock.lr[i] or not is_zero(group["lr"]):
                return False
        return not any(optimizer.state.values()) and gradients_are_zero(groups)

    # -- between steps ------------------------------------------------------------------------------------------------

    def for_groups(self, optimizer: Any, groups: list[Group]) -> Schedules:
        return self

    def join(self, optimizer: Any) -> None:
        groups = optimizer.param_groups
        i, group = len(groups) - 1, groups[-1]
        self.update.check(group, self.clock.device)
        undo = [undoing(groups[:-1]), self.remember()]
        try:
            plain = [*self.plain(groups[:-1]), dict(group)]
            self._make_room()
            self._put(groups, plain, [i])
            self.update.create(self, i, group, optimizer.state)
        except BaseException:
            for put_back in undo:
                put_back()
            for param in group["params"]:
                optimizer.state.pop(param, None)
            raise

    def report(self, optimizer: Any, metric: float) -> None:
        groups = optimizer.param_groups
        check_schedules(groups)
        plain = self._known.resolved(self.plain(groups))
        new = reported(plain, metric)
        for i, state in new.items():
            group = plain[i]
            before = values_at(group["policy"], group["schedule_step"], group.get("policy_state"))
            group["policy_state"] = dict(state)
            if values_at(group["policy"], group["schedule_step"], state) != before:
                group.update(values_of(plan(group, group["schedule_step"], self._slots), group, self._slots))
        self._replace(groups, plain, new)

    def reschedule(self, optimizer: Any, changes: Changes) -> None:
        groups = optimizer.param_groups
        check_schedules(groups)
        plain = self._known.resolved(self.plain(groups))
        for i, values in changes.values(plain, self._slots).items():
            plain[i] = merged(plain[i], values)
        self._replace(groups, plain, changes.indices, restarts=True)
        self._warned_of_end = False

    def _replace(self, groups: list[Group], plain: list[Group], indices: Iterable[int], restarts: bool = False) -> None:
        """Write plain numbers into these groups, or nothing where that fails."""
        undo = [undoing(groups), self.remember()]
        plain = list(map(self._known.stored, plain))
        try:
            self._put(groups, plain, indices, restarts)
        except BaseException:
            for put_back in undo:
                put_back()
            raise

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        self.update.saved(state_dict["state"])
        self._watch_for_end(state_dict["param_groups"])
        return state_dict

    def _watch_for_end(self, groups: list[Group]) -> None:
        """As on the host, of the last step that was made: no step knows where it is without a synchronization."""
        for group in self._known.resolved(groups):
            if group["policy"] is not None and MARKS["lr"] not in group and not self._warned_of_end:
                step = group["schedule_step"]
                lr_factor = values_at(group["policy"], step, group.get("policy_state")).lr_factor
                self._warned_of_end = warn_of_end(group["policy"], step - 1, lr_factor)

    def for_loading(self, groups: list[Group]) -> list[Group]:
        check_schedules(groups)
        return self.plain(groups)

    def remember(self) -> Callable[[], None]:
        attributes = [(vars(one), dict(vars(one))) for one in (self, self.clock, self.shown)]
        parts, given = list(self.clock.parts), [dict(numbers) for numbers in self.shown.given]
        tensors = [(tensor, tensor.clone()) for tensor in (*self.clock.tensors, *self.update.tensors)]

        def undo() -> None:
            for now, before in attributes:
                now.update(before)
            self.clock.parts, self.shown.given = parts, given
            for tensor, value in tensors:
                tensor.copy_(value)
            self.clock.expect_no_edit()

        return undo

    def fill(self, groups: list[Group], previous: list[Group], keys: Iterable[str]) -> None:
        fill(groups, previous, keys)

    def adopted(self, groups: list[Group], by_hand: dict[int, set[str]]) -> None:
        """Loaded numbers are written into tensors later, when nothing else can fail."""
        add_policy_key(groups)

    def loaded(self, optimizer: Any, previous: Any) -> None:
        groups = optimizer.param_groups
        self._put(groups, [dict(group) for group in groups], range(len(groups)))
        self.update.load(self, groups, optimizer.state, previous)

    def unpickled(self, optimizer: Any) -> None:
        self.update.claim_scaling(optimizer)  # torch forgets it on unpickling
        self.shown.show_again(optimizer.param_groups)


def _is_held(held: Held, key: str, value: Any) -> bool:
    """Whether an assigned value is what the tensors hold: the same value put back is no edit."""
    as_held = rounded_momentum if key == "momentum" else rounded
    return key in ("lr", "momentum", "weight_decay") and as_held(float(value)) == getattr(held, key)


def _position(group: Group, restarts: bool) -> Position:
    """Where a resolved group is."""
    if group.get("policy") is None:
        return Position()
    return Position(group["policy"], group.get("policy_state"), int(group["schedule_step"]), restarts)
