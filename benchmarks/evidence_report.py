"""The report of ``evidence.py``: its tables, the README's section and the page's figures, all computed from the record.

No sentence here knows how the trainings went: each says in how many comparisons something is better, in how many worse,
and in how many no difference is found.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import evidence_picture
import numpy as np
from evidence import GRID, RANGE_TEST, REPRODUCED, RULES, Found, Scope, compared, epochs_of, grid, reproduction
from evidence_arms import (
    ADAMW_CYCLE,
    ADAMW_STEADY,
    ARMS,
    CONSTANT,
    CONSTANTS,
    COOLED,
    COSINE,
    DEFAULT,
    DEFAULT_LR,
    DEFAULTS,
    FAMILIES,
    LINEAR,
    ONE_CYCLE,
    RESTARTS,
    SGD,
    SGD_FREE,
    STEADY,
    TOLD,
    TRIANGULAR,
    TUNED,
    WEIGHT_DECAY,
    WSD,
)
from evidence_training import Outcome, Range, Training
from harness import RESULTS, environment_line, markdown_table, write_results
from paired_statistics import Array, Difference, Estimate, compare, estimate

README = Path(__file__).parent.parent / "README.md"
PAGE = Path(__file__).parent.parent / "docs" / "which_policy.md"
BEGIN, END = "<!-- evidence: written by benchmarks/evidence.py -->", "<!-- end of evidence -->"
SECTION_MARKS = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
PICTURE = "evidence.png"
SHOWN = (CONSTANT, LINEAR, COSINE, ONE_CYCLE, WSD, SGD_FREE)  # the rows of the README's table
PUBLISHED_ACCURACY, PUBLISHED_EPOCHS = 94, 200  # percent, of mnist1d's convolutional network in its paper
BETTER, WORSE, EQUAL = "better", "worse", "no difference found"

Comparisons = dict[str, Difference]  # by arm
Place = tuple[str, str, int]  # task, rule, budget


# -- the record -------------------------------------------------------------------------------------


class Evidence:
    """The trainings, looked up by what they were made for."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record, self.tasks, self.scope = record, record["tasks"], scope_of(record["scope"])
        ranges = {
            task: {kind: Range(*(found[field] for field in Range._fields)) for kind, found in kinds.items()}
            for task, kinds in record["ranges"].items()
        }
        self.found = Found(ranges, record["grid_factors"])
        self.outcomes = dict(map(run_of, record["runs"]))
        places = [*itertools.product(self.tasks, RULES, self.budgets)]
        self.with_default = {place: self.compared_with(DEFAULTS, *place) for place in places}
        self.with_constant = {place: self.compared_with(CONSTANTS, *place) for place in places}

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.scope.budgets

    @property
    def longest(self) -> int:
        return self.budgets[-1]

    def final(self, task: str, arm: str, rule: str, budget: int) -> Array:
        """Test accuracy after so many epochs, by seed."""
        trainings = compared(self.scope, self.found, task, arm, rule)
        return np.array([self.outcomes[t].test[t.epochs.index(budget)] for t in trainings if budget in t.epochs])

    def compared_with(self, references: Mapping[str, str], task: str, rule: str, budget: int) -> Comparisons:
        """Each arm with the reference of its family, a correction for each family.

        With the constant rate at its best of the grid; with linear decay at the same rule.
        """
        found: Comparisons = {}
        for family, arms in FAMILIES.items():
            reference = references[family]
            reference_rule = GRID if references is CONSTANTS else rule
            others = [arm for arm in arms if (arm, rule) != (reference, reference_rule)]
            values = self.final(task, reference, reference_rule, budget)
            found |= compare({arm: self.final(task, arm, rule, budget) - values for arm in others})
        return found

    def rate_found(self) -> dict[str, Difference]:
        """By task, what the range test's rate brings to SGD at a constant rate in the longest trainings."""
        place = (RANGE_TEST, self.longest)
        return compare({t: self.final(t, CONSTANT, *place) - self.final(t, DEFAULT, *place) for t in self.tasks})

    def by_factor(self, task: str, arm: str) -> dict[float, float]:
        """Test accuracy by factor, the mean over the grid's seeds."""

        def mean(factor: float) -> float:
            return statistics.mean(self.outcomes[t].test[-1] for t in grid(self.scope, self.found, task, arm, factor))

        return {factor: mean(factor) for factor in self.scope.factors}

    def reproduced(self, arm: str) -> list[float]:
        return [self.outcomes[t].test[-1] for t in reproduction(self.scope, self.found, arm)]

    def differences(self, arm: str, rule: str, *, reference: str = "default") -> list[Difference]:
        """An arm's comparisons over all tasks and budgets."""
        places = itertools.product(self.tasks, (rule,), self.budgets)
        families = self.with_default if reference == "default" else self.with_constant
        return [families[place][arm] for place in places]

    def pair(self, arm: str, other: str, task: str, rule: str) -> dict[int, Difference]:
        """By budget, one arm less another."""
        return compare({n: self.final(task, arm, rule, n) - self.final(task, other, rule, n) for n in self.budgets})

    def pairs(self, arm: str, other: str, rule: str) -> list[Difference]:
        """The same over all tasks."""
        return [found for task in self.tasks for found in self.pair(arm, other, task, rule).values()]

    def epochs_spent(self, arm: str) -> float:
        """By one seed, on all budgets together."""
        trainings = compared(self.scope, self.found, next(iter(self.tasks)), arm, RANGE_TEST)
        return sum(epochs_of(training) for training in trainings) / self.scope.seeds


