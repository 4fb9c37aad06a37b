"""A training step made from a loader, for the range test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def supervised_step(
    model: torch.nn.Module,
    criterion: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    accumulation_steps: int = 1,
    scaler: Any = None,
) -> SupervisedStep:
    """A ``train_step`` for :func:`lr_range_test` from a loader of ``(inputs, targets)``.

    Each call does forward and backward over the next ``accumulation_steps`` batches and returns their mean loss.
    When the loader ends, it is started again.

    Args:
        model: the model to train.
        criterion: takes the model's output and the targets, returns the mean loss of the batch.
        loader: gives batches ``(inputs, targets)``: tensors, or lists and dicts of them.
        device: where to move the batches (default: the device of the model's first parameter).
        autocast: the dtype of ``torch.autocast``; None for none.
        accumulation_steps: batches per optimizer step, at least 1.
        scaler: a ``torch.amp.GradScaler`` to scale the loss with.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or (when called) the loader is empty.
    """
    if type(accumulation_steps) is not int or accumulation_steps < 1:
        raise ValueError(f"need accumulation_steps to be an int >= 1, got {accumulation_steps=}")
    return SupervisedStep(model, criterion, loader, device, autocast, accumulation_steps, scaler)


class SupervisedStep:
    """Forward and backward over the next batch of a loader; see :func:`supervised_step`."""

    def __init__(
        self,
        model: torch.nn.Module,
        criterion: Callable[[Any, Any], Tensor],
        loader: Iterable[Any],
        device: torch.device | str | None,
        autocast: torch.dtype | None,
        accumulation_steps: int,
        scaler: Any,
    ) -> None:
        self.model, self.criterion, self.loader = model, criterion, loader
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.autocast, self.accumulation_steps, self.scaler = autocast, accumulation_steps, scaler
        self._batches: Iterator[Any] | None = None

    @property
    def generators(self) -> list[torch.Generator]:
        """The random generators of the loader and its samplers."""
        loader: Any = self.loader
        samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        samplers += [getattr(sampler, "sampler", None) for sampler in samplers]
        found = (getattr(holder, "generator", None) for holder in (loader, *samplers))
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def restart(self) -> None:
        """Begin again with the loader's first batch."""
        self._batches = None

    def __call__(self) -> float:
        """Do forward and backward; returns the mean loss."""
        total = 0.0
        for _ in range(self.accumulation_steps):
            inputs, targets = _moved(self._next_batch(), self.device)
            with self._precision():
                loss = self.criterion(self.model(inputs), targets) / self.accumulation_steps
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total += loss.item()
        return total

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    def _next_batch(self) -> Any:
        for _ in range(2):
            if self._batches is None:
                self._batches = iter(self.loader)
            for batch in self._batches:
                return batch
            self._batches = None
        raise ValueError("need a loader with at least one batch, got an empty one")


def _moved(batch: Any, device: torch.device) -> Any:
    """The batch on the device; whatever is no tensor in it stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_moved(value, device) for value in batch]
    return batch
