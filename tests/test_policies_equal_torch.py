"""Where torch has the schedule, ours has torch's learning rate and momentum at every step torch defines.

Torch is driven as a user drives it: a scheduler on an SGD, stepped after each step of the optimizer.
"""

import math

import pytest
import torch
import torch_versions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import LR_FUNCTIONS, SCALE_FUNCTIONS, momenta
from torch.optim import lr_scheduler as torch_schedules

from cyclic_optim import (
    CosineDecay,
    CosineRestarts,
    ExponentialDecay,
    ExpRange,
    LambdaPolicy,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Plateau,
    PolynomialDecay,
    Sequential,
    StepDecay,
    Triangular,
    Triangular2,
    Values,
)

MOMENTUM = 0.875

at_least_200 = settings(max_examples=max(200, settings.default.max_examples))

peaks = st.floats(1e-4, 10) | st.sampled_from([0.1, 1.0])
short = st.integers(1, 40) | st.integers(41, 150)
fractions = st.floats(1e-4, 1) | st.sampled_from([0.1, 0.5])
gammas = st.floats(0.05, 1) | st.sampled_from([0.1, 0.5, 1.0])


def driven(scheduler, steps):
    """Run ``steps`` steps; yields (lr, momentum) in force before each of them and after the last."""
    optimizer = scheduler.optimizer
    (group,) = optimizer.param_groups
    yield group["lr"], group["momentum"]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        yield group["lr"], group["momentum"]


def sgd(lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=MOMENTUM)


def assert_close(ours, torchs, peak, label, noise=1e-15):
    """Within 1e-12 of the peak, and within 1e-10 relative but for the noise in torch's own sums.

    Torch adds terms of the size of the peak, so that what it says near zero is off by the last bits of
    the peak, however small the value is.
    """
    error = abs(ours - torchs)
    assert error <= 1e-12 * peak, label
    assert error <= 1e-10 * abs(torchs) + noise * peak, label


def assert_same_trace(policy, lr, trace, noise=1e-15, highest=1.0):
    """``highest``: the highest factor, of whose size torch's terms are."""
    for step, (torch_lr, torch_momentum) in enumerate(trace):
        lr_factor, momentum, _ = policy.at(step)
        label = f"{policy}, {lr=}, {step=}"
        assert_close(lr * lr_factor, torch_lr, lr * highest, label, noise)
        assert_close(MOMENTUM if momentum is None else momentum, torch_momentum, 1.0, label, noise)


# CyclicLR subtracts the cycle's number from the step in cycles, and divides what is left by the ramp's
# share of a cycle: over the 300 steps below that leaves up to 300 times the last bit of 1.
CYCLIC_LR_NOISE = 1e-13


def one_and_a_half(count):
    """A scale above 1, which torch allows too."""
    return 1 + 0.5 * (count % 2)


@st.composite
def cycles(draw):
    """(arguments that both sides take, base_lr, max_lr, steps to run)"""
    up, down = draw(short), draw(st.none() | short)
    peak = draw(peaks)
    base = peak * draw(fractions)
    steps = min(300, math.ceil(3.5 * (up + (down or up))))
    return {"step_size_up": up, "step_size_down": down, **draw(momenta())}, base, peak, steps


@at_least_200
@given(cycles())
def test_triangular_is_cyclic_lr(case):
    """Triangular is CyclicLR(mode="triangular")."""
    arguments, base, peak, steps = case
    scheduler = torch_schedules.CyclicLR(sgd(peak), base, peak, **arguments)
    assert_same_trace(Triangular(div_factor=peak / base, **arguments), peak, driven(scheduler, steps), CYCLIC_LR_NOISE)


@at_least_200
@given(cycles())
def test_triangular2_is_cyclic_lr(case):
    """Triangular2 is CyclicLR(mode="triangular2")."""
    arguments, base, peak, steps = case
    scheduler = torch_schedules.CyclicLR(sgd(peak), base, peak, mode="triangular2", **arguments)
    assert_same_trace(Triangular2(div_factor=peak / base, **arguments), peak, driven(scheduler, steps), CYCLIC_LR_NOISE)


