"""What CyclicSGD does with a policy: the values shown are the values used, and nothing else moves them."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import OwnStep, build, one_param
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_step
from strategies import flat, parameter, policies, problems, sgd_options
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from cyclic_optim import (
    Constant,
    CyclicSGD,
    LambdaPolicy,
    LinearRamp,
    OneCycle,
    Plateau,
    Policy,
    StepDecay,
    Triangular,
    Values,
    native,
)
from cyclic_optim.schedule import enrol, plan
from cyclic_optim.slots import slots_of

pytestmark = pytest.mark.usefixtures("short_tables")

TOLERANCE = {torch.float64: {"rtol": 1e-11, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def shown(optimizer):
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


@given(problem=problems(), policy=policies(), options=sgd_options(), steps=st.integers(1, 6))
def test_values_shown_are_values_used(problem, policy, options, steps):
    """Plain SGD arithmetic with the values read off the groups before each step gives the same weights."""
    params, optimizer = build(problem, policy, **options)
    twins, buffers = problem.params(), [{} for _ in params]
    fixed = {key: options[key] for key in ("dampening", "nesterov", "maximize")}
    for step in range(steps):
        problem.set_grads(params, step)
        problem.set_grads(twins, step)
        for group, twin, buffer in zip(optimizer.param_groups, twins, buffers, strict=True):
            shown = {key: group[key] for key in ("lr", "momentum", "weight_decay")}
            reference_step(twin, buffer, **shown, **fixed)
        optimizer.step()
    for param, twin in zip(flat(params), flat(twins), strict=True):
        torch.testing.assert_close(param, twin, **TOLERANCE[problem.dtype])


@given(problem=problems(), policy=policies(), options=sgd_options(), steps=st.integers(0, 5))
def test_values_are_the_policys(problem, policy, options, steps):
    """After n steps every group shows the rate, momentum and weight decay of ``policy.at(n)``."""
    params, optimizer = build(problem, policy, **options)
    for step in range(steps):
        problem.set_grads(params, step)
        optimizer.step()
    lr_factor, momentum, weight_decay_factor = policy.at(steps)
    decay = options["weight_decay"]
    for group in optimizer.param_groups:
        assert group["schedule_step"] == steps
        assert group["max_lr"] == options["lr"]
        assert group["lr"] == options["lr"] * lr_factor
        if momentum is not None:
            assert group["momentum"] == momentum
        assert group["weight_decay"] == (decay if weight_decay_factor is None else decay * weight_decay_factor)


@given(problem=problems(max_groups=4), policy=policies(), options=sgd_options(), data=st.data())
def test_one_optimizer_of_k_groups_is_k_optimizers(problem, policy, options, data):
    """Groups do not influence each other: each moves as it would alone, at its own peak, to the bit."""
    peaks = [data.draw(st.floats(1e-3, 1.0)) for _ in problem.shapes]
    together, apart = problem.params(), problem.params()
    one = CyclicSGD(
        [{"params": group, "lr": peak} for group, peak in zip(together, peaks, strict=True)], policy=policy, **options
    )
    many = [
        CyclicSGD(group, policy=policy, **(options | {"lr": peak})) for group, peak in zip(apart, peaks, strict=True)
    ]
    for step in range(4):
        problem.set_grads(together, step)
        problem.set_grads(apart, step)
        one.step()
        for optimizer in many:
            optimizer.step()
    assert all(map(torch.equal, flat(together), flat(apart)))
    assert shown(one) == [values for optimizer in many for values in shown(optimizer)]


def test_equals_sgd_with_onecyclelr():
    """The classic loop, less its scheduler, trains to the same weights as SGD with OneCycleLR."""

    def train(make):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
        optimizer, scheduler = make(model)
        x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(2, (16,))
        for _ in range(20):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return model

    def classic(model):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        # One step more than is taken: torch's scheduler raises after its last.
        return optimizer, torch_schedules.OneCycleLR(optimizer, max_lr=0.1, total_steps=21)

    def swapped(model):
        return CyclicSGD(model.parameters(), lr=0.1, momentum=0.9, policy=OneCycle(total_steps=21)), None

    for ours, theirs in zip(train(swapped).parameters(), train(classic).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_step_without_gradients_advances():
    """A step at which no parameter has a gradient moves the schedule as SGD plus scheduler would."""
    param, optimizer = one_param(lr=1.0, policy=StepDecay(step_size=1, gamma=0.5))
    param.grad = None
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state


def test_hand_edit_of_lr_and_momentum_holds_for_one_step():
    """An edit between two steps is used by the next step, and the one after it is the policy's again."""
    param, optimizer = one_param(lr=1.0, policy=Triangular(step_size_up=4))
    optimizer.step()
    before = param.detach().clone()
    group = optimizer.param_groups[0]
    group["lr"], group["momentum"] = 10.0, 0.0
    optimizer.step()
    torch.testing.assert_close(before - param, torch.full((3,), 5.0, dtype=torch.float64))
    assert shown(optimizer) == [Triangular(step_size_up=4).at(2)[:2]]


