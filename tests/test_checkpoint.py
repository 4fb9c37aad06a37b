"""One checkpoint is all there is to save, and resuming from it is exact."""

import copy
import json
import math
import pickle
import re
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch_versions
from helpers import build, one_param, through_a_file
from hypothesis import given
from hypothesis import strategies as st
from strategies import flat, implementations, policies, problems, sgd_options
from torch.optim import SGD

from cyclic_optim import (
    Constant,
    CosineRestarts,
    CyclicAdamW,
    CyclicSGD,
    LambdaPolicy,
    LinearRamp,
    OneCycle,
    Plateau,
    Policy,
    Sequential,
    StepDecay,
    Triangular,
    Values,
)
from cyclic_optim.testing import check_optimizer


def take_steps(params, optimizer, problem, steps):
    for step in steps:
        problem.set_grads(params, step)
        optimizer.step()


def snapshot(optimizer):
    return repr(optimizer.state_dict()), repr(optimizer), optimizer.policy


@given(problem=problems(), policy=policies(), options=sgd_options(), implementation=implementations())
def test_interrupted_and_resumed_equals_uninterrupted(problem, policy, options, implementation):
    """Saved, loaded into a fresh optimizer and continued at any step, training is the same to the bit; and what else
    the checks for optimizers of users are about."""
    run = replace(problem, steps=4)
    check_optimizer(partial(CyclicSGD, **options, **implementation), policy=policy, run=run)


@given(problem=problems(), policy=policies(), options=sgd_options(), cut=st.integers(0, 4))
def test_pickle_and_deepcopy_keep_everything(problem, policy, options, cut):
    """A copy has the policy, the counter and the buffers, shares no tensor, and goes on alike."""
    params, optimizer = build(problem, policy, **options)
    take_steps(params, optimizer, problem, range(cut))
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert snapshot(twin) == snapshot(optimizer)
        twin_params = [group["params"] for group in twin.param_groups]
        ours = {tensor.data_ptr() for tensor in tensors_of(optimizer) if tensor.numel()}
        assert not ours & {tensor.data_ptr() for tensor in tensors_of(twin) if tensor.numel()}
        take_steps(twin_params, twin, problem, range(cut, cut + 2))
    take_steps(params, optimizer, problem, range(cut, cut + 2))
    assert all(map(torch.equal, flat(twin_params), flat(params)))


def tensors_of(optimizer):
    buffers = [state["momentum_buffer"] for state in optimizer.state.values() if "momentum_buffer" in state]
    return [*(param for group in optimizer.param_groups for param in group["params"]), *buffers]


def test_a_pending_edit_survives():
    """An edit of lr that no step has used yet is in the checkpoint, and is used after resuming."""
    _, optimizer = one_param(lr=1.0, policy=Triangular(step_size_up=4))
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.123
    optimizer.param_groups[0]["max_lr"] = 2.0
    _, resumed = one_param(lr=2.0, policy=Triangular(step_size_up=4))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.param_groups[0]["lr"] == 0.123
    resumed.step()
    assert resumed.param_groups[0]["lr"] == 2.0 * Triangular(step_size_up=4).at(2).lr_factor


def test_loading_leaves_the_dict_alone():
    """The dict can be loaded twice, is not altered, and shares no tensor with the optimizer."""
    _, optimizer = one_param(lr=1.0, momentum=0.9, policy=Triangular(step_size_up=4))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    before = repr(saved)
    for _ in range(2):
        _, other = one_param(lr=1.0, policy=Triangular(step_size_up=4))
        other.load_state_dict(saved)
        other.step()
        assert repr(saved) == before


def test_the_policy_in_the_code_wins_with_a_warning():
    """A run is extended by a new total_steps: the counter is kept, and the warning names both policies."""
    _, optimizer = one_param(lr=1.0, policy=OneCycle(total_steps=10))
    for _ in range(6):
        optimizer.step()
    _, longer = one_param(lr=1.0, policy=OneCycle(total_steps=20))
    with pytest.warns(UserWarning, match=r"OneCycle\(total_steps=10,.*at step 6.*OneCycle\(total_steps=20,"):
        longer.load_state_dict(optimizer.state_dict())
    assert longer.policy == OneCycle(total_steps=20)
    group = longer.param_groups[0]
    assert (group["lr"], group["momentum"]) == OneCycle(total_steps=20).at(6)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, again = one_param(lr=1.0, policy=OneCycle(total_steps=20))
        again.load_state_dict(longer.state_dict())


