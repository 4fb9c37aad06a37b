"""The passive scheduler reports the optimizer's schedule and moves nothing."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import policies
from torch.optim.lr_scheduler import LRScheduler

from cyclic_optim import CyclicSGD, LambdaPolicy, OneCycle, Plateau, StepDecay
from cyclic_optim.passive import PassiveScheduler

POLICY = OneCycle(total_steps=20)


def two_groups(policy=POLICY):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    return CyclicSGD([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.5}], policy=policy)


def train(optimizer, steps):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, 0.1)
        optimizer.step()


@given(policies(), st.integers(0, 30))
def test_it_reports_rates_when_torchs_schedulers_do(policy, steps):
    """As torch's: after an update ``get_last_lr`` is the rate it used, and once stepped the next one's."""
    optimizer = two_groups(policy)
    scheduler = optimizer.passive_scheduler()
    train(optimizer, steps)
    used = [peak * policy.at(max(0, steps - 1)).lr_factor for peak in (0.1, 0.5)]
    assert scheduler.get_last_lr() == scheduler.get_lr() == used
    scheduler.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert scheduler.get_last_lr() == scheduler.get_lr() == rates
    assert scheduler.last_epoch == steps
    assert scheduler.base_lrs == [0.1, 0.5]
    assert scheduler.state_dict() == {"last_epoch": steps, "_last_lr": rates}


def test_a_rate_edited_by_hand_is_the_rate_that_was_used():
    """What a logger reads right after ``optimizer.step()`` is the rate of that step, whoever chose it."""
    optimizer = two_groups()
    scheduler = optimizer.passive_scheduler()
    for rate in (0.3, 0.7):
        optimizer.param_groups[0]["lr"] = rate
        scheduler.step()
        train(optimizer, 1)
        assert scheduler.get_last_lr()[0] == rate


@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_loop_that_logs_after_the_step_logs_what_torch_logs(lr, capturable):
    """Trainer's order: step, log, scheduler.step; the log is that of SGD with torch's own scheduler."""
    logs = []
    for ours in (True, False):
        param = torch.nn.Parameter(torch.ones(2))
        if ours:
            options = {"capturable": True, "horizon": 9} if capturable else {}
            optimizer = CyclicSGD([param], lr=copy.copy(lr), policy=LambdaPolicy(halving), **options)
            scheduler = optimizer.passive_scheduler()
        else:
            optimizer = torch.optim.SGD([param], lr=1.0)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, halving)
        logs.append([])
        for _ in range(5):
            param.grad = torch.ones(2)
            optimizer.step()
            logs[-1].append(scheduler.get_last_lr())
            scheduler.step()
    assert logs[0] == logs[1]


def halving(step):
    return 0.5**step


def test_it_is_a_scheduler_to_those_who_ask():
    """Frameworks that check the type find an ``LRScheduler`` with its optimizer."""
    optimizer = two_groups()
    scheduler = optimizer.passive_scheduler()
    assert isinstance(scheduler, LRScheduler)
    assert scheduler.optimizer is optimizer


@pytest.mark.parametrize("first", ["scheduler", "optimizer"])
def test_stepping_it_changes_nothing_and_warns_of_nothing(first):
    """A run with it, stepped at will and in any order, equals the run without it; warnings would be errors here."""
    plain, watched = two_groups(), two_groups()
    scheduler = watched.passive_scheduler()
    for _ in range(10):
        train(plain, 1)
        if first == "scheduler":
            scheduler.step()
        train(watched, 1)
        scheduler.step()
        scheduler.step(3)
        scheduler.step(metrics=0.5)
    assert all(
        torch.equal(a, b)
        for one, other in zip(plain.param_groups, watched.param_groups, strict=True)
        for a, b in zip(one.pop("params"), other.pop("params"), strict=True)
    )
    assert plain.param_groups == watched.param_groups


def test_attaching_it_leaves_no_trace():
    """Unlike torch's schedulers it leaves ``optimizer.step``, the groups and the optimizer's attributes alone."""
    optimizer = two_groups()
    attributes, groups = set(vars(optimizer)), copy.deepcopy(optimizer.param_groups)
    optimizer.passive_scheduler()
    assert set(vars(optimizer)) == attributes
    assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in groups]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_its_checkpoint_is_the_optimizers():
    """Loading the optimizer restores what it reports; loading a scheduler's state dict, be it foreign, does nothing."""
    saved = two_groups()
    train(saved, 7)
    loaded = two_groups()
    scheduler = loaded.passive_scheduler()
    loaded.load_state_dict(saved.state_dict())
    scheduler.load_state_dict({"last_epoch": 3, "_last_lr": [9.0], "base_lrs": [9.0]})
    assert scheduler.state_dict() == saved.passive_scheduler().state_dict()
    assert scheduler.last_epoch == 7


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_it_is_copied_with_its_optimizer(again):
    """Copied or pickled beside its optimizer it reports the copy's rates."""
    optimizer = two_groups()
    other, scheduler = again((optimizer, optimizer.passive_scheduler()))
    train(other, 5)
    assert scheduler.optimizer is other
    assert scheduler.last_epoch == 5
    assert optimizer.passive_scheduler().last_epoch == 0


def test_it_follows_reports_and_tensor_rates():
    """A rate that ``report`` lowered, and one held in a tensor, are reported as floats at once."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = CyclicSGD([param], lr=torch.tensor(0.5), policy=Plateau(factor=0.5, patience=0))
    scheduler = optimizer.passive_scheduler()
    optimizer.report(1.0)
    optimizer.report(1.0)
    assert scheduler.get_last_lr() == [0.25]
    assert type(scheduler.get_last_lr()[0]) is float


def test_without_a_policy_it_reports_the_constant_rate():
    """No policy counts no updates; one that comes with a checkpoint is reported from then on."""
    optimizer, saved = two_groups(policy=None), two_groups()
    scheduler = optimizer.passive_scheduler()
    train(optimizer, 2)
    assert (scheduler.get_last_lr(), scheduler.last_epoch) == ([0.1, 0.5], 0)
    train(saved, 3)
    optimizer.load_state_dict(saved.state_dict())
    assert scheduler.state_dict() == saved.passive_scheduler().state_dict()


def test_it_needs_an_optimizer_that_moves_its_own_rates():
    """Over any other optimizer nothing would ever move."""
    with pytest.raises(TypeError, match=r"need an optimizer that owns its schedule, like CyclicSGD, got SGD"):
        PassiveScheduler(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))


def test_a_state_loaded_into_itself_is_no_step():
    """As accelerate does before the first step: the rate told after that step is the one that it used."""
    optimizer = CyclicSGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, policy=StepDecay(1, 0.5))
    scheduler = optimizer.passive_scheduler()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert scheduler.get_last_lr() == [0.1]
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05]