def test_edit_of_max_lr_lasts():
    """The peak is the user's to edit: from the next values on, all are fractions of the new one."""
    _, optimizer = one_param(lr=1.0, policy=StepDecay(step_size=2, gamma=0.5))
    optimizer.param_groups[0]["max_lr"] = 3.0
    assert optimizer.param_groups[0]["lr"] == 1.0
    seen = []
    for _ in range(3):
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [3.0, 1.5, 1.5]


def test_a_group_added_later_joins_the_cycle_where_it_stands():
    """A new group takes the counter of the others, and its own lr as its peak."""
    _, optimizer = one_param(lr=1.0, policy=Triangular(step_size_up=4))
    optimizer.step()
    late = {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1}
    optimizer.add_param_group(late)
    lr_factor, momentum, _ = Triangular(step_size_up=4).at(1)
    assert shown(optimizer) == [(lr_factor, momentum), (0.1 * lr_factor, momentum)]
    assert [group["schedule_step"] for group in optimizer.param_groups] == [1, 1]
    assert set(late) == {"params", "lr"}


def test_the_default_momentum_is_the_users():
    """The policy's momentum goes into the groups; what groups are given by default stays what the user wrote."""
    _, optimizer = one_param(lr=1.0, momentum=0.0, policy=Triangular(step_size_up=4))
    assert optimizer.defaults["momentum"] == 0
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_a_group_that_cannot_join_is_not_added():
    """Adding a group with an invalid peak raises and leaves the optimizer as it was."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    with pytest.raises(ValueError, match="need lr to be a finite number >= 0, got lr=nan"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": float("nan")})
    assert len(optimizer.param_groups) == 1


def test_param_groups_of_another_optimizer_bring_their_peaks():
    """Building on the groups of a running optimizer keeps their peaks, not the rates in force."""
    _, first = one_param(lr=1.0, policy=Triangular(step_size_up=4))
    second = CyclicSGD(first.param_groups, policy=Triangular(step_size_up=4))
    assert second.param_groups[0]["max_lr"] == 1.0
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("nesterov_momentum", [0.0, 0.9])
def test_nesterov_with_the_policys_momentum(nesterov_momentum):
    """Nesterov needs a momentum, and the policy's own is one."""
    param, optimizer = one_param(
        lr=1.0, momentum=nesterov_momentum, nesterov=True, policy=Triangular(step_size_up=4, max_momentum=0.9)
    )
    optimizer.step()
    torch.testing.assert_close(1 - param, torch.full((3,), 0.1 * (0.5 + 0.9 * 0.5), dtype=torch.float64))


def test_nesterov_with_a_policys_momentum_that_starts_at_0():
    """A policy's momentum counts for Nesterov also where it begins at 0."""

    class Gathering(Policy):
        def at(self, step):
            return Values(1.0, min(step, 9) / 10)

    param, optimizer = one_param(lr=1.0, nesterov=True, policy=Gathering())
    assert shown(optimizer) == [(1.0, 0.0)]
    optimizer.step()
    assert torch.equal(param, torch.full_like(param, 0.5))


def test_nesterov_without_any_momentum_is_refused():
    """Where neither the argument nor the policy gives a momentum, Nesterov is SGD's error."""
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        one_param(lr=1.0, nesterov=True, policy=Constant())


def test_tensor_lr_is_written_in_place_into_a_copy():
    """A tensor lr stays one tensor all along, shows the policy's values, and the caller's is not touched."""
    given_lr = torch.tensor(1.0)
    _, optimizer = one_param(lr=given_lr, policy=StepDecay(step_size=1, gamma=0.5))
    lr = optimizer.param_groups[0]["lr"]
    optimizer.step()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25
    assert given_lr.item() == 1.0


