"""What a policy refuses: an argument that breaks a rule never makes a policy, and the error says which and why."""

import dataclasses
import enum
import inspect
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import POLICY_STRATEGIES, policies, sawtooth

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    LambdaPolicy,
    LinearDecay,
    MultiStepDecay,
    OneCycle,
    Plateau,
    Policy,
    PolynomialDecay,
    Product,
    Scaled,
    Sequential,
    StepDecay,
    Triangular,
    Triangular2,
    Values,
    Warmup,
    WarmupStableDecay,
)
from cyclic_optim.policies import POLICIES, describe, rebuild

NAN, INF = math.nan, math.inf
NO_NUMBER = [NAN, INF, -INF, "0.5", None, True, 1j, [0.5]]
NO_INT = [2.0, 2.5, NAN, INF, "3", True, [1], Fraction(7, 2)]

# What no argument of this kind may be.
BAD = {
    "length": [*NO_INT, None, 0, -1, -(10**9)],
    "optional length": [*NO_INT, 0, -1],
    "count": [*NO_INT, None, -1],
    "unit": [*NO_NUMBER, -1e-9, 1.0000001, 2, -1],
    "positive unit": [*NO_NUMBER, 0, 0.0, -0.1, 1.0000001, 2],
    "optional unit": [*(value for value in NO_NUMBER if value is not None), -1e-9, 1.0000001, 2, -1],
    "inner unit": [*NO_NUMBER, 0, 0.0, 1, 1.0, -0.1, 1.5],
    "at least one": [*NO_NUMBER, 0, 0.9999999, -1, -10.0],
    "positive": [*NO_NUMBER, 0, 0.0, -1e-9, -1],
    "not negative": [*NO_NUMBER, -1e-9, -1],
    "flag": [0, 1, 1.0, None, "yes"],
    "annealing": ["Cos", "", None, 3, True],
    "scale mode": ["cycles", "", None, 3],
    "shape": ["cos", "", None, 3],
    "mode": ["minimum", "", None, 3],
    "threshold mode": ["relative", "", None, 3],
    "function": [None, 3, "sin", 0.5],
    "optional function": [3, "sin", 0.5],
    "milestones": [3, None, 2.5, [1.5], [True], ["3"], [NAN], [-1], [3, 2], [None]],
}

_TRIANGLE = {
    "step_size_up": "length",
    "step_size_down": "optional length",
    "div_factor": "at least one",
    "cycle_growth": "at least one",
    "cycle_momentum": "flag",
    "base_momentum": "unit",
    "max_momentum": "unit",
}

