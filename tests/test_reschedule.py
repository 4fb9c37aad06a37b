"""``reschedule``: what is given changes, what is not stays; at once, all or nothing, and it is in the checkpoint."""

import copy
import warnings

import numpy as np
import pytest
import torch
from helpers import column, number, params_of, through_a_file
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_step
from strategies import parameter, policies

from cyclic_optim import (
    Constant,
    CosineDecay,
    CyclicAdamW,
    CyclicSGD,
    LambdaPolicy,
    OneCycle,
    Plateau,
    Policy,
    Scaled,
    StepDecay,
    Triangular,
    Values,
    cyclic,
)

pytestmark = pytest.mark.usefixtures("part", "short_tables")

OURS = ("lr", "momentum", "max_lr", "schedule_step", "policy", "policy_state")


def built(*, capturable=False, groups=3, lr=1.0, policy=None, horizon=None, cls=CyclicSGD, **options):
    """An optimizer of groups with one parameter each, whose peaks are lr, lr / 2, lr / 3 ..."""
    dtype = torch.float32 if capturable else torch.float64
    groups = [{"params": [parameter(dtype)], "lr": lr / (1 + i)} for i in range(groups)]
    if capturable:
        options |= {"capturable": True, "horizon": horizon}
    if cls is CyclicSGD:
        options = {"momentum": 0.5} | options
    return cls(groups, policy=policy, **options)


def shown(optimizer):
    """What is shown of the schedules, in numbers."""
    return [{key: number(group[key]) for key in OURS if key in group} for group in optimizer.param_groups]


def everything(optimizer):
    """All of it, to compare: groups as they are shown and saved, state, weights, policies, the tensors themselves."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    tensors = [id(value) for group in groups for value in group.values() if isinstance(value, torch.Tensor)]
    return repr((groups, optimizer.state_dict(), params_of(optimizer))), optimizer.policies, optimizer.policy, tensors


def step_like_the_reference(optimizer, buffers):
    """One step, whose weights are plain arithmetic at the values shown before it."""
    twins = [param.detach().clone() for param in params_of(optimizer)]
    for param, twin, group, buffer in zip(params_of(optimizer), twins, optimizer.param_groups, buffers, strict=True):
        twin.grad = param.grad
        reference_step([twin], buffer, lr=number(group["lr"]), momentum=number(group["momentum"]))
    optimizer.step()
    for param, twin in zip(params_of(optimizer), twins, strict=True):
        torch.testing.assert_close(param.detach(), twin)


DEVICES = pytest.mark.parametrize("capturable", [False, True])

# -- what is given changes, what is not stays


@st.composite
def addressed(draw, count=3):
    """``group`` as it may be given, and the indices that it means."""
    indices = draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    whole = st.just((None, [*range(count)]))
    single = st.just((indices[0], indices[:1]))
    return draw(whole | single | st.sampled_from([list, tuple]).map(lambda kind: (kind(indices), indices)))


@given(
    before=policies(),
    after=st.none() | policies(),
    lrs=st.none() | st.floats(1e-3, 2.0) | st.lists(st.floats(1e-3, 2.0), min_size=3, max_size=3),
    step=st.none() | st.integers(0, 50),
    given_group=addressed(),
    cut=st.integers(0, 4),
    capturable=st.booleans(),
)
def test_any_combination_of_arguments(before, after, lrs, step, given_group, cut, capturable):
    """Policy, peak and clock are as given, or stay; rate and momentum follow at once, and the update uses them."""
    group, indices = given_group
    if after is None and lrs is None and step is None:
        step = 7
    peaks = lrs[: len(indices)] if isinstance(lrs, list) else lrs
    horizon = max(before.period or 1, (after and after.period) or 1, 64)
    optimizer = built(policy=before, capturable=capturable, horizon=horizon)
    buffers = [{} for _ in range(3)]
    for _ in range(cut):
        step_like_the_reference(optimizer, buffers)
    old, tensors = shown(optimizer), [dict(group) for group in optimizer.param_groups]
    optimizer.reschedule(policy=after, lr=peaks, step=step, group=group)
    tolerance = {"rel": 1e-6} if capturable else {"rel": 0, "abs": 0}
    for i, (now, was) in enumerate(zip(shown(optimizer), old, strict=True)):
        if i not in indices:
            assert now == was
            continue
        policy = before if after is None else after
        peak = was["max_lr"] if peaks is None else peaks[indices.index(i)] if isinstance(peaks, list) else peaks
        clock = cut if step is None else step
        values = policy.at(clock)
        assert optimizer.policies[i] == policy
        assert (now["max_lr"], now["schedule_step"]) == (peak, clock)
        assert now["lr"] == pytest.approx(peak * values.lr_factor, **tolerance)
        momentum = was["momentum"] if values.momentum is None else values.momentum
        assert now["momentum"] == pytest.approx(momentum, **tolerance)
    if capturable:
        for group, was in zip(optimizer.param_groups, tensors, strict=True):
            assert all(group[key] is was[key] for key in ("lr", "momentum", "max_lr", "schedule_step"))
    for _ in range(2):
        step_like_the_reference(optimizer, buffers)  # with the buffers as they were


@DEVICES
def test_the_clocks_go_on_from_there(capturable):
    """After it, every step asks for the next one of each group's policy."""
    optimizer = built(policy=StepDecay(1, 0.5), capturable=capturable)
    optimizer.step()
    optimizer.reschedule(policy=Triangular(4), lr=0.8, step=2, group=1)
    for n in range(1, 4):
        optimizer.step()
        expected = [0.5 ** (1 + n), 0.8 * Triangular(4).at(2 + n).lr_factor, 0.5 ** (1 + n) / 3]
        assert column(optimizer, "lr") == pytest.approx(expected)
        assert column(optimizer, "schedule_step") == [1 + n, 2 + n, 1 + n]