@given(policy=policies())
def test_without_a_policy_in_the_code_the_checkpoints_is_taken(policy):
    """A policy of data alone comes back from the checkpoint; one with code in it is asked for."""
    _, optimizer = one_param(lr=1.0, policy=policy)
    optimizer.step()
    saved = through_a_file(optimizer.state_dict())
    _, plain = one_param(lr=0.5)
    if '"code":' in saved["param_groups"][0]["policy"]:
        before = snapshot(plain)
        with pytest.raises(ValueError, match="pass the policy to the optimizer"):
            plain.load_state_dict(saved)
        assert snapshot(plain) == before
    else:
        plain.load_state_dict(saved)
        assert snapshot(plain) == snapshot(optimizer)


def classic(step):
    return 1 / (1 + step)


def other(step):
    return 1 / (2 + step)


def test_a_function_is_never_dropped_silently():
    """A checkpoint names the function of a LambdaPolicy, and says so where the code has another."""
    _, optimizer = one_param(lr=1.0, policy=LambdaPolicy(classic))
    _, same = one_param(lr=1.0, policy=LambdaPolicy(classic))
    same.load_state_dict(through_a_file(optimizer.state_dict()))
    _, different = one_param(lr=1.0, policy=LambdaPolicy(other))
    with pytest.warns(UserWarning, match=r"test_checkpoint\.classic.*test_checkpoint\.other"):
        different.load_state_dict(through_a_file(optimizer.state_dict()))


class Own(Policy):
    def __init__(self, rate):
        self.rate = rate

    def at(self, step):
        return Values(self.rate)


def test_a_policy_of_ones_own_is_checkpointed_by_name():
    """A user's own policy resumes with the code, warns when it differs, and is not conjured up without it."""
    _, optimizer = one_param(lr=1.0, policy=Own(0.5))
    optimizer.step()
    saved = through_a_file(optimizer.state_dict())
    _, resumed = one_param(lr=1.0, policy=Own(0.5))
    resumed.load_state_dict(saved)
    with pytest.warns(UserWarning, match=r"Own\(rate=0\.5\).*Own\(rate=0\.25\)"):
        one_param(lr=1.0, policy=Own(0.25))[1].load_state_dict(saved)
    with pytest.raises(ValueError, match=r"got 'test_checkpoint\.Own'; pass the policy"):
        one_param(lr=1.0)[1].load_state_dict(saved)


def test_an_sgd_checkpoint_starts_the_schedule_at_0():
    """SGD's buffers are taken over; peaks are the code's, even after a OneCycleLR left a max_lr behind.

    A warning says so, and what to call, where the call was made.
    """
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    sgd = SGD([param], lr=0.3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=5.0, total_steps=10)
    param.grad = torch.ones_like(param)
    sgd.step()
    scheduler.step()
    mine, optimizer = one_param(lr=1.0, policy=Triangular(step_size_up=4))
    optimizer.step()
    saved = through_a_file(sgd.state_dict())
    with pytest.warns(UserWarning, match="the schedule starts at step 0") as caught:
        optimizer.load_state_dict(saved)
    (warning,) = caught
    assert str(warning.message) == (
        "the checkpoint is of a run without a schedule, with the state momentum_buffer: the schedule starts at step 0 "
        "in param groups [0]. Call reschedule(step=...) to go on from there, or from_torch(optimizer, scheduler), "
        "which takes over a run with its scheduler"
    )
    assert warning.filename == __file__
    group = optimizer.param_groups[0]
    assert (group["schedule_step"], group["max_lr"], group["lr"]) == (0, 1.0, 0.1)
    assert torch.equal(optimizer.state[mine]["momentum_buffer"], sgd.state[param]["momentum_buffer"])


