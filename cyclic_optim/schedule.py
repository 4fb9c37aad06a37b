"""One param group's schedule: its policy, its clock and its peak; the next values, checked before anything is written.

=============================  ==================================================================
``group["policy"]``            the policy's name and fields, as JSON; None for a group without a schedule
``group["schedule_step"]``     this group's clock: updates applied since its step 0
``group["max_lr"]``            the peak; may be edited
``group["lr"]``                the rate of the next step: ``max_lr * lr_factor``
``group["momentum"]``          likewise (``betas[0]`` in Adam's family), where the policy cycles it
``group["max_weight_decay"]``  the group's own weight decay; may be edited; only where the policy moves weight decay
``group["weight_decay"]``      of the next step: ``max_weight_decay * weight_decay_factor``; likewise
``group["policy_state"]``      the policy's state of reported metrics; only where it listens
=============================  ==================================================================

All of it is plain data in the param groups, because checkpoints, wrappers and distributed engines copy these.
:class:`Known` has the policies behind the texts. The functions here take *resolved* groups: copies that hold the policy
itself.
"""

from __future__ import annotations

import json
import numbers
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from .groups import HELD_BY_ALL, SCHEDULE_KEYS, check_has_rate, check_numbers, check_policy, check_rate, highest_held
from .native import ABSENT
from .policies import Policy, describe
from .policies.asked import values_at
from .rules import MOST_STEPS, finite, shown, whole
from .slots import OWN_DECAY, Group, Slots, check_decay, check_momentum

#: Clocks are set and loaded below this: half of their range, so that there is room to go on.
MOST_SET_STEPS = MOST_STEPS // 2

#: What may be a tensor in a group. It is written in place, so each group has one of its own.
TENSOR_KEYS = ("lr", "weight_decay")

_check_whole = whole(0)["rule"]


class Known:
    """The policies behind the texts in an optimizer's param groups."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}

    def text(self, policy: Policy) -> str:
        """The text that stands for this policy, which is known from now on.

        Policies that differ only in code have the same description; spaces at its end, which JSON ignores, make the
        texts differ.
        """
        text = encode(policy)
        while text in self._policies and not _is_same(self._policies[text], policy):
            text += " "
        self._policies.setdefault(text, policy)
        return sys.intern(text)

    def __contains__(self, text: object) -> bool:
        return text in self._policies

    def forget_others(self, groups: Iterable[Group]) -> list[Policy]:
        """Forget policies that no group names; returns the others."""
        named = [group.get("policy") for group in groups]
        self._policies = {text: policy for text, policy in self._policies.items() if text in named}
        return list(self._policies.values())

    def policy(self, text: Any) -> Policy | None:
        """The policy that a group names; None for None.

        Raises:
            ValueError: the text is of no policy that this optimizer was given.
        """
        if text is None:
            return None
        if not isinstance(text, str) or text not in self._policies:
            raise ValueError(f"need group['policy'] as it was written: use reschedule(policy=...), got {shown(text)}")
        return self._policies[text]

    def resolved(self, groups: Iterable[Group]) -> list[Group]:
        """Copies of the groups with the policies themselves; a policy that was assigned to a group is left as it is."""
        return [*self.each_resolved(groups)]

    def each_resolved(self, groups: Iterable[Group]) -> Iterator[Group]:
        """The same, one after the other."""
        return ({**group, "policy": self._policy_or_text(group.get("policy"))} for group in groups)

    def _policy_or_text(self, value: Any) -> Policy | None:
        return value if isinstance(value, Policy) else self.policy(value)

    def stored(self, values: Group) -> Group:
        """What a group stores of resolved values."""
        return {**values, "policy": self.text(values["policy"])} if values.get("policy") is not None else values


def _is_same(one: Policy, other: Policy) -> bool:
    return one is other or bool(one == other)


def encode(policy: Policy) -> str:
    """A policy's description as one string, which engines that split checkpoints into leaves do not split."""
    return json.dumps(describe(policy))


class Plan(NamedTuple):
    """One group's values at a step, computed and validated; nothing is written yet."""

    step: int
    lr: float
    momentum: float | None  # None: it stays
    weight_decay: float | None


def check_step(step: Any, name: str = "schedule_step") -> int:
    """The step as an int that a clock can be set to."""
    step = _check_whole(name, step)
    if step >= MOST_SET_STEPS:
        raise ValueError(f"need {name} < 2**62, got {name}={shown(step)}")
    return int(step)


def check_own_decay(group: Group, row: Group) -> None:
    """Refuse a group, left as in ``row``, from which its own weight decay was removed."""
    if OWN_DECAY not in group and row.get(OWN_DECAY, ABSENT) is not ABSENT:
        raise ValueError(
            f"need {OWN_DECAY} in a param group whose weight decay a policy moves, got a group without: "
            "use reschedule(policy=...) for a policy that leaves weight decay alone"
        )


