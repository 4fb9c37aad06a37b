"""Does cycling help: many arms, tasks, budgets and seeds, with rates chosen by a range test and by a grid.

Run it with::

    pip install '.[bench]'
    python benchmarks/convergence.py            # an hour on 2 cores; the same command goes on after an interrupt
    python benchmarks/convergence.py --quick    # 2 minutes: 2 seeds, 5 epochs, fewer images
    python benchmarks/convergence.py --report   # only the tables, pictures and the README's section, from the record

and find in ``build/benchmarks`` (or where ``--out`` says) ``convergence.md``, every table; ``convergence*.png``;
``convergence.json``, every training. With ``--out benchmarks/results`` the full run also writes the README's section on
what cycling brings.

1. For each task, an LR range test with its defaults, on as many seeds as are trained; the median of what they suggest.
   SGD's holds for every arm that is SGD with a schedule, schedule-free SGD has its own.
2. Each arm is trained at that rate times each of ``FACTORS``, for ``GRID_EPOCHS``: how much a mis-set rate costs, and,
   by the mean accuracy on the validation part, the best rate of the grid. (On the letters, which take longest, with
   the first 5 of the 10 seeds, as in 4.)
3. Each arm is trained for each of ``BUDGETS`` at the range test's rate, and at the grid's. A schedule that has an end
   is laid out to end there. One that has none is trained once, for the largest: the others are part of it.
4. What shuffling and the length of a cycle do.

With one seed, all arms start from the same weights and see the same batches in the same order, so that differences are
paired; the seed draws the split of the small data sets, too. Accuracies are those of the test part, measured after
every epoch; nothing is ever chosen by them. Trainings are kept in ``build/convergence`` as they end.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
from letters import letters, make_network
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import cyclic_optim
from cyclic_optim import (
    CosineDecay,
    CosineRestarts,
    CyclicSGD,
    ExpRange,
    InverseTimeDecay,
    LRRangeTest,
    MultiStepDecay,
    NoSuggestionError,
    OneCycle,
    Plateau,
    Policy,
    Triangular,
    Triangular2,
    lr_range_test,
)

HERE = Path(__file__).parent
KEPT = HERE.parent / "build" / "convergence"
PACKAGES = ("scikit-learn", "schedulefree", "numpy", "pillow")
COMMON: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the range test's rate
BUDGETS, GRID_EPOCHS = (5, 10, 20, 40), 10
CYCLE = 5  # epochs; every budget is a whole number of cycles
CYCLES, CYCLES_EPOCHS = (1, 2, 5, 10, 20), 20  # the lengths compared, in trainings of so many epochs
RESHUFFLED, FIXED, SORTED = "new each epoch", "drawn once", "class after class"
UNTUNED_LR = 1e-3  # torch.optim.SGD's own default


# -- the tasks --------------------------------------------------------------------------------------

Part = tuple[Tensor, Tensor]


class Data(NamedTuple):
    train: Part
    validation: Part
    test: Part


class Task(NamedTuple):
    title: str
    load: Callable[[int], Data]
    model: Callable[[], nn.Module]
    batch_size: int
    target: float  # test accuracy in percent, to be reached soon
    seeds_aside: int = 10  # of the grid, the orders and the lengths of cycles


def tabular(name: str) -> Callable[[int], Data]:
    """One of scikit-learn's data sets: half to train, a fifth to validate, the rest to test; drawn by the seed."""

    def load(seed: int) -> Data:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split

        inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
        train, rest, train_labels, rest_labels = train_test_split(
            inputs, labels, train_size=0.5, stratify=labels, random_state=seed
        )
        validation, test, validation_labels, test_labels = train_test_split(
            rest, rest_labels, train_size=0.4, stratify=rest_labels, random_state=seed
        )
        mean, deviation = train.mean(0), train.std(0) + 1e-6

        def part(inputs: Any, labels: Any) -> Part:
            return torch.tensor((inputs - mean) / deviation, dtype=torch.float32), torch.tensor(labels)

        return Data(part(train, train_labels), part(validation, validation_labels), part(test, test_labels))

    return load


