"""One tensor as lr, or weight decay, of several groups: each group gets its own, and nobody else's is written to."""

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch_versions
from hypothesis import given
from hypothesis import strategies as st
from strategies import parameter, policies

from cyclic_optim import Combined, Constant, CosineDecay, CyclicAdamW, CyclicSGD, StepDecay

pytestmark = pytest.mark.usefixtures("part", "short_tables")

PEAKS = (0.5, 0.25, 0.125)
HALVING = StepDecay(1, 0.5)
OPTIMIZERS = {
    "CyclicSGD": CyclicSGD,
    "CyclicSGD, foreach": partial(CyclicSGD, foreach=True),
    "CyclicSGD, capturable": partial(CyclicSGD, capturable=True),
    "CyclicAdamW": partial(CyclicAdamW, foreach=False),
}
#: Their updates are torch's own.
UPDATES_OF_TORCH = (OPTIMIZERS["CyclicSGD, foreach"], OPTIMIZERS["CyclicAdamW"])
all_optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def groups_of(lrs=PEAKS, **values):
    return [{"params": [parameter(torch.float32)], "lr": lr, **values} for lr in lrs]


def column(optimizer, key="lr"):
    return [float(group[key]) for group in optimizer.param_groups]


def assign(optimizer, values, key="lr"):
    for group, value in zip(optimizer.param_groups, values, strict=True):
        group[key] = value


def tensor(value=0.75):
    return torch.tensor(value)


#: One memory for three groups.
SHARED = {
    "one tensor": lambda given: [given] * 3,
    "views of one element": lambda given: [given.view(()), given.view(1), given.view(1, 1)],
    "expanded": lambda given: list(given.expand(3)),
}
all_shared = pytest.mark.parametrize("share", SHARED.values(), ids=SHARED.keys())


@all_shared
@all_optimizers
def test_a_rate_assigned_to_every_group_lasts_for_one_step(make, share, request):
    """The assigned rate is used, then each group has its own again; the tensor that was assigned stays as it is."""
    if make in UPDATES_OF_TORCH and share is SHARED["views of one element"]:
        request.applymarker(torch_versions.rates_of_a_dimension)
    optimizer, given_lr = make(groups_of(), policy=HALVING), tensor()
    for step in range(1, 4):
        assign(optimizer, share(given_lr))
        assert column(optimizer) == [0.75] * 3
        optimizer.step()
        assert column(optimizer) == [peak / 2**step for peak in PEAKS]
        assert given_lr.item() == 0.75
    optimizer.step()
    assert column(optimizer) == [peak / 2**4 for peak in PEAKS]


@all_optimizers
def test_the_rate_that_was_assigned_is_the_one_used(make):
    """The weights are those of an optimizer to which the number was assigned."""
    weights = []
    for value in (0.75, tensor()):
        groups = groups_of()
        optimizer = make(groups, policy=HALVING)
        for _ in range(2):
            assign(optimizer, [value] * 3)
            optimizer.step()
        optimizer.step()
        weights.append(torch.cat([group["params"][0].detach() for group in groups]))
    torch.testing.assert_close(*weights)


@all_optimizers
def test_a_tensor_of_one_group_assigned_to_the_others(make):
    """What group 0 shows may be assigned to group 1, which still goes on with a rate of its own."""
    optimizer = make(groups_of(map(torch.tensor, PEAKS)), policy=HALVING)
    assign(optimizer, [optimizer.param_groups[0]["lr"]] * 3)
    assert column(optimizer) == [0.5] * 3
    optimizer.step()
    assert column(optimizer) == [peak / 2 for peak in PEAKS]


@all_optimizers
def test_a_rate_assigned_in_a_closure(make):
    """After the step in whose closure it was assigned, or the next one on the device, each group has its own rate."""
    given_lr = tensor()
    optimizer = make(groups_of(map(torch.tensor, PEAKS)), policy=HALVING)
    optimizer.step(lambda: assign(optimizer, [given_lr] * 3))
    is_on_host = isinstance(optimizer.param_groups[0]["schedule_step"], int)
    assert column(optimizer) == ([peak / 2 for peak in PEAKS] if is_on_host else [0.75] * 3)
    optimizer.step()
    assert column(optimizer) == [peak / 4 for peak in PEAKS]
    assert given_lr.item() == 0.75


