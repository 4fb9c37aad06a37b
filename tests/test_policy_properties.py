"""What holds of every policy, and of each kind of them: the schedule's shape, told without its formula.

The oracles are exact: fractions for what is piecewise linear, decimals of fifty digits for the rest.
"""

import copy
import dataclasses
import io
import math
import pickle
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import lr_factors
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import (
    FAR,
    POLICY_STRATEGIES,
    carries_code,
    cyclic_policies,
    div_factors,
    finite_policies,
    gammas,
    growths,
    halving,
    lengths,
    momenta,
    one_cycles_that_climb,
    periodic_policies,
    policies,
    positive_units,
    steps,
    triangular_policies,
    units,
)

from cyclic_optim import (
    Constant,
    CosineDecay,
    CosineRestarts,
    CosineWave,
    ExponentialDecay,
    ExponentialRamp,
    InverseTimeDecay,
    LambdaPolicy,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Policy,
    PolynomialDecay,
    Scaled,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
    Triangular2,
    Values,
    WarmupStableDecay,
)
from cyclic_optim.policies import POLICIES, describe, rebuild
from cyclic_optim.testing import check_policy

far_lengths = lengths() | st.integers(1, FAR) | st.integers(FAR // 2, FAR)
cos_or_linear = st.sampled_from(["cos", "linear"])
plain_policies = policies().filter(lambda policy: not carries_code(policy))


def ramps_of(policy):
    """(step_size_up, step_size_down), the default filled in."""
    return policy.step_size_up, policy.step_size_down or policy.step_size_up


def boundaries(up, down, growth):
    """(start, peak, end) of each cycle: the exact geometric series, rounded down to whole steps."""
    start, size = Fraction(0), Fraction(1)
    while True:
        end = start + (up + down) * size
        yield math.floor(start), math.floor(start + up * size), math.floor(end)
        start, size = end, size * Fraction(growth)


def cycle_at(step, up, down, growth):
    """(number, start, peak, end) of the cycle that ``step`` is in, found by walking there."""
    if growth == 1:
        number, position = divmod(step, up + down)
        start = step - position
        return number, start, start + up, start + up + down
    for number, (start, peak, end) in enumerate(boundaries(up, down, growth)):
        if step < end:
            return number, start, peak, end


def exact_height(step, start, peak, end):
    return Fraction(step - start, peak - start) if step <= peak else Fraction(end - step, end - peak)


def exact_between(start, stop, fraction):
    return Fraction(start) + (Fraction(stop) - Fraction(start)) * fraction


def assert_within_ulps(value, exact, ulps=4):
    """``value`` is within a few units in the last place of ``exact``."""
    assert abs(Fraction(value) - exact) <= ulps * Fraction(math.ulp(float(exact))), (value, float(exact))


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def exact_rise(fraction):
    """sin(pi/2 x)**2 by the Taylor series, to some fifty digits."""
    with localcontext() as context:
        context.prec = 60
        angle = PI / 2 * fraction.numerator / fraction.denominator
        total, term, n = Decimal(0), angle, 1
        while abs(term) > Decimal(10) ** -58 * abs(angle):
            total += term
            term *= -angle * angle / ((n + 1) * (n + 2))
            n += 2
        return Fraction(total * total)


def assert_relative(value, exact, tolerance=Fraction(1, 10**13)):
    assert abs(Fraction(value) - exact) <= tolerance * abs(exact), (value, float(exact))


# --- every policy


def test_every_policy_is_drawn():
    """The strategies draw every policy that the library has, and nothing else."""
    assert set(POLICY_STRATEGIES) == set(POLICIES)


@given(policies(), steps())
def test_values_stay_in_bounds(policy, step):
    """The factor is in [0, 1] and momentum in [0, 1], exactly, and both are plain Python floats."""
    values = policy.at(step)
    assert isinstance(values, Values)
    assert type(values.lr_factor) is float
    assert 0 <= values.lr_factor <= 1
    assert values.momentum is None or (type(values.momentum) is float and 0 <= values.momentum <= 1)


LOWEST = {
    "Triangular": lambda policy: 1 / policy.div_factor,
    "Triangular2": lambda policy: 1 / policy.div_factor,
    "ExpRange": lambda policy: 1 / policy.div_factor,
    "OneCycle": lambda policy: 1 / policy.div_factor / policy.final_div_factor,
    "CosineRestarts": lambda policy: policy.min_factor,
    "CosineDecay": lambda policy: policy.min_factor,
    "LinearDecay": lambda policy: min(policy.min_factor, 1 / (policy.warmup + 1)),
    "CosineWave": lambda policy: policy.min_factor,
    "LinearRamp": lambda policy: min(policy.start_factor, policy.end_factor),
    "ExponentialRamp": lambda policy: min(policy.start_factor, policy.end_factor),
}


@pytest.mark.parametrize("name", LOWEST)
@given(data=st.data())
def test_the_factor_never_falls_below_its_lowest_value(name, data):
    """Rounding never takes the factor below the low end that was asked for."""
    policy = data.draw(POLICY_STRATEGIES[name])
    assert policy.at(data.draw(steps())).lr_factor >= LOWEST[name](policy)


@given(policies("Triangular", "Triangular2", "ExpRange", "OneCycle"), steps())
def test_momentum_stays_in_its_range(policy, step):
    """Momentum is in [base_momentum, max_momentum], exactly, and None where it does not cycle."""
    momentum = policy.at(step).momentum
    if policy.cycle_momentum:
        assert policy.base_momentum <= momentum <= policy.max_momentum
    else:
        assert momentum is None


@given(
    policies(
        "Constant",
        "CosineRestarts",
        "CosineWave",
        "CosineDecay",
        "LinearDecay",
        "PolynomialDecay",
        "LambdaPolicy",
        "LinearRamp",
    ),
    steps(),
)
def test_other_policies_leave_momentum_alone(policy, step):
    """A policy that has no momentum to cycle says None."""
    assert policy.at(step).momentum is None


kinds = policies() | finite_policies() | periodic_policies() | POLICY_STRATEGIES["Plateau"]


@given(kinds, st.lists(steps(), min_size=1, max_size=20))
@example(Triangular(1, div_factor=1.0, base_momentum=0.0, max_momentum=2.5e-254), [0])  # on a device it stays above 0
def test_it_passes_the_checks_for_policies_of_users(policy, asked):
    """Asking changes nothing, in any order; cycles repeat exactly; after its end it holds; and more, near and far."""
    check_policy(policy, asked)


@given(policies() | POLICY_STRATEGIES["Plateau"], steps())
def test_a_copy_is_the_same_policy(policy, step):
    """Pickling and copying, before and after use, give an equal policy of equal hash, repr and values."""
    for _ in range(2):
        for twin in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy), copy.copy(policy)):
            assert twin == policy
            assert hash(twin) == hash(policy)
            assert repr(twin) == repr(policy)
            assert twin.at(step) == policy.at(step)


