"""The protocol between an optimizer and its schedules, wherever their values are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from .schedule import Changes
from .slots import Group

Closure = Callable[[], Any]


class Schedules(Protocol):
    """The schedules of all groups of one optimizer: on the host, on the device, or none.

    An optimizer chooses one when its groups change. ``optimizer`` is the :class:`.scheduled.Scheduled` that calls.
    """

    is_traced: bool  # whether torch.compile traces its step

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        """Make one update with the current values, then write the next step's; returns the closure's loss."""

    def compiled_step(self, optimizer: Any, closure: Closure | None) -> Any:
        """``step`` while torch.compile traces it, or watches which functions are called."""

    def for_groups(self, optimizer: Any, groups: list[Group]) -> Schedules:
        """The schedules for these groups: this object, or another."""

    def join(self, optimizer: Any) -> None:
        """Add the last param group, which has just been given its schedule, in plain numbers."""

    def report(self, optimizer: Any, metric: float) -> None:
        """Report a metric to every policy that listens, and write the values that follow."""

    def reschedule(self, optimizer: Any, changes: Changes) -> None:
        """Make these changes, and write the values that follow."""

    def plain(self, groups: list[Group]) -> list[Group]:
        """Copies of the groups in plain numbers, with the values that the next step will use."""

    def each_plain(self, groups: list[Group]) -> Iterator[Group]:
        """The same, one after the other: who adds a group looks at a few of its peers."""

    def saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """torch's state dict of state and plain groups, as it is to be saved."""

    def for_loading(self, groups: list[Group]) -> list[Group]:
        """The groups in plain numbers, for torch's loading."""

    def remember(self) -> Callable[[], None]:
        """Returns a function that undoes everything that loading may write before it fails."""

    def fill(self, groups: list[Group], previous: list[Group], keys: Iterable[str]) -> None:
        """Add missing keys to loaded groups before torch does, whose values would choose slower paths."""

    def adopted(self, groups: list[Group], by_hand: dict[int, set[str]]) -> None:
        """Go on from loaded groups; ``by_hand`` has, by group, which of "lr" and "momentum" are the user's."""

    def loaded(self, optimizer: Any, previous: Any) -> None:
        """Loading has succeeded; ``previous`` is the state before it."""

    def unpickled(self, optimizer: Any) -> None:
        """Go on after pickling or copying."""
