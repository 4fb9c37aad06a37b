"""Handwritten digits: what finding the learning rate brings, and what cycling it brings on top.

Run it with::

    pip install '.[bench]'
    python benchmarks/digits.py            # a minute or two
    python benchmarks/digits.py --quick    # fewer seeds, shorter trainings

and find in ``build/benchmarks`` (or where ``--out`` says) ``digits.md``, the table; ``digits.png``, the range
test, the schedules and the learning curves; ``digits.json``, every number behind them.

1. ``lr_range_test`` with its defaults finds the range to cycle in, on the training images alone.
2. The same training then runs with every optimizer in ``ARMS``. With one seed, all of them start from the
   same weights and see the same batches in the same order, so differences are paired. Seeds change weights
   and order; the split of the 1797 images (half for training, half for the test, stratified) stays.
3. Each number of epochs in the table is a training of its own, its schedule laid out to end there.
   Those of less than ten epochs have a single triangle, so Triangular2 is Triangular there.

The data comes with scikit-learn. The same command gives the same table on the same machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from digits_picture import Trace, picture
from harness import add_out, as_json, command_line, environment, markdown_table, progress, run_benchmark, write_results
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.data import DataLoader, TensorDataset

from cyclic_optim import (
    CyclicSGD,
    ExpRange,
    LRRangeTest,
    OneCycle,
    Policy,
    Triangular,
    Triangular2,
    lr_range_test,
    supervised_step,
)

BATCH_SIZE = 64
COMMON: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}  # most policies cycle the momentum

Loader = DataLoader[tuple[Tensor, ...]]
Ends = tuple[float, float]  # of a cycle: base_lr, max_lr


# -- the data, the network, the training ------------------------------------------------------------


class Data(NamedTuple):
    train: TensorDataset
    test: TensorDataset


def load_data() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.5, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.tensor, split)
    std, mean = torch.std_mean(train_images)

    def dataset(images: Tensor, labels: Tensor) -> TensorDataset:
        return TensorDataset(((images - mean) / std).float().view(-1, 1, 8, 8), labels)

    return Data(dataset(train_images, train_labels), dataset(test_images, test_labels))


def make_loader(data: Data, seed: int) -> Loader:
    order = torch.Generator().manual_seed(seed)
    return DataLoader(data.train, BATCH_SIZE, shuffle=True, drop_last=True, generator=order)


def make_model(seed: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    torch.manual_seed(seed)
    features = [*block(1, 8), *block(8, 16), nn.MaxPool2d(2), *block(16, 16), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(64, 10))


def train_epoch(model: nn.Module, optimizer: Optimizer, loader: Loader) -> None:
    """The classic loop, with no scheduler.step(): CyclicSGD moves its rate and momentum by itself."""
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean loss, and accuracy in percent."""
    model.eval()
    images, labels = dataset.tensors
    output = model(images)
    return F.cross_entropy(output, labels).item(), 100 * (output.argmax(1) == labels).float().mean().item()


# -- the LR range test ------------------------------------------------------------------------------


def range_test(data: Data, seed: int = 0) -> LRRangeTest:
    model = make_model(seed)
    optimizer = CyclicSGD(model.parameters(), lr=1.0, **COMMON)  # the range test sets the rate
    step = supervised_step(model, nn.CrossEntropyLoss(), make_loader(data, seed))
    return lr_range_test(model, optimizer, step, progress=False)


# -- the optimizers compared ------------------------------------------------------------------------


class Plan(NamedTuple):
    """How long a training is, and the range its rate may use."""

    epochs: int
    steps_per_epoch: int
    base_lr: float
    max_lr: float

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def triangle(self) -> dict[str, Any]:
        """Half a cycle is 2.5 epochs (1 in the shortest training), so that it ends where a cycle does."""
        half_cycle = self.total_steps // (2 * max(1, self.epochs // 5))
        return {"step_size_up": half_cycle, "div_factor": self.max_lr / self.base_lr}

    @property
    def gamma(self) -> float:
        """Brings the triangles of ExpRange down to a tenth of their height by the end."""
        return 0.1 ** (1 / self.total_steps)