@given(policies() | POLICY_STRATEGIES["Plateau"])
def test_a_policy_prints_its_fields_and_keeps_them(policy):
    """The repr names the class and every field, and no field can be set."""
    text = repr(policy)
    assert text.startswith(type(policy).__name__ + "(")
    for field in dataclasses.fields(policy):
        assert f"{field.name}={getattr(policy, field.name)!r}" in text
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, field.name, 1)


@given(policies(), steps())
def test_equal_policies_have_equal_values(policy, step):
    """A policy made anew of the same arguments is equal, with equal hash, description and values."""
    twin = dataclasses.replace(policy)
    assert twin == policy
    assert hash(twin) == hash(policy)
    assert describe(twin) == describe(policy)
    assert twin.at(step) == policy.at(step)


@given(lengths(), st.integers(1, 100), st.integers(1, 5), steps())
def test_whole_floats_are_the_same_numbers_as_ints(up, div_factor, growth, step):
    """An argument given as 10 or as 10.0 makes the same policy with the same values."""
    ints = Triangular(up, div_factor=div_factor, cycle_growth=growth)
    floats = Triangular(up, div_factor=float(div_factor), cycle_growth=float(growth))
    assert ints == floats
    assert hash(ints) == hash(floats)
    assert ints.at(step) == floats.at(step)


@given(policies(), steps())
def test_a_numpy_step_is_a_step(policy, step):
    """A step counted by numpy gives the same plain floats as an int."""
    values = policy.at(np.int64(step))
    assert values == policy.at(step)
    assert type(values.lr_factor) is float


# --- after the end, and again and again


@pytest.mark.parametrize("name", ["OneCycle", "CosineDecay", "PolynomialDecay", "LinearRamp", "ExponentialRamp"])
@given(data=st.data())
def test_a_decay_has_not_ended_before_its_end(name, data):
    """The step before ``policy.end`` is still on its way, where there is a way to go."""
    policy = data.draw(POLICY_STRATEGIES[name])
    first, last = policy.at(0).lr_factor, policy.at(policy.end).lr_factor
    assume(abs(first - last) > 1e-3 * last)
    # A power below or far above 1 makes the last stretch of a polynomial very steep or very flat.
    assume(name != "PolynomialDecay" or policy.power < 4)
    # The third phase leads from the initial rate to that over this factor.
    assume(name != "OneCycle" or not policy.three_phase or abs(policy.final_div_factor - 1) > 1e-3)
    assert policy.at(policy.end - 1).lr_factor != last


@given(cyclic_policies())
def test_only_unscaled_cycles_claim_a_period(policy):
    """A policy whose cycles grow or whose height changes claims no period, and none of the cyclic ones ends."""
    repeats = (isinstance(policy, CosineRestarts) and policy.t_mult == 1 and policy.gamma == 1) or (
        isinstance(policy, Triangular) and policy.cycle_growth == 1 and policy.scale_fn is None
    )
    assert (policy.period is not None) == repeats
    assert policy.end is None


def test_growth_scale_and_decay_end_the_period():
    """Growing or scaling the cycles of a periodic policy leaves it without a period."""
    assert Triangular(3, 4).period == 7
    assert Triangular(3).period == 6
    assert CosineRestarts(5).period == 5
    assert Triangular(3, cycle_growth=2).period is None
    assert Triangular(3, scale_fn=halving).period is None
    assert CosineRestarts(5, 1.5).period is None
    assert CosineRestarts(5, gamma=0.5).period is None
    assert Triangular2(3).period is None


# --- peaks and ends


@given(lengths(), lengths(), div_factors(), momenta(), growths())
def test_triangular_starts_peaks_and_ends_exactly(up, down, div_factor, momentum, growth):
    """The first triangle goes from exactly 1/div_factor to exactly 1 and back, momentum inversely."""
    policy = Triangular(up, down, div_factor, growth, **momentum)
    low, high = (momentum["max_momentum"], momentum["base_momentum"]) if policy.cycle_momentum else (None, None)
    assert policy.at(0) == Values(1 / div_factor, low)
    assert policy.at(up) == Values(1.0, high)
    assert policy.at(up + down) == Values(1 / div_factor, low)


@given(one_cycles_that_climb())
def test_one_cycle_starts_and_ends_exactly(policy):
    """OneCycle starts at exactly 1/div_factor and ends at exactly 1/div_factor/final_div_factor."""
    rest = policy.max_momentum if policy.cycle_momentum else None
    assert policy.at(0) == Values(1 / policy.div_factor, rest)
    assert policy.at(policy.total_steps - 1) == Values(1 / policy.div_factor / policy.final_div_factor, rest)
    assert policy.end == policy.total_steps - 1


@given(st.integers(2, 10**6), st.sampled_from([2, 4, 8]), cos_or_linear, st.booleans(), momenta())
def test_one_cycle_peaks_exactly(climb, parts, anneal_strategy, three_phase, momentum):
    """Where pct_start * total_steps is whole, the step before it is at exactly 1 with the base momentum."""
    policy = OneCycle(climb * parts, 1 / parts, anneal_strategy, three_phase=three_phase, **momentum)
    assert policy.at(climb - 1) == Values(1.0, policy.base_momentum if policy.cycle_momentum else None)
    if three_phase:
        assert policy.at(2 * climb - 2).lr_factor == 1 / policy.div_factor