# The kind of every argument of every policy, and beside it arguments that make one.
ARGUMENTS = {
    "Constant": ({}, {}),
    "Triangular": ({**_TRIANGLE, "scale_fn": "optional function", "scale_mode": "scale mode"}, {}),
    "Triangular2": (_TRIANGLE, {}),
    "ExpRange": ({**_TRIANGLE, "gamma": "positive unit"}, {"gamma": 0.99}),
    "OneCycle": (
        {
            "total_steps": "length",
            "pct_start": "unit",
            "anneal_strategy": "annealing",
            "cycle_momentum": "flag",
            "base_momentum": "unit",
            "max_momentum": "unit",
            "div_factor": "positive",
            "final_div_factor": "positive",
            "three_phase": "flag",
        },
        {"total_steps": 100},
    ),
    "CosineRestarts": (
        {"t_0": "length", "t_mult": "at least one", "min_factor": "unit", "gamma": "positive unit"},
        {"t_0": 10},
    ),
    "CosineWave": ({"t_max": "length", "min_factor": "unit"}, {"t_max": 10}),
    "CosineDecay": ({"t_max": "count", "min_factor": "unit"}, {"t_max": 10}),
    "PolynomialDecay": ({"total_iters": "count", "power": "positive", "min_factor": "unit"}, {"total_iters": 10}),
    "ExponentialDecay": ({"gamma": "positive unit"}, {"gamma": 0.9}),
    "StepDecay": ({"step_size": "length", "gamma": "positive unit"}, {"step_size": 10}),
    "MultiStepDecay": ({"milestones": "milestones", "gamma": "positive unit"}, {"milestones": [3, 5]}),
    "InverseTimeDecay": ({"k": "positive", "power": "positive unit"}, {"k": 0.1}),
    "WarmupStableDecay": (
        {"total_steps": "count", "warmup": "count", "decay": "count", "shape": "shape", "min_factor": "unit"},
        {"total_steps": 100, "warmup": 10, "decay": 20},
    ),
    "LinearDecay": ({"total_steps": "count", "warmup": "count", "min_factor": "unit"}, {"total_steps": 100}),
    "LinearRamp": ({"total_iters": "count", "start_factor": "unit", "end_factor": "unit"}, {"total_iters": 10}),
    "ExponentialRamp": (
        {"total_iters": "count", "start_factor": "positive unit", "end_factor": "positive unit"},
        {"total_iters": 10, "start_factor": 1e-6},
    ),
    "Sequential": (
        {"milestones": "milestones", "restart": "flag"},
        {"policies": [Constant(), Constant()], "milestones": [3]},
    ),
    "Warmup": (
        {"total_iters": "count", "start_factor": "unit", "overlay": "flag", "start_momentum": "optional unit"},
        {"policy": Triangular(), "total_iters": 10},
    ),
    "Product": ({}, {"policies": [Constant(), Constant()]}),
    "Combined": ({}, {"lr": Constant()}),
    "Staircase": ({"length": "length"}, {"policy": Constant(), "length": 10}),
    "Scaled": ({"factor": "unit"}, {"policy": Constant(), "factor": 0.1}),
    "Plateau": (
        {
            "mode": "mode",
            "factor": "inner unit",
            "patience": "count",
            "threshold": "not negative",
            "threshold_mode": "threshold mode",
            "cooldown": "count",
            "min_factor": "unit",
            "eps": "not negative",
        },
        {},
    ),
    "LambdaPolicy": ({"fn": "function"}, {"fn": sawtooth}),
}

CASES = [
    pytest.param(name, field, value, id=f"{name}-{field}-{value!r}")
    for name, (kinds, _) in ARGUMENTS.items()
    for field, kind in kinds.items()
    for value in BAD[kind]
]
REALS = {"unit", "optional unit", "positive unit", "inner unit", "at least one", "positive", "not negative"}


def fields_of_kind(*kinds):
    return [
        pytest.param(name, field, id=f"{name}-{field}")
        for name, (fields, _) in ARGUMENTS.items()
        for field, kind in fields.items()
        if kind in kinds
    ]


def build(name, **arguments):
    return POLICIES[name](**{**ARGUMENTS[name][1], **arguments})


def test_the_table_has_every_argument_of_every_policy():
    """No argument of any policy goes untested (policies among them have tests of their own)."""
    listed = {name: set(kinds) for name, (kinds, _) in ARGUMENTS.items()}
    for name in ("Sequential", "Product"):
        listed[name].add("policies")
    for name in ("Warmup", "Staircase", "Scaled"):
        listed[name].add("policy")
    listed["Combined"] |= {"lr", "momentum", "weight_decay"}
    assert listed == {name: {field.name for field in dataclasses.fields(kind)} for name, kind in POLICIES.items()}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_beside_a_bad_one_are_good(name):
    """What the cases below change one argument of does make a policy."""
    assert build(name).at(0).lr_factor >= 0


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_a_bad_argument_never_constructs(name, field, value):
    """One bad argument among good ones is a ValueError or TypeError that names it and shows its value."""
    with pytest.raises((ValueError, TypeError)) as raised:
        build(name, **{field: value})
    # A subclass would be somebody else's error that happens to fit.
    assert type(raised.value) in (ValueError, TypeError)
    assert any(f"got {shown}" in str(raised.value) for shown in spellings(field, value))


def spellings(field, value):
    """How an error may show this value: as given, and a sequence as a tuple or by its bad item."""
    yield f"{field}={value!r}"
    if isinstance(value, list):
        yield f"{field}={tuple(value)!r}"
        yield from (f"{field}[{i}]={item!r}" for i, item in enumerate(value))


@pytest.mark.parametrize(("name", "field"), fields_of_kind(*REALS))
def test_a_number_beyond_floats_never_constructs(name, field):
    """A number too large for a float is refused like any that is not finite."""
    for value in (10**400, -(10**400), Fraction(10**400)):
        with pytest.raises(ValueError, match=f"got {field}="):
            build(name, **{field: value})


