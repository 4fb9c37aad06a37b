"""Corners of the policies that no drawn example is sure to reach."""

import dataclasses
import inspect
import math
import sys

import numpy as np
import pytest
import torch

from cyclic_optim import (
    Constant,
    CosineRestarts,
    ExponentialRamp,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Plateau,
    Policy,
    Sequential,
    Staircase,
    Triangular,
    Values,
)
from cyclic_optim.device.clock import _extent
from cyclic_optim.policies import POLICIES, describe, rebuild
from cyclic_optim.policies.cyclic import cycle_of


@pytest.mark.parametrize("growth", [2, 2.0, 3, 1.5])
@pytest.mark.parametrize("number", [1, 30, 60, 90, 300])
def test_a_cycle_is_found_from_its_first_and_its_last_step(growth, number):
    """Where steps outgrow floats, the logarithm's guess lands a cycle too high or too low, and is put right."""
    start, end = 0, 0
    for k, (up, down) in enumerate([(1, 2)] * (number + 1)):
        start, end = end, cycle_of(end, up, down, growth)[3]
        assert cycle_of(start, up, down, growth)[:2] == (k, start)
        assert cycle_of(end - 1, up, down, growth)[:2] == (k, start)
    assert start < end


def test_a_step_before_the_restart_is_the_lowest():
    """The last step of a doubled cycle of 2**60 steps is not yet the peak of the next."""
    policy, restart = CosineRestarts(1, 2), 2**60 - 1
    assert policy.at(restart).lr_factor == 1.0
    assert 0 < policy.at(restart - 1).lr_factor < 1e-30


def test_milestones_may_repeat():
    """A milestone that is named twice counts twice."""
    policy = MultiStepDecay([4, 4], 0.5)
    assert [policy.at(step).lr_factor for step in (3, 4)] == [1.0, 0.25]


def test_a_sequence_keeps_its_policies_in_a_tuple():
    """Given as a list or an iterator, the policies are kept in a tuple, so that the sequence can be hashed."""
    parts = [Constant(), LinearRamp(3)]
    assert Sequential(iter(parts), [2]).policies == tuple(parts)
    assert hash(Sequential(parts, [2])) == hash(Sequential(tuple(parts), (2,)))


def test_the_inherited_momentum_is_the_last_one_of_the_policy_before():
    """A policy that leaves momentum alone goes on with the one of the step before it took over."""
    triangle = Triangular(4)
    policy = Sequential([Constant(), triangle, Constant(), Constant()], [3, 10, 13])
    assert policy.at(2).momentum is None
    for step in (10, 12, 13, 100):
        assert policy.at(step).momentum == triangle.at(6).momentum


def test_a_sequence_ends_when_its_last_policy_does():
    """The end is the last milestone plus the last policy's end."""
    assert Sequential([LinearRamp(5)], []).end == 5
    assert Sequential([Constant(), Constant(), LinearRamp(5)], [3, 9]).end == 14
    assert Sequential([LinearRamp(5), Triangular(4)], [3]).end is None


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize("total_steps", [10, 21])
def test_one_cycle_step_by_step(total_steps, anneal_strategy, three_phase):
    """Every step of a short cycle is torch's, and from the last one on nothing changes."""
    options = {"pct_start": 0.3, "anneal_strategy": anneal_strategy, "three_phase": three_phase}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps, **options)
    policy = OneCycle(total_steps, **options)
    for step in range(total_steps):
        group = optimizer.param_groups[0]
        assert policy.at(step)[:2] == pytest.approx((group["lr"], group["momentum"]), rel=1e-10, abs=1e-12)
        optimizer.step()
        if step < total_steps - 1:
            scheduler.step()
    for step in (total_steps, total_steps + 1, 10**9):
        assert policy.at(step) == policy.at(total_steps - 1)


@pytest.mark.parametrize(
    ("options", "best", "no_better", "better"),
    [
        ({"threshold": 0.1}, 100.0, 90.5, 89.5),
        ({"threshold": 0.1, "mode": "max"}, 100.0, 109.5, 110.5),
        ({"threshold": 3, "threshold_mode": "abs"}, 100.0, 97.0, 96.5),
        ({"threshold": 3, "threshold_mode": "abs", "mode": "max"}, 100.0, 103.0, 103.5),
        ({"threshold": 0}, 100.0, 100.0, 99.5),
    ],
)
def test_what_improves_on_the_best(options, best, no_better, better):
    """A metric improves if it is beyond the best one by more than the threshold, which is a share of it or absolute."""
    policy = Plateau(patience=5, **options)
    state = policy.report(None, best)
    assert policy.report(state, no_better)["num_bad_reports"] == 1
    assert policy.report(state, math.nan)["num_bad_reports"] == 1
    assert policy.report(state, better) == {**state, "best": better}


