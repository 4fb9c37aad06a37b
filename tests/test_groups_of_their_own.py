"""Every param group has a schedule of its own: policy, peak, clock and momentum."""

import copy
import pickle
import sys
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers import through_a_file
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import carries_code, flat, parameter, policies, problems, sgd_options
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CyclicSGD,
    LambdaPolicy,
    OneCycle,
    Plateau,
    Policy,
    StepDecay,
    Triangular,
    Values,
    native,
)
from cyclic_optim.host.written import Written

pytestmark = pytest.mark.usefixtures("part", "short_tables")

OURS = ("lr", "momentum", "max_lr", "schedule_step", "policy", "policy_state")


def built(*groups, capturable=False, dtype=torch.float64, **options):
    """An optimizer of groups with one parameter each."""
    dtype = torch.float32 if capturable else dtype
    options = {"lr": 0.1, "momentum": 0.9} | options
    return CyclicSGD([{"params": [parameter(dtype)], **group} for group in groups], capturable=capturable, **options)


def shown(optimizer):
    """What is shown of the schedules, in numbers."""
    groups = [{key: group[key] for key in OURS if key in group} for group in optimizer.param_groups]
    return [
        {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in group.items()}
        for group in groups
    ]


def weights(optimizer):
    return [param.detach().clone() for group in optimizer.param_groups for param in group["params"]]


def same(ours, theirs):
    return all(map(torch.equal, ours, theirs))


# -- each group as if it were alone

FLAGS = ({}, {"foreach": True}, {"foreach": False})


@st.composite
def schedules(draw, count):
    """For each group nobody's or a policy's: that, a peak, a clock, and whether it is the constructor's."""
    shared = draw(st.lists(policies(), min_size=1, max_size=2))
    kinds = st.tuples(
        st.none() | st.sampled_from(shared) | policies(), st.floats(1e-3, 1.0), st.integers(0, 30), st.booleans()
    )
    return draw(st.lists(kinds, min_size=count, max_size=count))


def described(params, policy, peak, clock):
    """A param group that says all of its schedule itself."""
    return {"params": params, "lr": peak, "policy": policy, **({} if policy is None else {"schedule_step": clock})}


def alone(params, policy, peak, clock, **options):
    if policy is None:  # the update is the one beside a policy, to the bit
        policy, clock = Constant(), 0
    return CyclicSGD([described(params, policy, peak, clock)], policy=policy, **options)


def without_a_policy(params, policy, peak, clock, **options):
    return CyclicSGD([described(params, policy, peak, clock)], **options)


def on_the_device(chosen):
    """Options for tables of these policies, as short as they may be."""
    return {"capturable": True, "horizon": max(64, *(policy.period or 1 for policy in chosen if policy is not None))}


@given(problem=problems(max_groups=4), options=sgd_options(), flags=st.sampled_from(FLAGS), data=st.data())
def test_each_group_moves_as_it_would_alone(problem, options, flags, data):
    """Whatever the others' policies, peaks and clocks: an optimizer of a group alone has its values and its weights."""
    drawn = data.draw(schedules(len(problem.shapes)))
    run(problem, options | flags, drawn)


@given(problem=problems(max_groups=4, dtypes=(torch.float32,)), options=sgd_options(), data=st.data())
def test_each_group_moves_as_it_would_alone_on_the_device(problem, options, data):
    """The same of values and weights in tensors."""
    drawn = data.draw(schedules(len(problem.shapes)))
    run(problem, options | on_the_device([Constant(), *(policy for policy, *_ in drawn)]), drawn)