@at_least_200
@given(cycles(), gammas)
def test_exp_range_is_cyclic_lr(case, gamma):
    """ExpRange is CyclicLR(mode="exp_range")."""
    arguments, base, peak, steps = case
    scheduler = torch_schedules.CyclicLR(sgd(peak), base, peak, mode="exp_range", gamma=gamma, **arguments)
    assert_same_trace(
        ExpRange(div_factor=peak / base, gamma=gamma, **arguments), peak, driven(scheduler, steps), CYCLIC_LR_NOISE
    )


@at_least_200
@given(cycles(), st.sampled_from([*SCALE_FUNCTIONS, one_and_a_half]), st.sampled_from(["cycle", "iterations"]))
def test_scaled_triangular_is_cyclic_lr(case, scale_fn, scale_mode):
    """A scale_fn is given the same numbers and has the same effect as in CyclicLR, in both scale modes."""
    arguments, base, peak, steps = case
    # A scale above 1 takes the momentum below its range, and SGD has none below 0.
    arguments["cycle_momentum"] &= scale_fn is not one_and_a_half
    arguments |= {"scale_fn": scale_fn, "scale_mode": scale_mode}
    scheduler = torch_schedules.CyclicLR(sgd(peak), base, peak, **arguments)
    assert_same_trace(Triangular(div_factor=peak / base, **arguments), peak, driven(scheduler, steps), CYCLIC_LR_NOISE)


@st.composite
def one_cycles(draw):
    """(arguments that both sides take, peak): all that torch takes, degenerate lengths and shares included."""
    total_steps = draw(st.integers(1, 3) | st.integers(4, 60) | st.integers(61, 300))
    shares = st.sampled_from([0.0, 1.0, 0.3, 0.5, 1 / total_steps]) | st.floats(0, 1) | st.floats(0, 1 / total_steps)
    arguments = {
        "total_steps": total_steps,
        "pct_start": draw(shares),
        "anneal_strategy": draw(st.sampled_from(["cos", "linear"])),
        "three_phase": draw(st.booleans()),
        "div_factor": draw(st.floats(1, 1e4) | st.just(25.0) | st.floats(1e-3, 1)),
        "final_div_factor": draw(st.floats(1, 1e6) | st.just(1e4) | st.floats(1e-6, 1)),
        **draw(momenta()),
    }
    # Close to where torch divides by zero, it divides by what rounding left there.
    climbed = arguments["pct_start"] * total_steps
    assume(climbed == 1 or abs(climbed - 1) > 1e-3)
    return arguments, draw(peaks)


@at_least_200
@given(one_cycles())
def test_one_cycle_is_one_cycle_lr(case):
    """OneCycle is OneCycleLR, in its whole range, up to its last step; where torch divides by zero, it is the peak."""
    arguments, peak = case
    policy, last = OneCycle(**arguments), arguments["total_steps"] - 1
    if arguments["pct_start"] * arguments["total_steps"] == 1:
        with pytest.raises(ZeroDivisionError):
            torch_schedules.OneCycleLR(sgd(peak), peak, **arguments)
        assert policy.at(0) == Values(1.0, arguments["base_momentum"] if arguments["cycle_momentum"] else None)
        return
    scheduler = torch_schedules.OneCycleLR(sgd(peak), peak, **arguments)
    highest = max(1.0, 1 / arguments["div_factor"], 1 / arguments["div_factor"] / arguments["final_div_factor"])
    assert_same_trace(policy, peak, driven(scheduler, last), highest=highest)


@pytest.mark.parametrize("pct_start", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 10])
def test_after_its_last_step_one_cycle_holds_where_torch_goes_on(total_steps, pct_start):
    """Torch's cosine turns back up at step total_steps, one after the last; ours stays at the last rate."""
    scheduler = torch_schedules.OneCycleLR(sgd(1.0), 1.0, total_steps, pct_start=pct_start)
    *_, last, bounced = driven(scheduler, total_steps)
    policy = OneCycle(total_steps, pct_start=pct_start)
    assert bounced[0] > 100 * last[0]
    for step in (total_steps - 1, total_steps, total_steps + 1, 10**9):
        assert policy.at(step).lr_factor == 1 / 25 / 1e4


