"""Putting training back exactly as it was: what a range test may touch, copied aside and written back."""

from __future__ import annotations

import copy
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

T = TypeVar("T")

#: Where copies of tensors are kept meanwhile.
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
    """Call ``body`` and return what it returns; whatever happens in it, everything is as before afterwards.

    That is, bit for bit: parameters, buffers and gradients of ``model``; state, param groups and
    attributes of ``optimizer``; train/eval mode; ``scaler``; the random states of Python, of NumPy (if it is
    loaded), of torch on the CPU and on CUDA, and of ``generators``. Tensors stay the objects they were.
    A Ctrl-C while things are put back is raised when they are.

    Args:
        keep: where the copies of tensors go: ``"device"`` (where the tensors are), ``"cpu"`` or
            ``"disk"`` (a temporary file).
        last: called after ``body``, before anything is put back.
    """
    if keep not in PLACES:
        raise ValueError(f"need keep to be one of {', '.join(map(repr, PLACES))}, got {keep=}")
    interrupts = Interrupts()
    try:
        interrupts.catch()
        with ExitStack() as undo:
            # In the order in which it is to be undone last: tensors after the objects that hold them.
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


class Interrupts:
    """Ctrl-C, which waits while :attr:`wait` is set, from :meth:`catch` to :meth:`release`.

    Python may raise KeyboardInterrupt after any call, also on the way into and out of a ``with`` block and between
    two lines of a ``finally``. What must be done to the end therefore cannot be left to these: the handler itself
    has to hold back, by a flag that is set without a call. Only Python's main thread has signals to handle; whoever
    has put a handler in place that is no function of Python's has a way of his own.
    """

    def __init__(self) -> None:
        self.wait, self._came = True, False
        self._usual: Any = None

    def catch(self) -> None:
        usual = signal.getsignal(signal.SIGINT)
        if callable(usual) and threading.current_thread() is threading.main_thread():
            self._usual = usual
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wait:
            self._came = True
        else:
            self._usual(number, frame)

    def raise_late(self) -> None:
        """Do now what a signal that came while it had to wait asked for."""
        if self._came:
            self._came = False
            self._usual(signal.SIGINT, sys._getframe())

    def release(self) -> None:
        if self._usual is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._usual)
        self.raise_late()


def _all_tensors(model: torch.nn.Module, optimizer: Optimizer, scaler: Any) -> list[Tensor]:
    optimized = [param for group in optimizer.param_groups for param in group["params"]]
    held: list[Any] = [*model.parameters(), *model.buffers(), *optimized]
    held += [tensor.grad for tensor in held]
    held += [list(optimizer.state.values()), optimizer.param_groups, vars(scaler) if scaler is not None else None]
    return list({id(tensor): tensor for tensor in _tensors_in(held)}.values())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def _tensors(tensors: list[Tensor], keep: str) -> Callable[[], None]:
    if keep == "disk":
        file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the copies are read back)
        torch.save([tensor.detach() for tensor in tensors], file)

        def copies() -> list[Tensor]:
            file.seek(0)
            loaded: list[Tensor] = torch.load(file, weights_only=True, map_location="cpu")
            file.close()
            return loaded
    else:
        # clone() keeps the layout, and bits that mean nothing to arithmetic (the payload of a NaN).
        kept = [t.detach().clone() if keep == "device" else t.detach().to("cpu", copy=True) for t in tensors]

        def copies() -> list[Tensor]:
            return kept

    def restore() -> None:
        with torch.no_grad():
            for tensor, saved in zip(tensors, copies(), strict=True):
                tensor.copy_(saved)

    return restore


def _structure(model: torch.nn.Module, optimizer: Optimizer, scaler: Any) -> Callable[[], None]:
    """Everything but the contents of tensors: which objects hold which, and plain values."""
    modes = [(module, module.training) for module in model.modules()]
    optimized = (param for group in optimizer.param_groups for param in group["params"])
    grads = [(param, param.grad) for param in {id(p): p for p in (*model.parameters(), *optimized)}.values()]
    dicts: list[tuple[Any, dict[Any, Any]]] = [
        (vars(optimizer), dict(vars(optimizer))),
        (optimizer.state, _copy(dict(optimizer.state))),
    ]
    dicts += [(group, _copy(group)) for group in optimizer.param_groups]
    if scaler is not None:
        dicts.append((vars(scaler), _copy(vars(scaler))))

    def restore() -> None:
        for module, training in modes:
            module.training = training
        for param, grad in grads:
            param.grad = grad
        for current, saved in dicts:
            current.clear()
            current.update(saved)

    return restore


def _copy(value: Any) -> Any:
    """A copy with the very same tensors and dict keys in it."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        twin = copy.copy(value)  # a defaultdict stays one
        twin.update({key: _copy(item) for key, item in value.items()})
        return twin
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return value


def _random_states(generators: Iterable[torch.Generator]) -> Callable[[], None]:
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    legacy = numpy.get_state() if numpy is not None else None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    own = [(generator, generator.get_state()) for generator in generators]

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if legacy is not None:
            numpy.set_state(legacy)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in own:
            generator.set_state(state)

    return restore