def run(problem, options, drawn):
    constructors = next((policy for policy, *_, is_default in drawn if is_default), None)
    if options.get("capturable") and constructors is None:
        constructors = Constant()
    together, apart = problem.params(), problem.params()
    groups = [described(params, *schedule[:3]) for params, schedule in zip(together, drawn, strict=True)]
    for group, (policy, *_, is_default) in zip(groups, drawn, strict=True):
        if is_default and policy is constructors:
            del group["policy"]
    one = CyclicSGD(groups, policy=constructors, **options)
    has_policy = any(policy is not None for policy in (constructors, *(policy for policy, *_ in drawn)))
    make = alone if has_policy else without_a_policy
    many = [make(params, *schedule[:3], **options) for params, schedule in zip(apart, drawn, strict=True)]
    for step in range(4):
        problem.set_grads(together, step)
        problem.set_grads(apart, step)
        one.step()
        for optimizer in many:
            optimizer.step()
    assert same(flat(together), flat(apart))
    values = [(group["lr"], group["momentum"]) for group in shown(one)]
    assert values == [(group["lr"], group["momentum"]) for optimizer in many for group in shown(optimizer)]
    for group, (policy, peak, clock, _) in zip(shown(one), drawn, strict=True):
        if policy is not None:
            assert (group["max_lr"], group["schedule_step"]) == (peak, clock + 4)


@given(first=policies(), second=policies(), interrupted=st.integers(0, 4))
def test_a_policy_that_fails_stops_all_groups(first, second, interrupted):
    """Where one group's policy has no value for the next step, no group has moved, and the others' clocks stand."""

    class Until(Policy):
        def at(self, step):
            if step > interrupted:
                raise ArithmeticError("no more")
            return Values(1.0)

    optimizer = built({"policy": first}, {"policy": Until()}, {"policy": second}, {"policy": None})
    for _ in range(interrupted):
        optimizer.step()
    before = shown(optimizer), weights(optimizer)
    with pytest.raises(ArithmeticError, match="no more"):
        optimizer.step()
    assert shown(optimizer) == before[0]
    assert same(weights(optimizer), before[1])


@pytest.mark.parametrize("capturable", [False, True])
def test_momentum_is_cycled_where_the_groups_policy_does(capturable):
    """A policy without momentum leaves its group's alone, beside one that cycles it."""
    optimizer = built({"policy": OneCycle(9)}, {"policy": Constant(), "momentum": 0.5}, capturable=capturable)
    for step in range(1, 4):
        optimizer.step()
        momenta = [group["momentum"] for group in shown(optimizer)]
        assert momenta == [pytest.approx(OneCycle(9).at(step).momentum, rel=1e-7), 0.5]


# -- groups without a policy

WITHOUT = {
    "no policy for the others": ({}, {"policy": OneCycle(20)}),
    "policy=None beside the constructor's": ({"policy": None}, {}),
}


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kind", WITHOUT)
def test_nobody_moves_a_group_without_a_policy(kind, capturable):
    """Its lr and momentum stay, and an edit by hand lasts; the checkpoint has it, and none of our keys."""
    groups, (policy,) = WITHOUT[kind], {OneCycle(20)}
    constructors = None if "policy" in groups[1] else policy
    optimizer = built(*groups, policy=constructors, capturable=capturable)
    assert optimizer.policies == [None, policy]
    assert optimizer.policy == constructors
    for _ in range(2):
        optimizer.step()
    assert shown(optimizer)[0] == {"lr": pytest.approx(0.1), "momentum": pytest.approx(0.9), "policy": None}
    optimizer.param_groups[0].update(lr=0.25, momentum=0.5)
    for _ in range(3):
        optimizer.step()
        assert shown(optimizer)[0] == {"lr": 0.25, "momentum": 0.5, "policy": None}
    saved = optimizer.state_dict()["param_groups"]
    assert {key: saved[0][key] for key in OURS if key in saved[0]} == {"lr": 0.25, "momentum": 0.5, "policy": None}
    assert saved[1]["schedule_step"] == 5


@pytest.mark.parametrize("capturable", [False, True])
def test_an_edit_of_a_group_without_a_policy_is_saved(capturable):
    """Before the step that uses it, an edited lr and momentum are in the checkpoint as they are."""
    optimizer = built({"policy": None}, {}, policy=Constant(), capturable=capturable)
    assert optimizer.state_dict()["param_groups"][0]["momentum"] == 0.9
    optimizer.param_groups[0].update(lr=0.3, momentum=0.7)
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["lr"], saved["momentum"]) == (0.3, 0.7)