def plan(group: Group, step: int, slots: Slots) -> Plan:
    """The group's values at ``step``.

    Raises:
        ValueError, TypeError: the policy has no valid values, or the group cannot hold them.
    """
    lr_factor, momentum, decay_factor = values_at(group["policy"], step, group.get("policy_state"))
    check_momentum(slots.momentum, momentum, group["policy"])
    check_decay(slots.weight_decay, decay_factor, group["policy"])
    moved = None if decay_factor is None else decay(group, decay_factor, step)
    return Plan(step, rate(group, lr_factor, step), momentum, moved)


def rate(group: Group, lr_factor: float, step: int) -> float:
    """The group's rate, checked."""
    return _product(group, "lr", finite("max_lr", group["max_lr"], minimum=0), lr_factor, step)


def decay(group: Group, factor: float, step: int) -> float:
    """The group's weight decay, checked."""
    return _product(group, "weight_decay", own_decay(group), factor, step)


def own_decay(group: Group) -> float:
    """The group's own weight decay, which a policy's factor multiplies: what it had before a policy moved it."""
    if OWN_DECAY in group:
        return finite(OWN_DECAY, group[OWN_DECAY], minimum=0)
    held = group["weight_decay"]
    check_rate(held, "weight_decay")
    return finite("weight_decay", _number(held), minimum=0)


def _product(group: Group, key: str, own: float, factor: float, step: int) -> float:
    """The value of ``lr`` or ``weight_decay``: the group's own times the policy's factor, checked."""
    check_rate(group[key], key)
    highest = HELD_BY_ALL if own * factor <= HELD_BY_ALL else highest_held(group, key)
    if own * factor > highest:
        raise ValueError(
            f"need max_{key} * {key}_factor to be a number that {key} can hold, and the parameters (up to {highest}), "
            f"got max_{key}={own}, {key}_factor={factor} at {step=}"
        )
    return own * factor


def as_held(lr: torch.Tensor, rate: float) -> float:
    """The rate as the tensor rounds it."""
    return torch.full((), rate, dtype=lr.dtype, device="cpu").item()


def values_of(planned: Plan, group: Group, slots: Slots) -> Group:
    """What a plan stores in its group, by key: plain data, whatever kind of number was assigned to ``max_lr``."""
    values = {
        "schedule_step": planned.step,
        "max_lr": finite("max_lr", group["max_lr"], minimum=0),
        "lr": planned.lr,
    }
    for slot in slots.present:
        value = getattr(planned, slot.name)
        if value is not None:
            values[slot.key] = slot.stored(group, value)
    if planned.weight_decay is not None or OWN_DECAY in group:
        values[OWN_DECAY] = own_decay(group)
    return values


def policy_values(policy: Policy | None, group: Group) -> Group:
    """What a group stores with another policy: no reports so far; without a policy none of our keys."""
    if policy is None:
        return {"policy": None, **dict.fromkeys(SCHEDULE_KEYS[1:], ABSENT)}
    state = policy.initial_state()
    return {"policy": policy, "policy_state": ABSENT if state is None else dict(state), **decay_put_back(group)}


def decay_put_back(group: Group) -> Group:
    """What a group stores with another policy, which may leave weight decay alone: its own, which is kept no longer."""
    return {"weight_decay": own_decay(group), OWN_DECAY: ABSENT} if OWN_DECAY in group else {}


def merged(group: Group, values: Group) -> Group:
    """A copy of the group with these values, and without what is ``ABSENT``."""
    return {key: value for key, value in {**group, **values}.items() if value is not ABSENT}


def writing(group: Group, values: Group) -> list[partial[Any]]:
    """The calls that store these values: a tensor is filled, and what is ``ABSENT`` is removed.

    The first weight decay that a policy moves is stored in another tensor, because groups may share the present one.
    """
    values, calls = dict(values), []
    for key in [key for key in TENSOR_KEYS if key in values and isinstance(group.get(key), torch.Tensor)]:
        if isinstance(values[key], torch.Tensor):  # the group's from now on
            continue
        if key == "lr" or OWN_DECAY in group:
            calls.append(partial(group[key].fill_, values.pop(key)))
        else:
            values[key] = torch.full_like(group[key], values[key])
    for key in [key for key, value in values.items() if value is ABSENT]:
        del values[key]
        calls.append(partial(group.pop, key, None))
    return [*calls, partial(group.update, values)]


def stored_as(held: Any, value: float) -> Any:
    """The value for a group that holds this: a number, or another tensor."""
    return torch.full_like(held, value, requires_grad=False) if isinstance(held, torch.Tensor) else value


