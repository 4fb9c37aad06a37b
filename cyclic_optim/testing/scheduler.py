"""What a schedule has to hold, as named checks, put to a scheduler beside an optimizer: torch's own, or a user's."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from ..rules import whole
from .checks import Check, Finder, checks_of, parametrized, run_all

#: The rates of the two param groups.
RATES = (0.1, 0.02)
#: Forms that differ only in rounding are this close.
TOLERANCE = 1e-9

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
MakeScheduler = Callable[..., Any]

SGD_WITH_MOMENTUM = partial(SGD, momentum=0.9)

_check_steps = whole(2)["rule"]


def check_schedule(
    make: MakeScheduler,
    *,
    optimizer: MakeOptimizer = SGD_WITH_MOMENTUM,
    steps: int = 30,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Run all checks of :func:`schedule_checks` on a scheduler, and report all that fail at once.

    It is stepped once after every step of an optimizer of two param groups, with rates of 0.1 and 0.02. A scheduler
    that takes a metric is told 1.0.

    Args:
        make: ``make(optimizer)`` builds the scheduler. If it takes ``last_epoch``, too (as ``partial(StepLR,
            step_size=3)`` does), so that a run can be resumed by it, that is checked.
        optimizer: ``optimizer(param_groups)`` builds what the scheduler schedules; by default SGD with momentum.
        steps: how many steps to take, at least 2; more than the schedule is long, if it should go on after its end.
        expected_failed_checks: the reason, by the name of each check that is expected to fail. One that passes fails.

    Raises:
        AssertionError: some checks failed; the message has a line for each, with its name, the rule, step and values,
            and what to do.
        ValueError, TypeError: ``steps`` breaks its rule, or ``expected_failed_checks`` names no check.

    Example:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> from cyclic_optim.testing import check_schedule
        >>> expected = {"counts_no_skipped_step": "no gradient overflow is seen", "takes_a_group_later": "chained"}
        >>> check_schedule(lambda optimizer: StepLR(optimizer, step_size=10), expected_failed_checks=expected)

    An optimizer that owns its schedule passes them all, beside the scheduler that only reports:

        >>> from functools import partial
        >>> from cyclic_optim import CyclicSGD, OneCycle
        >>> own = partial(CyclicSGD, momentum=0.9, policy=OneCycle(total_steps=20))
        >>> check_schedule(lambda optimizer: optimizer.passive_scheduler(), optimizer=own)
    """
    run_all(_checks(make, optimizer, steps), expected_failed_checks)