def test_reports_one_by_one():
    """Patience, a reduction, the cooldown, the floor: the state after each report."""
    policy = Plateau(factor=0.5, patience=1, cooldown=2, min_factor=0.3)
    state, seen = None, []
    for metric in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        state = policy.report(state, metric)
        seen.append((state["num_bad_reports"], state["cooldown_counter"], state["lr_factor"]))
    assert seen == [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 2, 0.5),
        (0, 1, 0.5),
        (0, 0, 0.5),
        (1, 0, 0.5),
        (0, 2, 0.3),
        (0, 1, 0.3),
        (0, 0, 0.3),
        (1, 0, 0.3),
        (0, 2, 0.3),
    ]
    assert policy.after(state, 7) == Values(0.3)


def test_between_reports_a_plateau_repeats_every_step():
    """Its values depend on the reports alone: the period is 1, it has no end, and the table of a device has one row."""
    policy = Plateau(factor=0.5, patience=0)
    state = policy.report(policy.report(None, 1.0), 1.0)
    assert (policy.period, policy.end) == (1, None)
    for step in (0, 1, 2**40):
        assert policy.at(step) == policy.at(step + policy.period) == Values(1.0)
        assert policy.after(state, step) == policy.after(state, step + policy.period) == Values(0.5)
    assert _extent(policy, None) == _extent(policy, 10) == (1, 1, False)


def test_a_reduction_must_be_worth_it():
    """A reduction of no more than eps is not made."""
    for eps, factor in ((0.5, 1.0), (0.4999, 0.5)):
        policy = Plateau(factor=0.5, patience=0, eps=eps)
        assert policy.report(policy.report(None, 1.0), 1.0)["lr_factor"] == factor


@pytest.mark.parametrize("lr_factor", [0.0, 0.5, 1.0])
def test_a_state_may_have_come_down_to_0(lr_factor):
    """Factors from 0 to 1, the ends included, can have been written."""
    Plateau().check_state({**Plateau().initial_state(), "lr_factor": lr_factor})


class Curve:
    def __call__(self, step):
        return 1.0


@dataclasses.dataclass(frozen=True)
class Everything(Policy):
    """A policy of the user's with fields of all kinds."""

    mapping: object
    items: object
    whole: object
    number: object
    function: object
    instance: object
    policy: object

    def at(self, step):
        return 1.0, None


def halve(step):
    return 0.5**step


def test_a_description_is_plain_data_whatever_the_fields_hold():
    """Mappings, sequences, numpy's numbers, functions, callables and policies become data that json can hold."""
    policy = Everything({3: (1, None)}, (True, "a"), np.int64(7), np.float32(0.5), halve, Curve(), LinearRamp(3))
    described = describe(policy)
    assert described == {
        "name": f"{__name__}.Everything",
        "fields": {
            "mapping": {"3": [1, None]},
            "items": [True, "a"],
            "whole": 7,
            "number": 0.5,
            "function": {"code": f"{__name__}.halve"},
            "instance": {"code": f"{__name__}.Curve"},
            "policy": {"name": "LinearRamp", "fields": {"total_iters": 3, "start_factor": 1 / 3, "end_factor": 1.0}},
        },
    }
    assert (type(described["fields"]["whole"]), type(described["fields"]["number"])) == (int, float)


def test_code_inside_a_list_is_named_where_it_stands():
    """A function in a list of a description is refused with the policy and field that hold the list."""
    with pytest.raises(ValueError, match="need the code") as raised:
        rebuild({"name": "Sequential", "fields": {"policies": [{"code": "some.function"}], "milestones": []}})
    assert str(raised.value) == "need the code of Sequential.policies ('some.function'), which data cannot hold"


def test_no_drop_at_all_is_over_from_the_start():
    """A MultiStepDecay without milestones is at its last value from step 0 on."""
    assert MultiStepDecay([]).end == 0


_TRIANGLE = {
    "step_size_up": 2000,
    "step_size_down": None,
    "div_factor": 10,
    "cycle_growth": 1,
    "cycle_momentum": True,
    "base_momentum": 0.8,
    "max_momentum": 0.9,
}

