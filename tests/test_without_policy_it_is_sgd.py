"""With ``policy=None`` CyclicSGD is torch.optim.SGD, to the bit."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import IMPLEMENTATIONS, flat, implementations, problems, sgd_options
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedules

from cyclic_optim import Constant, CyclicSGD


def run(cls, problem, steps, **options):
    params = problem.params()
    optimizer = cls([{"params": group} for group in params], **options)
    for step in range(steps):
        problem.set_grads(params, step)
        optimizer.step()
    return flat(params), optimizer


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(problem=problems(), options=sgd_options(), implementation=implementations(), steps=st.integers(0, 4))
def test_same_weights_same_groups_same_state(problem, options, implementation, steps):
    """Any flags and gradients give the weights, the param groups and the state dict that SGD gives."""
    if implementation.get("fused"):
        problem = replace(problem, absent=0.0)  # torch's fused path raises on late gradients
    theirs, sgd = run(SGD, problem, steps, **options, **implementation)
    ours, cyclic = run(CyclicSGD, problem, steps, **options, **implementation)
    assert all(map(torch.equal, ours, theirs))
    assert same(cyclic.state_dict(), sgd.state_dict())
    assert [list(group) for group in cyclic.param_groups] == [list(group) for group in sgd.param_groups]
    assert repr(cyclic) == repr(sgd).replace("SGD", "CyclicSGD", 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
def test_same_weights_under_compile(implementation):
    """torch.compile of ``step`` gives the weights that the compiled SGD.step gives."""
    weights = []
    for cls in (SGD, CyclicSGD):
        torch._dynamo.reset()
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]
        optimizer = cls(params, lr=0.1, momentum=0.9, **implementation)
        step = torch.compile(optimizer.step, backend="aot_eager")
        for _ in range(3):
            for param in params:
                param.grad = torch.randn_like(param)
            step()
        weights.append(params)
    assert all(map(torch.equal, *weights))


SCHEDULERS = {
    "CosineAnnealingLR": lambda optimizer: torch_schedules.CosineAnnealingLR(optimizer, T_max=7),
    "OneCycleLR": lambda optimizer: torch_schedules.OneCycleLR(optimizer, max_lr=0.1, total_steps=10),
    "CyclicLR": lambda optimizer: torch_schedules.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "LambdaLR": lambda optimizer: torch_schedules.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_torch_scheduler_drives_it(scheduler):
    """torch's schedulers drive it as they drive SGD, without a warning."""
    traces = []
    for cls in (SGD, CyclicSGD):
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = cls([param], lr=0.1, momentum=0.9)
        driver = SCHEDULERS[scheduler](optimizer)
        trace = []
        for _ in range(9):
            param.grad = param.detach().clone()
            optimizer.step()
            driver.step()
            trace.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"], param.tolist()))
        traces.append(trace)
    assert traces[0] == traces[1]


def _parameters():
    return [torch.nn.Parameter(torch.ones(2))]


MISTAKES = {
    "negative lr": lambda cls: cls(_parameters(), lr=-1.0),
    "negative momentum": lambda cls: cls(_parameters(), momentum=-1.0),
    "negative weight_decay": lambda cls: cls(_parameters(), weight_decay=-1.0),
    "lr of two elements": lambda cls: cls(_parameters(), lr=torch.ones(2)),
    "lr of the wrong type": lambda cls: cls(_parameters(), lr="0.1"),
    "nesterov without momentum": lambda cls: cls(_parameters(), nesterov=True),
    "nesterov with dampening": lambda cls: cls(_parameters(), nesterov=True, momentum=0.9, dampening=0.1),
    "fused and foreach": lambda cls: cls(_parameters(), fused=True, foreach=True),
    "fused and differentiable": lambda cls: cls(_parameters(), fused=True, differentiable=True),
    "fused integers": lambda cls: _step(cls([torch.ones(2, dtype=torch.complex64, requires_grad=True)], fused=True)),
    "a bare tensor": lambda cls: cls(torch.ones(2)),
    "no parameters": lambda cls: cls([]),
    "not a tensor": lambda cls: cls([1.0]),
    "a set": lambda cls: cls([{"params": {1}}]),
    "not a leaf": lambda cls: cls([torch.ones(2, requires_grad=True) * 2]),
    "a parameter twice": lambda cls: cls([{"params": p} for p in _parameters() * 2]),
    "an unknown argument": lambda cls: cls(_parameters(), betas=(0.9, 0.99)),
    "another number of groups": lambda cls: cls(_parameters()).load_state_dict({"state": {}, "param_groups": []}),
}


def _step(optimizer):
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    optimizer.step()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_are_those_of_sgd(mistake):
    """A mistake raises the exception, and says the words, that it does with SGD."""
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        MISTAKES[mistake](SGD)
    with pytest.raises(type(theirs.value)) as ours:
        MISTAKES[mistake](CyclicSGD)
    constructor = "SGD.__init__"  # the one place where a message names the class
    assert str(ours.value) == str(theirs.value).replace(constructor, f"Cyclic{constructor}")


@pytest.mark.parametrize("policy", [None, Constant()], ids=["sgd", "policy"])
def test_differentiable_step_carries_gradients(policy):
    """With ``differentiable=True`` autograd goes through the step, to the same gradient as through SGD's."""
    found = []
    for cls in (SGD, functools.partial(CyclicSGD, policy=policy)):
        start = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        param = start.clone()
        param.retain_grad()
        optimizer = cls([param], lr=0.1, differentiable=True)
        param.grad = start.square()
        optimizer.step()
        found.append(torch.autograd.grad(param.sum(), start)[0])
    assert torch.equal(*found)
    assert torch.equal(found[0], 1 - 0.1 * 2 * torch.tensor([1.0, 2.0], dtype=torch.float64))
