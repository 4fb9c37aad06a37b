"""What the report of the evidence counts on: means with bootstrap intervals, and paired tests, over seeds."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.05
IMAGE = 0.01  # points of accuracy: no task's test part has more than 10,000 examples

Array = NDArray[np.floating[Any]]
Key = TypeVar("Key", bound=Hashable)


class Estimate(NamedTuple):
    """A mean over seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference between paired trainings, and what a test says of it, corrected for its family."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def is_better(self) -> bool:
        return self.p < LEVEL and self.mean > 0

    @property
    def is_worse(self) -> bool:
        return self.p < LEVEL and self.mean < 0


def estimate(values: Array) -> Estimate:
    """The percentile bootstrap over seeds."""
    low, high = np.percentile(values[resamples(len(values))].mean(1), (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high))


@functools.cache
def resamples(seeds: int) -> NDArray[np.int64]:
    """The same for every cell of a table, which is then the same every time."""
    return np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))


def compare(differences: Mapping[Key, Array]) -> dict[Key, Difference]:
    """What is the difference by seed, for each of a family of comparisons that are corrected together."""
    corrected = holm([paired_test(values) for values in differences.values()])
    return {
        key: Difference(*estimate(values), p) for (key, values), p in zip(differences.items(), corrected, strict=True)
    }


def paired_test(differences: Array) -> float:
    """The p-value, two-sided: Wilcoxon's signed-rank test where seeds are enough for it, else Student's t test."""
    enough = 2 / 2 ** len(differences) < LEVEL
    return signed_rank_test(differences) if enough else t_test(differences)


def signed_rank_test(differences: Array) -> float:
    """Seeds without a difference are left out. Exact with ties, too: it tries all signs, where scipy takes long."""
    from scipy.stats import rankdata

    found = levels(differences)
    found = found[found != 0]
    ranks = rankdata(np.abs(found))
    return float(np.mean(np.abs(all_signs(len(ranks)) @ ranks) >= abs(np.sign(found) @ ranks)))


def t_test(differences: Array) -> float:
    from scipy.stats import t

    if not levels(differences).any():
        return 1.0
    with np.errstate(divide="ignore"):  # all seeds may agree
        error = differences.std(ddof=1) / math.sqrt(len(differences))
        return float(2 * t.sf(np.abs(differences.mean() / error), len(differences) - 1))


@functools.cache
def all_signs(count: int) -> Array:
    return np.array([*itertools.product((-1.0, 1.0), repeat=count)]).reshape(2**count, count)


def levels(differences: Array) -> Array:
    """Whole numbers in the same order: what is apart by the rounding of accuracies alone becomes a tie."""
    sizes = np.abs(differences)
    order = np.argsort(sizes)
    level = np.empty(len(sizes))
    level[order] = np.cumsum(np.diff(sizes[order], prepend=0.0) > IMAGE / 2)
    return np.sign(differences) * level


def holm(p_values: list[float]) -> list[float]:
    """Corrected for being so many: some one is below 0.05 by chance in at most 5 families of 100."""
    corrected, so_far = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected
