"""The range test itself: train while the learning rate climbs, then undo everything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..policies.decay import ExponentialRamp, LinearRamp
from ..slots import OWN_DECAY
from .progress import Progress
from .put_back import run_and_put_back
from .result import LRRangeTest
from .watch import Watch

RAMPS: dict[str, type[ExponentialRamp] | type[LinearRamp]] = {"exponential": ExponentialRamp, "linear": LinearRamp}


def lr_range_test(
    model: torch.nn.Module,
    optimizer: Optimizer,
    train_step: Callable[[], Any],
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = 100,
    mode: str = "exponential",
    smoothing: float = 0.8,
    divergence_factor: float = 2.0,
    validation: Callable[[], Any] | None = None,
    scaler: Any = None,
    keep: str = "device",
    progress: bool = True,
) -> LRRangeTest:
    """Train for some steps while the learning rate climbs from far too low to far too high; then undo everything.

    Step i of n is made at ``start_lr * (end_lr / start_lr) ** (i / (n - 1))``, or on a straight line with
    ``mode="linear"``. With several param groups this is the first group's rate; the others keep their ratio to it.
    Momentum and weight decay are held at their current values. The test stops early when the loss is NaN or infinite.
    It also stops when the average loss has climbed above its lowest value by ``divergence_factor`` times as much as it
    had fallen (or as the first losses scatter, if that is more). This rule works for losses of any sign and size.

    Afterwards, also after an exception or Ctrl-C, everything is as it was before, bit for bit: parameters, buffers,
    gradients and mode of the model, state and param groups of the optimizer, the scaler, and the random states of
    Python, NumPy, torch and the loader.

    Args:
        model: the model to train; put in train mode if it is in eval mode.
        optimizer: any torch optimizer whose ``step()`` needs no closure.
        train_step: does forward and backward, and returns the loss. Gradients are cleared before it, and
            ``optimizer.step()`` is called after it. :func:`supervised_step` makes one from a loader.
        start_lr, end_lr: the first and the last rate, ``0 < start_lr < end_lr``.
        num_steps: optimizer steps, at least 2.
        mode: ``"exponential"`` or ``"linear"``.
        smoothing: weight of the past in the averaged loss, in [0, 1).
        divergence_factor: greater than 0; ``math.inf`` for never.
        validation: returns the loss to record instead, measured after each update.
        scaler: the ``torch.amp.GradScaler`` that ``train_step`` scales the loss with, if any.
        keep: where the clones are kept during the test: ``"device"``, ``"cpu"`` or ``"disk"``.
        progress: show a bar with the current rate and the smoothed loss, in a terminal or a notebook, if tqdm is
            installed.

    Returns:
        The curve, and what can be read off it.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    An exception of ``train_step`` is not caught.

    Source: L. N. Smith 2017 (arXiv 1506.01186), section 3.3.
    """
    ramp = _ramp(start_lr, end_lr, num_steps, mode)
    _check(smoothing, divergence_factor)
    ratios = _ratios(optimizer)
    scaler = scaler if scaler is not None else getattr(train_step, "scaler", None)
    training = _Training(model, optimizer, train_step, validation, scaler)
    watch = Watch(num_steps, smoothing, divergence_factor)
    lrs: list[float] = []
    losses: list[float] = []

    def climb() -> str:
        training.start()
        held = list(map(_held, optimizer.param_groups))
        with Progress(num_steps, progress) as bar:
            for step in bar:
                lrs.append(end_lr * ramp.at(step).lr_factor)
                _set(optimizer, lrs[-1], ratios, held)
                losses.append(training.step())
                if reason := watch.reason_to_stop(lrs[-1], losses[-1]):
                    return reason
                bar.show(lrs[-1], watch.average)
        return f"end_lr={end_lr:g} was reached"

    generators = getattr(train_step, "generators", ())
    stopped = run_and_put_back(
        climb, model, optimizer, scaler=scaler, generators=generators, keep=keep, last=training.restart
    )
    return LRRangeTest(lrs, losses, mode, stopped, smoothing, watch.ceiling, ratios)


@dataclass(frozen=True)
class _Training:
    """What is trained, and how."""

    model: torch.nn.Module
    optimizer: Optimizer
    train_step: Callable[[], Any]
    validation: Callable[[], Any] | None
    scaler: Any

    def restart(self) -> None:
        """Begin with the first batch again, if ``train_step`` can."""
        getattr(self.train_step, "restart", lambda: None)()

    def start(self) -> None:
        self.restart()
        if not self.model.training:
            self.model.train()

    def step(self) -> float:
        """Make one optimizer step; returns the loss. No update follows a loss that is not finite."""
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = _as_float(self.train_step())
        if not math.isfinite(loss):
            return loss
        self._update()
        return loss if self.validation is None else _as_float(self.validation())

    def _update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def _ramp(start_lr: float, end_lr: float, num_steps: int, mode: str) -> ExponentialRamp | LinearRamp:
    """The policy that the rates follow, from the first step to the last."""
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"need 0 < start_lr < end_lr < inf, got {start_lr=}, {end_lr=}")
    if type(num_steps) is not int:
        raise TypeError(f"need num_steps to be an int, got {num_steps=}")
    if num_steps < 2:
        raise ValueError(f"need 2 <= num_steps, got {num_steps=}")
    if mode not in RAMPS:
        raise ValueError(f"need mode to be one of {', '.join(map(repr, RAMPS))}, got {mode=}")
    return RAMPS[mode](num_steps - 1, start_factor=start_lr / end_lr)


def _check(smoothing: float, divergence_factor: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"need 0 <= smoothing < 1, got {smoothing=}")
    if not divergence_factor > 0:
        raise ValueError(f"need 0 < divergence_factor, got {divergence_factor=}")


def _ratios(optimizer: Optimizer) -> tuple[float, ...]:
    """The rate of each param group over the first one's."""
    # The peaks of a schedule are the rates that the user set. The current rates may be anywhere on it.
    peaks = [float(group.get("max_lr", group["lr"])) for group in optimizer.param_groups]
    if not peaks[0] > 0:
        raise ValueError(f"need a first param group with 0 < lr, to which the others' rates relate, got lr={peaks[0]}")
    return tuple(peak / peaks[0] for peak in peaks)


def _held(group: dict[str, Any]) -> dict[str, Any]:
    """The current values that are held: momentum, and a weight decay that a policy moves."""
    keys = ("momentum", "weight_decay") if OWN_DECAY in group else ("momentum",)
    return {key: _number(group[key]) for key in keys if group.get(key) is not None}


def _set(optimizer: Optimizer, lr: float, ratios: tuple[float, ...], held: list[dict[str, Any]]) -> None:
    """Write the values of the next step into the param groups."""
    for group, ratio, values in zip(optimizer.param_groups, ratios, held, strict=True):
        for key, value in {"lr": lr * ratio, **values}.items():
            _write(group, key, value)


def _write(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def _number(value: Any) -> Any:
    """The current value as a number, if it is a tensor that the optimizer may write to."""
    return value.item() if isinstance(value, Tensor) else value


def _as_float(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)
