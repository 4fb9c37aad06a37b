"""Policies that go one way: constant, the classic decays, and the ramps that warm up or test a range.

None of them changes momentum.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from ..rules import POSITIVE, POSITIVE_UNIT, UNIT, ascending, one_of, step_index, whole
from .base import FallsToMinFactor, Policy, Span, Values, blend, rise

_STEEP = 256  # a power up to this magnifies a rounding error to 3e-14 at most


@dataclass(frozen=True)
class Constant(Policy):
    """``lr_factor = 1`` at every step. It does not change momentum.

    Source: ``torch.optim.SGD`` without a scheduler.
    """

    def at(self, step: int) -> Values:
        step_index(step)
        return Values(1.0)

    @property
    def period(self) -> int:
        return 1

    @property
    def end(self) -> int:
        return 0


@dataclass(frozen=True)
class LinearRamp(Policy):
    """A straight line from ``start_factor`` to ``end_factor`` in ``total_iters`` steps; then it holds.

        lr_factor = start_factor + (end_factor - start_factor) * step / total_iters

    It does not change momentum. Use it as the warm-up before another policy in :class:`Sequential`, and for a range
    test on a linear axis.

    Args:
        total_iters: optimizer steps until ``end_factor`` is reached; with 0 it is there from the start.
        start_factor, end_factor: fractions of the peak, in [0, 1].

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.LinearLR``.
    """

    total_iters: int = field(metadata=whole(0))
    start_factor: float = field(default=1 / 3, metadata=UNIT)
    end_factor: float = field(default=1.0, metadata=UNIT)

    def at(self, step: int) -> Values:
        step = step_index(step)
        if step >= self.total_iters:
            return Values(float(self.end_factor))
        # Counted from the low end, where the fraction is exact.
        risen = step if self.start_factor <= self.end_factor else self.total_iters - step
        return blend(self._span, risen / self.total_iters)

    @cached_property
    def _span(self) -> Span:
        return Span.between(*map(Values, sorted((self.start_factor, self.end_factor))))

    @property
    def end(self) -> int:
        return self.total_iters


@dataclass(frozen=True)
class ExponentialRamp(Policy):
    """From ``start_factor`` to ``end_factor`` in ``total_iters`` steps of equal ratio; then it holds.

        lr_factor = start_factor * (end_factor / start_factor) ** (step / total_iters)

    It does not change momentum. The learning rate range test is this ramp with ``lr`` at the highest rate to try.

    Args:
        total_iters: optimizer steps until ``end_factor`` is reached; with 0 it is there from the start.
        start_factor, end_factor: fractions of the peak, in (0, 1].

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: the range test of L. N. Smith 2017 (arXiv 1506.01186, section 3.3), on a logarithmic axis.
    """

    total_iters: int = field(metadata=whole(0))
    start_factor: float = field(metadata=POSITIVE_UNIT)
    end_factor: float = field(default=1.0, metadata=POSITIVE_UNIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        least, greatest = sys.float_info.min, sys.float_info.max
        # Outside of these bounds floats have fewer digits, or none.
        if not least <= self.end_factor / self.start_factor <= greatest:
            raise ValueError(
                f"need {least} <= end_factor / start_factor <= {greatest}, "
                f"got start_factor={self.start_factor}, end_factor={self.end_factor}"
            )

    def at(self, step: int) -> Values:
        step = step_index(step)
        if step >= self.total_iters:
            return Values(float(self.end_factor))
        return Values(self.start_factor * (self.end_factor / self.start_factor) ** (step / self.total_iters))

    @property
    def end(self) -> int:
        return self.total_iters


@dataclass(frozen=True)
class CosineDecay(FallsToMinFactor):
    """Half a cosine from 1 to ``min_factor`` in ``t_max`` steps; then it holds.

        lr_factor = min_factor + (1 - min_factor) * (1 + cos(pi * step / t_max)) / 2

    It does not change momentum.

    Args:
        t_max: optimizer steps until ``min_factor`` is reached (torch's ``T_max``); with 0 it is there from the start.
        min_factor: where the cosine ends, as a fraction of the peak; torch's ``eta_min / lr``.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.CosineAnnealingLR`` up to step ``T_max``, after which torch's
    climbs again.
    """

    t_max: int = field(metadata=whole(0))
    min_factor: float = field(default=0.0, metadata=UNIT)

    def at(self, step: int) -> Values:
        left = self.t_max - step_index(step)
        return blend(self._span, rise(left / self.t_max if left > 0 else 0.0))

    @property
    def end(self) -> int:
        return self.t_max


@dataclass(frozen=True)
class PolynomialDecay(FallsToMinFactor):
    """A power of the steps that are left, from 1 down to ``min_factor``; then it holds.

        lr_factor = min_factor + (1 - min_factor) * (1 - step / total_iters) ** power

    It does not change momentum.

    Args:
        total_iters: optimizer steps until ``min_factor`` is reached; with 0 it is there from the start.
        power: greater than 0; 1 is a straight line.
        min_factor: where it ends, as a fraction of the peak.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.PolynomialLR``.
    """

    total_iters: int = field(metadata=whole(0))
    power: float = field(default=1.0, metadata=POSITIVE)
    min_factor: float = field(default=0.0, metadata=UNIT)

    def at(self, step: int) -> Values:
        left = self.total_iters - step_index(step)
        if left <= 0:
            return Values(float(self.min_factor))
        fraction = left / self.total_iters
        height = fraction**self.power
        if self.power > _STEEP and height > 0:
            # The power multiplies the rounding error of the fraction. Integers give that error exactly.
            over, under = fraction.as_integer_ratio()
            off = (left * under - over * self.total_iters) / (over * self.total_iters)
            height *= math.exp(self.power * math.log1p(off))
        return blend(self._span, height)

    @property
    def end(self) -> int:
        return self.total_iters


@dataclass(frozen=True)
class ExponentialDecay(Policy):
    """``lr_factor = gamma ** step``, without an end.

    It does not change momentum.

    Args:
        gamma: the decay per optimizer step, 0 < gamma <= 1.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.ExponentialLR``.
    """

    gamma: float = field(metadata=POSITIVE_UNIT)

    def at(self, step: int) -> Values:
        return Values(float(self.gamma ** step_index(step)))


@dataclass(frozen=True)
class StepDecay(Policy):
    """``lr_factor = gamma ** (step // step_size)``, without an end: times ``gamma`` every ``step_size`` steps.

    It does not change momentum.

    Args:
        step_size: optimizer steps between two drops.
        gamma: what each drop multiplies by, 0 < gamma <= 1.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.StepLR``.
    """

    step_size: int = field(metadata=whole(1))
    gamma: float = field(default=0.1, metadata=POSITIVE_UNIT)

    def at(self, step: int) -> Values:
        return Values(float(self.gamma ** (step_index(step) // self.step_size)))


@dataclass(frozen=True)
class MultiStepDecay(Policy):
    """``lr_factor = gamma ** (number of milestones <= step)``; after the last milestone it holds.

    It does not change momentum.

    Args:
        milestones: optimizer steps at which the rate drops, in ascending order; one that is given
            twice counts twice.
        gamma: what each drop multiplies by, 0 < gamma <= 1.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.MultiStepLR``.
    """

    milestones: Sequence[int] = field(metadata=ascending(0, repeats=True))
    gamma: float = field(default=0.1, metadata=POSITIVE_UNIT)

    def at(self, step: int) -> Values:
        return Values(float(self.gamma ** bisect_right(self.milestones, step_index(step))))

    @property
    def end(self) -> int:
        return self.milestones[-1] if self.milestones else 0


#: The 1 in ``1 + k * step`` is lost long before.
_LARGE = 1e300


@dataclass(frozen=True)
class InverseTimeDecay(Policy):
    """``lr_factor = 1 / (1 + k * step) ** power``, without an end: the classic 1/t decay.

    It does not change momentum.

    Args:
        k: decay per optimizer step, greater than 0; with ``power=1`` the rate is halved after 1/k steps.
        power: in (0, 1]; 0.5 is the inverse square root.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: Robbins & Monro 1951, "A stochastic approximation method", in its usual form for SGD.
    """

    k: float = field(metadata=POSITIVE)
    power: float = field(default=1.0, metadata=POSITIVE_UNIT)

    def at(self, step: int) -> Values:
        step = step_index(step)
        divisor = 1 + self.k * step
        if divisor < _LARGE:
            return Values(1 / divisor**self.power)
        # The divisor may be beyond floats, and its inverse below those with all their digits.
        return Values(1 / self.k**self.power / step**self.power)


@dataclass(frozen=True)
class LinearDecay(FallsToMinFactor):
    """Up in ``warmup`` steps, then a straight line down to ``min_factor``; then it holds.

        warm-up    lr_factor = (step + 1) / (warmup + 1)              step < warmup
        decay      lr_factor = min_factor + (1 - min_factor) * x      x = (total_steps - step) / (total_steps - warmup)

    Defazio et al. recommend it where nothing more is known: decay to 0 on a straight line over the whole run.
    ``min_factor`` is reached at step ``total_steps``, so that none of a run's ``total_steps`` updates is made at it,
    and none at 0. It is :class:`WarmupStableDecay` without the stable part. It does not change momentum.

    Args:
        total_steps: optimizer steps of the whole run: ``len(loader) * epochs``.
        warmup: optimizer steps of the warm-up, 0 for none.
        min_factor: where the line ends, as a fraction of the peak.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or ``warmup > total_steps``.

    Source: Defazio et al. 2023 (arXiv 2310.07831); Li et al. 2020 (arXiv 1905.04753).
    """

    total_steps: int = field(metadata=whole(0))
    warmup: int = field(default=0, metadata=whole(0))
    min_factor: float = field(default=0.0, metadata=UNIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup > self.total_steps:
            raise ValueError(f"need warmup <= total_steps, got warmup={self.warmup}, total_steps={self.total_steps}")

    def at(self, step: int) -> Values:
        return self._trapezoid.at(step)

    @cached_property
    def _trapezoid(self) -> WarmupStableDecay:
        return WarmupStableDecay(
            self.total_steps, self.warmup, self.total_steps - self.warmup, min_factor=self.min_factor
        )

    @property
    def end(self) -> int:
        return self.total_steps


Shape: TypeAlias = Literal["linear", "cosine", "sqrt"]

# Functions of the fraction of the cool-down that is left and of the fraction that is done: each is exact near 0.
_COOLDOWNS: dict[Shape, Callable[[float, float], float]] = {
    "linear": lambda left, done: left,
    "cosine": lambda left, done: rise(left),
    "sqrt": lambda left, done: left / (1 + math.sqrt(done)),  # = 1 - sqrt(done)
}


@dataclass(frozen=True)
class WarmupStableDecay(FallsToMinFactor):
    """A trapezoid: warm up, stay at the peak, cool down; then it holds ``min_factor``.

        warm-up    lr_factor = (step + 1) / (warmup + 1)              step < warmup
        stable     lr_factor = 1                                      until total_steps - decay
        cool-down  lr_factor = min_factor + (1 - min_factor) * d(x)   x = (total_steps - step) / decay

    where ``d(x)`` is ``x`` for ``"linear"``, ``(1 - cos(pi * x)) / 2`` for ``"cosine"`` and ``1 - sqrt(1 - x)`` for
    ``"sqrt"``, the 1 - sqrt cool-down. ``min_factor`` is reached at step ``total_steps``, so that none of a run's
    ``total_steps`` updates is made at it, and none at 0. The policy does not change momentum. With
    ``warmup=total_steps // 20``, ``decay=total_steps // 5`` and ``shape="sqrt"`` it is this library's default
    (``docs/which_policy.md``).

    Args:
        total_steps: optimizer steps of the whole run: ``len(loader) * epochs``.
        warmup: optimizer steps of the warm-up, 0 for none.
        decay: optimizer steps of the cool-down, 0 for none.
        shape: ``"linear"``, ``"cosine"`` or ``"sqrt"``.
        min_factor: where the cool-down ends, as a fraction of the peak.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or ``warmup + decay > total_steps``.

    Source: Hu et al. 2024 (arXiv 2404.06395, WSD); the 1-sqrt cool-down: Hägele et al. 2024
    (arXiv 2405.18392).
    """

    total_steps: int = field(metadata=whole(0))
    warmup: int = field(metadata=whole(0))
    decay: int = field(metadata=whole(0))
    shape: Shape = field(default="linear", metadata=one_of(Shape))
    min_factor: float = field(default=0.0, metadata=UNIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup + self.decay > self.total_steps:
            raise ValueError(
                "need warmup + decay <= total_steps, "
                f"got warmup={self.warmup}, decay={self.decay}, total_steps={self.total_steps}"
            )

    def at(self, step: int) -> Values:
        step = step_index(step)
        if step < self.warmup:
            return Values((step + 1) / (self.warmup + 1))
        left = self.total_steps - step
        if left <= 0:
            return Values(float(self.min_factor))
        if left >= self.decay:
            return Values(1.0)
        height = _COOLDOWNS[self.shape](left / self.decay, (self.decay - left) / self.decay)
        return blend(self._span, height)

    @property
    def end(self) -> int:
        return self.total_steps