@all_optimizers
def test_one_tensor_given_to_all_groups(make):
    """Given to the constructor, in the groups or to add_param_group, the tensor is copied for each group."""
    given_lr = tensor(0.5)
    optimizer = make(groups_of([given_lr] * 2), lr=given_lr, policy=HALVING)
    optimizer.add_param_group({"params": [parameter(torch.float32)], "lr": given_lr})
    optimizer.reschedule(lr=PEAKS)
    assert column(optimizer) == list(PEAKS)
    optimizer.step()
    assert column(optimizer) == [peak / 2 for peak in PEAKS]
    assert given_lr.item() == 0.5


def test_reschedule_after_training_without_a_policy():
    """The tensor that several groups had as plain SGD is still the user's when they get a policy."""
    given_lr = tensor()
    optimizer = CyclicSGD(groups_of([given_lr] * 3))
    optimizer.step()
    assert all(group["lr"] is given_lr for group in optimizer.param_groups)
    optimizer.reschedule(policy=HALVING, lr=PEAKS)
    optimizer.step()
    assert column(optimizer) == [peak / 2 for peak in PEAKS]
    assert given_lr.item() == 0.75


def test_a_group_without_a_policy_keeps_the_very_tensor():
    """Beside groups with a schedule, too, it is SGD's: the user may go on writing into the tensor."""
    given_lr = tensor()
    groups = groups_of([given_lr, 0.5])
    optimizer = CyclicSGD([{**groups[0], "policy": None}, groups[1]], policy=HALVING)
    optimizer.step()
    assign(optimizer, [given_lr, given_lr])
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is given_lr
    optimizer.reschedule(policy=HALVING, lr=[0.5, 0.25], step=0)
    optimizer.step()
    assert column(optimizer) == [0.25, 0.125]
    assert given_lr.item() == 0.75


@all_optimizers
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_made_between_the_assignment_and_the_step(make, copied):
    """A copy of an optimizer whose groups share a tensor gives each group its own, whatever the tensor holds."""
    for value in (0.75, 0.5):  # the latter is what group 0 has anyway
        optimizer = make(groups_of(map(torch.tensor, PEAKS)), policy=HALVING)
        assign(optimizer, [tensor(value)] * 3)
        optimizer = copied(optimizer)
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(2)
        optimizer.step()
        assert column(optimizer) == [peak / 2 for peak in PEAKS]


@all_optimizers
def test_a_checkpoint_of_the_base_class_that_shares(make):
    """One tensor in all groups of a base class's checkpoint, as torch copies it: each group has its own afterwards."""
    optimizer = make(groups_of(map(torch.tensor, PEAKS)), policy=HALVING)
    base = next(one for one in type(optimizer).__mro__ if one.__module__.startswith("torch"))
    saved = base(groups_of([0.1] * 3)).state_dict()
    given_lr = tensor()
    for group in saved["param_groups"]:
        group["lr"] = given_lr
    optimizer.load_state_dict(saved)
    assert column(optimizer) == list(PEAKS)
    optimizer.step()
    assert column(optimizer) == [peak / 2 for peak in PEAKS]
    assert given_lr.item() == 0.75


@all_optimizers
def test_a_checkpoint_of_ours_that_shares(make):
    """A rate by hand, in one tensor for all groups when it was saved, is used for its one step by each group."""
    optimizer, given_lr = make(groups_of(map(torch.tensor, PEAKS)), policy=HALVING), tensor()
    assign(optimizer, [given_lr] * 3)
    saved = optimizer.state_dict()
    loaded = make(groups_of(map(torch.tensor, PEAKS)), policy=HALVING)
    loaded.load_state_dict(saved)
    assert column(loaded) == [0.75] * 3
    loaded.step()
    assert column(loaded) == [peak / 2 for peak in PEAKS]
    assert given_lr.item() == 0.75