def scope_of(fields: Mapping[str, Any]) -> Scope:
    return Scope(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def run_of(run: Sequence[Any]) -> tuple[Training, Outcome]:
    size = len(Training._fields)
    training = Training(*run[:size])
    return training._replace(epochs=tuple(training.epochs)), Outcome(*run[size:])


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
    return f"{points(found)} {verdict(found)}"


def listing(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def wrapped(text: str, width: int = 120) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def item(text: str) -> str:
    return "- " + wrapped(text, 118).replace("\n", "\n  ")


class Tally(NamedTuple):
    better: int
    worse: int
    equal: int

    def __str__(self) -> str:
        count = sum(self)
        if self.equal == count:
            return f"no difference found in any of {count} cases"
        found = [f"{name} in {number}" for name, number in zip((BETTER, WORSE, EQUAL), self, strict=True) if number]
        return f"{found[0]} of {count} cases" if len(found) == 1 else f"{listing(found)} of {count} cases"


def tally(differences: Iterable[Difference]) -> Tally:
    verdicts = [*map(verdict, differences)]
    return Tally(*map(verdicts.count, (BETTER, WORSE, EQUAL)))


# -- what it comes to -------------------------------------------------------------------------------


def sentences(evidence: Evidence) -> list[str]:
    """What it comes to, in five sentences."""
    found, longest = evidence.rate_found(), evidence.longest
    gains = sorted(difference.mean for difference in found.values())
    ours, theirs = evidence.epochs_spent(COOLED), evidence.epochs_spent(LINEAR)

    def with_constant(*arms: str) -> str:
        found = {arm: tally(evidence.differences(arm, RANGE_TEST, reference="constant")) for arm in arms}
        return "; ".join(f"{arm} {tallied}" for arm, tallied in found.items())

    def with_linear(rule: str, *arms: str) -> str:
        return "; ".join(f"{arm} {tally(evidence.differences(arm, rule))}" for arm in arms)

    return [
        f"**The rate of the range test**, held constant for {longest} epochs, changes the accuracy of SGD by "
        f"{gains[0]:+.1f} to {gains[-1]:+.1f} points, compared with SGD's default of {DEFAULT_LR:g} "
        f"({tally(found.values())}).",
        "**A schedule** at the range test's rate, with nothing else tuned, compared with the best constant rate of a "
        f"grid: {with_constant(WSD, LINEAR)}.",
        "**Its shape**, compared with linear decay, each at its best rate: "
        f"{with_linear(GRID, WSD, COSINE, ONE_CYCLE)}.",
        "**Going up again** in the middle of a training, compared likewise: "
        f"{with_linear(GRID, TRIANGULAR, RESTARTS)}.",
        "**Without a horizon**: one run at a constant rate that branches off and cools down for each length takes "
        f"{ours:g} epochs, and a run of linear decay for each length {theirs:g}; compared with these, at the range "
        f"test's rate: {tally(evidence.differences(COOLED, RANGE_TEST))}.",
    ]


# -- the tables -------------------------------------------------------------------------------------


def report(evidence: Evidence) -> str:
    parts = [
        f"`{evidence.record['command']}`",
        "\n".join(map(item, sentences(evidence))),
        f"![What each schedule adds to linear decay]({PICTURE})",
        how_to_read(evidence),
        setting(evidence),
        without_horizon(evidence),
        cycled_too(evidence),
        *(task_section(evidence, task) for task in evidence.tasks),
        mis_set_rates(evidence),
        published(evidence),
        wrapped(environment_line(without_device(evidence)))
        + f" Trained on: {evidence.record['environment']['device']}.",
    ]
    return "\n\n".join(parts) + "\n"


def without_device(evidence: Evidence) -> dict[str, Any]:
    return {name: value for name, value in evidence.record["environment"].items() if name != "device"}


HOW_TO_READ = f"""\
Means over {{seeds}} seeds, with 95 % intervals by the percentile bootstrap over seeds. A seed draws the weights and the
order of the batches, on digits and MNIST the split of the data, too; all arms of a seed share them.

"{BETTER}" and "{WORSE}" mean p < 0.05 in Wilcoxon's signed-rank test of the paired differences (exact, two-sided; with
fewer than 6 seeds Student's t test), corrected by Holm's method for all arms of the same optimizer on that task, with
that rule and length. "{EQUAL}" means p >= 0.05: the difference is inside the noise of these trainings.

The rate is chosen by the same rule for all: the median of what range tests of that kind of optimizer suggest, times 1,
or times the factor of {{factors}} with the best mean accuracy on the validation part after {{grid_epochs}} epochs of
{{grid_seeds}} seeds, kept for all lengths. The test part chooses nothing.

{TOLD}"""


def how_to_read(evidence: Evidence) -> str:
    scope = evidence.scope
    factors = listing([f"{factor:g}" for factor in scope.factors])
    text = HOW_TO_READ.format(
        seeds=scope.seeds, factors=factors, grid_epochs=scope.grid_epochs, grid_seeds=scope.grid_seeds
    )
    return "\n\n".join(("## How to read this", *map(wrapped, text.split("\n\n"))))


def setting(evidence: Evidence) -> str:
    keys = {"title": "task", "batch_size": "batch", "steps_per_epoch": "steps per epoch"}
    tasks = [[*(str(task[key]) for key in keys), "/".join(map(str, task["sizes"]))] for task in evidence.tasks.values()]
    parts = (
        "## Tasks and rates",
        markdown_table([*keys.values(), "train/validation/test"], tasks),
        "What the range tests suggest: the median, and the range over seeds.",
        markdown_table(["task", "optimizer", "lowest rate", "highest rate"], rates(evidence)),
        "The factors of the highest rate that the grid chose; those at an end of the grid in bold.",
        factors(evidence),
    )
    return "\n\n".join(parts)


def rates(evidence: Evidence) -> list[list[str]]:
    def ends(found: Range) -> list[str]:
        medians, every = (found.base_lr, found.max_lr), zip(*found.suggested, strict=True)
        return [f"{m:.2g} ({min(all_):.2g} to {max(all_):.2g})" for m, all_ in zip(medians, every, strict=True)]

    return [
        [task, kind, *ends(found)] for task, kinds in evidence.found.ranges.items() for kind, found in kinds.items()
    ]


def factors(evidence: Evidence) -> str:
    ends = (min(evidence.scope.factors), max(evidence.scope.factors))

    def cell(factor: float) -> str:
        return f"**{factor:g}**" if factor in ends else f"{factor:g}"

    chosen = evidence.found.factors
    return by_arm(
        ["arm", *evidence.tasks], {arm: [cell(chosen[task][arm]) for task in evidence.tasks] for arm in TUNED}
    )


def by_arm(header: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
    return markdown_table([*header], [[arm, *row] for arm, row in cells.items()])


def columns(budgets: Iterable[int]) -> list[str]:
    return [f"{epochs} epochs" for epochs in budgets]


def without_horizon(evidence: Evidence) -> str:
    spent = {arm: f"{evidence.epochs_spent(arm):g}" for arm in (COOLED, SGD_FREE, LINEAR, COSINE)}

    def row(task: str, rule: str, budget: int) -> list[str]:
        accuracies = [interval(estimate(evidence.final(task, arm, rule, budget)), 1) for arm in spent]
        return [task, rule, str(budget), *accuracies, judged(evidence.with_default[task, rule, budget][COOLED])]

    rows = [row(*place) for place in itertools.product(evidence.tasks, RULES, evidence.budgets)]
    note = wrapped(
        "One run of the first, at a constant rate, gives all lengths: for each it branches off when four fifths of it "
        "are done, and cools down by 1 - sqrt with `reschedule`. One run of the second needs no cooldown. The others "
        f"need a run for each length. Epochs spent on all lengths: {', '.join(f'{a} {n}' for a, n in spent.items())}."
    )
    header = ["task", "rate", "epochs", *spent, f"{COOLED}, less {LINEAR}"]
    return "\n\n".join(("## Without a horizon", note, markdown_table(header, rows)))


PAIRS = {
    "SGD: OneCycle's momentum": (ONE_CYCLE, STEADY),
    "AdamW: OneCycle's beta1": (ADAMW_CYCLE, ADAMW_STEADY),
    "SGD: cosine's weight decay": (WEIGHT_DECAY, COSINE),
}


def cycled_too(evidence: Evidence) -> str:
    def row(what: str, task: str, rule: str) -> list[str]:
        return [what, task, rule, *map(judged, evidence.pair(*PAIRS[what], task, rule).values())]

    rows = [row(*place) for place in itertools.product(PAIRS, evidence.tasks, RULES)]
    header = ["what is cycled, too", "task", "rate", *columns(evidence.budgets)]
    note = "Points of accuracy, compared with the same schedule of the rate alone."
    return "\n\n".join(("## Momentum and weight decay", note, markdown_table(header, rows)))


def task_section(evidence: Evidence, task: str) -> str:
    title = evidence.tasks[task]["title"]
    return "\n\n".join(
        (f"## {title[0].upper()}{title[1:]}", *(accuracy_tables(evidence, task, rule) for rule in RULES))
    )


def accuracy_tables(evidence: Evidence, task: str, rule: str) -> str:
    budgets = evidence.budgets

    def differences(title: str, families: Mapping[Place, Comparisons]) -> str:
        places = [families[task, rule, budget] for budget in budgets]
        rows = {arm: [judged(place[arm]) for place in places] for arm in ARMS if arm in places[0]}
        return by_arm([title, *columns(budgets)], rows)

    accuracies = {arm: [interval(estimate(evidence.final(task, arm, rule, n))) for n in budgets] for arm in ARMS}
    parts = (
        f"### {task}, {rule}",
        by_arm(["test accuracy, %", *columns(budgets)], accuracies),
        differences("less linear decay with warm-up, by the same rule", evidence.with_default),
        differences("less the best constant rate of the grid", evidence.with_constant),
    )
    return "\n\n".join(parts)


def mis_set_rates(evidence: Evidence) -> str:
    note = wrapped(
        f"Test accuracy after {evidence.scope.grid_epochs} epochs at the range test's rate times a factor, the mean of "
        f"{evidence.scope.grid_seeds} seeds."
    )
    header = ["test accuracy, %", *(f"{factor:g}" for factor in evidence.scope.factors)]

    def table(task: str) -> str:
        return by_arm(header, {arm: [f"{v:.1f}" for v in evidence.by_factor(task, arm).values()] for arm in TUNED})

    tables = [f"### {task}, by rate\n\n{table(task)}" for task in evidence.tasks]
    return "\n\n".join(("## Mis-set rates", note, *tables))


def published(evidence: Evidence) -> str:
    epochs = evidence.scope.reproduction_epochs
    rows = [[arm, ", ".join(f"{value:.1f}" for value in evidence.reproduced(arm))] for arm in REPRODUCED]
    note = wrapped(
        f"The convolutional network of mnist1d's paper after {epochs} epochs, with its authors' optimizer and with "
        f"linear decay at the range test's rate. They report {PUBLISHED_ACCURACY} %, after {PUBLISHED_EPOCHS} epochs."
    )
    return "\n\n".join(("## The published accuracy", note, markdown_table(["arm", "test accuracy by seed, %"], rows)))


# -- the README -------------------------------------------------------------------------------------


SECTION = f"""\
Measured on {{tasks}} tasks with {{arms}} ways to set the rate of SGD and AdamW, {{seeds}} seeds each; a case is a task
and a length of the training, {{lengths}} epochs. The tasks: noisy [letters](benchmarks/results/letters.png), the
signals of mnist1d, 5,000 images of MNIST, scikit-learn's digits, and the characters of Python's own source.
[Which policy?](docs/which_policy.md) says what to write.

{{sentences}}

![What each schedule adds to linear decay, by task](benchmarks/results/{PICTURE})

Test accuracy of SGD in % after {{longest}} epochs, {RANGE_TEST}, the mean of {{seeds}} seeds. ▲ is better and ▼ worse
than linear decay (p < 0.05, paired, corrected for the number of comparisons); without a mark, no difference was found.

{{table}}

Every arm, with intervals, AdamW included, and how it was done are in
[benchmarks/results/evidence.md](benchmarks/results/evidence.md), written, as this is, by `python benchmarks/evidence.py
--out benchmarks/results`."""


def section(evidence: Evidence) -> str:
    return SECTION.format(
        tasks=len(evidence.tasks),
        arms=len(ARMS),
        seeds=evidence.scope.seeds,
        longest=evidence.longest,
        lengths=listing([*map(str, evidence.budgets)]),
        sentences="\n".join(map(item, sentences(evidence))),
        table=short_table(evidence),
    )


def short_table(evidence: Evidence) -> str:
    def cell(task: str, arm: str) -> str:
        place = (task, RANGE_TEST, evidence.longest)
        mean = f"{evidence.final(task, arm, RANGE_TEST, evidence.longest).mean():.1f}"
        if arm == LINEAR:
            return mean
        return mean + {BETTER: " ▲", WORSE: " ▼", EQUAL: ""}[verdict(evidence.with_default[place][arm])]

    return by_arm(["", *evidence.tasks], {arm: [cell(task, arm) for task in evidence.tasks] for arm in SHOWN})


def with_section(text: str, section: str) -> str:
    """The README's text with this section in the place of the one before."""
    return SECTION_MARKS.sub(lambda found: f"{BEGIN}\n{section}\n{END}", text, count=1)


# -- writing it -------------------------------------------------------------------------------------


def picture(evidence: Evidence) -> bytes:
    arms = [arm for arm in FAMILIES[SGD] if arm not in (DEFAULT, LINEAR)]
    panels = {
        task: {arm: {rule: evidence.with_default[task, rule, evidence.longest][arm] for rule in RULES} for arm in arms}
        for task in evidence.tasks
    }
    return evidence_picture.differences(panels, f"SGD after {evidence.longest} epochs: accuracy minus that of {LINEAR}")


def write_report(out: Path) -> None:
    """Tables and picture of ``out/evidence.json``; of the full record in its own place, README and page, too."""
    from evidence_page import page

    evidence = Evidence(json.loads((out / "evidence.json").read_text()))
    write_results(out, {"evidence.md": report(evidence).encode(), PICTURE: picture(evidence)})
    if out.resolve() == RESULTS.resolve() and not evidence.scope.is_quick:
        readme = with_section(README.read_text(encoding="utf-8"), section(evidence))
        write_results(README.parent, {README.name: readme.encode()})
        write_results(PAGE.parent, {PAGE.name: page(evidence).encode()})
