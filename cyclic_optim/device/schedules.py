"""Schedules whose values are tensors on the device: a step that never synchronizes with the host.

The param groups show views of the clock's tensors. Rules of schedules stay where they are (:mod:`..schedule`): they
see param groups of plain numbers, made from the tensors and written back into them. That synchronizes with the
device, and happens when a checkpoint is made or loaded, a metric reported, a group added or rescheduled; never in a
step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import BY_HAND, fill
from ..groups import check_groups
from ..host.schedules import gradients_are_zero, is_zero, warn_of_scheduler
from ..native import ABSENT, holds
from ..policies import Policy
from ..policies.asked import values_at
from ..rules import finite
from ..schedule import (
    Changes,
    Known,
    at_once,
    check_clock_is_there,
    check_step,
    merged,
    plan,
    policy_values,
    reported,
    undoing,
    values_of,
    writing,
)
from ..schedules import Closure, Schedules
from ..slots import Group, Slot
from ..torch_private import set_grad_enabled
from .capture import is_capturing, refuse_in_capture
from .clock import DeviceClock, Stand
from .update import BaseUpdate, is_object

_LARGEST = torch.finfo(torch.float32).max


class DeviceSchedules:
    """See :class:`..schedules.Schedules`."""

    is_traced = True

    def __init__(self, optimizer: Any, horizon: int | None) -> None:
        groups = optimizer.param_groups
        params = [param for group in groups for param in group["params"]]
        self.clock = DeviceClock(params[0].device if params else torch.device("cpu"), horizon)
        self.update: BaseUpdate = optimizer._device_update()
        self._slot: Slot | None = optimizer._slot
        self._known: Known = optimizer._known
        # Numbers as they were given, before float32 rounded them; None where a tensor was.
        self._given: list[Group] = []
        self._keys: tuple[str, ...] = ()
        self._columns: tuple[list[Any], ...] = ()  # what the groups show: other objects there are edits
        self._warned_of_scheduler = False
        self.with_momentum: tuple[bool, ...] = ()
        for group in groups:
            self.update.check(group, self.clock.device)
            self.clock.join()
            self._given.append({})
        self._put(groups, [dict(group) for group in groups], range(len(groups)))
        for i, group in enumerate(groups):
            self.update.create(self, i, group, optimizer.state)

    # -- tensors and numbers ------------------------------------------------------------------------------------------

    def _own(self, i: int) -> dict[str, Tensor]:
        """The tensors that group i shows, by key; momentum by that name, wherever it lives."""
        clock = self.clock
        own = {"lr": clock.lr[i]}
        if clock.parts[i].policy is not None:
            own |= {"max_lr": clock.max_lr[i], "schedule_step": clock.steps[i]}
        if self._slot is not None and self.update.shows_momentum(clock.parts[i]):
            own["momentum"] = clock.momentum[i]
        return own

    def _read(self, group: Group, key: str) -> Any:
        return self._slot.read(group) if key == "momentum" and self._slot is not None else group[key]

    def has_momentum(self, i: int) -> bool:
        """Whether group i ever has a momentum other than 0."""
        return self.with_momentum[i]

    def _show(self, groups: list[Group]) -> None:
        """Let all groups show their tensors, and remember what they show."""
        self.with_momentum = tuple(
            part.cycles_momentum or given.get("momentum", 0) != 0
            for part, given in zip(self.clock.parts, self._given, strict=True)
        )
        for i, group in enumerate(groups):
            for key, own in self._own(i).items():
                if key != "momentum":
                    group[key] = own
                else:
                    self._show_momentum(i, group, own)
        self._keys = ("policy", "lr", "max_lr", "schedule_step", *([self._slot.key] if self._slot is not None else []))
        self._columns = tuple([group.get(key, ABSENT) for group in groups] for key in self._keys)

    def _show_momentum(self, i: int, group: Group, own: Tensor) -> None:
        assert self._slot is not None
        if self._is_stored_by_others(i, group):
            self._given[i]["stored"] = group[self._slot.key]  # for what stands beside the momentum there
        group[self._slot.key] = self.update.stored_momentum(self._slot, i, group, own)

    def _is_stored_by_others(self, i: int, group: Group) -> bool:
        """Whether what holds the momentum is not what was shown last."""
        assert self._slot is not None
        key = self._slot.key
        column = dict(zip(self._keys, self._columns, strict=True)).get(key, [])
        return i >= len(column) or not is_object(group[key], column[i])

    def _put(self, groups: list[Group], plain: list[Group], indices: Iterable[int], restarts: bool = True) -> None:
        """Go on from plain numbers in these groups, and in those that were edited, in the tensors that there are."""
        self.clock.follow_edits()
        indices = [*dict.fromkeys([*indices, *self._edited(groups)])]
        resolved = self._known.resolved(plain)
        stands = [self._stand(group, restarts and i in indices) for i, group in enumerate(resolved)]
        for i in indices:
            self.update.check(plain[i], self.clock.device)
        parts = self.clock.parts_for(stands)
        for i in indices:
            self.update.check_part(plain[i], parts[i])
            self._check_held(plain[i], parts[i].highest_factor)
        self.clock.fill(parts, [stand.step for stand in stands])
        for i in indices:
            self._put_one(i, groups[i], plain[i])
        self.clock.settle()
        self._show(groups)

    def _stand(self, group: Group, restarts: bool) -> Stand:
        """Where a resolved group stands."""
        if group.get("policy") is None:
            return Stand()
        return Stand(group["policy"], group.get("policy_state"), int(group["schedule_step"]), restarts)

    def _check_held(self, group: Group, highest_factor: float) -> None:
        momentum = self._slot.read(group) if self._slot is not None else 0.0
        highest = max(group.get("max_lr", 0.0) * highest_factor, group["lr"], momentum)
        if highest > _LARGEST:
            raise ValueError(f"need rates and momenta that float32 can hold with capturable=True, got up to {highest}")

    def _put_one(self, i: int, group: Group, plain: Group) -> None:
        for key in ("policy", "policy_state"):
            group.pop(key, None)
            if key in plain:
                group[key] = plain[key]
        if self._slot is not None:
            group[self._slot.key] = plain[self._slot.key]
        for key, own in self._own(i).items():
            value = self._read(plain, key)
            own.fill_(value.reshape(()) if isinstance(value, Tensor) else value)
            self._given[i][key] = None if isinstance(value, Tensor) else value

    def plain(self, groups: list[Group]) -> list[Group]:
        if not groups:
            return []
        clock, n = self.clock, len(groups)
        steps = clock.step[:n].tolist()
        held = torch.cat([clock.values[:n].double(), clock.scale[:n, :1], clock.seen[:n, :1]], dim=1).tolist()
        return [self._plain(i, group, steps[i], *held[i]) for i, group in enumerate(groups[: len(clock.parts)])]

    def _plain(self, i: int, group: Group, step: int, lr: float, momentum: float, peak: float, seen: float) -> Group:
        """A group in numbers: in full precision where float32 holds what the policy or the user said."""
        made, part, given = dict(group), self.clock.parts[i], self._given[i]
        assigned, (resolved,) = dict(self._assigned(i, group)), self._known.resolved([group])
        self._check_other(i, resolved)
        factor, cycled = (0.0, None) if part.policy is None else values_at(part.policy, part.held(step), part.state)
        if self._slot is not None and self.update.shows_momentum(part):
            momentum = float(assigned.get("momentum", unrounded(momentum, cycled, given["momentum"])))
            made[self._slot.key] = self._stored(i, group, momentum)
        if part.policy is None or resolved["policy"] is None:
            made["lr"] = float(assigned.get("lr", unrounded(lr, given["lr"], peak * factor)))
            return merged(made, policy_values(None))
        peak = float(assigned.get("max_lr", peak))
        follows = "lr" not in assigned and lr == rounded(seen * factor)  # nobody edited the rate
        lr = peak * factor if follows else float(assigned.get("lr", unrounded(lr, given["lr"])))
        made.update(lr=lr, max_lr=peak, schedule_step=int(assigned.get("schedule_step", step)))
        if "schedule_step" in assigned or resolved["policy"] is not part.policy:
            return self._moved(made, resolved["policy"], part.policy, assigned)
        # A table that has ended is begun anew on loading.
        return made if follows and part.held(step) == step else {**made, BY_HAND: True}

    def _moved(self, group: Group, policy: Policy, before: Policy, assigned: Group) -> Group:
        """What a group of numbers becomes with another clock or policy; a rate and a momentum assigned to it stay."""
        other = {"policy": policy} if policy is before else policy_values(policy)
        after = merged(group, other)
        values = values_of(plan(after, after["schedule_step"], self._slot), after, self._slot)
        if "momentum" in assigned and self._slot is not None:
            values.pop(self._slot.key, None)
        if "lr" in assigned:
            values.update({"lr": group["lr"], BY_HAND: True})
        return self._known.stored({**after, **values})

    def _stored(self, i: int, group: Group, momentum: float) -> Any:
        """What group i stores for this momentum, in numbers."""
        assert self._slot is not None
        key = self._slot.key
        found = group[key] if self._is_stored_by_others(i, group) else self._given[i]["stored"]
        return _numbers(self._slot.stored({key: found}, momentum))

    # -- edits --------------------------------------------------------------------------------------------------------

    def _check_other(self, i: int, resolved: Group) -> None:
        """Refuse a policy that was assigned to a group without a schedule."""
        if resolved["policy"] is not None and self.clock.parts[i].policy is None:
            check_clock_is_there(resolved)

    def _assigned(self, i: int, group: Group) -> list[tuple[str, Any]]:
        """What was assigned to a group in place of its tensors."""
        shown = ((key, own, self._read(group, key)) for key, own in self._own(i).items())
        return [(key, value) for key, own, value in shown if value is not own]

    def _edited(self, groups: list[Group]) -> list[int]:
        """The groups to which something was assigned since the last step."""
        pairs = zip(self._known.resolved(groups), self.clock.parts, strict=False)
        other = [i for i, (group, part) in enumerate(pairs) if group["policy"] is not part.policy]
        return [*other, *(i for i, group in enumerate(groups[: len(self.clock.parts)]) if self._assigned(i, group))]

    def _take_edits(self, groups: list[Group]) -> None:
        """Write what was assigned since the last step into the tensors."""
        edits = [(i, key, value) for i, group in enumerate(groups) for key, value in self._assigned(i, group)]
        resolved = self._known.resolved(groups)
        others = {
            i: policy_values(group["policy"])
            for i, group in enumerate(resolved)
            if group["policy"] is not self.clock.parts[i].policy
        }
        if not edits and not others:
            self._show(groups)
            return
        refuse_in_capture("lr, momentum, max_lr, schedule_step or policy was assigned to since the last step")
        for _, key, value in edits:
            _check_edit(key, value)
        # Copies, as one group may have been given the very tensor of another that is written to, too.
        values = [value.detach().clone() if isinstance(value, Tensor) else value for _, _, value in edits]
        steps = {
            i: check_step(int(value))
            for (i, key, _), value in zip(edits, values, strict=True)
            if key == "schedule_step"
        }
        if moved := others.keys() | steps.keys():
            for i, changed in others.items():
                self._check_other(i, resolved[i])
                resolved[i] = merged(resolved[i], changed)
            self._move(resolved, moved, steps)  # the only one that can fail comes first
        for (i, key, _), value in zip(edits, values, strict=True):
            if key in self._own(i):  # a clock goes with its policy
                self._fill(i, key, value)
        for i, changed in others.items():
            at_once(writing(groups[i], self._known.stored(changed)))
        self._show(groups)

    def _move(self, groups: list[Group], moved: Collection[int], steps: dict[int, int]) -> None:
        """Follow edited clocks and policies of these resolved groups."""
        self.clock.follow_edits()  # of the other groups, which are settled below
        now = self.clock.step[: len(groups)].tolist()
        plain = []
        for i, group in enumerate(groups):
            after = {**group, "max_lr": self.clock.max_lr[i].item(), "lr": 0.0, "schedule_step": steps.get(i, now[i])}
            plain.append(after)
        stands = [self._stand(group, i in moved) for i, group in enumerate(plain)]
        parts = self.clock.parts_for(stands)
        plans = {i: plan(plain[i], stands[i].step, self._slot) for i in moved if stands[i].policy is not None}
        for i in plans:
            self.update.check_part(groups[i], parts[i])
        self.clock.fill(parts, [stand.step for stand in stands])
        for i, planned in plans.items():
            self._fill(i, "lr", planned.lr)
            if planned.momentum is not None and self.update.shows_momentum(parts[i]):
                self._fill(i, "momentum", planned.momentum)
        self.clock.settle()

    def _fill(self, i: int, key: str, value: Any) -> None:
        own = self._own(i)[key]
        if isinstance(value, Tensor):
            own.copy_(value.reshape(()))
        else:
            own.fill_(value)
        self._given[i][key] = None if isinstance(value, Tensor) else value

    # -- the step -----------------------------------------------------------------------------------------------------

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        enabled = torch.is_grad_enabled()
        try:
            set_grad_enabled(False)
            return self._step(optimizer, closure, holds)
        finally:
            set_grad_enabled(enabled)

    def compiled_step(self, optimizer: Any, closure: Closure | None) -> Any:
        with torch.no_grad():
            return self._step(optimizer, closure, _holds_traced)

    def _step(self, optimizer: Any, closure: Closure | None, holds: Callable[..., bool]) -> Any:
        groups, own = optimizer.param_groups, optimizer.__dict__
        if "step" in own and not torch.compiler.is_compiling():
            self._warned_of_scheduler = self._warned_of_scheduler or warn_of_scheduler(optimizer, False)
        if not holds(groups, self._keys, self._columns):
            check_groups(groups)
            if self._is_dry_run(optimizer):
                optimizer._create_state()
                self._show(groups)
                return None
            self._take_edits(groups)
        if torch.compiler.is_compiling() or is_capturing() or self.clock.is_edited_in_place():
            self.clock.follow_edits()
        found_inf = own.get("found_inf")
        loss = self.update.apply(self, optimizer, closure, own.get("grad_scale"), found_inf)
        self.clock.tick(found_inf)
        return loss

    def _is_dry_run(self, optimizer: Any) -> bool:
        """See the host's; a rate set to 0 inside its tensor is a rate like others, and is not read."""
        groups = optimizer.param_groups
        for i, group in enumerate(groups):
            if i >= len(self._given) or group["lr"] is self.clock.lr[i] or not is_zero(group["lr"]):
                return False
        return not any(optimizer.state.values()) and gradients_are_zero(groups)

    # -- between steps ------------------------------------------------------------------------------------------------

    def for_groups(self, optimizer: Any, groups: list[Group]) -> Schedules:
        for group in groups:
            group.setdefault("policy", None)
        return self

    def join(self, optimizer: Any) -> None:
        groups = optimizer.param_groups
        i, group = len(groups) - 1, groups[-1]
        self.update.check(group, self.clock.device)
        undo = self.remember()
        try:
            plain = [*self.plain(groups[:-1]), dict(group)]
            self.clock.join()
            self._given.append({})
            self._put(groups, plain, [i])
            self.update.create(self, i, group, optimizer.state)
        except BaseException:
            undo()
            self._show(groups[:-1])
            for param in group["params"]:
                optimizer.state.pop(param, None)
            raise

    def report(self, optimizer: Any, metric: float) -> None:
        groups = optimizer.param_groups
        check_groups(groups)
        plain = self._known.resolved(self.plain(groups))
        new = reported(plain, metric)
        for i, state in new.items():
            group = plain[i]
            before = values_at(group["policy"], group["schedule_step"], group.get("policy_state"))
            group["policy_state"] = dict(state)
            if values_at(group["policy"], group["schedule_step"], state) != before:
                group.update(values_of(plan(group, group["schedule_step"], self._slot), group, self._slot))
        self._replace(groups, plain, new)

    def reschedule(self, optimizer: Any, changes: Changes) -> None:
        groups = optimizer.param_groups
        plain = self._known.resolved(self.plain(groups))
        for i, values in changes.values(plain, self._slot).items():
            plain[i] = merged(plain[i], values)
        self._replace(groups, plain, changes.indices, restarts=True)

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
        return state_dict

    def for_loading(self, groups: list[Group]) -> list[Group]:
        check_groups(groups)
        return self.plain(groups)

    def remember(self) -> Callable[[], None]:
        clock, ours = dict(vars(self.clock)), dict(vars(self))
        given = [dict(numbers) for numbers in self._given]
        parts = list(self.clock.parts)
        tensors = [*self.clock.tensors, *self.update.tensors]
        values = [tensor.clone() for tensor in tensors]

        def undo() -> None:
            vars(self).update(ours, _given=given)
            vars(self.clock).update(clock, parts=parts)
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
            self.clock.settled()

        return undo

    def fill(self, groups: list[Group], previous: list[Group], keys: Iterable[str]) -> None:
        fill(groups, previous, keys)

    def adopted(self, groups: list[Group], by_hand: set[int]) -> None:
        """Nothing: loaded numbers go into tensors when nothing else can fail."""

    def loaded(self, optimizer: Any, previous: Any) -> None:
        groups = optimizer.param_groups
        self._put(groups, [dict(group) for group in groups], range(len(groups)))
        self.update.load(self, groups, optimizer.state, previous)

    def unpickled(self, optimizer: Any) -> None:
        self.update.claim_scaling(optimizer)  # torch forgets it on unpickling
        groups, before = optimizer.param_groups, self._columns
        edits = [
            (k, i, group[key])
            for k, key in enumerate(self._keys)
            for i, group in enumerate(groups)
            if key in group and not _is_same(group[key], before[k][i])
        ]
        self._show(groups)
        for k, i, value in edits:
            groups[i][self._keys[k]] = value
            if value is self._columns[k][i]:  # a policy: no tensor was shown in its place
                self._columns[k][i] = before[k][i]


