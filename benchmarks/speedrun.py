"""A speedrun's recipe, step by step: how soon MNIST's 5,000 images are learned, beside plain SGD with OneCycleLR.

Run it with::

    pip install '.[bench]'
    python benchmarks/speedrun.py            # 3 minutes on 2 cores; the same command goes on after an interrupt
    python benchmarks/speedrun.py --quick    # half a minute: 2 seeds, fewer rates and lengths

and find in ``build/benchmarks`` (or where ``--out`` says) ``speedrun.md``, its table, and ``speedrun.json``, every
training.

The recipe is that of the CIFAR-10 speedruns: SGD with Nesterov momentum, a rate that climbs from 0.2 to 1 of the peak
in the first 23 % of the steps and falls to 0.07 on a straight line, and biases at 64 times the rate of the weights.
``recipe`` is all of it. Each contender gets the rate of ``RATES`` with the best mean accuracy on the validation part
after ``GRID_EPOCHS``. Then it is trained for each of ``LENGTHS``, its schedule laid out for that length. Steps to the
accuracy aimed at are those of the shortest training of a seed that ends with as much on the test part. With one seed,
all contenders start from the same weights and see the same batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from evidence_report import interval, judged, wrapped
from evidence_tasks import DEVICE, PACKAGES, TASKS, accuracy, batch_at, data_of, loss_of, made
from harness import (
    Answers,
    add_out_and_report,
    as_json,
    command_line,
    digest,
    environment,
    environment_line,
    markdown_table,
    out_of,
    run_benchmark,
    write_results,
)
from paired_statistics import Array, compare, estimate
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

import cyclic_optim
from cyclic_optim import CyclicSGD, LinearRamp, Sequential

HERE = Path(__file__).parent
KEPT = HERE.parent / "build" / "speedrun"
TASK = "mnist"
TARGET = 95.0  # percent of the test part
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LENGTHS, GRID_EPOCHS = (1, 2, 3, 4, 6, 8, 12, 16, 20), 6
WEIGHT_DECAY = 5e-4


# -- the contenders ---------------------------------------------------------------------------------


def recipe(model: nn.Module, lr: float, total_steps: int, bias_factor: float = 64) -> tuple[Optimizer, None]:
    climb = round(0.23 * total_steps)
    triangle = Sequential([LinearRamp(climb, 0.2, 1.0), LinearRamp(total_steps - climb, 1.0, 0.07)], [climb])
    biases = [param for name, param in model.named_parameters() if name.endswith("bias")]
    others = [param for name, param in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": others}, {"params": biases, "lr": bias_factor * lr}]
    common = {"momentum": 0.85, "nesterov": True, "weight_decay": WEIGHT_DECAY}
    return CyclicSGD(groups, lr=lr, **common, policy=triangle), None


def one_rate(model: nn.Module, lr: float, total_steps: int) -> tuple[Optimizer, None]:
    return recipe(model, lr, total_steps, bias_factor=1)


def plain(model: nn.Module, lr: float, total_steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=WEIGHT_DECAY)
    return optimizer, OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps)


Contender = Callable[[nn.Module, float, int], tuple[Optimizer, LRScheduler | None]]
RECIPE, ONE_RATE, PLAIN = "the recipe", "the recipe, biases at the rate of the weights", "SGD, OneCycleLR"
CONTENDERS: dict[str, Contender] = {RECIPE: recipe, ONE_RATE: one_rate, PLAIN: plain}


# -- a training -------------------------------------------------------------------------------------


class Training(NamedTuple):
    contender: str
    lr: float
    epochs: int
    seed: int

    @property
    def size(self) -> float:
        return self.epochs

    @property
    def steps(self) -> int:
        return self.epochs * TASKS[TASK].steps_per_epoch


class Outcome(NamedTuple):
    """Accuracy in the end, in percent."""

    validation: float
    test: float


def train(training: Training) -> Outcome:
    task, data = TASKS[TASK], data_of(TASK, training.seed)
    model = made(task, training.seed)
    optimizer, scheduler = CONTENDERS[training.contender](model, training.lr, training.steps)
    model.train()
    for step in range(training.steps):
        optimizer.zero_grad()
        loss_of(model, batch_at(data, task, training.seed, step)).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    model.eval()
    return Outcome(accuracy(model, data.validation), accuracy(model, data.test))


# -- the experiment ---------------------------------------------------------------------------------


class Scope(NamedTuple):
    seeds: int
    grid_seeds: int  # fewer: they only choose one of a few rates
    rates: tuple[float, ...]
    grid_epochs: int
    lengths: tuple[int, ...]


FULL, QUICK = Scope(10, 3, RATES, GRID_EPOCHS, LENGTHS), Scope(2, 1, (0.01, 0.1), 1, (1, 2))


def grid(scope: Scope, contender: str, lr: float) -> list[Training]:
    return [Training(contender, lr, scope.grid_epochs, seed) for seed in range(scope.grid_seeds)]


def best_rate(scope: Scope, kept: Any, contender: str) -> float:
    def validated(lr: float) -> float:
        return statistics.mean(Outcome(*kept[training]).validation for training in grid(scope, contender, lr))

    return max(scope.rates, key=validated)


def experiment(scope: Scope, jobs: int, kept: Any) -> dict[str, Any]:
    """The rates, and the test accuracies by contender, length and seed."""
    asked = [t for place in itertools.product(CONTENDERS, scope.rates) for t in grid(scope, *place)]
    kept.ask(train, asked, "the grid of rates", jobs)
    rates = {contender: best_rate(scope, kept, contender) for contender in CONTENDERS}

    def trainings(contender: str, epochs: int) -> list[Training]:
        return [Training(contender, rates[contender], epochs, seed) for seed in range(scope.seeds)]

    places = [*itertools.product(CONTENDERS, scope.lengths)]
    kept.ask(train, [t for place in places for t in trainings(*place)], "every length", jobs)
    return {
        "grid": {
            contender: [[Outcome(*kept[t]).validation for t in grid(scope, contender, lr)] for lr in scope.rates]
            for contender in CONTENDERS
        },
        "rates": rates,
        "accuracies": {
            contender: [[Outcome(*kept[t]).test for t in trainings(contender, epochs)] for epochs in scope.lengths]
            for contender in CONTENDERS
        },
    }


def keeper() -> Answers:
    library = sorted(Path(cyclic_optim.__file__).parent.rglob("*.py"))
    sources = [*library, HERE / "evidence_tasks.py", Path(__file__)]
    return Answers(KEPT / f"{digest(sources, PACKAGES)}-{DEVICE.type}.jsonl")


# -- the report -------------------------------------------------------------------------------------


def steps_to_target(record: dict[str, Any], contender: str) -> list[float]:
    """For each seed, the steps of its shortest training that ends with the accuracy aimed at; else infinity."""
    by_seed = zip(*record["accuracies"][contender], strict=True)
    steps = [epochs * record["steps_per_epoch"] for epochs in record["scope"]["lengths"]]

    def fewest(reached: tuple[float, ...]) -> float:
        return min((n for n, value in zip(steps, reached, strict=True) if value >= record["target"]), default=math.inf)

    return [*map(fewest, by_seed)]


def steps_text(steps: float) -> str:
    return "never" if math.isinf(steps) else f"{steps:g}"


def report(record: dict[str, Any]) -> str:
    lengths, target = record["scope"]["lengths"], record["target"]
    accuracies = {name: np.array(values) for name, values in record["accuracies"].items()}
    header = ["test accuracy, %", *(f"{epochs * record['steps_per_epoch']} steps" for epochs in lengths)]

    def soon(name: str) -> list[str]:
        steps = steps_to_target(record, name)
        reached = sum(map(math.isfinite, steps))
        return [name, f"{record['rates'][name]:g}", steps_text(float(np.median(steps))), f"{reached} of {len(steps)}"]

    def less_plain(values: Array) -> list[str]:
        return [*map(judged, compare(dict(zip(lengths, values - accuracies[PLAIN], strict=True))).values())]

    tables = (
        markdown_table(
            ["contender", "rate", f"steps to {target:g} %, median", "seeds that come there"], [*map(soon, CONTENDERS)]
        ),
        markdown_table(header, [[name, *(interval(estimate(v)) for v in accuracies[name])] for name in CONTENDERS]),
        markdown_table(
            [f"less {PLAIN}", *header[1:]], [[name, *less_plain(accuracies[name])] for name in (RECIPE, ONE_RATE)]
        ),
    )
    note = wrapped(
        f"{TASKS[TASK].title}; {record['scope']['seeds']} seeds, means with 95 % intervals. Each at the rate of "
        f"{', '.join(f'{lr:g}' for lr in record['scope']['rates'])} that has the best validation accuracy. Paired by "
        'seed and corrected for the number of lengths; "no difference found" means p >= 0.05.'
    )
    where = wrapped(environment_line(record["environment"]))
    return "\n\n".join((f"`{record['command']}`", note, *tables, where)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, 2 rates and 2 lengths")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per CPU)"
    )
    add_out_and_report(parser, "only write the table anew, from the record")
    options = parser.parse_args()
    options.out = out_of(options)
    return run_benchmark(lambda: run(options), needs=("sklearn", "mlxtend"))


def run(options: argparse.Namespace) -> None:
    started, where = time.perf_counter(), environment(*PACKAGES)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "speedrun.json"
    if not options.report:
        scope = QUICK if options.quick else FULL
        setting = {"target": TARGET, "steps_per_epoch": TASKS[TASK].steps_per_epoch}
        found = experiment(scope, options.jobs, keeper())
        record = {"command": command_line(__file__), "environment": where, "scope": scope._asdict(), **setting, **found}
        write_results(options.out, {path.name: as_json(record)})
    text = report(json.loads(path.read_text()))
    write_results(options.out, {"speedrun.md": text.encode()})
    print(text)
    print(f"{time.perf_counter() - started:.0f} seconds; results in {options.out}")


if __name__ == "__main__":
    raise SystemExit(main())
