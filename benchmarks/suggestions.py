"""Is the suggested range any good? Trainings below it, in it and above it; and where the field's rules would land.

Run it with::

    pip install 'cyclic_optim[bench]'
    python benchmarks/suggestions.py            # a minute or two
    python benchmarks/suggestions.py --quick    # 2 seeds, not 8

and find in ``benchmarks/results`` (or where ``--out`` says) ``suggestions.md``, the tables, and ``suggestions.json``,
every number behind them.

1. ``lr_range_test`` with its defaults runs on three datasets of scikit-learn, once for each seed, and suggests
   ``(base_lr, max_lr)``. The field's rules (``suggest_lr``) read the same smoothed curve and, since where a curve
   is lowest depends on its average, also the same losses averaged, cut and ended as in their packages.
2. A short training follows at ``base_lr``, at 0.1, 1, 3 and 10 times ``max_lr``, and in triangular cycles between
   the two. Seeds change weights and batches; the split in two halves stays.
3. What was to be found is measured without a range test: the same training at rates four to a decade (``SCALE``).
   A rate works if the loss comes ``ENOUGH`` of the way that it comes at the best of them; one above the best
   diverges if it ends no lower than it began. On a log scale between the lowest that works (0) and the first that
   diverges (1), each suggestion has its place. Longer trainings can use lower rates.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import Data, Loader, evaluate, load_data, train_epoch
from digits import make_model as convolutional
from harness import RESULTS, as_json, command_line, environment, markdown_table, progress, run_benchmark, write_results
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cyclic_optim import CyclicSGD, LRRangeTest, NoSuggestionError, Policy, lr_range_test, supervised_step
from cyclic_optim.range_test.rates import RULES

MOMENTUM = 0.9
ENOUGH = 0.95
BLOWN_UP = 1e30  # a loss that is NaN or infinite, neither of which JSON has
SCALE = [10 ** (exponent / 4) for exponent in range(-16, 5)]
TIMES_MAX_LR = {"0.1 max_lr": 0.1, "max_lr": 1.0, "3 max_lr": 3.0, "10 max_lr": 10.0}
# Weight of the past in the average, whether its start at 0 is corrected, the multiple of the lowest loss to stop at,
# and the steps left out at both ends (on top of those that the rule itself leaves out).
FASTAI, LIGHTNING, TORCH_LR_FINDER = (0.98, True, 4, 10, 5), (0.98, True, 4, 0, 0), (0.95, False, 5, 0, 0)
PACKAGES = dict.fromkeys(RULES, FASTAI) | {"torch_lr_finder": TORCH_LR_FINDER, "lightning": LIGHTNING}
CYCLES = "cycles, base_lr to max_lr"


class Task(NamedTuple):
    data: Data
    make_model: Callable[[int], nn.Module]
    batch_size: int
    epochs: int

    def loader(self, seed: int) -> Loader:
        order = torch.Generator().manual_seed(seed)
        return DataLoader(self.data.train, self.batch_size, shuffle=True, drop_last=True, generator=order)


class End(NamedTuple):
    lr: float
    train_loss: float
    test_accuracy: float


def load_tasks() -> dict[str, Task]:
    from sklearn.datasets import load_breast_cancer, load_wine

    return {
        "digits": Task(load_data(), convolutional, batch_size=64, epochs=4),
        "breast cancer": Task(standardized(load_breast_cancer), partial(perceptron, 30, 2), batch_size=16, epochs=8),
        "wine": Task(standardized(load_wine), partial(perceptron, 13, 3), batch_size=8, epochs=10),
    }


def standardized(load: Callable[..., Any]) -> Data:
    from sklearn.model_selection import train_test_split

    features, labels = load(return_X_y=True)
    split = train_test_split(features, labels, test_size=0.5, stratify=labels, random_state=0)
    train, test, train_labels, test_labels = map(torch.tensor, split)
    std, mean = torch.std_mean(train, dim=0)
    train, test = (((half - mean) / std).float() for half in (train, test))
    return Data(TensorDataset(train, train_labels), TensorDataset(test, test_labels))


def perceptron(inputs: int, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes))


def range_test(task: Task, seed: int, **options: Any) -> LRRangeTest:
    model = task.make_model(seed)
    optimizer = CyclicSGD(model.parameters(), lr=1.0, momentum=MOMENTUM)
    step = supervised_step(model, nn.CrossEntropyLoss(), task.loader(seed))
    return lr_range_test(model, optimizer, step, progress=False, **options)


def as_in_package(rule: str, curve: LRRangeTest) -> float:
    past, corrected, multiple, first, last = PACKAGES[rule]
    average = 0.0 if corrected else curve.losses[0]
    averages: list[float] = []
    for step, loss in enumerate(curve.finite_losses, start=1):
        average = past * average + (1 - past) * loss
        averages.append(average / (1 - past**step) if corrected else average)
        if averages[-1] > multiple * min(averages):
            break
    kept = slice(first, len(averages) - last)
    return RULES[rule](curve.lrs[kept], averages[kept])


def train(task: Task, seed: int, lr: float, policy: Policy | None = None) -> End:
    model, loader = task.make_model(seed), task.loader(seed)
    optimizer = CyclicSGD(model.parameters(), lr=lr, momentum=MOMENTUM, policy=policy)
    for _ in range(task.epochs):
        train_epoch(model, optimizer, loader)
    loss, accuracy = evaluate(model, task.data.train)[0], evaluate(model, task.data.test)[1]
    return End(lr, loss if math.isfinite(loss) else BLOWN_UP, accuracy)


class Truth(NamedTuple):
    """What the rates of the scale lead to (medians over the seeds)."""

    initial_loss: float
    losses: list[float]
    best: float
    works: float
    diverges: float

    def place(self, lr: float) -> float:
        return math.log(lr / self.works) / math.log(self.diverges / self.works)


def measure(task: Task, seeds: range) -> Truth:
    initial = statistics.median(evaluate(task.make_model(seed), task.data.train)[0] for seed in seeds)
    losses = [statistics.median(train(task, seed, lr).train_loss for seed in seeds) for lr in SCALE]
    best = losses.index(min(losses))
    enough = initial - ENOUGH * (initial - losses[best])
    works = next(lr for lr, loss in zip(SCALE, losses, strict=True) if loss <= enough)
    diverges = next(lr for lr, loss in zip(SCALE[best:], losses[best:], strict=True) if loss >= initial)
    return Truth(initial, losses, SCALE[best], works, diverges)


class Found(NamedTuple):
    """The suggestions of one seed, and what trainings with the library's came to; none where it makes none."""

    rates: dict[str, float]
    ends: dict[str, End]