def test_tensor_lr_that_requires_grad_is_refused():
    """A policy overwrites lr, so a learned lr beside it is a contradiction."""
    with pytest.raises(ValueError, match="need lr without requires_grad"):
        one_param(lr=torch.tensor(1.0, requires_grad=True), policy=Constant())


@pytest.mark.parametrize("lr", [torch.tensor(1), torch.tensor([2])], ids=str)
def test_a_tensor_lr_that_cannot_hold_rates_is_refused(lr):
    """An integer tensor would round every rate to a whole number."""
    with pytest.raises(ValueError, match="need lr as a floating-point tensor"):
        one_param(lr=lr, policy=Constant())


def test_a_tensor_lr_that_is_no_dense_number_is_refused():
    """A group's tensor lr of two numbers, sparse or without data is refused with the rule and the tensor."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    for lr in (torch.ones(2), torch.ones(1).to_sparse(), torch.ones((), device="meta")):
        with pytest.raises(ValueError, match=r"need lr as .* a dense tensor with one element, got lr=tensor\("):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr})


def test_an_edited_lr_without_data_is_refused_before_the_update():
    """A rate on the meta device is refused in words by the next step, before anything moves."""
    param, optimizer = one_param(lr=1.0, policy=Constant())
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5, device="meta")
    with pytest.raises(ValueError, match="need lr as a number, or a dense tensor with one element"):
        optimizer.step()
    assert torch.equal(param, torch.ones_like(param))


def test_a_tensor_lr_that_rounds_the_rate_to_0_goes_on():
    """Where the tensor's dtype cannot tell the rate from 0, the schedule still advances, and comes back from there."""
    policy = LambdaPolicy(lambda step: 1.0 if step in (0, 5) else 1e-12)
    _, optimizer = one_param(lr=torch.tensor(1.0, dtype=torch.float16), policy=policy)
    for _ in range(5):
        optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 5
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_closure_is_called_once_with_gradients():
    """A closure runs once per step with gradients enabled, and its loss is returned."""
    param, optimizer = one_param(lr=1.0, policy=Constant())
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert calls == [True]
    assert not param.requires_grad or param.grad is not None


@pytest.mark.parametrize("policy", [None, Triangular(step_size_up=4)], ids=["sgd", "policy"])
def test_hooks_run_once_per_step(policy):
    """Every kind of step hook runs exactly once in every step, also after SGD was used beside it."""
    SGD([torch.nn.Parameter(torch.ones(1))]).step()
    _, optimizer = one_param(lr=1.0, policy=policy)
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    assert sorted(calls) == ["global post", "global pre", "post", "pre"]


HOOKS = {
    "pre": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "post": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "global pre": lambda optimizer, hook: register_optimizer_step_pre_hook(hook),
    "global post": lambda optimizer, hook: register_optimizer_step_post_hook(hook),
}


class WrappedStep(CyclicSGD):
    """A subclass whose step is that of CyclicSGD, decorated."""


CyclicSGD([torch.nn.Parameter(torch.ones(1))])  # whose step torch wraps when the first one is built
WrappedStep.step = torch.no_grad()(CyclicSGD.step)


@pytest.mark.parametrize("cls", [CyclicSGD, OwnStep, WrappedStep])
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_of_any_kind_runs_by_itself(kind, cls):
    """One hook alone runs once per step, from the step after it was registered, also round a subclass's own step."""
    optimizer, calls = cls([torch.nn.Parameter(torch.ones(1))], policy=Constant()), []
    optimizer.step()
    handle = HOOKS[kind](optimizer, lambda *_: calls.append(1))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert calls == [1]


@pytest.mark.parametrize("cls", [SGD, CyclicSGD])
def test_hooks_see_the_call_and_may_change_it(cls):
    """A hook is given what the caller passed, as with SGD, and a pre-hook may pass something else on."""
    optimizer, seen = cls([torch.nn.Parameter(torch.ones(1))], lr=0.1), []
    optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append((len(args), sorted(kwargs))))
    optimizer.step()
    optimizer.step(lambda: 1)
    optimizer.step(closure=lambda: 1)
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "closure": lambda: 7}))
    assert optimizer.step() == 7
    assert seen == [(1, []), (2, []), (1, ["closure"]), (1, ["closure"])]