@given(lengths(), units(), units(), positive_units(), positive_units(), st.floats(0.1, 5))
def test_ramps_and_decays_start_and_end_exactly(length, start, stop, low, high, power):
    """The finite one-way policies start and end at exactly the values that were asked for."""
    for policy, first, last in (
        (LinearRamp(length, start, stop), start, stop),
        (ExponentialRamp(length, low, high), low, high),
        (CosineDecay(length, stop), 1.0, stop),
        (PolynomialDecay(length, power), 1.0, 0.0),
        (PolynomialDecay(length, power, stop), 1.0, stop),
        (WarmupStableDecay(length, 0, length, "sqrt", stop), 1.0, stop),
    ):
        assert (policy.at(0).lr_factor, policy.at(length).lr_factor) == (first, last), policy
        assert policy.end == length


@given(POLICY_STRATEGIES["WarmupStableDecay"])
@example(WarmupStableDecay(0, 0, 0))
@example(WarmupStableDecay(1, 0, 0))
def test_warmup_stable_decay_is_a_trapezoid(policy):
    """It rises by equal steps from above 0, is exactly 1 from the warm-up to the cool-down, and ends at its minimum."""
    stable = policy.total_steps - policy.decay
    # Of no steps at all there is the end alone.
    assert policy.at(0).lr_factor == (1 / (policy.warmup + 1) if policy.total_steps else policy.min_factor)
    # Without a cool-down the minimum comes right after the stable part.
    assert all(policy.at(step).lr_factor == 1.0 for step in range(policy.warmup, stable + (policy.decay > 0)))
    assert policy.at(policy.total_steps).lr_factor == policy.min_factor


@given(st.lists(st.integers(0, 60), max_size=6).map(sorted), gammas(), st.integers(0, 70))
def test_multi_step_decay_drops_once_per_milestone(milestones, gamma, step):
    """The factor is gamma to the number of milestones reached, repeated ones counted each time."""
    policy = MultiStepDecay(milestones, gamma)
    assert policy.at(step).lr_factor == gamma ** sum(milestone <= step for milestone in milestones)


@given(lengths(), gammas(), st.integers(0, 20))
def test_step_decay_holds_then_drops(step_size, gamma, drops):
    """The factor is gamma**k from step k * step_size to just before the next drop, exactly."""
    policy = StepDecay(step_size, gamma)
    assert policy.at(drops * step_size).lr_factor == gamma**drops
    assert policy.at((drops + 1) * step_size - 1).lr_factor == gamma**drops


# --- shape


def _triangle_slope(policy):
    return (1 - 1 / policy.div_factor) / min(ramps_of(policy))


def _one_cycle_slope(policy):
    top = policy.pct_start * policy.total_steps - 1
    foot = 2 * top if policy.three_phase else policy.total_steps - 1
    steepest = max(1 / top, 1 / (foot - top), 1 / policy.div_factor / max(policy.total_steps - 1 - foot, 1))
    return steepest * (math.pi / 2 if policy.anneal_strategy == "cos" else 1)


def _cool_down_slope(policy):
    if policy.decay == 0:
        return max(1 / (policy.warmup + 1), 1 - policy.min_factor)
    steepest = {"linear": 1, "cosine": math.pi / 2, "sqrt": math.sqrt(policy.decay)}[policy.shape] / policy.decay
    return max(1 / (policy.warmup + 1), (1 - policy.min_factor) * steepest)


SLOPES = {
    "Constant": lambda policy: 0,
    "Triangular": lambda policy: _triangle_slope(policy) if policy.scale_fn is None else math.inf,
    "Triangular2": _triangle_slope,
    "ExpRange": lambda policy: _triangle_slope(policy) + 1 - policy.gamma,
    "CosineDecay": lambda policy: math.pi / 2 * (1 - policy.min_factor) / max(policy.t_max, 1),
    "PolynomialDecay": lambda policy: policy.power / max(policy.total_iters, 1) if policy.power >= 1 else math.inf,
    "ExponentialDecay": lambda policy: 1 - policy.gamma,
    "InverseTimeDecay": lambda policy: policy.k,
    "WarmupStableDecay": _cool_down_slope,
    "LinearRamp": lambda policy: abs(policy.end_factor - policy.start_factor) / max(policy.total_iters, 1),
    "ExponentialRamp": lambda policy: (
        max(policy.end_factor, policy.start_factor)
        * abs(math.log(policy.end_factor / policy.start_factor))
        / max(policy.total_iters, 1)
    ),
}


@pytest.mark.parametrize("name", SLOPES)
@given(data=st.data())
def test_no_jump_is_larger_than_the_slope_allows(name, data):
    """From one step to the next a continuous policy moves by at most its steepest slope."""
    policy = data.draw(POLICY_STRATEGIES[name])
    assert_no_jump(policy, data.draw(steps()), SLOPES[name](policy))


@given(one_cycles_that_climb(), steps())
def test_one_cycle_makes_no_jump_either(policy, step):
    """The same of OneCycle, where it climbs."""
    assert_no_jump(policy, step, _one_cycle_slope(policy))


def assert_no_jump(policy, step, slope):
    jump = abs(policy.at(step + 1).lr_factor - policy.at(step).lr_factor)
    assert jump <= slope * (1 + 1e-9) + 1e-15


