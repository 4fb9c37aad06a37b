"""The report of ``convergence.py``: tables, conclusions and the README's section, all of it computed from the record.

No sentence here knows how the trainings went. What a claim comes under, "Holds" or another of ``STANDINGS``, follows
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
    CYCLE,
    FIXED,
    ONE_CYCLE,
    RESHUFFLED,
    SCHEDULE_FREE,
    SHUFFLED,
    SORTED,
    TASKS,
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
TRIANGULAR, COSINE = "Triangular", "cosine"
REFERENCES = {CONSTANT: "the constant rate at its best of the grid", COSINE: "cosine, its rate chosen likewise"}
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
    mean, low, high = (f"{value:+.{digits}f}" for value in found[:3])
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

HOLDS, IN_PART, NOT_SHOWN, OPPOSITE = "Holds", "Holds in part", "Does not show", "Rather the opposite holds"
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
        net = sum(map(statistics.mean, self.groups)) / 2
        if net > 1 / 2 and -1 not in itertools.chain(*self.groups):
            return HOLDS
        if abs(net) < 1 / 4:
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

    def beats(reference: str, arm: str, rule: str) -> Signs:
        against = evidence.against[reference]
        return {task: [sign_of(against[task, rule, n][arm]) for n in budgets] for task in tasks}

    def wider(arm: str) -> Signs:
        near = evidence.near_best
        return {task: [int(np.sign(near(task, arm) - near(task, CONSTANT)))] for task in tasks}

    def sooner(task: str) -> int:
        ours = np.median(evidence.epochs_to_target(task, ONE_CYCLE, RANGE_TEST))
        theirs = np.median(evidence.epochs_to_target(task, CONSTANT, GRID))
        return int(ours < theirs) - int(ours > theirs)

    def costs(order: str) -> Signs:
        return {task: [-sign_of(evidence.orders(task)[arm, order]) for arm in SHUFFLED] for task in ORDERED}

    found = {task: [sign_of(difference) for difference in evidence.rate_found(task).values()] for task in tasks}
    lengths = {task: [-sign_of(difference) for difference in evidence.cycles(task).values()] for task in ORDERED}
    finding = Claim("SGD's default of 1e-3 is beaten by", "the rate that a range test finds", found)
    soon = Claim(
        "a stated accuracy is reached in fewer epochs than at the best constant rate of a grid by",
        f"{ONE_CYCLE} {RANGE_TEST}",
        {task: [sooner(task)] for task in tasks},
    )
    return [
        finding,
        *(
            Claim(
                f"the best constant rate of a grid is beaten, {RANGE_TEST}, by", arm, beats(CONSTANT, arm, RANGE_TEST)
            )
            for arm in CONTENDERS
        ),
        *(
            Claim(f"{COSINE} is beaten, each at its best rate of the grid, by", arm, beats(COSINE, arm, GRID))
            for arm in (TRIANGULAR, ONE_CYCLE, SCHEDULE_FREE)
        ),
        soon,
        *(
            Claim("a wider choice of rates than for a constant one is left by", arm, wider(arm))
            for arm in (COSINE, TRIANGULAR, ONE_CYCLE)
        ),
        Claim("accuracy is lost with", "examples that come class after class", costs(SORTED)),
        Claim("accuracy is lost with", "one order kept for all epochs", costs(FIXED)),
        Claim("accuracy is lost with", f"cycles of other than {CYCLE} epochs", lengths),
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

    def searched(arm: str) -> str:
        return points(
            estimate(evidence.final(HARD, arm, GRID, longest) - evidence.final(HARD, arm, RANGE_TEST, longest)), 1
        )

    others = [task for task in evidence.tasks if task != HARD]
    elsewhere = [
        sign_of(evidence.against[CONSTANT][task, RANGE_TEST, n][arm])
        for task, n, arm in itertools.product(others, scope.budgets, CONTENDERS)
    ]
    near = listing([f"{evidence.near_best(HARD, arm)} for {arm}" for arm in (CONSTANT, *CONTENDERS)])
    rates = [sign_of(difference) for task in others for difference in evidence.rate_found(task).values()]
    too_high = ": it suggests the peak of a cycle, which may be too high to stay at" if -1 in rates else ""
    after = f"after {listing([*map(str, scope.budgets)])} epochs"
    lines = (
        f"**The rate found**, by one range test of 100 steps at most, brings SGD {points(found[shortest], 1)} points "
        f"of test accuracy on {HARD} after {shortest} epochs, and {points(found[longest], 1)} after {longest}, "
        f"compared with its default of {UNTUNED_LR:g}.",
        f"**Schedules at that rate**, with nothing else tuned, against the best constant rate of a grid, in points "
        f"{after} (in bold what is told apart): {ends(CONSTANT, RANGE_TEST)}.",
        f"**Against {COSINE}**, each at its own best rate of the grid, likewise: {ends(COSINE, GRID)}.",
        f"**A search around the rate found** adds {searched(CONSTANT)} points to the constant rate after {longest} "
        f"epochs, {searched(COSINE)} to {COSINE} and {searched(ONE_CYCLE)} to {ONE_CYCLE}.",
        f"**A rate mis-set**: of {len(scope.factors)} from {min(scope.factors):g} to {max(scope.factors):g} times the "
        f"one found, so many are within a point of an arm's own best: {near}.",
        f"**On the {len(others)} small tasks**, of {len(elsewhere)} comparisons with the best constant rate, "
        f"{elsewhere.count(1)} are won, {elsewhere.count(-1)} lost and {elsewhere.count(0)} not told apart. The rate "
        f"found, held constant, is better than the default in {rates.count(1)} of {len(rates)} cases there and worse "
        f"in {rates.count(-1)}{too_high}.",
        asides(evidence),
    )
    return "\n".join(map(item, lines))


def in_bold(found: Difference) -> str:
    return f"**{found.mean:+.1f}**" if sign_of(found) else f"{found.mean:+.1f}"


def together(claims: list[Claim], of_each: Callable[[Claim], str]) -> str:
    """In a sentence, those that say the same of several."""
    groups = itertools.groupby(claims, key=lambda claim: claim.what)
    return "; ".join(f"{what} {listing([*map(of_each, those)])}" for what, those in groups)


def asides(evidence: Evidence) -> str:
    """What shuffling and the length of a cycle do on the hard task."""

    def changed(order: str) -> str:
        return listing([f"{evidence.orders(HARD)[arm, order].mean:+.1f} ({arm})" for arm in SHUFFLED])

    lengths = listing([f"{evidence.by_cycle(HARD, cycle).mean():.1f} % ({cycle})" for cycle in evidence.scope.cycles])
    return (
        f"**Shuffling**: class after class changes {changed(SORTED)} points, one order kept for all epochs "
        f"{changed(FIXED)}. **The length of a cycle**: {TRIANGULAR} ends {evidence.scope.cycles_epochs} epochs, in "
        f"cycles of so many, at {lengths}."
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


HOW_TO_READ = f"""\
Means over {{seeds}} seeds ({{aside}} for the grid, orders and cycles of {HARD}). In brackets 95 % intervals, by the
percentile bootstrap over seeds, which with so few is somewhat too narrow. On {HARD} a seed draws weights and order, on
the other tasks the split, too.

