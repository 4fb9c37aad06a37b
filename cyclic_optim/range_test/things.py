"""What else training touches, and what saves each kind: generators, loaders, whatever has a state_dict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..torch_private import loader_iterator, set_loader_iterator
from .containers import ENTERED, Found, refill
from .random_states import Saver, generator_saver
from .undo import Undo

#: Where loaders keep what they and their epochs are made of. The last two are those of accelerate's loaders.
LOADER_PARTS = ("sampler", "batch_sampler", "base_dataloader", "gradient_state")


def enterable(thing: Any) -> bool:
    """Whether a thing is saved by looking for its tensors and containers."""
    return isinstance(thing, ENTERED)


def saver_of(thing: Any) -> Saver | None:
    """What saves the state of a thing that cannot be entered; None if nothing is known that does."""
    if isinstance(thing, type):
        return None
    if isinstance(thing, DataLoader):
        return _save_loader
    if (saver := generator_saver(thing)) is not None:
        return saver
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        return _save_state_dict
    return _save_generators if generators_of(thing) else None


def can_be_saved(thing: Any) -> bool:
    """Whether ``also=`` takes this thing."""
    return enterable(thing) or saver_of(thing) is not None


def check(named: list[tuple[str, Any]]) -> None:
    """Refuse a thing that nothing is known to save.

    Raises:
        TypeError: there is one.
    """
    for name, thing in named:
        if not can_be_saved(thing):
            raise TypeError(
                f"need also= to hold modules, optimizers, tensors, random generators, loaders, or whatever has "
                f"state_dict() and load_state_dict(), got {name}: {thing!r}"
            )


def save(named: list[tuple[str, Any]], found: Found) -> Iterator[Undo]:
    """Save the things that cannot be entered, one after another, and enter the others into ``found``."""
    for name, thing in named:
        if enterable(thing):
            found.add(name, thing)
        elif (saver := saver_of(thing)) is not None:
            try:
                yield Undo(name, saver(thing))
            except Exception as error:
                raise ValueError(f"need also= to hold what can be saved, got {name}, which raised {error!r}") from error


def _save_state_dict(thing: Any) -> Callable[[], object]:
    # A copy: many state_dicts hold the very lists and tensors that training writes to.
    return partial(thing.load_state_dict, copy.deepcopy(thing.state_dict()))


def _save_generators(loader: Any) -> Callable[[], object]:
    states = [saver(one) for one in generators_of(loader) if (saver := generator_saver(one)) is not None]
    return lambda: [put_back() for put_back in states]


def _save_loader(loader: Any) -> Callable[[], object]:
    """Save random states and what counts epochs; workers that persist keep their batches, as the test gets its own."""
    states = _save_generators(loader)
    attributes = [(vars(part), dict(vars(part))) for part in _parts_of(loader) if hasattr(part, "__dict__")]
    for part in _parts_of(loader):
        if loader_iterator(part) is not None:
            set_loader_iterator(part, None)

    def put_back() -> None:
        for now, before in attributes:
            refill(now, before)
        states()

    return put_back


def generators_of(loader: Any) -> list[torch.Generator]:
    """The random generators of a loader and its samplers, each once."""
    found = (getattr(part, "generator", None) for part in _parts_of(loader))
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def _parts_of(loader: Any, depth: int = 4) -> Iterator[Any]:
    """A loader and its samplers, inside one another, some more than once; also what accelerate keeps for a loader."""
    yield loader
    for name in LOADER_PARTS if depth else ():
        if (part := getattr(loader, name, None)) is not None:
            yield from _parts_of(part, depth - 1)