@given(st.lists(lengths(), min_size=2, max_size=2), div_factors(), growths(), st.integers(0, 8), st.data())
def test_triangles_rise_then_fall(ramps, div_factor, growth, number, data):
    """Within a cycle the factor rises strictly up to the peak and falls strictly after it, momentum the other way."""
    up, down = ramps
    assume(div_factor > 1.01)
    bounds = boundaries(up, down, growth)
    start, peak, end = [next(bounds) for _ in range(number + 1)][-1]
    rising, falling = data.draw(st.integers(start, peak - 1)), data.draw(st.integers(peak, end - 1))
    for policy in (Triangular(up, down, div_factor, growth), Triangular2(up, down, div_factor, growth)):
        assert policy.at(rising).lr_factor < policy.at(rising + 1).lr_factor
        assert policy.at(rising).momentum > policy.at(rising + 1).momentum
        assert policy.at(falling).lr_factor > policy.at(falling + 1).lr_factor
        assert policy.at(falling).momentum < policy.at(falling + 1).momentum


@given(
    policies("CosineDecay", "PolynomialDecay", "ExponentialDecay", "StepDecay", "MultiStepDecay", "InverseTimeDecay")
)
def test_decays_never_rise(policy):
    """A decay's factor never rises, starting from at most 1."""
    trace = lr_factors(policy, 300)
    assert trace == sorted(trace, reverse=True)
    assert policy.at(10**9).lr_factor <= trace[-1]


@given(policies("LinearRamp", "ExponentialRamp"))
def test_ramps_go_one_way(policy):
    """A ramp never turns back on its way from its start to its end."""
    trace = lr_factors(policy, min(policy.total_iters, 300) + 1)
    assert trace == sorted(trace, reverse=policy.start_factor > policy.end_factor)


@given(POLICY_STRATEGIES["WarmupStableDecay"])
def test_warmup_stable_decay_rises_then_falls(policy):
    """It never falls up to the cool-down and never rises from there on."""
    trace = lr_factors(policy, min(policy.total_steps + 3, 600))
    turn = policy.total_steps - policy.decay
    # Without a cool-down the turn is at the minimum already.
    up = trace[: turn + (policy.decay > 0)]
    assert up == sorted(up)
    assert trace[turn:] == sorted(trace[turn:], reverse=True)


@given(one_cycles_that_climb())
def test_one_cycle_rises_then_falls(policy):
    """It never falls up to its peak and never rises after it; momentum does the opposite."""
    turn = math.floor(policy.pct_start * policy.total_steps - 1) + 1
    values = [policy.at(step) for step in range(policy.total_steps)]
    for sign, trace in ((1, [value[0] for value in values]), (-1, [value[1] for value in values])):
        if trace[0] is not None:
            signed = [sign * item for item in trace]
            assert signed[:turn] == sorted(signed[:turn])
            assert signed[turn:] == sorted(signed[turn:], reverse=True)


@given(lengths(), st.integers(1, 3), units(), st.integers(0, 3))
def test_restarts_fall_and_jump_back_to_the_peak(t_0, t_mult, min_factor, number):
    """Within a cycle the factor never rises; the first step of each cycle is at exactly 1."""
    policy = CosineRestarts(t_0, t_mult, min_factor)
    start = t_0 * sum(t_mult**k for k in range(number))
    trace = [policy.at(start + step).lr_factor for step in range(min(t_0 * t_mult**number, 300))]
    assert trace == sorted(trace, reverse=True)
    assert trace[0] == 1.0


@given(lengths(), st.booleans(), div_factors(), st.integers(1, 4), momenta(), st.integers(0, 5), st.data())
def test_equal_ramps_are_mirror_images(up, spelled_out, div_factor, growth, momentum, number, data):
    """Equally far before and after a peak between equal ramps the values are equal, bit for bit."""
    down = up if spelled_out else None
    peak = 2 * up * sum(growth**k for k in range(number)) + up * growth**number
    away = data.draw(st.integers(0, up * growth**number))
    for kind in (Triangular, Triangular2):
        policy = kind(up, down, div_factor, growth, **momentum)
        assert policy.at(peak - away) == policy.at(peak + away)


@given(st.integers(2, 5000), st.sampled_from([2, 4, 8]), cos_or_linear, momenta(), st.data())
def test_three_phases_mirror_the_climb(climb, parts, anneal_strategy, momentum, data):
    """The first two of three phases are mirror images, bit for bit, where the peak is at a whole step."""
    policy = OneCycle(climb * parts, 1 / parts, anneal_strategy, three_phase=True, **momentum)
    away = data.draw(st.integers(0, climb - 1))
    assert policy.at(climb - 1 - away) == policy.at(climb - 1 + away)


# --- heights, and momentum against the rate


@given(lengths(), st.none() | lengths(), div_factors(), growths(), momenta(), st.integers(0, 60))
def test_triangular2_halves_its_height_each_cycle(up, down, div_factor, growth, momentum, number):
    """The peak of cycle k stands 2**-k of the full height above the base, in rate and in momentum."""
    policy = Triangular2(up, down, div_factor, growth, **momentum)
    bounds = boundaries(up, down or up, growth)
    _, peak, _ = [next(bounds) for _ in range(number + 1)][-1]
    assume(peak < FAR)
    values = policy.at(peak)
    assert_within_ulps(values.lr_factor, exact_between(1 / div_factor, 1, Fraction(1, 2**number)))
    if policy.cycle_momentum:
        expected = exact_between(policy.max_momentum, policy.base_momentum, Fraction(1, 2**number))
        assert_within_ulps(values.momentum, expected)


@given(POLICY_STRATEGIES["ExpRange"], st.integers(0, 200))
def test_exp_range_decays_by_gamma_per_step(policy, step):
    """The height above the base is the plain triangle's times gamma**step."""
    up, down = ramps_of(policy)
    _, *bounds = cycle_at(step, up, down, policy.cycle_growth)
    height = exact_height(step, *bounds) * Fraction(policy.gamma) ** step
    assert_within_ulps(policy.at(step).lr_factor, exact_between(1 / policy.div_factor, 1, height))


@given(POLICY_STRATEGIES["ExpRange"], steps())
def test_exp_range_without_decay_is_triangular(policy, step):
    """With gamma=1 it is Triangular, bit for bit."""
    arguments = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    del arguments["gamma"]
    assert dataclasses.replace(policy, gamma=1).at(step) == Triangular(**arguments).at(step)


