"""Every policy against its documented formula in exact arithmetic: up to step 10**9, extreme arguments included.

The formulas are written down a second time, from the docstrings, and share nothing with the package's own helpers:
fractions where a formula is rational, mpmath with 80 digits where it is not. What is piecewise linear must be right to
4 units in the last place, all else to 1e-13 of its own value; below the smallest normal float there are no 1e-13, and
the smallest float there is stands in for them.
"""

import itertools
import math
import sys
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mp, mpf
from strategies import COMPOSITES, FAR, LR_FUNCTIONS, SCALE_FUNCTIONS, steps

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    CosineWave,
    CyclicSGD,
    ExponentialDecay,
    ExponentialRamp,
    ExpRange,
    InverseTimeDecay,
    LambdaPolicy,
    LinearDecay,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Plateau,
    PolynomialDecay,
    Product,
    Scaled,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
    Triangular2,
    Values,
    Warmup,
    WarmupStableDecay,
)
from cyclic_optim.policies import POLICIES

DIGITS = 80
SMALLEST = Fraction(5e-324)


def real(number):
    """The number with 80 digits."""
    return mpf(number.numerator) / number.denominator if isinstance(number, Fraction) else mpf(number)


def power(base, exponent):
    """``base ** exponent``; what is far below the smallest float is as good as 0."""
    if base == 0:
        return mpf(0)
    logarithm = real(exponent) * mpmath.log(real(base))
    return mpmath.exp(logarithm) if logarithm > -2000 else mpf(0)


# --- the cycles: exact boundaries, found by bisection


def whole_steps(number, length, growth, into):
    """Cycle ``number``'s start plus ``into`` of its steps, scaled as it is, rounded down to whole steps."""
    if growth == 1:
        return number * length + into
    if number <= 50 or float(growth).is_integer():
        ratio = Fraction(growth)
        power = ratio**number
        return math.floor(length * (power - 1) / (ratio - 1) + into * power)
    with mp.workdps(150):
        ratio = mpf(growth)
        power = ratio**number
        exact = length * (power - 1) / (ratio - 1) + into * power
        # That far on no boundary is whole, so that the digits at hand decide.
        assert abs(exact - mpmath.nint(exact)) > mpf(10) ** -60
        return int(mpmath.floor(exact))


