"""When to stop a range test early: the loss has diverged."""

from __future__ import annotations

import math
import statistics


class Average:
    """An exponential moving average, corrected for its start at 0 (as Adam's moments are)."""

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._sum, self._missing = 0.0, 1.0

    def add(self, value: float) -> float:
        """Add a value; returns the average."""
        self._sum = self._smoothing * self._sum + (1 - self._smoothing) * value
        self._missing *= self._smoothing
        return self._sum / (1 - self._missing)


class Watch:
    """Notices a loss that is not finite or has diverged.

    ``average`` is the average loss so far. ``ceiling`` is the average loss above which the test counts as diverged;
    infinite during the first steps. If the loss is maximized, ``ceiling`` is one of the negated loss.
    """

    def __init__(self, num_steps: int, smoothing: float, divergence_factor: float, maximize: bool = False) -> None:
        self.maximize = maximize
        self._few, self._factor = max(5, num_steps // 10), divergence_factor
        self._smoothed, self.average = Average(smoothing), math.nan
        self._first: list[float] = []  # the losses at rates that are still too low to change anything
        self._lowest = math.inf
        self.ceiling = math.inf

    def reason_to_stop(self, lr: float, loss: float) -> str | None:
        """Take in the loss of one step; returns in words why the test must stop, or None."""
        if not math.isfinite(loss):
            return f"the loss was {loss} at lr={lr:.3g}"
        self.average = self._smoothed.add(loss)
        diverged = self._diverged(-loss, -self.average) if self.maximize else self._diverged(loss, self.average)
        return f"the loss diverged at lr={lr:.3g}" if diverged else None

    def _diverged(self, loss: float, average: float) -> bool:
        self._lowest = min(self._lowest, average)
        if len(self._first) < self._few:
            self._first.append(loss)
            return False
        fall = statistics.mean(self._first) - self._lowest
        scatter = max(self._first) - min(self._first)
        # Averages of equal losses differ in their last bits.
        rounding = 1e-12 * max(map(abs, self._first))
        self.ceiling = self._lowest + self._factor * max(fall, scatter, rounding)
        return average > self.ceiling
