"""Random states: of generators, and of the libraries' own."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from .undo import Undo

#: Saves a thing, and returns what puts it back.
Saver = Callable[[Any], Callable[[], object]]


def generator_types() -> tuple[type, ...]:
    """The classes of random generators: torch's, Python's, and NumPy's if it is loaded."""
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    return (torch.Generator, random.Random, *((numpy.Generator, numpy.RandomState) if numpy is not None else ()))


def array_types() -> tuple[type, ...]:
    """NumPy's arrays, if it is loaded."""
    numpy: Any = sys.modules.get("numpy")
    return () if numpy is None else (numpy.ndarray,)


def generator_saver(thing: Any) -> Saver | None:
    """What saves the state of a random generator; None if it is none."""
    if isinstance(thing, type):
        return None
    if hasattr(thing, "bit_generator"):  # numpy.random.Generator
        return _save_bit_generator
    for getter, setter in (("get_state", "set_state"), ("getstate", "setstate")):  # torch's and numpy's; Python's
        if hasattr(thing, getter) and hasattr(thing, setter):
            return partial(_save_state, getter=getter, setter=setter)
    return None


def _save_state(thing: Any, getter: str = "get_state", setter: str = "set_state") -> Callable[[], object]:
    return partial(getattr(thing, setter), getattr(thing, getter)())


def _save_bit_generator(thing: Any) -> Callable[[], object]:
    return partial(setattr, thing.bit_generator, "state", thing.bit_generator.state)


def random_states() -> Iterator[Undo]:
    """Save the random states of Python, of torch on the host and on its devices, and of NumPy, if it is loaded."""
    yield Undo("random", _save_state(random, "getstate", "setstate"))
    yield Undo("torch's random state", partial(torch.set_rng_state, torch.get_rng_state()))
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    if numpy is not None:
        yield Undo("numpy.random", _save_state(numpy))
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            states = device.get_rng_state_all()
            yield Undo(f"{device.__name__}'s random states", partial(device.set_rng_state_all, states))
    if torch.backends.mps.is_available():
        yield Undo("torch.mps's random state", partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))