@pytest.mark.parametrize(("name", "field"), fields_of_kind("length", "optional length", "count"))
@pytest.mark.parametrize("value", [30.0, np.float32(30)])
def test_a_float_for_steps_says_to_pass_an_int(name, field, value):
    """A number of steps computed as a float is a TypeError that says what to pass instead."""
    with pytest.raises(TypeError, match=rf"got {field}=.*: pass an int, for example int\({field}\)"):
        build(name, **{field: value})


def test_total_steps_as_a_float_is_refused():
    """The usual len(loader) * epochs / accumulation is refused with the cure in the message."""
    with pytest.raises(TypeError, match=r"need total_steps to be an int .* got total_steps=500\.0: pass an int"):
        OneCycle(total_steps=10 * 100 / 2)


@pytest.mark.parametrize(("name", "field"), fields_of_kind("length", "optional length", "count", "milestones", *REALS))
def test_numpys_numbers_become_pythons(name, field):
    """Numpy's ints and floats are taken, kept as Python's numbers, and make the policy that those make."""
    kind = ARGUMENTS[name][0][field]
    if "milestones" in kind:
        given, plain = np.array([7], dtype=np.int32), (7,)
    elif kind in REALS:
        plain = 1.25 if kind == "at least one" else 0.75
        # Half of the range that the other, untouched end leaves.
        plain = 0.875 if field.endswith("momentum") else plain
        plain = 0.25 if field == "pct_start" else plain
        given = np.float32(plain)
    else:
        given, plain = np.int64(30), 30
    policy = build(name, **{field: given})
    value = getattr(policy, field)
    assert value == plain
    assert type(value) is type(plain)
    assert policy == build(name, **{field: plain})
    if isinstance(value, tuple):
        assert [type(item) for item in value] == [int]
    assert type(policy.at(np.int32(3)).lr_factor) is float


@pytest.mark.parametrize(("name", "field"), fields_of_kind("annealing", "scale mode", "shape", "mode"))
def test_a_word_of_another_string_type_becomes_pythons(name, field):
    """A word from numpy or from an enum is kept as a plain string, so that the policy can be described."""
    word = {"anneal_strategy": "linear", "scale_mode": "cycle", "shape": "sqrt", "mode": "max"}[field]
    words = enum.Enum("Words", {"ONE": word}, type=str)
    for given_word in (np.str_(word), words.ONE):
        policy = build(name, **{field: given_word})
        assert type(getattr(policy, field)) is str
        assert rebuild(describe(policy)) == policy == build(name, **{field: word})


@pytest.mark.parametrize("name", ["Triangular", "Triangular2", "ExpRange", "OneCycle"])
def test_momentum_upside_down_is_refused(name):
    """A base momentum above the maximum is refused with both values, also where momentum does not cycle."""
    with pytest.raises(ValueError, match=r"need base_momentum <= max_momentum, got base_momentum=0\.95, max_.*=0\.9"):
        build(name, base_momentum=0.95, max_momentum=0.9, cycle_momentum=False)


@pytest.mark.parametrize(
    ("div_factor", "final_div_factor", "rule"),
    [
        (5e-324, 1, "1 / div_factor"),
        (1e-300, 1e-300, r"1 / \(div_factor \* final_div_factor\)"),
        (25, 5e-324, r"1 / \(div_factor \* final_div_factor\)"),
    ],
)
def test_one_cycle_with_a_rate_beyond_floats_is_refused(div_factor, final_div_factor, rule):
    """A first or last rate that no float holds is refused with both factors."""
    with pytest.raises(ValueError, match=f"need {rule} to be a finite number, got {div_factor=}, {final_div_factor=}"):
        OneCycle(100, div_factor=div_factor, final_div_factor=final_div_factor)


def test_warm_up_and_cool_down_must_fit():
    """A warm-up and cool-down longer than the run are refused with all three lengths; exactly as long is fine."""
    with pytest.raises(ValueError, match=r"warmup \+ decay <= total_steps, got warmup=50, decay=51, total_steps=100"):
        WarmupStableDecay(100, 50, 51)
    assert WarmupStableDecay(100, 50, 50).at(50).lr_factor == 1.0


