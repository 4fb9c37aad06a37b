"""Edits of a param group: of its peak, clock, policy, rate or momentum; each counts at the very next step."""

import copy
import pickle
import warnings

import pytest
import torch
from helpers import column, number, params_of, through_a_file
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import parameter, policies
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from cyclic_optim import Constant, CosineDecay, CosineWave, CyclicSGD, OneCycle, Plateau, StepDecay, Triangular, Values

pytestmark = pytest.mark.usefixtures("part", "short_tables")


def built(policy, *, capturable=False, lr=1.0, momentum=0.0, count=2, **options):
    """Groups of one parameter each, with peaks lr, lr / 2 ..."""
    dtype = torch.float32 if capturable else torch.float64
    groups = [{"params": [parameter(dtype)], "lr": lr / (1 + i)} for i in range(count)]
    return CyclicSGD(groups, momentum=momentum, policy=policy, capturable=capturable, **options)


def moved(optimizer, step=None):
    """How far each parameter moves in a step, over its gradient: without momentum, the rate that was used."""
    before = [param.detach().clone() for param in params_of(optimizer)]
    (step or optimizer.step)()
    pairs = zip(before, params_of(optimizer), strict=True)
    return [((old - param.detach()) / param.grad)[0].item() for old, param in pairs]


def saved(optimizer, key):
    return [group[key] for group in optimizer.state_dict()["param_groups"]]


def assign(group, key, value):
    group[key] = value


def assign_a_tensor(group, key, value):
    group[key] = torch.tensor(value)


def fill(group, key, value):
    group[key].fill_(value)


#: Where schedules live, and how somebody writes there.
PLACES = {
    "host": ({}, assign),
    "host, tensor lr": ({"lr": torch.tensor(1.0, dtype=torch.float64)}, assign),
    "device": ({"capturable": True}, assign),
    "device, a tensor assigned": ({"capturable": True}, assign_a_tensor),
    "device, in place": ({"capturable": True}, fill),
}
everywhere = pytest.mark.parametrize("place", PLACES)
assigned = pytest.mark.parametrize("place", [place for place in PLACES if place != "device, in place"])


# -- the peak


@everywhere
def test_an_edited_peak_counts_at_the_next_step(place):
    """The step after the edit uses the new peak's rate, of that group alone, and so do those that follow."""
    options, write = PLACES[place]
    optimizer = built(StepDecay(2, 0.5), **options)
    optimizer.step()
    write(optimizer.param_groups[0], "max_lr", 3.0)
    assert saved(optimizer, "lr") == [3.0, 0.5]
    assert moved(optimizer) == pytest.approx([3.0, 0.5])
    assert column(optimizer, "lr") == pytest.approx([1.5, 0.25])
    assert moved(optimizer) == pytest.approx([1.5, 0.25])


@everywhere
def test_a_peak_of_0_freezes_at_once(place):
    """Not one step more moves the group; with its peak back it goes on where its clock stands."""
    options, write = PLACES[place]
    optimizer = built(StepDecay(1, 0.5), weight_decay=0.0, **options)
    optimizer.step()
    write(optimizer.param_groups[1], "max_lr", 0.0)
    assert moved(optimizer) == pytest.approx([0.5, 0.0])
    assert moved(optimizer) == pytest.approx([0.25, 0.0])
    write(optimizer.param_groups[1], "max_lr", 0.8)
    assert moved(optimizer) == pytest.approx([0.125, 0.1])


@everywhere
def test_a_rate_edited_by_hand_wins_over_a_peak(place):
    """With both edited before a step, that step uses the rate, and the next one the new peak."""
    options, write = PLACES[place]
    for order in (("lr", "max_lr"), ("max_lr", "lr")):
        optimizer = built(StepDecay(1, 0.5), **options)
        optimizer.step()
        for key in order:
            value = {"lr": 7.0, "max_lr": 3.0}[key]
            (fill if key == "lr" and "tensor lr" in place else write)(optimizer.param_groups[0], key, value)
        assert saved(optimizer, "lr") == [7.0, 0.25]
        assert moved(optimizer) == pytest.approx([7.0, 0.25])
        assert moved(optimizer) == pytest.approx([0.75, 0.125])


