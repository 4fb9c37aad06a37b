"""The result of a range test: the curve, and the rates that it suggests."""

from __future__ import annotations

import csv
import math
import operator
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from ..policies import Policy
from ..policies.cyclic import Triangular
from ..policies.decay import LinearDecay, WarmupStableDecay
from ..policies.onecycle import OneCycle
from ..rules import one_of, whole
from .rates import RULES, SuggestionRule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How the rate climbs.
RampMode: TypeAlias = Literal["exponential", "linear"]

#: A range needs at least this many losses.
FEWEST = 10
#: The loss starts to fall where it has come this fraction of its whole fall.
FALLEN = 0.3
#: The dip is where the loss has come this fraction of its whole fall.
DEEP = 0.5
#: A cycle stays longer at its peak than the test at any rate, and its peak is lower by this.
MARGIN = 2.5
#: Above this noise of a loss, as a fraction of the whole fall, the peak is lower still, by the noise's fourth root.
QUIET, ROOT = 0.01, 4
#: The two ends of a cycle are at least this far apart.
NARROW = 2.0
#: A fall or a rise counts if it is larger than this many standard errors of the smoothed loss.
CERTAIN = 4.0


class NoSuggestionError(ValueError):
    """The curve suggests no range; the message says why."""


class _Fall(NamedTuple):
    """How the smoothed losses fall to their lowest value."""

    start: float
    lowest: int  # its index
    height: float
    single: float  # the standard deviation of one loss's noise
    noise: float  # the standard error of the smoothed loss


