"""What holds of every policy, as named checks: for policies of users' own. Works without torch."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import numbers
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from ..policies import POLICIES, Policy, describe, rebuild
from ..policies.asked import values_at
from ..policies.base import class_hint
from ..rules import MOST_STEPS, shown, step_index
from .checks import Check, checks_of, one_line, parametrized, run_all

#: Steps that are asked for beside the given ones: floats lose whole numbers from 2**53 on.
FAR_STEPS = (10**6, 10**9, 2**53 + 1, 2**62, MOST_STEPS - 1)
#: Steps on the device are counted one by one, and the table has at most this many rows.
MOST_DEVICE_STEPS, MOST_DEVICE_ROWS = 300, 2**16

Steps = tuple[int, ...]


def check_policy(
    policy: Policy, steps: int | Iterable[int] = 300, *, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Run all checks of :func:`policy_checks` on a policy, and report all that fail at once.

    Args:
        policy: an instance of any subclass of :class:`cyclic_optim.Policy`.
        steps: the steps to ask for: this many from 0 on, or these.
        expected_failed_checks: the reason, by the name of each check that is expected to fail. One that passes fails.

    Raises:
        AssertionError: some checks failed; the message has a line for each, with its name, the rule, step and values,
            and what to do.
        TypeError: ``policy`` is no instance of a policy.
        ValueError: no steps, or ``expected_failed_checks`` names no check.

    Example:
        >>> from cyclic_optim import LambdaPolicy, OneCycle, Warmup
        >>> from cyclic_optim.testing import check_policy
        >>> check_policy(Warmup(OneCycle(total_steps=1000), 100), steps=1200)
        >>> policy = LambdaPolicy(lambda step: 1 / (1 + step))
        >>> check_policy(policy, expected_failed_checks={"is_picklable": "no lambda can be pickled"})
    """
    run_all(_checks(policy, steps), expected_failed_checks)


def policy_checks(
    policy: Policy, steps: int | Iterable[int] = 300, *, expected_failed_checks: Mapping[str, str] | None = None
) -> list[Any]:
    """The checks of a policy, to parametrize a test by them: ``pytest.mark.parametrize("check", policy_checks(...))``.

    Each is called without arguments; its name is the test's id. Those that are expected to fail are strict xfails.

    Args:
        policy, steps, expected_failed_checks: as for :func:`check_policy`.

    Raises:
        TypeError, ValueError: as for :func:`check_policy`.

    Example:
        >>> from cyclic_optim import OneCycle
        >>> from cyclic_optim.testing import policy_checks
        >>> checks = policy_checks(OneCycle(total_steps=100))
        >>> [check.__name__ for check in checks][:3]
        ['is_left_as_it_was', 'returns_values', 'returns_finite_numbers']
        >>> for check in checks:
        ...     check()
    """
    return parametrized(_checks(policy, steps), expected_failed_checks)


def _checks(policy: Policy, steps: int | Iterable[int]) -> list[Check]:
    if not isinstance(policy, Policy):
        raise TypeError(f"need policy to be a Policy, got policy={shown(policy)}{class_hint(policy)}")
    asked = tuple(map(step_index, steps if isinstance(steps, Iterable) else range(step_index(steps))))
    if not asked:
        raise ValueError(f"need at least one step, got steps={shown(steps)}")
    return checks_of(CHECKS, one_line(policy), policy, asked)


# -- asking


def _answer(policy: Policy, step: Any) -> Any:
    """What the policy answers, so that it can be compared: numbers as floats, all else as text."""
    try:
        answer: Any = policy.at(step)
    except Exception as error:  # which is an answer, too
        return f"{type(error).__name__}: {error}"
    return tuple(map(_plain, answer)) if isinstance(answer, tuple) else _plain(answer)


def _plain(value: Any) -> Any:
    if value is None or not isinstance(value, numbers.Real):
        return None if value is None else shown(value)
    number = float(value)
    return "nan" if math.isnan(number) else number  # NaN would differ from itself


