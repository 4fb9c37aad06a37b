"""What holds of every optimizer that owns its schedule, as named checks: for optimizers of users' own."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..policies import Policy, describe
from ..policies.asked import values_at
from ..policies.cyclic import Triangular
from ..policies.decay import CosineDecay
from ..rules import shown
from ..scheduled import Scheduled
from ..slots import OWN_DECAY, slots_of
from .checks import Check, checks_of, one_line, parametrized, run_all
from .strategies import TrainingRun

#: Three groups of matrices, which every optimizer takes (Muon takes nothing else).
RUN = TrainingRun((((2, 3), (3, 1)), ((4, 4),), ((1, 2),)), torch.float32, seed=0)

Make = Callable[..., Any]


def check_optimizer(
    make: Make,
    *,
    policy: Policy | None = None,
    run: TrainingRun = RUN,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Run all checks of :func:`optimizer_checks` on an optimizer, and report all that fail at once.

    Args:
        make: a class, or a function that builds the optimizer: ``make(param_groups, policy=policy)``. It owns its
            schedule: ``CyclicSGD``, ``cyclic(YourOptimizer)``, or a subclass of one.
        policy: the schedule to train under; by default a short ``Triangular``, with momentum where there is a place.
        run: the parameters and gradients to train on; by default a few small matrices in float32.
        expected_failed_checks: the reason, by the name of each check that is expected to fail. One that passes fails.

    Raises:
        AssertionError: some checks failed; the message has a line for each, with its name, the rule, step and values,
            and what to do.
        TypeError: what ``make`` builds does not own its schedule.
        ValueError: ``expected_failed_checks`` names no check.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from cyclic_optim import CyclicSGD, cyclic
        >>> from cyclic_optim.testing import check_optimizer
        >>> check_optimizer(partial(CyclicSGD, momentum=0.9, nesterov=True))
        >>> check_optimizer(cyclic(torch.optim.RMSprop))
    """
    run_all(_checks(make, policy, run), expected_failed_checks)