@pytest.mark.parametrize("lr", [0.25, 1, np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25])], ids=repr)
@DEVICES
def test_a_peak_may_be_any_number(lr, capturable):
    """What holds one number is that number for every group addressed, and plain data afterwards."""
    optimizer = built(policy=Constant(), capturable=capturable)
    optimizer.reschedule(lr=lr)
    saved = optimizer.state_dict()["param_groups"]
    assert [(type(group["max_lr"]), group["max_lr"]) for group in saved] == [(float, float(lr))] * 3


def test_indices_and_steps_of_numpy_are_ints():
    """A clock of numpy's is an int in the checkpoint, and its index addresses a group."""
    optimizer = built(policy=StepDecay(1, 0.5))
    optimizer.reschedule(step=np.int64(2), group=np.int64(1))
    assert [(type(step), step) for step in column(optimizer, "schedule_step")] == [(int, 0), (int, 2), (int, 0)]


def test_a_tensor_rate_stays_that_tensor():
    """A tensor lr is filled."""
    optimizer = built(policy=Constant(), lr=torch.tensor(1.0, dtype=torch.float64))
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.reschedule(lr=[0.5, 0.25, 0.125], policy=StepDecay(1, 0.5), step=1)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    assert column(optimizer, "lr") == [0.25, 0.125, 0.0625]


@DEVICES
def test_a_policy_that_leaves_momentum_alone_leaves_it(capturable):
    """Momentum stays where the last policy had it, and is the user's from then on."""
    optimizer = built(policy=OneCycle(9), capturable=capturable)
    for _ in range(3):
        optimizer.step()
    (momentum,) = set(column(optimizer, "momentum"))
    assert momentum != 0.5
    optimizer.reschedule(policy=CosineDecay(5), step=0)
    optimizer.step()
    assert column(optimizer, "momentum") == [momentum] * 3
    optimizer.param_groups[0]["momentum"] = 0.75
    optimizer.step()
    assert column(optimizer, "momentum") == [0.75, momentum, momentum]


