"""What ``suggestions.py`` reports: every rule on the recorded curves, beside the rates that train well.

Nothing here trains. A rule that changes needs ``python benchmarks/suggestions.py --report`` and no more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from harness import environment_line, markdown_table

from cyclic_optim import LRRangeTest, NoSuggestionError, lr_range_test
from cyclic_optim.range_test.rates import RULES
from cyclic_optim.range_test.watch import Watch

ENOUGH = 0.95  # of the way down that the best peak comes
NEAR = 2.0  # times the best peak, or a part of it
DEFAULTS = lr_range_test.__kwdefaults__
SMOOTHING = DEFAULTS["smoothing"]
# Weight of the past in the average, whether its start at 0 is corrected, the multiple of the lowest loss to stop at,
# and the steps left out at both ends (on top of those that the rule itself leaves out).
FASTAI, LIGHTNING, TORCH_LR_FINDER = (0.98, True, 4, 10, 5), (0.98, True, 4, 0, 0), (0.95, False, 5, 0, 0)
PACKAGES = dict.fromkeys(RULES, FASTAI) | {"torch_lr_finder": TORCH_LR_FINDER, "lightning": LIGHTNING}
OURS, BASE = "**max_lr**", "base_lr"
HALVES = {"chosen on": 0, "held out": 1}  # the cases with an even number, and those with an odd one

Record = dict[str, Any]
Rates = dict[str, float | None]  # by the name of the suggestion; None where the rule has none


# -- the truth --------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """What the rates of the grid lead to: means over the seeds. No training counts as worse than none at all."""

    rates: list[float]
    losses: list[float]
    initial: float

    @classmethod
    def of(cls, case: Record) -> Truth:
        initial = statistics.mean(case["initial"])
        ends = ([initial if end is None else min(end, initial) for end in of_rate] for of_rate in case["ends"])
        return cls(case["rates"], [*map(statistics.mean, ends)], initial)

    @property
    def enough(self) -> float:
        """The loss of a training that comes far enough."""
        return self.initial - ENOUGH * (self.initial - min(self.losses))

    @property
    def best(self) -> float:
        return self.rates[self.losses.index(min(self.losses))]

    @property
    def good(self) -> tuple[float, float]:
        """The lowest and the highest rate around the best one that train well, between the grid's on a log scale."""
        place = self.rates.index(self.best)
        below = [*zip(self.rates, self.losses, strict=True)][place::-1]
        above = [*zip(self.rates, self.losses, strict=True)][place:]
        return self._end(below), self._end(above)

    def _end(self, points: list[tuple[float, float]]) -> float:
        for (rate, loss), (next_rate, next_loss) in pairwise(points):
            if next_loss > self.enough:
                way = (self.enough - loss) / (next_loss - loss)
                return rate * (next_rate / rate) ** way
        return points[-1][0]


# -- the suggestions --------------------------------------------------------------------------------


def rates_of(count: int) -> list[float]:
    """Of the steps of a range test with the defaults."""
    start, end, steps = (DEFAULTS[key] for key in ("start_lr", "end_lr", "num_steps"))
    return [start * (end / start) ** (step / (steps - 1)) for step in range(count)]


def default_test(losses: list[float]) -> LRRangeTest:
    """The range test as it is by default: it stops where the loss has diverged."""
    lrs, watch, steps, stopped = rates_of(len(losses)), Watch(100, SMOOTHING, DEFAULTS["divergence_factor"]), 0, None
    while steps < len(losses) and stopped is None:
        stopped = watch.reason_to_stop(lrs[steps], losses[steps])
        steps += 1
    return LRRangeTest(
        lrs[:steps], losses[:steps], "exponential", stopped or "end_lr was reached", SMOOTHING, watch.ceiling
    )


def averages_in_package(losses: list[float], past: float, is_corrected: bool, multiple: float) -> list[float]:
    average = 0.0 if is_corrected else losses[0]
    averages: list[float] = []
    for step, loss in enumerate(losses, start=1):
        average = past * average + (1 - past) * loss
        averages.append(average / (1 - past**step) if is_corrected else average)
        if averages[-1] > multiple * min(averages):
            break
    return averages


def as_in_package(rule: str, losses: list[float]) -> float:
    """What the package itself suggests: with its average of the losses, its end of the curve and its rule."""
    past, is_corrected, multiple, first, last = PACKAGES[rule]
    finite = losses[: next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))]
    averages = averages_in_package(finite, past, is_corrected, multiple)
    kept = slice(first, len(averages) - last)
    return RULES[rule](rates_of(len(averages))[kept], averages[kept])