@pytest.mark.parametrize("cls", [SGD, CyclicSGD])
def test_a_hook_registered_in_the_closure_runs(cls):
    """A post-hook that the closure registers runs after that very step, as with SGD."""
    optimizer, calls = cls([torch.nn.Parameter(torch.ones(1))], lr=0.1), []
    optimizer.step(lambda: optimizer.register_step_post_hook(lambda *_: calls.append(1)) and None)
    assert calls == [1]


@pytest.mark.parametrize("policy", [None, Constant()], ids=str)
def test_a_closure_given_by_name_is_called(policy):
    """``step(closure=...)`` returns the closure's loss, hooks or not."""
    _, optimizer = one_param(lr=1.0, policy=policy)
    assert optimizer.step(closure=lambda: 7) == 7


@pytest.mark.filterwarnings("ignore:.*Profiler clears events at the end of each cycle")  # said by some torch, once
def test_profiler_sees_one_range_per_step():
    """The profiler shows each step once, under the class's own name."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.step()
    names = [event.name for event in profile.events() if "Optimizer.step" in event.name]
    assert names == ["Optimizer.step#CyclicSGD.step"] * 2


def test_a_dry_run_creates_state_and_moves_nothing():
    """A step before which every lr was set to 0 from outside leaves weights and schedule alone."""
    param, optimizer = one_param(lr=1.0, weight_decay=0.1, policy=Triangular(step_size_up=4))
    group = optimizer.param_groups[0]
    param.grad.zero_()
    group["lr"] = 0.0
    optimizer.step()
    assert torch.equal(param, torch.ones_like(param))
    assert group["schedule_step"] == 0
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.zeros_like(param))


def test_after_a_dry_run_the_rates_are_the_policys_again():
    """The zeros of a dry run are gone after it, also where nobody puts the old rates back."""
    param, optimizer = one_param(lr=1.0, policy=Constant())
    optimizer.param_groups[0]["lr"] = 0.0
    param.grad.zero_()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    param.grad.fill_(0.5)
    optimizer.step()
    assert torch.equal(param, torch.full_like(param, 0.5))
    assert optimizer.param_groups[0]["schedule_step"] == 1


def test_a_tensor_lr_that_is_replaced_by_0_makes_a_dry_run_too():
    """As distributed checkpointing does it: the weights are left alone, and the policy's tensor is back afterwards."""
    param, optimizer = one_param(lr=torch.tensor(1.0), policy=Constant())
    group, ours = optimizer.param_groups[0], optimizer.param_groups[0]["lr"]
    group["lr"] = torch.tensor(0.0)
    param.grad.zero_()
    optimizer.step()
    assert torch.equal(param, torch.ones_like(param))
    assert (group["schedule_step"], group["lr"]) == (0, ours)
    assert ours.item() == 1.0


@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=str)
def test_a_rate_of_0_by_hand_is_a_rate_like_any_other(lr):
    """A user's own warm-up from 0: with real gradients the step counts, and momentum gathers as in SGD."""
    param, optimizer = one_param(lr=lr, momentum=0.9, weight_decay=0.1, policy=Constant())
    twin = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    reference = SGD([twin], lr=1.0, momentum=0.9, weight_decay=0.1)
    for rate in (0.0, 0.5, 1.0):
        if isinstance(lr, torch.Tensor):
            optimizer.param_groups[0]["lr"].fill_(rate)
        else:
            optimizer.param_groups[0]["lr"] = rate
        reference.param_groups[0]["lr"] = rate
        param.grad, twin.grad = torch.full_like(param, 0.5), torch.full_like(twin, 0.5)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(param, twin)
    assert optimizer.param_groups[0]["schedule_step"] == 3