def find(task: Task, seed: int) -> Found:
    curve, to_the_end = range_test(task, seed), range_test(task, seed, divergence_factor=math.inf)
    rates = {f"`{rule}`": curve.suggest_lr(rule) for rule in RULES}
    rates |= {f"`{rule}`, as in its package": as_in_package(rule, to_the_end) for rule in RULES}
    try:
        base_lr, max_lr = curve.suggest()
    except NoSuggestionError:
        return Found(rates, {})
    ends = {"base_lr": train(task, seed, base_lr)}
    ends |= {name: train(task, seed, times * max_lr) for name, times in TIMES_MAX_LR.items()}
    # Two cycles, whatever the number of steps.
    ends[CYCLES] = train(task, seed, **curve.triangular(task.epochs * len(task.loader(seed)) // 4))
    return Found({"**max_lr**": max_lr, "base_lr": base_lr} | rates, ends)


def trainings(truth: Truth, found: list[Found]) -> str:
    rows = []
    for name in ["base_lr", *TIMES_MAX_LR, CYCLES]:
        ends = [one.ends[name] for one in found if one.ends]
        rate = f"{statistics.geometric_mean(end.lr for end in ends):.2g}"
        median = f"{statistics.median(end.train_loss for end in ends):.3g}"
        accuracy = f"{statistics.mean(end.test_accuracy for end in ends):.1f}"
        diverged = sum(end.train_loss >= truth.initial_loss for end in ends)
        rows.append([name, rate, median, accuracy, f"{diverged} of {len(ends)}"])
    return markdown_table(["trained at", "lr", "train loss", "test accuracy, %", "diverged"], rows)


def suggestions(truths: dict[str, Truth], found: dict[str, list[Found]]) -> str:
    names = dict.fromkeys(name for ones in found.values() for one in ones for name in one.rates)
    rows = [[name, *(cell(truth, name, found[task]) for task, truth in truths.items())] for name in names]
    return markdown_table(["suggestion", *truths], rows)


def cell(truth: Truth, name: str, found: list[Found]) -> str:
    rates = [one.rates[name] for one in found if name in one.rates]
    if not rates:
        return "none"
    inside = sum(truth.works <= lr < truth.diverges for lr in rates)
    mean = statistics.geometric_mean(rates)
    return f"{mean:.2g}: {truth.place(mean):+.2f} ({inside} of {len(found)})"


def report(truths: dict[str, Truth], found: dict[str, list[Found]], command: str) -> str:
    text = f"""\
`{command}`

Suggested rates (geometric mean over {len(found["digits"])} seeds), their place (mean; below 0 is too low, above 1
diverges), and for how many seeds it is between the two. A rate is too low where a short training comes less than
{ENOUGH:.0%} of the way that it comes at the best constant rate. base_lr is where a cycle starts, and meant to be low.

{suggestions(truths, found)}
"""
    for name, truth in truths.items():
        text += f"""
**{name}**: loss {truth.initial_loss:.3g} at first; rates work from {truth.works:.2g}, are best at {truth.best:.2g}
(loss {min(truth.losses):.3g}), diverge from {truth.diverges:.2g}. Median train loss and mean test accuracy:

{trainings(truth, found[name]) if any(one.ends for one in found[name]) else "No suggestion."}
"""
    return text


def experiment(out: Path, seeds: range) -> None:
    torch.set_num_threads(1)  # the tensors are tiny; and the table must not depend on the number of cores
    out.mkdir(parents=True, exist_ok=True)
    started, command = time.perf_counter(), command_line(__file__)
    tasks = load_tasks()
    truths = {name: measure(tasks[name], seeds) for name in progress([*tasks], label="scale of rates")}
    found: dict[str, list[Found]] = {name: [] for name in tasks}
    for name, seed in progress([(name, seed) for name in tasks for seed in seeds], label="range tests"):
        found[name].append(find(tasks[name], seed))
    text = report(truths, found, command)
    sizes = {name: {"batch_size": task.batch_size, "epochs": task.epochs} for name, task in tasks.items()}
    record = {
        "command": command,
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "configuration": {"seeds": [*seeds], "momentum": MOMENTUM, "enough": ENOUGH, "scale": SCALE, "tasks": sizes},
        "truths": {name: truth._asdict() for name, truth in truths.items()},
        "found": {name: [one.rates for one in ones] for name, ones in found.items()},
        "trained": {
            name: [{at: end._asdict() for at, end in one.ends.items()} for one in found[name]] for name in tasks
        },
    }
    write_results(out, {"suggestions.json": as_json(record), "suggestions.md": text.encode()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, not 8")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write (default: benchmarks/results)")
    options = parser.parse_args()
    return run_benchmark(
        lambda: experiment(options.out, range(2 if options.quick else 8)), needs=("sklearn", "matplotlib")
    )


if __name__ == "__main__":
    raise SystemExit(main())