def optimizer_checks(
    make: Make,
    *,
    policy: Policy | None = None,
    run: TrainingRun = RUN,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> list[Any]:
    """The checks of an optimizer, to parametrize a test: ``pytest.mark.parametrize("check", optimizer_checks(...))``.

    Each is called without arguments; its name is the test's id. Those that are expected to fail are strict xfails.

    Args:
        make, policy, run, expected_failed_checks: as for :func:`check_optimizer`.

    Raises:
        TypeError, ValueError: as for :func:`check_optimizer`.

    Example:
        >>> from cyclic_optim import CyclicAdamW
        >>> from cyclic_optim.testing import optimizer_checks
        >>> [check.__name__ for check in optimizer_checks(CyclicAdamW)][:2]
        ['resumes_anywhere', 'saves_plain_data']
    """
    return parametrized(_checks(make, policy, run), expected_failed_checks)


def _checks(make: Make, policy: Policy | None, run: TrainingRun) -> list[Check]:
    slot = slots_of(_built(make, run.param_groups(run.params()), None).defaults).momentum
    policy = Triangular(3, 2, cycle_momentum=slot is not None) if policy is None else policy
    name = getattr(make, "__name__", shown(make))  # a partial has none
    return checks_of(CHECKS, f"{name} with {one_line(policy)}", Trial(make, policy, run))


def _built(make: Make, groups: list[dict[str, Any]], policy: Policy | None) -> Any:
    cls: type = make if isinstance(make, type) else Scheduled
    if issubclass(cls, Optimizer) and not issubclass(cls, Scheduled):
        raise TypeError(f"need an optimizer that owns its schedule, got {cls.__name__}: pass cyclic({cls.__name__})")
    optimizer = make(groups, policy=policy)
    if not isinstance(optimizer, Scheduled):
        raise TypeError(
            f"need make(param_groups, policy=policy) to build an optimizer that owns its schedule, "
            f"got {type(optimizer).__name__}: build a cyclic({type(optimizer).__name__})"
        )
    return optimizer


# -- training


@dataclass
class Training:
    """An optimizer and the parameters that it trains."""

    run: TrainingRun
    params: list[list[torch.nn.Parameter]]
    optimizer: Any

    def train(self, steps: Iterable[int]) -> None:
        for step in steps:
            self.run.set_grads(self.params, step)
            self.optimizer.step()

    def weights(self) -> list[Tensor]:
        return [param.detach().clone() for group in self.params for param in group]

    def everything(self) -> Any:
        """What must be equal where two trainings are the same, or where nothing has changed."""
        policies = [policy and describe(policy) for policy in self.optimizer.policies]
        return copy.deepcopy({"weights": self.weights(), "policies": policies, **self.optimizer.state_dict()})


@dataclass(frozen=True)
class Trial:
    """What is put to the checks."""

    make: Make
    policy: Policy
    run: TrainingRun

    def begin(self, weights: list[Tensor] | None = None, options: list[dict[str, Any]] | None = None) -> Training:
        """A new training, with these weights and options of groups instead of the run's."""
        params = self.run.params()
        if weights is not None:
            with torch.no_grad():
                for param, weight in zip([param for group in params for param in group], weights, strict=True):
                    param.copy_(weight)
        run = self.run if options is None else replace(self.run, options=tuple(options))
        return Training(run, params, _built(self.make, run.param_groups(params), self.policy))


def _difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nests of data differ first, to the bit; None if nowhere."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        is_same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bytes(one), _bytes(other))
        return None if is_same else f"{where} = {one_line(one)} and {one_line(other)}"
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{where}[{key!r}]" if where else str(key), one[key], other[key]) for key in one]
    elif isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        is_same = type(one) is type(other) and (one == other or (one != one and other != other))
        return None if is_same else f"{where} = {one_line(one)} and {one_line(other)}"
    return next((found for place, a, b in pairs if (found := _difference(a, b, place)) is not None), None)


def _bytes(tensor: Tensor) -> Tensor:
    # As numbers NaN would differ from itself, and 0.0 be -0.0.
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _through_a_file(state_dict: Any, *, weights_only: bool = False) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


# -- checkpoints


def resumes_anywhere(trial: Trial) -> Iterator[str]:
    """The same bits after saving at any step and continuing in a fresh optimizer.

    Keep everything that the update needs in self.state and self.param_groups: nothing else is in the state dict.
    """
    for cut in range(trial.run.steps + 1):
        training = trial.begin()
        training.train(range(cut))
        resumed = trial.begin(training.weights())
        resumed.optimizer.load_state_dict(_through_a_file(training.optimizer.state_dict()))
        for step in range(cut, cut + 3):
            if found := _difference(training.everything(), resumed.everything()):
                yield f"{found} at step {step}, saved and loaded at step {cut},"
            training.train([step])
            resumed.train([step])


def saves_plain_data(trial: Trial) -> Iterator[str]:
    """A state dict that ``torch.load(weights_only=True)`` reads, unchanged.

    Hold tensors, numbers, strings, and lists, tuples or dicts of these in self.state and self.param_groups.
    """
    training = trial.begin()
    training.train(range(trial.run.steps))
    saved = training.optimizer.state_dict()
    if found := _difference(saved, _through_a_file(saved, weights_only=True)):
        yield f"{found}, saved and read at step {trial.run.steps},"


def loads_the_same_dict_again(trial: Trial) -> Iterator[str]:
    """A dict that loading does not change, and that shares no tensor with the optimizer.

    Copy in load_state_dict and __setstate__ what is changed there.
    """
    training = trial.begin()
    training.train(range(trial.run.steps))
    saved = _through_a_file(training.optimizer.state_dict())
    before = copy.deepcopy(saved)
    for times in ("once", "twice"):
        other = trial.begin()
        other.optimizer.load_state_dict(saved)
        other.train([trial.run.steps])
        if found := _difference(before, saved):
            yield f"{found} before and after loading {times}, and a step,"


# -- steps


def counts_no_skipped_step(trial: Trial) -> Iterator[str]:
    """Nothing changed by a step that GradScaler skips (gradient overflow); the others counted.

    Claim no _step_supports_amp_scaling, or look at self.found_inf before anything is written.
    """
    training = trial.begin()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    for step in range(trial.run.steps):
        training.run.set_grads(training.params, step)
        grads = [param.grad for group in training.params for param in group if param.grad is not None]
        grads = [grad for grad in grads if grad.numel()]
        scaler.scale(torch.ones(()))  # creates the scale
        for grad in grads:
            grad.mul_(scaler.get_scale())
        overflows = bool(grads) and step % 2 == 0
        if overflows:
            grads[-1].fill_(math.inf)
        if not grads:  # GradScaler takes no step without a gradient
            continue
        before, clocks = training.everything(), _clocks(training)
        scaler.step(training.optimizer)
        scaler.update()
        if overflows and (found := _difference(before, training.everything())):
            yield f"{found} before and after step {step}, which is skipped,"
        counted = [clock + (not overflows) for clock in clocks]
        if _clocks(training) != counted:
            yield f"clocks {_clocks(training)} instead of {counted} after step {step}"


def _clocks(training: Training) -> list[int]:
    return [group["schedule_step"] for group in training.optimizer.param_groups if "schedule_step" in group]


def moves_each_group_by_its_policy(trial: Trial) -> Iterator[str]:
    """In each group the values of its own policy and peak at every step; without a policy they stay.

    Hand the param groups on to the base class as they are, and write lr, momentum, betas and weight_decay nowhere.
    """
    schedules: list[dict[str, Any]] = [{}, {"policy": CosineDecay(4)}, {"policy": None}]
    options: list[dict[str, Any]] = [{"lr": 0.1 / (1 + i), **schedules[i % 3]} for i in range(len(trial.run.shapes))]
    training = trial.begin(options=options)
    first = training.optimizer.param_groups[0]
    late = torch.nn.Parameter(torch.ones(2, 3, dtype=trial.run.dtype))
    for step in range(trial.run.steps):
        yield from _off_schedule(training, [own.get("policy", trial.policy) for own in options], step)
        training.train([step])
    training.optimizer.add_param_group({"params": [late], "lr": 0.3})
    last = training.optimizer.param_groups[-1]
    if last.get("schedule_step") != first["schedule_step"]:
        yield f"schedule_step = {last.get('schedule_step')} in a group added at step {first['schedule_step']}"


def _off_schedule(training: Training, policies: list[Policy | None], step: int) -> Iterator[str]:
    """Values of groups that are not those of these policies at this step, with the run's rates as peaks."""
    slot = slots_of(training.optimizer.defaults).momentum
    for i, (group, policy) in enumerate(zip(training.optimizer.param_groups, policies, strict=True)):
        peak = training.run.options[i]["lr"]
        expected = {"lr": peak}
        if policy is not None:
            lr_factor, momentum, decay_factor = values_at(policy, step, policy.initial_state())
            expected = {"schedule_step": step, "max_lr": peak, "lr": peak * lr_factor}
            if momentum is not None and slot is not None:
                expected["momentum"] = momentum
            if decay_factor is not None:
                expected["weight_decay"] = group[OWN_DECAY] * decay_factor
        values = {key: group.get(key) for key in expected}
        if "momentum" in expected and slot is not None:
            values["momentum"] = slot.read(group)
        if values != expected:
            yield f"{values} instead of {expected} in group {i} at step {step}"


# -- steering


def can_be_steered(trial: Trial) -> Iterator[str]:
    """Policy, peak and step of ``reschedule`` at once in the groups addressed, and from there on; all else stays.

    Hand policy, lr, step and group on to Scheduled.reschedule.
    """
    later = CosineDecay(9, 0.5)
    count = len(trial.run.shapes)
    training = trial.begin(options=[{"lr": 0.1}] * count)
    training.train(range(2))
    before = training.everything()
    training.optimizer.reschedule(policy=later, lr=0.2, step=3)
    after = training.everything()
    for key in ("weights", "state"):
        if found := _difference(before[key], after[key], key):
            yield f"{found} before and after reschedule at step 2"
    now = Training(replace(training.run, options=({"lr": 0.2},) * count), training.params, training.optimizer)
    yield from _off_schedule(now, [later] * count, 3)
    now.train([2])
    yield from _off_schedule(now, [later] * count, 4)
    before = now.everything()["param_groups"]
    now.optimizer.reschedule(lr=0.4, group=0)
    after = now.everything()["param_groups"]
    expected = 0.4 * later.at(4).lr_factor
    if after[0]["lr"] != expected:
        yield f"lr = {after[0]['lr']} instead of {expected} in group 0 after reschedule(lr=0.4, group=0) at step 4"
    if found := _difference(before[1:], after[1:]):
        yield f"{found} in the other groups before and after reschedule(lr=0.4, group=0) at step 4"


def refuses_wrong_arguments(trial: Trial) -> Iterator[str]:
    """A ValueError or TypeError for a wrong argument, and no change.

    Check first and write afterwards, or let the methods of Scheduled do both.
    """
    training = trial.begin()
    training.train(range(2))
    optimizer = training.optimizer
    wrong = optimizer.state_dict()
    wrong["param_groups"] = [{**group, "schedule_step": -1} for group in wrong["param_groups"]]
    param = torch.nn.Parameter(torch.ones(2, 3, dtype=trial.run.dtype))
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("reschedule()", lambda: optimizer.reschedule()),
        ("reschedule(step=-1)", lambda: optimizer.reschedule(step=-1)),
        ("reschedule(lr=nan)", lambda: optimizer.reschedule(lr=math.nan)),
        ("reschedule(policy=3)", lambda: optimizer.reschedule(policy=3)),
        ("reschedule(step=0, group=99)", lambda: optimizer.reschedule(step=0, group=99)),
        ("add_param_group with lr=nan", lambda: optimizer.add_param_group({"params": [param], "lr": math.nan})),
        ("add_param_group with policy=3", lambda: optimizer.add_param_group({"params": [param], "policy": 3})),
        ("load_state_dict({})", lambda: optimizer.load_state_dict({})),
        ("load_state_dict with schedule_step=-1", lambda: optimizer.load_state_dict(wrong)),
    ]
    before = training.everything()
    for name, call in calls:
        if not _is_refused(call):
            yield f"no error of {name} at step 2"
        if found := _difference(before, training.everything()):
            yield f"{found} before and after {name} at step 2"