@everywhere
def test_an_edited_peak_leaves_an_edited_momentum(place):
    """Momentum that somebody set is used, too, where the peak is edited with it."""
    options, write = PLACES[place]
    if "tensor lr" in place:
        write = assign
    optimizer = built(Triangular(4), momentum=0.9, count=1, **options)
    optimizer.step()
    (group,), (param,) = optimizer.param_groups, params_of(optimizer)
    write(group, "max_lr", 3.0)
    write(group, "momentum", 0.0)
    lr = 3.0 * Triangular(4).at(1).lr_factor
    assert saved(optimizer, "momentum") == [0.0]
    assert moved(optimizer) == pytest.approx([lr])  # without the buffer
    assert param.grad is not None


@pytest.mark.parametrize("part", ["python"], indirect=True)  # the compiled part has nothing to do here
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("write", [assign, assign_a_tensor, fill])
def test_a_compiled_step_follows_an_edited_peak(write, backend):
    """Traced or run, the compiled step uses the peak as it is when it is called."""
    torch._dynamo.reset()
    optimizer = built(StepDecay(2, 0.5), capturable=True)
    step = torch.compile(optimizer.step, backend=backend)
    assert moved(optimizer, step) == pytest.approx([1.0, 0.5])
    write(optimizer.param_groups[0], "max_lr", 3.0)
    assert moved(optimizer, step) == pytest.approx([3.0, 0.5])
    write(optimizer.param_groups[0], "max_lr", 0.0)
    assert moved(optimizer, step) == pytest.approx([0.0, 0.25])
    optimizer.param_groups[1]["max_lr"].fill_(4.0)
    optimizer.param_groups[1]["lr"].fill_(9.0)
    assert moved(optimizer, step) == pytest.approx([0.0, 9.0])
    assert moved(optimizer, step) == pytest.approx([0.0, 1.0])


def test_an_edited_peak_keeps_what_was_reported():
    """Of a Plateau that has lowered its rate, the new peak is lowered alike."""
    optimizer = built(Plateau(factor=0.5, patience=0))
    optimizer.report(1.0)
    optimizer.report(1.0)
    optimizer.param_groups[0]["max_lr"] = 4.0
    assert moved(optimizer) == pytest.approx([2.0, 0.25])


@everywhere
def test_an_edited_peak_and_a_report(place):
    """A report between the edit and the step takes the new peak."""
    options, write = PLACES[place]
    optimizer = built(Plateau(factor=0.5, patience=0), **options)
    optimizer.report(1.0)
    write(optimizer.param_groups[0], "max_lr", 4.0)
    optimizer.report(1.0)
    assert moved(optimizer) == pytest.approx([2.0, 0.25])


# -- the clock


@assigned
def test_an_edited_clock_is_followed_at_the_next_step(place):
    """Rate and momentum of the next step are those of the step that was set; the others' clocks stand."""
    options, write = PLACES[place]
    optimizer = built(Triangular(4), momentum=0.9, **options)
    optimizer.step()
    write(optimizer.param_groups[0], "schedule_step", 60)
    for n in range(3):
        due = [Triangular(4).at(60 + n), Triangular(4).at(1 + n)]
        assert saved(optimizer, "schedule_step") == [60 + n, 1 + n]
        assert saved(optimizer, "lr") == pytest.approx([due[0].lr_factor, due[1].lr_factor / 2])
        assert saved(optimizer, "momentum") == pytest.approx([due[0].momentum, due[1].momentum])
        twins = [param.detach().clone() for param in params_of(optimizer)]
        buffers = [optimizer.state[param]["momentum_buffer"].clone() for param in params_of(optimizer)]
        optimizer.step()
        for twin, buffer, param, values, peak in zip(twins, buffers, params_of(optimizer), due, (1, 0.5), strict=True):
            twin -= peak * values.lr_factor * (values.momentum * buffer + 0.5)
            torch.testing.assert_close(param.detach(), twin)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_fresh_optimizers_clock_may_be_set(capturable):
    """Without a step before it, too: the first update uses the rate of the step that was set."""
    optimizer = built(StepDecay(10, 0.5), capturable=capturable)
    for group in optimizer.param_groups:
        group["schedule_step"] = 60
    assert moved(optimizer) == pytest.approx([0.5**6, 0.5**7])
    assert column(optimizer, "schedule_step") == [61, 61]