# -- one policy for several groups


@dataclass(frozen=True)
class Counting(Policy):
    """Counts how often it is asked."""

    asked: ClassVar[list[int]] = []

    def at(self, step):
        self.asked.append(step)
        return Values(1 / (1 + step))


def reload(optimizer):
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    return optimizer


def add(optimizer):
    optimizer.add_param_group({"params": [parameter()], "lr": 0.7})
    return optimizer


def reschedule(optimizer):
    optimizer.reschedule(lr=0.3)
    return optimizer


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


WAYS = {
    "at once": lambda optimizer: optimizer,
    "load": reload,
    "pickle": pickled,
    "deepcopy": copy.deepcopy,
    "add_param_group": add,
    "reschedule": reschedule,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 5])
def test_a_shared_policy_is_asked_once_per_step(count, way):
    """However many groups have it, also as equal objects, and whatever was done in between."""
    optimizer = built(*({"policy": Counting(), "lr": 0.1 * (i + 1)} for i in range(count)), policy=Counting())
    optimizer.step()
    optimizer = WAYS[way](optimizer)
    optimizer.step()  # which may look at what was changed
    assert len({id(policy) for policy in optimizer.policies}) == 1
    Counting.asked.clear()
    for _ in range(3):
        optimizer.step()
    assert Counting.asked == [3, 4, 5]


def test_groups_at_different_steps_ask_for_each():
    """A group that began later is at another step of the policy, for which it is asked, too."""
    optimizer = built({}, {"schedule_step": 7}, {}, policy=Counting())
    Counting.asked.clear()
    optimizer.step()
    assert sorted(Counting.asked) == [1, 8]


# -- functions without a name of their own


def lambdas():
    """Two policies whose descriptions are the same text."""
    first, second = (LambdaPolicy(lambda step, k=k: 1 / (k + step)) for k in (1, 2))
    return first, second


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("way", ["at once", "load", "load a file", "deepcopy", "add_param_group"])
def test_functions_of_equal_descriptions_stay_apart(way, capturable):
    """Each group keeps its own function, through a checkpoint and a copy as well."""
    first, second = lambdas()
    make = {"capturable": capturable, "horizon": 20} if capturable else {}
    optimizer = built({"policy": first}, {"policy": second}, policy=Constant(), **make)
    optimizer.step()
    if way == "load":
        optimizer.load_state_dict(optimizer.state_dict())
    elif way == "load a file":
        fresh = built({"policy": first}, {"policy": second}, policy=Constant(), **make)
        fresh.load_state_dict(through_a_file(optimizer.state_dict()))
        optimizer = fresh
    elif way == "deepcopy":
        optimizer = copy.deepcopy(optimizer)
    elif way == "add_param_group":
        dtype = torch.float32 if capturable else torch.float64
        optimizer.add_param_group({"params": [parameter(dtype)], "policy": second})
    optimizer.step()
    assert [group["lr"] for group in shown(optimizer)][:2] == pytest.approx([0.1 / 3, 0.1 / 4])
    assert optimizer.policies[:2] == [first, second]
    assert len(optimizer.policies) == 2 or optimizer.policies[2] is optimizer.policies[1]


# -- checkpoints of mixed groups


def data_only():
    return policies().filter(lambda policy: not carries_code(policy))


