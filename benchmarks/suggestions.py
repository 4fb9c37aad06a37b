"""Is the suggested range any good? The rates that train well, by a grid, and where the suggestions fall.

Run it with::

    pip install '.[bench]'
    python benchmarks/suggestions.py            # a quarter of an hour on two cores
    python benchmarks/suggestions.py --quick    # 3 cases, fewer rates and seeds: a minute
    python benchmarks/suggestions.py --report   # only the rules, on the curves in the record: seconds

and find in ``build/benchmarks`` (or where ``--out`` says) ``suggestions.md``, the tables, and ``suggestions.json``,
every number behind them: the curves and the trainings, from which the tables are made anew by ``--report``.

1. The truth of each case of ``suggestions_tasks.py``: a training of one cycle (``OneCycle``) with its peak at each
   rate of a grid, two to a decade over five decades, and six to a decade next to the best one and where the good
   ones end. A training that ends in NaN or is far above its first loss is stopped.
2. Range tests with the defaults, but that they go on after the loss has diverged: the default test's curve is the
   first part of it, and the rules of other packages end the curve where those do.
3. ``suggestions_report.py`` reads every rule off these curves.

What is measured is kept in ``build/suggestions`` line by line, so that a run that was interrupted is taken up again;
``--fresh`` starts over. It is also measured anew where the cases or torch's version have changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from harness import (
    Answers,
    add_out_and_report,
    as_json,
    command_line,
    digest,
    environment,
    out_of,
    run_benchmark,
    write_results,
)
from suggestions_report import Truth, report
from suggestions_tasks import CASES, Batches, Case, criterion, evaluate, load, make_model, make_optimizer

from cyclic_optim import OneCycle, lr_range_test, supervised_step

HERE = Path(__file__).parent
KEPT = HERE.parent / "build" / "suggestions"
PACKAGES = ("scikit-learn", "mlxtend", "numpy", "pillow")
PER_DECADE = 6  # rates of the fine grid
COARSE = 3  # every third of them
LOWEST = {"SGD": -24, "AdamW": -30}  # of the grid: 1e-4 and 1e-5
COARSE_RATES = 11
HOPELESS = 100.0  # a loss so many times the first one does not come back


class Scope(NamedTuple):
    """How much of it."""

    cases: list[Case]
    seeds: int
    is_quick: bool = False

    @property
    def coarse(self) -> range:
        return range(0, COARSE * COARSE_RATES, COARSE * (2 if self.is_quick else 1))


QUICK = ("wine, perceptron, SGD, 16", "cancer, perceptron, AdamW, 64", "digits, perceptron, BatchNorm, AdamW, 32")
FULL_SCOPE = Scope(CASES, seeds=3)
QUICK_SCOPE = Scope([case for case in CASES if case.name in QUICK], seeds=1, is_quick=True)


class Training(NamedTuple):
    """One cycle whose peak is the grid's rate of that number."""

    case: str
    seed: int
    number: int

    @property
    def size(self) -> float:
        return cost(self.case)


class Curve(NamedTuple):
    """A range test."""

    case: str
    seed: int

    @property
    def size(self) -> float:
        return cost(self.case)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def cost(name: str) -> float:
    """Only to begin with the longest."""
    case = case_named(name)
    return case.steps * case.batch_size


def rate(number: int) -> float:
    return float(10 ** (number / PER_DECADE))


# -- what is measured -------------------------------------------------------------------------------


def train(training: Training) -> float | None:
    """The loss at the end of one cycle; None where it has diverged."""
    case = case_named(training.case)
    model = make_model(case, training.seed)
    optimizer = make_optimizer(case, model, rate(training.number), OneCycle(case.steps))
    first = None
    for inputs, targets in itertools.islice(Batches(load(case.data), case.batch_size, training.seed), case.steps):
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        first = loss.item() if first is None else first
        if not loss.item() <= HOPELESS * first:
            return None
        loss.backward()
        optimizer.step()
    end = evaluate(model, load(case.data))
    return shortened(end) if math.isfinite(end) else None


def curve(question: Curve) -> list[float | None]:
    """The losses of a range test that goes on when the loss has diverged, but not after NaN (None)."""
    case = case_named(question.case)
    model = make_model(case, question.seed)
    step = supervised_step(model, criterion, Batches(load(case.data), case.batch_size, question.seed))
    optimizer = make_optimizer(case, model, lr=1.0)
    found = lr_range_test(model, optimizer, step, divergence_factor=math.inf, progress=False)
    return [shortened(loss) if math.isfinite(loss) else None for loss in found.losses]