@DEVICES
def test_reports_are_kept_with_the_policy_and_begin_with_another(capturable):
    """A new peak or clock leaves a Plateau its reports; a policy that is given has had none, be it an equal one."""
    plateau = Plateau(factor=0.5, patience=0)
    optimizer = built(policy=plateau, capturable=capturable)
    optimizer.report(1.0)
    optimizer.report(1.0)
    optimizer.reschedule(lr=0.8, step=5)
    assert column(optimizer, "lr") == pytest.approx([0.4] * 3)
    optimizer.reschedule(policy=plateau, group=1)
    assert column(optimizer, "lr") == pytest.approx([0.4, 0.8, 0.4])
    optimizer.reschedule(policy=Constant(), group=[0, 1])
    assert [group.get("policy_state", {}).get("lr_factor") for group in optimizer.param_groups] == [None, None, 0.5]
    optimizer.report(1.0)
    assert column(optimizer, "lr") == pytest.approx([0.8, 0.8, 0.2])


@pytest.mark.parametrize("write", ["assigned", "filled"])
@pytest.mark.parametrize(("key", "factor"), [("lr", 1), ("max_lr", 2)])
@DEVICES
def test_edits_by_hand_are_taken_in(key, factor, write, capturable):
    """A peak that was edited is what stays, a rate that was edited is the schedule's again; elsewhere edits count."""
    if write == "filled" and not capturable:
        optimizer = built(policy=StepDecay(1, 0.5), momentum=0.0, lr=torch.tensor(1.0, dtype=torch.float64))
    else:
        optimizer = built(policy=StepDecay(1, 0.5), momentum=0.0, capturable=capturable)
    optimizer.step()
    groups = optimizer.param_groups

    def edit(i, key, value):
        number = groups[i][key]
        if write == "filled" and isinstance(number, torch.Tensor):
            number.fill_(value)
        else:
            groups[i][key] = value

    edit(0, "lr", 9.0)
    edit(1, "max_lr", 3.0)
    edit(2, key, 9.0)
    optimizer.reschedule(step=1, group=[0, 1])
    assert column(optimizer, "lr")[:2] == pytest.approx([0.5, 1.5])
    before = params_of(optimizer)[2].detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - params_of(optimizer)[2].detach(), torch.full_like(before, 9.0 / factor * 0.5))
    assert column(optimizer, "lr")[:2] == pytest.approx([0.25, 0.75])


# -- whose policy is whose


@DEVICES
def test_groups_that_come_later_have_the_policy_of_all(capturable):
    """A policy that was given to all groups is that of groups added later; one for some groups is theirs alone."""

    def add():
        optimizer.add_param_group({"params": [parameter(torch.float32 if capturable else torch.float64)]})
        return optimizer.policies[-1]

    optimizer = built(policy=Constant(), capturable=capturable)
    optimizer.reschedule(policy=StepDecay(3), group=[0, 1, 2])
    assert optimizer.policy == add() == Constant()
    optimizer.reschedule(policy=CosineDecay(9))
    assert optimizer.policies == [CosineDecay(9)] * 4
    assert optimizer.policy == add() == CosineDecay(9)


@DEVICES
def test_all_means_every_group_where_a_policy_is_given(capturable):
    """A group without a policy gets the one that is given to all; peaks and clocks alone leave it as it is."""
    optimizer = built(policy=StepDecay(1, 0.5), capturable=capturable)
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [parameter(torch.float32)], "policy": None})
    optimizer.reschedule(step=1, lr=[0.1, 0.2, 0.3])
    assert column(optimizer, "lr") == pytest.approx([0.05, 0.1, 0.15, 1.0])
    with pytest.raises(ValueError, match="need a policy for group 3, which has none: pass policy="):
        optimizer.reschedule(step=1, group=3)
    optimizer.reschedule(policy=Constant())
    assert column(optimizer, "lr") == pytest.approx([0.1, 0.2, 0.3, 1.0])
    assert column(optimizer, "schedule_step") == [1, 1, 1, 0]


