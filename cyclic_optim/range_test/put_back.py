"""Putting training back exactly as it was: everything that a range test may touch is copied, and copied back.

Each function that copies something returns the function that puts it back.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .interrupts import Interrupts

T = TypeVar("T")

#: Where the clones of tensors are kept during the test.
PLACES = ("device", "cpu", "disk")


def run_and_put_back(
    body: Callable[[], T],
    model: torch.nn.Module,
    optimizer: Optimizer,
    *,
    scaler: Any = None,
    generators: Iterable[torch.Generator] = (),
    keep: str = "device",
    last: Callable[[], None] = lambda: None,
) -> T:
    """Call ``body`` and return what it returns; afterwards, also after an exception, everything is as it was before.

    This restores bit for bit: parameters, buffers and gradients of ``model``; state, param groups and attributes of
    ``optimizer``; train/eval mode; ``scaler``; the random states of Python, of NumPy (if it is loaded), of torch on
    the CPU and on CUDA, and of ``generators``. Tensors stay the same objects. A Ctrl-C during the restoring is raised
    at its end.

    Args:
        keep: where the clones of tensors are kept: ``"device"`` (where the tensors are), ``"cpu"`` or
            ``"disk"`` (a temporary file).
        last: called after ``body``, before anything is put back.
    """
    if keep not in PLACES:
        raise ValueError(f"need keep to be one of {', '.join(map(repr, PLACES))}, got {keep=}")
    interrupts = Interrupts()
    try:
        interrupts.catch()
        with ExitStack() as undo:
            # ExitStack undoes in reverse: random state, structure, tensor contents.
            undo.callback(_tensors(_all_tensors(model, optimizer, scaler), keep))
            undo.callback(_structure(model, optimizer, scaler))
            undo.callback(_random_states(generators))
            undo.callback(last)
            try:
                interrupts.wait = False
                interrupts.raise_late()
                return body()
            finally:
                interrupts.wait = True
    finally:
        interrupts.release()


# -- tensor contents --------------------------------------------------------------------------------


def _all_tensors(model: torch.nn.Module, optimizer: Optimizer, scaler: Any) -> list[Tensor]:
    """Every tensor that training may write to, once."""
    held: list[Any] = [*model.parameters(), *model.buffers(), *_optimized(optimizer)]
    held += [tensor.grad for tensor in held]
    held += [list(optimizer.state.values()), optimizer.param_groups, vars(scaler) if scaler is not None else None]
    return list({id(tensor): tensor for tensor in _tensors_in(held)}.values())


def _optimized(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def _tensors(tensors: list[Tensor], keep: str) -> Callable[[], None]:
    """Clone the contents of the tensors."""
    clones = _on_disk(tensors) if keep == "disk" else _in_memory(tensors, keep)

    def restore() -> None:
        with torch.no_grad():
            for tensor, clone in zip(tensors, clones(), strict=True):
                tensor.copy_(clone)

    return restore


def _in_memory(tensors: list[Tensor], keep: str) -> Callable[[], list[Tensor]]:
    # clone() keeps the layout, and also bits that arithmetic does not distinguish (the payload of a NaN).
    clones = [t.detach().clone() if keep == "device" else t.detach().to("cpu", copy=True) for t in tensors]
    return lambda: clones


def _on_disk(tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the clones are read)
    torch.save([tensor.detach() for tensor in tensors], file)

    def clones() -> list[Tensor]:
        file.seek(0)
        loaded: list[Tensor] = torch.load(file, weights_only=True, map_location="cpu")
        file.close()
        return loaded

    return clones


# -- everything else --------------------------------------------------------------------------------


def _structure(model: torch.nn.Module, optimizer: Optimizer, scaler: Any) -> Callable[[], None]:
    """Copy everything but the contents of tensors: plain values, and which object holds which."""
    modes = [(module, module.training) for module in model.modules()]
    params = {id(param): param for param in (*model.parameters(), *_optimized(optimizer))}.values()
    grads = [(param, param.grad) for param in params]
    dicts = _dicts(optimizer, scaler)

    def restore() -> None:
        for module, training in modes:
            module.training = training
        for param, grad in grads:
            param.grad = grad
        for current, saved in dicts:
            current.clear()
            current.update(saved)

    return restore


def _dicts(optimizer: Optimizer, scaler: Any) -> list[tuple[Any, dict[Any, Any]]]:
    """The dicts that training may write to, each with its copy."""
    dicts: list[tuple[Any, dict[Any, Any]]] = [
        (vars(optimizer), dict(vars(optimizer))),
        (optimizer.state, _copied(dict(optimizer.state))),
    ]
    dicts += [(group, _copied(group)) for group in optimizer.param_groups]
    if scaler is not None:
        dicts.append((vars(scaler), _copied(vars(scaler))))
    return dicts


def _copied(value: Any) -> Any:
    """A copy that holds the very same tensors and dict keys."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        twin = copy.copy(value)  # a defaultdict stays one
        twin.update({key: _copied(item) for key, item in value.items()})
        return twin
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return value


def _random_states(generators: Iterable[torch.Generator]) -> Callable[[], None]:
    """Copy the random states of Python, torch, NumPy and the generators."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    if numpy is not None:
        states.append((numpy.set_state, numpy.get_state()))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    states += [(generator.set_state, generator.get_state()) for generator in generators]

    def restore() -> None:
        for put_back, state in states:
            put_back(state)

    return restore