def initial(question: Curve) -> float:
    """The loss before training."""
    case = case_named(question.case)
    return shortened(evaluate(make_model(case, question.seed), load(case.data)))


def shortened(value: float) -> float:
    """To seven digits: those that a float32 has."""
    return float(f"{value:.7g}")


def measure(question: Training | Curve) -> Any:
    if isinstance(question, Training):
        return train(question)
    return [initial(question), curve(question)]


# -- the experiment ---------------------------------------------------------------------------------


def experiment(scope: Scope, jobs: int, path: Path) -> dict[str, dict[str, Any]]:
    """What the record says of each case."""
    kept, seeds = Answers(path), range(scope.seeds)
    # Range tests may have more seeds than trainings: they are cheap, and a suggestion's scatter matters.
    tests = [Curve(case.name, seed) for case in scope.cases for seed in range(max(3, scope.seeds))]
    kept.ask(measure, tests, "range tests", jobs)
    numbers = {case.name: [LOWEST[case.optimizer] + number for number in scope.coarse] for case in scope.cases}
    for label in ("coarse grid", "fine grid"):
        questions = [Training(name, seed, n) for name, of_case in numbers.items() for n in of_case for seed in seeds]
        kept.ask(measure, questions, label, jobs)
        if label == "coarse grid" and not scope.is_quick:
            numbers = {case.name: refined(recorded(case, kept, numbers[case.name], seeds)) for case in scope.cases}
    return {case.name: recorded(case, kept, numbers[case.name], seeds) for case in scope.cases}


def recorded(case: Case, kept: Answers, numbers: list[int], seeds: range) -> dict[str, Any]:
    tests = [kept[Curve(case.name, seed)] for seed in range(max(3, len(seeds)))]
    return {
        **case._asdict(),
        "initial": [loss for loss, _ in tests[: len(seeds)]],
        "numbers": numbers,
        "rates": [rate(number) for number in numbers],
        "ends": [[kept[Training(case.name, seed, number)] for seed in seeds] for number in numbers],
        "curves": [losses for _, losses in tests],
    }


def refined(record: dict[str, Any]) -> list[int]:
    """The grid with all rates next to the best one and next to where the good ones end."""
    truth, numbers = Truth.of(record), record["numbers"]
    good = [number for number, loss in zip(numbers, truth.losses, strict=True) if loss <= truth.enough]
    best = numbers[truth.losses.index(min(truth.losses))]
    low, high = max(min(good), min(numbers) + COARSE), min(max(good), max(numbers) - COARSE)
    around = (best - COARSE, best, low - COARSE, high)
    return sorted({*numbers, *(start + more for start in around for more in range(COARSE))})


def write(out: Path, record: dict[str, Any]) -> str:
    text = report(record)
    write_results(out, {"suggestions.json": as_lines(record), "suggestions.md": text.encode()})
    return text


def as_lines(record: dict[str, Any]) -> bytes:
    """JSON with a line for each list of numbers, for the sake of size."""
    text = as_json({**record, "cases": {}}).decode()
    cases = ",\n".join(f" {json.dumps(name)}: {{\n{fields(case)}\n }}" for name, case in record["cases"].items())
    return text.replace('"cases": {}', f'"cases": {{\n{cases}\n }}').encode()


def fields(case: dict[str, Any]) -> str:
    return ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in case.items())


def run(options: argparse.Namespace) -> None:
    path = options.out / "suggestions.json"
    options.out.mkdir(parents=True, exist_ok=True)
    if options.report:
        record = json.loads(path.read_text())
    else:
        made_of = digest([HERE / "suggestions_tasks.py", HERE / "letters.py"], PACKAGES)
        kept = KEPT / f"{made_of}{'-quick' if options.quick else ''}.jsonl"
        if options.fresh:
            kept.unlink(missing_ok=True)
        scope = QUICK_SCOPE if options.quick else FULL_SCOPE
        where = environment(*PACKAGES)
        cases = experiment(scope, options.jobs, kept)
        record = {"command": command_line(__file__), "environment": where, "cases": cases}
    print(f"{write(options.out, record)}\nresults in {options.out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 cases, 1 seed, a rate to a decade")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: 1 per CPU)")
    add_out_and_report(parser, "only read the rules off the record's curves")
    options = parser.parse_args()
    options.out = out_of(options)
    needs = () if options.report else ("sklearn",) if options.quick else ("sklearn", "mlxtend", "matplotlib", "PIL")
    return run_benchmark(lambda: run(options), needs=needs)


if __name__ == "__main__":
    raise SystemExit(main())
