"""The learning rate range test: train while the rate climbs, and read the range of a cycle off the loss.

Source: L. N. Smith 2017, "Cyclical learning rates for training neural networks" (arXiv 1506.01186),
section 3.3.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import IO, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .policies.base import Policy
from .policies.cyclic import Triangular
from .policies.decay import ExponentialRamp, LinearRamp
from .policies.onecycle import OneCycle
from .snapshot import run_and_put_back

RAMPS: dict[str, type[ExponentialRamp] | type[LinearRamp]] = {"exponential": ExponentialRamp, "linear": LinearRamp}

#: The least number of losses that a range can be read off.
FEWEST = 10
#: How far below the rate of the lowest loss the peak of the cycle stays.
MARGIN = 2.0
#: The part of the loss's whole fall that marks where it starts to fall.
FALLEN = 0.3
#: Standard errors of the smoothed loss by which a fall or a rise stands out of the noise.
CERTAIN = 4.0


class NoSuggestionError(ValueError):
    """The curve does not say where the range is; the message says what it does say."""


@dataclass(frozen=True)
class LRRangeTest:
    """What a range test saw.

    Attributes:
        lrs: the learning rate (of the first param group) of each step.
        losses: the loss at that rate: of the batch before its update or, with a validation function,
            after it.
        mode: ``"exponential"`` or ``"linear"``: how the rate climbed.
        stopped: why the test stopped, in words.
        smoothing: weight of the past in the averaged loss.
        ceiling: losses above it count as this much in ``smoothed``, or one of 1e30 would drown all others.
        ratios: the rate of each param group over the first one's.
    """

    lrs: list[float]
    losses: list[float]
    mode: str
    stopped: str
    smoothing: float
    ceiling: float = math.inf
    ratios: tuple[float, ...] = (1.0,)

    def __repr__(self) -> str:
        try:
            base_lr, max_lr = self.suggest()
            verdict = f"base_lr={base_lr:.3g}, max_lr={max_lr:.3g}"
        except NoSuggestionError as error:
            verdict = f"no suggestion: {error}"
        span = f", lr {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if self.lrs else ""
        groups = ""
        if len(self.ratios) > 1:
            groups = f"; rates are the first group's, the others' are {self.ratios[1:]} times it"
        return f"LRRangeTest({verdict}; {len(self.lrs)} steps{span}; stopped: {self.stopped}{groups})"

    @property
    def smoothed(self) -> list[float]:
        """The losses averaged over their neighbours on both sides, so that the curve is not shifted.

        A loss k steps away, before or after, has the weight ``smoothing**k``, and the weights are divided
        by their sum. It ends before the first loss that is not finite.
        """
        losses = [min(loss, self.ceiling) for loss in self.finite_losses]
        sums, weights = (_two_sided(values, self.smoothing) for values in (losses, [1.0] * len(losses)))
        return [total / weight for total, weight in zip(sums, weights, strict=True)]

    @property
    def finite_losses(self) -> list[float]:
        """The losses up to the first that is NaN or infinite."""
        bad = next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), len(self.losses))
        return self.losses[:bad]

    def suggest(self) -> tuple[float, float]:
        """``(base_lr, max_lr)``: the two ends of a cycle.

        With the smoothed loss falling from its start (the mean of its first tenth) to its lowest value:
        ``base_lr`` is the last rate at which it had come no more than 30 % of the way, and ``max_lr`` is
        half the rate at which it is lowest. The fall, and the rise after it, must stand out of the noise
        by four standard errors.

        Raises:
            NoSuggestionError: too few finite losses, a loss that does not fall, or one that had not
                risen again when the test ended.
        """
        losses = self.smoothed
        if len(losses) < FEWEST:
            raise NoSuggestionError(f"need at least {FEWEST} finite losses, got {len(losses)} ({self.stopped})")
        start = statistics.mean(losses[: max(1, len(losses) // 10)])
        lowest = min(range(len(losses)), key=losses.__getitem__)
        fall, noise = start - losses[lowest], self._noise(losses)
        if lowest < len(losses) // 10 or fall <= max(CERTAIN * noise, 1e-12 * abs(start)):
            raise NoSuggestionError(
                f"the loss did not fall at any rate from {self.lrs[0]:.3g} to {self.lrs[len(losses) - 1]:.3g}: "
                f"it fell by {fall:.3g}, with a noise of {noise:.3g}; try a lower start_lr or more steps"
            )
        ended_badly = len(losses) < len(self.losses)
        if not ended_badly and losses[-1] - losses[lowest] <= max(CERTAIN * noise, 0.02 * fall):
            raise NoSuggestionError(
                f"the loss had not risen again at the highest rate, {self.lrs[-1]:.3g}: try a higher end_lr"
            )
        max_lr = self.lrs[lowest] / MARGIN
        # There is one in the first tenth: its highest loss is not below its mean.
        last_above = max(i for i in range(lowest) if losses[i] >= start - FALLEN * fall)
        base_lr = self.lrs[last_above]
        if base_lr >= max_lr:
            raise NoSuggestionError(
                f"the loss falls and rises within a factor of {MARGIN:g} of the rate: try more steps"
            )
        return base_lr, max_lr

    def _noise(self, losses: list[float]) -> float:
        """The standard error of the smoothed loss, from how neighbours differ in its first half."""
        early = self.losses[: max(FEWEST, len(losses) // 2)]
        # The curve itself climbs or falls little from one step to the next; each difference holds two losses' noise.
        single = math.sqrt(statistics.mean((b - a) ** 2 for a, b in pairwise(early)) / 2)
        # The root of the summed squares of the weights over their sum, for the weights smoothing**|k|.
        s = self.smoothing
        return single * math.sqrt((1 + s**2) / (1 - s**2)) * (1 - s) / (1 + s)

    def suggest_lr(self, rule: str) -> float:
        """One rate, by a rule of the field, read off the smoothed losses.

        - ``"steepest"``: steepest descent of the loss against log lr (fastai's ``steep``)
        - ``"valley"``: a half into the longest falling stretch's middle third (fastai's ``valley``)
        - ``"minimum"``: a tenth of the rate of the lowest loss (fastai's ``minimum``)
        - ``"torch_lr_finder"``: steepest descent against the step, without the first 10 and last 5 steps
          (pytorch-lr-finder's ``plot(suggest_lr=True)``)
        - ``"lightning"``: steepest descent against lr itself, without the first 10 steps and the last (Lightning's
          ``suggestion()``)

        The rules are the packages' own, the curve is this one: they would average the past alone (fastai and
        Lightning with a weight of 0.98, pytorch-lr-finder with 0.95), so that their curve lags and its lowest
        point comes at a higher rate; fastai also cuts 10 steps off the start and 5 off the end first.

        Args:
            rule: the name of one of these.

        Raises:
            ValueError: an unknown rule.
            NoSuggestionError: too few finite losses.
        """
        if rule not in RULES:
            raise ValueError(f"need rule to be one of {', '.join(map(repr, RULES))}, got {rule=}")
        losses = self.smoothed
        fewest = FEWEST + 17  # what the rules skip, and something left over
        if len(losses) < fewest:
            raise NoSuggestionError(f"need at least {fewest} finite losses, got {len(losses)} ({self.stopped})")
        return RULES[rule](self.lrs, losses)

    def triangular(self, step_size_up: int, **options: Any) -> dict[str, Any]:
        """The lr and policy of a cycle in the range: ``CyclicSGD(params, **result.triangular(step_size_up))``.

        Args:
            step_size_up: optimizer steps of the rising half of a cycle.
            options: other arguments of :class:`Triangular`.

        Raises:
            NoSuggestionError: as in :meth:`suggest`.
        """
        return self._cycle(lambda ratio: Triangular(step_size_up, div_factor=ratio, **options))

    def one_cycle(self, total_steps: int, **options: Any) -> dict[str, Any]:
        """The lr and policy of one cycle in the range: ``CyclicSGD(params, **result.one_cycle(total_steps))``.

        Args:
            total_steps: optimizer steps of the whole run.
            options: other arguments of :class:`OneCycle`.

        Raises:
            NoSuggestionError: as in :meth:`suggest`.
        """
        return self._cycle(lambda ratio: OneCycle(total_steps, div_factor=ratio, **options))

    def _cycle(self, policy: Callable[[float], Policy]) -> dict[str, Any]:
        base_lr, max_lr = self.suggest()
        return {"lr": max_lr, "policy": policy(max_lr / base_lr)}

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses over the rate, with the suggested range marked; returns the Axes (needs matplotlib).

        Args:
            ax: where to draw (default: a new figure).
        """
        from .plotting import plot_range_test

        return plot_range_test(self, ax=ax)

    def to_csv(self, file: str | os.PathLike[str] | IO[str]) -> None:
        """Write ``lr,loss,smoothed`` and a row for each step; smoothed is empty where a loss was not finite.

        Args:
            file: a path, or a file open for text.
        """
        if isinstance(file, (str, os.PathLike)):
            with open(file, "w", newline="") as opened:
                self.to_csv(opened)
            return
        smoothed: list[Any] = self.smoothed
        writer = csv.writer(file)
        writer.writerow(["lr", "loss", "smoothed"])
        writer.writerows(zip(self.lrs, self.losses, smoothed + [""] * (len(self.losses) - len(smoothed)), strict=True))


def _two_sided(values: list[float], smoothing: float) -> list[float]:
    """Their sums with the weights ``smoothing**|i - j|``."""
    before, after = (
        list(accumulate(ordered, lambda total, value: smoothing * total + value)) for ordered in (values, values[::-1])
    )
    # Both hold the value itself.
    return [left + right - value for left, right, value in zip(before, after[::-1], values, strict=True)]


class Average:
    """The exponential moving average, corrected for its start at 0 (as Adam's moments are)."""

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._sum, self._missing = 0.0, 1.0

    def add(self, value: float) -> float:
        """The average with one more value in it."""
        self._sum = self._smoothing * self._sum + (1 - self._smoothing) * value
        self._missing *= self._smoothing
        return self._sum / (1 - self._missing)


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
    """Train for some steps while the learning rate climbs from far too low to far too high; leave nothing behind.

    Step i of n is made at ``start_lr * (end_lr / start_lr) ** (i / (n - 1))``, or on a straight line
    with ``mode="linear"``. With several param groups this is the first group's rate; the others keep their
    ratio to it. Momentum is held at the value in force. It stops early when the loss is NaN or infinite, or when its
    average has climbed above its lowest value by ``divergence_factor`` times as much as it had fallen (or
    as the first losses scatter, if that is more): a rule that holds for losses of any sign and size.

    Afterwards, also after an exception or Ctrl-C, everything is as it was before, bit for bit: parameters, buffers,
    gradients and mode of the model, state and param groups of the optimizer, the scaler, and the random states of
    Python, NumPy, torch and the loader.

    Args:
        model: what is trained; put in train mode if it is in eval mode.
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
        keep: where copies are kept meanwhile: ``"device"``, ``"cpu"`` or ``"disk"``.
        progress: show a bar, where tqdm is installed.

    Returns:
        The curve, and what can be read off it.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    What ``train_step`` raises comes through.

    Source: L. N. Smith 2017 (arXiv 1506.01186), section 3.3.
    """
    factors = _check(start_lr, end_lr, num_steps, mode, smoothing, divergence_factor)
    ratios = _ratios(optimizer)
    scaler = scaler if scaler is not None else getattr(train_step, "scaler", None)
    lrs: list[float] = []
    losses: list[float] = []
    watch = _Watch(num_steps, smoothing, divergence_factor)
    generators = getattr(train_step, "generators", ())
    restart = getattr(train_step, "restart", lambda: None)

    def climb() -> str:
        restart()
        if not model.training:
            model.train()
        momenta = [_number(group.get("momentum")) for group in optimizer.param_groups]
        for step in _progress(num_steps, progress):
            lrs.append(end_lr * factors.at(step).lr_factor)
            _set(optimizer, lrs[-1], ratios, momenta)
            losses.append(_one_step(model, optimizer, train_step, scaler, validation))
            if not math.isfinite(losses[-1]):
                return f"the loss was {losses[-1]} at lr={lrs[-1]:.3g}"
            if watch.diverged(losses[-1]):
                return f"the loss diverged at lr={lrs[-1]:.3g}"
        return f"end_lr={end_lr:g} was reached"

    stopped = run_and_put_back(climb, model, optimizer, scaler=scaler, generators=generators, keep=keep, last=restart)
    return LRRangeTest(lrs, losses, mode, stopped, smoothing, watch.ceiling, ratios)


def _progress(num_steps: int, show: bool) -> Iterable[int]:
    if show and importlib.util.find_spec("tqdm") is not None:
        from tqdm import tqdm

        bar: Iterable[int] = tqdm(range(num_steps), desc="lr range test", leave=False)
        return bar
    return range(num_steps)


def _check(
    start_lr: float, end_lr: float, num_steps: int, mode: str, smoothing: float, divergence_factor: float
) -> ExponentialRamp | LinearRamp:
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"need 0 < start_lr < end_lr < inf, got {start_lr=}, {end_lr=}")
    if type(num_steps) is not int:
        raise TypeError(f"need num_steps to be an int, got {num_steps=}")
    if num_steps < 2:
        raise ValueError(f"need 2 <= num_steps, got {num_steps=}")
    if mode not in RAMPS:
        raise ValueError(f"need mode to be one of {', '.join(map(repr, RAMPS))}, got {mode=}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"need 0 <= smoothing < 1, got {smoothing=}")
    if not divergence_factor > 0:
        raise ValueError(f"need 0 < divergence_factor, got {divergence_factor=}")
    return RAMPS[mode](num_steps - 1, start_factor=start_lr / end_lr)


def _ratios(optimizer: Optimizer) -> tuple[float, ...]:
    # A schedule's peaks are the rates that the user set; the rates in force may stand at any point of it.
    peaks = [float(group.get("max_lr", group["lr"])) for group in optimizer.param_groups]
    if not peaks[0] > 0:
        raise ValueError(f"need a first param group with 0 < lr, to which the others' rates relate, got lr={peaks[0]}")
    return tuple(peak / peaks[0] for peak in peaks)


def _number(value: Any) -> Any:
    """A value that may move on inside its tensor, as it is now."""
    return value.item() if isinstance(value, Tensor) else value


def _set(optimizer: Optimizer, lr: float, ratios: tuple[float, ...], momenta: list[Any]) -> None:
    for group, ratio, momentum in zip(optimizer.param_groups, ratios, momenta, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * ratio)
        else:
            group["lr"] = lr * ratio
        if momentum is not None:
            if isinstance(group["momentum"], Tensor):
                group["momentum"].fill_(momentum)
            else:
                group["momentum"] = momentum


def _one_step(
    model: torch.nn.Module,
    optimizer: Optimizer,
    train_step: Callable[[], Any],
    scaler: Any,
    validation: Callable[[], Any] | None,
) -> float:
    model.zero_grad(set_to_none=True)
    optimizer.zero_grad(set_to_none=True)
    loss = _as_float(train_step())
    if not math.isfinite(loss):
        return loss
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return loss if validation is None else _as_float(validation())


def _as_float(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


class _Watch:
    """Notices divergence as losses come in."""

    def __init__(self, num_steps: int, smoothing: float, divergence_factor: float) -> None:
        self._few, self._factor = max(5, num_steps // 10), divergence_factor
        self._average = Average(smoothing)
        self._first: list[float] = []  # the losses at rates too low to do anything
        self._lowest = math.inf
        self.ceiling = math.inf  # where the average counts as diverged

    def diverged(self, loss: float) -> bool:
        average = self._average.add(loss)
        self._lowest = min(self._lowest, average)
        if len(self._first) < self._few:
            self._first.append(loss)
            return False
        fallen = statistics.mean(self._first) - self._lowest
        scatter = max(self._first) - min(self._first)
        # Averages of equal losses differ in their last bits.
        rounding = 1e-12 * max(map(abs, self._first))
        self.ceiling = self._lowest + self._factor * max(fallen, scatter, rounding)
        return average > self.ceiling


# -- a training step from a loader ------------------------------------------------------------------


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
        """The random states that the loader keeps for itself."""
        loader: Any = self.loader
        samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        samplers += [getattr(sampler, "sampler", None) for sampler in samplers]
        found = (getattr(holder, "generator", None) for holder in (loader, *samplers))
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def restart(self) -> None:
        """Begin with the loader's first batch again."""
        self._batches = None

    def __call__(self) -> float:
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
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_moved(value, device) for value in batch]
    return batch


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

    Each call does forward and backward over the next ``accumulation_steps`` batches and returns their mean
    loss; the loader is started over when it ends.

    Args:
        model: what is trained.
        criterion: takes the model's output and the targets, returns the mean loss of the batch.
        loader: gives batches ``(inputs, targets)``: tensors, or lists and dicts of them.
        device: where batches are moved (default: where the model's first parameter is).
        autocast: the dtype of ``torch.autocast``; None for none.
        accumulation_steps: batches per optimizer step, at least 1.
        scaler: a ``torch.amp.GradScaler`` to scale the loss with.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or (when called) the loader is empty.
    """
    if type(accumulation_steps) is not int or accumulation_steps < 1:
        raise ValueError(f"need accumulation_steps to be an int >= 1, got {accumulation_steps=}")
    return SupervisedStep(model, criterion, loader, device, autocast, accumulation_steps, scaler)


# -- single-number rules of the field ---------------------------------------------------------------


def _steepest(lrs: list[float], losses: list[float]) -> float:
    slopes = [(losses[i + 1] - losses[i]) / (math.log(lrs[i + 1]) - math.log(lrs[i])) for i in range(len(losses) - 1)]
    return lrs[slopes.index(min(slopes))]


def _valley(lrs: list[float], losses: list[float]) -> float:
    # Lengths of the longest falling subsequences, quadratic as in fastai; a range test has few steps.
    longest = [1] * len(losses)
    start = end = 0
    for i in range(1, len(losses)):
        longest[i] = 1 + max((longest[j] for j in range(i) if losses[i] < losses[j]), default=0)
        if longest[end] < longest[i]:
            end, start = i, i - longest[i]
    third = (end - start) / 3
    return lrs[max(0, start + int(third) + int(third / 2))]


def _tenth_of_minimum(lrs: list[float], losses: list[float]) -> float:
    return lrs[losses.index(min(losses))] / 10


def _gradient(values: list[float], places: list[float]) -> list[float]:
    """Second-order differences inside, first-order ones at both ends, as numpy's and torch's gradient."""
    inner = []
    for i in range(1, len(values) - 1):
        before, after = places[i] - places[i - 1], places[i + 1] - places[i]
        inner.append(
            (before**2 * values[i + 1] + (after**2 - before**2) * values[i] - after**2 * values[i - 1])
            / (before * after * (before + after))
        )
    first = (values[1] - values[0]) / (places[1] - places[0])
    last = (values[-1] - values[-2]) / (places[-1] - places[-2])
    return [first, *inner, last]


def _torch_lr_finder(lrs: list[float], losses: list[float]) -> float:
    losses, lrs = losses[10:-5], lrs[10:]
    slopes = _gradient(losses, [float(i) for i in range(len(losses))])
    return lrs[slopes.index(min(slopes))]


def _lightning(lrs: list[float], losses: list[float]) -> float:
    lrs, losses = lrs[10 : len(losses) - 1], losses[10:-1]
    slopes = _gradient(losses, lrs)
    return lrs[slopes.index(min(slopes))]


RULES: dict[str, Callable[[list[float], list[float]], float]] = {
    "steepest": _steepest,
    "valley": _valley,
    "minimum": _tenth_of_minimum,
    "torch_lr_finder": _torch_lr_finder,
    "lightning": _lightning,
}