@assigned
def test_a_rate_edited_by_hand_wins_over_a_clock(place):
    """With both edited before a step, that step uses the rate, and the next one the clock's."""
    options, write = PLACES[place]
    optimizer = built(StepDecay(1, 0.5), **options)
    write(optimizer.param_groups[0], "schedule_step", 3)
    (fill if "tensor lr" in place else write)(optimizer.param_groups[0], "lr", 7.0)
    assert saved(optimizer, "lr") == [7.0, 0.5]
    assert moved(optimizer) == pytest.approx([7.0, 0.5])
    assert moved(optimizer) == pytest.approx([0.5**4, 0.25])


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("code", [None, Triangular(4), StepDecay(3)], ids=str)
def test_a_clock_edited_in_a_checkpoint_is_followed(code, capturable):
    """The next step uses the values of that step, and a warning says which were in the checkpoint."""
    if capturable and code is None:
        code = Triangular(4)
    first = built(Triangular(4), momentum=0.5)
    first.step()
    checkpoint = copy.deepcopy(first.state_dict())
    for group in checkpoint["param_groups"]:
        group["schedule_step"] = 6
    optimizer = built(code, momentum=0.5, capturable=capturable)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(checkpoint)
    (text,) = [str(warning.message) for warning in caught if "its clock was edited" in str(warning.message)]
    due, held = Triangular(4).at(6), Triangular(4).at(1)
    for words in (f"lr={held.lr_factor}", f"momentum={held.momentum}", f"lr={due.lr_factor}", "step 6", "reschedule("):
        assert words in text
    factor, momentum, _ = (code or Triangular(4)).at(6)
    assert saved(optimizer, "lr") == [factor, factor / 2]
    assert saved(optimizer, "momentum") == [0.5 if momentum is None else momentum] * 2
    optimizer.step()
    assert column(optimizer, "schedule_step") == [7, 7]


@pytest.mark.parametrize("value", [-1, 1.5, "3", True, 2**62, None])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_clock_that_cannot_be_is_refused(value, capturable):
    """The step names the rule and changes nothing; with the old number back it goes on."""
    optimizer = built(StepDecay(1, 0.5), capturable=capturable)
    before = optimizer.param_groups[0]["schedule_step"]
    optimizer.param_groups[0]["schedule_step"] = value
    weights = [param.detach().clone() for param in params_of(optimizer)]
    with pytest.raises((ValueError, TypeError), match=r"need (0 <= )?schedule_step"):
        optimizer.step()
    assert all(map(torch.equal, params_of(optimizer), weights))
    optimizer.param_groups[0]["schedule_step"] = before
    assert moved(optimizer) == pytest.approx([1.0, 0.5])


# -- the policy


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "other",
    [CosineDecay(8), OneCycle(9), Plateau(), StepDecay(1, 0.25), StepDecay(1, 0.5), None],
    ids=repr,
)
def test_a_policy_assigned_to_a_group_counts_at_the_next_step(other, capturable):
    """The group goes on at its step under that policy, as text in group and checkpoint; None leaves it as it is."""
    optimizer = built(StepDecay(1, 0.5), momentum=0.5, capturable=capturable)
    optimizer.step()
    optimizer.param_groups[1]["policy"] = other
    assert optimizer.policies == [StepDecay(1, 0.5), other]
    repr(optimizer)
    for n in range(1, 4):
        factor, momentum, _ = Values(0.5) if other is None else other.at(n)
        assert saved(optimizer, "lr") == pytest.approx([0.5**n, factor / 2])
        assert saved(optimizer, "momentum") == pytest.approx([0.5, 0.5 if momentum is None else momentum])
        twin, buffer = params_of(optimizer)[1].detach().clone(), optimizer.state[params_of(optimizer)[1]]
        twin -= factor / 2 * ((0.5 if momentum is None else momentum) * buffer["momentum_buffer"] + 0.5)
        optimizer.step()
        torch.testing.assert_close(params_of(optimizer)[1].detach(), twin)
        assert isinstance(optimizer.param_groups[1]["policy"], str if other is not None else type(None))
        assert column(optimizer, "schedule_step") == [n + 1, None if other is None else n + 1]
    assert ("policy_state" in optimizer.param_groups[1]) == isinstance(other, Plateau)
    assert optimizer.policies == [StepDecay(1, 0.5), other]
    twin = built(StepDecay(1, 0.5), momentum=0.5, capturable=capturable)
    twin.param_groups[1]["policy"] = other
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin.load_state_dict(through_a_file(optimizer.state_dict()))
    assert repr(twin.state_dict()["param_groups"]) == repr(optimizer.state_dict()["param_groups"])


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "value", ["{}", "OneCycle", lambda step: 1.0, OneCycle], ids=["an empty dict", "a name", "a function", "a class"]
)
def test_what_is_no_policy_is_refused(value, capturable):
    """Text that nobody wrote, a function, a class: the step says what to call, and changes nothing."""
    optimizer = built(Constant(), capturable=capturable)
    before = optimizer.param_groups[0]["policy"]
    optimizer.param_groups[0]["policy"] = value
    with pytest.raises(ValueError, match=r"need group\['policy'\] as it was written: use reschedule\(policy="):
        optimizer.step()
    optimizer.param_groups[0]["policy"] = before
    assert moved(optimizer) == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("capturable", [False, True])