@given(triangular_policies(), steps())
def test_momentum_of_a_triangle_moves_inversely(policy, step):
    """Momentum is as far below its maximum as the rate is above its base, in shares of their ranges."""
    assume(policy.div_factor > 1.01)
    policy = dataclasses.replace(policy, cycle_momentum=True)
    base = 1 / policy.div_factor
    lr_factor, momentum, _ = policy.at(step)
    height = (lr_factor - base) / (1 - base)
    expected = policy.max_momentum - (policy.max_momentum - policy.base_momentum) * height
    assert momentum == pytest.approx(expected, rel=0, abs=1e-12)


@given(one_cycles_that_climb(), st.data())
def test_momentum_of_one_cycle_moves_inversely(policy, data):
    """On each ramp momentum mirrors the rate between that ramp's ends; in the third phase it stays at its maximum."""
    policy = dataclasses.replace(policy, cycle_momentum=True, div_factor=max(policy.div_factor, 1.1))
    step = data.draw(st.integers(0, policy.end))
    top = float(policy.pct_start * policy.total_steps) - 1
    lr_factor, momentum, _ = policy.at(step)
    if policy.three_phase and step > 2 * top:
        assert momentum == policy.max_momentum
        return
    low = 1 / policy.div_factor
    if step > top and not policy.three_phase:
        low /= policy.final_div_factor
    expected = policy.max_momentum - (policy.max_momentum - policy.base_momentum) * (lr_factor - low) / (1 - low)
    assert momentum == pytest.approx(expected, rel=0, abs=1e-12)


# --- cycles that grow


@given(
    lengths(),
    st.none() | lengths(),
    growths() | st.sampled_from([1.25, 1 + 2**-52, 1.1, math.e]) | st.integers(1, 10),
    st.integers(0, 60),
)
def test_cycles_grow_by_cycle_growth(up, down, growth, number):
    """Each cycle starts, peaks and ends at the exact geometric series, rounded down to whole steps."""
    bounds = boundaries(up, down or up, growth)
    start, peak, end = [next(bounds) for _ in range(number + 1)][-1]
    assume(end <= FAR)
    policy = Triangular(up, down, cycle_growth=growth)
    lowest = 1 / policy.div_factor
    assert [policy.at(step).lr_factor for step in (start, peak, end)] == [lowest, 1.0, lowest]
    for step in range(start + 1, min(start + 50, end)):
        height = exact_height(step, start, peak, end)
        assert_within_ulps(policy.at(step).lr_factor, exact_between(lowest, 1, height))


@pytest.mark.parametrize("growth", [2.2935029433755214, 1.2675562789698434, math.pi, 1 + 2**-52])
def test_the_second_of_very_long_cycles_starts_on_its_step(growth):
    """However many digits length times growth has, the second cycle starts right after the whole first one."""
    for length in range(FAR - 200, FAR):
        assert Triangular(length - 47, 47, cycle_growth=growth).at(length).lr_factor == 0.1
        assert CosineRestarts(length, growth).at(length).lr_factor == 1.0


@given(st.integers(2, 5000), growths() | st.sampled_from([1.25, 1.1, math.e]) | st.integers(1, 10), st.integers(0, 60))
def test_restarts_grow_by_t_mult(t_0, t_mult, number):
    """Each restart is at the exact geometric series, rounded down to whole steps."""
    bounds = boundaries(t_0, 0, t_mult)
    start, _, end = [next(bounds) for _ in range(number + 1)][-1]
    assume(end <= FAR)
    policy = CosineRestarts(t_0, t_mult)
    assert policy.at(start).lr_factor == policy.at(end).lr_factor == 1.0
    assert 0 < policy.at(end - 1).lr_factor < 1
    assert_relative(policy.at(end - 1).lr_factor, exact_rise(Fraction(1, end - start)))


@given(
    st.integers(1, 50), st.integers(1, 50), st.sampled_from([1 + 1e-9, 1 + 1e-7, 1 + 2**-52]), st.integers(0, 9 * 10**6)
)
def test_cycles_that_barely_grow_keep_their_phase(up, down, growth, number):
    """Millions of cycles that grow by almost nothing start and peak where two hundred digits put them."""
    with localcontext() as context:
        context.prec = 200
        ratio = Decimal(growth)
        start = (up + down) * (ratio**number - 1) / (ratio - 1)
        peak = start + up * ratio**number
    assume(peak < FAR)
    policy = Triangular(up, down, cycle_growth=growth)
    assert policy.at(int(start)).lr_factor == 1 / policy.div_factor
    assert policy.at(int(peak)).lr_factor == 1.0
    assert policy.at(int(peak) - 1).lr_factor < 1.0
    assert policy.at(int(peak) + 1).lr_factor < 1.0


# --- relations between policies

LENGTH_FIELDS = {
    "Triangular": ("step_size_up", "step_size_down"),
    "Triangular2": ("step_size_up", "step_size_down"),
    "CosineRestarts": ("t_0",),
    "CosineDecay": ("t_max",),
    "PolynomialDecay": ("total_iters",),
    "LinearRamp": ("total_iters",),
    "ExponentialRamp": ("total_iters",),
    "StepDecay": ("step_size",),
    "MultiStepDecay": ("milestones",),
}


@pytest.mark.parametrize("name", LENGTH_FIELDS)
@given(data=st.data())
def test_time_scales(name, data):
    """A policy k times as long says at step k * s exactly what the original says at step s."""
    policy = data.draw(POLICY_STRATEGIES[name])
    for field in ("cycle_growth", "t_mult"):
        if hasattr(policy, field):
            # Boundaries of fractional growth are rounded to whole steps, which does not scale.
            policy = dataclasses.replace(policy, **{field: data.draw(st.integers(1, 4))})
    assume(getattr(policy, "scale_mode", "cycle") == "cycle")
    k, step = data.draw(st.integers(1, 1000)), data.draw(steps(10**6))
    longer = {}
    for field in LENGTH_FIELDS[name]:
        length = getattr(policy, field)
        if length is not None:
            longer[field] = tuple(k * item for item in length) if isinstance(length, tuple) else k * length
    assert dataclasses.replace(policy, **longer).at(k * step) == policy.at(step)