def schedule_checks(
    make: MakeScheduler,
    *,
    optimizer: MakeOptimizer = SGD_WITH_MOMENTUM,
    steps: int = 30,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> list[Any]:
    """The checks of a scheduler, to parametrize a test: ``pytest.mark.parametrize("check", schedule_checks(...))``.

    Each is called without arguments; its name is the test's id. Those that are expected to fail are strict xfails.

    Args:
        make, optimizer, steps, expected_failed_checks: as for :func:`check_schedule`.

    Raises:
        ValueError, TypeError: as for :func:`check_schedule`.

    Example:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> from cyclic_optim.testing import schedule_checks
        >>> [check.__name__ for check in schedule_checks(lambda optimizer: StepLR(optimizer, 10))][:2]
        ['has_values_at_any_step', 'resumes_anywhere']
    """
    return parametrized(_checks(make, optimizer, steps), expected_failed_checks)


def _checks(make: MakeScheduler, optimizer: MakeOptimizer, steps: int) -> list[Check]:
    begun = Trial(make, optimizer, _check_steps("steps", steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = type(begun.begin().scheduler).__name__
    return checks_of(map(_quietly, CHECKS), name, begun)


def _quietly(finder: Finder) -> Finder:
    """The same without warnings: torch's schedulers warn of what the checks do on purpose."""

    @wraps(finder)
    def quiet(trial: Trial) -> Iterator[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from finder(trial)

    return quiet


# -- training

#: Learning rate and momentum of each group.
Moment = list[tuple[float, float | None]]


@dataclass
class Training:
    """An optimizer, and the scheduler beside it."""

    optimizer: Any
    scheduler: Any

    def update(self) -> None:
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        self.optimizer.step()

    def listens(self) -> bool:
        """Whether the scheduler takes a metric, as ReduceLROnPlateau does."""
        return "metrics" in inspect.signature(self.scheduler.step).parameters

    def advance(self) -> None:
        """The scheduler's step."""
        self.scheduler.step(*([1.0] if self.listens() else []))

    def moment(self) -> Moment:
        return [(float(group["lr"]), _momentum(group)) for group in self.optimizer.param_groups]

    def trace(self, steps: int) -> Iterator[Moment]:
        """The values of this many steps."""
        for _ in range(steps):
            yield self.moment()
            self.update()
            self.advance()

    def load(self, saved: tuple[Any, Any]) -> None:
        optimizer, scheduler = copy.deepcopy(saved)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)

    def saved(self) -> tuple[Any, Any]:
        return copy.deepcopy((self.optimizer.state_dict(), self.scheduler.state_dict()))


def _momentum(group: dict[str, Any]) -> float | None:
    value = group["betas"][0] if "betas" in group else group.get("momentum")
    return None if value is None else float(value)


@dataclass(frozen=True)
class Trial:
    """What is put to the checks."""

    make: MakeScheduler
    make_optimizer: MakeOptimizer
    steps: int

    def begin(self) -> Training:
        params = [torch.nn.Parameter(torch.ones(2, 3)) for _ in RATES]
        groups = [{"params": [param], "lr": rate} for param, rate in zip(params, RATES, strict=True)]
        optimizer = self.make_optimizer(groups)
        return Training(optimizer, self.make(optimizer))

    def trace(self) -> list[Moment]:
        """The values of an uninterrupted run, up to the first step that the scheduler refuses."""
        moments: list[Moment] = []
        with suppress(Exception):
            moments.extend(self.begin().trace(self.steps))
        return moments


def _is_close(one: Moment, other: Moment) -> bool:
    pairs = [pair for groups in zip(one, other, strict=True) for pair in zip(*groups, strict=True)]
    return all(a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=TOLERANCE)) for a, b in pairs)


# -- the checks


def has_values_at_any_step(trial: Trial) -> Iterator[str]:
    """Values, finite and >= 0, at every step, also after the end of the schedule.

    Take no step after the last one, or hold the last value, as in min(step, total_steps).
    """
    training = trial.begin()
    for step in range(trial.steps):
        moment = training.moment()
        if not all(0 <= value < math.inf for group in moment for value in group if value is not None):
            yield f"(lr, momentum) = {moment} at step {step}"
        training.update()
        try:
            training.advance()
        except Exception as error:
            yield f"{type(error).__name__} at step {step + 1}: {error},"
            return


def resumes_anywhere(trial: Trial) -> Iterator[str]:
    """The same values after saving at any step and going on with a fresh optimizer and scheduler.

    Compute the rate from the step and the initial rates; keep all that it needs in the state dict.
    """
    expected = trial.trace()
    training = trial.begin()
    for cut in range(len(expected) - 1):
        resumed = trial.begin()
        resumed.load(training.saved())
        for step, moment in enumerate(resumed.trace(min(3, len(expected) - 1 - cut)), cut):
            if moment != expected[step]:
                yield f"{moment} instead of {expected[step]} at step {step}, saved and loaded at step {cut},"
        training.update()
        training.advance()


def resumes_from_last_epoch(trial: Trial) -> Iterator[str]:
    """The same values when the optimizer is loaded and the scheduler is built with ``last_epoch``, the step before.

    Compute the rate from last_epoch and initial_lr; or resume from both state dicts.
    """
    if "last_epoch" not in inspect.signature(trial.make).parameters:
        return
    expected = trial.trace()
    training = trial.begin()
    for cut in range(1, len(expected) - 1):
        training.update()
        training.advance()
        optimizer = trial.begin().optimizer
        optimizer.load_state_dict(training.saved()[0])
        resumed = Training(optimizer, trial.make(optimizer, last_epoch=cut - 1))
        for step, moment in enumerate(resumed.trace(min(3, len(expected) - 1 - cut)), cut):
            if not _is_close(moment, expected[step]):
                yield f"{moment} instead of {expected[step]} at step {step}, with last_epoch={cut - 1} at step {cut},"


def loads_the_same_dict_again(trial: Trial) -> Iterator[str]:
    """A state dict that loading leaves as it is.

    Copy the dict in load_state_dict; load a copy.deepcopy of it.
    """
    training = trial.begin()
    training.update()
    training.advance()
    saved = training.scheduler.state_dict()
    before = copy.deepcopy(saved)
    trial.begin().scheduler.load_state_dict(saved)
    if saved.keys() != before.keys():
        yield f"a dict without {sorted(before.keys() - saved.keys())} after loading at step 1"
    trial.begin().scheduler.load_state_dict(saved)


def is_left_as_it_was(trial: Trial) -> Iterator[str]:
    """Groups and a scheduler that asking (``get_lr``, ``get_last_lr``, ``state_dict``) does not change.

    Write in step alone; ask get_last_lr.
    """
    training = trial.begin()
    for step in range(len(trial.trace()) - 1):
        before = training.optimizer.state_dict()["param_groups"]
        for group in training.optimizer.param_groups:  # edited by hand, as values that are written again show nothing
            group.update({"lr": 0.5} | ({"momentum": 0.25} if "momentum" in group else {}))
        edited, own = training.moment(), repr(training.scheduler.state_dict())
        for ask in ("get_last_lr", "get_lr", "state_dict"):
            with suppress(NotImplementedError, AttributeError):  # not all have get_lr
                getattr(training.scheduler, ask)()
            if training.moment() != edited or repr(training.scheduler.state_dict()) != own:
                yield f"{training.moment()} instead of {edited} after {ask}() at step {step}"
        for group, values in zip(training.optimizer.param_groups, before, strict=True):
            group.update({key: value for key, value in values.items() if key != "params"})
        training.update()
        training.advance()


def reaches_a_step_at_once(trial: Trial) -> Iterator[str]:
    """The same values from ``step(n)`` of a fresh scheduler as from n steps, where step takes a number.

    Give a closed form in n. To move to a step, load a state dict of it.
    """
    if next(iter(inspect.signature(trial.begin().scheduler.step).parameters), None) != "epoch":
        return
    for step, expected in enumerate(trial.trace()):
        training = trial.begin()
        training.update()
        training.scheduler.step(step)
        if not _is_close(training.moment(), expected):
            yield f"{training.moment()} instead of {expected} at step {step}"


def counts_no_skipped_step(trial: Trial) -> Iterator[str]:
    """Nothing changed by a step that GradScaler skips (gradient overflow).

    Call scheduler.step() only if scaler.get_scale() did not fall, or use an optimizer that owns its schedule.
    """
    expected, applied = trial.trace(), 0
    training = trial.begin()
    if training.listens():  # it counts reports
        return
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(len(expected) - 1):
        overflows = step % 2 == 1
        scaler.scale(torch.ones(()))  # creates the scale
        for group in training.optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, math.inf if overflows else 1.0)
        scaler.step(training.optimizer)
        scaler.update()
        training.advance()
        applied += not overflows
        if training.moment() != expected[applied]:
            yield f"{training.moment()} instead of {expected[applied]} after {applied} of {step + 1} steps"


