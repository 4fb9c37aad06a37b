"""What the param groups show of the clock: views of its tensors, so that an edit shows as another object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..native import ABSENT
from ..rules import finite
from ..schedule import check_step
from ..slots import OWN_DECAY, Group, Slot
from .clock import LEAST_MOMENTUM, DeviceClock, above_0
from .update import BaseUpdate, is_object

LARGEST = torch.finfo(torch.float32).max

#: The index of a group, a key, and what was assigned there. Momentum has the key "momentum", wherever it lives.
Edit = tuple[int, str, Any]


class Shown:
    """The clock's tensors in the param groups.

    ===================  ====================================================================================
    ``given``            the numbers that were written into each group's tensors, before float32 rounded them
    ``compared``         what the groups show: keys, and for each of them the objects in all groups
    ``has_momentum``     of each group, whether its momentum is ever other than 0
    ===================  ====================================================================================
    """

    def __init__(self, clock: DeviceClock, update: BaseUpdate, slot: Slot | None) -> None:
        self._clock, self._update, self._slot = clock, update, slot
        self.given: list[Group] = []
        keys = self._watched(False)
        self.compared: tuple[tuple[str, ...], tuple[list[Any], ...]] = keys, ([],) * len(keys)
        self.has_momentum: tuple[bool, ...] = ()

    def _watched(self, moves_decay: bool) -> tuple[str, ...]:
        """What is compared on every step; the place of momentum is the last."""
        decay = ("weight_decay", OWN_DECAY) if moves_decay else ()
        return "policy", "lr", "max_lr", "schedule_step", *decay, *([self._slot.key] if self._slot is not None else [])

    def tensors(self, i: int) -> dict[str, Tensor]:
        """The tensors of group i, by key."""
        clock = self._clock
        tensors = {"lr": clock.lr[i]}
        if clock.parts[i].policy is not None:
            tensors.update(max_lr=clock.max_lr[i], schedule_step=clock.steps[i])  # torch 2.6 cannot trace |=
        if self.moves_decay(i):
            tensors.update({"weight_decay": clock.weight_decay[i], OWN_DECAY: clock.max_weight_decay[i]})
        if self.shows_momentum(i):
            tensors["momentum"] = clock.momentum[i]
        return tensors

    def moves_decay(self, i: int) -> bool:
        return self._clock.parts[i].highest_decay_factor is not None

    def shows_momentum(self, i: int) -> bool:
        return self._slot is not None and self._update.shows_momentum(self._clock.parts[i])

    def show(self, groups: list[Group]) -> None:
        """Let all groups show their tensors."""
        self.has_momentum = tuple(
            part.cycles_momentum or given.get("momentum", 0) != 0
            for part, given in zip(self._clock.parts, self.given, strict=True)
        )
        for i, group in enumerate(groups):
            for key, tensor in self.tensors(i).items():
                if key == "momentum":
                    self._show_momentum(i, group, tensor)
                else:
                    group[key] = tensor
        keys = self._watched(any(map(self.moves_decay, range(len(groups)))))
        columns = tuple([group.get(key, ABSENT) for group in groups] for key in keys)
        self.compared = keys, columns  # at once: an interrupt finds both or none

    def _show_momentum(self, i: int, group: Group, tensor: Tensor) -> None:
        assert self._slot is not None
        key = self._slot.key
        if not self._is_shown(i, group[key]):
            self.given[i]["stored"] = group[key]  # it has the betas beside the momentum
        group[key] = self._update.stored_momentum(self._slot, i, group, tensor)

    def _is_shown(self, i: int, stored: Any) -> bool:
        """Whether this holds the momentum that group i showed last."""
        stored_before = self.compared[1][-1]
        return i < len(stored_before) and is_object(stored, stored_before[i])

    def stored_number(self, i: int, group: Group, momentum: float) -> Any:
        """What group i stores for this momentum, in numbers."""
        assert self._slot is not None
        key = self._slot.key
        beside = self.given[i]["stored"] if self._is_shown(i, group[key]) else group[key]
        return _in_numbers(self._slot.stored({key: beside}, momentum))

    def write(self, i: int, key: str, value: Any) -> None:
        """Write a value, checked, into a group's tensor."""
        if isinstance(value, Tensor):
            value, given = value.detach().reshape(()), None
            if key == "momentum":
                value = torch.where(value > 0, value.clamp(min=LEAST_MOMENTUM), value)
        else:  # numpy's numbers cannot be assigned to a part of a tensor
            value = given = int(value) if key == "schedule_step" else float(value)
            value = above_0(value) if key == "momentum" else value
        self._clock.write(i, key, value)
        self.given[i][key] = given

    def write_all(self, i: int, group: Group) -> None:
        """Write a group's values into its tensors."""
        for key in self.tensors(i):
            self.write(i, key, self._read(group, key))

    def _read(self, group: Group, key: str) -> Any:
        return self._slot.read(group) if key == "momentum" and self._slot is not None else group[key]

    def assigned(self, i: int, group: Group) -> list[Edit]:
        """What was assigned to a group in place of its tensors."""
        pairs = ((key, tensor, self._read(group, key)) for key, tensor in self.tensors(i).items())
        return [(i, key, value) for key, tensor, value in pairs if value is not tensor]

    def show_again(self, groups: list[Group]) -> None:
        """After pickling, which makes two objects of one: let groups show their tensors; other values are edits."""
        keys, before = self.compared
        edits = [
            (k, i, group[key])
            for k, key in enumerate(keys)
            for i, group in enumerate(groups)
            if key in group and not _is_equal(group[key], before[k][i])
        ]
        self.show(groups)
        keys, columns = self.compared
        for k, i, value in edits:
            groups[i][keys[k]] = value
            if value is columns[k][i]:  # a policy: no tensor was shown in its place
                columns[k][i] = before[k][i]


def holds_traced(groups: list[Group], keys: tuple[str, ...], columns: tuple[list[Any], ...]) -> bool:
    """``native.holds`` for torch.compile."""
    for i, group in enumerate(groups):
        for key, column in zip(keys, columns, strict=True):
            if column[i] is not ABSENT and not is_object(group[key], column[i]):
                return False
    return True


def checked_edit(i: int, key: str, value: Any) -> Edit:
    """The edit with a copy of its value: one group may have been given the tensor that another one shows."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"need {key} to be a number or a tensor of one, got {key}={value!r}")
        value = value.detach().clone()
    if key == "schedule_step":
        check_step(value.item() if isinstance(value, Tensor) else value)
    elif not isinstance(value, Tensor) and finite(key, value, minimum=0) > LARGEST:
        raise ValueError(f"need {key} to be a number that float32 can hold, got {key}={value!r}")
    return i, key, value


def rounded(number: float) -> float:
    """The number as float32 holds it."""
    return torch.tensor(number, dtype=torch.float32, device="cpu").item()


def rounded_momentum(number: float) -> float:
    """The momentum as the device holds it."""
    return rounded(above_0(number))


def unrounded(held: float, *candidates: float | None, rounded: Callable[[float], float] = rounded) -> float:
    """The float64 original of a float32 value: the first candidate that rounds to it; ``held`` itself if none does."""
    return next((number for number in candidates if number is not None and rounded(number) == held), held)


def _in_numbers(stored: Any) -> Any:
    """Momentum, or betas, without tensors."""
    if not isinstance(stored, tuple):
        return stored
    return tuple(value.item() if isinstance(value, Tensor) else value for value in stored)


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return type(one) is type(other) and torch.equal(one, other)
    return bool(one is other or one == other)
