"""A run that goes on past the end of its schedule at next to no rate is told so, once; no other run is."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import finite_policies, parameter

from cyclic_optim import (
    Combined,
    CosineDecay,
    CosineRestarts,
    CosineWave,
    CyclicAdamW,
    CyclicSGD,
    ExponentialDecay,
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
    Triangular,
    Warmup,
    WarmupStableDecay,
)
from cyclic_optim.schedule import NEXT_TO_NOTHING

pytestmark = pytest.mark.usefixtures("part")

#: All of 8 steps, after which the rate is next to nothing.
OF_8_STEPS = [
    OneCycle(8),
    OneCycle(8, three_phase=True, final_div_factor=1e3),
    CosineDecay(8),
    CosineDecay(7, min_factor=5e-5),
    LinearDecay(8),
    LinearRamp(8, 1.0, 0.0),
    PolynomialDecay(8, power=2),
    WarmupStableDecay(8, warmup=2, decay=3),
    Warmup(CosineDecay(5), total_iters=3),
    Sequential([LinearRamp(3), OneCycle(5)], [3]),
    Sequential([Plateau(), LinearDecay(5)], [3]),
    Staircase(LinearDecay(4), 2),
    Scaled(OneCycle(8), 0.5),
    Product([OneCycle(8), LinearDecay(8)]),
    Product([Plateau(), CosineDecay(8)]),
    Combined(LinearDecay(8), OneCycle(4)),
]
#: What goes on for ever, or holds a rate that trains.
THAT_GO_ON = [
    OneCycle(8, div_factor=10, final_div_factor=100),
    CosineDecay(3, min_factor=1e-4),
    MultiStepDecay([1, 2, 3, 4], 0.1),
    LinearRamp(3, 0.0, 1.0),
    Warmup(Triangular(3), 2),
    Triangular(2, div_factor=1e9),
    CosineRestarts(3),
    CosineWave(3),
    ExponentialDecay(0.01),
    LambdaPolicy(float),
    Plateau(factor=1e-9, patience=0),
]


def run(optimizer, steps):
    """The warnings of so many steps, by the number of the step."""
    said = {}
    for step in range(1, steps + 1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        if caught:
            (said[step],) = [str(warning.message) for warning in caught]
    return said


def built(policy, **options):
    return CyclicSGD([parameter(torch.float32)], lr=0.1, policy=policy, **options)


def saved(optimizer):
    """The warnings of a state dict."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.state_dict()
    return [str(warning.message) for warning in caught]


def test_the_ninth_step_of_eight_is_told_so():
    """The warning has the numbers, the unit and the way out, and stands where ``step`` was called."""
    optimizer = built(OneCycle(total_steps=8))
    assert run(optimizer, 8) == {}
    with pytest.warns(UserWarning, match="step 9") as caught:
        optimizer.step()
    (warning,) = caught
    assert str(warning.message) == (
        "step 9 of a policy of 8 steps: lengths are in optimizer steps, len(loader) * epochs. From here on lr is 4e-06 "
        f"* max_lr; reschedule(policy=...) goes on under another policy than {OneCycle(total_steps=8)!r}"
    )
    assert warning.filename == __file__
    assert optimizer.param_groups[0]["schedule_step"] == 9


@pytest.mark.parametrize("policy", OF_8_STEPS, ids=lambda policy: type(policy).__name__)
def test_it_is_said_once_with_the_policys_length(policy):
    """At the first step after the last that trains, and never again: whatever the policy is made of."""
    said = run(built(policy), 20)
    assert [*said] == [9]
    assert said[9].startswith("step 9 of a policy of 8 steps: ")


@pytest.mark.parametrize("policy", THAT_GO_ON, ids=lambda policy: type(policy).__name__)
def test_what_trains_on_is_not_warned_of(policy):
    """Cycles, decays without an end, rates that a decay holds, and reports may be as low as they like."""
    optimizer = CyclicSGD([parameter()], lr=1e-9, policy=policy)
    assert run(optimizer, 20) == {}
    if isinstance(policy, Plateau):
        for _ in range(3):
            optimizer.report(1.0)
        assert optimizer.param_groups[0]["lr"] < 1e-16
        assert run(optimizer, 3) == {}


