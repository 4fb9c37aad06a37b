"""The schedule on the device is the host's, at every step, for every policy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import FAR, finite_policies, held_momentum, periodic_policies, policies, steps
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cyclic_optim import (
    Constant,
    CyclicSGD,
    ExponentialDecay,
    InverseTimeDecay,
    LambdaPolicy,
    OneCycle,
    Triangular,
    Triangular2,
)
from cyclic_optim.device.clock import DeviceClock, Position

CPU = torch.device("cpu")

peaks = st.floats(1e-4, 10) | st.sampled_from([0.1, 1.0])


def rounded(number):
    return torch.tensor(number, dtype=torch.float32).item()


def horizon_for(policy, least=300):
    """A short table, to spare time; a period must fit in."""
    return max(policy.period or 1, policy.end or 1, least)


def clock_at(policy, step, peak, momentum=0.5, **options):
    """A clock of one group, as it stands when the values of ``step`` have been put in force."""
    clock = DeviceClock(CPU, **options)
    clock.join()
    fill(clock, policy, max(step - 1, 0))
    clock.max_lr[0].fill_(peak)
    clock.momentum[0].fill_(momentum)
    if step == 0:
        clock.step.fill_(-1)
    clock.tick(None)
    return clock


def fill(clock, policy, step):
    """Tabulate one policy for all groups, from this step on where it has to start somewhere."""
    positions = [Position(policy, None, step, restarts=True)] * len(clock.parts)
    clock.fill(clock.parts_for(positions), [step] * len(positions))


def assert_is(clock, policy, step, peak, momentum=0.5):
    factor, held, _ = policy.at(step)
    assert clock.steps[0].item() == step
    assert clock.lr[0].item() == rounded(peak * factor)
    assert clock.momentum[0].item() == held_momentum(momentum if held is None else held)


@given(policy=policies(), peak=peaks, step=steps(), first=st.integers(0, 100))
def test_any_step_is_the_hosts(policy, peak, step, first):
    """Rate and momentum are the host's, rounded once to float32, at steps near and far."""
    for asked in (first, step):
        assert_is(clock_at(policy, asked, peak, horizon=horizon_for(policy)), policy, asked, peak)


@given(policy=policies(), peak=peaks)
def test_a_trace_is_the_hosts(policy, peak):
    """Step for step, an optimizer on the device shows what one on the host shows, to 1e-7 and better."""
    host = CyclicSGD([torch.nn.Parameter(torch.ones(1))], lr=peak, momentum=0.7, policy=policy)
    device = CyclicSGD(
        [torch.nn.Parameter(torch.ones(1))],
        lr=peak,
        momentum=0.7,
        policy=policy,
        capturable=True,
        horizon=horizon_for(policy),
    )
    for _ in range(60):
        expected, shown = host.param_groups[0], device.param_groups[0]
        assert shown["lr"].item() == rounded(expected["lr"])
        assert shown["momentum"].item() == held_momentum(expected["momentum"])
        assert shown["schedule_step"].item() == expected["schedule_step"]
        host.step()
        device.step()


@given(policy=finite_policies(), peak=peaks, beyond=st.integers(0, FAR) | st.just(2**60))
def test_a_finite_policy_holds_its_last_row(policy, peak, beyond):
    """From its end on, values stay, however many steps follow."""
    step = policy.end + beyond
    clock = clock_at(policy, policy.end, peak, horizon=policy.end + 1)
    clock.step.fill_(step)
    clock.tick(None)
    assert clock.steps[0].item() == step + 1
    assert clock.lr[0].item() == rounded(peak * policy.at(policy.end).lr_factor)


# Hypothesis draws large integers with few significant bits, which floats can hold: an offset makes others of them.
huge = st.builds(int.__add__, st.integers(2**53, 2**62), st.integers(-1000, 1000))


@given(policy=periodic_policies(), peak=peaks, step=st.integers(2**24 - 3, 2**24 + 3) | huge)
def test_a_periodic_policy_wraps_exactly(policy, peak, step):
    """Steps that float32 and float64 cannot count are still taken modulo the period exactly."""
    clock = clock_at(policy, 0, peak)
    clock.step.fill_(step - 1)
    clock.tick(None)
    assert_is(clock, policy, step, peak)


@pytest.mark.parametrize("step", [2**24 + 1, 2**53 + 1, 2**62 + 1])
def test_steps_that_floats_cannot_count_are_told_apart(step):
    """One step further is one row further, where float32 and float64 would stand still."""
    policy = Triangular(3)
    clock = clock_at(policy, 0, 1.0)
    clock.step.fill_(step - 1)
    for each in range(step, step + 6):
        clock.tick(None)
        assert_is(clock, policy, each, 1.0)