def test_it_begins_a_schedule_where_there_was_none():
    """Built with policy=None, groups get a policy at its step 0, their lr is the peak; the others stay as they are."""
    optimizer = built()
    optimizer.step()
    optimizer.reschedule(policy=Triangular(4), group=[0, 2])
    factor, momentum, _ = Triangular(4).at(0)
    assert column(optimizer, "lr") == [factor, 0.5, factor / 3]
    assert column(optimizer, "momentum") == [momentum, 0.5, momentum]
    assert optimizer.policies == [Triangular(4), None, Triangular(4)]
    assert optimizer.policy is None
    optimizer.step()
    assert column(optimizer, "schedule_step") == [1, None, 1]
    optimizer.reschedule(policy=StepDecay(2), step=3, lr=1.0)
    assert optimizer.policy == StepDecay(2)
    assert column(optimizer, "lr") == pytest.approx([0.1] * 3)


def test_a_max_lr_that_a_torch_scheduler_left_is_no_peak():
    """Where a group had no policy its peak is its lr, whatever a OneCycleLR wrote beside it."""
    optimizer = built(groups=1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5.0, total_steps=9)
    (before,) = column(optimizer, "lr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.reschedule(policy=Constant())
    assert column(optimizer, "lr") == column(optimizer, "max_lr") == [before]


def test_assigning_a_policy_says_what_to_call():
    """``optimizer.policy = P`` is refused with the verb that does it, and changes nothing."""
    optimizer = built(policy=Constant())
    with pytest.raises(AttributeError, match=r"need reschedule\(policy=\.\.\.\) .*, got policy=StepDecay"):
        optimizer.policy = StepDecay(3)
    assert optimizer.policy == Constant()


@pytest.mark.parametrize("cls", [CyclicAdamW, cyclic(torch.optim.RMSprop)])
def test_any_optimizer_can_be_steered(cls):
    """The same verb moves rates, and beta1 where there is one."""
    optimizer = built(policy=Constant(), cls=cls)
    optimizer.step()
    optimizer.reschedule(policy=OneCycle(9, cycle_momentum=cls is CyclicAdamW), lr=0.2, step=4)
    factor, momentum, _ = OneCycle(9).at(4)
    assert column(optimizer, "lr") == [0.2 * factor] * 3
    if cls is CyclicAdamW:
        assert [group["betas"] for group in optimizer.param_groups] == [(momentum, 0.999)] * 3
    optimizer.step()
    assert column(optimizer, "schedule_step") == [5] * 3


# -- the four uses


def run(optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            param.grad = torch.randn(2, generator=generator, dtype=torch.float64).to(param.dtype)
        optimizer.step()


@DEVICES
def test_a_weights_only_resume(capturable):
    """``reschedule(step=n)`` of a fresh optimizer is the schedule of one that has made n steps."""
    first, second = (built(policy=OneCycle(20), capturable=capturable) for _ in range(2))
    run(first, 9)
    second.reschedule(step=9)
    assert shown(second) == shown(first)
    run(first, 3)
    run(second, 3)
    assert shown(second) == shown(first)


@DEVICES
def test_a_second_stage(capturable):
    """Policy, peak and step 0 given, it goes on as a new optimizer with the same buffers."""
    first = built(policy=OneCycle(6), capturable=capturable, groups=1)
    run(first, 6)
    second = built(policy=Triangular(3), lr=0.05, capturable=capturable, groups=1)
    with torch.no_grad():
        params_of(second)[0].copy_(params_of(first)[0])
    buffer = first.state[params_of(first)[0]]["momentum_buffer"]
    second.state[params_of(second)[0]]["momentum_buffer"] = buffer.clone()
    first.reschedule(policy=Triangular(3), lr=0.05, step=0)
    run(first, 5, seed=1)
    run(second, 5, seed=1)
    assert shown(first) == shown(second)
    assert torch.equal(params_of(first)[0], params_of(second)[0])


@DEVICES
def test_a_cool_down_from_here(capturable):
    """With the current rate as peak, a decay begins exactly where the rate stands, and ends at 0."""
    optimizer = built(policy=Triangular(4), capturable=capturable, groups=1)
    run(optimizer, 3)
    (rate,) = column(optimizer, "lr")
    optimizer.reschedule(policy=CosineDecay(4), lr=rate, step=0)
    assert column(optimizer, "lr") == [rate]
    run(optimizer, 4)
    assert column(optimizer, "lr") == [0.0]


@DEVICES
def test_a_rollback_with_a_lower_rate(capturable):
    """A checkpoint loaded, then a lower peak: the clock is the checkpoint's, all rates are lower at once."""
    optimizer = built(policy=OneCycle(20), capturable=capturable, groups=1)
    run(optimizer, 4)
    saved = through_a_file(optimizer.state_dict())
    (rate,) = column(optimizer, "lr")
    run(optimizer, 5)
    optimizer.load_state_dict(saved)
    optimizer.reschedule(lr=0.01)
    assert column(optimizer, "lr") == pytest.approx([0.01 * rate])
    assert column(optimizer, "schedule_step") == [4]


# -- the checkpoint after it


@given(first=policies(), second=policies(), cut=st.integers(0, 3), group=addressed(), capturable=st.booleans())
def test_the_checkpoint_after_it_resumes_exactly(first, second, cut, group, capturable):
    """Saved at once or some steps later, it is loaded under the policies that there are, without a word."""
    horizon = max(first.period or 1, second.period or 1, 64)
    device = {"capturable": capturable, "horizon": horizon}
    optimizer = built(policy=first, **device)
    run(optimizer, 2)
    optimizer.reschedule(policy=second, step=5, group=group[0])
    run(optimizer, cut)
    fresh = built(policy=first, **device)
    fresh.reschedule(policy=second, group=group[0])
    saved = through_a_file(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict(saved)
    with torch.no_grad():
        for param, weight in zip(params_of(fresh), params_of(optimizer), strict=True):
            param.copy_(weight)
    run(optimizer, 3, seed=1)
    run(fresh, 3, seed=1)
    assert repr(fresh.state_dict()) == repr(optimizer.state_dict())
    assert all(map(torch.equal, params_of(fresh), params_of(optimizer)))


# -- all or nothing


class Failing(Policy):
    """Has no values from step 3 on."""

    def at(self, step):
        if step >= 3:
            raise ArithmeticError("no values")
        return Values(1.0)


class Rising(Policy):
    """Rates that no parameter can hold, at a peak above 1."""

    def at(self, step):
        return Values(1e308, 0.5)


BAD = {
    "nothing": ({}, ValueError, "need policy, lr or step to change, got none of them"),
    "a group alone": ({"group": 0}, ValueError, "need policy, lr or step to change, got none of them"),
    "an index beyond": ({"lr": 0.1, "group": 3}, ValueError, "need indices of the 3 param groups.* got group=3"),
    "a negative index": ({"lr": 0.1, "group": -1}, ValueError, "need indices of the 3 param groups.* got group=-1"),
    "a huge index": ({"lr": 0.1, "group": 10**30}, ValueError, "need indices of the 3 param groups"),
    "one of several beyond": ({"lr": 0.1, "group": [0, 3]}, ValueError, "need indices of the 3 param groups"),
    "repeated": ({"lr": 0.1, "group": [1, 1]}, ValueError, "each once, got group=\\[1, 1\\]"),
    "no index": ({"lr": 0.1, "group": []}, ValueError, "each once, got group=\\[\\]"),
    "a bool as index": ({"lr": 0.1, "group": True}, TypeError, "need group to be the index .* got group=True"),
    "a float as index": ({"lr": 0.1, "group": 1.0}, TypeError, "need group to be the index .* got group=1.0"),
    "a float among indices": ({"lr": 0.1, "group": [0, 1.0]}, TypeError, "need group to be the index"),
    "text as index": ({"lr": 0.1, "group": "0"}, TypeError, "need group to be the index .* got group='0'"),
    "too few peaks": ({"lr": [0.1]}, ValueError, "need one lr, or one for each of the 3 param groups .* got 1"),
    "too many peaks": ({"lr": [0.1] * 2, "group": 1}, ValueError, "one for each of the 1 param groups .* got 2"),
    "no peaks": ({"lr": []}, ValueError, "need one lr, or one for each of the 3 param groups .* got 0"),
    "a negative peak": ({"lr": -0.1}, ValueError, "need lr to be a finite number >= 0, got lr=-0.1"),
    "one of several": ({"lr": [1, 1, -1]}, ValueError, r"need lr\[2\] to be a finite number >= 0, got lr\[2\]=-1"),
    "a NaN": ({"lr": float("nan")}, ValueError, "need lr to be a finite number >= 0, got lr=nan"),
    "infinity": ({"lr": float("inf")}, ValueError, "need lr to be a finite number >= 0, got lr=inf"),
    "a NaN in a tensor": ({"lr": torch.tensor(float("nan"))}, ValueError, "need lr to be a finite number >= 0"),
    "two in a tensor": ({"lr": torch.ones(2)}, ValueError, "need lr as a number or a Tensor of 1 element"),
    "a peak of text": ({"lr": "0.1"}, TypeError, "need lr to be a number, got lr='0.1'"),
    "text among peaks": ({"lr": [0.1, "0.1", 0.1]}, TypeError, r"need lr\[1\] to be a number, got lr\[1\]='0.1'"),
    "a bool": ({"lr": True}, TypeError, "need lr to be a number, got lr=True"),
    "peaks by name": ({"lr": {0: 0.1}}, TypeError, "need lr to be a number"),
    "beyond floats": ({"lr": [1, 1, 10**400]}, ValueError, r"need lr\[2\] to be a finite number >= 0"),
    "too high together": ({"lr": [1, 1, 1e308], "policy": Scaled(Rising(), 1.0)}, ValueError, "need .*hold"),
    "a float as step": ({"step": 1.0}, TypeError, r"need step to be an int .* got step=1.0: pass an int"),
    "a bool as step": ({"step": True}, TypeError, "need step to be an int .* got step=True"),
    "text as step": ({"step": "1"}, TypeError, "need step to be an int .* got step='1'"),
    "steps": ({"step": [1, 2, 3]}, TypeError, "need step to be an int"),
    "a negative step": ({"step": -1}, ValueError, "need 0 <= step, got step=-1"),
    "no room": ({"step": 2**62}, ValueError, r"need step < 2\*\*62, got step=4611686018427387904"),
    "a class": (
        {"policy": OneCycle},
        TypeError,
        r"pass an instance, policy=OneCycle\(total_steps=",
    ),
    "a function": ({"policy": lambda step: 1.0}, TypeError, "wrap a function of the step in LambdaPolicy"),
    "a policy's text": ({"policy": '{"name": "Constant", "fields": {}}'}, TypeError, "need policy to be a Policy"),
    "a policy that fails there": ({"policy": Failing(), "step": 3}, ArithmeticError, "no values"),
    "one that has no number": ({"policy": LambdaPolicy(lambda step: None)}, ValueError, r"need fn\(\d\)"),
    "one that rises too high": ({"policy": Rising(), "lr": 9.0, "group": 2}, ValueError, "need .*hold"),
}

KINDS = {
    "host": lambda: built(policy=StepDecay(2), weight_decay=0.1),
    "tensor rates": lambda: built(policy=Triangular(3), lr=torch.tensor(1.0)),
    "device": lambda: built(policy=Triangular(3), capturable=True, horizon=9, dampening=0.1),
    "reports": lambda: built(policy=Plateau()),
    "mixed": lambda: mixed(),
    "edited": lambda: edited(built(policy=StepDecay(2))),
    "edited on the device": lambda: edited(built(policy=StepDecay(2), capturable=True)),
}


def mixed():
    optimizer = built(policy=StepDecay(2))
    optimizer.reschedule(policy=OneCycle(9), step=4, group=1)
    return optimizer


def edited(optimizer):
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.7
    optimizer.param_groups[1]["max_lr"] = 0.6
    return optimizer


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_argument_changes_nothing(kind, bad):
    """The rule and the value are named, and the optimizer is exactly as it was; the next good call works."""
    arguments, error, message = BAD[bad]
    optimizer, twin = KINDS[kind](), KINDS[kind]()
    for each in (optimizer, twin):
        if "edited" not in kind:
            each.step()
    before = everything(optimizer)
    with pytest.raises(error, match=message):
        optimizer.reschedule(**arguments)
    assert everything(optimizer) == before
    for each in (optimizer, twin):
        each.step()
        each.reschedule(policy=CosineDecay(7), step=1, lr=0.3)
        each.step()
    assert shown(optimizer) == shown(twin)
    assert all(map(torch.equal, params_of(optimizer), params_of(twin)))


@pytest.mark.parametrize("bad", [bad for bad in BAD if "policy" in BAD[bad][0] or not BAD[bad][0]])
def test_where_there_was_no_policy_a_bad_one_changes_nothing(bad):
    """Built with policy=None it stays SGD: no key of ours is left behind."""
    arguments, error, message = BAD[bad]
    optimizer = built()
    optimizer.step()
    before, keys = everything(optimizer), optimizer.param_groups[0].keys() | set()
    with pytest.raises(error, match=message):
        optimizer.reschedule(**arguments)
    assert everything(optimizer) == before
    assert optimizer.param_groups[0].keys() == keys


@pytest.mark.parametrize("arguments", [{"lr": 0.1}, {"step": 3}, {"step": 3, "group": 1}], ids=str)
def test_without_any_policy_one_must_be_given(arguments):
    """A peak and a clock mean something beside a policy alone."""
    optimizer = built()
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"need a policy .*: pass policy="):
        optimizer.reschedule(**arguments)
    assert everything(optimizer) == before


def test_a_policy_with_momentum_needs_a_place_for_it():
    """Over Adagrad, which has no momentum, it is refused with the way out, and the old one stays."""
    optimizer = built(policy=StepDecay(2), cls=cyclic(torch.optim.Adagrad))
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"need an optimizer with momentum or betas .*: pass cycle_momentum=False"):
        optimizer.reschedule(policy=OneCycle(9))
    assert everything(optimizer) == before
    optimizer.reschedule(policy=OneCycle(9, cycle_momentum=False))


def test_what_the_device_cannot_hold_changes_nothing():
    """A policy that needs a longer table than there may be, or a longer period than the horizon, is refused whole."""
    optimizer = built(policy=Triangular(3), capturable=True, horizon=9)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="need horizon >= the policy's period, got horizon=9, period=20"):
        optimizer.reschedule(policy=Triangular(10), lr=0.3, group=1)
    assert everything(optimizer) == before