@pytest.mark.parametrize(
    ("parts", "milestones", "error", "message"),
    [
        ([], [], ValueError, "got 0 policies, 0 milestones"),
        ([Constant()], [3], ValueError, "got 1 policies, 1 milestones"),
        ([Constant()] * 3, [3], ValueError, "got 3 policies, 1 milestones"),
        ([Constant(), Constant()], [5, 9], ValueError, "got 2 policies, 2 milestones"),
        ([Plateau(), Plateau(patience=3)], [3], ValueError, r"at most one policy .* got Plateau\(.*and Plateau\("),
        ([Sequential([Constant()], []), "Constant"], [3], TypeError, r"policies\[1\]='Constant'"),
        ([Constant(), None], [3], TypeError, r"policies\[1\]=None"),
        ([Constant, Constant()], [3], TypeError, r"policies\[0\]=<class .*>: pass an instance, Constant\(\)$"),
        (Constant(), [3], TypeError, r"policies=Constant\(\)"),
        (None, [], TypeError, "policies=None"),
    ],
)
def test_a_sequence_that_cannot_be_is_refused(parts, milestones, error, message):
    """Anything but policies, at most one of which listens, one more than milestones, is refused by name and place."""
    with pytest.raises(error, match=message):
        Sequential(parts, milestones)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Staircase", "policy"),
        ("Scaled", "policy"),
        ("Warmup", "policy"),
        ("Combined", "lr"),
        ("Combined", "momentum"),
        ("Combined", "weight_decay"),
    ],
)
@pytest.mark.parametrize("policy", [Constant, None, "Constant", 0.9])
def test_a_policy_made_of_what_is_none_is_refused(name, field, policy):
    """Anything but a policy is refused, as in a sequence; None only where there is to be one."""
    if policy is None and field in ("momentum", "weight_decay"):
        build(name, **{field: None})
        return
    with pytest.raises(TypeError, match=re.escape(f"need {field} to be a Policy, got {field}={policy!r}")):
        build(name, **{field: policy})


def test_a_product_of_no_policies_is_refused():
    """Nothing to multiply is a mistake: the rule and the value are said."""
    with pytest.raises(ValueError, match=r"need at least one policy to multiply, got policies=\(\)"):
        Product([])


@pytest.mark.parametrize(
    "make",
    [
        lambda one, other: Sequential([one, other], [3]),
        lambda one, other: Product([one, Constant(), other]),
        lambda one, other: Combined(one, momentum=other),
        lambda one, other: Combined(Constant(), momentum=one, weight_decay=other),
        lambda one, other: Product([Warmup(one, 3), Scaled(other, 0.5)]),
    ],
)
def test_a_second_plateau_is_refused(make):
    """A group has one memory of reports, which two policies cannot share, however deep they are; the error says so."""
    with pytest.raises(ValueError, match="need at most one policy that listens to a metric, as a param group has one"):
        make(Plateau(), Plateau(factor=0.5))
    assert make(Plateau(), Constant()).initial_state() == Plateau().initial_state()


@pytest.mark.parametrize("value", [1.5, 1 + 2**-52])
def test_a_momentum_above_1_is_refused(value):
    """At once where the first step has it, else at the step that has; the policy and the value are in the error."""
    with pytest.raises(
        ValueError, match=re.escape(f"need momentum <= 1, got momentum={value} at step=0 from momentum=")
    ):
        Combined(Constant(), momentum=LambdaPolicy(Returns(value)))
    policy = Combined(Constant(), momentum=LambdaPolicy(lambda step: value if step == 7 else 1.0))
    assert policy.at(6).momentum == 1.0
    with pytest.raises(ValueError, match=f"got momentum={value} at step=7"):
        policy.at(7)


def test_a_warm_up_of_momentum_needs_a_momentum_to_rise_to():
    """start_momentum over a policy that does not change momentum is refused, with the way out."""
    with pytest.raises(
        ValueError, match=r"need a policy that sets momentum .* got start_momentum=0\.8, .*: Combined\("
    ):
        Warmup(Constant(), 10, start_momentum=0.8)
    assert Warmup(Combined(Constant(), momentum=Constant()), 10, start_momentum=0.8).at(0).momentum == 0.8


def test_a_linear_decay_longer_than_the_run_is_refused():
    """A warm-up longer than the run is refused with both lengths; exactly as long is fine."""
    with pytest.raises(ValueError, match="need warmup <= total_steps, got warmup=11, total_steps=10"):
        LinearDecay(10, 11)
    assert LinearDecay(10, 10).at(9).lr_factor == 10 / 11