def test_the_dry_run_of_a_policy_that_has_reached_0_counts_nothing():
    """Without momentum there is never any state: the hidden step comes again and again, and moves no clock."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(3, 2)
    optimizer = CyclicSGD(model.parameters(), lr=1.0, policy=LinearRamp(2, start_factor=1.0, end_factor=0.0))
    for _ in range(4):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    assert [get_optimizer_state_dict(model, optimizer)["param_groups"][0]["schedule_step"] for _ in range(3)] == [4] * 3


FRESH = {
    "a policy": lambda params: CyclicSGD(params, lr=1.0, momentum=0.9, weight_decay=0.1, policy=Triangular(4)),
    "no momentum": lambda params: CyclicSGD(params, lr=1.0, policy=StepDecay(2)),
    "a rate of 0 at first": lambda params: CyclicSGD(params, lr=1.0, momentum=0.9, policy=LinearRamp(9, 0.0)),
    "no policy": lambda params: CyclicSGD(params, lr=1.0, momentum=0.9),  # SGD's buffers gather weight decay
    "tensor lr": lambda params: CyclicSGD(params, lr=torch.tensor(1.0), momentum=0.9, policy=Triangular(4)),
    "capturable": lambda params: CyclicSGD(params, lr=1.0, momentum=0.9, policy=Triangular(4), capturable=True),
    "capturable, no momentum": lambda params: CyclicSGD(params, lr=1.0, policy=StepDecay(2), capturable=True),
    "reports": lambda params: CyclicSGD(params, lr=1.0, momentum=0.9, policy=Plateau()),
}

#: What two groups have of their own.
GROUPS = {
    "alike": ({}, {}),
    "one at rest": ({}, {"lr": 0.0}),
    "one whose policy is at 0": ({}, {"policy": LinearRamp(9, start_factor=0.0)}),
    "one without a policy": ({}, {"policy": None, "lr": 0.5}),
    "one at rest without a policy": ({}, {"policy": None, "lr": 0}),
    "one edited by hand": ({}, {}),
}


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("fresh", FRESH)
def test_asking_for_a_distributed_checkpoint_leaves_no_trace(fresh, groups, flatten):
    """Asked before the first step and after some, training ends with the weights, rates and clocks of one not asked."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def train(is_asked):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
        own = GROUPS[groups]
        optimizer = FRESH[fresh](
            [{"params": part.parameters(), **group} for part, group in zip(model, own, strict=True)]
        )
        if groups == "one edited by hand":
            optimizer.param_groups[1]["lr"] = 0.25
        for step in range(6):
            if is_asked and step % 2 == 0:
                for _ in range(2):
                    get_optimizer_state_dict(model, optimizer, options=options)
            for param in model.parameters():
                param.grad = torch.full_like(param, 1.0 / (1 + step))
            optimizer.step()
            optimizer.zero_grad()
        values = [[group[key] for key in ("lr", "momentum")] for group in optimizer.param_groups]
        clocks = [group.get("schedule_step") for group in optimizer.param_groups]
        return repr((values, clocks, list(model.parameters())))

    assert train(True) == train(False)


@pytest.mark.parametrize(
    ("rates", "gradients", "counted"),
    [
        ((0.0, 0.0), (0.0, 0.0), 0),  # the dry run
        ((0.0, 0.0), (0.0, 0.5), 1),
        ((0.0, 0.5), (0.0, 0.0), 1),
        ((0.0, None), (0.0, 0.0), 1),  # None: left alone
        ((None, None), (0.0, 0.0), 1),
        ((0.0, 0.0), (None, None), 1),  # None: there is none
        ((0.0, 0.0), (None, 0.0), 0),
    ],
)
@pytest.mark.parametrize("capturable", [False, True])
def test_only_the_full_signature_is_a_dry_run(rates, gradients, counted, capturable):
    """Every rate set to 0 from outside, every gradient 0, no state: whatever lacks a part of it is a step."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = CyclicSGD([{"params": [param]} for param in params], lr=1.0, policy=Constant(), capturable=capturable)
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = None if gradient is None else torch.full_like(param, gradient)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate is not None:
            group["lr"] = rate
    optimizer.step()
    assert [int(group["schedule_step"]) for group in optimizer.param_groups] == [counted] * 2
    assert [float(group["lr"]) for group in optimizer.param_groups] == [1.0, 1.0]


def test_an_empty_parameter_makes_no_dry_run():
    """Under a policy that starts at a rate of 0, gradients without elements are no zeros: the step counts."""
    param = torch.nn.Parameter(torch.ones(0))
    optimizer = CyclicSGD([param], lr=1.0, policy=LinearRamp(4, start_factor=0.0))
    param.grad = torch.ones(0)
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 1


@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=str)
def test_a_first_update_of_zeros_at_a_rate_of_zero_counts(lr):
    """Gradients that are all 0 make no dry run of a step whose rate of 0 nobody but the policy has written."""
    param, optimizer = one_param(lr=lr, policy=LinearRamp(4, start_factor=0.0))
    param.grad.zero_()
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 1


def test_a_rate_of_zero_from_the_policy_is_no_dry_run():
    """Where the policy itself says 0, the step counts and momentum gathers."""
    param, optimizer = one_param(lr=1.0, momentum=0.9, policy=LambdaPolicy(lambda step: min(step, 1)))
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 1
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)


@pytest.mark.parametrize("policy", [Triangular(step_size_up=4), LinearRamp(10, start_factor=0.0)], ids=str)
@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=str)
def test_distributed_checkpointing_of_a_fresh_optimizer_changes_nothing(policy, lr):
    """get_optimizer_state_dict, which runs a hidden step, leaves weights, peaks, rates and counter as they were."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = CyclicSGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.1, policy=policy)
    values = copy.deepcopy(shown(optimizer))
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["param_groups"][0]["schedule_step"] == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert shown(optimizer) == values
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())