def test_one_cycle_of_a_smoke_run():
    """One, two and three steps have torch's factors."""
    assert [OneCycle(1).at(0).lr_factor] == pytest.approx([4e-6])
    assert [OneCycle(2).at(step).lr_factor for step in range(2)] == pytest.approx([0.8117456539497631, 4e-6])
    factors = [OneCycle(3).at(step).lr_factor for step in range(3)]
    assert factors == pytest.approx([0.9944154354509118, 0.462637102666975, 4e-6])


@at_least_200
@given(peaks, short, st.integers(1, 3), st.just(0.0) | fractions)
def test_cosine_restarts_is_cosine_annealing_warm_restarts(peak, t_0, t_mult, min_factor):
    """CosineRestarts is CosineAnnealingWarmRestarts over its first cycles."""
    scheduler = torch_schedules.CosineAnnealingWarmRestarts(sgd(peak), t_0, t_mult, eta_min=min_factor * peak)
    steps = min(300, t_0 * (1 + t_mult + t_mult**2) + 1)
    assert_same_trace(CosineRestarts(t_0, t_mult, min_factor), peak, driven(scheduler, steps))


@at_least_200
@given(peaks, short, st.just(0.0) | fractions)
def test_cosine_decay_is_cosine_annealing(peak, t_max, min_factor):
    """CosineDecay is CosineAnnealingLR up to step T_max."""
    scheduler = torch_schedules.CosineAnnealingLR(sgd(peak), t_max, eta_min=min_factor * peak)
    assert_same_trace(CosineDecay(t_max, min_factor), peak, driven(scheduler, t_max))


@at_least_200
@given(peaks, short, gammas)
def test_step_decay_is_step_lr(peak, step_size, gamma):
    """StepDecay is StepLR over several drops."""
    scheduler = torch_schedules.StepLR(sgd(peak), step_size, gamma)
    assert_same_trace(StepDecay(step_size, gamma), peak, driven(scheduler, min(300, 4 * step_size + 1)))


@at_least_200
@given(peaks, st.lists(st.integers(0, 60), max_size=6).map(sorted), gammas)
def test_multi_step_decay_is_multi_step_lr(peak, milestones, gamma):
    """MultiStepDecay is MultiStepLR, a milestone at 0 and repeated milestones included."""
    scheduler = torch_schedules.MultiStepLR(sgd(peak), milestones, gamma)
    assert_same_trace(MultiStepDecay(milestones, gamma), peak, driven(scheduler, 65))


@at_least_200
@given(peaks, gammas)
def test_exponential_decay_is_exponential_lr(peak, gamma):
    """ExponentialDecay is ExponentialLR."""
    assert_same_trace(ExponentialDecay(gamma), peak, driven(torch_schedules.ExponentialLR(sgd(peak), gamma), 200))


@at_least_200
@given(peaks, short, st.floats(0.1, 5) | st.sampled_from([1, 2]))
def test_polynomial_decay_is_polynomial_lr(peak, total_iters, power):
    """PolynomialDecay is PolynomialLR, and holds after its end as torch's does."""
    scheduler = torch_schedules.PolynomialLR(sgd(peak), total_iters, power)
    assert_same_trace(PolynomialDecay(total_iters, power), peak, driven(scheduler, total_iters + 3))


@at_least_200
@given(peaks, short, fractions, st.just(0.0) | st.just(1.0) | fractions)
def test_linear_ramp_is_linear_lr(peak, total_iters, start_factor, end_factor):
    """LinearRamp is LinearLR, and holds after its end as torch's does."""
    scheduler = torch_schedules.LinearLR(sgd(peak), start_factor, end_factor, total_iters)
    assert_same_trace(LinearRamp(total_iters, start_factor, end_factor), peak, driven(scheduler, total_iters + 3))


@at_least_200
@given(peaks, st.sampled_from(LR_FUNCTIONS))
def test_lambda_policy_is_lambda_lr(peak, fn):
    """LambdaPolicy is LambdaLR."""
    assert_same_trace(LambdaPolicy(fn), peak, driven(torch_schedules.LambdaLR(sgd(peak), fn), 60))


