"""Corners of the policies that no drawn example is sure to reach."""

import pytest

from cyclic_optim import Constant, CosineRestarts, LinearRamp, MultiStepDecay, Sequential, Triangular
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
