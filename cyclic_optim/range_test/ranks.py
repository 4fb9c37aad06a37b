"""Several processes that train one model: they must see one loss, and stop at the same step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .train_step import device_of


class Ranks(Protocol):
    """The processes of a range test."""

    first: bool

    def check_same(self, settings: dict[str, Any]) -> None:
        """Refuse settings that differ between the processes."""

    def mean(self, loss: float) -> float:
        """The loss, averaged over the processes."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""

    def all_or_none(self) -> AbstractContextManager[None]:
        """Make the others fail, too, where one process fails in what follows."""


class Alone:
    """One process by itself."""

    first = True

    def check_same(self, settings: dict[str, Any]) -> None: ...

    def mean(self, loss: float) -> float:
        return loss

    def any(self, flag: bool) -> bool:
        return flag

    def all_or_none(self) -> AbstractContextManager[None]:
        return nullcontext()


class Together:
    """The processes of a group. Each call is one collective operation, which every one of them must make."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self.first = dist.get_rank(group) == 0
        self._group, self._device, self._size = group, device, dist.get_world_size(group)

    def check_same(self, settings: dict[str, Any]) -> None:
        all_settings: list[Any] = [None] * self._size
        dist.all_gather_object(all_settings, settings, self._group)
        for name in settings:
            values = [one.get(name) for one in all_settings]
            if any(value != values[0] for value in values):
                raise ValueError(
                    f"need the same {name} on all ranks, got {values} on ranks 0 to {self._size - 1}; "
                    f"process_group=False tests each rank on its own"
                )

    def mean(self, loss: float) -> float:
        # sum() and not fsum(), which refuses infinite losses.
        return sum(self._gathered(loss)) / self._size

    def any(self, flag: bool) -> bool:
        return any(self._gathered(float(flag)))

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.any(True)
            raise
        if self.any(False):
            raise RuntimeError("need all ranks to begin the range test, got an error on another rank: see there")

    def _gathered(self, value: float) -> list[float]:
        # Gathered, not reduced: every rank then computes the mean from the same numbers, so that all get the same bits.
        mine = torch.tensor([value], dtype=torch.float64, device=self._device)
        everyone = [torch.empty_like(mine) for _ in range(self._size)]
        dist.all_gather(everyone, mine, self._group)
        return [one.item() for one in everyone]


def ranks_of(process_group: Any, model: torch.nn.Module) -> Ranks:
    """The processes to test with: those of the group, of the default group for None, this one alone for False."""
    if process_group is False or not dist.is_available() or not dist.is_initialized():
        if process_group not in (None, False):
            raise ValueError(f"need torch.distributed to be initialized for a group, got {process_group=}")
        return Alone()
    if dist.get_rank(process_group) < 0:
        raise ValueError(f"need a process_group that this process belongs to, got {process_group=}")
    return Together(process_group, _device(process_group, model)) if dist.get_world_size(process_group) > 1 else Alone()


def _device(group: Any, model: torch.nn.Module) -> torch.device:
    """Where the group's collective operations can be made."""
    on_host = any(backend in dist.get_backend(group) for backend in ("gloo", "mpi"))
    return torch.device("cpu") if on_host else device_of(model)