class Listens(Policy):
    """A user's policy that listens, and has no state before the first report."""

    def at(self, step):
        return Values(1.0)

    def report(self, state, metric):
        return {"metric": metric}


def test_a_part_that_listens_without_a_first_state_is_refused():
    """A composite cannot tell whether such a part listens; the error says what it needs."""
    with pytest.raises(
        ValueError, match=r"need initial_state\(\) of a part that listens .* got None from policies\[0\]="
    ):
        Sequential([Listens()], [])


@pytest.mark.parametrize("name", [*ARGUMENTS])
def test_unknown_and_missing_arguments_are_refused(name):
    """An argument that a policy does not have, and one that it needs, are TypeErrors as everywhere in Python."""
    with pytest.raises(TypeError, match="no_such_argument"):
        build(name, no_such_argument=1)
    for needed in dataclasses.fields(POLICIES[name]):
        if needed.default is dataclasses.MISSING:
            arguments = {key: value for key, value in ARGUMENTS[name][1].items() if key != needed.name}
            with pytest.raises(TypeError, match=needed.name):
                POLICIES[name](**arguments)


# --- torch's words


def torch_optimizer():
    return torch.optim.SGD([torch.zeros(1)], lr=0.1)


TORCHS_WORDS = [
    (lambda: OneCycle(max_lr=0.1, total_steps=9), "OneCycle, got max_lr=0.1: instead of max_lr, the optimizer's lr"),
    (lambda: CosineDecay(epochs=3), "instead of epochs, t_max=len(loader) * epochs"),
    (lambda: Triangular(epochs=3), "instead of epochs, step_size_up, in optimizer steps (an epoch has len(loader))"),
    (lambda: StepDecay(T_max=3), "StepDecay, got T_max=3: instead of T_max, step_size, in optimizer steps"),
    (lambda: MultiStepDecay(epochs=3), "instead of epochs, milestones, in optimizer steps (an epoch has len(loader))"),
    (lambda: CosineRestarts(epochs=3), "instead of epochs, t_0, in optimizer steps (an epoch has len(loader))"),
    (lambda: CosineDecay(9, base_lr=0.1), "instead of base_lr, min_factor=base_lr / lr, a fraction of the peak"),
    (lambda: OneCycle(9, base_lr=0.1), "instead of base_lr, div_factor=lr / base_lr, with the peak as"),
    (lambda: Triangular(9, eta_min=0.1), "instead of eta_min, div_factor=lr / eta_min, with the peak as"),
    (
        lambda: OneCycle(epochs=3, steps_per_epoch=4),
        "OneCycle, got epochs=3, steps_per_epoch=4: "
        "instead of epochs and steps_per_epoch, total_steps=len(loader) * epochs",
    ),
    (
        lambda: OneCycle(torch_optimizer(), 0.1, total_steps=9),
        "OneCycle, got optimizer=SGD(...): instead of optimizer, the policy is given to the optimizer: CyclicSGD(",
    ),
    (lambda: OneCycle(torch_optimizer(), 0.1), "OneCycle, got optimizer=SGD(...): instead of optimizer, "),
    (lambda: CosineDecay(optimizer=torch_optimizer(), t_max=3), "CosineDecay, got optimizer=SGD(...): instead of opt"),
    (lambda: OneCycle(T_max=9), "OneCycle, got T_max=9: instead of T_max, total_steps, in optimizer steps"),
    (lambda: OneCycle(9, eta_min=0.1), "instead of eta_min, final_div_factor=lr / div_factor / eta_min"),
    (lambda: CosineDecay(T_max=9), "CosineDecay, got T_max=9: instead of T_max, t_max, in optimizer steps"),
    (lambda: CosineDecay(total_steps=9), "instead of total_steps, t_max, in optimizer steps"),
    (lambda: CosineDecay(9, eta_min=0.1), "instead of eta_min, min_factor=eta_min / lr, a fraction of the peak"),
    (lambda: Plateau(min_lr=0.1), "Plateau, got min_lr=0.1: instead of min_lr, min_factor=min_lr / lr"),
    (lambda: PolynomialDecay(T_max=9), "instead of T_max, total_iters, in optimizer steps"),
    (lambda: LinearDecay(total_iters=9), "instead of total_iters, total_steps, in optimizer steps"),
    (
        lambda: CosineRestarts(T_0=9, T_mult=2),
        "CosineRestarts, got T_0=9, T_mult=2: instead of T_0, t_0, in optimizer steps; instead of T_mult, t_mult",
    ),
    (
        lambda: Triangular(base_lr=0.1, max_lr=1),
        "instead of base_lr, div_factor=lr / base_lr, with the peak as the optimizer's lr; instead of max_lr, the opt",
    ),
    (lambda: Triangular(step_size=9), "instead of step_size, step_size_up, in optimizer steps"),
    (lambda: Triangular(9, mode="triangular2"), "instead of mode, one of Triangular, Triangular2 and ExpRange(gamma="),
    (lambda: Triangular2(9, gamma=0.9), "Triangular2, got gamma=0.9: instead of gamma, ExpRange(gamma=...)"),
    (lambda: StepDecay(9, last_epoch=3), "instead of last_epoch, optimizer.reschedule(step=...), in optimizer steps"),
    (lambda: LambdaPolicy(lr_lambda=abs), "instead of lr_lambda, fn, of the optimizer step"),
    (lambda: Sequential(schedulers=[Constant()], milestones=[]), "instead of schedulers, policies"),
    (lambda: Constant(max_lr=0.1, colour="red"), "Constant, got max_lr=0.1: instead of max_lr, the optimizer's lr"),
]