def with_own_tensors(group: Group, values: Group, own: Callable[[str], Any] = lambda key: None) -> Group:
    """The values to store, with tensors in place of those that are not the group's own.

    The schedule writes into a group's tensors. One that was assigned to a group, or loaded into it, may be in several
    groups, and belongs to the user.
    """
    values = dict(values)
    for key in ("lr", "weight_decay") if OWN_DECAY in group else ("lr",):
        held = group[key]
        if isinstance(held, torch.Tensor) and held is not own(key):
            values[key] = stored_as(held, values[key]) if key in values else held.detach().clone()
    return values


#: Below this fraction of the peak a held rate is next to nothing: ten thousand steps move the weights less than one at
#: the peak. OneCycle (4e-6) and decays to 0 end below it; four drops to a tenth, which people train on with, do not.
NEXT_TO_NOTHING = 1e-4


def warn_of_end(policy: Policy, step: int, lr_factor: float) -> bool:
    """Warn where ``step`` is past the end of its policy, which holds a rate of next to nothing; whether it did."""
    end = policy.end
    if end is None or not lr_factor < NEXT_TO_NOTHING:
        return False
    # A step at a rate of 0 is none of a run's: CosineDecay(8) reaches 0 at step 8, and is a policy of 8 steps.
    length = end if lr_factor == 0 else end + 1
    if step < length:
        return False
    warn(
        f"step {step + 1} of a policy of {length} steps: lengths are in optimizer steps, len(loader) * epochs. From "
        f"here on lr is {lr_factor:.3g} * max_lr; reschedule(policy=...) goes on under another policy than "
        f"{shown(policy)}"
    )
    return True


def undoing(groups: list[Group]) -> Callable[[], None]:
    """Returns a function that undoes what is stored in these groups, and in their tensors, from now on."""
    before = list(map(dict, groups))
    held = [group[key].detach() for group in before for key in TENSOR_KEYS if isinstance(group.get(key), torch.Tensor)]
    tensors = [(tensor, tensor.clone()) for tensor in held]

    def undo() -> None:
        for group, old in zip(groups, before, strict=True):
            group.clear()
            group.update(old)
        for tensor, value in tensors:
            tensor.copy_(value)

    return undo


def at_once(changes: Iterable[partial[Any]]) -> None:
    """Make all of these calls of C functions; an interrupt comes before the first or after the last.

    Python checks for signals between its own instructions, and this is a single one. For the same reason no other
    thread sees a part of it, unless a call releases the GIL, as operations on tensors may.
    """
    deque(map(partial.__call__, changes), maxlen=0)


def enrol(group: Group, policy: Policy, peers: Iterable[Group], slots: Slots) -> None:
    """Give a new, resolved group its schedule, from its ``schedule_step``, else from that of the first group with one.

    Of its peers it looks at as many as it needs: mostly at one.

    A tensor lr is cloned, because rates are written in place; so is a tensor weight decay that the policy moves.
    """
    lr: Any = group["lr"]
    check_rate(lr)
    if isinstance(lr, torch.Tensor):
        group["lr"] = lr.detach().clone()
        lr = lr.item()
    group["max_lr"] = finite("max_lr", group.get("max_lr", lr), minimum=0)
    started = (peer for peer in peers if peer.get("policy") is not None)
    first = [*islice(started, 1)]
    common = first[0]["schedule_step"] if first else 0
    group["schedule_step"] = check_step(group.get("schedule_step", common))
    group["policy"] = policy
    _join_reports(group, policy, chain(first, started))
    changed = decay_put_back(group)
    if changed and isinstance(group["weight_decay"], torch.Tensor):
        group["weight_decay"] = group["weight_decay"].detach().clone()
    after = merged(group, changed)
    at_once(writing(group, {**changed, **values_of(plan(after, group["schedule_step"], slots), after, slots)}))


def to_numbers(group: Group, slots: Slots) -> None:
    """Make numbers of what a capturable optimizer shows in a group, of which this one is a copy."""
    if not isinstance(group.get("max_lr"), torch.Tensor):
        return
    keys = ("schedule_step", "max_lr", "lr", *((OWN_DECAY, "weight_decay") if OWN_DECAY in group else ()))
    group.update({key: _number(group[key]) for key in keys if key in group})
    slot = slots.momentum
    if slot is not None and slot.key in group:
        stored = slot.stored(group, slot.read(group))
        group[slot.key] = tuple(map(_number, stored)) if isinstance(stored, tuple) else _number(stored)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _join_reports(group: Group, policy: Policy, peers: Iterable[Group]) -> None:
    """Set the group's state of reports: its own, that of a peer under the same policy, or the initial one."""
    initial = policy.initial_state()
    if "policy_state" in group or initial is None:
        state = group.pop("policy_state", None)
    else:
        state = next((peer.get("policy_state") for peer in peers if peer["policy"] == policy), initial)
    if state is not None:
        policy.check_state(state)
        group["policy_state"] = dict(state)