def test_a_captured_base_that_cannot_take_the_policy_stays_as_it_was():
    """Where moving to the device fails, what was done before it is undone."""
    optimizer = CyclicAdamW([parameter(torch.float32)], lr=0.1, capturable=True, fused=True)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="need fused unset with capturable=True"):
        optimizer.reschedule(policy=OneCycle(9))
    assert everything(optimizer) == before
    optimizer.reschedule(policy=CosineDecay(9))
    assert optimizer.policy == CosineDecay(9)


# -- within a step


@DEVICES
def test_within_a_closure_it_is_in_force_for_that_step(capturable):
    """The update after the closure uses the new rate, and the clocks go on from where they were put."""
    optimizer = built(policy=Constant(), capturable=capturable, groups=1, momentum=0.0)
    (param,) = params_of(optimizer)

    def closure():
        optimizer.reschedule(policy=StepDecay(1, 0.5), lr=0.4, step=1)

    optimizer.step(closure)
    torch.testing.assert_close(param.detach(), torch.full_like(param, 1 - 0.2 * 0.5))
    assert column(optimizer, "schedule_step") == [2]
    assert column(optimizer, "lr") == pytest.approx([0.1])


def test_a_policy_of_policies_can_be_given():
    """A composite policy is data like any other."""
    optimizer = built(policy=Constant())
    optimizer.reschedule(policy=Scaled(StepDecay(2), 0.5))
    fresh = built()
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert fresh.policies == [Scaled(StepDecay(2), 0.5)] * 3


@DEVICES
def test_copies_are_steered_by_themselves(capturable):
    """What a deep copy is told changes nothing in the original."""
    optimizer = built(policy=StepDecay(2), capturable=capturable)
    twin, before = copy.deepcopy(optimizer), everything(optimizer)
    twin.reschedule(policy=OneCycle(9), lr=0.3, step=2)
    twin.step()
    assert everything(optimizer) == before