def _cliff(step):
    if step == 2:
        raise ZeroDivisionError("the cliff")
    return 1.0


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (_cliff, ZeroDivisionError, "the cliff"),
        (lambda step: 1.0 if step < 2 else float("nan"), ValueError, r"got fn\(2\)=nan"),
        (lambda step: 1.0 if step < 2 else -1.0, ValueError, r"got fn\(2\)=-1.0"),
        (lambda step: 1.0 if step < 2 else None, ValueError, r"got fn\(2\)=None"),
    ],
)
def test_a_failing_policy_leaves_the_optimizer_as_it_was(fn, error, message):
    """Where the policy has no value for the next step, the step raises and nothing has moved."""
    param, optimizer = one_param(lr=1.0, momentum=0.9, policy=LambdaPolicy(fn))
    optimizer.step()
    before = copy.deepcopy((param, optimizer.state_dict()))
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(param, before[0])
    assert repr(optimizer.state_dict()) == repr(before[1])


class Broken(Policy):
    def __init__(self, lr_factor, momentum):
        self.answer = lr_factor, momentum

    def at(self, step):
        return Values(1.0, 0.5) if step == 0 else self.answer


@pytest.mark.parametrize("answer", [(float("inf"), 0.5), (-1.0, 0.5), (1.0, -0.1), (1.0, float("nan"))])
def test_a_policy_of_ones_own_is_checked(answer):
    """What a user's policy returns is held to the same rules: finite, not negative."""
    param, optimizer = one_param(lr=1.0, policy=Broken(*answer))
    with pytest.raises(ValueError, match=r"need (lr_factor|momentum) to be a finite number >= 0.* at step 1 from"):
        optimizer.step()
    assert torch.equal(param, torch.ones_like(param))


def test_an_infinite_momentum_is_refused():
    """A user's policy that asks for an infinite momentum gets an error, and nothing moves."""
    param, optimizer = one_param(lr=1.0, policy=Broken(1.0, float("inf")))
    with pytest.raises(ValueError, match="need momentum to be a finite number >= 0, got momentum=inf at step 1"):
        optimizer.step()
    assert torch.equal(param, torch.ones_like(param))


def test_numbers_of_another_kind_become_plain():
    """numpy's numbers, from a policy of one's own or an edit of max_lr, end up as Python's in groups and checkpoint."""

    class Numpys(Policy):
        def at(self, step):
            return np.float64(0.5), np.float32(0.25)

    _, optimizer = one_param(lr=1.0, policy=Numpys())
    optimizer.param_groups[0]["max_lr"] = np.float64(2.0)
    optimizer.step()
    group = optimizer.param_groups[0]
    assert [type(group[key]) for key in ("lr", "momentum", "max_lr")] == [float] * 3
    assert (group["lr"], group["momentum"], group["max_lr"]) == (1.0, 0.25, 2.0)


def test_a_factor_that_is_no_float_may_leave_momentum_alone():
    """A user's policy may answer (1, None): the rate is a float, and momentum stays the user's."""
    _, optimizer = one_param(lr=0.5, momentum=0.3, policy=Broken(1, None))
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.7
    optimizer.step()
    assert shown(optimizer) == [(0.5, 0.7)]


def test_no_step_prints_the_policy(monkeypatch):
    """Only an error prints the policy, which would take longer than the rest of a step."""
    monkeypatch.setattr(native, "compiled", None)
    printed = []
    monkeypatch.setattr(Broken, "__repr__", lambda self: printed.append(self) or "Broken()")
    for answer in ((0.5, None), (0.5, 0.5), (0.0, 0.0)):
        _, optimizer = one_param(lr=1.0, policy=Broken(*answer))
        optimizer.step()
    assert not printed