@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
@pytest.mark.parametrize("steps", [0, 6])
def test_a_rate_that_a_scheduler_has_moved_shows_a_run_under_way(steps, lr):
    """Without momentum an SGD has no state, but its scheduler leaves the first rate beside the present one."""
    param = torch.nn.Parameter(torch.ones(3))
    sgd = SGD([param], lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.3, total_steps=10, cycle_momentum=False)
    for _ in range(steps):
        sgd.step()
        scheduler.step()
    optimizer = CyclicSGD([param], lr=0.3, policy=OneCycle(10, cycle_momentum=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(through_a_file(sgd.state_dict()))
    found = "the checkpoint is of a run without a schedule, with a rate that a scheduler has moved: the schedule starts"
    assert [str(warning.message)[: len(found)] for warning in caught] == [found] * (steps > 0)


def test_a_warm_up_that_has_not_begun_is_no_run_under_way():
    """A warm-up sets the rate below the first one before any update; that momentum has no buffers says so."""
    param = torch.nn.Parameter(torch.ones(3))
    sgd = SGD([param], lr=0.3, momentum=0.9)
    torch.optim.lr_scheduler.LinearLR(sgd)
    assert sgd.param_groups[0]["lr"] < 0.3
    CyclicSGD([param], lr=0.3, policy=Constant()).load_state_dict(sgd.state_dict())


@pytest.mark.parametrize("first", [10**400, math.nan, "0.1", None, torch.ones(2), torch.ones((), device="meta"), 1j])
def test_a_first_rate_that_is_none_says_nothing(first):
    """Whatever another program has left in a checkpoint beside the rate, it loads."""
    saved = SGD([torch.nn.Parameter(torch.ones(3))], lr=0.3).state_dict()
    saved["param_groups"][0]["initial_lr"] = first
    CyclicSGD([torch.nn.Parameter(torch.ones(3))], lr=0.3, policy=Constant()).load_state_dict(saved)


def test_the_start_of_a_schedule_is_warned_of_where_there_is_one():
    """No warning without a policy in the code, nor for the groups that have none; the others are named."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    groups = [{"params": [param]} for param in params]
    sgd = SGD(groups, lr=0.3, momentum=0.9)
    params[0].grad = torch.ones(3)
    sgd.step()
    CyclicSGD(groups, lr=0.3).load_state_dict(sgd.state_dict())
    mixed = [{**groups[0], "policy": None}, *groups[1:]]
    CyclicSGD(mixed, lr=0.3, policy=Constant()).load_state_dict(sgd.state_dict())  # the others have not trained
    params[2].grad = torch.ones(3)
    sgd.step()
    with pytest.warns(UserWarning, match=r"the schedule starts at step 0 in param groups \[1, 2\]"):
        CyclicSGD(mixed, lr=0.3, policy=Constant()).load_state_dict(sgd.state_dict())


def test_our_checkpoint_loads_into_sgd():
    """SGD loads our checkpoint and goes on at the values that were in force."""
    param, optimizer = one_param(lr=1.0, policy=Triangular(step_size_up=4))
    optimizer.step()
    sgd = SGD([param], lr=9.0)
    sgd.load_state_dict(through_a_file(optimizer.state_dict()))
    twin = copy.deepcopy(optimizer)
    sgd.step()
    theirs = param.detach().clone()
    (twin_param,) = twin.param_groups[0]["params"]
    twin_param.grad = param.grad.clone()
    twin.step()
    torch.testing.assert_close(theirs, twin_param.detach(), rtol=1e-14, atol=0)


def test_plateaus_memory_is_in_the_checkpoint():
    """Best metric, bad reports and reductions survive; the resumed optimizer reacts as the other does."""
    policy = Plateau(factor=0.5, patience=1)
    _, optimizer = one_param(lr=1.0, policy=policy)
    for metric in (1.0, 1.0):
        optimizer.report(metric)
    _, resumed = one_param(lr=1.0, policy=policy)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for each in (optimizer, resumed):
        each.report(1.0)
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.5
    assert snapshot(resumed) == snapshot(optimizer)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_takes_a_closure(copied):
    """A copied or unpickled optimizer steps with a closure, as the original does."""
    param = torch.nn.Parameter(torch.ones(2))
    twin = copied(CyclicSGD([param], lr=0.1, policy=Constant()))
    assert twin.step(lambda: 3.0) == 3.0


def test_amp_support_survives_pickling():
    """fused=True handles a loss scale itself, also after unpickling."""
    _, optimizer = one_param(lr=1.0, fused=True)
    assert pickle.loads(pickle.dumps(optimizer))._step_supports_amp_scaling


@pytest.mark.parametrize("policy", [None, Constant()])
@pytest.mark.parametrize("key", ["dampening", "maximize", "nesterov", "foreach", "fused", "differentiable", "max_lr"])
def test_missing_keys_are_as_in_the_code(key, policy):
    """A dict from an older version, which lacks a hyperparameter, loads, and the optimizer steps."""
    _, optimizer = one_param(lr=1.0, momentum=0.5, policy=policy)
    optimizer.step()
    saved = optimizer.state_dict()
    if key in saved["param_groups"][0]:
        del saved["param_groups"][0][key]
    _, resumed = one_param(lr=1.0, momentum=0.5, policy=policy)
    resumed.load_state_dict(saved)
    resumed.step()


def test_a_peak_that_a_checkpoint_lacks_is_the_codes():
    """A dict without ``max_lr`` goes on at the step it was saved at, under the peak that the code gives."""
    policy = Triangular(step_size_up=4)
    _, optimizer = one_param(lr=1.0, policy=policy)
    optimizer.step()
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["max_lr"]
    _, resumed = one_param(lr=0.5, policy=policy)
    with pytest.warns(UserWarning, match=r"has lr=0\.325, .* and its schedule lr=0\.1625, .* at its step 1"):
        resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["lr"] == 0.1625
    resumed.step()
    (group,) = resumed.param_groups
    assert (group["max_lr"], group["lr"], group["schedule_step"]) == (0.5, 0.5 * policy.at(2).lr_factor, 2)


def break_group(key, value):
    def change(saved):
        saved["param_groups"][0][key] = value

    return change


def break_state(value):
    def change(saved):
        saved["state"][0] = value

    return change


MALFORMED = {
    "no groups": lambda saved: saved.pop("param_groups"),
    "no state": lambda saved: saved.pop("state"),
    "groups of another type": lambda saved: saved.update(param_groups=[1, 2]),
    "no params": lambda saved: saved["param_groups"][0].pop("params"),
    "another number of params": break_group("params", [0, 1]),
    "a fractional counter": break_group("schedule_step", 1.5),
    "a negative counter": break_group("schedule_step", -1),
    "no counter in one group": lambda saved: saved["param_groups"][1].pop("schedule_step"),
    "a counter that leaves no room": break_group("schedule_step", 2**62),
    "a nan peak": break_group("max_lr", float("nan")),
    "a peak of text": break_group("max_lr", "1"),
    "a nan rate": break_group("lr", float("nan")),
    "a momentum of text": break_group("momentum", "much"),
    "a buffer of another shape": break_state({"momentum_buffer": torch.ones(7)}),
    "a buffer that is none": break_state({"momentum_buffer": "none"}),
    "state that is no dict": break_state([1, 2]),
}


@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_checkpoints_are_refused(malformed):
    """A checkpoint that cannot be right is a ValueError that says why, and the optimizer is as it was."""

    def two_groups():
        params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
        for param in params:
            param.grad = torch.ones(3)
        optimizer = CyclicSGD([{"params": [param]} for param in params], lr=1.0, policy=Triangular(step_size_up=4))
        optimizer.step()
        return optimizer

    saved = copy.deepcopy(two_groups().state_dict())
    MALFORMED[malformed](saved)
    optimizer = two_groups()
    before = snapshot(optimizer)
    with pytest.raises((ValueError, TypeError), match=r"need|state dict"):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before
    optimizer.step()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_lr", -1.0, "need max_lr to be a finite number >= 0, got max_lr=-1.0"),
        ("schedule_step", -1, "need schedule_step to be an int >= 0 and < 2**62, got schedule_step=-1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_policy_is_changed(key, value, message):
    """A bad value in a checkpoint of another policy is an error, and no word of going on under the one in the code."""

    def two_groups(policy):
        return CyclicSGD([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)], policy=policy)

    saved = two_groups(Triangular(step_size_up=4)).state_dict()
    saved["param_groups"][1][key] = value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        two_groups(Constant()).load_state_dict(saved)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "description",
    [
        None,
        "OneCycle",
        {"name": "OneCycle"},
        {"name": "OneCycle", "fields": {}},
        {"name": "OneCycle", "fields": {"total_steps": -1}},
        {"name": "OneCycle", "fields": {"total_steps": 10, "colour": "red"}},
        {"name": "os.system", "fields": {"command": "true"}},
        {"name": "Sequential", "fields": {"policies": [1], "milestones": []}},
    ],
)
def test_a_policy_that_cannot_be_rebuilt_is_refused(description, as_json):
    """A description is looked up in the library's own table and nowhere else, and checked like any policy."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    saved = optimizer.state_dict()
    saved["param_groups"][0]["policy"] = json.dumps(description) if as_json else description
    _, plain = one_param(lr=0.5)
    before = snapshot(plain)
    with pytest.raises(ValueError, match="pass the policy to the optimizer"):
        plain.load_state_dict(saved)
    assert snapshot(plain) == before


@pytest.mark.parametrize(
    "change", [break_group("nesterov", "q"), break_group("fused", "yes"), break_group("lr", torch.tensor(1))]
)
def test_flags_and_rates_that_cannot_be_are_refused(change):
    """Flags that are no flags and tensors that hold no rates are refused under a policy."""
    saved = copy.deepcopy(one_param(lr=1.0, policy=Constant())[1].state_dict())
    change(saved)
    _, optimizer = one_param(lr=1.0, policy=Constant())
    before = snapshot(optimizer)
    with pytest.raises((ValueError, TypeError), match=r"need (nesterov|fused|lr)"):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before


def test_momentum_that_another_policy_left_behind_is_not_kept():
    """Where the policy in the code leaves momentum alone, it is the code's, not where a cycle happened to be."""
    _, cycled = one_param(lr=1.0, momentum=0.9, policy=OneCycle(total_steps=20, base_momentum=0.5))
    sgd = SGD([torch.nn.Parameter(torch.ones(3, dtype=torch.float64))], lr=1.0)
    torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=1.0, total_steps=10)
    for _ in range(6):
        cycled.step()
    with pytest.warns(UserWarning, match="written under the policy OneCycle"):
        one_param(lr=1.0, momentum=0.8, policy=Constant())[1].load_state_dict(cycled.state_dict())
    for saved in (cycled.state_dict(), sgd.state_dict()):
        _, optimizer = one_param(lr=1.0, momentum=0.8, policy=Constant())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["momentum"] == 0.8


def test_a_plateau_of_the_other_mode_starts_afresh():
    """Metrics that were compared the other way round are forgotten when the policy in the code wins."""
    _, optimizer = one_param(lr=1.0, policy=Plateau(mode="max"))
    optimizer.report(5.0)
    _, other = one_param(lr=1.0, policy=Plateau(mode="min"))
    with pytest.warns(UserWarning, match="mode='max'.*mode='min'"):
        other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["policy_state"] == Plateau(mode="min").initial_state()


def test_an_error_of_a_users_hook_is_not_relabelled():
    """What a load_state_dict hook raises comes through as it is."""
    _, optimizer = one_param(lr=1.0, policy=Constant())

    def fail(*_):
        raise RuntimeError("mine")

    optimizer.register_load_state_dict_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^mine$"):
        optimizer.load_state_dict(optimizer.state_dict())


def test_an_error_in_a_users_hook_rolls_back():
    """Whatever fails while loading, be it a post hook, the optimizer keeps the state it had."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    optimizer.step()
    before = snapshot(optimizer)

    def interrupt(_):
        raise KeyboardInterrupt

    optimizer.register_load_state_dict_post_hook(interrupt)
    saved = one_param(lr=0.5, policy=Constant())[1].state_dict()
    with pytest.warns(UserWarning, match="the peak in the checkpoint is kept"), pytest.raises(KeyboardInterrupt):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before


def test_nested_policies_survive():
    """A Sequential of policies is plain data all the way down."""
    policy = Sequential([Triangular(step_size_up=2), StepDecay(step_size=3)], [4])
    _, optimizer = one_param(lr=1.0, policy=policy)
    _, plain = one_param(lr=1.0)
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    assert plain.policy == policy


@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_round_trip(flatten):
    """Through torch.distributed.checkpoint's state dicts, flattened or not, a fresh optimizer goes on exactly."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, CyclicSGD(model.parameters(), lr=1.0, policy=Triangular(step_size_up=4))

    def train(model, optimizer, steps):
        for step in range(steps):
            for param in model.parameters():
                param.grad = torch.full_like(param, step + 1.0)
            optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    train(model, optimizer, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    fresh_model, fresh = make()
    fresh_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(fresh_model, fresh, saved, options=options)
    assert fresh.param_groups[0]["schedule_step"] == 3
    train(model, optimizer, 2)
    train(fresh_model, fresh, 2)
    assert all(map(torch.equal, fresh_model.parameters(), model.parameters()))


@pytest.mark.parametrize("policy", [OneCycle(total_steps=20), Triangular(step_size_up=4)], ids=str)
def test_distributed_checkpoint_files(policy, tmp_path):
    """Saved to and loaded from a distributed checkpoint, also under a policy of another kind."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def make(policy):
        model = torch.nn.Linear(3, 2)
        return model, CyclicSGD(model.parameters(), lr=1.0, policy=policy)

    model, optimizer = make(OneCycle(total_steps=20))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of running in one process; and ours, of the policies
        checkpoint.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
        fresh_model, fresh = make(policy)
        loaded = {"optimizer": get_optimizer_state_dict(fresh_model, fresh)}
        checkpoint.load(loaded, checkpoint_id=tmp_path)
        set_optimizer_state_dict(fresh_model, fresh, loaded["optimizer"])
    group = fresh.param_groups[0]
    assert group["schedule_step"] == 1
    assert (group["lr"], group["momentum"]) == policy.at(1)[:2]


def optimizer_of(model, cls=CyclicSGD, **options):
    return cls(model.parameters(), lr=0.1, **options)


WITH_STATE = {
    "SGD's, no policy": {"momentum": 0.9},
    "a policy": {"momentum": 0.9, "policy": OneCycle(total_steps=20)},
    "foreach": {"momentum": 0.9, "policy": OneCycle(total_steps=20), "foreach": True},
    "reports": {"momentum": 0.9, "policy": Plateau()},
    "capturable": {"momentum": 0.9, "policy": OneCycle(total_steps=20), "capturable": True},
    "AdamW": {"cls": CyclicAdamW, "policy": OneCycle(total_steps=20)},
}


@pytest.mark.parametrize("has_late_gradient", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        # With capturable=True a parameter without a gradient has state, too.
        pytest.param(kind, marks=[] if kind == "capturable" else torch_versions.flattened_missing_state)
        for kind in WITH_STATE
    ],
)
def test_a_parameter_without_a_gradient_so_far_is_flattened(kind, has_late_gradient):
    """Flattened, its missing entries are empty dicts: they are loaded as none, and a gradient may arrive later."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=True)

    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
        return model, optimizer_of(model, **WITH_STATE[kind])

    def train(model, optimizer, trained):
        for param in trained.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    train(model, optimizer, model[0])
    fresh_model, fresh = make()
    fresh_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(
        fresh_model, fresh, copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options)), options=options
    )
    for _ in range(2):
        train(model, optimizer, model if has_late_gradient else model[0])
        train(fresh_model, fresh, fresh_model if has_late_gradient else fresh_model[0])
    assert all(map(torch.equal, fresh_model.parameters(), model.parameters()))
    assert snapshot(fresh)[0] == snapshot(optimizer)[0]