def _error(policy: Policy, step: int) -> str | None:
    """How the policy fails at this step; None if it answers."""
    try:
        policy.at(step)
    except Exception as error:
        return f"{type(error).__name__}: {error} at step {step}"
    return None


def _answers(policy: Policy, steps: Iterable[Any]) -> list[Any]:
    return [_answer(policy, step) for step in steps]


def _differing(steps: Iterable[int], before: list[Any], after: list[Any], where: str) -> Iterator[str]:
    for step, one, other in zip(steps, before, after, strict=True):
        if one != other:
            yield f"at({step}) = {one}, and {other} {where}"


def _each_number(policy: Policy, steps: Iterable[int]) -> Iterator[tuple[int, float]]:
    for step, answer in zip(steps, _answers(policy, steps), strict=True):
        for number in answer if isinstance(answer, tuple) else ():
            if number == "nan" or isinstance(number, float):
                yield step, float(number)


# -- the values


def returns_values(policy: Policy, steps: Steps) -> Iterator[str]:
    """Real numbers from ``at``: Values(lr_factor, momentum=None, weight_decay_factor=None), or (lr_factor, momentum).

    Return Values(lr_factor) or Values(lr_factor, momentum): plain numbers, no tensors, None only where momentum or
    weight decay is to stay.
    """
    for step in steps:
        if error := _error(policy, step):
            yield error
        answer: Any = policy.at(step)
        if not isinstance(answer, tuple) or len(answer) not in (2, 3):
            yield f"at({step}) = {shown(answer)}"
            continue
        for i, value in enumerate(answer):
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number and not (value is None and i > 0):
                yield f"at({step}) = {shown(answer)}"


def returns_finite_numbers(policy: Policy, steps: Steps) -> Iterator[str]:
    """Finite numbers.

    Look for a division by a length of 0, and for powers and exponentials that overflow.
    """
    for step, number in _each_number(policy, steps):
        if not math.isfinite(number):
            yield f"at({step}) = {_answer(policy, step)}"


def returns_no_negative_number(policy: Policy, steps: Steps) -> Iterator[str]:
    """Numbers >= 0.

    Bound what falls, as in max(0.0, 1 - step / length).
    """
    for step, number in _each_number(policy, steps):
        if number < 0:
            yield f"at({step}) = {_answer(policy, step)}"


def has_values_at_any_step(policy: Policy, steps: Steps) -> Iterator[str]:
    """Values, finite and >= 0, at every step below 2**63.

    Say what happens after the end, as in min(step, total_steps), and give end.
    """
    for step in FAR_STEPS:
        if error := _error(policy, step):
            yield error
    for step, number in _each_number(policy, FAR_STEPS):
        if not 0 <= number < math.inf:
            yield f"at({step}) = {_answer(policy, step)}"


# -- purity


def gives_the_same_again(policy: Policy, steps: Steps) -> Iterator[str]:
    """The same values when at() is called twice for a step.

    Compute the values from the step and the fields alone, and draw random numbers in __init__ if at all.
    """
    for step in steps:
        yield from _differing([step], [_answer(policy, step)], [_answer(policy, step)], "when asked again")


def gives_the_same_in_any_order(policy: Policy, steps: Steps) -> Iterator[str]:
    """The same values in any order of steps.

    Accumulate nothing: write a closed form, such as gamma ** (step // length).
    """
    forward = dict(zip(steps, _answers(policy, steps), strict=True))
    shuffled = random.Random(0).sample(steps, len(steps))
    # The first one again, so that no step is asked for twice in a row: that is another check.
    for order, asked in (("backwards", (steps[0], *reversed(steps))), ("shuffled", (steps[-1], *shuffled))):
        yield from _differing(asked, [forward[step] for step in asked], _answers(policy, asked), f"when asked {order}")