@pytest.mark.parametrize("policy", [InverseTimeDecay(0.1), Triangular2(3), ExponentialDecay(0.9)], ids=str)
@pytest.mark.parametrize("start", [0, 2**24 + 5, FAR])
def test_an_endless_policy_reaches_its_horizon_and_holds(policy, start):
    """The table reaches ``horizon`` steps from where it was filled; the last of them holds."""
    clock = clock_at(policy, start, 1.0, horizon=10)
    fill(clock, policy, start)
    for step in range(start, start + 15):
        clock.step.fill_(step - 1)
        clock.tick(None)
        assert clock.lr[0].item() == rounded(policy.at(min(step, start + 9)).lr_factor)
        assert clock.parts[0].row_step(step) == min(step, start + 9)


def test_the_horizon_is_a_hundred_thousand_by_default():
    """Without the user's saying so, an endless decay goes on for 100,000 steps."""
    policy = InverseTimeDecay(1e-3)
    clock = clock_at(policy, 0, 1.0)
    assert len(clock.parts[0].rows) == 100_000
    clock.step.fill_(99_998)
    clock.tick(None)
    assert_is(clock, policy, 99_999, 1.0)


@given(
    found_inf=st.sampled_from([0.0, 1.0, 2.0, -1.0, 1e-30, float("inf"), float("nan")]),
    shape=st.sampled_from([(), (1,)]),
)
def test_a_skipped_step_does_not_count(found_inf, shape):
    """Any ``found_inf`` but 0 leaves counter and values, an edited rate among them, as they were."""
    policy = OneCycle(20)
    clock = clock_at(policy, 5, 0.1)
    clock.lr[0].fill_(0.25)
    clock.tick(torch.full(shape, found_inf))
    if found_inf == 0:
        assert_is(clock, policy, 6, 0.1)
    else:
        assert (clock.steps[0].item(), clock.lr[0].item()) == (5, 0.25)
        assert clock.momentum[0].item() == rounded(policy.at(5).momentum)


@pytest.mark.parametrize(
    ("policy", "horizon", "error", "message"),
    [
        (Constant(), 0, ValueError, r"need 1 <= horizon, got horizon=0"),
        (Constant(), 1.5, TypeError, r"need horizon to be an int"),
        (Triangular(20), 39, ValueError, r"need horizon >= the policy's period, got horizon=39, period=40"),
        (Triangular(10**9), None, ValueError, r"at most 1048576 steps .* got 2000000000 steps .* give horizon="),
        (OneCycle(10**9), None, ValueError, r"at most 1048576 steps .* got 1000000000 steps .* give horizon="),
    ],
    ids=str,
)
def test_tables_that_cannot_be_are_refused(policy, horizon, error, message):
    """A horizon that is none, one that cuts a period, and a table of a billion rows are errors."""
    with pytest.raises(error, match=message):
        clock_at(policy, 0, 1.0, horizon=horizon)


def test_a_long_policy_can_be_cut():
    """A run of a billion steps is tabulated as far as the user says."""
    policy = OneCycle(10**9)
    assert_is(clock_at(policy, 999, 1.0, horizon=1000), policy, 999, 1.0)


def test_a_policy_that_fails_in_between_is_refused_at_once():
    """The whole table is asked for and checked when the optimizer is built, not at step 40,000."""
    policy = LambdaPolicy(lambda step: 1.0 if step < 7 else float("nan"))
    with pytest.raises(ValueError, match=r"fn\(7\)"):
        CyclicSGD([torch.nn.Parameter(torch.ones(1))], policy=policy, capturable=True, horizon=10)


@pytest.mark.parametrize("overflow", [None, 0.0, 1.0])
def test_more_groups_and_policies_take_no_more_operations(overflow):
    """A tick moves all groups, each along a policy and from a step of its own, with the operations that it takes for
    one: each would be a launch on a GPU."""

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    counts = []
    for groups in (1, 50):
        clock, called = DeviceClock(CPU), []
        for _ in range(groups):
            clock.join()
        positions = [Position(OneCycle(100 + i), None, i) for i in range(groups)]
        clock.fill(clock.parts_for(positions), range(groups))
        with Counter():
            clock.tick(None if overflow is None else torch.tensor(overflow))
        counts.append(len(called))
    assert counts[0] == counts[1] > 0


def test_the_default_device_is_of_no_concern():
    """Everything of a clock is on the device it was made for, wherever torch makes tensors that name none."""
    policy = OneCycle(20)
    with torch.device("meta"):  # where nothing has a value
        clock = clock_at(policy, 5, 0.1)
        clock.tick(None)
    tensors = [*clock.tensors, *clock.lr, *clock.momentum, *clock.max_lr, *clock.steps]
    assert {tensor.device for tensor in tensors} == {CPU}
    assert_is(clock, policy, 6, 0.1)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_overflow_found_on_another_device_is_brought_over(shape):
    """``found_inf`` is copied to the clock's device first: no other operation is given tensors of two devices."""

    class Devices(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((str(func), {value.device.type for value in tree_leaves(args) if torch.is_tensor(value)}))
            return func(*args, **(kwargs or {}))

    policy, found_inf, seen = OneCycle(20), torch.zeros(shape), []
    clock = DeviceClock(torch.device("meta"))
    clock.join()
    fill(clock, policy, 0)
    with Devices():
        clock.tick(found_inf)
    assert [func for func, devices in seen if devices != {"meta"}] == ["aten._to_copy.default"]