# -- what is said


def said(optimizer, saved):
    """The warnings of a load."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(saved)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("options", [{}, {"capturable": True}, {"lr": torch.tensor(0.01)}], ids=str)
@pytest.mark.parametrize("policy", [StepDecay(step_size=2, gamma=0.5), Constant()], ids=str)
def test_a_peak_that_is_not_the_codes_is_kept_and_named(policy, options):
    """Both peaks are in the warning, with what to call for the code's, also where the policies differ, too."""
    _, optimizer = one_param(lr=0.1, policy=StepDecay(step_size=2, gamma=0.5))
    optimizer.step()
    resumed = CyclicSGD([torch.nn.Parameter(torch.ones(3))], **{"lr": 0.01, "policy": policy, **options})
    messages = said(resumed, through_a_file(optimizer.state_dict()))
    assert len(messages) == 1 + (policy == Constant())
    assert re.search(r"max_lr=\[0\.1\], in the code \[0\.0\d+\], .*reschedule\(lr=", messages[-1])
    assert resumed.state_dict()["param_groups"][0]["max_lr"] == 0.1
    assert said(resumed, resumed.state_dict()) == []


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (Triangular(step_size_up=4), {}),
        (Triangular(step_size_up=4), {"capturable": True}),
        (None, {}),
        (Triangular(step_size_up=5), {}),
        (Triangular(step_size_up=5), {"capturable": True}),
    ],
    ids=str,
)
def test_keys_that_sgd_carried_along_are_named(policy, options):
    """SGD loads our checkpoint and trains on at a rate of its own: both values and the way out are in one warning."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    ours = CyclicSGD([{"params": [param]} for param in params], lr=0.1, policy=Triangular(step_size_up=4))
    ours.step()
    sgd = SGD([{"params": [param]} for param in params], lr=0.1)
    sgd.load_state_dict(through_a_file(ours.state_dict()))
    assert said(CyclicSGD(ours.param_groups, policy=Triangular(step_size_up=4)), sgd.state_dict()) == []
    for group in sgd.param_groups:
        group["lr"] *= 0.5
    fresh = [{"params": [torch.nn.Parameter(torch.ones(3))]} for _ in range(2)]
    optimizer = CyclicSGD(fresh, lr=0.1, policy=policy, **options)
    messages = said(optimizer, through_a_file(sgd.state_dict()))
    (text,) = [text for text in messages if "another optimizer trained on" in text]
    due = Triangular(step_size_up=4).at(1)
    for words in (
        f"lr={0.1 * due.lr_factor}",
        f"lr={0.1 * due.lr_factor * 0.5}",
        "step 1",
        "groups [0, 1]",
        "reschedule(",
    ):
        assert words in text
    assert len(messages) == 1 + (policy == Triangular(step_size_up=5))
    factor = (policy or Triangular(step_size_up=4)).at(1).lr_factor
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == [0.1 * factor] * 2


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("momentum", [torch.tensor(1), np.float32(0.5)], ids=["an int tensor", "numpy's"])
def test_a_momentum_of_another_kind_of_number_is_compared(momentum, capturable):
    """In a checkpoint it is a number like others: it is not the schedule's, which is used, with a warning."""
    policy = Triangular(step_size_up=4)
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, policy=policy, capturable=capturable)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["momentum"] = momentum
    (text,) = said(optimizer, saved)
    assert f"momentum={float(momentum)}" in text
    assert float(optimizer.param_groups[0]["momentum"]) == pytest.approx(policy.at(0).momentum)