def _holds_traced(groups: list[Group], keys: tuple[str, ...], columns: tuple[list[Any], ...]) -> bool:
    """``holds`` for torch.compile."""
    for i, group in enumerate(groups):
        for key, column in zip(keys, columns, strict=True):
            if column[i] is not ABSENT and not is_object(group[key], column[i]):
                return False
    return True


def _is_same(one: Any, other: Any) -> bool:
    """Whether pickling made two objects of one."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return type(one) is type(other) and torch.equal(one, other)
    return bool(one is other or one == other)


def _check_edit(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"need {name} to be a number or a tensor of one, got {name}={value!r}")
    elif name == "schedule_step":
        check_step(value)
    elif finite(name, value, minimum=0) > _LARGEST:
        raise ValueError(f"need {name} to be a number that float32 can hold, got {name}={value!r}")


def _numbers(stored: Any) -> Any:
    """Betas without tensors."""
    if not isinstance(stored, tuple):
        return stored
    return tuple(value.item() if isinstance(value, Tensor) else value for value in stored)


def rounded(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32, device="cpu").item()


def unrounded(held: float, *candidates: float | None) -> float:
    """The float64 original of a float32 value: the first candidate that rounds to it; ``held`` itself if none does."""
    return next((number for number in candidates if number is not None and rounded(number) == held), held)