def is_left_as_it_was(policy: Policy, steps: Steps) -> Iterator[str]:
    """A policy that at() does not change.

    Write to no attribute in at. A value that is computed once belongs into functools.cached_property.
    """
    before = json.loads(json.dumps(describe(policy)))
    _answers(policy, steps)
    after = json.loads(json.dumps(describe(policy)))
    if before != after:
        changed = [name for name in after["fields"] if after["fields"][name] != before["fields"].get(name)]
        for name in changed or ["name"]:
            was, now = before["fields"].get(name), after["fields"].get(name)
            yield f"{name} = {one_line(was)}, and {one_line(now)} after at({steps[0]}) ... at({steps[-1]})"


class Generator(NamedTuple):
    """A global generator of random numbers."""

    name: str
    seed: Callable[[int], Any]
    get: Callable[[], Any]
    put: Callable[[Any], Any]


def _generators() -> Iterator[Generator]:
    """Those that may have been used: of modules that somebody imported."""
    yield Generator("random", random.seed, random.getstate, random.setstate)
    if (numpy := sys.modules.get("numpy")) is not None:
        yield Generator("numpy.random", numpy.random.seed, numpy.random.get_state, numpy.random.set_state)
    if (torch := sys.modules.get("torch")) is not None:
        own = torch.default_generator
        yield Generator("torch", own.manual_seed, lambda: own.get_state().tolist(), lambda state: _put(own, state))


def _put(generator: Any, state: list[int]) -> None:
    import torch

    generator.set_state(torch.tensor(state, dtype=torch.uint8))


def draws_no_random_numbers(policy: Policy, steps: Steps) -> Iterator[str]:
    """Values that depend on no random state (random, numpy.random, torch), and leave it alone.

    Give the policy a seed as a field, and draw with random.Random(seed) for each step anew.
    """
    before = _answers(policy, steps)
    for generator in _generators():
        state = generator.get()
        try:
            generator.seed(12345)
            seeded = pickle.dumps(generator.get())
            after = _answers(policy, steps)
            is_moved = pickle.dumps(generator.get()) != seeded
        finally:
            generator.put(state)
        yield from _differing(steps, before, after, f"after another seed of {generator.name}")
        if is_moved:
            yield f"another state of {generator.name} after at({steps[0]}) ... at({steps[-1]})"


_IN_SECONDS = ("time", "monotonic", "perf_counter", "process_time")
_IN_NANOSECONDS = ("time_ns", "monotonic_ns", "perf_counter_ns", "process_time_ns")
_YEAR = 365 * 86400


def reads_no_clock(policy: Policy, steps: Steps) -> Iterator[str]:
    """Values that depend on no clock of the time module.

    Count steps: a schedule in hours is not the same when it is resumed.
    """
    before = _answers(policy, steps)
    later: dict[str, Any] = {name: partial(_later, getattr(time, name), _YEAR) for name in _IN_SECONDS}
    later |= {name: partial(_later, getattr(time, name), _YEAR * 10**9) for name in _IN_NANOSECONDS}
    with mock.patch.multiple(time, **later):
        after = _answers(policy, steps)
    yield from _differing(steps, before, after, "a year later")


def _later(clock: Callable[[], Any], by: int) -> Any:
    return clock() + by


# -- a policy is a value


def is_hashable(policy: Policy, steps: Steps) -> Iterator[str]:
    """A hash, which equal policies share.

    Make it a frozen dataclass whose fields are hashable: tuples instead of lists.
    """
    one, twin = hash(policy), copy.copy(policy)
    if twin == policy and hash(twin) != one:
        yield f"hash {one}, and {hash(twin)} of an equal copy"