@dataclass(frozen=True)
class LRRangeTest:
    """The result of a range test.

    Attributes:
        lrs: the learning rate (of the first param group) of each step.
        losses: the loss at that rate: the batch's loss before the update or, with a validation function, that
            function's after it.
        mode: ``"exponential"`` or ``"linear"``: how the rate climbed.
        stopped: why the test stopped, in words.
        smoothing: weight of the past in the averaged loss.
        ceiling: larger losses count as this much in ``smoothed``, so that a loss of 1e30 does not hide all others.
        ratios: the rate of each param group over the first one's.
        maximize: whether the loss is maximized: the suggestion is then read off the negated losses, and ``ceiling``
            is theirs.
        rates_of_their_own: whether several param groups were given rates other than the optimizer's.
    """

    lrs: list[float]
    losses: list[float]
    mode: RampMode
    stopped: str
    smoothing: float
    ceiling: float = math.inf
    ratios: tuple[float, ...] = (1.0,)
    maximize: bool = False
    rates_of_their_own: bool = False

    def __repr__(self) -> str:
        span = f", lr {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if self.lrs else ""
        groups = ""
        if any(ratio != 1 for ratio in self.ratios):
            others = ", ".join(f"{ratio:.3g}" for ratio in self.ratios[1:])
            groups = f"; rates are the first group's, the others' are {others} times it"
        return f"LRRangeTest({self._verdict()}; {len(self.lrs)} steps{span}; stopped: {self.stopped}{groups})"

    def _verdict(self) -> str:
        try:
            base_lr, max_lr = self.suggest()
        except NoSuggestionError as error:
            return f"no suggestion: {error}"
        return f"base_lr={base_lr:.3g}, max_lr={max_lr:.3g}"

    @property
    def smoothed(self) -> list[float]:
        """The losses averaged over their neighbours on both sides, so that the curve is not shifted.

        A loss k steps before or after has the weight ``smoothing**k``, and the weights are divided by their sum. The
        losses at the end that are above all of the first tenth are the blow-up. Before it, larger losses than those of
        the first tenth count as the highest of them: the blow-up, whatever its size, must not leak into the rates
        before it. The list ends before the first loss that is not finite.
        """
        return [self._sign * loss for loss in self._descent()]

    @property
    def _sign(self) -> int:
        """What turns the losses into ones that are minimized."""
        return -1 if self.maximize else 1

    def _descent(self) -> list[float]:
        """The smoothed losses, as ones that are minimized."""
        losses = [self._sign * loss for loss in self.finite_losses]
        highest = max(losses[: _tenth(losses)], default=math.inf)
        blow_up = max((i + 1 for i, loss in enumerate(losses) if loss <= highest), default=0)
        return self._averaged(highest)[:blow_up] + self._averaged(self.ceiling)[blow_up:]

    def _averaged(self, highest: float) -> list[float]:
        """The averaged losses, as ones that are minimized, where larger ones than ``highest`` count as that."""
        losses = [min(self._sign * loss, highest) for loss in self.finite_losses]
        sums, weights = (_two_sided(values, self.smoothing) for values in (losses, [1.0] * len(losses)))
        return [total / weight for total, weight in zip(sums, weights, strict=True)]

    @property
    def finite_losses(self) -> list[float]:
        """The losses up to the first that is NaN or infinite."""
        bad = next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), len(self.losses))
        return self.losses[:bad]

    def suggest(self) -> tuple[float, float]:
        """``(base_lr, max_lr)``: the two ends of a cycle.

        ``base_lr`` is where the loss begins to fall. ``max_lr`` is below the rate of the lowest loss, because a cycle
        stays near its peak for longer than the test stays at any rate, and further below if the losses are noisy,
        because noise adds up over those steps. The smoothed loss falls from its start (the mean of its first tenth) to
        its lowest value. The dip is the range of rates around the lowest value in which the loss is at least half of
        the way down. With the depth of the smoothed loss below its start as weight, and the noise of one loss in
        percent of the whole fall,

            centre = exp(sum(depth * log(lr)) / sum(depth))    over the dip
            max_lr = sqrt(centre * last rate of the dip) / 2.5 / max(1, noise) ** (1/4)
            base_lr = the last rate before the dip at which the loss had come at most 30 % of the way

        but ``base_lr`` is at most ``max_lr / 2``. The whole dip is used because its lowest point alone scatters more
        from test to test. ``benchmarks/suggestions.py``, with which the numbers were chosen, measures how well this
        works.

        The fall, and the rise after it, must be larger than four standard errors of the smoothed loss.

        Raises:
            NoSuggestionError: too few finite losses, a loss that does not fall, one that had not risen again when the
                test ended, or one that falls and rises within a factor of 2 of the rate.
        """
        losses = self._enough_losses(FEWEST)
        fall = self._measured_fall(losses)
        self._check_fall(losses, fall)
        self._check_rise(losses, fall)
        base_lr, max_lr = self.lrs[_last_above(losses, fall)], self._peak(losses, fall)
        if self.lrs[fall.lowest] <= NARROW * base_lr:
            raise NoSuggestionError(
                f"the loss falls and rises within a factor of {NARROW:g} of the rate: try more steps"
            )
        return min(base_lr, max_lr / NARROW), max_lr

    def _enough_losses(self, fewest: int) -> list[float]:
        """The smoothed losses as ones that are minimized, at least so many."""
        losses = self._descent()
        if len(losses) < fewest:
            raise NoSuggestionError(f"need at least {fewest} finite losses, got {len(losses)} ({self.stopped})")
        return losses

    def _measured_fall(self, losses: list[float]) -> _Fall:
        start = statistics.mean(losses[: _tenth(losses)])
        lowest = min(range(len(losses)), key=losses.__getitem__)
        single = self._noise(losses)
        # The root of the summed squares of the weights over their sum, for the weights smoothing**|k|.
        s = self.smoothing
        averaged = math.sqrt((1 + s**2) / (1 - s**2)) * (1 - s) / (1 + s)
        return _Fall(start, lowest, start - losses[lowest], single, single * averaged)

    def _noise(self, losses: list[float]) -> float:
        """The standard deviation of one loss's noise, from how neighbours differ in the first half."""
        early = self.finite_losses[: max(FEWEST, len(losses) // 2)]
        # From one step to the next the curve itself changes little. Each difference has the noise of two losses.
        return math.sqrt(statistics.mean((b - a) ** 2 for a, b in pairwise(early)) / 2)

    def _check_fall(self, losses: list[float], fall: _Fall) -> None:
        if len({*self.losses}) == 1:
            raise NoSuggestionError(
                f"the loss did not fall at any rate, it was always {self.losses[0]:.3g}: does it depend on the "
                "parameters that are trained?"
            )
        if fall.lowest < len(losses) // 10 or fall.height <= max(CERTAIN * fall.noise, 1e-12 * abs(fall.start)):
            raise NoSuggestionError(
                f"the loss did not fall at any rate from {self.lrs[0]:.3g} to {self.lrs[len(losses) - 1]:.3g}: "
                f"it fell by {fall.height:.3g}, with a noise of {fall.noise:.3g}; try a lower start_lr or more steps"
            )

    def _check_rise(self, losses: list[float], fall: _Fall) -> None:
        """The loss must rise again after its lowest value, or become NaN or infinite."""
        rise, ended_badly = losses[-1] - losses[fall.lowest], len(losses) < len(self.losses)
        if not ended_badly and rise <= max(CERTAIN * fall.noise, 0.02 * fall.height):
            raise NoSuggestionError(
                f"the loss had not risen again at the highest rate, {self.lrs[-1]:.3g}: try a higher end_lr"
            )

    def _peak(self, losses: list[float], fall: _Fall) -> float:
        """Below the middle, on a log scale, between the dip's centre and its end; further below with noise."""
        depths = [fall.start - loss for loss in losses]
        shallow = [i for i, depth in enumerate(depths) if depth < DEEP * fall.height]
        first = max((i + 1 for i in shallow if i < fall.lowest), default=0)
        last = min((i for i in shallow if i > fall.lowest), default=len(losses)) - 1
        logs, weights = [math.log(lr) for lr in self.lrs[first : last + 1]], depths[first : last + 1]
        centre = math.fsum(map(operator.mul, weights, logs)) / math.fsum(weights)
        noisy = max(1.0, fall.single / (QUIET * fall.height))
        return math.exp((centre + logs[-1]) / 2) / MARGIN * math.pow(noisy, -1 / ROOT)

    def suggest_lr(self, rule: SuggestionRule) -> float:
        """One rate, read off the smoothed losses by a rule of another package.

        - ``"steepest"``: steepest descent of the loss against log lr (fastai's ``steep``)
        - ``"valley"``: a half into the longest falling stretch's middle third (fastai's ``valley``)
        - ``"minimum"``: a tenth of the rate of the lowest loss (fastai's ``minimum``)
        - ``"slide"``: the start of an interval of 15 steps, slid down from the end while the slopes at its two ends
          differ by more than 0.005 (fastai's ``slide``)
        - ``"torch_lr_finder"``: steepest descent against the step, without the first 10 and last 5 steps
          (pytorch-lr-finder's ``plot(suggest_lr=True)``)
        - ``"lightning"``: steepest descent against lr itself, without the first 10 steps and the last (Lightning's
          ``suggestion()``)

        The rules are the packages', the curve is this one, with its blow-up averaged in. The packages average the past
        alone (fastai and Lightning with a weight of 0.98, pytorch-lr-finder with 0.95), so that their curve lags and
        its lowest point comes at a higher rate. fastai also cuts 10 steps off the start and 5 off the end first.

        Args:
            rule: the name of one of these.

        Raises:
            ValueError, TypeError: an unknown rule.
            NoSuggestionError: too few finite losses.
        """
        rule = one_of(SuggestionRule)["rule"]("rule", rule)
        self._enough_losses(FEWEST + 17)  # what the rules skip, and enough for the rest
        return RULES[rule](self.lrs, self._averaged(self.ceiling))

    def triangular(self, step_size_up: int, **options: Any) -> dict[str, Any]:
        """The lr and policy of cycles in the range; see :meth:`one_cycle` for what to do with them.

        Args:
            step_size_up: optimizer steps of the rising half of a cycle.
            options: other arguments of :class:`Triangular`.

        Raises:
            NoSuggestionError: as in :meth:`suggest`.
        """
        return self._cycle(lambda ratio: Triangular(step_size_up, div_factor=ratio, **options))

    def one_cycle(self, total_steps: int, **options: Any) -> dict[str, Any]:
        """The lr and policy of one cycle in the range: a dict with the keys ``lr`` and ``policy``.

        For the optimizer that was tested, or one with the same param groups:

            optimizer.reschedule(**result.one_cycle(total_steps=len(loader) * epochs), step=0)

        and for a new one ``CyclicSGD(model.parameters(), **result.one_cycle(total_steps))``. If the groups have rates
        of their own, ``lr`` is a list with a rate for each of them, in the proportion that they were tested in. Only
        ``reschedule`` takes a list: a constructor's ``lr`` does not reach a group that has a rate of its own.

        Args:
            total_steps: optimizer steps of the whole run: ``len(loader) * epochs``.
            options: other arguments of :class:`OneCycle`.

        Raises:
            NoSuggestionError: as in :meth:`suggest`.
        """
        return self._cycle(lambda ratio: OneCycle(total_steps, div_factor=ratio, **options))

    def linear_decay(self, total_steps: int, **options: Any) -> dict[str, Any]:
        """The lr and policy of a straight line from ``max_lr`` down to 0; see :meth:`one_cycle`.

        Args:
            total_steps: optimizer steps of the whole run: ``len(loader) * epochs``.
            options: other arguments of :class:`LinearDecay`.

        Raises:
            NoSuggestionError: as in :meth:`suggest`.
        """
        return self._cycle(lambda ratio: LinearDecay(total_steps, **options))

    def warmup_stable_decay(self, total_steps: int, **options: Any) -> dict[str, Any]:
        """The lr and policy of a warm-up to ``max_lr``, a constant rate and a cool-down to 0; see :meth:`one_cycle`.

        Args:
            total_steps: optimizer steps of the whole run: ``len(loader) * epochs``.
            options: other arguments of :class:`WarmupStableDecay`; by default ``warmup=total_steps // 20``,
                ``decay=total_steps // 5`` and ``shape="sqrt"``.

        Raises:
            NoSuggestionError: as in :meth:`suggest`.
        """
        total_steps = whole(0)["rule"]("total_steps", total_steps)
        given = {"warmup": total_steps // 20, "decay": total_steps // 5, "shape": "sqrt", **options}
        return self._cycle(lambda ratio: WarmupStableDecay(total_steps, **given))

    def _cycle(self, policy: Callable[[float], Policy]) -> dict[str, Any]:
        base_lr, max_lr = self.suggest()
        apart = self.rates_of_their_own or any(ratio != 1 for ratio in self.ratios)
        lr = [ratio * max_lr for ratio in self.ratios] if apart else max_lr
        return {"lr": lr, "policy": policy(max_lr / base_lr)}

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the curve as an inline SVG picture, which needs no matplotlib."""
        from ..svg import or_none, range_test_html

        return or_none(lambda: range_test_html(self))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses over the rate; returns the Axes. Needs matplotlib.

        Marked are the suggested range, the lowest loss of a single step, and the rate at which the test stopped. A
        notebook shows a smaller picture, which needs no matplotlib, where the result itself is a cell's last line.

        Args:
            ax: where to draw (default: a new figure).
        """
        from ..plotting import plot_range_test

        return plot_range_test(self, ax=ax)

    def to_csv(self, file: str | os.PathLike[str] | IO[str]) -> None:
        """Write ``lr,loss,smoothed`` and a row for each step; smoothed is empty from the first loss that is not finite.

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


def _tenth(losses: list[float]) -> int:
    """How many are the first tenth: at least one."""
    return max(1, len(losses) // 10)


def _last_above(losses: list[float], fall: _Fall) -> int:
    """The last step at which the loss had come at most ``FALLEN`` of the way down."""
    # There is one in the first tenth: its highest loss is not below its mean.
    return max(i for i in range(fall.lowest) if losses[i] >= fall.start - FALLEN * fall.height)


def _two_sided(values: list[float], smoothing: float) -> list[float]:
    """The sums of the values with the weights ``smoothing**|i - j|``."""
    before, after = (
        list(accumulate(ordered, lambda total, value: smoothing * total + value)) for ordered in (values, values[::-1])
    )
    # Both sums hold the value itself.
    return [left + right - value for left, right, value in zip(before, after[::-1], values, strict=True)]