@given(st.floats(1e-6, 1), st.integers(1, 100), st.integers(0, 10**6))
def test_inverse_time_decay_scales(k, factor, step):
    """Time and rate of decay are interchangeable: k at step n * s is n * k at step s."""
    slow, fast = InverseTimeDecay(k).at(factor * step), InverseTimeDecay(factor * k).at(step)
    assert slow.lr_factor == pytest.approx(fast.lr_factor, rel=1e-14, abs=0)


@given(st.floats(0.9, 1), st.integers(0, 500), st.integers(0, 500))
def test_exponential_decay_multiplies(gamma, one, other):
    """The factor after a + b steps is the product of the factors after a and after b."""
    policy = ExponentialDecay(gamma)
    product = policy.at(one).lr_factor * policy.at(other).lr_factor
    assert policy.at(one + other).lr_factor == pytest.approx(product, rel=1e-14, abs=0)


@given(lengths(), positive_units(), positive_units(), st.data())
def test_exponential_ramp_has_equal_ratios(length, start, stop, data):
    """Equally many steps change the rate by equal ratios, as a logarithmic axis needs."""
    assume(length >= 2)
    policy = ExponentialRamp(length, start, stop)
    middle = data.draw(st.integers(1, length - 1))
    before, here, after = (policy.at(middle + side).lr_factor for side in (-1, 0, 1))
    assert here / before == pytest.approx(after / here, rel=1e-12, abs=0)


@given(lengths(), units(), st.data())
def test_falling_and_rising_ramps_mirror_each_other(length, start, data):
    """A ramp from a to b, read backwards, is the ramp from b to a."""
    stop, step = data.draw(units()), data.draw(st.integers(0, length))
    falling, rising = LinearRamp(length, start, stop).at(step), LinearRamp(length, stop, start).at(length - step)
    assert falling.lr_factor == pytest.approx(rising.lr_factor, rel=1e-13, abs=1e-15)


def updated(values, later):
    """The later values, and the ones before where a later one leaves them alone."""
    return Values(*(old if new is None else new for old, new in zip(values, later, strict=True)))


@given(st.lists(policies(), min_size=1, max_size=4), st.data())
def test_sequential_equals_its_parts(parts, data):
    """Each part is in force from its milestone on; momentum and weight decay keep the last value of a part before."""
    cuts = data.draw(
        st.lists(st.integers(1, 100), min_size=len(parts) - 1, max_size=len(parts) - 1, unique=True).map(sorted)
    )
    step = data.draw(st.integers(0, 150) | st.integers(0, FAR))
    starts = [0, *cuts]
    index = bisect_right(cuts, step)
    values = parts[index].at(step - starts[index])
    carried = Values(values.lr_factor)
    for part, begin, stop in zip(parts[:index], starts, cuts, strict=False):
        carried = updated(carried, part.at(stop - 1 - begin))
    assert Sequential(parts, cuts).at(step) == updated(carried, values)._replace(lr_factor=values.lr_factor)


@given(triangular_policies(), policies("CosineDecay", "Constant"), st.integers(1, 60), st.integers(1, 60), steps())
def test_sequential_keeps_the_momentum_it_had(policy, still, first, second, step):
    """Parts that leave momentum alone go on with what the last step before them had."""
    policy = dataclasses.replace(policy, cycle_momentum=True)
    sequence = Sequential([policy, still, still], [first, first + second])
    assert sequence.at(first + step).momentum == policy.at(first - 1).momentum


@given(st.lists(policies(), min_size=1, max_size=3), steps())
def test_sequential_of_one_is_that_one(parts, step):
    """A sequence of one policy is that policy."""
    assert Sequential(parts[:1], []).at(step) == parts[0].at(step)


@given(policies(), st.integers(1, 1000), steps())
def test_sequential_shifts(policy, start, step):
    """A policy put after another starts from its own step 0 when its turn comes."""
    assert Sequential([Constant(), policy], [start]).at(start + step) == policy.at(step)


@given(periodic_policies(), st.integers(1, 100), steps())
def test_a_cycle_after_whole_cycles_of_itself_changes_nothing(policy, cycles, step):
    """A periodic policy that takes over from itself after whole periods is the same as going on."""
    assert Sequential([policy, policy], [cycles * policy.period]).at(step) == policy.at(step)


@given(finite_policies(), lengths())
def test_sequential_ends_when_its_last_part_does(policy, start):
    """The end of a sequence is its last part's, counted from that part's start."""
    assert Sequential([Constant(), policy], [start]).end == start + policy.end
    assert Sequential([policy, ExponentialDecay(0.5)], [start]).end is None


@given(lengths(), units(), steps())
def test_a_cosine_wave_is_its_first_half_there_and_back(t_max, min_factor, step):
    """The wave is CosineDecay down to t_max, and the same values in reverse after it."""
    wave, half = CosineWave(t_max, min_factor), CosineDecay(t_max, min_factor)
    position = step % (2 * t_max)
    assert wave.at(step) == half.at(min(position, 2 * t_max - position))
    assert (wave.at(0).lr_factor, wave.at(t_max).lr_factor) == (1.0, min_factor)


@given(policies(), lengths(), steps(10**6), st.data())
def test_a_staircase_holds_each_value(policy, length, step, data):
    """Each step of the policy lasts for ``length`` steps, and so do its period and its end."""
    staircase = Staircase(policy, length)
    assert staircase.at(step * length + data.draw(st.integers(0, length - 1))) == policy.at(step)
    for name in ("period", "end"):
        inside = getattr(policy, name)
        assert getattr(staircase, name) == (None if inside is None else inside * length)


@given(st.integers(1, 50), st.integers(1, 50), gammas(), steps())
def test_a_staircase_of_step_decay_is_a_longer_step_decay(step_size, length, gamma, step):
    """Counting in epochs and counting in steps come to the same."""
    assert Staircase(StepDecay(step_size, gamma), length).at(step) == StepDecay(step_size * length, gamma).at(step)


