"""One training of ``evidence.py``, and one range test: the grain at which results are kept."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from evidence_arms import ARMS, COOLDOWN, KINDS, PUBLISHED, REPRODUCTION, Arm, Plan
from evidence_tasks import TASKS, Data, Task, accuracy, batch_at, data_of, loss_of, made
from torch import Tensor, nn

from cyclic_optim import LRRangeTest, NoSuggestionError, WarmupStableDecay, lr_range_test


class Training(NamedTuple):
    """What determines a training, and the name that it is kept under."""

    task: str
    arm: str
    lr: float
    div_factor: float
    epochs: tuple[int, ...]  # after which it is evaluated, the last of them its length
    seed: int

    @property
    def size(self) -> float:
        """About how long it takes."""
        return self.epochs[-1] * TASKS[self.task].steps_per_epoch


class Outcome(NamedTuple):
    """Accuracy in percent, at each of the training's epochs."""

    validation: list[float]
    test: list[float]


class Run:
    """A training under way. Which batch a step sees depends on the seed and the step alone."""

    def __init__(self, task: Task, data: Data, seed: int, model: nn.Module, optimizer: Any) -> None:
        self.task, self.data, self.seed, self.model, self.optimizer = task, data, seed, model, optimizer
        self.step = 0

    def advance(self, step: int) -> None:
        """The classic loop, up to this step. What diverged stays as it is."""
        self.model.train()
        steps, self.step = range(self.step, step), step
        for now in steps:
            self.optimizer.zero_grad()
            loss = loss_of(self.model, batch_at(self.data, self.task, self.seed, now))
            loss.backward()
            self.optimizer.step()
            # Once an epoch: reading the loss synchronizes a GPU with the host.
            if now % self.task.steps_per_epoch == 0 and not math.isfinite(loss.item()):
                return

    def branch(self) -> Run:
        """A copy of model and optimizer, to go on from here without changing this one."""
        other = Run(self.task, self.data, self.seed, *copy.deepcopy((self.model, self.optimizer)))
        other.step = self.step
        return other

    def cooled_down(self, step: int) -> Run:
        """What this run is at that step if its last fifth cools down. It has to stand before that."""
        steps = step // COOLDOWN
        self.advance(step - steps)
        branch = self.branch()
        branch.optimizer.reschedule(policy=WarmupStableDecay(steps, warmup=0, decay=steps, shape="sqrt"), step=0)
        branch.advance(step)
        return branch

    def accuracies(self) -> tuple[float, float]:
        """On the validation and the test part."""
        with self.evaluated():
            return accuracy(self.model, self.data.validation), accuracy(self.model, self.data.test)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Evaluation mode, and back. A schedule-free optimizer has other weights there, which batch norm must see."""
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()
            if any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules()):
                with torch.no_grad():
                    for step in range(self.step - self.task.steps_per_epoch, self.step):
                        self.model(batch_at(self.data, self.task, self.seed, step)[0])
        self.model.eval()
        yield
        self.model.train()
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()


def arm_of(name: str) -> Arm:
    return REPRODUCTION if name == PUBLISHED else ARMS[name]


def train(training: Training) -> Outcome:
    task, arm = TASKS[training.task], arm_of(training.arm)
    data = data_of(training.task, training.seed)  # before the model, whose weights are drawn from global numbers
    model = made(task, training.seed)
    total_steps = training.epochs[-1] * task.steps_per_epoch
    plan = Plan(training.lr, total_steps, task.steps_per_epoch, training.div_factor)
    run = Run(task, data, training.seed, model, arm.optimizer(model.parameters(), plan))
    found = [accuracies_at(run, arm, epoch * task.steps_per_epoch) for epoch in training.epochs]
    return Outcome(*map(list, zip(*found, strict=True)))


def accuracies_at(run: Run, arm: Arm, step: int) -> tuple[float, float]:
    if arm.is_cooled:
        return run.cooled_down(step).accuracies()
    run.advance(step)
    return run.accuracies()


# -- the range test ---------------------------------------------------------------------------------


class Question(NamedTuple):
    task: str
    kind: str
    seed: int


class Range(NamedTuple):
    """What the range tests of the seeds suggest, and the medians of it."""

    base_lr: float
    max_lr: float
    suggested: list[tuple[float, float]]

    @property
    def div_factor(self) -> float:
        return max(1.0, self.max_lr / self.base_lr)


def suggested(question: Question) -> tuple[float, float]:
    """The ends that the range test with its defaults suggests; where its rates do not reach far enough, with higher."""
    task, arm = TASKS[question.task], ARMS[KINDS[question.kind]]
    data = data_of(question.task, question.seed)

    def found(end_lr: float) -> LRRangeTest:
        model, steps = made(task, question.seed), itertools.count()
        optimizer = arm.optimizer(model.parameters(), Plan(lr=1.0, total_steps=1, steps_per_epoch=1, div_factor=1.0))

        def step() -> Tensor:
            loss = loss_of(model, batch_at(data, task, question.seed, next(steps)))
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