@given(
    chosen=st.lists(st.none() | data_only(), min_size=1, max_size=4),
    options=sgd_options(),
    cut=st.integers(0, 4),
    capturable=st.booleans(),
    has_code=st.booleans(),
)
@example(chosen=[None], options={"lr": 0.5, "momentum": 0.1}, cut=1, capturable=True, has_code=True)
def test_mixed_groups_resume_to_the_bit(chosen, options, cut, capturable, has_code):
    """From a file, with the policies in the code or, where they are data, without: weights and values are the same."""
    if all(policy is None for policy in chosen) and not has_code:
        chosen = [*chosen, Constant()]
    device = on_the_device([Constant(), *chosen]) if capturable else {}
    # A momentum for Nesterov may come from the policy alone; and capturable needs one.
    has_code = has_code or capturable or options.get("nesterov", False)

    def make(with_policies):
        groups = [{"policy": policy} if with_policies else {} for policy in chosen]
        default = Constant() if with_policies else None
        for i, group in enumerate(groups):
            group["lr"] = options["lr"] / (1 + i)
        return built(*groups, policy=default, **{**options, "lr": 1.0}, **device)

    optimizer = make(True)
    for _ in range(cut):
        optimizer.step()
    saved = through_a_file(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = make(has_code)
        resumed.load_state_dict(saved)
    with torch.no_grad():
        for param, weight in zip(weights_of(resumed), weights(optimizer), strict=True):
            param.copy_(weight)
    for each in (optimizer, resumed):
        for _ in range(3):
            each.step()
    assert same(weights(resumed), weights(optimizer))
    assert repr(resumed.state_dict()) == repr(optimizer.state_dict())
    assert resumed.policies == optimizer.policies


@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("capturable", [False, True])
def test_all_groups_may_opt_out(capturable, to):
    """Of the optimizer's policy: they keep their values, are saved and loaded, and a later group has the policy."""

    def make(capturable):
        return built({"policy": None}, policy=Triangular(4), lr=0.5, momentum=0.1, capturable=capturable)

    optimizer, resumed = make(capturable), make(to)
    optimizer.step()
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    resumed.step()
    for each in (optimizer, resumed):
        assert each.policies == [None]
        (group,) = each.state_dict()["param_groups"]
        assert (group["lr"], group["momentum"], group.get("policy")) == (0.5, 0.1, None)
    resumed.add_param_group({"params": [parameter()]})
    resumed.step()
    assert resumed.policies == [None, Triangular(4)]
    assert resumed.state_dict()["param_groups"][1]["schedule_step"] == 1


def weights_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def messages(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("capturable", [False, True])
def test_warnings_name_what_differs_once(capturable):
    """Each pair of policies that differ is named in one warning, however many groups have it; equal ones in none."""
    saved = built(
        {"policy": StepDecay(3)}, {"policy": StepDecay(3)}, {"policy": CosineDecay(9)}, {}, policy=OneCycle(9)
    ).state_dict()
    other = built(
        {"policy": StepDecay(4)},
        {"policy": StepDecay(4)},
        {"policy": CosineDecay(8)},
        {},
        policy=OneCycle(9),
        capturable=capturable,
    )
    found = messages(lambda: other.load_state_dict(saved))
    assert len(found) == 2
    pairs = [("StepDecay(step_size=3", "StepDecay(step_size=4"), ("CosineDecay(t_max=9", "CosineDecay(t_max=8")]
    for text, (theirs, ours) in zip(found, pairs, strict=True):
        assert text.index(theirs) < text.index(ours)


def test_a_warning_of_peaks_lists_the_groups():
    """Peaks that are not the code's are all in one warning, with the indices of their groups; they are kept."""
    saved = built({"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}, {"lr": 1.0, "policy": None}, policy=Constant()).state_dict()
    other = built({"lr": 0.5}, {"lr": 0.2}, {"lr": 0.7}, {"lr": 9.0, "policy": None}, policy=Constant())
    (text,) = messages(lambda: other.load_state_dict(saved))
    assert "max_lr=[0.1, 0.3], in the code [0.5, 0.7], in param groups [0, 2]" in text
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.2, 0.3, 1.0]


# -- groups added later


@pytest.mark.parametrize("capturable", [False, True])
def test_a_group_may_join_with_a_policy_and_begin_at_0(capturable):
    """``policy`` and ``schedule_step`` of an added group are its own; without them it stands where the first stands."""
    optimizer = built({"policy": None}, {}, policy=StepDecay(1, 0.5), capturable=capturable)
    for _ in range(2):
        optimizer.step()
    dtype = torch.float32 if capturable else torch.float64
    for group in ({}, {"schedule_step": 0}, {"policy": CosineDecay(4), "schedule_step": 1}, {"policy": None}):
        optimizer.add_param_group({"params": [parameter(dtype)], "lr": 1.0, **group})
    optimizer.step()
    assert [group.get("schedule_step") for group in shown(optimizer)] == [None, 3, 3, 1, 2, None]
    assert [group["lr"] for group in shown(optimizer)[2:]] == pytest.approx([1 / 8, 1 / 2, 1 / 2, 1.0])
    assert optimizer.policies[4:] == [CosineDecay(4), None]


def to_host(optimizer, new):
    return CyclicSGD([{**optimizer.param_groups[0], "params": [new]}]).param_groups[0]


def to_itself(optimizer, new):
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [new]})
    return optimizer.param_groups[-1]


def to_another(optimizer, new):
    other = built({}, policy=OneCycle(9), capturable=optimizer._capturable)
    other.add_param_group({**optimizer.param_groups[0], "params": [new], "policy": optimizer.policy})
    return other.param_groups[-1]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("into", [to_itself, to_host, to_another])
def test_a_copy_of_a_live_group_joins(into, capturable):
    """A copy of a group with other parameters has its peak, clock, rate and momentum, and nothing in common with it."""
    policy = Triangular(4)
    optimizer = built({}, policy=policy, capturable=capturable)
    for _ in range(3):
        optimizer.step()
    dtype = torch.float32 if capturable else torch.float64
    group = into(optimizer, parameter(dtype))
    assert (float(group["max_lr"]), int(group["schedule_step"])) == (0.1, 3)
    assert float(group["lr"]) == pytest.approx(0.1 * policy.at(3).lr_factor)
    assert float(group["momentum"]) == pytest.approx(policy.at(3).momentum)
    tensors = {id(value) for value in optimizer.param_groups[0].values() if isinstance(value, torch.Tensor)}
    assert not tensors & {id(value) for value in group.values()}
    optimizer.step()
    assert int(optimizer.param_groups[0]["schedule_step"]) == 4


@pytest.mark.parametrize("capturable", [False, True])
def test_a_copy_that_says_no_policy_has_none(capturable):
    """With ``"policy": None`` a copy of a live group keeps its rate and none of our keys."""
    optimizer = built({}, policy=StepDecay(1, 0.5), capturable=capturable)
    optimizer.step()
    dtype = torch.float32 if capturable else torch.float64
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [parameter(dtype)], "policy": None})
    optimizer.step()
    assert shown(optimizer)[1] == {"lr": pytest.approx(0.05), "momentum": pytest.approx(0.9), "policy": None}


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_an_optimizer_is_built_on_anothers_groups(ours, theirs):
    """Without a policy the groups' schedules go on where they stand; with one it begins, at their peaks."""
    first = built({"lr": 0.1}, {"lr": 0.2, "policy": CosineDecay(8)}, policy=StepDecay(1, 0.5), capturable=theirs)
    first.step()
    if not ours:
        second = CyclicSGD(first.param_groups)
        assert second.policies == first.policies
        assert [group["schedule_step"] for group in shown(second)] == [1, 1]
        assert [group["lr"] for group in shown(second)] == pytest.approx([group["lr"] for group in shown(first)])
    second = CyclicSGD(first.param_groups, policy=OneCycle(9), capturable=ours)
    assert second.policies == [OneCycle(9)] * 2
    factor = OneCycle(9).at(0).lr_factor
    assert [group["lr"] for group in shown(second)] == pytest.approx([0.1 * factor, 0.2 * factor])
    assert [group["schedule_step"] for group in shown(second)] == [0, 0]


