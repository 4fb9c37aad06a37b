"""The report of ``convergence.py``: tables, conclusions and the README's section, all of it computed from the record.

No sentence here knows how the trainings went. What a claim comes under, "Held" or another of ``STANDINGS``, follows
from the number of comparisons that bear it out and of those that show the opposite.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import convergence_picture
import numpy as np
from convergence import (
    ARMS,
    CONSTANT,
    COSINE,
    CYCLE,
    FIXED,
    ONE_CYCLE,
    RESHUFFLED,
    SCHEDULE_FREE,
    SHUFFLED,
    SORTED,
    TASKS,
    TRIANGULAR,
    TUNED,
    UNTUNED,
    UNTUNED_LR,
    Found,
    Outcome,
    Range,
    Scope,
    Training,
)
from convergence_statistics import Array, Difference, Estimate, compare, estimate
from harness import RESULTS, environment_line, markdown_table, write_results

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- evidence: written by benchmarks/convergence.py -->", "<!-- end of evidence -->"

RANGE_TEST, GRID = "at the range test's rate", "at the best rate of the grid"
RULES = (RANGE_TEST, GRID)
STEADY = "OneCycle, constant momentum"
REFERENCES = {CONSTANT: "the best constant rate of the grid", COSINE: "cosine, its rate chosen by the same rule"}
HARD = "letters"  # the task that the README tells of
ORDERED = (HARD, "digits")  # the tasks that orders and lengths of cycles were tried on
NEAR = 1.0  # points below the best that count as near it
BETTER, WORSE, EQUAL = "better", "worse", "not told apart"

SENSITIVITY = "convergence_sensitivity.png"
CONTENDERS = (COSINE, TRIANGULAR, ONE_CYCLE, SCHEDULE_FREE)  # whom the short conclusion is about

Comparisons = dict[str, Difference]  # by arm
Place = tuple[str, str, int]  # task, rule, budget


# -- the record -------------------------------------------------------------------------------------


class Evidence:
    """The trainings, looked up by what they were made for."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record, self.tasks = record, record["tasks"]
        self.scope = Scope(**record["scope"])
        self.ranges = {
            task: {kind: Range(*(found[field] for field in Range._fields)) for kind, found in kinds.items()}
            for task, kinds in record["ranges"].items()
        }
        self.found = Found(self.ranges, record["grid_factors"])
        size = len(Training._fields)
        self.outcomes = {Training(*run[:size]): Outcome(*run[size:]) for run in record["runs"]}
        places = [*itertools.product(self.tasks, RULES, self.scope.budgets)]
        self.against = {  # each with all arms, a family for each place
            CONSTANT: {place: self.against_constant(*place) for place in places},
            COSINE: {place: self.against_cosine(*place) for place in places},
        }

    def trained(self, seeds: int, task: str, arm: str, factor: float, epochs: int, **options: Any) -> Array:
        """Test accuracy: a row for each seed, a column for each epoch."""
        options["is_quick"] = self.scope.is_quick
        plans = (self.found.training(task, arm, factor, epochs, seed, **options) for seed in range(seeds))
        return np.array([self.outcomes[plan].test for plan in plans])

    def aside(self, task: str, arm: str, factor: float, epochs: int, **options: Any) -> Array:
        """Accuracy in the end, by seed, in what is not the main question."""
        return self.trained(self.seeds_aside(task), task, arm, factor, epochs, **options)[:, -1]

    def seeds_aside(self, task: str) -> int:
        return min(self.scope.seeds, TASKS[task].seeds_aside)

    def curves(self, task: str, arm: str, rule: str, budget: int) -> Array:
        """A training of ``budget`` epochs. An arm without an end has it as part of its longest."""
        factor = self.found.factors[task].get(arm, 1.0) if rule == GRID else 1.0
        epochs = budget if ARMS[arm].has_end else self.scope.budgets[-1]
        return self.trained(self.scope.seeds, task, arm, factor, epochs)[:, :budget]

    def final(self, task: str, arm: str, rule: str, budget: int) -> Array:
        return self.curves(task, arm, rule, budget)[:, -1]

    def against_constant(self, task: str, rule: str, budget: int) -> Comparisons:
        reference = self.final(task, CONSTANT, GRID, budget)
        arms = [arm for arm in ARMS if (arm, rule) != (CONSTANT, GRID)]
        return compare({arm: self.final(task, arm, rule, budget) - reference for arm in arms})

    def against_cosine(self, task: str, rule: str, budget: int) -> Comparisons:
        reference = self.final(task, COSINE, rule, budget)
        return compare({arm: self.final(task, arm, rule, budget) - reference for arm in ARMS if arm != COSINE})

    def rate_found(self, task: str) -> dict[int, Difference]:
        """By budget, what the range test's rate brings to SGD."""
        budgets, rule = self.scope.budgets, RANGE_TEST
        return compare({n: self.final(task, CONSTANT, rule, n) - self.final(task, UNTUNED, rule, n) for n in budgets})

    def epochs_to_target(self, task: str, arm: str, rule: str) -> list[float]:
        """For each seed, the first epoch of any of its trainings that has the accuracy aimed at; else infinity."""
        target = self.tasks[task]["target"]
        budgets = self.scope.budgets if ARMS[arm].has_end else self.scope.budgets[-1:]
        reached = [self.curves(task, arm, rule, budget) >= target for budget in budgets]
        return [min(first(trainings[seed]) for trainings in reached) for seed in range(self.scope.seeds)]

    def by_factor(self, task: str, arm: str) -> dict[float, Array]:
        epochs = self.scope.grid_epochs
        return {factor: self.aside(task, arm, factor, epochs) for factor in self.scope.factors}

    def near_best(self, task: str, arm: str) -> int:
        """The number of factors whose mean accuracy is near the arm's own best."""
        means = [values.mean() for values in self.by_factor(task, arm).values()]
        return sum(mean >= max(means) - NEAR for mean in means)

    def overall(self, task: str) -> Comparisons:
        """The mean over all factors, against the constant rate's."""
        means = {arm: np.array([*self.by_factor(task, arm).values()]).mean(0) for arm in TUNED}
        return compare({arm: mean - means[CONSTANT] for arm, mean in means.items() if arm != CONSTANT})

    def momentum(self, task: str, rule: str) -> dict[int, Difference]:
        """By budget, what cycling the momentum brings to one cycle."""

        def added(budget: int) -> Array:
            return self.final(task, ONE_CYCLE, rule, budget) - self.final(task, STEADY, rule, budget)

        return compare({budget: added(budget) for budget in self.scope.budgets})

    def by_order(self, task: str, arm: str, order: str) -> Array:
        return self.aside(task, arm, 1.0, self.scope.grid_epochs, order=order)

    def orders(self, task: str) -> dict[tuple[str, str], Difference]:
        """By arm and order, against new orders."""
        others = itertools.product(SHUFFLED, (FIXED, SORTED))
        return compare({(a, o): self.by_order(task, a, o) - self.by_order(task, a, RESHUFFLED) for a, o in others})

    def by_cycle(self, task: str, cycle: int) -> Array:
        return self.aside(task, TRIANGULAR, 1.0, self.scope.cycles_epochs, cycle=cycle)

    def cycles(self, task: str) -> dict[int, Difference]:
        """By length, against the length that all other trainings have."""
        others = [cycle for cycle in self.scope.cycles if cycle != CYCLE]
        return compare({cycle: self.by_cycle(task, cycle) - self.by_cycle(task, CYCLE) for cycle in others})