Params = Iterator[nn.Parameter]


class Arm(NamedTuple):
    """How to build the optimizer, and the scheduler that torch's optimizer needs beside it."""

    optimizer: Callable[[Params, Plan], Optimizer]
    scheduler: Callable[[Optimizer, Plan], LRScheduler | None] = lambda optimizer, plan: None

    def build(self, params: Params, plan: Plan) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = self.optimizer(params, plan)
        return optimizer, self.scheduler(optimizer, plan)


def sgd(params: Params, plan: Plan) -> SGD:
    return SGD(params, lr=plan.max_lr, **COMMON)


def cyclic(policy: Callable[[Plan], Policy]) -> Arm:
    return Arm(lambda params, plan: CyclicSGD(params, lr=plan.max_lr, **COMMON, policy=policy(plan)))


UNTUNED, CONSTANT, STEP_DECAY = "SGD untuned, lr=1e-3", "SGD, found lr", "SGD, found lr, StepLR"
ARMS = {
    UNTUNED: Arm(lambda params, plan: SGD(params, lr=1e-3, **COMMON)),
    CONSTANT: Arm(sgd),
    STEP_DECAY: Arm(sgd, lambda optimizer, plan: StepLR(optimizer, step_size=math.ceil(plan.epochs / 3))),
    "CyclicSGD, Triangular": cyclic(lambda plan: Triangular(**plan.triangle)),
    "CyclicSGD, Triangular2": cyclic(lambda plan: Triangular2(**plan.triangle)),
    "CyclicSGD, ExpRange": cyclic(lambda plan: ExpRange(**plan.triangle, gamma=plan.gamma)),
    "CyclicSGD, OneCycle": cyclic(lambda plan: OneCycle(total_steps=plan.total_steps)),
}


class Run(NamedTuple):
    """One training. The curves have a value before it and one after each epoch."""

    arm: str
    epochs: int
    seed: int
    test_loss: list[float]
    test_accuracy: list[float]
    train_loss: float


Runs = dict[tuple[str, int], list[Run]]  # by arm and number of epochs: a run for every seed


def train(arm: str, epochs: int, seed: int, data: Data, ends: Ends) -> Run:
    model, loader = make_model(seed), make_loader(data, seed)
    optimizer, scheduler = ARMS[arm].build(model.parameters(), Plan(epochs, len(loader), *ends))
    measured = [evaluate(model, data.test)]
    for _ in range(epochs):
        train_epoch(model, optimizer, loader)
        if scheduler:
            scheduler.step()
        measured.append(evaluate(model, data.test))
    losses, accuracies = map(list, zip(*measured, strict=True))
    return Run(arm, epochs, seed, losses, accuracies, train_loss=evaluate(model, data.train)[0])


def no_params() -> Params:
    return iter([nn.Parameter(torch.zeros(1))])