@pytest.mark.parametrize("momentum", [0.5, np.float32(0.5)])
def test_numpys_momentum_is_taken_by_the_device(momentum):
    """A momentum edited by hand goes into the tensor, be it Python's number or numpy's."""
    optimizer = CyclicSGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9, policy=OneCycle(20))
    saved = optimizer.state_dict()
    saved["param_groups"][0].update(momentum=momentum, momentum_edited_by_hand=True)
    taking = CyclicSGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9, policy=OneCycle(20), capturable=True)
    assert said(taking, saved) == []
    assert float(taking.param_groups[0]["momentum"]) == 0.5


# -- checkpoints of an earlier version, as they were written

OLD_ONE_CYCLE = (
    '{"name": "OneCycle", "fields": {"total_steps": 20, "pct_start": 0.3, "anneal_strategy": "cos", '
    '"cycle_momentum": true, "base_momentum": 0.85, "max_momentum": 0.95, "div_factor": 25.0, '
    '"final_div_factor": 10000.0, "three_phase": false}}'
)
OLD_PLATEAU = (
    '{"name": "Plateau", "fields": {"mode": "min", "factor": 0.5, "patience": 0, "threshold": 0.0001, '
    '"threshold_mode": "rel", "cooldown": 0, "min_factor": 0.0, "eps": 1e-08}}'
)
OLD_SEQUENCE = (
    '{"name": "Sequential", "fields": {"policies": [{"name": "LinearRamp", "fields": {"total_iters": 5, '
    '"start_factor": 0.25, "end_factor": 1.0}}, {"name": "CosineRestarts", "fields": {"t_0": 4, "t_mult": 1, '
    '"min_factor": 0.0}}], "milestones": [5]}}'
)