class Share(NamedTuple):
    """The groups at the same step of the same policy, which is evaluated once for all of them."""

    policy: Policy
    state: dict[str, Any] | None
    step: int
    indices: list[int]


def shares(groups: list[Group]) -> list[Share]:
    """The groups that have a policy, by policy, step and state."""
    found: dict[tuple[int, int], list[Share]] = {}
    for i, group in enumerate(groups):
        policy, state = group["policy"], group.get("policy_state")
        if policy is None:
            continue
        alike = found.setdefault((id(policy), group["schedule_step"]), [])
        share = next((one for one in alike if one.state == state), None)
        if share is None:
            alike.append(share := Share(policy, state, group["schedule_step"], []))
        share.indices.append(i)
    return [share for alike in found.values() for share in alike]


def reported(groups: list[Group], metric: float) -> dict[int, dict[str, Any]]:
    """The new state of every group whose policy listens, by index; nothing is written.

    Raises:
        TypeError: no policy listens, or one returned no state.
    """
    every = shares(groups)
    listening = [share for share in every if share.state is not None or _listens(share.policy)]
    new: dict[int, dict[str, Any]] = {}
    for share in listening or every[:1]:  # a policy that does not listen raises its own error
        state = share.policy.report_at(share.state, metric, share.step)
        if not isinstance(state, dict):
            raise TypeError(f"need report() to return the new state, a dict, got {shown(state)} from {share.policy!r}")
        new.update((i, state) for i in share.indices)
    return new


def _listens(policy: Policy) -> bool:
    return type(policy).report is not Policy.report


class Changes(NamedTuple):
    """What ``reschedule`` was given, checked against the groups that it addresses."""

    indices: tuple[int, ...]
    policy: Policy | None
    peaks: tuple[float, ...] | None  # one for each index
    step: int | None

    def values(self, groups: list[Group], slots: Slots) -> dict[int, Group]:
        """What to store in each group addressed, by its index; nothing is written."""
        return {i: self._values_in(groups[i], n, slots) for n, i in enumerate(self.indices)}

    def _values_in(self, group: Group, n: int, slots: Slots) -> Group:
        changed = {} if self.policy is None else policy_values(self.policy, group)
        # Without a clock it had no policy: then its peak is its rate, whatever max_lr a torch scheduler left there.
        peak = group["max_lr"] if "schedule_step" in group else float(group["lr"])
        changed["max_lr"] = peak if self.peaks is None else self.peaks[n]
        after = merged(group, changed)
        step = group.get("schedule_step", 0) if self.step is None else self.step
        return {**changed, **values_of(plan(after, step, slots), after, slots)}


def changes_of(groups: list[Group], policy: Any, lr: Any, step: Any, group: Any) -> Changes:
    """The arguments of ``reschedule``, checked.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message says which, and what would be right.
    """
    if policy is None and lr is None and step is None:
        raise ValueError("need policy, lr or step to change, got none of them")
    check_policy(policy)
    if policy is None and group is None:  # only groups with a policy have a peak and a clock
        group = [i for i, one in enumerate(groups) if one.get("policy") is not None]
        if not group:
            raise ValueError("need a policy where no param group has one: pass policy=")
    indices = _indices(groups, group)
    for i in indices:
        if policy is None and groups[i].get("policy") is None:
            raise ValueError(f"need a policy for group {i}, which has none: pass policy=")
        check_has_rate(groups[i])
    peaks = None if lr is None else _peaks(lr, len(indices))
    return Changes(indices, policy, peaks, None if step is None else check_step(step, "step"))


def _indices(groups: list[Group], group: Any) -> tuple[int, ...]:
    if group is None:
        return tuple(range(len(groups)))
    indices: Any = (group,) if isinstance(group, numbers.Integral) else group
    if not isinstance(indices, Sequence) or not all(map(_is_index, indices)):
        raise TypeError(f"need group to be the index of a param group, or a sequence of them, got group={shown(group)}")
    if not indices or len(set(indices)) < len(indices) or not 0 <= min(indices) <= max(indices) < len(groups):
        raise ValueError(f"need indices of the {len(groups)} param groups, each once, got group={shown(group)}")
    return tuple(map(int, indices))


def _is_index(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _peaks(lr: Any, count: int) -> tuple[float, ...]:
    if not isinstance(lr, (list, tuple)):
        check_numbers(lr=lr)
        return (float(lr),) * count
    if len(lr) != count:
        raise ValueError(f"need one lr, or one for each of the {count} param groups addressed, got {len(lr)}: {lr=}")
    check_numbers(**{f"lr[{i}]": peak for i, peak in enumerate(lr)})
    return tuple(map(float, lr))


def warn(message: str) -> None:
    """Warn where the user called, however deep inside torch and this package that was."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


_INSIDE = ("torch", __name__.split(".")[0])
