"""Corners of the policies that no drawn example is sure to reach."""

import dataclasses
import inspect

import pytest
import torch

from cyclic_optim import Constant, CosineRestarts, LinearRamp, MultiStepDecay, Sequential, Triangular
from cyclic_optim.policies import POLICIES
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
    "CosineRestarts": {"t_mult": 1, "min_factor": 0.0},
    "CosineWave": {"min_factor": 0.0},
    "CosineDecay": {"min_factor": 0.0},
    "PolynomialDecay": {"power": 1.0},
    "ExponentialDecay": {},
    "StepDecay": {"gamma": 0.1},
    "MultiStepDecay": {"gamma": 0.1},
    "InverseTimeDecay": {},
    "WarmupStableDecay": {"shape": "linear", "min_factor": 0.0},
    "LinearRamp": {"start_factor": 1 / 3, "end_factor": 1.0},
    "ExponentialRamp": {"end_factor": 1.0},
    "Sequential": {},
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