@given(policy=finite_policies(), over=st.integers(0, 3))
def test_only_a_step_past_the_end_at_next_to_nothing_is_warned_of(policy, over):
    """Whatever the policy: where it holds a rate that trains never, else from the first step that does not."""
    optimizer = built(policy)
    held = policy.at(policy.end).lr_factor
    optimizer.reschedule(step=policy.end + over)
    said = run(optimizer, 1)
    assert bool(said) == (held < NEXT_TO_NOTHING and (over > 0 or held == 0))


def test_another_policy_begins_anew():
    """After ``reschedule`` the next end is told of, too."""
    optimizer = built(CosineDecay(3))
    assert [*run(optimizer, 6)] == [4]
    optimizer.reschedule(policy=LinearDecay(2), step=0)
    assert [*run(optimizer, 6)] == [3]


def test_it_is_said_once_for_all_groups():
    """Groups under policies and clocks of their own: the first that has ended is told of."""
    groups = [
        {"params": [parameter()], "policy": Triangular(3)},
        {"params": [parameter()], "policy": LinearDecay(4)},
        {"params": [parameter()], "policy": OneCycle(8), "schedule_step": 6},
        {"params": [parameter()], "policy": None},
    ]
    said = run(CyclicSGD(groups, lr=torch.tensor(0.1)), 12)
    assert [*said] == [3]
    assert said[3].startswith("step 9 of a policy of 8 steps")


def test_a_rate_set_by_hand_is_not_next_to_nothing():
    """Who edits the rate of a step past the end trains on; the next step is told."""
    optimizer = built(LinearDecay(2))
    run(optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.5
    assert run(optimizer, 1) == {}
    assert [*run(optimizer, 2)] == [1]


def test_a_skipped_step_is_none():
    """A step that AMP skips past the end says nothing; the first that is applied does."""
    optimizer = built(LinearDecay(2), fused=True)
    run(optimizer, 2)
    optimizer.found_inf = torch.tensor(1.0)
    assert run(optimizer, 3) == {}
    optimizer.found_inf = torch.tensor(0.0)
    assert [*run(optimizer, 3)] == [1]


def test_as_an_error_it_comes_before_anything_moves():
    """With warnings as errors the step raises, and weights, momentum buffers and clock are as they were."""
    param = parameter()
    optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, policy=OneCycle(3))
    run(optimizer, 3)
    before = copy.deepcopy((param, optimizer.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="step 4 of a policy of 3 steps"):
            optimizer.step()
    assert repr((param, optimizer.state_dict())) == repr(before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_knows_that_it_was_said(copied):
    """A copy of an optimizer that has warned does not warn again; a copy of one that has not does."""
    optimizer = built(LinearDecay(2))
    run(optimizer, 2)
    assert [*run(copied(optimizer), 3)] == [1]
    run(optimizer, 1)
    assert run(copied(optimizer), 3) == {}


def test_a_resumed_run_is_told():
    """A checkpoint of a finished run goes on past the end: its first step says so. Loading alone does not."""
    optimizer = CyclicAdamW([parameter()], lr=0.1, policy=OneCycle(4))
    run(optimizer, 4)
    resumed = CyclicAdamW([parameter()], lr=0.1, policy=OneCycle(4))
    resumed.load_state_dict(optimizer.state_dict())
    assert [*run(resumed, 3)] == [1]


@pytest.mark.parametrize("policy", [OneCycle(8), LinearDecay(8)], ids=["OneCycle", "LinearDecay"])
def test_on_the_device_a_checkpoint_says_so(policy):
    """A capturable step does not know where it is; ``state_dict()`` does, once, from the ninth step on."""
    optimizer = built(policy, capturable=True)
    assert run(optimizer, 8) == {}
    assert saved(optimizer) == []
    assert run(optimizer, 1) == {}
    (message,) = saved(optimizer)
    assert message.startswith("step 9 of a policy of 8 steps: ")
    assert saved(optimizer) == []
    optimizer.reschedule(step=0)
    assert run(optimizer, 8) == {}
    assert saved(optimizer) == []
    assert run(optimizer, 4) == {}
    (message,) = saved(optimizer)
    assert message.startswith("step 12 of a policy of 8 steps: ")


@pytest.mark.parametrize("policy", THAT_GO_ON, ids=lambda policy: type(policy).__name__)
def test_on_the_device_what_trains_on_is_not_warned_of(policy):
    """As on the host."""
    optimizer = built(policy, capturable=True, horizon=30)
    run(optimizer, 15)
    assert saved(optimizer) == []