# -- keys of a group

LOOKING_LIKE_OURS = {
    "momentum_policy": "the keys of a group are policy, schedule_step, max_lr",
    "lr_policy": "the keys of a group are policy, schedule_step, max_lr",
    "schedule_steps": "the keys of a group are policy, schedule_step, max_lr",
    "policies": "a policy per group is 'policy'",
    "schedule": "a policy per group is 'policy'",
    "scheduler": "a policy per group is 'policy'",
    "horizon": "an argument of the optimizer",
    "capturable": "an argument of the optimizer",
    "max_momentum": "an argument of the policy",
    "base_momentum": "an argument of the policy",
    "min_lr": "an argument of the policy, as a fraction of the peak",
}


@pytest.mark.parametrize("policy", [None, Constant()])
@pytest.mark.parametrize("key", LOOKING_LIKE_OURS)
def test_a_key_that_looks_like_ours_is_refused(key, policy):
    """A key that would be ignored without a word is named, with what to write instead; no group is added."""
    with pytest.raises(ValueError, match=f"need a param group without '{key}', .*: {LOOKING_LIKE_OURS[key]}"):
        built({key: 0.5}, policy=policy)
    optimizer = built({}, policy=policy)
    with pytest.raises(ValueError, match=f"got {key}=0.5"):
        optimizer.add_param_group({"params": [parameter()], key: 0.5})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