def keeps_the_ratio_of_groups(trial: Trial) -> Iterator[str]:
    """Rates of two param groups in the same ratio at every step.

    Give absolute rates (max_lr, base_lr, eta_min) as a list, one for each group.
    """
    for step, ((first, _), (second, _)) in enumerate(trial.trace()):
        if not math.isclose(first * RATES[1], second * RATES[0], rel_tol=TOLERANCE):
            yield f"lr = {first} and {second} at step {step}, of groups with lr = {RATES[0]} and {RATES[1]},"


def takes_a_group_later(trial: Trial) -> Iterator[str]:
    """A param group that is added later, with the peak of another one, to have the other's rate from then on.

    Add all groups before the scheduler is built.
    """
    count, training = len(trial.trace()), trial.begin()
    for step in range(count - 1):
        if step == count // 3:
            training.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 3))], "lr": RATES[0]})
        training.update()
        training.advance()
        first, _, *later = training.moment()
        if any(not _is_close([first], [added]) for added in later):
            yield f"{later[0]} instead of {first} at step {step + 1}"


def goes_on_in_copies(trial: Trial) -> Iterator[str]:
    """Copies and pickles of optimizer and scheduler together that go on alike.

    Keep plain data in the scheduler, and no lambda.
    """
    expected = trial.trace()
    for copied in (copy.deepcopy, _pickled):
        training = trial.begin()
        training.update()
        training.advance()
        twin = Training(*copied((training.optimizer, training.scheduler)))
        for step, moment in enumerate(twin.trace(len(expected) - 2), 1):
            if moment != expected[step]:
                yield f"{moment} instead of {expected[step]} at step {step} in a {copied.__name__.strip('_')}"


def _pickled(both: Any) -> Any:
    return pickle.loads(pickle.dumps(both))


CHECKS = [
    has_values_at_any_step,
    resumes_anywhere,
    resumes_from_last_epoch,
    loads_the_same_dict_again,
    is_left_as_it_was,
    reaches_a_step_at_once,
    counts_no_skipped_step,
    keeps_the_ratio_of_groups,
    takes_a_group_later,
    goes_on_in_copies,
]
