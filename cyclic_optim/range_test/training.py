"""One optimizer step of a range test, and its loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from .ranks import Ranks


@dataclass
class Training:
    """What is trained, and how. ``steps`` are ``train_step``, what it wraps and what it calls."""

    model: torch.nn.Module
    optimizer: Optimizer
    train_step: Callable[[], SupportsFloat]
    steps: list[Any]
    validation: Callable[[], SupportsFloat] | None
    scaler: GradScaler | None
    ranks: Ranks
    _modes: list[tuple[torch.nn.Module, bool]] = field(default_factory=list)

    def restart(self) -> None:
        """Begin with the first batch again, where a step can."""
        for step in self.steps:
            getattr(step, "restart", lambda: None)()

    def start(self) -> None:
        """Get ready for the first step."""
        self.restart()
        if not self.model.training:
            self.model.train()
        if self.validation is not None:
            _use_last_batch_statistics(self.model)
        self._modes = [(module, module.training) for module in self.model.modules()]

    def step(self) -> float | None:
        """Make one optimizer step; returns the loss, or None if there are no more data.

        No update follows a loss that is not finite.
        """
        self._clear()
        if self.ranks.any(not self._ready()):
            return None
        loss = self._backward()
        if self.ranks.any(loss is None):
            return None
        assert loss is not None
        loss = self.ranks.mean(loss)
        if not math.isfinite(loss):
            return loss
        self._update()
        return loss if self.validation is None else self.ranks.mean(_as_float(self.validation(), "validation"))

    def _clear(self) -> None:
        """Clear the gradients, and end an evaluation that left the model in eval mode."""
        for module, training in self._modes:
            if module.training is not training:
                module.training = training
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _ready(self) -> bool:
        return all(getattr(step, "ready", lambda: True)() for step in self.steps)

    def _backward(self) -> float | None:
        try:
            return _as_float(self.train_step(), "train_step")
        except StopIteration:
            return None

    def _update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def _use_last_batch_statistics(model: torch.nn.Module) -> None:
    """Let running statistics be those of the last batch.

    Averages over many batches settle from their initial values, and follow the weights late. In a validation loss both
    look like an effect of the rate.
    """
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None and hasattr(module, "momentum"):
            module.momentum = 1.0  # type: ignore[assignment]


def _as_float(loss: Any, source: str) -> float:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"need {source} to return one loss, got a tensor of shape {tuple(loss.shape)}")
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError) as error:
        raise TypeError(f"need {source} to return the loss, a number, got {loss!r}") from error