def has_equal_copies(policy: Policy, steps: Steps) -> Iterator[str]:
    """Copies that are equal, with equal repr and values.

    Make it a frozen dataclass, which compares and prints its fields.
    """
    for copied in (copy.copy, copy.deepcopy):
        twin = copied(policy)
        if twin != policy or repr(twin) != repr(policy):
            yield f"{copied.__name__}.{copied.__name__}(policy) = {one_line(twin)}, equal: {twin == policy},"
        yield from _differing(steps, _answers(policy, steps), _answers(twin, steps), f"of a {copied.__name__}")


def is_picklable(policy: Policy, steps: Steps) -> Iterator[str]:
    """A pickle with the same class, description and values.

    Define the class and its functions at the top of a module; no lambda can be pickled.
    """
    twin = pickle.loads(pickle.dumps(policy))
    yield from _as_described(policy, twin, steps, "of the unpickled one")


def _as_described(policy: Policy, twin: Policy, steps: Steps, where: str) -> Iterator[str]:
    if type(twin) is not type(policy) or describe(twin) != describe(policy):
        yield f"{one_line(twin)} {where}, described as {describe(twin)}, and {describe(policy)}"
    yield from _differing(steps, _answers(policy, steps), _answers(twin, steps), where)


def describes_itself(policy: Policy, steps: Steps) -> Iterator[str]:
    """Fields that a checkpoint can hold: numbers, strings, policies, and lists or dicts of these; functions by name.

    A checkpoint cannot tell two values of another type apart: make them numbers in a tuple.
    """
    description = describe(policy)
    if json.loads(json.dumps(description)) != description:
        yield f"{description}, which differs when it is read back"
    yield from _opaque(type(policy).__name__, policy)