def first(reached: Array) -> float:
    return float(reached.argmax()) + 1 if reached.any() else math.inf


# -- words ------------------------------------------------------------------------------------------


def verdict(found: Difference) -> str:
    return BETTER if found.is_better else WORSE if found.is_worse else EQUAL


def interval(found: Estimate, digits: int = 2) -> str:
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def points(found: Difference, digits: int = 2) -> str:
    mean, low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in found[:3])
    return f"{mean} [{low}, {high}]"


def judged(found: Difference) -> str:
    """The cell of a table."""
    return points(found) if verdict(found) == EQUAL else f"{points(found)} {verdict(found)}"


def listing(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def epochs_text(epochs: float) -> str:
    return "never" if math.isinf(epochs) else f"{epochs:g}"


def wrapped(text: str, width: int = 120) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def item(text: str) -> str:
    return "- " + wrapped(text, 118).replace("\n", "\n  ")


# -- the claims -------------------------------------------------------------------------------------

HOLDS, IN_PART, NOT_SHOWN, OPPOSITE = "Held", "Held in part", "Not shown", "Rather the opposite of"
STANDINGS = (HOLDS, IN_PART, NOT_SHOWN, OPPOSITE)
Signs = dict[str, list[int]]  # by task and comparison: 1 bears the claim out, -1 shows the opposite, 0 neither


class Claim(NamedTuple):
    what: str
    who: str
    signs: Signs

    @property
    def groups(self) -> tuple[list[int], list[int]]:
        """Those of the hard task and those of the others."""
        return self.signs[HARD], [sign for task, signs in self.signs.items() if task != HARD for sign in signs]

    @property
    def standing(self) -> str:
        net, every = sum(map(statistics.mean, self.groups)) / 2, [*itertools.chain(*self.groups)]
        if net > 1 / 2 and -1 not in every:
            return HOLDS
        if abs(net) < 1 / 4 or every.count(1) == every.count(-1):
            return NOT_SHOWN
        return IN_PART if net > 0 else OPPOSITE

    def __str__(self) -> str:
        return f"{self.who} ({'; '.join(map(shares, self.groups))})"


def shares(signs: list[int]) -> str:
    against = f", {signs.count(-1)} against" if -1 in signs else ""
    return f"{signs.count(1)} of {len(signs)}{against}"


def sign_of(found: Difference) -> int:
    return found.is_better - found.is_worse


def claims(evidence: Evidence) -> list[Claim]:
    tasks, budgets = evidence.tasks, evidence.scope.budgets
    overall = {task: evidence.overall(task) for task in tasks}
    orders = {task: evidence.orders(task) for task in ORDERED}

    def beats(reference: str, arm: str, rule: str) -> Signs:
        against = evidence.against[reference]
        return {task: [sign_of(against[task, rule, n][arm]) for n in budgets] for task in tasks}

    def forgives(arm: str) -> Signs:
        return {task: [sign_of(overall[task][arm])] for task in tasks}

    def sooner(task: str) -> int:
        ours = np.median(evidence.epochs_to_target(task, ONE_CYCLE, RANGE_TEST))
        theirs = np.median(evidence.epochs_to_target(task, CONSTANT, GRID))
        return int(ours < theirs) - int(ours > theirs)

    def costs(order: str) -> Signs:
        return {task: [-sign_of(orders[task][arm, order]) for arm in SHUFFLED] for task in ORDERED}

    found = {task: [sign_of(difference) for difference in evidence.rate_found(task).values()] for task in tasks}
    lengths = {task: [-sign_of(difference) for difference in evidence.cycles(task).values()] for task in ORDERED}
    momentum = {
        task: [sign_of(difference) for difference in evidence.momentum(task, RANGE_TEST).values()] for task in tasks
    }
    low, high = min(evidence.scope.factors), max(evidence.scope.factors)
    constant = "the best constant rate of the grid"
    return [
        Claim("beat SGD's default of 1e-3", "the rate that a range test finds", found),
        *(Claim(f"beat {constant}, {RANGE_TEST}", arm, beats(CONSTANT, arm, RANGE_TEST)) for arm in CONTENDERS),
        *(
            Claim(f"beat {COSINE}, each at its best rate of the grid", arm, beats(COSINE, arm, GRID))
            for arm in CONTENDERS
            if arm != COSINE
        ),
        Claim(
            f"reached a stated accuracy in fewer epochs than {constant}, if laid out for so few",
            f"{ONE_CYCLE} {RANGE_TEST}",
            {task: [sooner(task)] for task in tasks},
        ),
        *(
            Claim(f"beat a constant rate on average over {low:g} to {high:g} times the rate found", arm, forgives(arm))
            for arm in CONTENDERS
        ),
        Claim("added accuracy", f"cycling {ONE_CYCLE}'s momentum, too, {RANGE_TEST}", momentum),
        Claim("cost accuracy", "examples that come class after class", costs(SORTED)),
        Claim("cost accuracy", "one order kept for all epochs", costs(FIXED)),
        Claim("cost accuracy", f"cycles of other than {CYCLE} epochs", lengths),
    ]


def by_standing(evidence: Evidence) -> dict[str, list[Claim]]:
    found = claims(evidence)
    sorted_ = {standing: [claim for claim in found if claim.standing == standing] for standing in STANDINGS}
    return {standing: those for standing, those in sorted_.items() if those}


def conclusion(evidence: Evidence) -> str:
    """What holds and what does not, in a paragraph."""
    standings = by_standing(evidence).items()
    return wrapped(" ".join(f"**{standing}:** {together(those, who)}." for standing, those in standings))


def counted(evidence: Evidence) -> str:
    """The same, with how often."""
    return "\n".join(
        item(f"**{standing}:** {together(those, str)}.") for standing, those in by_standing(evidence).items()
    )


def who(claim: Claim) -> str:
    return claim.who


def in_numbers(evidence: Evidence) -> str:
    """A line each on what the claims come to: on the hard task, then on the others."""
    scope, found = evidence.scope, evidence.rate_found(HARD)
    shortest, longest = scope.budgets[0], scope.budgets[-1]

    def ends(reference: str, rule: str) -> str:
        """Points above the reference by budget, in bold where a difference is told apart."""
        by_arm = {
            arm: [evidence.against[reference][HARD, rule, n][arm] for n in scope.budgets]
            for arm in CONTENDERS
            if arm != reference
        }
        return "; ".join(f"{arm} {listing([*map(in_bold, cells)])}" for arm, cells in by_arm.items())

    def momentum(rule: str) -> str:
        return listing([*map(in_bold, evidence.momentum(HARD, rule).values())])

    rates = evidence.ranges[HARD]["SGD"].suggested
    apart = max(rate for _, rate in rates) / min(rate for _, rate in rates)
    near = listing([f"{evidence.near_best(HARD, arm)} for {arm}" for arm in (CONSTANT, *CONTENDERS)])
    after = f"after {listing([*map(str, scope.budgets)])} epochs"
    lines = (
        f"**The rate found** (the median of {scope.seeds} range tests, which are up to {apart:.1f} times apart) brings "
        f"SGD {points(found[shortest], 1)} points of test accuracy on {HARD} after {shortest} epochs, and "
        f"{points(found[longest], 1)} after {longest}, compared with its default of {UNTUNED_LR:g}.",
        f"**Schedules at that rate**, with nothing else tuned, minus the best constant rate of the grid, in points "
        f"{after} (in bold what is told apart): {ends(CONSTANT, RANGE_TEST)}.",
        f"**Each at its best rate of the grid**{at_the_end(evidence)}, likewise: {ends(CONSTANT, GRID)}. Minus "
        f"{COSINE}: {ends(COSINE, GRID)}.",
        f"**A rate mis-set**: of {len(scope.factors)} rates from {min(scope.factors):g} to {max(scope.factors):g} "
        f"times the one found, so many are within a point of an arm's own best: {near}.",
        f"**Cycling the momentum, too**, changes {ONE_CYCLE} by {momentum(RANGE_TEST)} points at the range test's "
        f"rate, and by {momentum(GRID)} with each at its best of the grid.",
        on_the_others(evidence),
        asides(evidence),
    )
    return "\n".join(map(item, lines))


def at_the_end(evidence: Evidence) -> str:
    """Whose best rate is the highest that was tried."""
    highest = max(evidence.scope.factors)
    arms = [arm for arm in CONTENDERS if evidence.found.factors[HARD][arm] == highest]
    return f" (the highest tried, {highest:g} times the rate found, for {listing(arms)})" if arms else ""


def on_the_others(evidence: Evidence) -> str:
    others, budgets = [task for task in evidence.tasks if task != HARD], evidence.scope.budgets
    signs = [
        sign_of(evidence.against[CONSTANT][task, RANGE_TEST, n][arm])
        for task, n, arm in itertools.product(others, budgets, CONTENDERS)
    ]
    differences = {(task, n): found for task in others for n, found in evidence.rate_found(task).items()}
    rates = [sign_of(found) for found in differences.values()]
    text = (
        f"**On the {len(others)} small tasks**, of {len(signs)} comparisons of {listing(CONTENDERS)} at the range "
        f"test's rate with the best constant rate of the grid, {signs.count(1)} are won, {signs.count(-1)} lost and "
        f"{signs.count(0)} not told apart. The rate found, held constant, is better than the default in "
        f"{rates.count(1)} of {len(rates)} cases and worse in {rates.count(-1)}"
    )
    if -1 not in rates:
        return f"{text}."
    task, n = min(differences, key=lambda key: differences[key].mean)
    held, untuned = (evidence.final(task, arm, RANGE_TEST, n).mean() for arm in (CONSTANT, UNTUNED))
    return (
        f"{text}, at worst {held:.1f} % instead of {untuned:.1f} % ({task}, {n} epochs): what a range test suggests is "
        "the peak of a cycle, which can be too high to stay at."
    )


def in_bold(found: Difference) -> str:
    return f"**{found.mean:+.1f}**" if sign_of(found) else f"{found.mean:+.1f}"


def together(claims: list[Claim], of_each: Callable[[Claim], str]) -> str:
    """In a sentence, those that say the same of several."""
    groups = itertools.groupby(claims, key=lambda claim: claim.what)
    return "; ".join(f"{listing([*map(of_each, those)])} {what}" for what, those in groups)


def asides(evidence: Evidence) -> str:
    """What shuffling and the length of a cycle do on the hard task."""

    orders = evidence.orders(HARD)

    def changed(order: str) -> str:
        return listing([f"{in_bold(orders[arm, order])} ({arm})" for arm in SHUFFLED])

    lengths = listing([f"{in_bold(found)} ({cycle})" for cycle, found in evidence.cycles(HARD).items()])
    return (
        f"**Shuffling**: class after class changes {changed(SORTED)} points, one order kept for all epochs "
        f"{changed(FIXED)}. **The length of a cycle**, in epochs, changes {TRIANGULAR} after "
        f"{evidence.scope.cycles_epochs} epochs, compared with {CYCLE}, by {lengths}."
    )


# -- the tables -------------------------------------------------------------------------------------


def report(evidence: Evidence) -> str:
    parts = [
        f"`{evidence.record['command']}`",
        conclusion(evidence),
        in_numbers(evidence),
        "## Claims, and how often they hold",
        counted(evidence),
        how_to_read(evidence),
        setting(evidence),
        counts(evidence),
        *(task_section(evidence, task) for task in hardest_first(evidence)),
        mis_set_rates(evidence),
        shuffling(evidence),
        cycle_lengths(evidence),
        wrapped(environment_line(evidence.record["environment"])),
    ]
    return "\n\n".join(parts) + "\n"


def hardest_first(evidence: Evidence) -> list[str]:
    return sorted(evidence.tasks, key=lambda task: task != HARD)


ARMS_TOLD = f"""\
All arms are SGD with momentum 0.9 and weight decay 5e-4. Step decay: a tenth at 1/2 and again at 3/4. 1/t: half the
rate after {CYCLE} epochs. Plateau: times 0.3 after 2 epochs without a better validation loss. Warm restarts and growing
cycles: three, each twice as long as the one before. Triangles: {CYCLE} epochs, down to the lowest rate of the range
test, momentum between 0.9 and 0.8; ExpRange down to a tenth of the height by the end. OneCycle: momentum between 0.95
and 0.85. SGDScheduleFree: half an epoch of warm-up; before it is evaluated, batch norm sees an epoch with its averaged
weights. So cosine and the triangles differ in momentum, too."""

HOW_TO_READ = f"""\
Means over {{seeds}} seeds ({{aside}} for the grid, orders and cycles of {HARD}). In brackets 95 % intervals, by the
percentile bootstrap over seeds, which with so few is somewhat too narrow. On {HARD} a seed draws weights and order, on
the other tasks the split, too.

"{BETTER}" and "{WORSE}" mean p < 0.05 in Wilcoxon's signed-rank test of the paired differences, exact and two-sided,
after Holm's correction. What is corrected together is a column of a table of differences: one task, rule and budget.
{{seeds}} seeds give no p below {{least:.2g}}, so that in a family of more than 25 nothing could be told apart. Seeds
without a difference do not count, which leaves little to tell apart where the test part is small. With fewer than 6
seeds no p of that test is below 0.05: there it is Student's paired t test. The orders tried on a task are a family, and
so are the lengths of cycles, the means over all factors, and what the range test's rate brings at each budget.

In parentheses after a claim: in how many comparisons on {HARD}, then on the other tasks, it is borne out, and in how
many the opposite shows. The mean of the two shares, those against deducted, decides what it comes under: "{HOLDS}"
over 1/2 with none against, "{IN_PART}" from 1/4, "{NOT_SHOWN}" between or where as many are for it as against,
"{OPPOSITE}" down from -1/4. How soon an accuracy is reached is compared as it is, without a test.

The range test suggests the highest rate of a cycle. A constant one is in force all the time, so that its best may be
lower: that is what the grid is for. The grid's choice is by the mean accuracy on the validation part after
{{grid_epochs}} epochs, and is kept for all budgets; where it is an end of the grid, a rate beyond may be better still.
Nothing was chosen on the test part, except that "how soon" counts the soonest of an arm's trainings.

{ARMS_TOLD}"""


def how_to_read(evidence: Evidence) -> str:
    seeds, aside = evidence.scope.seeds, evidence.seeds_aside(HARD)
    least, epochs = 2 / 2**seeds, evidence.scope.grid_epochs
    text = HOW_TO_READ.format(seeds=seeds, aside=aside, least=least, grid_epochs=epochs)
    return "\n\n".join(("## How to read this", *map(wrapped, text.split("\n\n"))))


def setting(evidence: Evidence) -> str:
    keys = {
        "title": "task",
        "batch_size": "batch",
        "steps_per_epoch": "steps per epoch",
        "target": "accuracy aimed at, %",
    }
    tasks = [[str(task[key]) for key in keys] for task in evidence.tasks.values()]
    suggested = (
        "What the range tests suggest: the median, and the range over seeds. Triangles go down to the lowest rate."
    )
    return "\n\n".join(
        (
            "## Tasks and rates",
            markdown_table([*keys.values()], tasks),
            suggested,
            markdown_table(["task", "optimizer", "lowest rate", "highest rate"], rates(evidence)),
            "The factors of the highest rate that the grid chose; those at an end of the grid in bold.",
            factors(evidence),
        )
    )


def rates(evidence: Evidence) -> list[list[str]]:
    def ends(found: Range) -> list[str]:
        medians = (found.base_lr, found.max_lr)
        return [
            f"{median:.2g} ({min(all_seeds):.2g} to {max(all_seeds):.2g})"
            for median, all_seeds in zip(medians, zip(*found.suggested, strict=True), strict=True)
        ]

    return [[task, kind, *ends(found)] for task, kinds in evidence.ranges.items() for kind, found in kinds.items()]


def factors(evidence: Evidence) -> str:
    ends = (min(evidence.scope.factors), max(evidence.scope.factors))

    def cell(factor: float) -> str:
        return f"**{factor:g}**" if factor in ends else f"{factor:g}"

    tasks = hardest_first(evidence)
    return by_arm(["arm", *tasks], {arm: [cell(evidence.found.factors[task][arm]) for task in tasks] for arm in TUNED})


def by_arm(header: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
    return markdown_table([*header], [[arm, *row] for arm, row in cells.items()])


def counts(evidence: Evidence) -> str:
    small = [task for task in evidence.tasks if task != HARD]
    columns = [(rule, tasks) for rule in RULES for tasks in ([HARD], small)]

    def cell(reference: str, arm: str, rule: str, tasks: list[str]) -> str:
        families = [evidence.against[reference][task, rule, n] for task in tasks for n in evidence.scope.budgets]
        signs = [sign_of(family[arm]) for family in families if arm in family]
        return " / ".join(str(signs.count(sign)) for sign in (1, 0, -1)) if signs else ""

    def table(reference: str) -> str:
        header = ["arm", *(f"{rule}: {'small tasks' if tasks is small else HARD}" for rule, tasks in columns)]
        return by_arm(header, {arm: [cell(reference, arm, *column) for column in columns] for arm in ARMS})

    tables = [f"Against {text}:\n\n{table(reference)}" for reference, text in REFERENCES.items()]
    return "\n\n".join((f"## Comparisons: {BETTER} / {EQUAL} / {WORSE}", *tables))


def task_section(evidence: Evidence, task: str) -> str:
    title = evidence.tasks[task]["title"]
    tables = [accuracy_tables(evidence, task, rule) for rule in RULES]
    curves = ["![Error by epoch](convergence_curves.png)"] if task == HARD else []
    return "\n\n".join(
        (f"## {title.capitalize()}", f"![Differences]({picture_of(task)})", *curves, *tables, targets(evidence, task))
    )


def picture_of(task: str) -> str:
    return "convergence.png" if task == HARD else f"convergence_{task}.png"


def accuracy_tables(evidence: Evidence, task: str, rule: str) -> str:
    budgets = evidence.scope.budgets

    def differences(reference: str) -> str:
        families = [evidence.against[reference][task, rule, n] for n in budgets]
        rows = {arm: [judged(family[arm]) for family in families] for arm in ARMS if arm in families[0]}
        return by_arm([f"less {REFERENCES[reference]}", *columns(budgets)], rows)

    accuracies = {arm: [interval(estimate(evidence.final(task, arm, rule, n))) for n in budgets] for arm in ARMS}
    parts = (
        f"### {task.capitalize()}, {rule}",
        by_arm(["test accuracy, %", *columns(budgets)], accuracies),
        *map(differences, REFERENCES),
    )
    return "\n\n".join(parts)


def columns(budgets: Iterable[int]) -> list[str]:
    return [f"{epochs} epochs" for epochs in budgets]


def targets(evidence: Evidence, task: str) -> str:
    steps, target = (evidence.tasks[task][key] for key in ("steps_per_epoch", "target"))
    seeds = evidence.scope.seeds

    def cells(arm: str, rule: str) -> list[str]:
        reached = evidence.epochs_to_target(task, arm, rule)
        median, least, most = (f(reached) for f in (np.median, min, max))
        ranged = f"{epochs_text(median)} ({epochs_text(least)} to {epochs_text(most)})"
        return [ranged, epochs_text(median * steps), f"{sum(map(math.isfinite, reached))} of {seeds}"]

    header = ["arm", *(f"{what}, {rule}" for rule in RULES for what in ("epochs", "steps", "seeds"))]
    rows = {arm: [cell for rule in RULES for cell in cells(arm, rule)] for arm in ARMS}
    note = wrapped(
        f"The first epoch after which any training of a seed, whatever its budget, has {target:g} % on the test part: "
        "median and range over seeds, the optimizer steps of the median, and how many seeds come there. An arm "
        "without an end may come there at any epoch; one with an end at any of each of its trainings."
    )
    return "\n\n".join((f"### {task.capitalize()}, how soon {target:g} % is reached", note, by_arm(header, rows)))


def mis_set_rates(evidence: Evidence) -> str:
    note = wrapped(
        f"Test accuracy after {evidence.scope.grid_epochs} epochs at the range test's rate times a factor; on how many "
        "factors it is within a point of the arm's own best, and of the best constant rate; how far below its best the "
        "worst factor is, of those within 2 and of all; and the mean over all factors minus the constant rate's."
    )
    tables = [f"### {task.capitalize()}\n\n{factor_table(evidence, task)}" for task in hardest_first(evidence)]
    return "\n\n".join(("## Mis-set rates", f"![Error by rate]({SENSITIVITY})", note, *tables))


def factor_table(evidence: Evidence, task: str) -> str:
    factors = evidence.scope.factors
    by_arm_and_factor = {arm: np.array([*evidence.by_factor(task, arm).values()]) for arm in TUNED}
    constant = by_arm_and_factor[CONSTANT]
    overall = evidence.overall(task)
    close = [0.5 <= factor <= 2 for factor in factors]

    def row(arm: str) -> list[str]:
        means = by_arm_and_factor[arm].mean(1)
        near = sum(means >= constant.mean(1).max() - NEAR)
        losses = [f"{means.max() - worst:.1f}" for worst in (means[close].min(), means.min())]
        whole = judged(overall[arm]) if arm in overall else ""
        return [*(f"{mean:.1f}" for mean in means), str(evidence.near_best(task, arm)), str(near), *losses, whole]

    header = [*(f"{factor:g}" for factor in factors), "near own best", "near constant's best", "loss within 2"]
    header += [f"loss within {1 / min(factors):g}", "mean of all, minus constant's"]
    return by_arm(["test accuracy, %", *header], {arm: row(arm) for arm in TUNED})


def shuffling(evidence: Evidence) -> str:
    def row(task: str, arm: str) -> list[str]:
        found = evidence.orders(task)
        accuracy = interval(estimate(evidence.by_order(task, arm, RESHUFFLED)))
        return [task, arm, accuracy, *(judged(found[arm, order]) for order in (FIXED, SORTED))]

    header = ["task", "arm", f"{RESHUFFLED}, %", f"{FIXED}, difference", f"{SORTED}, difference"]
    rows = [row(task, arm) for task in ORDERED for arm in SHUFFLED]
    note = f"Test accuracy after {evidence.scope.grid_epochs} epochs at the range test's rate."
    return "\n\n".join(("## Orders of the examples", note, markdown_table(header, rows)))


def cycle_lengths(evidence: Evidence) -> str:
    def row(task: str, cycle: int) -> list[str]:
        found = evidence.cycles(task).get(cycle)
        return [task, str(cycle), interval(estimate(evidence.by_cycle(task, cycle))), judged(found) if found else ""]

    header = ["task", "epochs per cycle", "test accuracy, %", f"less that of {CYCLE}"]
    rows = [row(task, cycle) for task in ORDERED for cycle in evidence.scope.cycles]
    note = f"{TRIANGULAR} at the range test's rate, trained for {evidence.scope.cycles_epochs} epochs."
    return "\n\n".join(("## Lengths of a cycle", note, markdown_table(header, rows)))


# -- the README -------------------------------------------------------------------------------------


SECTION = f"""\
What papers and lectures say of cyclical rates, measured on {{tasks}} tasks with {{arms}} ways to set the rate of SGD,
{{seeds}} seeds each ({{aside}} on letters for mis-set rates, orders and lengths of cycles). The hardest task is
*letters*: [noisy images](benchmarks/results/letters.png) of the 26 letters in 22 fonts, 16 x 16 pixels, 5,000 to train
on, and a small residual network. The others are scikit-learn's wine, breast cancer and digits.

{{conclusion}}

{{numbers}}

![What each arm adds to the best constant rate on {HARD}, by epochs trained](benchmarks/results/{{picture}})

Test accuracy on {HARD} after so many epochs ({{steps}} steps each), {RANGE_TEST}: mean and 95 % interval over
seeds. A schedule that has an end is a training of its own for each number of epochs; of the others these are parts of
the longest. ▲ is better and ▼ worse than the best constant rate of the grid (p < 0.05, paired by weights and batch
order, corrected for the number of comparisons). The last column is the median epoch that first has so much, in the
soonest of an arm's trainings.

{{table}}

![Test error against the learning rate, as a multiple of the range test's](benchmarks/results/{SENSITIVITY})

All arms on all tasks, claim by claim, and how it was done are in
[benchmarks/results/convergence.md](benchmarks/results/convergence.md), written, as this is, by `python
benchmarks/convergence.py --out benchmarks/results`."""


def section(evidence: Evidence) -> str:
    return SECTION.format(
        arms=len(ARMS),
        tasks=len(evidence.tasks),
        seeds=evidence.scope.seeds,
        aside=evidence.seeds_aside(HARD),
        conclusion=conclusion(evidence),
        numbers=in_numbers(evidence),
        picture=picture_of(HARD),
        steps=evidence.tasks[HARD]["steps_per_epoch"],
        table=short_table(evidence),
    )


def short_table(evidence: Evidence) -> str:
    budgets, target = evidence.scope.budgets, evidence.tasks[HARD]["target"]

    def cell(arm: str, budget: int) -> str:
        mark = ("", " ▲", " ▼")[sign_of(evidence.against[CONSTANT][HARD, RANGE_TEST, budget][arm])]
        return interval(estimate(evidence.final(HARD, arm, RANGE_TEST, budget)), 1) + mark

    def soon(arm: str) -> str:
        return epochs_text(float(np.median(evidence.epochs_to_target(HARD, arm, RANGE_TEST))))

    header = ["test accuracy, %", *columns(budgets), f"epochs to {target:g} %"]
    return by_arm(header, {arm: [*(cell(arm, n) for n in budgets), soon(arm)] for arm in ARMS})


def with_section(text: str, section: str) -> str:
    """The README's text with another section between the marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}"


# -- writing it -------------------------------------------------------------------------------------


def pictures(evidence: Evidence) -> dict[str, bytes]:
    def panels(task: str) -> dict[str, dict[str, dict[str, Difference]]]:
        against = evidence.against[CONSTANT]
        return {
            f"{n} epochs": {arm: {rule: against[task, rule, n][arm] for rule in rules_of(arm)} for arm in ARMS}
            for n in evidence.scope.budgets
        }

    rates = {
        evidence.tasks[task]["title"]: {
            arm: {factor: estimate(values) for factor, values in evidence.by_factor(task, arm).items()} for arm in TUNED
        }
        for task in hardest_first(evidence)
    }
    longest = evidence.scope.budgets[-1]
    curves = {arm: [*map(estimate, evidence.curves(HARD, arm, RANGE_TEST, longest).T)] for arm in ARMS}
    titles = {task: evidence.tasks[task]["title"].capitalize() for task in evidence.tasks}
    return {
        **{
            picture_of(task): convergence_picture.differences(panels(task), f"{title}: minus {REFERENCES[CONSTANT]}")
            for task, title in titles.items()
        },
        SENSITIVITY: convergence_picture.sensitivity(rates),
        "convergence_curves.png": convergence_picture.curves(curves, f"{titles[HARD]}, {RANGE_TEST}"),
    }


def rules_of(arm: str) -> tuple[str, ...]:
    """Those under which its difference to the best constant rate says something."""
    return RULES if arm in TUNED and arm != CONSTANT else (RANGE_TEST,)


def write_report(out: Path) -> None:
    """Tables and pictures of ``out/convergence.json``; of the full record in its own place, the README's part, too."""
    evidence = Evidence(json.loads((out / "convergence.json").read_text()))
    write_results(out, {"convergence.md": report(evidence).encode(), **pictures(evidence)})
    if out.resolve() == RESULTS.resolve() and not evidence.scope.is_quick:
        readme = with_section(README.read_text(encoding="utf-8"), section(evidence))
        write_results(README.parent, {README.name: readme.encode()})