"{BETTER}" and "{WORSE}" mean p < 0.05 in Wilcoxon's signed-rank test of the paired differences, exact and two-sided,
after Holm's correction. What is corrected together is a column of a table of differences: one task, rule and budget.
{{seeds}} seeds give no p below {{least:.2g}}, so that in a family of more than 25 nothing could be told apart. Seeds
without a difference do not count, which leaves little to tell apart where the test part is small. With less than 6
seeds no p of that test is below 0.05: there it is Student's paired t test. The orders tried on a task are a family, and
so are the lengths of cycles, the means over all factors, and what the range test's rate brings at each budget.

In parentheses after a claim: in how many comparisons on {HARD}, then on the other tasks, it is borne out, and in how
many the opposite shows. The mean of the two shares, those against deducted, decides what it comes under: "{HOLDS}" over
1/2 with none against, "{IN_PART}" from 1/4, "{NOT_SHOWN}" between, "{OPPOSITE}" down from -1/4. A rate leaves a wider
choice where more factors of the grid are within a point of the arm's own best.

The range test suggests the highest rate of a cycle. A constant one is in force all the time, so that its best may be
lower: that is what the grid is for. The grid's choice is by the mean accuracy on the validation part after
{{grid_epochs}} epochs, and is kept for all budgets. Nothing was chosen on the test part."""


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
    return "\n\n".join(
        (f"## {title.capitalize()}", f"![Differences]({picture_of(task)})", *tables, targets(evidence, task))
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
        "worst factor is, of those within 2 and of all; and the mean over all factors less the constant rate's."
    )
    tables = [f"### {task.capitalize()}\n\n{factor_table(evidence, task)}" for task in hardest_first(evidence)]
    return "\n\n".join(("## Mis-set rates", "![Accuracy by rate](convergence_sensitivity.png)", note, *tables))


def factor_table(evidence: Evidence, task: str) -> str:
    factors = evidence.scope.factors
    by_arm_and_factor = {arm: np.array([*evidence.by_factor(task, arm).values()]) for arm in TUNED}
    constant = by_arm_and_factor[CONSTANT]
    overall = compare(
        {arm: (of_arm - constant).mean(0) for arm, of_arm in by_arm_and_factor.items() if arm != CONSTANT}
    )
    close = [0.5 <= factor <= 2 for factor in factors]

    def row(arm: str) -> list[str]:
        means = by_arm_and_factor[arm].mean(1)
        near = sum(means >= constant.mean(1).max() - NEAR)
        losses = [f"{means.max() - worst:.1f}" for worst in (means[close].min(), means.min())]
        whole = judged(overall[arm]) if arm in overall else ""
        return [*(f"{mean:.1f}" for mean in means), str(evidence.near_best(task, arm)), str(near), *losses, whole]

    header = [*(f"{factor:g}" for factor in factors), "near own best", "near constant's best", "loss within 2"]
    header += [f"loss within {1 / min(factors):g}", "mean of all, less constant's"]
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
What the lecture and the papers claim, measured on {{tasks}} tasks with {{arms}} ways to set the rate of SGD, {{seeds}}
seeds each:

{{conclusion}}

{{numbers}}

![What each arm adds to the best constant rate on {HARD}, by epochs trained](benchmarks/results/{{picture}})

{HARD.capitalize()}, {{steps}} steps per epoch, each number of epochs a training whose schedule ends there: mean and
95 % interval over seeds, {RANGE_TEST}. ▲ is better and ▼ worse than the constant rate at its best of a grid
(p < 0.05, paired by weights and batch order, corrected for the number of comparisons).

{{table}}

![Test error against the learning rate, as a multiple of the range test's](benchmarks/results/{SENSITIVITY})

All arms on all tasks, claim by claim, and how it was done are in
[benchmarks/results/convergence.md](benchmarks/results/convergence.md), written, as this is, by `python
benchmarks/convergence.py`."""


def section(evidence: Evidence) -> str:
    return SECTION.format(
        arms=len(ARMS),
        tasks=len(evidence.tasks),
        seeds=evidence.scope.seeds,
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
            picture_of(task): convergence_picture.differences(panels(task), f"{title}: less {REFERENCES[CONSTANT]}")
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