def cycle_around(step, up, down, growth):
    """(number, start, peak, end) of the cycle that ``step`` is in; its start is in it, its end in the next."""
    length = up + down

    def start(number):
        return whole_steps(number, length, growth, 0)

    if growth == 1:
        number = step // length
    else:
        low, high = 0, 1
        while start(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if start(middle) <= step else (low, middle)
        number = low
    return number, start(number), whole_steps(number, length, growth, up), start(number + 1)


def triangle(policy, step):
    """(cycle, x) of a triangular policy."""
    up = policy.step_size_up
    down = up if policy.step_size_down is None else policy.step_size_down
    number, start, peak, end = cycle_around(step, up, down, policy.cycle_growth)
    return number, Fraction(step - start, peak - start) if step <= peak else Fraction(end - step, end - peak)


# --- the formulas, as the docstrings have them: each returns (lr_factor, momentum)


def scaled_triangle(policy, x, scale):
    """Between 1/div_factor and 1, momentum from max_momentum to base_momentum."""
    height = real(x) * scale if isinstance(scale, mpf) else x * scale
    lowest, base, top = 1 / Fraction(policy.div_factor), Fraction(policy.base_momentum), Fraction(policy.max_momentum)
    if isinstance(height, mpf):
        lowest, base, top = real(lowest), real(base), real(top)
    return lowest + (1 - lowest) * height, top * (1 - height) + base * height if policy.cycle_momentum else None


def exact_triangular(policy, step):
    cycle, x = triangle(policy, step)
    scale = 1
    if policy.scale_fn is not None:
        scale = Fraction(policy.scale_fn(cycle + 1 if policy.scale_mode == "cycle" else step))
    return scaled_triangle(policy, x, scale)


def exact_triangular2(policy, step):
    cycle, x = triangle(policy, step)
    return scaled_triangle(policy, x, Fraction(1, 2 ** min(cycle, 5000)))  # as good as 0


def exact_exp_range(policy, step):
    _, x = triangle(policy, step)
    return scaled_triangle(policy, x, power(policy.gamma, step))


def falling_cosine(x):
    """(1 + cos(pi x)) / 2"""
    return (1 + mpmath.cospi(real(x))) / 2


def exact_one_cycle(policy, step):
    step = min(step, policy.total_steps - 1)
    # The rates are floats, and so are the turns; the first rate over the last one is that of floats, too.
    first = 1 / Fraction(policy.div_factor)
    last = first / Fraction(policy.final_div_factor)
    # The product is a float's: 0.3 * 10 steps are 3 of them. Of a run longer than floats can count it is exact.
    climbed = Fraction(policy.pct_start) * policy.total_steps
    if policy.total_steps < 2**53:
        climbed = Fraction(float(policy.pct_start * policy.total_steps))
    top = (climbed - 1, 1, policy.base_momentum)
    end = (policy.total_steps - 1, last, policy.max_momentum)
    turns = [(0, first, policy.max_momentum), top, end]
    if policy.three_phase:
        turns.insert(2, (2 * climbed - 2, first, policy.max_momentum))
    stretches = list(itertools.pairwise(turns))
    begun = [stretch for stretch in stretches if step <= stretch[1][0]] or stretches[-1:]
    (start, *from_values), (stop, *to_values) = begun[0]
    # A climb of no length is at its top.
    x = (step - start) / Fraction(stop - start) if stop != start else Fraction(1)
    between = [
        a + (b - a) * x
        if policy.anneal_strategy == "linear"
        else real(a) * falling_cosine(x) + real(b) * (1 - falling_cosine(x))
        for a, b in zip(map(Fraction, from_values), map(Fraction, to_values), strict=True)
    ]
    return between[0], between[1] if policy.cycle_momentum else None


def down_to(min_factor, height):
    least = Fraction(min_factor)
    return real(least) + real(1 - least) * height if isinstance(height, mpf) else least + (1 - least) * height


def exact_restarts(policy, step):
    number, start, _, end = cycle_around(step, policy.t_0, 0, policy.t_mult)
    least, peak = real(Fraction(policy.min_factor)), power(policy.gamma, number)
    return least + (max(peak, least) - least) * falling_cosine(Fraction(step - start, end - start)), None


def exact_cosine_wave(policy, step):
    return down_to(policy.min_factor, falling_cosine(Fraction(step, policy.t_max))), None


def exact_cosine_decay(policy, step):
    if step >= policy.t_max:
        return Fraction(policy.min_factor), None
    return exact_cosine_wave(policy, step)


def exact_polynomial(policy, step):
    if step >= policy.total_iters:
        return Fraction(policy.min_factor), None
    left = 1 - Fraction(min(step, policy.total_iters), policy.total_iters)
    return down_to(policy.min_factor, left if policy.power == 1 else power(left, policy.power)), None


def exact_cool_down(policy, step):
    if step < policy.warmup:
        return Fraction(step + 1, policy.warmup + 1), None
    if step >= policy.total_steps:
        return Fraction(policy.min_factor), None
    x = Fraction(policy.total_steps - step, policy.decay) if policy.decay else 1
    if x >= 1:
        return Fraction(1), None
    if policy.shape == "linear":
        return down_to(policy.min_factor, x), None
    return down_to(
        policy.min_factor, falling_cosine(1 - x) if policy.shape == "cosine" else 1 - mpmath.sqrt(real(1 - x))
    ), None


def exact_linear_decay(policy, step):
    if step < policy.warmup:
        return Fraction(step + 1, policy.warmup + 1), None
    if step >= policy.total_steps:
        return Fraction(policy.min_factor), None
    return down_to(policy.min_factor, Fraction(policy.total_steps - step, policy.total_steps - policy.warmup)), None


def line(start, end, step, length):
    """From one number to the other in so many steps; at the other from then on."""
    start, end = Fraction(start), Fraction(end)
    return start + (end - start) * step / length if step < length else end


def exact_linear_ramp(policy, step):
    return line(policy.start_factor, policy.end_factor, step, policy.total_iters), None


def exact_exponential_ramp(policy, step):
    if step >= policy.total_iters:
        return Fraction(policy.end_factor), None
    start, end = mpf(policy.start_factor), mpf(policy.end_factor)
    return start * (end / start) ** real(Fraction(min(step, policy.total_iters), policy.total_iters)), None


def exact_sequential(policy, step):
    """The rate of the part at the step; of momentum and weight decay what was last set, found step by step."""
    starts = [0, *policy.milestones]
    index = sum(start <= step for start in policy.milestones)
    last_steps = [step, *(start - 1 for start in reversed(starts[1 : index + 1]))]
    seen = []
    for part, start, last in zip(
        reversed(policy.policies[: index + 1]), reversed(starts[: index + 1]), last_steps, strict=True
    ):
        if last >= start:
            seen.append(exact(part, last - start if policy.restart else last))
    momenta, decays = ([values[i] for values in seen if values[i] is not None] for i in (1, 2))
    return seen[0][0], momenta[0] if momenta else None, decays[0] if decays else None


def product(one, other):
    """Rounded once more than its factors, so that it is as right as what is not piecewise linear."""
    return (real(one) if isinstance(one, Fraction) else one) * (real(other) if isinstance(other, Fraction) else other)


def exact_scaled(policy, step):
    lr_factor, *others = exact(policy.policy, step)
    factor = Fraction(policy.factor)
    return lr_factor * (real(factor) if isinstance(lr_factor, mpf) else factor), *others


def exact_warmup(policy, step):
    inside = step if policy.overlay else max(0, step - policy.total_iters)
    lr_factor, momentum, decay = exact(policy.policy, inside)
    if step >= policy.total_iters:
        return lr_factor, momentum, decay
    if policy.start_momentum is not None:
        target = momentum if isinstance(momentum, mpf) else real(momentum)
        x = real(Fraction(step, policy.total_iters))
        momentum = real(Fraction(policy.start_momentum)) * (1 - x) + target * x
    ramp = line(policy.start_factor, 1, step, policy.total_iters)
    return product(lr_factor, ramp) if policy.overlay else ramp, momentum, decay


def exact_product(policy, step):
    lr_factor, momentum, _ = exact(policy.policies[0], step)
    for part in policy.policies[1:]:
        factor, other, _ = exact(part, step)
        lr_factor, momentum = product(lr_factor, factor), other if momentum is None else momentum
    return lr_factor, momentum


def exact_combined(policy, step):
    lr_factor, momentum, decay = exact(policy.lr, step)
    if policy.momentum is not None:
        momentum = exact(policy.momentum, step)[0]
    if policy.weight_decay is not None:
        decay = exact(policy.weight_decay, step)[0]
    return lr_factor, momentum, decay


FORMULAS = {
    Constant: lambda policy, step: (Fraction(1), None),
    Triangular: exact_triangular,
    Triangular2: exact_triangular2,
    ExpRange: exact_exp_range,
    OneCycle: exact_one_cycle,
    CosineRestarts: exact_restarts,
    CosineWave: exact_cosine_wave,
    CosineDecay: exact_cosine_decay,
    PolynomialDecay: exact_polynomial,
    ExponentialDecay: lambda policy, step: (power(policy.gamma, step), None),
    StepDecay: lambda policy, step: (power(policy.gamma, step // policy.step_size), None),
    MultiStepDecay: lambda policy, step: (power(policy.gamma, sum(m <= step for m in policy.milestones)), None),
    InverseTimeDecay: lambda policy, step: (power(1 / (1 + Fraction(policy.k) * step), policy.power), None),
    LinearDecay: exact_linear_decay,
    WarmupStableDecay: exact_cool_down,
    LinearRamp: exact_linear_ramp,
    ExponentialRamp: exact_exponential_ramp,
    Sequential: exact_sequential,
    Warmup: exact_warmup,
    Product: exact_product,
    Combined: exact_combined,
    Staircase: lambda policy, step: exact(policy.policy, step // policy.length),
    Scaled: exact_scaled,
    LambdaPolicy: lambda policy, step: (Fraction(policy.fn(step)), None),
    Plateau: lambda policy, step: (Fraction(1), None),  # before any report
}


def exact(policy, step):
    """(lr_factor, momentum, weight_decay_factor): formulas leave out what their policies never change."""
    values = FORMULAS[type(policy)](policy, step)
    return *values, *[None] * (3 - len(values))


def assert_right(shown, expected, what):
    """Fractions, which come of piecewise linear formulas, to 4 units in the last place; other numbers to 1e-13."""
    if expected is None or shown is None:
        assert shown is expected, what
    elif isinstance(expected, Fraction):
        assert abs(Fraction(shown) - expected) <= 4 * Fraction(math.ulp(float(expected))), (
            *what,
            shown,
            float(expected),
        )
    else:
        bound = max(expected / 10**13, real(SMALLEST))
        assert abs(mpf(shown) - expected) <= bound, (*what, shown, mpmath.nstr(expected, 20))


def check(policy, step):
    """The values at a step are the formula's."""
    with mp.workdps(DIGITS):
        for name, shown, expected in zip(Values._fields, policy.at(step), exact(policy, step), strict=True):
            assert_right(shown, expected, (name, policy, step))


# --- the steps at which something begins or ends


def turns(policy, step):
    """The turning points of a policy, those around ``step`` where they never end."""
    match policy:
        case Triangular() | Triangular2() | ExpRange():
            down = policy.step_size_up if policy.step_size_down is None else policy.step_size_down
            return cycle_around(step, policy.step_size_up, down, policy.cycle_growth)[1:]
        case CosineRestarts():
            _, start, _, end = cycle_around(step, policy.t_0, 0, policy.t_mult)
            return start, (start + end) // 2, end
        case OneCycle():
            climbed = policy.pct_start * policy.total_steps
            return math.floor(climbed) - 1, math.floor(2 * climbed) - 2, policy.total_steps - 1
        case CosineWave():
            return [(step // policy.t_max + i) * policy.t_max for i in (0, 1)]
        case StepDecay():
            return [(step // policy.step_size + i) * policy.step_size for i in (0, 1)]
        case WarmupStableDecay():
            return policy.warmup, policy.total_steps - policy.decay, policy.total_steps
        case LinearDecay():
            return policy.warmup, policy.total_steps
        case Warmup():
            begins = 0 if policy.overlay else policy.total_iters
            return [policy.total_iters, *(begins + turn for turn in turns(policy.policy, max(0, step - begins)))]
        case Product():
            return [turn for part in policy.policies for turn in turns(part, step)]
        case Combined():
            return turns(policy.lr, step)
        case MultiStepDecay() | Sequential():
            return policy.milestones
        case Staircase():
            return [step // policy.length * policy.length, *(turn * policy.length for turn in turns(policy.policy, 0))]
        case Scaled():
            return turns(policy.policy, step)
        case _:
            return () if policy.end is None else (policy.end // 2, policy.end)


def around(policy, step, farthest=FAR):
    """``step``, the turning points, and the steps next to each."""
    asked = {turn + i for turn in (step, *turns(policy, step)) for i in (-1, 0, 1)}
    return sorted(each for each in asked if 0 <= each <= farthest)


# --- extreme arguments

BELOW_ONE, ABOVE_ONE = math.nextafter(1, 0), math.nextafter(1, 2)
LENGTHS = [1, 2, 3, 1000, FAR - 1, FAR]
DIV_FACTORS = [1, ABOVE_ONE, 10, 1e12, 1e308]
DIV_FACTORS_BELOW_1 = [BELOW_ONE, 0.5, 1e-12, 1e-150]
GAMMAS = [1, BELOW_ONE, 1 - 1e-9, 0.5, 1e-300, 5e-324]
GROWTHS = [1, ABOVE_ONE, 1 + 1e-9, 1.5, 2, math.nextafter(2, 1), 10**6, 1e300]
UNITS = [0, 5e-324, 1e-300, 1e-12, 0.5, BELOW_ONE, 1]
MOMENTA = [(0, 1), (0, 0.9), (0.8, 0.9), (5e-324, 1e-300), (1e-12, BELOW_ONE), (BELOW_ONE, 1), (0.5, 0.5), (0, 0)]
POWERS = [5e-324, 0.5, 1, 2, 1000.5, 1e9, 1e15, 1.7e308]

lengths = st.sampled_from(LENGTHS) | st.integers(1, 100) | st.integers(1, FAR)
lengths_or_0 = lengths | st.just(0)
div_factors = st.sampled_from(DIV_FACTORS) | st.floats(1, 1e12)
gammas = st.sampled_from(GAMMAS) | st.floats(0, 1, exclude_min=True) | st.floats(1 - 1e-6, 1)
growths = st.sampled_from([1, *GROWTHS]) | st.floats(1, 4) | st.floats(1, 1 + 1e-6)
units = st.sampled_from(UNITS) | st.floats(0, 1)
positive_units = st.sampled_from(UNITS[1:]) | st.floats(0, 1, exclude_min=True)
momenta = st.sampled_from(MOMENTA) | st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@st.composite
def triangles(draw, kind, **others):
    base, top = draw(momenta)
    return kind(
        draw(lengths),
        draw(st.none() | lengths),
        draw(div_factors),
        draw(growths),
        draw(st.sampled_from([True, True, False])),
        base,
        top,
        **{name: draw(strategy) for name, strategy in others.items()},
    )


def climbs(total_steps):
    """None at all, one of just no length, shorter and longer by a bit; half and all of the run."""
    none = 1 / total_steps
    return 0, math.nextafter(none, 0), none, min(1, math.nextafter(none, 1)), 0.5, math.nextafter(0.5, 1), BELOW_ONE, 1


@st.composite
def one_cycles(draw):
    three_phase = draw(st.booleans())
    total_steps = draw(lengths)
    base, top = draw(momenta)
    return OneCycle(
        total_steps,
        draw(st.sampled_from(climbs(total_steps)) | st.floats(0, 1)),
        draw(st.sampled_from(["cos", "linear"])),
        draw(st.sampled_from([True, True, False])),
        base,
        top,
        draw(div_factors | st.sampled_from(DIV_FACTORS_BELOW_1)),
        draw(div_factors | st.sampled_from(DIV_FACTORS_BELOW_1)),
        three_phase,
    )


@st.composite
def cool_downs(draw):
    warmup, stable, decay = draw(st.tuples(lengths_or_0, lengths_or_0, lengths_or_0))
    shape = draw(st.sampled_from(["linear", "cosine", "sqrt"]))
    return WarmupStableDecay(warmup + stable + decay, warmup, decay, shape, draw(units))


@st.composite
def exponential_ramps(draw):
    low, high = sorted((draw(positive_units), draw(positive_units)))
    # A ratio beyond the range of floats is refused, and what is ours to test is not.
    low = max(low, high / 1e307)
    return ExponentialRamp(draw(lengths_or_0), *draw(st.sampled_from([(low, high), (high, low)])))


@st.composite
def sequentials(draw):
    milestones = draw(st.lists(lengths_or_0, max_size=3).map(sorted))
    parts = [draw(single_policies()) for _ in range(len(milestones) + 1)]
    return Sequential(parts, milestones, draw(st.booleans()))


@st.composite
def linear_decays(draw):
    warmup, decay = draw(st.tuples(lengths_or_0, lengths_or_0))
    return LinearDecay(warmup + decay, warmup, draw(units))


@st.composite
def warmups(draw):
    policy = draw(single_policies())
    start = st.none() if policy.at(0).momentum is None else st.none() | units
    return Warmup(policy, draw(lengths_or_0), draw(units), draw(st.booleans()), draw(start))


def falling_policies():
    return single_policies().filter(lambda policy: not isinstance(policy, OneCycle))


def single_policies():
    return st.deferred(lambda: st.one_of([DRAWN[name] for name in DRAWN if name not in COMPOSED]))


COMPOSED = (*COMPOSITES, "Plateau")
DRAWN = {
    "Constant": st.just(Constant()),
    "Triangular": triangles(
        Triangular,
        scale_fn=st.none() | st.sampled_from(SCALE_FUNCTIONS),
        scale_mode=st.sampled_from(["cycle", "iterations"]),
    ),
    "Triangular2": triangles(Triangular2),
    "ExpRange": triangles(ExpRange, gamma=gammas),
    "OneCycle": one_cycles(),
    "CosineRestarts": st.builds(CosineRestarts, lengths, growths, units, st.just(1) | gammas),
    "CosineWave": st.builds(CosineWave, lengths, units),
    "CosineDecay": st.builds(CosineDecay, lengths_or_0, units),
    "PolynomialDecay": st.builds(
        PolynomialDecay, lengths_or_0, st.sampled_from(POWERS) | st.floats(0.01, 1e4), st.just(0) | units
    ),
    "ExponentialDecay": st.builds(ExponentialDecay, gammas),
    "StepDecay": st.builds(StepDecay, lengths, gammas),
    "MultiStepDecay": st.builds(MultiStepDecay, st.lists(st.integers(0, FAR), max_size=5).map(sorted), gammas),
    "InverseTimeDecay": st.builds(
        InverseTimeDecay,
        st.sampled_from([5e-324, 1, 1e9, 1.7e308]) | st.floats(1e-12, 1e12),
        st.sampled_from([1, 0.5]) | st.floats(0.01, 1),
    ),
    "WarmupStableDecay": cool_downs(),
    "LinearDecay": linear_decays(),
    "LinearRamp": st.builds(LinearRamp, lengths_or_0, units, units),
    "ExponentialRamp": exponential_ramps(),
    "Sequential": sequentials(),
    "Warmup": warmups(),
    "Product": st.builds(Product, st.lists(single_policies(), min_size=1, max_size=3)),
    # A factor of at most 1 is a momentum.
    "Combined": st.builds(Combined, single_policies(), st.none() | falling_policies(), st.none() | single_policies()),
    "Staircase": st.builds(Staircase, single_policies(), lengths),
    "Scaled": st.builds(Scaled, single_policies(), units),
    "LambdaPolicy": st.sampled_from(LR_FUNCTIONS).map(LambdaPolicy),
    "Plateau": st.just(Plateau()),
}

# --- any step, any arguments


def test_every_policy_has_its_formula_here():
    """No policy of the library is left out, neither from the formulas nor from what is drawn."""
    assert {kind.__name__ for kind in FORMULAS} == set(DRAWN) == set(POLICIES)


@pytest.mark.parametrize("name", DRAWN)
@given(data=st.data())
def test_values_are_the_formulas(name, data):
    """Rate and momentum are the formula's at steps up to 10**9, at the turning points, and beside them."""
    policy = data.draw(DRAWN[name])
    for step in around(policy, data.draw(steps())):
        if not leaves_the_floats(policy, step):
            check(policy, step)


def leaves_the_floats(policy, step):
    """Whether a product is beyond floats, or a factor of it below the normal ones, where it has too few digits."""
    factors = [factor.at(step).lr_factor for factor in policy.policies] if isinstance(policy, Product) else []
    return any(0 < factor < sys.float_info.min for factor in factors) or math.prod(factors) == math.inf


def test_a_product_beyond_floats_is_refused_by_the_optimizer():
    """An infinite factor is an error before any step uses it."""
    policy = Product([OneCycle(1, pct_start=0, div_factor=1, final_div_factor=1e-160)] * 2)
    assert leaves_the_floats(policy, 0)
    with pytest.raises(ValueError, match="need lr_factor to be a finite number"):
        CyclicSGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, policy=policy)


def test_a_product_of_ordinary_factors_is_not_left_out():
    """Only a factor that is no normal float any more is too small for the claim above."""
    assert not leaves_the_floats(Product([Constant(), ExponentialDecay(0.5)]), 1022)
    assert leaves_the_floats(Product([Constant(), ExponentialDecay(0.5)]), 1023)


ORDINARY = {
    Triangular: {"step_size_up": 1000, "div_factor": 10},
    Triangular2: {"step_size_up": 1000, "div_factor": 10},
    ExpRange: {"step_size_up": 1000, "div_factor": 10, "gamma": 0.9999},
    OneCycle: {"total_steps": 1000},
    CosineRestarts: {"t_0": 1000},
    CosineWave: {"t_max": 1000},
    CosineDecay: {"t_max": 1000},
    PolynomialDecay: {"total_iters": 1000},
    ExponentialDecay: {"gamma": 0.9999},
    StepDecay: {"step_size": 1000},
    MultiStepDecay: {"milestones": [1000, 2000]},
    InverseTimeDecay: {"k": 0.001},
    WarmupStableDecay: {"total_steps": 1000, "warmup": 100, "decay": 500},
    LinearDecay: {"total_steps": 1000},
    LinearRamp: {"total_iters": 1000},
    ExponentialRamp: {"total_iters": 1000, "start_factor": 1e-8},
}
TOO_SHORT_OR_LONG = [{name: length} for name in ("step_size_up", "step_size_down") for length in LENGTHS]
OF_TRIANGLES = [
    *TOO_SHORT_OR_LONG,
    *({"div_factor": div_factor} for div_factor in DIV_FACTORS),
    *({"cycle_growth": growth, "step_size_up": up} for growth in GROWTHS for up in (1, 1000)),
    *({"base_momentum": base, "max_momentum": top, "step_size_up": up} for base, top in MOMENTA for up in (1000, FAR)),
]
COOL_DOWNS = ("linear", "cosine", "sqrt")
EXTREMES = {
    Triangular: [
        *OF_TRIANGLES,
        *(
            {"scale_fn": scale_fn, "scale_mode": mode, "step_size_up": up, "base_momentum": 0}
            for scale_fn in SCALE_FUNCTIONS
            for mode in ("cycle", "iterations")
            for up in (1, 1000, FAR)
        ),
    ],
    Triangular2: OF_TRIANGLES,
    ExpRange: [
        *OF_TRIANGLES,
        *({"gamma": gamma, "step_size_up": up, "base_momentum": 0} for gamma in GAMMAS for up in (1, 1000, FAR)),
    ],
    OneCycle: [
        {"anneal_strategy": anneal_strategy, "three_phase": three_phase, **extreme}
        for anneal_strategy in ("cos", "linear")
        for three_phase in (False, True)
        for extreme in (
            *(
                {"total_steps": total_steps, "pct_start": pct_start, "base_momentum": 0}
                for total_steps in (3, 1000, FAR)
                for pct_start in (*climbs(total_steps), 1 / 2.9)
            ),
            *({"total_steps": total_steps} for total_steps in (1, 2, 3)),
            *(
                {name: value}
                for name in ("div_factor", "final_div_factor")
                for value in (*DIV_FACTORS, *DIV_FACTORS_BELOW_1)
            ),
            *({"base_momentum": base, "max_momentum": top} for base, top in MOMENTA),
        )
    ],
    CosineRestarts: [
        *({"t_0": t_0, "t_mult": growth} for t_0 in (1, 1000, FAR) for growth in GROWTHS),
        *({"min_factor": min_factor} for min_factor in UNITS),
        *(
            {"gamma": gamma, "t_0": t_0, "min_factor": least}
            for gamma in GAMMAS
            for t_0 in (1, 1000)
            for least in UNITS
        ),
    ],
    CosineWave: [{"t_max": t_max, "min_factor": least} for t_max in LENGTHS for least in UNITS],
    CosineDecay: [{"t_max": t_max, "min_factor": least} for t_max in (0, *LENGTHS) for least in UNITS],
    PolynomialDecay: [
        {"total_iters": length, "power": power, "min_factor": least}
        for length in (0, *LENGTHS)
        for power in POWERS
        for least in (0, 0.1)
    ],
    ExponentialDecay: [{"gamma": gamma} for gamma in GAMMAS],
    StepDecay: [{"step_size": length, "gamma": gamma} for length in LENGTHS for gamma in GAMMAS],
    MultiStepDecay: [
        {"milestones": milestones, "gamma": gamma}
        for milestones in ([], [0], [0, 0, 1, FAR], [FAR - 1, FAR, FAR])
        for gamma in GAMMAS
    ],
    InverseTimeDecay: [
        {"k": k, "power": power} for k in (5e-324, 1e-9, ABOVE_ONE, 1e12, 1.7e308, 10**300) for power in (1, 0.5, 0.01)
    ],
    WarmupStableDecay: [
        {"total_steps": warmup + stable + decay, "warmup": warmup, "decay": decay, "shape": shape, "min_factor": least}
        for warmup, stable, decay in (
            (0, 0, 0),
            (3, 2, 0),
            (0, 0, 1),
            (1, 0, 1),
            (1, 1, 1),
            (0, 0, FAR),
            (FAR - 2, 1, 1),
            (1, FAR - 1000, 999),
        )
        for shape in COOL_DOWNS
        for least in (0, 5e-324, 1e-12, BELOW_ONE, 1)
    ],
    LinearDecay: [
        {"total_steps": warmup + decay, "warmup": warmup, "min_factor": least}
        for warmup in (0, 1, FAR)
        for decay in (0, 1, 2, FAR)
        for least in UNITS
    ],
    LinearRamp: [
        {"total_iters": length, "start_factor": start, "end_factor": end}
        for length in (0, 1, 2, FAR)
        for start in UNITS
        for end in UNITS
    ],
    ExponentialRamp: [
        {"total_iters": length, "start_factor": start, "end_factor": end}
        for length in (0, 1, 2, FAR)
        for start in (1e-300, 1e-12, 0.5, BELOW_ONE, 1)
        for end in (1e-300, 1e-12, 0.5, BELOW_ONE, 1)
    ],
}


@pytest.mark.parametrize("kind", EXTREMES)
def test_values_are_the_formulas_for_extreme_arguments(kind):
    """One-step and endless ramps, growth and decay by one unit in the last place, ends far apart and side by side."""
    for extreme in EXTREMES[kind]:
        policy = kind(**{**ORDINARY[kind], **extreme})
        for step in sorted({step for near in (0, 3, 2 * 10**6, FAR) for step in around(policy, near)}):
            check(policy, step)


LONGEST = 2**63 - 1
#: Floats leave out steps from 2**53 on.
LONG_RUNS = [2**53 - 1, 2**53, 2**53 + 2, 2**53 + 3, 2**60 + 1, LONGEST]


def long_policies(total):
    """Policies of every kind that has a length, with lengths about ``total``."""
    third, rest = total // 3, total - total // 3
    one_cycles = [
        OneCycle(total, pct_start, anneal_strategy, three_phase=three_phase)
        for pct_start in (0, 1e-18, 0.3, 1 / 3, 0.5, BELOW_ONE, 1)
        for anneal_strategy in ("cos", "linear")
        for three_phase in (False, True)
    ]
    return [
        *one_cycles,
        *(kind(third, rest, div_factor=1e4, **more) for kind, more in ((Triangular, {}), (Triangular2, {}))),
        ExpRange(third, rest, gamma=BELOW_ONE),
        *(Triangular(third // 100, cycle_growth=growth) for growth in (2, 1.5)),
        *(CosineRestarts(third // 100, t_mult, gamma=0.9) for t_mult in (1, 2, 1.5)),
        CosineWave(third, 0.1),
        *(CosineDecay(total, min_factor) for min_factor in (0, 0.1)),
        *(PolynomialDecay(total, power, 1e-3) for power in (0.5, 1, 2, 1000.5)),
        ExponentialDecay(BELOW_ONE),
        StepDecay(third, 0.1),
        MultiStepDecay([third, rest, total], 0.1),
        *(InverseTimeDecay(k) for k in (1, 1e-18)),
        LinearDecay(total, third),
        *(WarmupStableDecay(total, third, third, shape, 0.1) for shape in COOL_DOWNS),
        LinearRamp(total, 0, 0.9),
        ExponentialRamp(total, 1e-8),
        *(Sequential([LinearRamp(third), OneCycle(rest)], [third], restart) for restart in (True, False)),
        *(Warmup(OneCycle(rest), third, 0.1, overlay) for overlay in (True, False)),
        Product([LinearDecay(total), OneCycle(rest)]),
        Combined(LinearDecay(total), Scaled(CosineDecay(rest), 0.9), LinearRamp(third)),
        Staircase(OneCycle(third), 3),
        Scaled(OneCycle(total), 0.9),
    ]


def test_every_length_has_a_long_policy():
    """A new kind of policy gets a row above, too."""
    without_length = {Constant, LambdaPolicy, Plateau}
    assert {type(policy) for policy in long_policies(2**53)} == {*POLICIES.values()} - without_length


@pytest.mark.parametrize("total", LONG_RUNS)
def test_values_are_the_formulas_for_lengths_beyond_floats(total):
    """Every step counts in runs of 2**53 steps and more, where a float of the step would be that of its neighbour."""
    for policy in long_policies(total):
        for near in (0, 3, total // 7, total // 2 + 1, total - 3, LONGEST):
            for step in around(policy, near, LONGEST):
                check(policy, step)


def test_the_last_step_of_three_phases_may_be_all_there_is_of_the_third():
    """In a run of 2**53 + 2 steps the mirrored climb ends on the last step but one; the last has the last rate.

    As floats both are the same step. The policy comes out of a checkpoint, too.
    """
    policy, last = OneCycle(2**53 + 2, pct_start=0.5, three_phase=True), 2**53 + 1
    assert [policy.at(step).lr_factor for step in (last - 1, last, last + 1)] == [0.04, 4e-06, 4e-06]
    optimizer = CyclicSGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, policy=policy)
    optimizer.reschedule(step=last)
    other = CyclicSGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.policy == policy
    assert other.param_groups[0]["lr"] == 4e-06


@pytest.mark.parametrize(("start", "end"), [(1, 1e-320), (1, 5e-324), (1e-310, 1), (5e-324, 1)])
def test_a_ratio_that_floats_cannot_hold_is_refused(start, end):
    """An exponential ramp whose ends lie so far apart that no step of it could be told to 1e-13 is not built."""
    with pytest.raises(ValueError, match=r"need .*e-308 <= end_factor / start_factor <= .*e\+308, got start_factor="):
        ExponentialRamp(2, start, end)


# --- the boundaries of cycles


@given(lengths, st.none() | lengths, div_factors, growths, momenta, steps())
def test_triangles_turn_exactly_at_their_boundaries(up, down, div_factor, growth, momentum, step):
    """Exactly 1 and base_momentum at each peak, the float nearest 1/div_factor and max_momentum between the cycles."""
    base, top = momentum
    policy = Triangular(up, down, div_factor, growth, base_momentum=base, max_momentum=top)
    _, start, peak, end = cycle_around(step, up, down or up, growth)
    assume(end < 2**63)
    lowest = float(1 / Fraction(div_factor))
    assert policy.at(start) == policy.at(end) == Values(lowest, top)
    assert policy.at(peak) == Values(1.0, base)


@given(lengths, st.none() | lengths, growths, steps())
def test_the_boundary_belongs_to_the_next_cycle(up, down, growth, step):
    """The first step of each cycle is counted to it, the step before to the cycle before."""
    counted = []

    def count(cycle):
        counted.append(cycle)
        return 1

    policy = Triangular(up, down, cycle_growth=growth, scale_fn=count)
    number, start, _, end = cycle_around(step, up, down or up, growth)
    assume(end < 2**63)
    for each in (start, end - 1, end):
        policy.at(each)
    assert counted == [number + 1, number + 1, number + 2]


@given(lengths, growths, units, steps())
def test_restarts_begin_exactly_at_the_peak(t_0, t_mult, min_factor, step):
    """The first step of each cycle is at exactly 1; the last step of the one before is where that cycle's cosine is."""
    policy = CosineRestarts(t_0, t_mult, min_factor)
    _, start, _, end = cycle_around(step, t_0, 0, t_mult)
    assume(end < 2**63)
    assert policy.at(start) == policy.at(end) == Values(1.0)
    check(policy, end - 1)


@given(lengths, units, steps())
def test_a_cosine_wave_turns_exactly(t_max, min_factor, step):
    """Exactly 1 at every even multiple of t_max, exactly min_factor at every odd one."""
    policy, crest = CosineWave(t_max, min_factor), step // (2 * t_max) * 2 * t_max
    assert policy.at(crest) == policy.at(crest + 2 * t_max) == Values(1.0)
    assert policy.at(crest + t_max) == Values(min_factor)


@given(one_cycles())
def test_one_cycle_turns_exactly_on_whole_steps(policy):
    """It starts at exactly 1/div_factor, is exactly 1 where the peak is a step, and holds its last value for ever.

    Without a climb of any length it starts elsewhere; where the fall does not fit, the last value is none of these.
    """
    rest, least = (policy.max_momentum, policy.base_momentum) if policy.cycle_momentum else (None, None)
    top, last = Fraction(float(policy.pct_start * policy.total_steps)) - 1, policy.total_steps - 1
    first = Values(float(1 / Fraction(policy.div_factor)), rest)
    if top > 0:
        assert policy.at(0) == first
    if top.denominator == 1 and top >= 0:
        assert policy.at(int(top)) == Values(1.0, least)
        if policy.three_phase and 0 < 2 * top <= last:
            assert policy.at(2 * int(top)) == first
    assert policy.at(last) == policy.at(policy.total_steps) == policy.at(FAR + policy.total_steps)
    if (2 * top if policy.three_phase else top) < last:
        end = Fraction(1 / policy.div_factor) / Fraction(policy.final_div_factor)
        assert policy.at(last) == Values(float(end), rest)


@given(st.data(), lengths)
def test_a_staircase_and_a_sequence_turn_on_their_step(data, length):
    """The step on a boundary is the next stair's, the next part's first; the one before still the old one's."""
    first, second = data.draw(single_policies()), data.draw(single_policies())
    assert Staircase(first, length).at(length) == first.at(1)
    assert Staircase(first, length).at(length - 1) == first.at(0)
    sequence = Sequential([first, second], [length])
    assert sequence.at(length - 1) == first.at(length - 1)
    assert sequence.at(length).lr_factor == second.at(0).lr_factor


# --- what depends on more than the step


@given(
    st.floats(0.01, BELOW_ONE) | st.sampled_from([0.1, 0.5, 1 - 1e-9, BELOW_ONE]),
    st.sampled_from([0, 1e-300, 1e-12, 1]) | st.floats(0, 1),
    st.integers(1, 300),
)
def test_a_plateaus_reductions_multiply(factor, min_factor, reductions):
    """After n reductions the rate is factor**n, or min_factor, right to 1e-13."""
    policy = Plateau(factor=factor, patience=0, min_factor=min_factor, eps=0)
    state = policy.report(None, 1.0)
    for _ in range(reductions):
        state = policy.report(state, 1.0)
    with mp.workdps(DIGITS):
        expected = max(power(factor, reductions), mpf(min_factor))
        assert_right(policy.after(state, 0).lr_factor, expected, (policy, reductions))


@given(lengths, st.floats(-1, 2), momenta, div_factors, steps())
def test_a_scale_beyond_the_triangle_is_right_to_the_size_of_its_terms(up, scale, momentum, div_factor, step):
    """A scale_fn may leave [0, 1], where a difference may cancel: the error is small beside the terms of it."""
    base, top = momentum
    policy = Triangular(up, None, div_factor, base_momentum=base, max_momentum=top, scale_fn=lambda cycle: scale)
    lr_factor, shown, _ = exact(policy, step)
    if lr_factor < 0 or shown < 0:
        return
    values = policy.at(step)
    size = max(1, abs(Fraction(scale)))
    assert abs(Fraction(values.lr_factor) - lr_factor) <= 4 * size * Fraction(math.ulp(1))
    assert abs(Fraction(values.momentum) - shown) <= 4 * size * Fraction(math.ulp(top)) + SMALLEST