@st.composite
def parts(draw):
    """(a policy, torch's scheduler for an optimizer, the most steps for which torch defines it)"""
    kind = draw(st.sampled_from(["warm-up", "exponential", "step", "cosine", "polynomial", "lambda"]))
    length, factor = draw(st.integers(1, 40)), draw(st.floats(0.05, 0.99))
    if kind == "warm-up":
        return (
            LinearRamp(length, factor, 1.0),
            lambda optimizer: torch_schedules.LinearLR(optimizer, factor, 1.0, length),
            60,
        )
    if kind == "exponential":
        return ExponentialDecay(factor), lambda optimizer: torch_schedules.ExponentialLR(optimizer, factor), 60
    if kind == "step":
        return StepDecay(length, factor), lambda optimizer: torch_schedules.StepLR(optimizer, length, factor), 60
    if kind == "cosine":
        return (
            CosineDecay(length, factor),
            lambda optimizer: torch_schedules.CosineAnnealingLR(
                optimizer, length, eta_min=factor * optimizer.defaults["lr"]
            ),
            length,
        )
    if kind == "polynomial":
        return (
            PolynomialDecay(length, 2.0),
            lambda optimizer: torch_schedules.PolynomialLR(optimizer, length, 2.0),
            60,
        )
    fn = draw(st.sampled_from(LR_FUNCTIONS))
    return LambdaPolicy(fn), lambda optimizer: torch_schedules.LambdaLR(optimizer, fn), 60


@at_least_200
@given(peaks, st.lists(parts(), min_size=1, max_size=4), st.data())
def test_sequential_is_sequential_lr(peak, chosen, data):
    """Sequential is SequentialLR of the same parts, through every milestone."""
    ends = []
    for _, _, longest in chosen:
        # A part may have no steps; the last is driven for some.
        needs_steps = len(ends) == len(chosen) - 1 or (not ends and not torch_versions.FIRST_PART_BY_MILESTONE)
        ends.append((ends[-1] if ends else 0) + data.draw(st.integers(int(needs_steps), longest)))
    optimizer = sgd(peak)
    scheduler = torch_schedules.SequentialLR(optimizer, [build(optimizer) for _, build, _ in chosen], ends[:-1])
    assert_same_trace(Sequential([policy for policy, _, _ in chosen], ends[:-1]), peak, driven(scheduler, ends[-1]))


metrics = st.floats(-10, 10) | st.integers(0, 3).map(float) | st.sampled_from([math.nan, math.inf, -math.inf])


@at_least_200
@given(
    peaks,
    st.lists(metrics, min_size=1, max_size=60),
    st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0.05, 0.95),
            "patience": st.integers(0, 4),
            "threshold": st.floats(0, 0.5) | st.sampled_from([1e-4, 0.0, 1.0, 2.0]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 4),
        }
    ),
    st.just(0.0) | fractions,
    # Irregular, so that a reduction is never exactly eps, where the last bit would decide.
    st.sampled_from([0.0, 1e-8, math.pi / 1000, math.pi / 30]),
)
def test_plateau_is_reduce_lr_on_plateau(peak, reported, arguments, min_factor, eps):
    """Plateau is ReduceLROnPlateau after every report, infinite and NaN metrics included."""
    optimizer = sgd(peak)
    scheduler = torch_schedules.ReduceLROnPlateau(optimizer, min_lr=min_factor * peak, eps=eps * peak, **arguments)
    policy = Plateau(min_factor=min_factor, eps=eps, **arguments)
    state = policy.initial_state()
    assert policy.after(state, 0) == policy.at(0) == Values(1.0)
    for step, metric in enumerate(reported):
        optimizer.step()
        scheduler.step(metric)
        state = policy.report(state, metric)
        policy.check_state(state)
        lr_factor, momentum, _ = policy.after(state, step)
        assert momentum is None
        assert_close(
            peak * lr_factor, optimizer.param_groups[0]["lr"], peak, f"{policy}, {peak=}, {reported[: step + 1]}"
        )
