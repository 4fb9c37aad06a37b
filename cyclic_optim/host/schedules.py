"""Schedules whose values are numbers in the param groups: planned and checked before an update, written after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import native
from ..grad_mode import with_grad
from ..groups import HELD_BY_ALL, MARKS, add_policy_key, check_rate, check_schedule_keys, check_schedules
from ..native import ABSENT
from ..policies.asked import values_at
from ..schedule import (
    NEXT_TO_NOTHING,
    TENSOR_KEYS,
    Changes,
    Known,
    Plan,
    as_held,
    at_once,
    check_own_decay,
    check_step,
    decay,
    decay_put_back,
    merged,
    own_decay,
    plan,
    policy_values,
    rate,
    reported,
    stored_as,
    values_of,
    warn,
    warn_of_end,
    with_own_tensors,
    writing,
)
from ..slots import OWN_DECAY, Group, Slot, Slots, check_decay, check_momentum
from ..torch_private import uncompiled, wrapped_by_scheduler
from .written import Lane, Written, item_of

if TYPE_CHECKING:
    from ..schedules import Closure, Schedules

_BOTH_WRITE = (
    "an LR scheduler is attached to an optimizer that has a policy: both write lr, and the last to do so before a "
    "step wins. Remove the scheduler, or the policy."
)

_CLOCK_AND_RATE: tuple[str, ...] = ("schedule_step", "lr")

#: The next step's values, in lists or one for all groups: steps, rates, momenta and weight decays (None: they all
#: stay), and calls that fill tensors.
Upcoming = tuple[Any, list[Any], Any, "list[Any] | None", "Sequence[partial[Any]]"]


class HostSchedules:
    """See :class:`..schedules.Schedules`."""

    is_traced = False

    def __init__(self, slots: Slots, known: Known) -> None:
        self._slots, self._known = slots, known
        self._slot = slots.momentum
        self._keys = _CLOCK_AND_RATE if slots.momentum is None else (*_CLOCK_AND_RATE, slots.momentum.key)
        self._written = Written([], [], slots)
        self._warned_of_scheduler = self._warned_of_end = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_written": self._written.as_data()}

    # -- the step -----------------------------------------------------------------------------------------------

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        groups, own, written = optimizer.param_groups, optimizer.__dict__, self._written
        part = native.compiled or native
        if "step" in own or not part.holds(groups, written.keys, written.columns):
            check_schedules(groups)
            if self._is_dry_run(optimizer):
                return self._dry_run(optimizer)
            self._take_edits(optimizer)
        found_inf = own.get("found_inf")  # GradScaler sets it where the step does its own unscaling
        if found_inf is not None and found_inf.item() != 0:
            return None if closure is None else with_grad(True, closure)
        columns = self._written.columns
        upcoming = self._plan_next(groups)  # before the update: if a policy has no valid answer, nothing has moved
        loss = optimizer._apply(closure)
        while self._written.columns is not columns:  # the closure stepped or rescheduled, or see _decays
            columns, upcoming = self._written.columns, self._plan_next(groups)
        self._write(groups, upcoming)
        return loss

    def compiled_step(self, optimizer: Any, closure: Closure | None) -> Any:
        return _uncompiled_step(self, optimizer, closure)

    def _plan_next(self, groups: list[Group]) -> Upcoming:
        lane = self._written.single
        if lane is not None:  # one policy and one clock for all groups
            step, rates, momentum, moved = self._next(groups, lane)
            return step, rates, momentum, moved, ()
        fills: list[partial[Any]] = []
        steps, lrs, momenta = ([ABSENT] * len(groups) for _ in range(3))
        decays: list[Any] | None = None
        for lane in self._written.lanes:
            step, rates, momentum, moved = self._next(groups, lane)
            for i, lr in zip(lane.indices, rates, strict=True):
                steps[i], lrs[i], momenta[i] = step, lr, ABSENT if momentum is None else momentum
            if lane.tensors:
                fills += self._fills(groups, "lr", lane.tensors, lrs)
            if moved is not None:
                decays = decays or [ABSENT] * len(groups)
                for i, value in zip(lane.indices, moved, strict=True):
                    decays[i] = value
                fills += self._fills(groups, "weight_decay", lane.decay_tensors, decays)
        return steps, lrs, None if self._slot is None else momenta, decays, fills

    def _fills(self, groups: list[Group], key: str, indices: list[int], values: list[Any]) -> list[partial[Any]]:
        """The calls that fill the tensors which these groups were left with; in ``values`` tensors replace numbers.

        A tensor that was assigned since then is the user's, so another one replaces it.
        """
        calls = []
        for i in indices:
            held = groups[i][key]
            check_rate(held, key)
            if isinstance(held, Tensor) and held is self._written.own(key, i):
                calls.append(partial(held.fill_, values[i]))
                values[i] = held
            else:
                values[i] = stored_as(held, values[i])
        return calls

    def _next(self, groups: list[Group], lane: Lane) -> tuple[int, list[float], float | None, list[float] | None]:
        """A lane's next step, rates, momentum and weight decays, checked."""
        step, slot = lane.step + 1, self._slot
        lr_factor, momentum, decay_factor = values_at(lane.policy, step, lane.state)
        if momentum is not None and (slot is None or momentum >= slot.below):
            check_momentum(slot, momentum, lane.policy)  # raises
        if lane.highest * lr_factor > HELD_BY_ALL:
            for i in lane.indices:
                rate(groups[i], lr_factor, step)
        if lr_factor < NEXT_TO_NOTHING and not self._warned_of_end and self._written.by_hand.isdisjoint(lane.indices):
            # Of the step at hand: past the end its factor is the next step's.
            self._warned_of_end = warn_of_end(lane.policy, lane.step, lr_factor)
        decays = None if decay_factor is None else self._decays(groups, lane, decay_factor, step)
        return step, (native.compiled or native).scaled(lane.peaks, lr_factor), momentum, decays

    def _decays(self, groups: list[Group], lane: Lane, factor: float, step: int) -> list[float]:
        """A lane's next weight decays, checked."""
        check_decay(self._slots.weight_decay, factor, lane.policy)
        if lane.decays is None:
            lane.decays = [own_decay(groups[i]) for i in lane.indices]
            self._keep_own_decays(groups, lane)
        if max(lane.decays) * factor > HELD_BY_ALL or lane.decay_tensors:
            for i in lane.indices:
                decay(groups[i], factor, step)
        decays: list[float] = (native.compiled or native).scaled(lane.decays, factor)
        return decays

    def _keep_own_decays(self, groups: list[Group], lane: Lane) -> None:
        """Before its policy moves weight decay for the first time, let each group keep its own.

        The columns are other objects then: the step plans once more, with lanes that know of it.
        """
        calls: list[partial[Any]] = []
        for i, own in zip(lane.indices, lane.decays or (), strict=True):
            if OWN_DECAY not in groups[i]:
                is_tensor = isinstance(groups[i]["weight_decay"], Tensor)
                calls += writing(groups[i], {OWN_DECAY: own, **({"weight_decay": own} if is_tensor else {})})
        at_once(calls)
        before = self._written
        self._remember_written(groups, before.by_hand)
        self._written.momenta = before.momenta

    def _write(self, groups: list[Group], upcoming: Upcoming) -> None:
        """Write the values in all groups or, where an interrupt comes first, in none."""
        steps, lrs, momenta, decays, fills = upcoming
        slot = self._slot
        keys, columns = self._keys, (steps, lrs, momenta)
        if momenta is None or slot is None:
            keys, columns = _CLOCK_AND_RATE, (steps, lrs)  # type: ignore[assignment]
        elif slot.column is not None:
            columns = (steps, lrs, slot.column(groups, momenta))
        if decays is not None:
            keys, columns = (*keys, "weight_decay"), (*columns, decays)  # type: ignore[assignment]
        try:
            if fills:
                at_once([*fills, *_updates(groups, keys, columns)])
            else:
                (native.compiled or native).put(groups, keys, columns)
        except TypeError:  # groups of other types, before anything was written: by their own methods
            at_once(_updates(groups, keys, columns))
        self._written.moved(steps, lrs, momenta, decays)

    # -- edits ----------------------------------------------------------------------------------------------------

    def _take_edits(self, optimizer: Any) -> None:
        """Write what follows from edits of policies, clocks and peaks since the last write; an edited lr stays."""
        self._watch_for_scheduler(optimizer)
        self._change(optimizer.param_groups, {})

    def _change(self, groups: list[Group], values: dict[int, Group], rewritten: Collection[int] = ()) -> None:
        """Store what follows from edits, and these values over it; in ``rewritten`` groups lr is the schedule's."""
        edits = [self._edited(i, group) for i, group in enumerate(groups)]
        stored = []
        for i, (group, (edited, _)) in enumerate(zip(groups, edits, strict=True)):
            changed = {**edited, **values.get(i, {})}
            if changed.get("policy", group["policy"]) is not None:
                changed = with_own_tensors(group, changed, partial(self._written.own, i=i))
            stored.append(self._known.stored(changed))
        at_once(chain.from_iterable([writing(*pair) for pair in zip(groups, stored, strict=True)]))
        self._remember_written(groups, {i for i, (_, by_hand) in enumerate(edits) if by_hand}.difference(rewritten))

    def _remember_written(self, groups: list[Group], by_hand: Collection[int] = ()) -> None:
        """The groups are as they should be: what differs from now on was edited."""
        self._written = Written(groups, self._known.resolved(groups), self._slots, by_hand)

    def _edited(self, i: int, group: Group) -> tuple[Group, bool]:
        """What follows from a group's edits, to be stored; and whether its lr is the user's."""
        check_schedule_keys(group)
        row = self._written.row(i)
        if group["policy"] is None:  # by hand, where there are other keys of ours
            return policy_values(None, group), False
        watched = (*row, "policy_state", OWN_DECAY)
        changed = {key for key in watched if group.get(key, ABSENT) is not row.get(key, ABSENT)}
        is_edited, was_by_hand = self._rate_is_edited(i, group), i in self._written.by_hand
        if not changed and not is_edited:
            return {}, was_by_hand
        check_own_decay(group, row)
        (resolved,) = self._known.resolved([group])
        values = self._follow(changed, resolved)
        after = merged(resolved, values)
        planned = plan(after, check_step(group["schedule_step"]), self._slots)
        # After an interrupt, or where old values were put back, other objects have the same value.
        by_hand = was_by_hand or (is_edited and not is_rate(group["lr"], planned.lr))
        if changed <= {"lr"}:
            return {}, by_hand
        values |= values_of(planned, after, self._slots)
        stay = self._staying(i, group, changed) | ({"lr"} if by_hand else set())
        return {key: value for key, value in values.items() if key not in stay}, by_hand

    def _follow(self, changed: set[str], group: Group) -> Group:
        """What follows from another policy, if one was assigned to a resolved group."""
        if "policy" not in changed:
            return {}
        return decay_put_back(group) if "policy_state" in changed else policy_values(group["policy"], group)

    def _staying(self, i: int, group: Group, changed: set[str]) -> set[str]:
        """The keys whose values stay: an edited momentum or weight decay, and both where only other values were."""
        stay = set()
        for slot, own in zip(self._slots, ("", OWN_DECAY), strict=True):
            if slot is not None and (changed <= {"max_lr", "lr", OWN_DECAY} - {own} or self._is_edited(slot, i, group)):
                stay.add(slot.key)
        return stay

    def _is_edited(self, slot: Slot, i: int, group: Group) -> bool:
        """Whether a group's momentum, or weight decay, has another value than it was left with."""
        held = slot.read(group)
        if not _is_same(held, self._written.left(slot.name, i)):
            return True
        if not isinstance(held, Tensor) or OWN_DECAY not in group:
            return False
        due = getattr(self._planned_before(i, group), slot.name)
        return due is not None and not is_rate(held, due)

    def _rate_is_edited(self, i: int, group: Group) -> bool:
        """Whether lr has another value than it was left with; the same value put back is no edit."""
        lr, left = group["lr"], self._written.row(i).get("lr", ABSENT)
        if lr is not left or not isinstance(lr, Tensor):
            return lr is not left and not _is_same(lr, left)
        return not is_rate(lr, self._planned_before(i, group).lr)

    def _planned_before(self, i: int, group: Group) -> Plan:
        """What was written into group i."""
        (before,) = self._known.resolved([merged(group, self._written.row(i))])
        return plan(before, before["schedule_step"], self._slots)

    def _watch_for_scheduler(self, optimizer: Any) -> None:
        if not self._warned_of_scheduler:
            # Unpickled, or wrapped again by other code, a scheduler shows by what it writes.
            writes_lr = any(
                "initial_lr" in group and self._rate_is_edited(i, group)
                for i, group in enumerate(optimizer.param_groups)
            )
            self._warned_of_scheduler = warn_of_scheduler(optimizer, writes_lr)

    # -- distributed checkpointing's dry run --------------------------------------------------------------------------

    def _is_dry_run(self, optimizer: Any) -> bool:
        """Whether this step is to create state and move nothing.

        Distributed checkpointing sets every rate to 0, every gradient to 0, and steps an optimizer without state. A
        zero rate alone proves nothing, nor do zero gradients: below a zero-initialized head there are no others.
        """
        groups = optimizer.param_groups
        for i, group in enumerate(groups):
            if group["lr"] is self._written.row(i).get("lr") or not is_zero(group["lr"]):
                return False
        return not any(optimizer.state.values()) and gradients_are_zero(groups)

    def _dry_run(self, optimizer: Any) -> None:
        optimizer._create_state()
        groups, written = optimizer.param_groups, self._written
        if written.n == len(groups):
            rates = [self._rate_before(i, group) for i, group in enumerate(groups)]
            at_once(_updates(groups, ("lr",), (rates,)))

    def _rate_before(self, i: int, group: Group) -> Any:
        """The lr that group i was left with; a tensor of the schedule's that was dropped since then is made anew."""
        left = self._written.left("lr", i)
        if left is not None or group["policy"] is None:
            return group["lr"] if left is None else left
        return stored_as(group["lr"], self._planned_before(i, group).lr)

    # -- between steps --------------------------------------------------------------------------------------------

    def for_groups(self, optimizer: Any, groups: list[Group]) -> Schedules:
        if self._written.n == 0:  # new here; from then on a group without the key is one that it was removed from
            add_policy_key(groups)
        return self

    def join(self, optimizer: Any) -> None:
        groups, written = optimizer.param_groups, self._written
        if (native.compiled or native).holds(groups[:-1], written.keys, written.columns):
            (resolved,) = self._known.resolved(groups[-1:])
            self._written = written.joined(groups, resolved, self._slots)
            return
        self._change(groups[:-1], {})
        self._remember_written(groups, self._written.by_hand)

    def report(self, optimizer: Any, metric: float) -> None:
        groups = optimizer.param_groups
        check_schedules(groups)
        resolved = self._known.resolved(groups)
        changed: dict[int, Group] = {}
        for i, state in reported(resolved, metric).items():
            changed[i] = {"policy_state": dict(state), **self._reported(resolved[i], state)}
        self._change(groups, changed, {i for i, values in changed.items() if "lr" in values})

    def _reported(self, group: Group, state: Group) -> Group:
        """The values that follow from a report; none where it changes nothing."""
        step, after = group["schedule_step"], {**group, "policy_state": state}
        before = values_at(group["policy"], step, group.get("policy_state"))
        if values_at(group["policy"], step, state) == before:
            return {}
        return values_of(plan(after, step, self._slots), after, self._slots)

    def reschedule(self, optimizer: Any, changes: Changes) -> None:
        groups = optimizer.param_groups
        check_schedules(groups)
        values = changes.values(self._known.resolved(groups), self._slots)
        self._change(groups, values, values)
        self._warned_of_end = False

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def plain(self, groups: list[Group]) -> list[Group]:
        return [*self.each_plain(groups)]

    def each_plain(self, groups: list[Group]) -> Iterator[Group]:
        for i, group in enumerate(groups):
            values, by_hand = self._edited(i, group)
            values = self._known.stored(values)
            for key in [key for key in TENSOR_KEYS if key in values and isinstance(group[key], Tensor)]:
                values[key] = torch.full_like(group[key], values[key])
            after = merged(group, values)
            edited = [MARKS["lr"]] if by_hand else []
            edited += [MARKS[slot.name] for slot in self._slots.present if self._is_by_hand(slot, i, after)]
            yield {**after, **dict.fromkeys(edited, True)}

    def _is_by_hand(self, slot: Slot, i: int, group: Group) -> bool:
        """Whether a group's momentum, or weight decay, is the user's where the policy has another."""
        if group.get("policy") is None or not self._is_edited(slot, i, group):
            return False
        (resolved,) = self._known.resolved([group])
        due = getattr(plan(resolved, group["schedule_step"], self._slots), slot.name)
        return due is not None and not is_rate(slot.read(group), due)

    def saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict

    def for_loading(self, groups: list[Group]) -> list[Group]:
        check_schedules(groups)
        return groups

    def remember(self) -> Callable[[], None]:
        return partial(setattr, self, "_written", self._written)

    def fill(self, groups: list[Group], previous: list[Group], keys: Iterable[str]) -> None:
        from ..checkpoint import fill

        fill(groups, previous, keys)

    def adopted(self, groups: list[Group], by_hand: dict[int, set[str]]) -> None:
        add_policy_key(groups)
        self._remember_written(groups, {i for i, edited in by_hand.items() if "lr" in edited})
        for i, edited in by_hand.items():
            for name in edited - {"lr"}:
                self._written.forget(name, i)  # it is still an edit

    def loaded(self, optimizer: Any, previous: Any) -> None:
        """Nothing: numbers were adopted as they came."""

    def unpickled(self, optimizer: Any) -> None:
        data: Any = self._written  # see __getstate__; copy.copy keeps this very object, and the groups
        if isinstance(data, Written):
            return
        groups = optimizer.param_groups
        for group in groups:
            if group["policy"] is not None:  # a tensor that was in several groups still is
                group.update(with_own_tensors(group, {}))
        self._written = Written.from_data(data, groups, self._known.resolved(groups), self._slots)