@given(policies(), units(), steps())
def test_scaling_multiplies_the_rate_alone(policy, factor, step):
    """The rate is ``factor`` times the policy's; momentum, weight decay, period and end are the policy's."""
    scaled, (lr_factor, *others) = Scaled(policy, factor), policy.at(step)
    assert scaled.at(step) == Values(lr_factor * factor, *others)
    assert (scaled.period, scaled.end) == (policy.period, policy.end)


# --- no loss of phase: steps up to 10**9 and beyond against exact arithmetic


@given(
    far_lengths,
    st.none() | far_lengths,
    div_factors(),
    st.sampled_from([1, 2, 3, 10, 2.0, 1.5]) | st.floats(1.25, 3),
    steps(),
    momenta(),
)
def test_triangular_is_exact_at_any_step(up, down, div_factor, growth, step, momentum):
    """The triangle is the exact one to a few units in the last place, however far it is from the start."""
    momentum["cycle_momentum"] = True
    lr_factor, shown, _ = Triangular(up, down, div_factor, growth, **momentum).at(step)
    _, *bounds = cycle_at(step, up, down or up, growth)
    height = exact_height(step, *bounds)
    assert_within_ulps(lr_factor, exact_between(1 / div_factor, 1, height))
    exact = exact_between(momentum["max_momentum"], momentum["base_momentum"], height)
    assert_within_ulps(shown, exact)


@given(far_lengths, units(), units(), st.data())
def test_linear_ramp_is_exact_at_any_step(length, start, stop, data):
    """The straight line is the exact one to a few units in the last place, up or down, also next to 0."""
    step = data.draw(steps(length))
    value = LinearRamp(length, start, stop).at(step).lr_factor
    assert_within_ulps(value, exact_between(start, stop, Fraction(step, length)))


@given(st.integers(4, FAR), st.data(), cos_or_linear, div_factors(), div_factors(1e6), st.booleans())
def test_one_cycle_is_exact_at_any_step(total_steps, data, anneal_strategy, div_factor, final_div_factor, three_phase):
    """The ramps between the turning points are exact, the last one right down to its far lower end."""
    pct_start = data.draw(st.floats(1.001 / total_steps, 0.5 if three_phase else 0.99))
    step = data.draw(steps(total_steps - 1))
    policy = OneCycle(
        total_steps,
        pct_start,
        anneal_strategy,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
    )
    # Torch computes the turning points in floats; they are part of what is asked for.
    top, foot = Fraction(pct_start * total_steps - 1), Fraction(2 * pct_start * total_steps - 2)
    first, last = 1 / div_factor, 1 / div_factor / final_div_factor
    if step <= top:
        low, high, fraction = first, 1, step / top
    elif three_phase and step <= foot:
        low, high, fraction = first, 1, (foot - step) / (foot - top)
    else:
        begin, high = (foot, first) if three_phase else (top, 1)
        low, fraction = last, (total_steps - 1 - step) / (total_steps - 1 - begin)
    if anneal_strategy == "linear":
        assert_within_ulps(policy.at(step).lr_factor, exact_between(low, high, fraction))
    else:
        assert_relative(policy.at(step).lr_factor, exact_between(low, high, exact_rise(fraction)))


@given(far_lengths, units(), st.data())
def test_cosine_decay_is_exact_at_any_step(t_max, min_factor, data):
    """The cosine is right to 1e-13 of its own value, also in the last steps before 0."""
    step = data.draw(steps(t_max))
    exact = exact_between(min_factor, 1, exact_rise(Fraction(t_max - step, t_max)))
    assert_relative(CosineDecay(t_max, min_factor).at(step).lr_factor, exact)


@given(far_lengths, st.sampled_from([1, 2, 3, 1.5]) | st.floats(1.25, 3), units(), steps())
def test_restarts_are_exact_at_any_step(t_0, t_mult, min_factor, step):
    """The warm restarts are right to 1e-13 of their own value, also in the last steps before one."""
    _, start, _, end = cycle_at(step, t_0, 0, t_mult)
    exact = exact_between(min_factor, 1, exact_rise(Fraction(end - step, end - start)))
    assert_relative(CosineRestarts(t_0, t_mult, min_factor).at(step).lr_factor, exact)