def test_a_policy_that_returns_no_pair_says_so():
    """A bare number in place of (lr_factor, momentum) is an error with the rule in it."""

    class Bare(Policy):
        def at(self, step):
            return 0.5

    with pytest.raises(TypeError, match=r"need at\(\) to return \(lr_factor, momentum\), got 0.5"):
        one_param(lr=1.0, policy=Bare())


def test_a_rate_beyond_floats_is_refused():
    """A peak times a factor that overflows is an error, not an infinite rate."""
    with pytest.raises(ValueError, match=r"need max_lr \* lr_factor to be a number that lr can hold"):
        one_param(lr=1e308, policy=LambdaPolicy(lambda step: 10.0))


def test_a_group_without_parameters_holds_what_floats_do():
    """Where no parameter's dtype bounds the rates, they may be as high as a float goes."""
    optimizer = CyclicSGD([{"params": [], "lr": 1e300}], policy=Constant())
    assert optimizer.param_groups[0]["lr"] == 1e300


def test_a_schedule_needs_groups_with_lr_alone():
    """Of param groups a schedule asks for nothing but lr: neither parameters nor momentum."""
    group = {"lr": 1e300}
    enrol(group, StepDecay(step_size=1, gamma=0.5), [], slots_of({}))
    assert (group["schedule_step"], group["lr"], group["max_lr"]) == (0, 1e300, 1e300)
    assert plan(group, 1, slots_of({})).lr == 5e299


def test_an_invalid_peak_is_refused_before_the_update():
    """An edit of max_lr to nonsense raises at the next step, before anything moves."""
    param, optimizer = one_param(lr=1.0, policy=Constant())
    optimizer.param_groups[0]["max_lr"] = float("nan")
    with pytest.raises(ValueError, match="need max_lr to be a finite number >= 0, got max_lr=nan"):
        optimizer.step()
    assert torch.equal(param, torch.ones_like(param))


def test_policy_and_scheduler_together_warn_once():
    """A policy beside an outside scheduler gets one warning that both write lr; either alone gets none."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    scheduler = torch_schedules.StepLR(optimizer, step_size=1)
    with pytest.warns(UserWarning, match="both write lr") as caught:
        optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        optimizer.step()


def test_a_scheduler_is_noticed_by_what_it_writes():
    """After pickling, which undoes the scheduler's mark on step, its writing gives it away."""
    _, optimizer = one_param(lr=1.0, policy=Constant())
    torch_schedules.ExponentialLR(optimizer, gamma=0.5)
    twin = pickle.loads(pickle.dumps(optimizer))
    twin.param_groups[0]["lr"] = 0.5
    with pytest.warns(UserWarning, match="both write lr"):
        twin.step()


def test_plateau_follows_reported_metrics():
    """``report`` lowers the rate at once when patience runs out, and not before; NaN is no improvement."""
    _, optimizer = one_param(lr=1.0, policy=Plateau(factor=0.5, patience=1))
    seen = []
    for metric in (1.0, 1.0, float("nan"), 0.5, torch.tensor(0.5), 0.5):
        optimizer.report(metric)
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("policy", [None, Constant()])
def test_report_needs_a_policy_that_listens(policy):
    """Reporting to an optimizer that does not listen is an error, not a no-op."""
    _, optimizer = one_param(lr=1.0, policy=policy)
    with pytest.raises(TypeError, match="need a policy that listens to a metric"):
        optimizer.report(1.0)


def test_repr_prints_the_policy():
    """The repr shows the policy as it was written, the peak, the counter and the values in force."""
    _, optimizer = one_param(lr=1.0, policy=StepDecay(step_size=5))
    assert "policy: StepDecay(step_size=5, gamma=0.1)" in repr(optimizer)
    for line in ("    lr: 1.0", "    max_lr: 1.0", "    schedule_step: 0"):
        assert line in repr(optimizer).splitlines()


