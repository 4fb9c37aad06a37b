"""What a schedule last wrote into the param groups: the very objects, so that an edit shows as another object."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..native import ABSENT, scaled
from ..schedule import Share, shares
from ..slots import Group, Slot

#: What is compared on every step.
WATCHED = ("policy", "schedule_step", "max_lr", "lr")


class Lane:
    """The groups that share a policy and a clock, with what stays the same from step to step."""

    __slots__ = ("highest", "indices", "peaks", "policy", "state", "step", "tensors")

    def __init__(self, share: Share, groups: list[Group]) -> None:
        self.policy, self.state, self.step, self.indices = share
        self.peaks: list[float] = [groups[i]["max_lr"] for i in share.indices]
        self.highest = max(self.peaks)
        #: Places of groups whose rate is a tensor: it is filled, not replaced.
        self.tensors = [n for n, i in enumerate(share.indices) if isinstance(groups[i]["lr"], Tensor)]

    def rates(self, lr_factor: float) -> list[float]:
        return scaled(self.peaks, lr_factor)


class Written:
    """The groups as a schedule left them.

    ======================  ==========================================================
    ``keys``, ``columns``   what is compared on every step: the values of all groups, by key
    ``lanes``               the groups that have a schedule, by what they share
    ``single``              whether one lane holds all groups, in their order
    ``has_gaps``            whether a step leaves some group's values alone
    ``momenta``             of each group, to tell an edited one
    ``by_hand``             the groups whose lr is the user's and not the schedule's
    ======================  ==========================================================
    """

    __slots__ = ("by_hand", "columns", "has_gaps", "keys", "lanes", "momenta", "single")

    def __init__(
        self, groups: list[Group], resolved: list[Group], slot: Slot | None, by_hand: Collection[int] = ()
    ) -> None:
        listens = any("policy_state" in group for group in groups)
        self.keys = (*WATCHED, "policy_state") if listens else WATCHED
        self.columns = tuple([_remembered(group.get(key, ABSENT)) for group in groups] for key in self.keys)
        self.lanes = [Lane(share, groups) for share in shares(resolved)]
        self.single = [lane.indices for lane in self.lanes] == [list(range(len(groups)))]
        self.has_gaps = not self.single or any(lane.tensors for lane in self.lanes)
        self.momenta = [None if slot is None else slot.read(group) for group in groups]
        self.by_hand = frozenset(by_hand)

    def row(self, i: int) -> Group:
        """What group i was left with; empty for a group that is new."""
        if i >= len(self.momenta):
            return {}
        return {key: _recalled(column[i]) for key, column in zip(self.keys, self.columns, strict=True)}

    @property
    def rates(self) -> list[Any]:
        """The lr of every group."""
        return list(map(_recalled, self.columns[WATCHED.index("lr")]))

    def moved(self, steps: list[Any], lrs: list[Any], momenta: list[Any] | None) -> None:
        """One step on: these values were written, where they are not ABSENT."""
        # The clocks first: an interrupt in between leaves columns that do not hold, and then all is read anew.
        for lane in self.lanes:
            lane.step += 1
        if self.has_gaps:
            lrs = _over(lrs, self.columns[3])
            momenta = momenta and _over(momenta, self.momenta)
        if momenta is not None:
            self.momenta = momenta
        if self.by_hand:
            self.by_hand = frozenset()
        self.columns = (self.columns[0], steps, self.columns[2], lrs, *self.columns[4:])

    def as_data(self) -> tuple[Any, ...]:
        """For pickling, which keeps values and no objects."""
        return self.keys, [list(map(_recalled, column)) for column in self.columns], self.momenta, self.by_hand

    @classmethod
    def from_data(cls, data: tuple[Any, ...], groups: list[Group], resolved: list[Group], slot: Slot | None) -> Written:
        """The groups after pickling: values that differ from what was written are still edits."""
        keys, columns, momenta, by_hand = data
        written = cls(groups, resolved, slot, by_hand)
        if keys == written.keys and len(momenta) == len(groups):
            old = [_kept(*pair) for pair in zip(columns, written.columns, strict=True)]
            written.columns, written.momenta = tuple(old), _kept(momenta, written.momenta)
        return written


def _over(new: list[Any], old: list[Any]) -> list[Any]:
    return [before if value is ABSENT else value for value, before in zip(new, old, strict=True)]


def _remembered(value: Any) -> Any:
    """The value; of a tensor a weak reference, so that one that is replaced is freed at once."""
    return ref(value) if isinstance(value, Tensor) else value


def _recalled(item: Any) -> Any:
    return item() if type(item) is ref else item


def _kept(old: list[Any], now: list[Any]) -> list[Any]:
    """The present objects where they are equal to the old ones, else the old ones."""
    return [
        new if _equal(before, _recalled(new)) else _remembered(before) for before, new in zip(old, now, strict=True)
    ]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other or (type(one) is type(other) and torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)