def none_if_none(suggest: Callable[[], float]) -> float | None:
    try:
        return suggest()
    except (NoSuggestionError, IndexError, ValueError):  # the packages' rules need some losses, and say so less well
        return None


def suggestions(losses: list[float | None]) -> Rates:
    """Of every rule, for one range test."""
    whole = [math.nan if loss is None else loss for loss in losses]
    test = default_test(whole)
    rates = {OURS: none_if_none(lambda: test.suggest()[1]), BASE: none_if_none(lambda: test.suggest()[0])}
    for rule in RULES:
        rates[f"`{rule}`"] = none_if_none(lambda rule=rule: test.suggest_lr(rule))
        rates[f"`{rule}`, as in its package"] = none_if_none(lambda rule=rule: as_in_package(rule, whole))
    return rates


# -- how good they are ------------------------------------------------------------------------------


class Case(NamedTuple):
    """The truth of a case, and the suggestions of its range tests."""

    name: str
    truth: Truth
    found: list[Rates]

    @classmethod
    def of(cls, name: str, case: Record) -> Case:
        return cls(name, Truth.of(case), [*map(suggestions, case["curves"])])

    def is_good(self, lr: float | None) -> bool:
        low, high = self.truth.good
        return lr is not None and low <= lr <= high

    def is_near(self, lr: float | None) -> bool:
        return lr is not None and 1 / NEAR <= lr / self.truth.best <= NEAR


def share(cases: list[Case], name: str, is_right: Callable[[Case, float | None], bool]) -> float:
    return statistics.mean(is_right(case, rates[name]) for case in cases for rates in case.found)


def times_best(cases: list[Case], name: str) -> Iterator[float]:
    """Each suggestion as a multiple of the best peak."""
    for case in cases:
        yield from (lr / case.truth.best for rates in case.found if (lr := rates[name]) is not None)


def row(cases: list[Case], name: str) -> list[str]:
    halves = [cases[start::2] for start in HALVES.values()]
    shares = [
        " / ".join(f"{share(some, name, is_right):.0%}" for some in (cases, *halves))
        for is_right in (Case.is_good, Case.is_near)
    ]
    multiples = [*times_best(cases, name)]
    none = sum(rates[name] is None for case in cases for rates in case.found)
    spread = " ".join(f"{value:.2g}" for value in statistics.quantiles(multiples, n=10)[::4]) if multiples else ""
    return [name, *shares, spread, str(none)]


def rules_table(cases: list[Case]) -> str:
    names = [*cases[0].found[0]]
    header = ["suggestion", "trains well: all / chosen on / held out", "near the best: the same"]
    return markdown_table([*header, "over the best: 10 %, 50 %, 90 %", "none"], [row(cases, name) for name in names])


def cases_table(cases: list[Case], shown: list[str]) -> str:
    rows = [
        [case.name, "{:.2g} to {:.2g}".format(*case.truth.good), f"{case.truth.best:.2g}"]
        + [cell(case, name) for name in shown]
        for case in cases
    ]
    return markdown_table(["case", "trains well", "best", *shown], rows)


def cell(case: Case, name: str) -> str:
    """The suggestions' geometric mean, and how many of them train well."""
    rates = [lr for found in case.found if (lr := found[name]) is not None]
    mean = f"{statistics.geometric_mean(rates):.2g}" if rates else "none"
    return f"{mean} ({sum(map(case.is_good, rates))} of {len(case.found)})"


def best_of_the_field(cases: list[Case]) -> str:
    """The other packages' suggestion that trains well most often."""
    names = [name for name in cases[0].found[0] if name not in (OURS, BASE)]
    return max(names, key=lambda name: (share(cases, name, Case.is_good), share(cases, name, Case.is_near)))


def report(record: Record) -> str:
    cases = [Case.of(name, case) for name, case in record["cases"].items()]
    return f"""\
`{record["command"]}`

{len(cases)} cases, each with {len(cases[0].found)} range tests. A rate **trains well** if one cycle with its peak there
brings the training loss at least {ENOUGH:.0%} of the way that it comes with the best peak. It is **near the best** if
it is at most {NEAR:g} times as high or as low as the best peak. The other packages' rules read the range test's own
curve here, and, "as in its package", the same losses averaged, cut and ended as their package does. The constants of
`suggest()` were chosen on every second case (the first, the third, ...). All cases were looked at when its form was
chosen, so that also the share among the others, held out, may be a little too good. `base_lr` is where a cycle starts,
and is meant to be low.

{rules_table(cases)}

Case by case: the rates that train well, the best, and the geometric mean of the suggestions (and how many of them train
well); beside ours those of the other packages' best rule.

{cases_table(cases, [OURS, BASE, best_of_the_field(cases)])}

{environment_line(record["environment"])}
"""