def test_a_checkpoint_under_another_policy_that_shares():
    """The same where the policy in the code is another one, and where there is none in the code."""
    saved, given_lr = CyclicSGD(groups_of(), policy=Constant()).state_dict(), tensor()
    for group in saved["param_groups"]:
        group["lr"] = given_lr
    for policy, expected in ((HALVING, [peak / 2 for peak in PEAKS]), (None, list(PEAKS))):
        optimizer = CyclicSGD(groups_of(), policy=policy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            optimizer.load_state_dict(saved)
        optimizer.step()
        assert column(optimizer) == expected
        assert given_lr.item() == 0.75


MOVING = Combined(lr=Constant(), weight_decay=HALVING)


@pytest.mark.parametrize("share", [SHARED["one tensor"], SHARED["expanded"]], ids=["one tensor", "expanded"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_weight_decay_shared_by_all_groups(share, first):
    """A weight decay that a policy moves: one tensor for all, given at first or assigned after steps."""
    given_decay = tensor()
    optimizer = CyclicSGD(groups_of(), weight_decay=given_decay, policy=MOVING)
    for _ in range(first):
        optimizer.step()
    assign(optimizer, PEAKS, "max_weight_decay")
    optimizer.step()
    assign(optimizer, share(given_decay), "weight_decay")
    optimizer.step()
    assert column(optimizer, "weight_decay") == [peak / 2 ** (first + 2) for peak in PEAKS]
    optimizer.step()
    assert column(optimizer, "weight_decay") == [peak / 2 ** (first + 3) for peak in PEAKS]
    assert given_decay.item() == 0.75


def test_a_weight_decay_that_no_policy_moves_is_left_alone():
    """Where the policy leaves weight decay alone, groups keep the very tensor, as with SGD."""
    given_decay = tensor()
    optimizer = CyclicSGD(groups_of(), weight_decay=given_decay, policy=CosineDecay(10))
    optimizer.step()
    assert all(group["weight_decay"] is given_decay for group in optimizer.param_groups)


def test_a_dry_run_whose_tensors_were_dropped():
    """The rates come back where distributed checkpointing's zeros took the only reference to their tensors."""
    optimizer = CyclicSGD(groups_of(map(torch.tensor, PEAKS)), policy=HALVING)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0)
        group["params"][0].grad.zero_()
    optimizer.step()
    assert column(optimizer) == list(PEAKS)
    assert column(optimizer, "schedule_step") == [0, 0, 0]
    optimizer.step()
    assert column(optimizer) == [peak / 2 for peak in PEAKS]


ACTIONS = ("assign", "views", "own", "number", "step", "reschedule", "copy", "load")


@given(policy=policies(), actions=st.lists(st.sampled_from(ACTIONS), max_size=8), make=st.sampled_from([*OPTIMIZERS]))
def test_whatever_is_shared_rates_are_those_of_numbers(policy, actions, make):
    """Any sequence of edits, with one tensor for all groups: the rates of an optimizer that was given numbers."""
    policy = Combined(lr=policy)
    ours, theirs = (OPTIMIZERS[make](groups_of(), policy=policy) for _ in range(2))
    given_lr = tensor()
    for action in actions:
        if action == "own":
            held = ours.param_groups[0]["lr"]
            assign(theirs, [float(held)] * 3)
            assign(ours, [held] * 3)
        elif action in ("assign", "views", "number"):
            assign(theirs, [0.75] * 3)
            assign(ours, {"assign": [given_lr] * 3, "views": [given_lr.view(1)] * 3, "number": [0.75] * 3}[action])
        elif action == "copy":
            ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
        elif action == "load":
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
            theirs.load_state_dict(copy.deepcopy(theirs.state_dict()))
        else:
            for one in (ours, theirs):
                one.step() if action == "step" else one.reschedule(lr=PEAKS, step=1)
        assert given_lr.item() == 0.75
        torch.testing.assert_close(torch.tensor(column(ours)), torch.tensor(column(theirs)))