@pytest.mark.parametrize(("make", "message"), TORCHS_WORDS)
def test_an_argument_of_torchs_is_said_as_here(make, message):
    """An argument that torch's scheduler has and the policy has not is a TypeError that says what to write instead."""
    with pytest.raises(TypeError) as raised:
        make()
    assert str(raised.value).startswith("need the arguments of ")
    assert message in str(raised.value)


@pytest.mark.parametrize("name", [*ARGUMENTS])
def test_a_hint_hides_no_other_error(name):
    """What the policy has is taken in its own meaning, and an error that has no hint is Python's or the rule's."""
    assert list(inspect.signature(POLICIES[name]).parameters) == [f.name for f in dataclasses.fields(POLICIES[name])]
    with pytest.raises(TypeError, match=rf"{name}\.__init__\(\) got an unexpected keyword argument 'colour'"):
        build(name, colour="red")


def test_a_word_of_torchs_that_the_policy_has_is_no_mistake():
    """``mode``, ``gamma``, ``step_size`` and ``total_iters`` are taken where they mean the same; their rules hold."""
    assert (Plateau(mode="max").mode, StepDecay(step_size=3, gamma=0.5).gamma) == ("max", 0.5)
    with pytest.raises(TypeError, match=r"^need step_size to be an int .* got step_size=3\.5"):
        StepDecay(step_size=3.5)


# --- at, with what is not a step


@given(policies() | POLICY_STRATEGIES["Plateau"])
def test_what_is_not_a_step_is_refused(policy):
    """A negative step is a ValueError, a step that is no whole number a TypeError, both with its value."""
    for step in (-1, -(10**9)):
        with pytest.raises(ValueError, match=f"need 0 <= step, got {step=}"):
            policy.at(step)
    for step in (0.0, 3.5, NAN, INF, "3", None, [1], 1j):
        with pytest.raises(
            TypeError, match=re.escape(f"need step to be an int (optimizer steps, not epochs), got {step=}")
        ):
            policy.at(step)


# --- functions that return what is no factor

NONSENSE = [NAN, INF, -INF, None, "0.5", 1j, [0.5], 10**400]


class Returns:
    """A function that returns one thing, and says so."""

    def __init__(self, value):
        self.value = value

    def __call__(self, count):
        return self.value


@pytest.mark.parametrize("value", [*NONSENSE, -1, -1e-9], ids=lambda value: repr(value)[:9])
def test_a_lambda_that_returns_no_factor_is_refused(value):
    """Whatever is not a finite number >= 0 is a ValueError that shows the step and the value."""
    with pytest.raises(ValueError, match=re.escape(f"got fn(3)={value!r}")):
        LambdaPolicy(Returns(value)).at(3)


