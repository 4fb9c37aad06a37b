"""One cycle for the whole run: Smith & Topin's super-convergence schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Literal, NamedTuple, TypeAlias

from ..rules import FLAG, POSITIVE, UNIT, check_momenta, one_of, step_index, whole
from .base import Policy, Span, Values, blend, rise

AnnealStrategy: TypeAlias = Literal["cos", "linear"]


class _Ramp(NamedTuple):
    """A part of the cycle, by its two ends: the step and the values of each.

    In a falling part the low end is the last. The fractions below are right there, too, because the length is
    negative. Steps are in the unit of ``OneCycle._climbed``.
    """

    last_step: float
    low_step: float
    high_step: float
    length: float  # from the low end to the high one
    span: Span


#: From here on floats do not hold every whole number.
_EXACT = 2**53


@dataclass(frozen=True)
class OneCycle(Policy):
    """Up to the peak, down again, and at the end far below: one cycle of ``total_steps`` steps.

    With ``s = pct_start * total_steps``, a float as in torch (exact in a run too long for floats), it goes through

        step               lr_factor                             momentum
        0                  1 / div_factor                        max_momentum
        s - 1              1                                     base_momentum
        2*s - 2            1 / div_factor                        max_momentum    (three_phase)
        total_steps - 1    1 / (div_factor * final_div_factor)   max_momentum

    and holds the last values, where torch's turns back up at step ``total_steps``. At the fraction ``x`` of the way
    from one point to the next, ``a`` to ``b``,

        lr_factor = a + (b - a) * x                           anneal_strategy="linear"
        lr_factor = b + (a - b) * (1 + cos(pi * x)) / 2       anneal_strategy="cos"

    and momentum likewise. Points before step 0 or after the last step are passed over, as in torch: with ``s < 1`` the
    run starts on the way down, with ``pct_start=1`` it ends at the peak. Where ``s`` is 1 the climb has no length, and
    torch divides by zero: step 0 is then at the peak.

    Args:
        total_steps: optimizer steps of the whole run: ``len(loader) * epochs``, divided by the number of
            batches accumulated for one step.
        pct_start: fraction of the steps spent climbing.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: whether momentum moves too, inversely to the learning rate.
        base_momentum: momentum at the peak, the lowest.
        max_momentum: momentum at both ends, the highest.
        div_factor: the peak over the first rate; below 1 the run starts above ``lr``.
        final_div_factor: the first rate over the last one; below 1 the run ends above its first rate.
        three_phase: mirror the climb, then go down to the last rate at constant momentum. Above ``pct_start=0.5`` the
            run ends during the mirrored fall.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or a rate is beyond the range of floats.

    Source: Smith & Topin 2018 (arXiv 1708.07120); ``torch.optim.lr_scheduler.OneCycleLR``, whose
    values these are at every step that it defines.
    """

    total_steps: int = field(metadata=whole(1))
    pct_start: float = field(default=0.3, metadata=UNIT)
    anneal_strategy: AnnealStrategy = field(default="cos", metadata=one_of(AnnealStrategy))
    cycle_momentum: bool = field(default=True, metadata=FLAG)
    base_momentum: float = field(default=0.85, metadata=UNIT)
    max_momentum: float = field(default=0.95, metadata=UNIT)
    div_factor: float = field(default=25.0, metadata=POSITIVE)
    final_div_factor: float = field(default=1e4, metadata=POSITIVE)
    three_phase: bool = field(default=False, metadata=FLAG)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momenta(self.base_momentum, self.max_momentum)
        for name, last in (("1 / div_factor", 1.0), ("1 / (div_factor * final_div_factor)", self.final_div_factor)):
            if 1 / self.div_factor / last == inf:
                raise ValueError(
                    f"need {name} to be a finite number, "
                    f"got div_factor={self.div_factor}, final_div_factor={self.final_div_factor}"
                )

    def _climbed(self) -> tuple[float, int]:
        """The product ``pct_start * total_steps``, and the unit in which it is counted: in a unit of 1, a step.

        In a run so long that floats leave out steps, both are integers, in a unit that makes the product whole.
        """
        if self.total_steps < _EXACT:
            return float(self.pct_start * self.total_steps), 1
        numerator, unit = self.pct_start.as_integer_ratio()
        return numerator * self.total_steps, unit

    @cached_property
    def _ramps(self) -> tuple[int, tuple[_Ramp, ...]]:
        """The parts of the cycle, and how many of their units a step is."""
        # As in torch, the turning points lie between steps where pct_start * total_steps is not a whole number.
        climbed, unit = self._climbed()
        top = climbed - unit
        foot = 2 * top
        last = (self.total_steps - 1) * unit
        # Momentum moves inversely to the rate.
        lowest, highest = (self.max_momentum, self.base_momentum) if self.cycle_momentum else (None, None)
        first = Values(1 / self.div_factor, lowest)
        peak = Values(1.0, highest)
        end = Values(first.lr_factor / self.final_div_factor, lowest)
        full = Span.between(first, peak)
        # A climb of no length is at its top.
        bottom = 0 if top != 0 else -unit
        climb = _Ramp(top, bottom, top, top - bottom, full)
        if not self.three_phase:
            return unit, (climb, _Ramp(last, last, top, top - last, Span.between(end, peak)))
        fall = _Ramp(foot, foot, top, top - foot, full)
        return unit, (climb, fall, _Ramp(last, last, foot, foot - last, Span.between(end, first)))

    def at(self, step: int) -> Values:
        step = step_index(step)
        if step >= self.total_steps:
            step = self.total_steps - 1
        unit, ramps = self._ramps
        step *= unit
        for last_step, low_step, high_step, length, span in ramps:  # noqa: B007 (the loop finds them)
            if step <= last_step:
                break
        height = (step - low_step) / length
        cosine = self.anneal_strategy == "cos"
        if height < 0.5:
            return blend(span, rise(height) if cosine else height)
        # The other fraction, which is exact next to the high end.
        depth = (high_step - step) / length
        if cosine:
            depth = rise(depth)
        return blend(span, 1 - depth, depth)

    @property
    def end(self) -> int:
        return self.total_steps - 1