def exact_cool_down(shape, gone, decay):
    left = Fraction(decay - gone, decay)
    with localcontext() as context:
        context.prec = 60
        return {
            "linear": left,
            "cosine": exact_rise(left),
            "sqrt": 1 - Fraction((Decimal(gone) / Decimal(decay)).sqrt()),
        }[shape]


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
@given(st.integers(0, FAR), far_lengths, far_lengths, st.just(0.0) | units(), st.data())
def test_warmup_stable_decay_is_exact_at_any_step(shape, warmup, stable, decay, min_factor, data):
    """Warm-up and cool-down are right to 1e-13 of their own value, also in the first and last steps of it."""
    policy = WarmupStableDecay(warmup + stable + decay, warmup, decay, shape, min_factor)
    value = policy.at(data.draw(st.just(0) | steps(warmup))).lr_factor
    assert 1 / (warmup + 1) <= value <= 1
    gone = data.draw(steps(decay))
    exact = exact_cool_down(shape, gone, decay)
    assert_relative(policy.at(warmup + stable + gone).lr_factor, exact_between(min_factor, 1, exact))


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
@pytest.mark.parametrize("decay", [10**3, 10**6, 10**9])
def test_cool_down_is_exact_at_its_very_ends(shape, decay):
    """The first and the last steps of a cool-down to 0 keep all their digits, however long it is."""
    policy = WarmupStableDecay(decay, 0, decay, shape)
    for gone in (1, 2, decay // 2, decay - 2, decay - 1):
        assert_relative(policy.at(gone).lr_factor, exact_cool_down(shape, gone, decay))


@given(st.floats(1e-9, 10), steps())
def test_inverse_time_decay_is_exact_at_any_step(k, step):
    """The classic decay is the exact one to a few units in the last place."""
    assert_within_ulps(InverseTimeDecay(k).at(step).lr_factor, 1 / (1 + Fraction(k) * step))


@given(far_lengths, positive_units(), positive_units(), st.data())
def test_exponential_ramp_is_exact_at_any_step(length, start, stop, data):
    """The ramp of equal ratios is right to 1e-13 of its own value."""
    step = data.draw(steps(length))
    with localcontext() as context:
        context.prec = 50
        exact = Fraction(Decimal(start) * (Decimal(stop) / Decimal(start)) ** (Decimal(step) / length))
    assert_relative(ExponentialRamp(length, start, stop).at(step).lr_factor, exact)


@given(st.floats(0.999999, 1), st.integers(0, 10**6))
def test_exponential_decay_is_exact_at_any_step(gamma, step):
    """The power is right to 1e-13 of its own value after a million steps."""
    with localcontext() as context:
        context.prec = 50
        exact = Fraction(Decimal(gamma) ** step)
    assert_relative(ExponentialDecay(gamma).at(step).lr_factor, exact)


# --- as plain data


def assert_plain(data):
    assert type(data) in (dict, list, str, int, float, bool, type(None)), data
    if isinstance(data, dict):
        assert all(type(key) is str for key in data), data
        data = list(data.values())
    for item in data if isinstance(data, list) else ():
        assert_plain(item)


@given(policies() | POLICY_STRATEGIES["Plateau"])
def test_a_description_is_plain_data(policy):
    """A description holds nothing but plain data, names its policy, and survives torch.load(weights_only=True)."""
    description = describe(policy)
    assert_plain(description)
    assert description["name"] == type(policy).__name__
    assert set(description["fields"]) == {field.name for field in dataclasses.fields(policy)}
    file = io.BytesIO()
    torch.save(description, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == description


@given(plain_policies | POLICY_STRATEGIES["Plateau"], steps())
def test_a_description_rebuilds_its_policy(policy, step):
    """A policy without code comes back from its description as an equal policy with equal values."""
    rebuilt = rebuild(describe(policy))
    assert rebuilt == policy
    assert hash(rebuilt) == hash(policy)
    assert rebuilt.at(step) == policy.at(step)


@given(policies("Triangular", "LambdaPolicy", "Sequential", "Staircase").filter(carries_code))
def test_code_is_not_rebuilt_from_data(policy):
    """A policy with a function of the user's in it is refused by rebuild, and the error says which function."""
    with pytest.raises(
        ValueError, match=r"need the code of \w+\.(fn|scale_fn) \('cyclic_optim\.testing\.strategies\.\w+'\)"
    ):
        rebuild(describe(policy))


@given(policies(), policies())
def test_different_policies_have_different_descriptions(one, other):
    """Two descriptions are equal exactly when the policies are."""
    assert (describe(one) == describe(other)) == (one == other)


class Halves(Policy):
    """A user's policy in its smallest form."""

    def __init__(self, every):
        self.every = every

    def at(self, step):
        return Values(0.5 ** (step // self.every))


def test_a_users_policy_needs_nothing_but_at():
    """A subclass with ``at`` alone has no end, no period and no state, and can be described but not rebuilt."""
    policy = Halves(3)
    assert (policy.end, policy.period, policy.initial_state()) == (None, None, None)
    assert policy.after({}, 7) == policy.at(7) == Values(0.25)
    assert Sequential([Constant(), policy], [2]).at(5) == Values(0.5)
    assert describe(policy) == {"name": f"{__name__}.Halves", "fields": {"every": 3}}
    with pytest.raises(ValueError, match="need a policy of this library to rebuild"):
        rebuild(describe(policy))


def test_a_users_policy_is_not_taken_for_ours():
    """A user's class that has the name of one of ours is described by its own module."""
    impostor = type("Triangular", (Halves,), {"__module__": __name__})(3)
    assert describe(impostor)["name"] == f"{__name__}.Triangular"


# --- the classic code


def cyclical_lr(step_size, min_lr=3e-4, max_lr=3e-3, scaler=lambda cycle: 1.0):
    """The closure that was handed to LambdaLR, beside SGD with lr=1."""

    def relative(iteration):
        cycle = math.floor(1 + iteration / (2 * step_size))
        x = abs(iteration / step_size - 2 * cycle + 1)
        return max(0, 1 - x) * scaler(cycle)

    return lambda iteration: min_lr + (max_lr - min_lr) * relative(iteration)


@given(
    lengths(),
    st.floats(1e-5, 1e-3),
    st.floats(1, 100),
    st.booleans(),
    st.integers(0, 2000),
)
def test_the_classic_closure_is_triangular(step_size, min_lr, factor, halved, step):
    """LambdaPolicy takes the classic closure as it is, and Triangular gives the same learning rate."""
    max_lr = min_lr * factor
    scaler = (lambda cycle: 0.5 ** (cycle - 1)) if halved else (lambda cycle: 1.0)
    classic = LambdaPolicy(cyclical_lr(step_size, min_lr, max_lr, scaler))
    kind = Triangular2 if halved else Triangular
    ours = kind(step_size, div_factor=max_lr / min_lr)
    assert 1.0 * classic.at(step).lr_factor == pytest.approx(max_lr * ours.at(step).lr_factor, rel=0, abs=1e-12)


@given(policy=policies(), step=steps(1000))
def test_a_pickle_holds_the_fields_alone(policy, step):
    """What a policy worked out from its fields does not travel: another version may work it out differently."""
    fresh = pickle.dumps(copy.copy(policy))
    policy.at(step)
    assert pickle.dumps(policy) == fresh


def test_sequential_asks_only_for_the_steps_it_needs():
    """A function that is defined for the steps of the run alone is asked for no other, and for no step early."""
    asked = []
    table = [1.0, 0.5, 0.2]
    sequence = Sequential([LambdaPolicy(lambda step: asked.append(step) or table[step]), Constant()], [5])
    assert [sequence.at(step).lr_factor for step in range(3)] == table
    assert asked == [0, 1, 2]
