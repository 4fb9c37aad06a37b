"""What a range test calls to train: the protocol, and a step made from a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, SupportsFloat, TypeVar

import torch
from torch import Tensor
from torch.amp import GradScaler

from .things import saver_of

Model = TypeVar("Model", bound=torch.nn.Module)

#: The steps that the range test now running knows of; None while there is none.
_KNOWN: ContextVar[list[Any] | None] = ContextVar("_KNOWN", default=None)


class TrainStep(Protocol):
    """What :func:`lr_range_test` calls to train, and the attributes that it looks for there.

    Only the call is needed: any function without arguments will do, and each attribute and method may be missing. A
    wrapper passes all of them on with ``functools.wraps(step)``: the test looks through ``__wrapped__`` and
    :class:`functools.partial`.

    Attributes:
        scaler: the ``torch.amp.GradScaler`` that the step scales its loss with, if any.
        also: what else the step touches and the test must put back; each thing is one that ``also=`` of
            :func:`lr_range_test` takes.

    Example:

        @functools.wraps(step)
        def clipped():
            loss = step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            return loss
    """

    scaler: GradScaler | None
    also: Sequence[Any]

    def __call__(self) -> SupportsFloat:
        """Do forward and backward; returns the loss: a number, or a tensor of one element.

        ``StopIteration`` says that there are no more data: the test ends with the losses it has.
        """

    def ready(self) -> bool:
        """Whether there are data for the next call. With several ranks, all stop when one has no more."""

    def restart(self) -> None:
        """Begin again with the first batch: called before the test and after it."""


def declaring_steps(train_step: Any) -> list[Any]:
    """``train_step`` and what it wraps: each may declare something."""
    steps = []
    while train_step is not None:
        steps.append(train_step)
        inner = train_step.func if isinstance(train_step, partial) else None
        train_step = getattr(train_step, "__wrapped__", inner)
    return steps


def is_train_step(thing: Any) -> bool:
    """Whether a thing in ``also`` is another step, which train_step calls."""
    declares = any(hasattr(thing, name) for name in ("also", "restart", "ready"))
    return declares and callable(thing) and not isinstance(thing, torch.nn.Module)


@contextmanager
def known(steps: list[Any]) -> Iterator[None]:
    """Let no supervised step but these be called meanwhile."""
    token = _KNOWN.set(steps)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def supervised_step(
    model: Model,
    criterion: Callable[[Any, Any], Tensor] | None,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    accumulation_steps: int = 1,
    scaler: GradScaler | None = None,
    *,
    forward: Callable[[Model, Any], Tensor] | None = None,
) -> SupervisedStep:
    """A ``train_step`` for :func:`lr_range_test` from a loader.

    Each call does forward and backward over the next ``accumulation_steps`` batches and returns their mean loss.
    When the loader ends, it is started again. The loss of a batch is ``criterion(model(inputs), targets)`` for batches
    ``(inputs, targets)``, and ``forward(model, batch)`` for any others:

        supervised_step(model, loss_fn, loader)
        supervised_step(model, None, loader, forward=lambda model, batch: model(**batch).loss)
        supervised_step(model, None, loader, forward=lambda model, batch: loss_fn(model(batch[0], batch[1]), batch[2]))

    Args:
        model: the model to train.
        criterion: takes the model's output and the targets, returns the mean loss of the batch; None with ``forward``.
        loader: gives the batches: anything with a method ``to`` is moved, also inside tuples, named tuples, lists and
            dicts.
        device: where to move the batches (default: the device of the model's first parameter).
        autocast: the dtype of ``torch.autocast``; None for none.
        accumulation_steps: batches per optimizer step, at least 1.
        scaler: a ``torch.amp.GradScaler`` to scale the loss with.
        forward: takes the model and a batch on the device, returns the mean loss of the batch.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or (when called) the loader is empty, a batch is no pair,
            or the loss is no scalar tensor.
        StopIteration: when called, a loader that can be run through only once has ended.
    """
    if type(accumulation_steps) is not int or accumulation_steps < 1:
        raise ValueError(f"need accumulation_steps to be an int >= 1, got {accumulation_steps=}")
    if (criterion is None) == (forward is None):
        raise ValueError(f"need either a criterion or forward, got {criterion=}, {forward=}")
    where = device_of(model) if device is None else torch.device(device)
    return SupervisedStep(model, criterion, loader, where, autocast, accumulation_steps, scaler, forward)


@dataclass(eq=False, repr=False)
class SupervisedStep:
    """Forward and backward over the next batch of a loader; see :func:`supervised_step` and :class:`TrainStep`."""

    model: torch.nn.Module
    criterion: Callable[[Any, Any], Tensor] | None
    loader: Iterable[Any]
    device: torch.device
    autocast: torch.dtype | None
    accumulation_steps: int
    scaler: GradScaler | None
    forward: Callable[[Any, Any], Tensor] | None
    _batches: Iterator[Any] | None = None
    _next: list[Any] = field(default_factory=list)  # taken by ready() for the next call
    _taken: int = 0

    @property
    def also(self) -> list[Any]:
        """What it touches: the model, the scaler, a loss function that is a module, and the loader."""
        losses = [_module_of(one) for one in (self.criterion, self.forward)]
        # Batches in a list are data, of which training needs no clone.
        loaders = [self.loader] if saver_of(self.loader) is not None else []
        return [one for one in (self.model, self.scaler, *losses, *loaders) if one is not None]

    def restart(self) -> None:
        """Begin again with the loader's first batch."""
        self._batches, self._next, self._taken = None, [], 0

    def ready(self) -> bool:
        """Whether there are batches for the next call."""
        while len(self._next) < self.accumulation_steps:
            taken = list(self._take())
            if not taken:
                return False
            self._next += taken
        return True

    def __call__(self) -> float:
        """Do forward and backward; returns the mean loss."""
        known = _KNOWN.get()
        if known is not None and not any(step is self for step in known):
            raise ValueError(
                "need lr_range_test to know of the supervised_step that train_step calls, or its scaler would not be "
                "used, nor its loader put back: decorate train_step with functools.wraps(step), or pass also=(step,)"
            )
        total = 0.0
        for _ in range(self.accumulation_steps):  # no generator: it would turn StopIteration into a RuntimeError
            total += self._one_batch()
        return total

    def _one_batch(self) -> float:
        batch = _moved(self._next_batch(), self.device)
        with self._precision():
            loss = self._loss(batch) / self.accumulation_steps
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _loss(self, batch: Any) -> Tensor:
        if self.forward is not None:
            return _scalar(self.forward(self.model, batch), "forward")
        inputs, targets = _pair(batch)
        assert self.criterion is not None
        return _scalar(self.criterion(self.model(inputs), targets), "criterion")

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    def _next_batch(self) -> Any:
        self._next = self._next or list(self._take())
        if self._next:
            self._taken += 1
            return self._next.pop(0)
        if self._taken:
            raise StopIteration(f"the loader ended after {self._taken} batches and cannot be run through again")
        raise ValueError("need a loader with at least one batch, got an empty one")

    def _take(self) -> Iterator[Any]:
        """The next batch, if there is one: of a loader that has ended, the first one again."""
        for _ in range(2):
            if self._batches is None:
                self._batches = iter(self.loader)
            for batch in self._batches:
                yield batch
                return
            self._batches = None


def device_of(model: torch.nn.Module) -> torch.device:
    for param in model.parameters():
        return param.device
    raise ValueError(f"need a model with parameters, or device=..., got {type(model).__name__} without")


def _module_of(function: Any) -> torch.nn.Module | None:
    """The module that a loss function is, or is a method of, or is bound to by a partial."""
    function = function.func if isinstance(function, partial) else function
    function = getattr(function, "__self__", function)
    return function if isinstance(function, torch.nn.Module) else None


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    length = f" of {len(batch)}" if isinstance(batch, (tuple, list, Mapping)) else ""
    raise ValueError(
        f"need batches (inputs, targets) with a criterion, got a {type(batch).__name__}{length}: pass "
        f"forward=lambda model, batch: ... instead of the criterion, which returns the loss of such a batch"
    )


def _scalar(loss: Any, source: str) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"need {source} to return the loss as a tensor, got {loss!r}")
    if loss.numel() != 1:
        raise ValueError(f"need {source} to return the mean loss of the batch, got a tensor of {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError(
            f"need {source} to return a loss that depends on parameters with requires_grad=True, got {loss}"
        )
    return loss.squeeze()


def _moved(batch: Any, device: torch.device) -> Any:
    """The batch on the device; what cannot be moved stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):  # a packed sequence, transformers' BatchEncoding, a graph
        return batch.to(device)
    if isinstance(batch, Mapping):
        return _like(batch, {key: _moved(value, device) for key, value in batch.items()})
    if isinstance(batch, (list, tuple)):
        return _like(batch, [_moved(value, device) for value in batch])
    return batch


def _like(batch: Any, moved: Any) -> Any:
    """The moved parts in a container of the batch's type, where it can be made of them."""
    if hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*moved)
    return type(batch)(moved) if type(batch) in (dict, list, tuple) else moved
