"""What a schedule last wrote into the param groups: the very objects, so that an edit shows as another object."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

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
        rates = [groups[i]["lr"] for i in share.indices]
        #: Rates that are tensors, with their places in the lane: they are filled, not replaced.
        self.tensors = [(n, rate) for n, rate in enumerate(rates) if isinstance(rate, Tensor)]

    def rates(self, lr_factor: float) -> list[float]:
        return scaled(self.peaks, lr_factor)


class Written:
    """The groups as a schedule left them.

    ======================  ==========================================================
    ``keys``, ``columns``   what is compared on every step: the values of all groups, by key
    ``lanes``               the groups that have a schedule, by what they share
    ``single``              whether one lane holds all groups, in their order
    ``momenta``             of each group, to tell an edited one
    ``by_hand``             the groups whose lr is the user's and not the schedule's
    ======================  ==========================================================
    """

    __slots__ = ("by_hand", "columns", "keys", "lanes", "momenta", "single")

    def __init__(
        self, groups: list[Group], resolved: list[Group], slot: Slot | None, by_hand: Collection[int] = ()
    ) -> None:
        listens = any("policy_state" in group for group in groups)
        self.keys = (*WATCHED, "policy_state") if listens else WATCHED
        self.columns = tuple([group.get(key, ABSENT) for group in groups] for key in self.keys)
        self.lanes = [Lane(share, groups) for share in shares(resolved)]
        self.single = [lane.indices for lane in self.lanes] == [list(range(len(groups)))]
        self.momenta = [None if slot is None else slot.read(group) for group in groups]
        self.by_hand = frozenset(by_hand)

    def row(self, i: int) -> Group:
        """What group i was left with; empty for a group that is new."""
        if i >= len(self.momenta):
            return {}
        return {key: column[i] for key, column in zip(self.keys, self.columns, strict=True)}

    def moved(self, steps: list[Any], lrs: list[Any], momenta: list[Any] | None) -> None:
        """One step on: these values were written, where they are not ABSENT."""
        # The clocks first: an interrupt in between leaves columns that do not hold, and then all is read anew.
        for lane in self.lanes:
            lane.step += 1
        if not self.single:
            lrs = _over(lrs, self.columns[3])
            momenta = momenta and _over(momenta, self.momenta)
        if momenta is not None:
            self.momenta = momenta
        if self.by_hand:
            self.by_hand = frozenset()
        self.columns = (self.columns[0], steps, self.columns[2], lrs, *self.columns[4:])

    def as_data(self) -> tuple[Any, ...]:
        """For pickling, which keeps values and no objects."""
        return self.keys, self.columns, self.momenta, self.by_hand

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


def _kept(old: list[Any], now: list[Any]) -> list[Any]:
    """The present objects where they are equal to the old ones, else the old ones."""
    return [new if _equal(before, new) else before for before, new in zip(old, now, strict=True)]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other or (type(one) is type(other) and torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)
