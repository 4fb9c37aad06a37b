"""Does it help me, and what should I write: schedules that experts recommend, on data that people know.

Run it with::

    pip install '.[bench]'
    python benchmarks/evidence.py --plan     # what it will train, and about how long that takes here
    python benchmarks/evidence.py            # 90 minutes on 2 cores; the same command goes on after an interrupt
    python benchmarks/evidence.py --quick    # 2 minutes: 2 seeds, trainings of 1 and 2 epochs
    python benchmarks/evidence.py --report   # only the tables, the picture, the page and the README, from the record

and find in ``build/benchmarks`` (or where ``--out`` says) ``evidence.md``, every table; ``evidence.png``;
``evidence.json``, every training. The full run with ``--out benchmarks/results``, and ``--report`` of its record, also
write the README's section on what a schedule brings and the figures of ``docs/which_policy.md``.

1. For each task and kind of optimizer, an LR range test with its defaults, on as many seeds as are trained; the median
   of what they suggest is the rate of every arm of that kind.
2. Each arm is trained at that rate times each of ``FACTORS``; by the mean accuracy on the validation part, the best
   rate of the grid.
3. Each arm is trained for each of ``BUDGETS`` at the range test's rate, and at the grid's. A schedule that has an end
   is laid out to end there. One that has none is trained once, for the largest: the others are part of it.
4. One of those without an end branches off for each budget and cools down: what one long run gives for several budgets.
5. The network of mnist1d's paper is trained for as long as its authors do, with their optimizer and with linear decay,
   to see whether their accuracy comes out.

With one seed, all arms start from the same weights and see the same batches in the same order, so that differences are
paired; the seed draws the split of the small data sets, too. Accuracies are those of the test part; nothing is ever
chosen by them. Results are kept in ``build/evidence``, training by training. A GPU is used if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from evidence_arms import ADAMW, ADAMW_LINEAR, ARMS, DEFAULT, DEFAULT_LR, KINDS, LINEAR, PUBLISHED, SGD, TUNED
from evidence_tasks import DEVICE, PACKAGES, TASKS, data_of
from evidence_training import Outcome, Question, Range, Training, range_of, suggested, train
from harness import (
    Answers,
    add_out_and_report,
    as_json,
    command_line,
    digest,
    environment,
    markdown_table,
    out_of,
    run_benchmark,
    write_results,
)

import cyclic_optim

HERE = Path(__file__).parent
KEPT = HERE.parent / "build" / "evidence"
SOURCES = ("evidence_tasks", "evidence_arms", "evidence_training", "letters", "suggestions_tasks")
BUDGETS = (5, 10, 20)  # epochs
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the range test's rate
RANGE_TEST, GRID = "at the range test's rate", "at the best rate of the grid"
RULES = (RANGE_TEST, GRID)
REPRODUCED = (PUBLISHED, LINEAR)


class Scope(NamedTuple):
    """How much of it.

    The grid has fewer seeds than the comparisons: it only picks one of a few rates that lie a factor of 3 apart, and
    with all seeds it would take longer than all the rest. The reproduction has as few, and is compared with nothing.
    """

    seeds: int
    budgets: tuple[int, ...]
    factors: tuple[float, ...]
    grid_seeds: int
    grid_epochs: int
    reproduction_seeds: int
    reproduction_epochs: int  # 200 are the 8,000 steps of mnist1d's authors
    is_quick: bool


FULL = Scope(10, BUDGETS, FACTORS, 3, 10, 3, 200, is_quick=False)
QUICK = Scope(2, (1, 2), (0.3, 1.0), 1, 1, 1, 2, is_quick=True)


# -- what is trained --------------------------------------------------------------------------------


class Found(NamedTuple):
    """The rates, by task and kind of optimizer; and the factors that the grid chose, by task and arm."""

    ranges: dict[str, dict[str, Range]]
    factors: dict[str, dict[str, float]]

    def factor(self, task: str, arm: str, rule: str) -> float:
        return self.factors[task].get(arm, 1.0) if rule == GRID else 1.0

    def training(self, task: str, arm: str, factor: float, epochs: tuple[int, ...], seed: int) -> Training:
        found = self.ranges[task][ARMS[arm].kind]
        lr = found.max_lr * factor if ARMS[arm].is_tuned else DEFAULT_LR
        return Training(task, arm, lr, found.div_factor, epochs, seed)


def questions(scope: Scope) -> Iterator[Question]:
    return itertools.starmap(Question, itertools.product(TASKS, KINDS, range(scope.seeds)))


def grid(scope: Scope, found: Found, task: str, arm: str, factor: float) -> list[Training]:
    return [found.training(task, arm, factor, (scope.grid_epochs,), seed) for seed in range(scope.grid_seeds)]


def compared(scope: Scope, found: Found, task: str, arm: str, rule: str) -> list[Training]:
    """Every budget and seed of an arm. An arm without an end has all budgets in one training."""
    each = [(budget,) for budget in scope.budgets] if ARMS[arm].has_end else [scope.budgets]
    factor = found.factor(task, arm, rule)
    return [found.training(task, arm, factor, epochs, seed) for seed in range(scope.seeds) for epochs in each]


def reproduction(scope: Scope, found: Found, arm: str) -> list[Training]:
    """The authors' optimizer, or an arm at the range test's rate."""
    epochs, seeds = (scope.reproduction_epochs,), range(scope.reproduction_seeds)
    if arm == PUBLISHED:
        return [Training("mnist1d", PUBLISHED, 1e-2, 1.0, epochs, seed) for seed in seeds]
    return [found.training("mnist1d", arm, 1.0, epochs, seed) for seed in seeds]


def first_trainings(scope: Scope, found: Found) -> dict[str, list[Training]]:
    """Those that need no more than the range tests, by the part that they belong to."""
    arms = [*itertools.product(TASKS, TUNED)]
    return {
        "grid": [t for place in arms for factor in scope.factors for t in grid(scope, found, *place, factor)],
        RANGE_TEST: [t for place in itertools.product(TASKS, ARMS) for t in compared(scope, found, *place, RANGE_TEST)],
        "reproduction": [t for arm in REPRODUCED for t in reproduction(scope, found, arm)],
    }


def best_factor(scope: Scope, found: Found, kept: Any, task: str, arm: str) -> float:
    def validated(factor: float) -> float:
        return statistics.mean(Outcome(*kept[t]).validation[-1] for t in grid(scope, found, task, arm, factor))

    return max(scope.factors, key=validated)


def experiment(scope: Scope, jobs: int, kept: Any) -> tuple[Found, list[Training]]:
    """All of it, kept under ``kept``; the rates and the trainings."""
    asked = [*questions(scope)]
    kept.ask(suggested, asked, "range tests", jobs)
    suggestions = {
        place: [tuple(kept[Question(*place, seed)]) for seed in range(scope.seeds)]
        for place in itertools.product(TASKS, KINDS)
    }
    found = Found({task: {kind: range_of(suggestions[task, kind]) for kind in KINDS} for task in TASKS}, {})
    trainings = [*itertools.chain(*first_trainings(scope, found).values())]
    kept.ask(train, trainings, "trainings at the range test's rates and around them", jobs)
    for task in TASKS:
        found.factors[task] = {arm: best_factor(scope, found, kept, task, arm) for arm in TUNED}
    best = [t for place in itertools.product(TASKS, TUNED) for t in compared(scope, found, *place, GRID)]
    kept.ask(train, best, "trainings at the grid's rates", jobs)
    return found, [*dict.fromkeys([*trainings, *best])]


def keeper() -> Answers:
    """Results are kept for as long as all that they depend on stays the same, the device included."""
    library = Path(cyclic_optim.__file__).parent.rglob("*.py")
    sources = [*sorted(library), *(HERE / f"{name}.py" for name in SOURCES)]
    return Answers(KEPT / f"{digest(sources, PACKAGES)}-{DEVICE.type}.jsonl")


# -- how long it takes ------------------------------------------------------------------------------


class Cost(NamedTuple):
    """Seconds of a processor."""

    epoch: float
    evaluation: float  # and all else that a training takes beside its epochs

    def of(self, trainings: list[Training]) -> float:
        return sum(self.evaluation * len(t.epochs) + self.epoch * epochs_of(t) for t in trainings)


def epochs_of(training: Training) -> float:
    """With the cooldowns of an arm that branches off: the steps spent, in epochs."""
    is_cooled = training.arm in ARMS and ARMS[training.arm].is_cooled
    last, *shorter = reversed(training.epochs)
    return last + sum(shorter) / 5 if is_cooled else last


def measured(task: str, arm: str) -> Cost:
    """From trainings of one epoch and of three, each the fastest of three, after one that warms up."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time

    def seconds(epochs: int) -> float:
        started = clock()
        train(Training(task, arm, 1e-3, 10.0, (epochs,), 0))
        return clock() - started

    seconds(1)
    one, three = (min(seconds(epochs) for _ in range(3)) for epochs in (1, 3))
    epoch = max(0.0, three - one) / 2
    return Cost(epoch, max(0.0, one - epoch))