def _is_refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (ValueError, TypeError):
        return True
    return False


# -- copies


def goes_on_in_copies(trial: Trial) -> Iterator[str]:
    """Copies and pickles that continue to the same bits, and share nothing with the original.

    Let __getstate__ and __setstate__ have what the class adds to torch's Optimizer, and define it at a module's top.
    """
    for copied in (copy.deepcopy, _pickled):
        training = trial.begin()
        training.train(range(2))
        optimizer = copied(training.optimizer)
        twin = Training(training.run, [group["params"] for group in optimizer.param_groups], optimizer)
        before = twin.everything()
        if found := _difference(training.everything(), before):
            yield f"{found} in a {copied.__name__.strip('_')} at step 2"
        training.train(range(2, 4))
        if found := _difference(before, twin.everything()):
            yield f"{found} in a {copied.__name__.strip('_')} before and after steps of the original"
        twin.train(range(2, 4))
        if found := _difference(training.everything(), twin.everything()):
            yield f"{found} in a {copied.__name__.strip('_')} after step 4"


def _pickled(optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


CHECKS = [
    resumes_anywhere,
    saves_plain_data,
    loads_the_same_dict_again,
    counts_no_skipped_step,
    moves_each_group_by_its_policy,
    can_be_steered,
    refuses_wrong_arguments,
    goes_on_in_copies,
]