@pytest.mark.parametrize("policy", [None, StepDecay(step_size=5)])
def test_repr_takes_keys_of_any_kind(policy):
    """Keys of a user's own that cannot be compared with strings are printed among the others."""
    optimizer = CyclicSGD([parameter()], lr=1.0, policy=policy)
    optimizer.param_groups[0].update({3: "three", ("a", 1): "pair"})
    for line in ("    3: three", "    ('a', 1): pair", "    lr: 1.0"):
        assert line in repr(optimizer).splitlines()
    assert ("policy: StepDecay" in repr(optimizer)) == (policy is not None)


@pytest.mark.parametrize("foreach", [False, True])
def test_with_foreach_set_a_policy_gives_sgds_own_bits(foreach):
    """SGD with the same foreach, and the policy's numbers written into its groups, ends with the same weights."""
    weights, policy = [], OneCycle(total_steps=30)
    for is_ours in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 5, dtype=torch.float64)
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "foreach": foreach}
        params = model.parameters()
        optimizer = CyclicSGD(params, policy=policy, **options) if is_ours else torch.optim.SGD(params, **options)
        for step in range(30):
            if not is_ours:
                values = policy.at(step)
                optimizer.param_groups[0].update(lr=0.1 * values.lr_factor, momentum=values.momentum)
            optimizer.zero_grad()
            model(torch.randn(9, 7, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_changing_values_are_not_compiled_in():
    """Under torch.compile, steps at ever new rates and momenta recompile nothing, in step itself or round it."""
    for within in (False, True):
        torch._dynamo.reset()
        param, optimizer = one_param(lr=0.1, foreach=True, policy=Triangular(step_size_up=20))

        def train(optimizer=optimizer, param=param):
            param.grad = 2 * param.detach()
            optimizer.step()

        compiled = torch.compile(train if within else optimizer.step, backend="eager")
        compiled()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(5):
                compiled()


def test_values_are_right_under_compile():
    """Under torch.compile the schedule moves, and the weights are those of the eager step."""
    torch._dynamo.reset()
    weights = []
    for compiled in (False, True):
        param, optimizer = one_param(lr=0.1, foreach=True, policy=Triangular(step_size_up=2))
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(5):
            step()
        assert shown(optimizer) == [(0.1 * Triangular(step_size_up=2).at(5)[0], Triangular(step_size_up=2).at(5)[1])]
        weights.append(param)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("lr", float("nan"), ValueError),
        ("lr", float("inf"), ValueError),
        ("lr", -1.0, ValueError),
        ("lr", "0.1", TypeError),
        ("lr", True, TypeError),
        ("lr", torch.tensor(float("nan")), ValueError),
        ("momentum", float("nan"), ValueError),
        ("momentum", -0.5, ValueError),
        ("momentum", None, TypeError),
        ("weight_decay", float("inf"), ValueError),
        ("weight_decay", -1, ValueError),
        ("dampening", float("nan"), ValueError),
        ("lr", 10**400, ValueError),
        ("policy", OneCycle, TypeError),
        ("policy", lambda step: 1.0, TypeError),
        ("policy", "one_cycle", TypeError),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_bad_arguments_name_rule_and_value(argument, value, error):
    """With a policy every number must be finite and in range, and the message names argument and value."""
    arguments = {"lr": 0.1, "policy": Constant()} | {argument: value}
    with pytest.raises(error, match=rf"need (0 <= )?{argument}.*got {argument}="):
        CyclicSGD([torch.nn.Parameter(torch.ones(1))], **arguments)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"weight_decay": float("nan")}, "need weight_decay to be a finite number"),
        ({"momentum": "x"}, "need momentum to be a number"),
        ({"nesterov": "yes"}, "need nesterov to be a bool"),
        ({"fused": True, "foreach": True}, "need at most one of fused and foreach"),
    ],
    ids=str,
)
def test_a_groups_own_bad_arguments_are_refused(group, message):
    """What a param group sets for itself is held to the same rules."""
    with pytest.raises((ValueError, TypeError), match=message):
        CyclicSGD([{"params": [torch.nn.Parameter(torch.ones(1))], **group}], lr=0.1, policy=Constant())


def test_an_uncalled_policy_says_to_call_it():
    """Passing the class instead of an instance, or a bare function, says what to write."""
    param = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r"pass an instance, policy=OneCycle\(total_steps=len\(loader\) \* epochs\)"):
        CyclicSGD([param], policy=OneCycle)
    with pytest.raises(TypeError, match="wrap a function of the step in LambdaPolicy"):
        CyclicSGD([param], policy=lambda step: 1.0)
