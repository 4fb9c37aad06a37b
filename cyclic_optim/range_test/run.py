"""The range test itself: train while the learning rate climbs, then undo everything."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..policies import Policy
from ..policies.base import class_hint
from ..policies.decay import ExponentialRamp, LinearRamp
from ..rules import one_of
from .contents import Place
from .param_groups import (
    check_trainable,
    have_rates_of_their_own,
    held_values,
    maximizes,
    needs_closure,
    peaks_of,
    ratios_of,
    set_rates,
)
from .progress import Progress
from .put_back import save_all
from .ranks import ranks_of
from .result import LRRangeTest, RampMode
from .train_step import declaring_steps, is_train_step, known
from .training import Training
from .undo import Undo, put_back, run_and_put_back
from .watch import Watch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # which not every build of torch has

RAMPS: dict[RampMode, type[ExponentialRamp] | type[LinearRamp]] = {"exponential": ExponentialRamp, "linear": LinearRamp}


def lr_range_test(
    model: torch.nn.Module,
    optimizer: Optimizer,
    train_step: Callable[[], SupportsFloat],
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = 100,
    mode: RampMode = "exponential",
    smoothing: float = 0.8,
    divergence_factor: float = 2.0,
    validation: Callable[[], SupportsFloat] | None = None,
    scaler: GradScaler | None = None,
    also: tuple[Any, ...] | list[Any] = (),
    process_group: ProcessGroup | Literal[False] | None = None,
    keep: Place = "device",
    progress: bool = True,
) -> LRRangeTest:
    """Train for some steps while the learning rate climbs from far too low to far too high; then undo everything.

    Step i of n is made at ``start_lr * (end_lr / start_lr) ** (i / (n - 1))``, or on a straight line with
    ``mode="linear"``. With several param groups this is the first group's rate; the others keep their ratio to it.
    Momentum and weight decay are held at their current values. The test stops early when the loss is NaN or infinite.
    It also stops when the average loss has climbed above its lowest value by ``divergence_factor`` times as much as it
    had fallen (or as the first losses scatter, if that is more). This rule works for losses of any sign and size. With
    ``maximize=True`` in the optimizer, it stops when the loss has fallen so far.

    Afterwards, also after an exception or Ctrl-C, everything is as it was before, bit for bit: parameters, buffers,
    gradients and mode of the model, its attributes that are numbers, tensors, arrays, lists, dicts, sets or random
    generators, state and param groups of the optimizer, the scaler, what ``train_step`` and ``also`` name, and the
    random states of Python, NumPy, torch and the loader. A parameter or buffer that was replaced comes back. Objects of
    other kinds, as a dataset's own generator, are put back if ``also`` names them. An iterator that can be run through
    only once stays where it is, and a graph that was made before the test cannot be used after it.

    **Several processes.** Where ``torch.distributed`` is initialized, all ranks must call this function. Each loss is
    averaged over the ranks, so that all stop at the same step and return the same curve.

    Args:
        model: the model to train. Each step is made in train mode, but for parts in eval mode of a model that is in
            train mode.
        optimizer: any torch optimizer whose ``step()`` needs no closure.
        train_step: does forward and backward, and returns the loss. Gradients are cleared before it, and
            ``optimizer.step()`` is called after it. :func:`supervised_step` makes one from a loader;
            :class:`TrainStep` says what else it may declare.
        start_lr, end_lr: the first and the last rate, ``0 < start_lr < end_lr``.
        num_steps: optimizer steps, at least 2.
        mode: ``"exponential"`` or ``"linear"``.
        smoothing: weight of the past in the averaged loss, in [0, 1).
        divergence_factor: greater than 0; ``math.inf`` for never.
        validation: returns the loss to record instead, measured after each update. Meanwhile the running statistics
            of normalization layers are those of the last training batch (``momentum=1``): averages that still settle
            would hide the effect of the rate.
        scaler: the ``torch.amp.GradScaler`` that ``train_step`` scales the loss with, if any.
        also: what else training touches, to be put back: modules (the other network of a GAN, a loss with
            parameters), optimizers, tensors, random generators, loaders, other training steps, and whatever has
            ``state_dict()`` and ``load_state_dict()``.
        process_group: the ranks to average over (default: all of them); False for this process alone.
        keep: where the clones are kept during the test: ``"device"``, ``"cpu"`` or ``"disk"``.
        progress: show a bar with the current rate and the smoothed loss, in a terminal or a notebook, if tqdm is
            installed.

    Returns:
        The curve, and what can be read off it.

    Raises:
        ValueError, TypeError: an argument breaks its rule; nothing was changed.
        RestoreError: something could not be put back. It holds the result.

    An exception of ``train_step`` is not caught.

    Source: L. N. Smith 2017 (arXiv 1506.01186), section 3.3.
    """
    _check_kinds(model, optimizer, train_step, validation, also)
    ranks, peaks = ranks_of(process_group, model), peaks_of(optimizer)
    rates_of_their_own = have_rates_of_their_own(optimizer)  # asked now: the test writes other rates
    own = declaring_steps(train_step)
    others = [step for thing in also if is_train_step(thing) for step in declaring_steps(thing)]
    steps = own + others
    ranks.check_same(
        {"start_lr": start_lr, "end_lr": end_lr, "num_steps": num_steps, "mode": mode, "smoothing": smoothing}
        | {"divergence_factor": divergence_factor, "rates of the param groups": peaks}
        | {"validation (given or not)": validation is not None, "accumulation_steps": _accumulation(steps)}
    )
    with ranks.all_or_none():
        ramp, ratios = _ramp(start_lr, end_lr, num_steps, mode), ratios_of(peaks)
        _check(smoothing, divergence_factor)
        check_trainable(optimizer)
        scaler = _scaler_of(model, scaler, own, others)
        watch = Watch(num_steps, smoothing, divergence_factor, maximizes(optimizer))
    training = Training(model, optimizer, train_step, steps, validation, scaler, ranks)
    climb = Climb(optimizer, training, lambda step: end_lr * ramp.at(step).lr_factor, ratios, watch)

    def body() -> LRRangeTest:
        with known(steps), Progress(num_steps, progress and ranks.first) as bar:
            stopped = climb.run(bar) or f"end_lr={end_lr:g} was reached"
        curve = climb.lrs, climb.losses, mode, stopped, smoothing, watch.ceiling
        return LRRangeTest(*curve, ratios, watch.maximize, rates_of_their_own)

    def save() -> list[Undo]:
        things = _things(steps, also)
        undos: list[Undo] = []
        try:
            with ranks.all_or_none():
                undos = save_all(model, optimizer, scaler=scaler, also=things, keep=keep, restart=training.restart)
        except BaseException:
            put_back(undos)
            raise
        return undos

    return run_and_put_back(body, save)


@dataclass
class Climb:
    """Training while the rate climbs: the rates, and the losses that were recorded at them."""

    optimizer: Optimizer
    training: Training
    rate: Callable[[int], float]  # of a step, in the first param group
    ratios: tuple[float, ...]
    watch: Watch
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def run(self, bar: Progress) -> str | None:
        """Make the steps of the bar; returns in words why they ended early, or None."""
        self.training.start()
        held = held_values(self.optimizer)
        for step in bar:
            lr = self.rate(step)
            set_rates(self.optimizer, lr, self.ratios, held)
            loss = self.training.step()
            if loss is None:
                return self._data_ended()
            self.lrs.append(lr)
            self.losses.append(loss)
            if reason := self.watch.reason_to_stop(lr, loss):
                return reason
            bar.show(lr, self.watch.average)
        return None

    def _data_ended(self) -> str:
        if not self.losses:
            raise ValueError("need data for at least one optimizer step, got an empty loader or an ended iterator")
        return f"the data ended after {len(self.losses)} steps"


def _optimizer_hint(value: object) -> str:
    """The end of an error message: what to pass instead of this as the optimizer."""
    if isinstance(value, LRScheduler):
        return ": pass its optimizer"
    if isinstance(value, type) and issubclass(value, Optimizer):
        return f": pass an instance, {value.__name__}(model.parameters(), lr=0.1)"
    if isinstance(value, Policy) or class_hint(value):
        return ": a range test needs none, result.one_cycle(total_steps=len(loader) * epochs) has its policy"
    return ""


def _check_kinds(model: Any, optimizer: Any, train_step: Any, validation: Any, also: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"need model to be a torch.nn.Module, got {model!r}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"need optimizer to be a torch.optim.Optimizer, got {optimizer!r}{_optimizer_hint(optimizer)}")
    for name, function in (("train_step", train_step), ("validation", validation or (lambda: None))):
        if not callable(function):
            raise TypeError(f"need {name} to be a function, got {function!r}: supervised_step makes one from a loader")
    if not isinstance(also, (list, tuple)):
        raise TypeError(f"need also to be a tuple or list, got {also!r}: for one thing write also=(thing,)")
    if needs_closure(optimizer):
        raise TypeError(f"need an optimizer whose step() needs no closure, got {type(optimizer).__name__}")
    if not torch.is_grad_enabled():
        raise ValueError("need gradients, got torch.is_grad_enabled() == False: call this outside of torch.no_grad()")


def _ramp(start_lr: float, end_lr: float, num_steps: int, mode: RampMode) -> ExponentialRamp | LinearRamp:
    """The policy that the rates follow, from the first step to the last."""
    _check_numbers(start_lr=start_lr, end_lr=end_lr)
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"need 0 < start_lr < end_lr < inf, got {start_lr=}, {end_lr=}")
    if type(num_steps) is not int:
        raise TypeError(f"need num_steps to be an int, got {num_steps=}")
    if num_steps < 2:
        raise ValueError(f"need 2 <= num_steps, got {num_steps=}")
    return RAMPS[one_of(RampMode)["rule"]("mode", mode)](num_steps - 1, start_factor=start_lr / end_lr)


def _check(smoothing: float, divergence_factor: float) -> None:
    _check_numbers(smoothing=smoothing, divergence_factor=divergence_factor)
    if not 0 <= smoothing < 1:
        raise ValueError(f"need 0 <= smoothing < 1, got {smoothing=}")
    if not divergence_factor > 0:
        raise ValueError(f"need 0 < divergence_factor, got {divergence_factor=}")


def _check_numbers(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, numbers.Real):
            raise TypeError(f"need {name} to be a number, got {name}={value!r}")


def _accumulation(steps: list[Any]) -> list[Any]:
    return [getattr(step, "accumulation_steps", None) for step in steps]


def _scaler_of(model: torch.nn.Module, scaler: Any, own: list[Any], others: list[Any]) -> Any:
    """The scaler that was given, or that ``train_step`` or another step of this model declares."""
    steps = own + [step for step in others if getattr(step, "model", None) is model]
    declared = next((step.scaler for step in steps if getattr(step, "scaler", None) is not None), None)
    if scaler is not None and declared is not None and declared is not scaler:
        raise ValueError(f"need one scaler and others in also=(...), got {scaler=} and train_step's own {declared!r}")
    found = declared if scaler is None else scaler
    if found is not None and not (hasattr(found, "step") and hasattr(found, "update")):
        raise TypeError(f"need scaler to be a torch.amp.GradScaler, got scaler={found!r}")
    return found


def _things(steps: list[Any], also: Sequence[Any]) -> list[Any]:
    """What else is to be put back, each thing once: what was given, and what the steps declare."""
    things = [thing for thing in also if not is_train_step(thing)]
    for step in steps:
        things += getattr(step, "also", ())
    return list({id(thing): thing for thing in things}.values())
