"""Rules of other packages that read a single learning rate off the curve of a range test."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

SuggestionRule: TypeAlias = Literal["steepest", "valley", "minimum", "slide", "torch_lr_finder", "lightning"]


def _steepest(lrs: list[float], losses: list[float]) -> float:
    slopes = [(losses[i + 1] - losses[i]) / (math.log(lrs[i + 1]) - math.log(lrs[i])) for i in range(len(losses) - 1)]
    return lrs[slopes.index(min(slopes))]


def _valley(lrs: list[float], losses: list[float]) -> float:
    # Lengths of the longest falling subsequences. Quadratic, as in fastai: a range test has few steps.
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


def _slide(lrs: list[float], losses: list[float]) -> float:
    # An interval of 15 steps slides down from the end for as long as the slopes at its ends differ.
    slopes = _gradient(losses, [float(i) for i in range(len(losses))])
    chosen = left = len(losses) - 16
    while left >= 0 and abs(slopes[left + 15] - slopes[left]) > 0.005:
        chosen, left = left, left - 1
    return lrs[chosen]


def _torch_lr_finder(lrs: list[float], losses: list[float]) -> float:
    losses, lrs = losses[10:-5], lrs[10:]
    slopes = _gradient(losses, [float(i) for i in range(len(losses))])
    return lrs[slopes.index(min(slopes))]


def _lightning(lrs: list[float], losses: list[float]) -> float:
    lrs, losses = lrs[10 : len(losses) - 1], losses[10:-1]
    slopes = _gradient(losses, lrs)
    return lrs[slopes.index(min(slopes))]


def _gradient(values: list[float], places: list[float]) -> list[float]:
    """Second-order differences inside and first-order ones at both ends, like numpy's and torch's gradient."""
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


#: The rules that ``LRRangeTest.suggest_lr`` takes: from the rates and the smoothed losses to one rate.
RULES: dict[SuggestionRule, Callable[[list[float], list[float]], float]] = {
    "steepest": _steepest,
    "valley": _valley,
    "minimum": _tenth_of_minimum,
    "slide": _slide,
    "torch_lr_finder": _torch_lr_finder,
    "lightning": _lightning,
}
