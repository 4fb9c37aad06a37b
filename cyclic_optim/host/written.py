"""What a schedule last wrote into the param groups: the very objects, so that an edit shows as another object."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..native import ABSENT
from ..schedule import Share, shares
from ..slots import Group, Slot

#: What is compared on every step.
WATCHED = ("policy", "schedule_step", "max_lr", "lr")


class Lane:
    """The groups that share a policy and a clock, with what stays the same from step to step."""

    __slots__ = ("highest", "indices", "peaks", "policy", "state", "step", "tensors")

    def __init__(self, share: Share, groups: list[Group]) -> None:
        policy, self.state, self.step, self.indices = share
        self.policy = policy
        self.peaks: list[float] = [groups[i]["max_lr"] for i in share.indices]
        self.highest = max(self.peaks)
        #: Groups whose rate is a tensor: it is filled, not replaced.
        self.tensors = [i for i in share.indices if isinstance(groups[i]["lr"], Tensor)]


class Written:
    """The groups as a schedule left them.

    ``keys`` and ``columns`` are what is compared on every step: for each key the values of all groups, or one value
    that all groups have.

    ================  =================================================================
    ``lanes``         the groups that have a schedule, by what they share
    ``single``        the lane of all groups, if there is one and it fills no tensors
    ``momenta``       of each group, or of all, to tell an edited one
    ``by_hand``       the groups whose lr is the user's and not the schedule's
    ================  =================================================================
    """

    __slots__ = ("by_hand", "columns", "keys", "lanes", "momenta", "n", "single")

    def __init__(
        self, groups: list[Group], resolved: list[Group], slot: Slot | None, by_hand: Collection[int] = ()
    ) -> None:
        self.n = len(groups)
        listens = any("policy_state" in group for group in groups)
        self.keys = (*WATCHED, "policy_state") if listens else WATCHED
        self.columns: tuple[Any, ...] = tuple(
            [_remembered(group.get(key, ABSENT)) for group in groups] for key in self.keys
        )
        self.lanes = [Lane(share, groups) for share in shares(resolved)]
        whole = [lane for lane in self.lanes if lane.indices == list(range(self.n)) and not lane.tensors]
        self.single = whole[0] if whole else None
        self.momenta: Any = [None if slot is None else slot.read(group) for group in groups]
        self.by_hand = frozenset(by_hand)

    def row(self, i: int) -> Group:
        """What group i was left with; empty for a group that is new."""
        if i >= self.n:
            return {}
        return {key: _recalled(item_of(column, i)) for key, column in zip(self.keys, self.columns, strict=True)}

    def momentum(self, i: int) -> Any:
        """The momentum that group i was left with; None for a group that is new."""
        return item_of(self.momenta, i) if i < self.n else None

    @property
    def rates(self) -> list[Any]:
        """The lr of every group."""
        return [_recalled(item_of(self.columns[3], i)) for i in range(self.n)]

    def moved(self, steps: Any, rates: list[Any], momenta: Any) -> None:
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
        if momenta is not None:
            self.momenta = momenta
        if self.by_hand:
            self.by_hand = frozenset()
        moved = (columns[0], steps, columns[2], rates)
        self.columns = moved if len(columns) == 4 else (*moved, columns[4])

    def as_data(self) -> tuple[Any, ...]:
        """For pickling, which keeps values and no objects."""
        columns = [[_recalled(item_of(column, i)) for i in range(self.n)] for column in self.columns]
        return self.keys, columns, [self.momentum(i) for i in range(self.n)], self.by_hand

    @classmethod
    def from_data(cls, data: tuple[Any, ...], groups: list[Group], resolved: list[Group], slot: Slot | None) -> Written:
        """The groups after pickling: values that differ from what was written are still edits."""
        keys, columns, momenta, by_hand = data
        written = cls(groups, resolved, slot, by_hand)
        if keys == written.keys and len(momenta) == len(groups):
            written.columns = tuple(_matched(*pair) for pair in zip(columns, written.columns, strict=True))
            written.momenta = _matched(momenta, written.momenta)
        return written


def item_of(column: Any, i: int) -> Any:
    """What a column has for group i: what is no list is one value for all groups."""
    return column[i] if isinstance(column, list) else column


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