def plan(scope: Scope, jobs: int) -> str:
    """What will be trained, and an estimate of the time it takes."""
    torch.set_num_threads(1)
    any_range = Range(1e-3, 1e-2, [])
    found = Found({task: dict.fromkeys(KINDS, any_range) for task in TASKS}, {task: {} for task in TASKS})
    parts = first_trainings(scope, found)
    # Where the grid chooses the range test's own rate, nothing is trained again: so this is the most that it can be.
    parts[GRID] = [t for t in parts[RANGE_TEST] if t.arm != DEFAULT]
    rows, total = [], 0.0
    for task in TASKS:
        costs = {family: measured(task, arm) for family, arm in ((SGD, LINEAR), (ADAMW, ADAMW_LINEAR))}
        for part, trainings in parts.items():
            those = [t for t in trainings if t.task == task]
            if not those:
                continue
            seconds = sum(costs[ARMS[t.arm].family if t.arm in ARMS else ADAMW].of([t]) for t in those)
            total += seconds
            rows.append([task, part, str(len(those)), f"{sum(map(epochs_of, those)):,.0f}", f"{seconds / 60:.1f}"])
    table = markdown_table(["task", "part", "trainings", "epochs", "minutes of a processor"], rows)
    tests, minutes = len([*questions(scope)]), f"about {total / 60 / jobs:.0f} minutes with {jobs} processes"
    return f"{table}\n\n{minutes}, and {tests} range tests of about a second."