def test_a_policy_for_a_group_without_a_schedule_is_refused(capturable):
    """It has neither peak nor clock: the step, and a checkpoint, say what to call."""
    optimizer = built(Constant(), capturable=capturable)
    optimizer.add_param_group({"params": [parameter(torch.float32 if capturable else torch.float64)], "policy": None})
    optimizer.param_groups[2]["policy"] = OneCycle(9)
    for call in (optimizer.step, optimizer.state_dict):
        with pytest.raises(ValueError, match=r"need schedule_step and max_lr beside policy .* and use reschedule\("):
            call()
    optimizer.param_groups[2]["policy"] = None
    optimizer.step()
    assert column(optimizer, "schedule_step") == [1, 1, None]
    optimizer.reschedule(policy=OneCycle(9), group=2)
    assert column(optimizer, "schedule_step") == [1, 1, 0]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("key", ["max_lr", "lr", "schedule_step", "policy"])
def test_a_removed_key_of_a_schedule_is_named(key, capturable):
    """Whatever is called says which key is missing and moves nothing; put back, the run goes on."""
    optimizer = built(Triangular(3), capturable=capturable)
    saved = optimizer.state_dict()
    optimizer.step()
    first, second = optimizer.param_groups
    removed = second.pop(key)
    shown = {name: repr(value) for name, value in first.items()}
    for call in (
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.report(1.0),
        lambda: optimizer.reschedule(lr=0.5),
        lambda: optimizer.load_state_dict(saved),
        lambda: optimizer.add_param_group({"params": [parameter(torch.float32)]}),
        lambda: optimizer.add_param_group({"params": [parameter(torch.float32)], "policy": None}),
    ):
        with pytest.raises(ValueError, match=f"^need .*'?{key}'? .*param group"):
            call()
        assert {name: repr(value) for name, value in first.items()} == shown
        assert key not in second
    second[key] = removed
    optimizer.step()
    assert column(optimizer, "schedule_step") == [2, 2]


# -- between an edit and its step


EDITS = {
    "lr": st.floats(0.0, 2.0),
    "momentum": st.floats(0.0, 0.95),
    "max_lr": st.floats(0.0, 2.0),
    "schedule_step": st.integers(0, 40),
    "policy": policies(),
}


@st.composite
def edits(draw):
    """Some of what can be edited, with the group that it is edited in, in any order."""
    keys = draw(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(sorted(EDITS))), unique=True, max_size=5))
    return [(i, key, draw(EDITS[key])) for i, key in keys]


def device(*chosen):
    return {"capturable": True, "horizon": max(64, *(policy.period or 1 for policy in chosen))}