def _opaque(where: str, value: Any) -> Iterator[str]:
    """The values that a description names by their type alone."""
    if isinstance(value, Policy):
        value = {name: getattr(value, name) for name in describe(value)["fields"]}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _opaque(f"{where}.{name}", item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _opaque(f"{where}[{i}]", item)
    elif not (value is None or isinstance(value, (str, numbers.Real)) or hasattr(value, "__qualname__")):
        yield f"{where} = {shown(value)}, described as its type alone,"


def rebuilds_itself(policy: Policy, steps: Steps) -> Iterator[str]:
    """The same policy when it is rebuilt from its description.

    Let __init__ take every attribute and store it as it is: convert units before, or in at.
    """
    described = json.loads(json.dumps(describe(policy)))
    if described["name"] in POLICIES and '"code"' not in json.dumps(described):
        twin = rebuild(described)
    else:
        make: Any = type(policy)
        twin = make(**{name: getattr(policy, name) for name in described["fields"]})
    yield from _as_described(policy, twin, steps, "of the one that was made anew")


# -- what it declares


def repeats_after_its_period(policy: Policy, steps: Steps) -> Iterator[str]:
    """Values that repeat exactly after ``period`` steps, an int >= 1 or None.

    Count in whole numbers, as in step % period, or let period be None.
    """
    period = policy.period
    if period is None:
        return
    if type(period) is not int or period < 1:
        yield f"period = {period!r}"
    for step in steps:
        for other in (step % period, step + period, step + 10**6 * period):
            if other < MOST_STEPS and _answer(policy, step) != _answer(policy, other):
                yield f"at({step}) = {_answer(policy, step)}, at({other}) = {_answer(policy, other)}, {period = },"


def holds_after_its_end(policy: Policy, steps: Steps) -> Iterator[str]:
    """Values that are constant from the step ``end`` on, an int >= 0 or None.

    Let end be the first step of the last values (total_steps - 1 where the last of total_steps has them), or None.
    """
    end = policy.end
    if end is None:
        return
    if type(end) is not int or end < 0:
        yield f"end = {end!r}"
    last = _answer(policy, end)
    for step in (end + 1, *(end + step for step in steps), *FAR_STEPS):
        if end < step < MOST_STEPS and _answer(policy, step) != last:
            yield f"at({end}) = {last}, at({step}) = {_answer(policy, step)}, {end = },"


# -- other numbers, other places


def takes_numpy_steps(policy: Policy, steps: Steps) -> Iterator[str]:
    """The same values for a step counted by numpy as for an int.

    Begin at with step = operator.index(step): numpy's whole numbers overflow.
    """
    if (numpy := sys.modules.get("numpy")) is None:
        return
    with numpy.errstate(all="ignore"):
        counted = _answers(policy, map(numpy.int64, steps))
    yield from _differing(steps, _answers(policy, steps), counted, "for numpy.int64")


def is_the_same_on_the_device(policy: Policy, steps: Steps) -> Iterator[str]:
    """The same values with ``capturable=True``, rounded to float32, which must hold them.

    Keep fractions of the peak near 1.
    """
    count, end, period = min(max(steps) + 1, MOST_DEVICE_STEPS), policy.end, policy.period
    if any(declared is not None and type(declared) is not int for declared in (end, period)):
        return
    # Whether they are true, other checks tell.
    folded = [step if end is None else min(step, end) for step in range(count)]
    expected = list(_valid(policy, [step if period is None else step % period for step in folded]))
    horizon = max(count, period or 1)
    with contextlib.suppress(ImportError):
        import torch

        from ..device.clock import above_0

        if len(expected) == count and horizon <= MOST_DEVICE_ROWS:
            for step, (before, after) in enumerate(zip(expected, _on_the_device(policy, count, horizon), strict=True)):
                factor, momentum, decay = before
                held = (factor, above_0(momentum), decay)
                rounded = torch.tensor([math.nan if value is None else value for value in held]).tolist()
                if shown(rounded) != shown(after) or math.inf in rounded:
                    yield f"at({step}) = {before}, rounded {rounded}, on the device {after}"


def _valid(policy: Policy, steps: Iterable[int]) -> Iterator[Any]:
    """The values of these steps, up to one whose values other checks are about."""
    with contextlib.suppress(Exception):
        for step in steps:
            yield values_at(policy, step, policy.initial_state())


def _on_the_device(policy: Policy, count: int, horizon: int) -> Iterator[list[float]]:
    """Rate, momentum and weight decay of the first steps, of peaks 1; NaN where the policy leaves one alone."""
    import torch

    from ..device.clock import DeviceClock, Position

    clock = DeviceClock(torch.device("cpu"), horizon)
    clock.join()
    clock.fill(clock.parts_for([Position(policy, policy.initial_state())]), [-1])
    for _ in range(count):
        clock.values.fill_(math.nan)
        clock.tick(None)
        yield clock.values[0].tolist()


def counts_reports_purely(policy: Policy, steps: Steps) -> Iterator[str]:
    """Where a policy listens, a new state of plain data for each reported metric, and values that follow from it.

    Copy the state in report, change the copy, return it; let check_state accept what report returns.
    """
    state = policy.initial_state()
    if state is None:
        return
    for metric in (1.0, 2.0, math.nan, 3.0, 0.5):
        before = copy.deepcopy(state)
        new = policy.report_at(state, metric, steps[-1])
        if state != before:
            yield f"report({before}, {metric}), which changed the given state to {state},"
        again = policy.report_at(state, metric, steps[-1])
        if new != again:
            yield f"report({before}, {metric}) = {new}, and {again} when reported again,"
        json.dumps(new)
        policy.check_state(new)
        values_at(policy, steps[-1], new)
        state = new


CHECKS = [
    is_left_as_it_was,  # first: while nobody has asked
    returns_values,
    returns_finite_numbers,
    returns_no_negative_number,
    has_values_at_any_step,
    gives_the_same_again,
    gives_the_same_in_any_order,
    draws_no_random_numbers,
    reads_no_clock,
    is_hashable,
    has_equal_copies,
    is_picklable,
    describes_itself,
    rebuilds_itself,
    repeats_after_its_period,
    holds_after_its_end,
    takes_numpy_steps,
    is_the_same_on_the_device,
    counts_reports_purely,
]
