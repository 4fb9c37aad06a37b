"""No schedules: ``policy=None``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .schedule import Changes
from .slots import Group

if TYPE_CHECKING:
    from .schedules import Closure, Schedules


class Unscheduled:
    """The optimizer behaves exactly as its base class. See :class:`.schedules.Schedules`."""

    is_traced = False

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        return optimizer._plain_step(closure)

    def compiled_step(self, optimizer: Any, closure: Closure | None) -> Any:
        return optimizer._compiled_plain_step(closure)

    def for_groups(self, optimizer: Any, groups: list[Group]) -> Schedules:
        if all(group.get("policy") is None for group in groups):
            for group in groups:
                group.pop("policy", None)
            return self
        from .host.schedules import HostSchedules

        return HostSchedules(optimizer._slots, optimizer._known).for_groups(optimizer, groups)

    def join(self, optimizer: Any) -> None:
        """No-op: no group has a schedule."""

    def report(self, optimizer: Any, metric: float) -> None:
        raise TypeError("need a policy that listens to a metric (Plateau), got policy=None")

    def reschedule(self, optimizer: Any, changes: Changes) -> None:
        groups = optimizer.param_groups
        changes.values(optimizer._known.resolved(groups), optimizer._slots)  # raises before anything is changed
        for group in groups:
            group["policy"] = None
        from .host.schedules import HostSchedules

        schedules = HostSchedules(optimizer._slots, optimizer._known)
        schedules.adopted(groups, {})
        schedules.reschedule(optimizer, changes)
        optimizer._schedules = schedules

    def plain(self, groups: list[Group]) -> list[Group]:
        return [*self.each_plain(groups)]

    def each_plain(self, groups: list[Group]) -> Iterator[Group]:
        return map(dict, groups)

    def saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict

    def for_loading(self, groups: list[Group]) -> list[Group]:
        return groups

    def remember(self) -> Callable[[], None]:
        return lambda: None

    def fill(self, groups: list[Group], previous: list[Group], keys: Iterable[str]) -> None:
        """No-op: torch adds the missing keys of its groups."""

    def adopted(self, groups: list[Group], by_hand: dict[int, set[str]]) -> None:
        """No-op: no group has a schedule."""

    def loaded(self, optimizer: Any, previous: Any) -> None:
        """No-op: no group has a schedule."""

    def unpickled(self, optimizer: Any) -> None:
        """No-op: no group has a schedule."""