# Run uncompiled: a float that changes on every step would trigger a recompile per step.
_uncompiled_step = uncompiled(HostSchedules.step)


def _is_same(value: Any, left: Any) -> bool:
    """Whether a number is the one that a group was left with; tensors are by identity."""
    return value is left or (type(value) is type(left) is float and value == left)


def is_rate(lr: Any, rate: float) -> bool:
    """Whether an lr is this rate, as far as it can hold it."""
    return bool(lr == (as_held(lr, rate) if isinstance(lr, Tensor) else rate))


def is_zero(lr: Any) -> bool:
    """Whether a rate is known to be 0. One on a device is not read, as the host would have to synchronize."""
    if not isinstance(lr, Tensor):
        return bool(lr == 0)
    readable = lr.device.type == "cpu" and lr.layout is torch.strided and lr.numel() == 1
    return readable and bool(lr == 0)


def gradients_are_zero(groups: list[Group]) -> bool:
    """Whether there are gradients with elements, and all of these are 0."""
    grads = [param.grad for group in groups for param in group["params"] if param.grad is not None]
    grads = [grad for grad in grads if grad.numel() > 0]
    return bool(grads) and not any(grad.any() for grad in grads)


def _updates(groups: list[Group], keys: tuple[str, ...], columns: tuple[Any, ...]) -> list[partial[Any]]:
    """The calls that write columns into groups of any type."""
    calls = []
    for i, group in enumerate(groups):
        row = {key: item_of(column, i) for key, column in zip(keys, columns, strict=True)}
        calls.append(partial(group.update, {key: item for key, item in row.items() if item is not ABSENT}))
    return calls


def warn_of_scheduler(optimizer: Any, writes_lr: bool) -> bool:
    """Warn where an LR scheduler is attached, or shows by writing lr; whether it did."""
    if not wrapped_by_scheduler(optimizer) and not writes_lr:
        return False
    warn(_BOTH_WRITE)
    return True
