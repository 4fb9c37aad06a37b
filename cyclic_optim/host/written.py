"""What a schedule last wrote into the param groups: the very objects, so that an edit shows as another object."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..native import ABSENT
from ..schedule import Share, shares
from ..slots import OWN_DECAY, Group, Slots

#: What is compared on every step.
WATCHED = ("policy", "schedule_step", "max_lr", "lr")
#: Likewise, where any group has them.
_WATCHED_IF_THERE = ("policy_state", OWN_DECAY)


class Lane:
    """The groups that share a policy and a clock, with what stays the same from step to step."""

    __slots__ = ("decay_tensors", "decays", "highest", "indices", "peaks", "policy", "state", "step", "tensors")

    def __init__(self, share: Share, groups: list[Group]) -> None:
        policy, self.state, self.step, self.indices = share
        self.policy = policy
        self.peaks: list[float] = [groups[i]["max_lr"] for i in share.indices]
        self.highest = max(self.peaks)
        #: Groups whose rate is a tensor: it is filled, not replaced.
        self.tensors = [i for i in share.indices if isinstance(groups[i]["lr"], Tensor)]
        #: The groups' own weight decays, once the policy has moved them; None before.
        has_decays = all(OWN_DECAY in groups[i] for i in share.indices)
        self.decays: list[float] | None = [groups[i][OWN_DECAY] for i in share.indices] if has_decays else None
        self.decay_tensors = [i for i in share.indices if has_decays and isinstance(groups[i]["weight_decay"], Tensor)]

    def joined(self, other: Lane) -> Lane:
        """The groups of both lanes, which share policy, state and clock."""
        lane: Lane = object.__new__(Lane)
        lane.policy, lane.state, lane.step = self.policy, self.state, self.step
        lane.indices, lane.tensors = self.indices + other.indices, self.tensors + other.tensors
        lane.peaks, lane.highest = self.peaks + other.peaks, max(self.highest, other.highest)
        lane.decays, lane.decay_tensors = None, []
        if self.decays is not None and other.decays is not None:
            lane.decays, lane.decay_tensors = self.decays + other.decays, self.decay_tensors + other.decay_tensors
        return lane


class Written:
    """The groups as a schedule left them.

    ``keys`` and ``columns`` are what is compared on every step: for each key the values of all groups, or one value
    that all groups have.

    ================  =================================================================
    ``lanes``         the groups that have a schedule, by what they share
    ``single``        the lane of all groups, if there is one and it fills no tensors
    ``fills``         whether any lane fills tensors
    ``momenta``       of each group, or of all, to tell an edited one
    ``decays``        weight decays, likewise
    ``by_hand``       the groups whose lr is the user's and not the schedule's
    ================  =================================================================
    """

    __slots__ = ("by_hand", "columns", "decays", "fills", "keys", "lanes", "momenta", "n", "single")

    def __init__(self, groups: list[Group], resolved: list[Group], slots: Slots, by_hand: Collection[int] = ()) -> None:
        self.n = len(groups)
        self.keys = (*WATCHED, *(key for key in _WATCHED_IF_THERE if any(key in group for group in groups)))
        self.columns: tuple[Any, ...] = tuple(
            [_remembered(group.get(key, ABSENT)) for group in groups] for key in self.keys
        )
        lanes = [Lane(share, groups) for share in shares(resolved)]
        self._take_lanes(lanes, any(lane.tensors or lane.decay_tensors for lane in lanes))
        self.momenta, self.decays = (
            [None if slot is None else _remembered(slot.read(group)) for group in groups] for slot in slots
        )
        self.by_hand = frozenset(by_hand)

    def _take_lanes(self, lanes: list[Lane], fills: bool) -> None:
        self.lanes, self.fills = lanes, fills
        whole = [lane for lane in lanes if len(lane.indices) == self.n]
        self.single = whole[0] if whole and not self.fills else None

    def joined(self, groups: list[Group], resolved: Group, slots: Slots) -> Written:
        """The same groups, still as they were left, and one more, ``groups[-1]``, as it is now.

        Copies of lists, and nothing for each group that is there: adding ``n`` groups takes the time of ``n``.
        """
        last = Written(groups[-1:], [resolved], slots)
        both: Written = object.__new__(Written)
        both.n, both.by_hand = self.n + 1, self.by_hand
        both.keys = (*WATCHED, *(key for key in _WATCHED_IF_THERE if key in self.keys or key in last.keys))
        both.columns = tuple(self._column(key) + last._column(key) for key in both.keys)
        both.momenta = _spread(self.momenta, self.n) + last.momenta
        both.decays = _spread(self.decays, self.n) + last.decays
        lanes = self.lanes if resolved["policy"] is None else self._lanes_with(resolved, groups)
        both._take_lanes(lanes, self.fills or last.fills)
        return both

    def _column(self, key: str) -> list[Any]:
        """What each group was left with under a key."""
        return _spread(self.columns[self.keys.index(key)] if key in self.keys else ABSENT, self.n)

    def _lanes_with(self, resolved: Group, groups: list[Group]) -> list[Lane]:
        """The lanes, and in one of them the last of these groups."""
        policy, state, step = resolved["policy"], resolved.get("policy_state"), resolved["schedule_step"]
        new = Lane(Share(policy, state, step, [self.n]), groups)
        for i, lane in enumerate(self.lanes):
            if lane.policy is policy and lane.step == step and lane.state == state:
                return [*self.lanes[:i], lane.joined(new), *self.lanes[i + 1 :]]
        return [*self.lanes, new]

    def row(self, i: int) -> Group:
        """What group i was left with; empty for a group that is new."""
        if i >= self.n:
            return {}
        return {key: _recalled(item_of(column, i)) for key, column in zip(self.keys, self.columns, strict=True)}

    def left(self, name: str, i: int) -> Any:
        """The lr, momentum or weight decay that group i was left with; None for a group that is new."""
        column = {"lr": self.columns[3], "momentum": self.momenta, "weight_decay": self.decays}[name]
        return _recalled(item_of(column, i)) if i < self.n else None

    def own(self, name: str, i: int) -> Any:
        """What group i was left with, if a schedule wrote it: a tensor may be written in place; None otherwise."""
        return self.left(name, i) if i < self.n and item_of(self.columns[0], i) is not None else None

    def forget(self, name: str, i: int) -> None:
        """The momentum, or weight decay, that group i has is an edit."""
        column = self.momenta if name == "momentum" else self.decays
        column[i] = None

    def moved(self, steps: Any, rates: list[Any], momenta: Any, decays: Any) -> None:
        """One step on: these values were written, in each group or one in all, where they are not ABSENT."""
        columns = self.columns
        # The clocks first: an interrupt in between leaves columns that do not hold, and then all is read anew.
        if self.single is not None:
            self.single.step = steps
        else:
            for lane in self.lanes:
                lane.step += 1
            rates = _updated(rates, columns[3])
            momenta = momenta and _updated(momenta, self.momenta)
            decays = decays and _updated(decays, self.decays)
        if self.fills:
            rates = list(map(_remembered, rates))
            decays = decays and list(map(_remembered, decays))
        if momenta is not None:
            self.momenta = momenta
        if decays is not None:
            self.decays = decays
        if self.by_hand:
            self.by_hand = frozenset()
        moved = (columns[0], steps, columns[2], rates)
        self.columns = moved if len(columns) == 4 else (*moved, *columns[4:])

    def as_data(self) -> tuple[Any, ...]:
        """For pickling, which keeps values and no objects."""
        columns = [[_recalled(item_of(column, i)) for i in range(self.n)] for column in self.columns]
        left = ([self.left(name, i) for i in range(self.n)] for name in Slots._fields)
        return self.keys, columns, *left, self.by_hand

    @classmethod
    def from_data(cls, data: tuple[Any, ...], groups: list[Group], resolved: list[Group], slots: Slots) -> Written:
        """The groups after pickling: values that differ from what was written are still edits."""
        keys, columns, momenta, decays, by_hand = data
        written = cls(groups, resolved, slots, by_hand)
        if keys == written.keys and len(momenta) == len(groups):
            written.columns = tuple(_matched(*pair) for pair in zip(columns, written.columns, strict=True))
            written.momenta = _matched(momenta, written.momenta)
            written.decays = _matched(decays, written.decays)
        return written


def item_of(column: Any, i: int) -> Any:
    """What a column has for group i: what is no list is one value for all groups."""
    return column[i] if isinstance(column, list) else column


def _spread(column: Any, n: int) -> list[Any]:
    """A column as a list: what is none is one value for all ``n`` groups."""
    return column if isinstance(column, list) else [column] * n


def _updated(new: list[Any], old: Any) -> list[Any]:
    return [item_of(old, i) if value is ABSENT else value for i, value in enumerate(new)]


def _remembered(value: Any) -> Any:
    """The value; of a tensor a weak reference, so that one that is replaced is freed at once."""
    return ref(value) if isinstance(value, Tensor) else value


def _recalled(item: Any) -> Any:
    return item() if type(item) is ref else item


def _matched(old: list[Any], now: list[Any]) -> list[Any]:
    """The present objects where they are equal to the old ones, else the old ones."""
    pairs = zip(old, now, strict=True)
    return [new if _equal(before, _recalled(new)) else _remembered(before) for before, new in pairs]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other or (type(one) is type(other) and torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)
