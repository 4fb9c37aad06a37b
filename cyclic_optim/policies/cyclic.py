"""Policies that repeat: the triangular family of Smith 2017 and the warm restarts of SGDR."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, TypeAlias

from ..rules import (
    AT_LEAST_ONE,
    FLAG,
    OPTIONAL_FUNCTION,
    POSITIVE_UNIT,
    UNIT,
    check_momenta,
    finite,
    one_of,
    step_index,
    whole,
)
from .base import FallsToMinFactor, Policy, Span, Values, blend, rise

ScaleMode: TypeAlias = Literal["cycle", "iterations"]


class Cycle(NamedTuple):
    """One cycle: its number, counted from 0, and the steps of its start, its peak and its end."""

    number: int
    start: int
    peak: int
    end: int


def cycle_of(step: int, up: int, down: int, growth: float) -> tuple[int, int, int, int]:
    """The :class:`Cycle` that contains ``step``, where the first one climbs for ``up`` steps and falls for ``down``.

    Cycle k is ``growth**k`` times as long as the first; its start, peak and end are those of the
    exact geometric series, rounded down to whole steps.
    """
    length = up + down
    if growth == 1:
        number = step // length
        start = number * length
        return number, start, start + up, start + length
    # Most steps are in the same cycle as the last one, and to check that is cheaper than to compute the cycle.
    cycle = _last_found.get((up, down, growth), _NOWHERE)
    if cycle.start <= step < cycle.end:
        return cycle
    cycle = _last_found[up, down, growth] = _find_cycle(step, up, down, growth)
    if len(_last_found) > 1000:
        _last_found.clear()
    return cycle


_NOWHERE = Cycle(0, 0, 0, 0)
_last_found: dict[tuple[int, int, float], Cycle] = {}


def _find_cycle(step: int, up: int, down: int, growth: float) -> Cycle:
    length = up + down
    # The logarithm is off by one at most, near a boundary; integers then decide.
    grown = min(step / length * (growth - 1), sys.float_info.max)
    guess = int(math.log1p(grown) / math.log1p(growth - 1))
    cycle = _grown_cycle(guess, up, down, growth)
    while step < cycle.start:
        cycle = _grown_cycle(cycle.number - 1, up, down, growth)
    while step >= cycle.end:
        cycle = _grown_cycle(cycle.number + 1, up, down, growth)
    return cycle


@lru_cache(maxsize=1024)
def _grown_cycle(number: int, up: int, down: int, growth: float) -> Cycle:
    length = up + down
    if isinstance(growth, int) or growth.is_integer():
        scale = int(growth) ** number
        start = length * (scale - 1) // (int(growth) - 1)
        return Cycle(number, start, start + up * scale, start + length * scale)
    from decimal import Decimal, localcontext  # a fifth of the time to import this file, for growths like 1.5 alone

    # A hundred digits are enough to round down correctly after 10**9 cycles of 10**9 steps that grow by 1 + 1e-9.
    with localcontext() as context:
        context.prec = 100
        ratio = Decimal(growth)
        power = ratio**number
        first = length * (power - 1) / (ratio - 1)
        return Cycle(number, int(first), int(first + up * power), int(first + length * power))


@dataclass(frozen=True)
class _Triangles(Policy):
    """What the three triangular policies share; each scales the height of the triangle differently."""

    step_size_up: int = field(default=2000, metadata=whole(1))
    step_size_down: int | None = field(default=None, metadata=whole(1, optional=True))
    div_factor: float = field(default=10, metadata=AT_LEAST_ONE)
    cycle_growth: float = field(default=1, metadata=AT_LEAST_ONE)
    cycle_momentum: bool = field(default=True, metadata=FLAG)
    base_momentum: float = field(default=0.8, metadata=UNIT)
    max_momentum: float = field(default=0.9, metadata=UNIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momenta(self.base_momentum, self.max_momentum)

    def _scaled(self, height: float, depth: float | None, cycle: int, step: int) -> tuple[float, float | None]:
        """The scaled height, and its distance from 1 (the scaled depth), from the unscaled ones.

        The depth is None where it is larger than the height: 1 - height is as exact there.
        """
        raise NotImplementedError

    def at(self, step: int) -> Values:
        step = step_index(step)
        up = self.step_size_up
        down = up if self.step_size_down is None else self.step_size_down
        cycle, start, peak, end = cycle_of(step, up, down, self.cycle_growth)
        climbed, length = (step - start, peak - start) if step <= peak else (end - step, end - peak)
        # Integers over integers: rounded once, whatever the step.
        height = climbed / length
        depth = None if height < 0.5 else (length - climbed) / length
        height, depth = self._scaled(height, depth, cycle, step)
        return blend(self._span, height, depth)

    @cached_property
    def _span(self) -> Span:
        # Momentum moves inversely to the rate.
        lowest, highest = (self.max_momentum, self.base_momentum) if self.cycle_momentum else (None, None)
        return Span.between(Values(1 / self.div_factor, lowest), Values(1.0, highest))


@dataclass(frozen=True)
class Triangular(_Triangles):
    """Linear up, linear down, again and again; optionally scaled by your function.

    With ``x`` going from 0 to 1 in the steps up and back to 0 in the steps down, and ``s`` what ``scale_fn`` returns,
    or 1:

        lr_factor = 1/div_factor + (1 - 1/div_factor) * x * s
        momentum  = max_momentum - (max_momentum - base_momentum) * x * s

    It never ends: the cycle repeats (exactly, every ``period`` steps, where nothing scales or grows it).

    Args:
        step_size_up: optimizer steps of the rising half of a cycle.
        step_size_down: optimizer steps of the falling half (default: as many).
        div_factor: peak over base; ``CyclicLR(base_lr=a, max_lr=b)`` is ``lr=b, div_factor=b/a``.
        cycle_growth: cycle k, counted from 0, is ``cycle_growth**k`` times as long as the first; the
            boundaries are rounded down to whole steps.
        cycle_momentum: whether momentum moves too, inversely to the learning rate.
        base_momentum: momentum at the peak, the lowest.
        max_momentum: momentum between the cycles, the highest.
        scale_fn: scales the height of the triangle. Must return a finite number that keeps the
            rate and the momentum at or above 0.
        scale_mode: the argument of ``scale_fn``: ``"cycle"``, the cycle's number counted from 1, or
            ``"iterations"``, the step.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or ``scale_fn`` returns what it must not.

    Source: L. N. Smith 2017 (arXiv 1506.01186); ``torch.optim.lr_scheduler.CyclicLR``.
    """

    scale_fn: Callable[[int], float] | None = field(default=None, metadata=OPTIONAL_FUNCTION)
    scale_mode: ScaleMode = field(default="cycle", metadata=one_of(ScaleMode))

    def _scaled(self, height: float, depth: float | None, cycle: int, step: int) -> tuple[float, float | None]:
        if self.scale_fn is None:
            return height, depth
        given = cycle + 1 if self.scale_mode == "cycle" else step
        returned = self.scale_fn(given)
        scale = finite(f"scale_fn({given})", returned)
        if depth is not None:
            depth += height * (1 - scale)
        height *= scale
        lr_factor, momentum, _ = blend(self._span, height, depth)
        if lr_factor < 0 or (momentum is not None and momentum < 0):
            raise ValueError(
                "need a scale that keeps the rate and the momentum at or above 0, "
                f"got {lr_factor=}, {momentum=} at {step=} from scale_fn({given})={returned!r}"
            )
        return height, depth

    @property
    def period(self) -> int | None:
        if self.scale_fn is not None or self.cycle_growth != 1:
            return None
        down = self.step_size_up if self.step_size_down is None else self.step_size_down
        return self.step_size_up + down


@dataclass(frozen=True)
class Triangular2(_Triangles):
    """:class:`Triangular` with a fixed decay: the height is halved after each cycle.

    With ``x`` as in :class:`Triangular`, in cycle ``k``, counted from 0:

        lr_factor = 1/div_factor + (1 - 1/div_factor) * x * 2**-k
        momentum  = max_momentum - (max_momentum - base_momentum) * x * 2**-k

    It never ends. Arguments and errors are those of :class:`Triangular`, without ``scale_fn`` and ``scale_mode``.

    Source: L. N. Smith 2017 (arXiv 1506.01186); ``CyclicLR(mode="triangular2")``.
    """

    def _scaled(self, height: float, depth: float | None, cycle: int, step: int) -> tuple[float, float | None]:
        return (height, depth) if cycle == 0 else (height * 0.5**cycle, None)


@dataclass(frozen=True)
class ExpRange(_Triangles):
    """:class:`Triangular` with an exponential decay: the height is ``gamma**step`` times the full one.

    With ``x`` as in :class:`Triangular`:

        lr_factor = 1/div_factor + (1 - 1/div_factor) * x * gamma**step
        momentum  = max_momentum - (max_momentum - base_momentum) * x * gamma**step

    In the paper both ends decline; here, as in torch, the lower one does not. It never ends. Arguments and errors are
    those of :class:`Triangular`, without ``scale_fn`` and ``scale_mode``, and:

    Args:
        gamma: the decay per optimizer step, 0 < gamma <= 1.

    Source: L. N. Smith 2017 (arXiv 1506.01186); ``CyclicLR(mode="exp_range")``.
    """

    # Required: with torch's default of 1 this policy would silently be a plain Triangular.
    gamma: float = field(kw_only=True, metadata=POSITIVE_UNIT)

    def _scaled(self, height: float, depth: float | None, cycle: int, step: int) -> tuple[float, float | None]:
        scale = self.gamma**step
        scaled = height * scale
        if depth is None or scaled < 0.5:
            return scaled, None
        # Where the scale is close to 1, its difference from 1 has few digits left.
        return scaled, depth + height * (1 - scale if scale < 0.9 else -math.expm1(step * self._log_gamma))

    @cached_property
    def _log_gamma(self) -> float:
        return math.log(self.gamma)


@dataclass(frozen=True)
class CosineRestarts(FallsToMinFactor):
    """Stochastic gradient descent with warm restarts: fall along a cosine, jump back to the peak.

    With ``t`` the steps since the last restart, ``T`` the length of the current cycle ``k`` and ``p`` its peak:

        lr_factor = min_factor + (p - min_factor) * (1 + cos(pi * t / T)) / 2
        p = max(gamma**k, min_factor)

    It does not change momentum. It never ends: cycle k, counted from 0, is ``t_mult**k`` times as long as the
    first (exactly periodic for ``t_mult=1`` and ``gamma=1``; boundaries are rounded down to whole steps).

    Args:
        t_0: optimizer steps of the first cycle.
        t_mult: growth of the cycles, at least 1.
        min_factor: where the cosine ends, as a fraction of the peak; torch's ``eta_min / lr``.
        gamma: what each restart multiplies the peak by, 0 < gamma <= 1.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983);
    ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``.
    """

    t_0: int = field(metadata=whole(1))
    t_mult: float = field(default=1, metadata=AT_LEAST_ONE)
    min_factor: float = field(default=0.0, metadata=UNIT)
    gamma: float = field(default=1.0, metadata=POSITIVE_UNIT)

    def at(self, step: int) -> Values:
        step = step_index(step)
        number, start, _, end = cycle_of(step, self.t_0, 0, self.t_mult)
        span = self._span
        if self.gamma != 1:
            peak = max(float(self.gamma**number), self.min_factor)
            span = Span.between(Values(self.min_factor), Values(peak))
        return blend(span, rise((end - step) / (end - start)))

    @property
    def period(self) -> int | None:
        return self.t_0 if self.t_mult == 1 == self.gamma else None


@dataclass(frozen=True)
class CosineWave(FallsToMinFactor):
    """Down along half a cosine and up again along the other half, repeated.

        lr_factor = min_factor + (1 - min_factor) * (1 + cos(pi * step / t_max)) / 2

    It does not change momentum. It never ends: it repeats exactly every ``2 * t_max`` steps. :class:`CosineDecay` is
    its first half.

    Args:
        t_max: optimizer steps from the peak down to ``min_factor``, and from there up again (torch's ``T_max``).
        min_factor: the lowest fraction of the peak; torch's ``eta_min / lr``.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.CosineAnnealingLR``, also past ``T_max``.
    """

    t_max: int = field(metadata=whole(1))
    min_factor: float = field(default=0.0, metadata=UNIT)

    def at(self, step: int) -> Values:
        from_lowest = abs(self.t_max - step_index(step) % (2 * self.t_max))
        return blend(self._span, rise(from_lowest / self.t_max))

    @property
    def period(self) -> int:
        return 2 * self.t_max