def written(policy, momentum, lr_factor, **state):
    """Two groups after 5 steps."""
    flags = {"nesterov": False, "maximize": False, "foreach": None, "differentiable": False, "fused": None}
    buffers = [[-0.5, -0.25, 1.25], [0.5, 1.25, 0.0]]
    return {
        "state": {
            i: {"momentum_buffer": torch.tensor(buffer, dtype=torch.float64)} for i, buffer in enumerate(buffers)
        },
        "param_groups": [
            {
                "lr": peak * lr_factor,
                "momentum": momentum,
                "dampening": 0,
                "weight_decay": 0,
                **flags,
                "max_lr": peak,
                "schedule_step": 5,
                "policy": policy,
                **state,
                "params": [i],
            }
            for i, peak in enumerate((0.1, 0.3))
        ],
    }


# Sequential has had no restart, and CosineRestarts no gamma.
SEQUENCE = Sequential([LinearRamp(5, 0.25), CosineRestarts(4)], [5])

EARLIER = {
    "Sequential": (
        SEQUENCE,
        written(OLD_SEQUENCE, 0.9, 1.0),
        [(0.1 * SEQUENCE.at(step).lr_factor, 0.9) for step in (6, 7)],
    ),
    "OneCycle": (
        OneCycle(total_steps=20),
        written(OLD_ONE_CYCLE, 0.85, 1.0),
        [
            (0.1 * OneCycle(total_steps=20).at(step).lr_factor, OneCycle(total_steps=20).at(step).momentum)
            for step in (6, 7)
        ],
    ),
    "Plateau": (
        Plateau(factor=0.5, patience=0),
        written(
            OLD_PLATEAU,
            0.9,
            0.0625,
            policy_state={"mode": "min", "best": 1.0, "num_bad_reports": 0, "cooldown_counter": 0, "lr_factor": 0.0625},
        ),
        [(0.00625, 0.9), (0.003125, 0.9)],
    ),
}