@pytest.mark.parametrize("scale_mode", ["cycle", "iterations"])
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:9])
def test_a_scale_that_is_no_number_is_refused(value, scale_mode):
    """Whatever is not a finite number is a ValueError that shows what scale_fn was given and returned."""
    policy = Triangular(5, scale_fn=Returns(value), scale_mode=scale_mode)
    given_to_it = 1 if scale_mode == "cycle" else 3
    with pytest.raises(ValueError, match=re.escape(f"scale_fn({given_to_it})={value!r}")):
        policy.at(3)


@pytest.mark.parametrize(("value", "cycle_momentum"), [(-1, False), (-1, True), (-1e6, False), (1e6, True)])
def test_a_scale_that_leaves_no_rate_or_momentum_is_refused(value, cycle_momentum):
    """A scale that would take the rate or the momentum below 0 is a ValueError that names scale_fn and its value."""
    with pytest.raises(ValueError, match=re.escape(f"scale_fn(1)={value!r}")):
        Triangular(5, scale_fn=Returns(value), cycle_momentum=cycle_momentum).at(5)


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(1), 1], ids=lambda value: repr(value))
def test_a_function_may_return_any_real_number(value):
    """Numpy's numbers are taken from the user's functions, and what comes out is Python's floats."""
    assert type(LambdaPolicy(Returns(value)).at(3).lr_factor) is float
    lr_factor, momentum, _ = Triangular(4, scale_fn=Returns(value)).at(3)
    assert (type(lr_factor), type(momentum)) == (float, float)
    assert Values(lr_factor, momentum) == Triangular(4, scale_fn=Returns(float(value))).at(3)


def test_an_error_inside_a_function_is_the_users():
    """What the user's function raises comes through as it is."""
    with pytest.raises(ZeroDivisionError):
        LambdaPolicy(lambda step: 1 / step).at(0)


# --- arguments that are allowed and extreme


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Triangular", {"step_size_up": 1, "cycle_growth": 1e300}),
        ("Triangular", {"step_size_up": 1, "cycle_growth": 1 + 2**-52}),
        ("Triangular2", {"step_size_up": 3, "cycle_growth": 1.7e308}),
        ("ExpRange", {"step_size_up": 1, "gamma": 5e-324, "div_factor": 1.7e308}),
        ("CosineRestarts", {"t_0": 1, "t_mult": 1e308}),
        ("ExponentialRamp", {"total_iters": 4, "start_factor": 5e-324}),
        ("ExponentialRamp", {"total_iters": 4, "start_factor": 1, "end_factor": 5e-324}),
        ("ExponentialRamp", {"total_iters": 4, "start_factor": 0.5, "end_factor": 1}),
        ("LinearRamp", {"total_iters": 1, "start_factor": 0, "end_factor": 1}),
        ("InverseTimeDecay", {"k": 1.7e308}),
        ("ExponentialDecay", {"gamma": 5e-324}),
        ("PolynomialDecay", {"total_iters": 4, "power": 1.7e308}),
        ("OneCycle", {"total_steps": 10**9, "div_factor": 1e308, "final_div_factor": 1e308}),
        ("OneCycle", {"total_steps": 3, "pct_start": 1 - 2**-53}),
        ("OneCycle", {"total_steps": 1, "pct_start": 1}),
        ("OneCycle", {"total_steps": 10**9, "pct_start": 1e-9 * (1 + 1e-15)}),
        ("MultiStepDecay", {"milestones": []}),
    ],
    ids=repr,
)
def test_extreme_arguments_have_ordinary_values(name, arguments):
    """Whatever is not refused can be asked for any step, and answers with a plain float in [0, 1]."""
    try:
        policy = build(name, **arguments)
    except ValueError:
        return
    for step in (0, 1, 2, 3, 10**9, 10**9 + 1, 10**15):
        lr_factor, momentum, _ = policy.at(step)
        assert type(lr_factor) is float, step
        assert 0 <= lr_factor <= 1, step
        assert momentum is None or 0 <= momentum <= 1, step


# --- reports


@given(policies())
def test_a_step_only_policy_takes_no_reports(policy):
    """A metric reported to a policy that does not listen is a TypeError, and no state of reports is its own."""
    with pytest.raises(TypeError, match="need a policy that listens to a metric"):
        policy.report(None, 0.5)
    policy.check_state(None)
    with pytest.raises(ValueError, match="need no state of reports"):
        policy.check_state({"best": 1.0})