@functools.cache
def drawn_letters(*size: int) -> Data:
    made = letters(size)
    parts = ((images.contiguous(memory_format=torch.channels_last), labels) for images, labels in made[:3])
    return Data(*parts)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def network() -> nn.Module:
    return make_network().to(memory_format=torch.channels_last)


LETTERS = Task(
    "letters, residual network", lambda seed: drawn_letters(5_000, 10_000, 5_000), network, 128, 80.0, seeds_aside=5
)
TASKS = {
    "wine": Task("wine, logistic regression", tabular("wine"), lambda: nn.Linear(13, 3), 16, 96.0),
    "cancer": Task("breast cancer, logistic regression", tabular("breast_cancer"), lambda: nn.Linear(30, 2), 32, 96.0),
    "digits": Task("digits, perceptron", tabular("digits"), perceptron, 32, 96.0),
    "letters": LETTERS,
}
QUICK = {"letters": LETTERS._replace(load=lambda seed: drawn_letters(1_500, 500, 1_000), target=60.0)}


# -- the arms ---------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """A training as its optimizer sees it."""

    lr: float
    epochs: int
    steps_per_epoch: int
    div_factor: float  # of the range: the range test's highest rate by its lowest
    cycle: int = CYCLE

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def triangle(self, steps: int) -> dict[str, Any]:
        return {"step_size_up": steps // 2, "step_size_down": steps - steps // 2, "div_factor": self.div_factor}

    @property
    def triangles(self) -> dict[str, Any]:
        return self.triangle(self.cycle * self.steps_per_epoch)

    @property
    def first_of_three(self) -> int:
        """The steps of a cycle that ends with the training when the two after it double each time."""
        return math.ceil(self.total_steps / 7)


Params = Iterator[nn.Parameter]


class Arm(NamedTuple):
    optimizer: Callable[[Params, Plan], Optimizer]
    has_end: bool = False  # its schedule depends on how long the training is
    kind: str = "SGD"  # whose range test
    is_tuned: bool = True


def policy(make: Callable[[Plan], Policy], *, has_end: bool = False) -> Arm:
    return Arm(lambda params, plan: CyclicSGD(params, lr=plan.lr, **COMMON, policy=make(plan)), has_end)


def schedule_free(params: Params, plan: Plan) -> Optimizer:
    from schedulefree import SGDScheduleFree

    # Its documentation recommends a warm-up.
    optimizer = SGDScheduleFree(params, lr=plan.lr, **COMMON, warmup_steps=plan.steps_per_epoch // 2)
    optimizer.train()
    return optimizer


def per_epoch(plan: Plan, *shares: float) -> tuple[int, ...]:
    return tuple(round(share * plan.total_steps) for share in shares)


UNTUNED, CONSTANT, SCHEDULE_FREE = "SGD, lr=1e-3, untuned", "SGD, constant", "SGDScheduleFree"
COSINE, TRIANGULAR, ONE_CYCLE = "cosine", "Triangular", "OneCycle"
ARMS = {
    UNTUNED: Arm(lambda params, plan: SGD(params, lr=UNTUNED_LR, **COMMON), is_tuned=False),
    CONSTANT: Arm(lambda params, plan: SGD(params, lr=plan.lr, **COMMON)),
    "step decay": policy(lambda plan: MultiStepDecay(per_epoch(plan, 0.5, 0.75)), has_end=True),
    "1/t decay": policy(lambda plan: InverseTimeDecay(1 / (CYCLE * plan.steps_per_epoch))),
    "plateau": policy(lambda plan: Plateau(factor=0.3, patience=2)),
    COSINE: policy(lambda plan: CosineDecay(plan.total_steps), has_end=True),
    "warm restarts": policy(lambda plan: CosineRestarts(plan.first_of_three, t_mult=2), has_end=True),
    TRIANGULAR: policy(lambda plan: Triangular(**plan.triangles)),
    "Triangular2": policy(lambda plan: Triangular2(**plan.triangles)),
    # Down to a tenth of the height by the end.
    "ExpRange": policy(lambda plan: ExpRange(**plan.triangles, gamma=0.1 ** (1 / plan.total_steps)), has_end=True),
    "growing cycles": policy(
        lambda plan: Triangular(**plan.triangle(plan.first_of_three), cycle_growth=2), has_end=True
    ),
    ONE_CYCLE: policy(lambda plan: OneCycle(plan.total_steps), has_end=True),
    "OneCycle, constant momentum": policy(lambda plan: OneCycle(plan.total_steps, cycle_momentum=False), has_end=True),
    SCHEDULE_FREE: Arm(schedule_free, kind=SCHEDULE_FREE),
}
TUNED = [name for name, arm in ARMS.items() if arm.is_tuned]
SHUFFLED = (CONSTANT, TRIANGULAR, ONE_CYCLE)  # the arms that all orders are tried with


# -- a training -------------------------------------------------------------------------------------


class Training(NamedTuple):
    """What determines a training, and the name that it is kept under."""

    task: str
    arm: str
    lr: float
    epochs: int
    seed: int
    div_factor: float
    order: str = RESHUFFLED
    cycle: int = CYCLE
    is_quick: bool = False

    @property
    def size(self) -> float:
        """About how long it takes."""
        return self.epochs * (20 if self.task == "letters" else 1)


class Outcome(NamedTuple):
    validation: float  # accuracy in the end, percent
    test: list[float]  # accuracy after each epoch, percent


def task_of(name: str, is_quick: bool) -> Task:
    return QUICK.get(name, TASKS[name]) if is_quick else TASKS[name]


@functools.lru_cache(maxsize=16)
def data_of(name: str, seed: int, is_quick: bool) -> Data:
    return task_of(name, is_quick).load(seed)


def batches(labels: Tensor, batch_size: int, order: str, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """The indices of each batch, epoch after epoch; what does not fill a batch is left out."""
    count = len(labels)
    fixed = labels.argsort(stable=True) if order == SORTED else torch.randperm(count, generator=generator)
    while True:
        indices = torch.randperm(count, generator=generator) if order == RESHUFFLED else fixed
        yield [*indices[: count - count % batch_size].split(batch_size)]


def train(training: Training) -> Outcome:
    task, data = task_of(training.task, training.is_quick), data_of(training.task, training.seed, training.is_quick)
    model, epochs = made(task, training.seed), loader(training, data)
    steps_per_epoch = len(data.train[1]) // task.batch_size
    plan = Plan(training.lr, training.epochs, steps_per_epoch, training.div_factor, training.cycle)
    optimizer = ARMS[training.arm].optimizer(model.parameters(), plan)
    test: list[float] = []
    for batches_of_epoch in itertools.islice(epochs, training.epochs):
        model.train()
        loss = train_epoch(model, optimizer, data.train, batches_of_epoch)
        with evaluated(model, optimizer, data.train, batches_of_epoch):
            test.append(accuracy(model, data.test))
            validation = accuracy(model, data.validation) if len(test) == training.epochs else math.nan
            if isinstance(getattr(optimizer, "policy", None), Plateau):
                optimizer.report(validation_loss(model, data.validation))
        if not math.isfinite(loss):  # no way back: the accuracy stays what it is
            test += [test[-1]] * (training.epochs - len(test))
            return Outcome(accuracy(model.eval(), data.validation), test)
    return Outcome(validation, test)


def made(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return task.model()


def loader(training: Training, data: Data) -> Iterator[list[Tensor]]:
    batch_size = task_of(training.task, training.is_quick).batch_size
    return batches(data.train[1], batch_size, training.order, torch.Generator().manual_seed(training.seed))


def train_epoch(model: nn.Module, optimizer: Optimizer, part: Part, batches_of_epoch: list[Tensor]) -> float:
    """The classic loop. The last loss."""
    inputs, labels = part
    for batch in batches_of_epoch:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
    return loss.item()


@contextmanager
def evaluated(model: nn.Module, optimizer: Any, part: Part, batches_of_epoch: list[Tensor]) -> Iterator[None]:
    """Evaluation mode, and back: schedule-free SGD has other weights there, whose batch norm must be told of them."""
    with torch.no_grad():
        if hasattr(optimizer, "eval"):
            optimizer.eval()
            if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
                for batch in batches_of_epoch[:50]:
                    model(part[0][batch])
        model.eval()
        yield
        if hasattr(optimizer, "train"):
            optimizer.train()


def accuracy(model: nn.Module, part: Part) -> float:
    inputs, labels = part
    with torch.no_grad():
        right = (model(inputs).argmax(1) == labels).float().mean().item()
    return round(100 * right, 3)


def validation_loss(model: nn.Module, part: Part) -> float:
    return F.cross_entropy(model(part[0]), part[1]).item()


# -- the range test ---------------------------------------------------------------------------------


class Range(NamedTuple):
    """What the range tests of the seeds suggest, and the medians of it."""

    base_lr: float
    max_lr: float
    suggested: list[tuple[float, float]]

    @property
    def div_factor(self) -> float:
        return max(1.0, self.max_lr / self.base_lr)


def suggested(question: tuple[str, str, int, bool]) -> tuple[float, float]:
    """The ends that the range test with its defaults suggests; where its rates do not reach far enough, with higher."""
    name, kind, seed, is_quick = question
    task, data = task_of(name, is_quick), data_of(name, seed, is_quick)
    arm = next(arm for arm in ARMS.values() if arm.kind == kind and arm.is_tuned)

    def found(end_lr: float) -> LRRangeTest:
        model = made(task, seed)
        optimizer = arm.optimizer(model.parameters(), Plan(lr=1.0, epochs=1, steps_per_epoch=1, div_factor=1.0))
        order = batches(data.train[1], task.batch_size, RESHUFFLED, torch.Generator().manual_seed(seed))
        stream = itertools.chain.from_iterable(order)

        def step() -> Tensor:
            batch = next(stream)
            loss = F.cross_entropy(model(data.train[0][batch]), data.train[1][batch])
            loss.backward()
            return loss

        return lr_range_test(model, optimizer, step, end_lr=end_lr, progress=False)

    try:
        return found(10.0).suggest()
    except NoSuggestionError:
        return found(1000.0).suggest()


def range_of(suggestions: list[tuple[float, float]]) -> Range:
    base, highest = (statistics.median(ends) for ends in zip(*suggestions, strict=True))
    return Range(base, highest, suggestions)


# -- keeping what was computed ----------------------------------------------------------------------


class Kept(Answers):
    """The trainings' results, kept for as long as all that they depend on stays the same."""

    def __init__(self, folder: Path) -> None:
        library = Path(cyclic_optim.__file__).parent.rglob("*.py")
        sources = [*sorted(library), HERE / "convergence.py", HERE / "letters.py"]
        super().__init__(folder / f"{digest(sources, PACKAGES)}.jsonl")


# -- the experiment ---------------------------------------------------------------------------------


class Scope(NamedTuple):
    """How much of it."""

    seeds: int
    budgets: tuple[int, ...]
    grid_epochs: int
    factors: tuple[float, ...]
    cycles: tuple[int, ...]
    cycles_epochs: int
    is_quick: bool


FULL = Scope(10, BUDGETS, GRID_EPOCHS, FACTORS, CYCLES, CYCLES_EPOCHS, is_quick=False)
QUICK_SCOPE = Scope(2, (5,), 5, (0.3, 1.0, 3.0), (1, 5), 5, is_quick=True)


class Found(NamedTuple):
    """The rates, by task and kind of optimizer; and the factors that the grid chose, by task and arm."""

    ranges: dict[str, dict[str, Range]]
    factors: dict[str, dict[str, float]]

    def training(self, task: str, arm: str, factor: float, epochs: int, seed: int, **options: Any) -> Training:
        found = self.ranges[task][ARMS[arm].kind]
        lr = found.max_lr * factor if ARMS[arm].is_tuned else UNTUNED_LR
        return Training(task, arm, lr, epochs, seed, found.div_factor, **options)


def experiment(scope: Scope, jobs: int) -> tuple[Found, dict[str, list[Training]], Kept]:
    kept, seeds, quick = Kept(KEPT), range(scope.seeds), {"is_quick": scope.is_quick}
    aside = {name: seeds[: task.seeds_aside] for name, task in TASKS.items()}
    kinds = sorted({arm.kind for arm in ARMS.values()})
    questions = {
        (task, kind): [(task, kind, seed, scope.is_quick) for seed in seeds] for task in TASKS for kind in kinds
    }
    kept.ask(suggested, itertools.chain(*questions.values()), "range tests", jobs)
    ranges = {
        task: {kind: range_of([tuple(kept[question]) for question in questions[task, kind]]) for kind in kinds}
        for task in TASKS
    }
    found = Found(ranges, {})

    def grid(task: str, arm: str, factor: float) -> list[Training]:
        return [found.training(task, arm, factor, scope.grid_epochs, seed, **quick) for seed in aside[task]]

    def budgets(task: str, arm: str, factor: float) -> list[Training]:
        epochs = scope.budgets if ARMS[arm].has_end else scope.budgets[-1:]
        return [found.training(task, arm, factor, n, seed, **quick) for seed in seeds for n in epochs]

    plans = {
        "grid": [t for task in TASKS for arm in TUNED for factor in scope.factors for t in grid(task, arm, factor)],
        "range test": [t for task in TASKS for arm in ARMS for t in budgets(task, arm, 1.0)],
        "order": [
            found.training(task, arm, 1.0, scope.grid_epochs, seed, order=order, **quick)
            for task in ("digits", "letters")
            for arm in SHUFFLED
            for order in (RESHUFFLED, FIXED, SORTED)
            for seed in aside[task]
        ],
        "cycle": [
            found.training(task, TRIANGULAR, 1.0, scope.cycles_epochs, seed, cycle=cycle, **quick)
            for task in ("digits", "letters")
            for cycle in scope.cycles
            for seed in aside[task]
        ],
    }
    kept.ask(train, itertools.chain(*plans.values()), "trainings at the range test's rates and around them", jobs)
    for task in TASKS:
        found.factors[task] = {
            arm: max(scope.factors, key=lambda f: statistics.mean(kept[t][0] for t in grid(task, arm, f)))
            for arm in TUNED
        }
    plans["best of the grid"] = [
        t for task in TASKS for arm in TUNED for t in budgets(task, arm, found.factors[task][arm])
    ]
    kept.ask(train, plans["best of the grid"], "trainings at the grid's rates", jobs)
    return found, plans, kept


def record_of(scope: Scope, found: Found, plans: dict[str, list[Training]], kept: Kept, where: Any) -> dict[str, Any]:
    """All that the report is made from."""
    trainings = dict.fromkeys(itertools.chain(*plans.values()))
    return {
        "command": command_line(__file__),
        "environment": where,
        "scope": scope._asdict(),
        "tasks": {
            name: {"title": task.title, "target": task_of(name, scope.is_quick).target, "batch_size": task.batch_size}
            | {"steps_per_epoch": len(data_of(name, 0, scope.is_quick).train[1]) // task.batch_size}
            for name, task in TASKS.items()
        },
        "letters": letters(tuple(map(len, (part[1] for part in data_of("letters", 0, scope.is_quick))))).digest,
        "ranges": {
            task: {kind: {**value._asdict(), "div_factor": value.div_factor} for kind, value in of_task.items()}
            for task, of_task in found.ranges.items()
        },
        "grid_factors": found.factors,
        "fields": [*Training._fields, *Outcome._fields],
        "runs": [[*training, *kept[training]] for training in trainings],
    }


def save(record: dict[str, Any], path: Path) -> None:
    """With a line for each training, for the sake of size."""
    runs = ",\n  ".join(json.dumps(run, allow_nan=False) for run in record["runs"])
    head = as_json({key: value for key, value in record.items() if key != "runs"}).decode().rstrip("}\n")
    write_results(path.parent, {path.name: f'{head},\n "runs": [\n  {runs}\n ]\n}}\n'.encode()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, trainings of 5 epochs, fewer images")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per CPU)"
    )
    add_out_and_report(parser, "only write anew what is made from the record")
    options = parser.parse_args()
    options.out = out_of(options)
    return run_benchmark(lambda: run(options), needs=("sklearn", "matplotlib", "PIL", "schedulefree"))


def run(options: argparse.Namespace) -> None:
    from convergence_report import write_report

    started, where = time.perf_counter(), environment(*PACKAGES)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        scope = QUICK_SCOPE if options.quick else FULL
        record = record_of(scope, *experiment(scope, options.jobs), where)
        save(record, options.out / "convergence.json")
    write_report(options.out)
    print(f"{time.perf_counter() - started:.0f} seconds; results in {options.out}")


if __name__ == "__main__":
    raise SystemExit(main())