@pytest.mark.parametrize("where", ["host", "device", "no policy"])
@pytest.mark.parametrize("kind", EARLIER)
def test_checkpoints_of_an_earlier_version_resume(kind, where):
    """Without a word, at their step, with their peaks, buffers and reports."""
    policy, saved, expected = EARLIER[kind]
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    options = {"policy": None if where == "no policy" else policy, "capturable": where == "device"}
    groups = [{"params": [param], "lr": peak} for param, peak in zip(params, (0.1, 0.3), strict=True)]
    optimizer = CyclicSGD(groups, momentum=0.9, **options)
    assert said(optimizer, saved) == []
    assert optimizer.policies == [policy] * 2
    first = saved["param_groups"][0]
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    for lr, momentum in expected:
        optimizer.step()
        if kind == "Plateau" and lr != 0.00625:
            optimizer.report(2.0)
        shown = optimizer.state_dict()["param_groups"]
        assert [group["lr"] for group in shown] == pytest.approx([lr, 3 * lr])
        assert [group["momentum"] for group in shown] == pytest.approx([momentum] * 2)
    assert [group["schedule_step"] for group in shown] == [7, 7]
    assert [group["max_lr"] for group in shown] == [0.1, 0.3]
    buffer = torch.tensor([-0.5, -0.25, 1.25], dtype=torch.float64)
    weight = torch.ones(3, dtype=torch.float64)
    for lr, momentum in [(first["lr"], first["momentum"]), expected[0]]:
        buffer = momentum * buffer + 0.5
        weight -= lr * buffer
    tolerance = 1e-6 if where == "device" else 1e-12
    torch.testing.assert_close(params[0].detach(), weight, rtol=tolerance, atol=tolerance)