@given(policy=policies(), drawn=edits(), cut=st.integers(0, 3), capturable=st.booleans())
@example(Triangular(3, base_momentum=0.0, max_momentum=0.5), [(0, "policy", Constant())], 1, True)
@example(Constant(), [(0, "policy", Constant())], 0, True)
@example(Constant(), [(0, "max_lr", 0.0), (0, "lr", 1.0)], 0, True)
def test_a_checkpoint_between_an_edit_and_its_step_has_what_the_step_uses(policy, drawn, cut, capturable):
    """Whatever was edited: the saved values are those of the next step, and it resumes to the same weights."""
    chosen = [policy, *(value for _, key, value in drawn if key == "policy")]
    options = device(*chosen) if capturable else {}
    first = built(policy, momentum=0.9, **options)
    for _ in range(cut):
        first.step()
    for i, key, value in drawn:
        first.param_groups[i][key] = value
    checkpoint = through_a_file(first.state_dict())
    assert repr(first.state_dict()) == repr(checkpoint)  # saving changes nothing
    second = built(policy, momentum=0.9, **options)
    for i, key, value in drawn:
        if key == "policy":
            second.reschedule(policy=value, group=i)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the peak in the checkpoint is kept")
        second.load_state_dict(checkpoint)
    values = [[number(group[key]) for key in ("lr", "momentum")] for group in checkpoint["param_groups"]]
    with torch.no_grad():
        for param, weight in zip(params_of(second), params_of(first), strict=True):
            param.copy_(weight)
    twins = [param.detach().clone() for param in params_of(first)]
    for twin, param, (lr, momentum) in zip(twins, params_of(first), values, strict=True):
        buffer = checkpoint_buffer(first, param)
        twin -= lr * (0.5 if buffer is None else momentum * buffer + 0.5)
    first.step()
    second.step()
    for param, twin in zip(params_of(first), twins, strict=True):
        torch.testing.assert_close(param.detach(), twin)
    assert all(map(torch.equal, params_of(second), params_of(first)))
    for _ in range(2):
        first.step()
        second.step()
    assert all(map(torch.equal, params_of(second), params_of(first)))
    assert repr(second.state_dict()) == repr(first.state_dict())


def checkpoint_buffer(optimizer, param):
    buffer = optimizer.state.get(param, {}).get("momentum_buffer")
    return None if buffer is None else buffer.clone()


@given(policy=policies(), drawn=edits(), capturable=st.booleans(), way=st.sampled_from(["deepcopy", "pickle"]))
@example(CosineWave(1), [(0, "lr", 0.0), (0, "policy", Constant())], False, "deepcopy")
def test_a_copy_between_an_edit_and_its_step_takes_the_same_step(policy, drawn, capturable, way):
    """Copied with an edit pending, both use it, and go on alike."""
    chosen = [policy, *(value for _, key, value in drawn if key == "policy")]
    first = built(policy, momentum=0.9, **(device(*chosen) if capturable else {}))
    first.step()
    for i, key, value in drawn:
        first.param_groups[i][key] = value
    second = copy.deepcopy(first) if way == "deepcopy" else pickle.loads(pickle.dumps(first))
    for param, twin in zip(params_of(first), params_of(second), strict=True):
        twin.grad = param.grad.clone()
    for _ in range(3):
        first.step()
        second.step()
        assert all(map(torch.equal, params_of(second), params_of(first)))
    assert repr(second.state_dict()["param_groups"]) == repr(first.state_dict()["param_groups"])


# -- what is no edit


@pytest.mark.parametrize("capturable", [False, True])
def test_a_rate_edited_where_another_policy_takes_over_is_kept_for_its_step(capturable):
    """A checkpoint made between the edit and its step, loaded under another policy: the edited rate is used once."""
    first = built(StepDecay(1, 0.5), count=1)
    first.step()
    first.param_groups[0]["lr"] = 7.0
    optimizer = built(CosineDecay(8), count=1, capturable=capturable)
    with pytest.warns(UserWarning, match="the checkpoint was written under the policy StepDecay") as caught:
        optimizer.load_state_dict(through_a_file(first.state_dict()))
    assert [word for word in ("its clock was edited",) if word in str(caught[0].message)] == []
    optimizer.param_groups[0]["max_lr"] = 2.0
    assert moved(optimizer) == pytest.approx([7.0])
    assert moved(optimizer) == pytest.approx([2 * CosineDecay(8).at(2).lr_factor])


@pytest.mark.parametrize("way", [lambda optimizer: optimizer, copy.deepcopy], ids=["itself", "a copy"])
def test_a_rate_put_back_leaves_an_edited_peak_in_force(way):
    """The number that was there, assigned again, is no edit: not here, and not in a copy."""
    optimizer = built(StepDecay(1, 0.5))
    optimizer.step()
    optimizer.param_groups[0].update(lr=float("0.5"), max_lr=4.0)
    optimizer.param_groups[1].update(lr=float("0.25"), schedule_step=3)
    optimizer, grads = way(optimizer), [param.grad for param in params_of(optimizer)]
    for param, grad in zip(params_of(optimizer), grads, strict=True):
        param.grad = grad
    assert saved(optimizer, "lr") == [2.0, 0.5**4]
    assert moved(optimizer) == pytest.approx([2.0, 0.5**4])