DEFAULTS = {
    "Constant": {},
    "Triangular": {**_TRIANGLE, "scale_fn": None, "scale_mode": "cycle"},
    "Triangular2": _TRIANGLE,
    "ExpRange": _TRIANGLE,
    "OneCycle": {
        "pct_start": 0.3,
        "anneal_strategy": "cos",
        "cycle_momentum": True,
        "base_momentum": 0.85,
        "max_momentum": 0.95,
        "div_factor": 25.0,
        "final_div_factor": 1e4,
        "three_phase": False,
    },
    "CosineRestarts": {"t_mult": 1, "min_factor": 0.0, "gamma": 1.0},
    "CosineWave": {"min_factor": 0.0},
    "CosineDecay": {"min_factor": 0.0},
    "PolynomialDecay": {"power": 1.0, "min_factor": 0.0},
    "ExponentialDecay": {},
    "StepDecay": {"gamma": 0.1},
    "MultiStepDecay": {"gamma": 0.1},
    "InverseTimeDecay": {"power": 1.0},
    "LinearDecay": {"warmup": 0, "min_factor": 0.0},
    "WarmupStableDecay": {"shape": "linear", "min_factor": 0.0},
    "LinearRamp": {"start_factor": 1 / 3, "end_factor": 1.0},
    "ExponentialRamp": {"end_factor": 1.0},
    "Sequential": {"restart": True},
    "Warmup": {"start_factor": 0.0, "overlay": False, "start_momentum": None},
    "Product": {},
    "Combined": {"momentum": None, "weight_decay": None},
    "Staircase": {},
    "Scaled": {},
    "Plateau": {
        "mode": "min",
        "factor": 0.1,
        "patience": 10,
        "threshold": 1e-4,
        "threshold_mode": "rel",
        "cooldown": 0,
        "min_factor": 0.0,
        "eps": 1e-8,
    },
    "LambdaPolicy": {},
}


def test_every_default_is_the_documented_one():
    """The arguments that a policy does not need, and what they are when they are not given."""
    assert {
        name: {
            field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING
        }
        for name, kind in POLICIES.items()
    } == DEFAULTS


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("OneCycle", "OneCycleLR"),
        ("PolynomialDecay", "PolynomialLR"),
        ("StepDecay", "StepLR"),
        ("MultiStepDecay", "MultiStepLR"),
        ("LinearRamp", "LinearLR"),
        ("Plateau", "ReduceLROnPlateau"),
        ("Triangular", "CyclicLR"),
    ],
)
def test_defaults_that_torch_has_too_are_torchs(ours, theirs):
    """Where torch's scheduler has an argument of the same name, the default is the same."""
    signature = inspect.signature(getattr(torch.optim.lr_scheduler, theirs)).parameters
    shared = DEFAULTS[ours].keys() & signature.keys()
    assert shared
    assert {name: DEFAULTS[ours][name] for name in shared} == {name: signature[name].default for name in shared}


def test_the_shortest_parts_there_are():
    """A policy may take over at step 1, and an epoch may be one step long."""
    assert Sequential([Constant(), LinearRamp(2, 0.5)], [1]).at(1).lr_factor == 0.5
    assert Staircase(LinearRamp(2, 0.5), 1).at(1) == LinearRamp(2, 0.5).at(1)


def test_a_sequence_refuses_the_step_that_it_was_asked_for():
    """A step that is no int is shown as it was given, not as the part in force would count it."""
    with pytest.raises(TypeError) as raised:
        Sequential([Constant(), Constant()], [2]).at(5.0)
    assert str(raised.value) == "need step to be an int (optimizer steps, not epochs), got step=5.0"


def test_a_scale_may_take_the_rate_down_to_0():
    """A scaled rate of exactly 0 is allowed, one below is not."""
    assert Triangular(1, div_factor=2, cycle_momentum=False, scale_fn=lambda cycle: -1).at(1).lr_factor == 0.0
    with pytest.raises(ValueError, match="need a scale that keeps the rate"):
        Triangular(1, div_factor=2, cycle_momentum=False, scale_fn=lambda cycle: -1.001).at(1)


def test_a_scale_may_not_take_the_momentum_below_0_by_the_last_digit():
    """A step before a peak of 2**53 steps, a scale of one ulp more than 1 takes the momentum to -1e-16: refused."""
    policy = Triangular(2**53, base_momentum=0, scale_fn=lambda cycle: 1 + 2**-52)
    with pytest.raises(ValueError, match=r"need a scale that keeps .* momentum=-9\.99"):
        policy.at(2**53 - 1)


def test_the_shortest_period():
    """A constant repeats after every step, and is over at once."""
    assert (Constant().period, Constant().end) == (1, 0)


@pytest.mark.parametrize(
    ("start", "end"),
    [(1.0, sys.float_info.min), (2.0**-1024, 1 - 2.0**-53)],
    ids=["the least ratio", "the greatest ratio"],
)
def test_the_steepest_exponential_ramps_there_are(start, end):
    """The quotient of the ends may be the least and the greatest float of full precision."""
    ramp = ExponentialRamp(4, start, end)
    assert (ramp.at(0).lr_factor, ramp.at(4).lr_factor) == (start, end)


def test_policies_are_rebuilt_from_up_to_50_levels():
    """A description of 50 policies, one in the other, gives the policy; one of 51 is refused."""
    policy = Constant()
    for _ in range(49):
        policy = Staircase(policy, 2)
    assert rebuild(describe(policy)) == policy
    with pytest.raises(ValueError, match=r"^need policies nested at most 50 deep, got more$"):
        rebuild(describe(Staircase(policy, 2)))