@pytest.mark.parametrize("key", ["schedule_step", "max_lr", "policy_state"])
def test_our_keys_need_a_policy(key):
    """In a group without a schedule our keys have no effect: they are refused, with the way out."""
    with pytest.raises(ValueError, match=f"need a policy beside '{key}' in a param group, got {key}=1 .*pass policy="):
        built({key: 1})


@pytest.mark.parametrize("policy", [None, Constant()])
def test_users_keys_are_theirs(policy):
    """Labels and whatever a framework keeps in a group stay as they are."""
    labels = {"name": "head", "lr_scale": 0.5, "layer": 3, "swa_lr": 0.1, "decay": True, "initial_lr": 0.1}
    optimizer = built(labels, policy=policy)
    optimizer.step()
    assert {key: optimizer.param_groups[0][key] for key in labels} == labels


@pytest.mark.parametrize("policy", [None, Constant()])
def test_what_a_torch_scheduler_left_is_no_key_of_ours(policy):
    """Groups that OneCycleLR and CyclicLR wrote to can be taken over."""
    sgd = SGD([parameter()], lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.5, total_steps=9)
    (group,) = CyclicSGD(sgd.param_groups, policy=policy).param_groups
    assert {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"} <= group.keys()


# -- the number of operations


class Counter(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_device_step_takes_as_many_operations_for_any_number_of_groups():
    """Of groups without gradients, a step's operations are those of the clock: the same for 1 and for 40 policies."""
    counts = []
    for count in (1, 2, 40):
        optimizer = built(*({"policy": CosineDecay(i + 1)} for i in range(count)), policy=Constant(), capturable=True)
        for param in weights_of(optimizer):
            param.grad = None
        optimizer.step()
        with Counter() as counter:
            optimizer.step()
        counts.append(counter.count)
    assert counts[0] == counts[1] == counts[2] > 0


# -- a group joins for what it is, whatever the others are


@given(
    chosen=st.integers(2, 5).flatmap(schedules),
    tensors=st.lists(st.booleans(), min_size=5, max_size=5),
    steps=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    data=st.data(),
)
def test_what_is_known_of_groups_that_joined_is_what_is_there(chosen, tensors, steps, data):
    """After every group, whatever was stepped, edited or moved in between: as if all had been looked at anew."""
    optimizer = CyclicSGD([{"params": [parameter()], "weight_decay": 0.1}], lr=0.1, policy=Triangular(3))
    movers = [None, Combined(Constant(), weight_decay=Triangular(3)), Plateau()]
    for (policy, peak, clock, is_shared), is_tensor, count in zip(chosen, tensors, steps, strict=False):
        for _ in range(count):
            optimizer.step()
        if data.draw(st.booleans()):
            optimizer.param_groups[0]["max_lr"] = peak / 2
        lr, decay = (torch.tensor(number, dtype=torch.float64) if is_tensor else number for number in (peak, 0.1))
        group = {"params": [parameter()], "lr": lr, "weight_decay": decay}
        if not is_shared:
            policy = data.draw(st.sampled_from(movers)) or policy
            group |= {"policy": policy, **({} if policy is None else {"schedule_step": clock})}
        optimizer.add_param_group(group)
        groups, written = optimizer.param_groups, optimizer._schedules._written
        anew = Written(groups, optimizer._known.resolved(groups), optimizer._slots)
        assert native.holds(groups, written.keys, written.columns)
        assert parts_of(written) == parts_of(anew)


def parts_of(written):
    lanes = {tuple(lane.indices): [getattr(lane, name) for name in lane.__slots__] for lane in written.lanes}
    single = written.single and tuple(written.single.indices)
    return written.n, written.keys, written.columns, written.momenta, written.decays, lanes, single


def test_an_edited_momentum_stays_an_edit_when_a_group_joins():
    """The next step uses it, and a checkpoint marks it, as without the new group."""
    optimizer = built({}, policy=Triangular(4))
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.25
    optimizer.add_param_group({"params": [parameter()]})
    (first, second) = optimizer.state_dict()["param_groups"]
    assert (first["momentum"], second["momentum"]) == (0.25, Triangular(4).at(1).momentum)
    assert ("momentum_edited_by_hand" in first, "momentum_edited_by_hand" in second) == (True, False)


class Calls:
    """Counts the calls of the package's own Python functions, without those that stand in for compiled ones."""

    def __enter__(self):
        self.count = 0
        sys.setprofile(self.seen)
        return self

    def seen(self, frame, event, arg):
        name = frame.f_globals.get("__name__", "")
        self.count += event == "call" and name.startswith("cyclic_optim.") and name != "cyclic_optim.native"

    def __exit__(self, *_):
        sys.setprofile(None)


@pytest.mark.parametrize(
    "options",
    [
        lambda i: {},
        lambda i: {"lr": torch.tensor(0.1)},
        lambda i: {"policy": CosineDecay(i + 1)},
        lambda i: {"policy": Plateau()},
        lambda i: {"schedule_step": i},
        lambda i: {"policy": None} if i > 0 else {},
    ],
    ids=["one policy", "tensors", "own policies", "reports", "own clocks", "one schedule"],
)
def test_a_group_costs_the_same_however_many_there_are(options):
    """Built of 40 groups, an optimizer calls for each what it calls for each of 20; so does one more group."""
    counts, joins = [], []
    for n in (20, 40):
        groups = [{"params": [parameter()], **options(i)} for i in range(n + 2)]
        with Calls() as calls:
            optimizer = CyclicSGD(groups[:n], lr=0.1, momentum=0.9, policy=OneCycle(100))
        counts.append(calls.count)
        optimizer.step()
        for group in groups[n:]:
            with Calls() as calls:
                optimizer.add_param_group(group)
        joins.append(calls.count)
    assert counts[1] <= 2 * counts[0]
    assert joins[0] == joins[1] < counts[0] / 10


# -- one instance, seen through repr


def test_a_repr_names_policies_that_differ():
    """A group whose policy is not the optimizer's prints its own."""
    text = repr(built({}, {"policy": StepDecay(5)}, {"policy": None}, policy=Constant())).splitlines()
    assert text[1] == "policy: Constant()"
    assert [line.strip() for line in text if line.startswith("    policy")] == [
        "policy: StepDecay(step_size=5, gamma=0.1)",
        "policy: None",
    ]


def test_reports_reach_the_groups_that_listen():
    """A Plateau in one group lowers its rate alone."""
    optimizer = built({"policy": Plateau(factor=0.5, patience=0)}, {}, {"policy": None}, policy=Constant())
    optimizer.report(1.0)
    optimizer.report(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.1]