@pytest.mark.parametrize("capturable", [False, True])
def test_old_values_put_back_are_no_edits(capturable):
    """Distributed checkpointing sets rates and puts them back: the clock and the schedule go on."""
    model = torch.nn.Linear(2, 2)
    optimizer = CyclicSGD(model.parameters(), lr=1.0, momentum=0.9, policy=StepDecay(1, 0.5), capturable=capturable)
    for n in range(3):
        state = get_optimizer_state_dict(model, optimizer)
        assert (state["param_groups"][0]["schedule_step"], state["param_groups"][0]["lr"]) == (n, 0.5**n)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.zero_grad()


def test_an_edit_of_one_group_leaves_edits_in_place_of_another():
    """A clock assigned in one group and a peak filled in another, both before one step: both are followed."""
    optimizer = built(StepDecay(1, 0.5), capturable=True)
    optimizer.step()
    optimizer.param_groups[0]["schedule_step"] = 3
    optimizer.param_groups[1]["max_lr"].fill_(4.0)
    assert saved(optimizer, "lr") == [0.125, 2.0]
    assert moved(optimizer) == pytest.approx([0.125, 2.0])
    assert moved(optimizer) == pytest.approx([0.0625, 1.0])


@pytest.mark.parametrize("act", ["report", "add_param_group"])
@pytest.mark.parametrize("place", ["host", "device", "device, in place"])
def test_edits_outlive_what_is_done_before_their_step(act, place):
    """A report, and a group that joins, leave an edited rate and an edited peak to the step that uses them."""
    options, write = PLACES[place]
    optimizer = built(Plateau(factor=0.5, patience=0), count=3, **options)
    optimizer.step()
    write(optimizer.param_groups[0], "lr", 7.0)
    write(optimizer.param_groups[1], "max_lr", 4.0)
    if act == "report":
        optimizer.report(1.0)
    else:
        dtype = params_of(optimizer)[0].dtype
        optimizer.add_param_group({"params": [parameter(dtype)], "lr": 0.25})
    rates = moved(optimizer)
    assert rates[:3] == pytest.approx([7.0, 4.0, 1 / 3])
    assert moved(optimizer)[:3] == pytest.approx([1.0, 4.0, 1 / 3])


def test_past_the_end_of_a_policy_nothing_counts_as_edited():
    """Its last values stay on the device as on the host, and a checkpoint has no mark of an edit."""
    optimizer = built(OneCycle(4), momentum=0.9, capturable=True)
    for _ in range(6):
        optimizer.step()
    assert not any("edited" in key for group in optimizer.state_dict()["param_groups"] for key in group)


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize(("capturable", "write"), [(False, assign), (True, assign), (True, fill)])
def test_an_edited_momentum_is_saved_and_loaded(capturable, write, into):
    """Where the policy cycles it, a momentum edited by hand comes through two files without a word, for one step."""
    policy = Triangular(4)
    first = built(policy, momentum=0.9, count=1, capturable=capturable)
    first.step()
    (group,) = first.param_groups
    write(group, "momentum", 0.25)
    second, third = (built(policy, momentum=0.9, count=1, capturable=into) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(through_a_file(first.state_dict()))
        third.load_state_dict(through_a_file(second.state_dict()))
    assert saved(third, "momentum") == [0.25]
    assert column(third, "lr") == pytest.approx([policy.at(1).lr_factor])
    (buffer,) = (state["momentum_buffer"].clone() for state in third.state.values())
    rate = 2 * policy.at(1).lr_factor * (0.25 * buffer + 0.5)[0].item()
    assert moved(third) == pytest.approx([rate])
    assert saved(third, "momentum") == pytest.approx([policy.at(2).momentum])


@pytest.mark.parametrize("capturable", [False, True])
def test_another_policy_begins_without_reports(capturable):
    """A Plateau that is assigned where one has lowered its rate begins at its peak, and remembers its own reports."""
    optimizer = built(Plateau(factor=0.5, patience=0), capturable=capturable)
    optimizer.report(1.0)
    optimizer.report(1.0)
    optimizer.param_groups[0]["policy"] = Plateau(factor=0.25, patience=0)
    assert saved(optimizer, "lr") == pytest.approx([1.0, 0.25])
    assert moved(optimizer) == pytest.approx([1.0, 0.25])
    assert optimizer.param_groups[0]["policy_state"] == Plateau().initial_state()
    optimizer.report(3.0)
    optimizer.report(3.0)
    assert moved(optimizer) == pytest.approx([0.25, 0.0625])