def trace(arm: str, plan: Plan) -> Trace:
    """The schedule, read as any logger would: the param groups always hold the values in force."""
    optimizer, scheduler = ARMS[arm].build(no_params(), plan)
    epochs, rates, momenta = [], [], []
    for step in range(plan.total_steps):
        if scheduler and step and step % plan.steps_per_epoch == 0:
            scheduler.step()
        epochs.append(step / plan.steps_per_epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
    return epochs, rates, momenta


# -- the table --------------------------------------------------------------------------------------


def report(runs: Runs, ends: Ends, command: str) -> str:
    *_, longest = budgets = sorted({epochs for _, epochs in runs})
    columns = [f"{epochs} epochs" for epochs in budgets]
    header = ["test accuracy, %", *columns, f"test loss ({longest})", f"train loss ({longest})"]
    cyclic_arms = [arm for arm in ARMS if arm.startswith("CyclicSGD")]

    def scores(arm: str) -> list[str]:
        ends = [[run.test_accuracy[-1] for run in runs[arm, epochs]] for epochs in budgets]
        losses = [[run.test_loss[-1] for run in runs[arm, longest]], [run.train_loss for run in runs[arm, longest]]]
        return [arm, *(mean_and_std(end, 2) for end in ends), *(mean_and_std(loss, 4) for loss in losses)]

    def gains(baseline: str) -> str:
        rows = [[arm, *(paired(runs[arm, n], runs[baseline, n]) for n in budgets)] for arm in cyclic_arms]
        return markdown_table([f"against {baseline}", *columns], rows)

    return f"""\
`{command}`

Range test: base lr {ends[0]:.2g}, max lr {ends[1]:.2g}. Test accuracy after trainings of so many
epochs, and the losses that the longest end with; mean ± standard deviation over {len(runs[UNTUNED, longest])} seeds:

{markdown_table(header, [scores(arm) for arm in ARMS])}

What cycling adds to the found learning rate, in points of test accuracy, paired by seed; in parentheses
the number of seeds in which it is ahead, equal, behind:

{gains(CONSTANT)}

{gains(STEP_DECAY)}
"""


def mean_and_std(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def paired(ours: list[Run], theirs: list[Run]) -> str:
    gains = [our.test_accuracy[-1] - their.test_accuracy[-1] for our, their in zip(ours, theirs, strict=True)]
    ahead, behind = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return f"{statistics.mean(gains):+.2f} ({ahead}, {len(gains) - ahead - behind}, {behind})"


# -- running it -------------------------------------------------------------------------------------


def experiment(out: Path, seeds: range, budgets: list[int]) -> None:
    torch.set_num_threads(1)  # the tensors are tiny; and the table must not depend on the number of cores
    out.mkdir(parents=True, exist_ok=True)
    started, command = time.perf_counter(), command_line(__file__)
    data = load_data()
    ends = (found := range_test(data)).suggest()
    print(found, flush=True)
    runs: Runs = {(arm, epochs): [] for epochs in budgets for arm in ARMS}
    for seed, (arm, epochs) in progress([(seed, key) for seed in seeds for key in runs], label="training"):
        runs[arm, epochs].append(train(arm, epochs, seed, data, ends))
    plan = Plan(budgets[-1], len(make_loader(data, seed=0)), *ends)
    curves = {arm: [run.test_accuracy for run in runs[arm, plan.epochs]] for arm in ARMS}
    text, image = report(runs, ends, command), picture(found, {arm: trace(arm, plan) for arm in ARMS}, curves)
    record = {
        "command": command,
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "configuration": configuration(plan, seeds, budgets),
        "range_test": {"base_lr": ends[0], "max_lr": ends[1], **vars(found), "smoothed": found.smoothed},
        "runs": [run._asdict() for same in runs.values() for run in same],
    }
    write_results(out, {"digits.json": as_json(record), "digits.md": text.encode(), "digits.png": image})
    print(f"\n{text}\n{record['seconds']} seconds; results in {out}")


def configuration(plan: Plan, seeds: range, budgets: list[int]) -> dict[str, Any]:
    optimizers = {arm: ARMS[arm].build(no_params(), plan)[0] for arm in ARMS}
    return {
        "seeds": list(seeds),
        "epochs": budgets,
        "batch_size": BATCH_SIZE,
        "steps_per_epoch": plan.steps_per_epoch,
        **COMMON,
        "policies_of_longest": {arm: repr(getattr(made, "policy", None)) for arm, made in optimizers.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds and 10 epochs, not 5 and 20")
    add_out(parser)
    options = parser.parse_args()
    seeds, budgets = (range(2), [2, 5, 10]) if options.quick else (range(5), [2, 5, 10, 20])
    return run_benchmark(lambda: experiment(options.out, seeds, budgets), needs=("sklearn", "matplotlib"))


if __name__ == "__main__":
    raise SystemExit(main())