# -- the record -------------------------------------------------------------------------------------


def record_of(scope: Scope, found: Found, trainings: list[Training], kept: Any, where: Any) -> dict[str, Any]:
    """All that the report is made from."""
    return {
        "command": command_line(__file__),
        "environment": where | {"device": device_name()},
        "scope": scope._asdict(),
        "tasks": {
            name: {"title": task.title, "batch_size": task.batch_size, "steps_per_epoch": task.steps_per_epoch}
            | {"sizes": [len(part[1]) for part in data_of(name, 0)]}
            for name, task in TASKS.items()
        },
        "ranges": {
            task: {kind: {**value._asdict(), "div_factor": value.div_factor} for kind, value in of_task.items()}
            for task, of_task in found.ranges.items()
        },
        "grid_factors": found.factors,
        "fields": [*Training._fields, *Outcome._fields],
        "runs": [[*training, *kept[training]] for training in trainings],
    }


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"


def save(record: dict[str, Any], path: Path) -> None:
    """With a line for each training, for the sake of size."""
    runs = ",\n  ".join(json.dumps(run, allow_nan=False) for run in record["runs"])
    head = as_json({key: value for key, value in record.items() if key != "runs"}).decode().rstrip("}\n")
    write_results(path.parent, {path.name: f'{head},\n "runs": [\n  {runs}\n ]\n}}\n'.encode()})


# -- running it -------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, trainings of 1 and 2 epochs")
    parser.add_argument("--plan", action="store_true", help="only print what would be trained, and for how long")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per CPU)"
    )
    add_out_and_report(parser, "only write anew what is made from the record")
    options = parser.parse_args()
    options.out = out_of(options)
    body: Callable[[argparse.Namespace], None] = print_plan if options.plan else run
    return run_benchmark(lambda: body(options), needs=("sklearn", "mlxtend", "mnist1d", "matplotlib", "schedulefree"))


def print_plan(options: argparse.Namespace) -> None:
    print(plan(QUICK if options.quick else FULL, options.jobs))


def run(options: argparse.Namespace) -> None:
    from evidence_report import write_report

    started, where = time.perf_counter(), environment(*PACKAGES)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        scope, kept = QUICK if options.quick else FULL, keeper()
        record = record_of(scope, *experiment(scope, options.jobs, kept), kept, where)
        save(record, options.out / "evidence.json")
    write_report(options.out)
    print(f"{time.perf_counter() - started:.0f} seconds; results in {options.out}")


if __name__ == "__main__":
    raise SystemExit(main())