@pytest.mark.parametrize("metric", [None, [1.0], 1j, "low"])
def test_a_metric_that_is_no_number_is_refused(metric):
    """A metric that is no number is refused and the state is left as it was."""
    policy = Plateau()
    state = policy.initial_state()
    with pytest.raises((TypeError, ValueError)):
        policy.report(state, metric)
    assert state == policy.initial_state()


def test_a_report_leaves_the_given_state_alone():
    """Reporting returns a new state, so that a failed call cannot leave a half-changed one."""
    policy = Plateau(patience=0)
    state = policy.initial_state()
    after = policy.report(policy.report(state, 1.0), 2.0)
    assert state == policy.initial_state()
    assert policy.after(after, 5).lr_factor == 0.1
    assert policy.report(None, 1.0) == policy.report(state, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"best": NAN},
        {"best": "low"},
        {"best": None},
        {"lr_factor": 1.5},
        {"lr_factor": -0.1},
        {"lr_factor": NAN},
        {"lr_factor": None},
        {"num_bad_reports": -1},
        {"num_bad_reports": 1.0},
        {"num_bad_reports": True},
        {"cooldown_counter": -1},
        {"cooldown_counter": None},
        {"no_such_key": 1},
    ],
    ids=repr,
)
def test_a_malformed_state_is_refused(change):
    """A state of reports that Plateau cannot have written is a ValueError that names the key."""
    policy = Plateau()
    policy.check_state(policy.initial_state())
    with pytest.raises(ValueError, match=next(iter(change))):
        policy.check_state({**policy.initial_state(), **change})


@pytest.mark.parametrize("state", [None, {}, {"best": 1.0}, [], "state"])
def test_a_state_without_its_keys_is_refused(state):
    """Something else than a state of reports is a ValueError that lists the keys."""
    with pytest.raises(ValueError, match="need the state of Plateau to have the keys"):
        Plateau().check_state(state)


# --- descriptions


@pytest.mark.parametrize(
    "description",
    [
        None,
        3,
        "OneCycle",
        [],
        {},
        {"name": "OneCycle"},
        {"fields": {}},
        {"name": 3, "fields": {}},
        {"name": "OneCycle", "fields": []},
        {"name": "OneCycle", "fields": None},
        {"name": "OneCycle", "fields": {}},
        {"name": "OneCycle", "fields": {"total_steps": 100, "no_such_argument": 1}},
        {"name": "OneCycle", "fields": {"total_steps": 100.0}},
        {"name": "OneCycle", "fields": {"total_steps": -1}},
        {"name": "OneCycle", "fields": {"total_steps": {}}},
        {"name": "OneCycle", "fields": {3: 100}},
        {"name": "OneCycle", "fields": {"total_steps": 100, "div_factor": 10**400}},
        {"name": "NoSuchPolicy", "fields": {}},
        {"name": "Policy", "fields": {}},
        {"name": "", "fields": {}},
        {"name": "os.system", "fields": {"command": "true"}},
        {"name": "LambdaPolicy", "fields": {"fn": {"code": "os.system"}}},
        {"name": "LambdaPolicy", "fields": {"fn": "os.system"}},
        {"name": "LambdaPolicy", "fields": {"fn": describe(Constant())}},
        {"name": "MultiStepDecay", "fields": {"milestones": [[3]]}},
        {"name": "MultiStepDecay", "fields": {"milestones": "34"}},
        {"name": "Sequential", "fields": {"policies": [{"name": "Constant"}], "milestones": []}},
        {"name": "Sequential", "fields": {"policies": describe(Constant()), "milestones": []}},
        {"name": "Sequential", "fields": {"policies": [describe(Plateau())] * 2, "milestones": [3]}},
        {"name": "Product", "fields": {"policies": []}},
        {"name": "Combined", "fields": {"lr": None}},
        {"name": "Combined", "fields": {"momentum": describe(Constant())}},
    ],
    ids=lambda description: repr(description)[:60],
)
def test_a_malformed_description_is_a_value_error(description):
    """Whatever does not describe a policy of ours is a ValueError, and nothing named in it is looked up."""
    with pytest.raises(ValueError, match="need"):
        rebuild(description)
