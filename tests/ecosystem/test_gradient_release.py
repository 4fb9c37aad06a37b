"""Gradient release: each parameter steps as soon as its gradient is there."""

import torch
from frameworks import LOSS, bare_loop, small_loader, small_model
from hypothesis import given
from readme import run_snippet
from strategies import policies

from cyclic_optim import CyclicSGD, OneCycle


def released(model, policy, loader=None):
    loader = small_loader() if loader is None else loader
    return run_snippet(__file__, model=model, loader=loader, loss_fn=LOSS, policy=policy, CyclicSGD=CyclicSGD)


@given(policies())
def test_it_equals_the_ordinary_run(policy):
    """Weights, momenta and schedules are those of one optimizer stepping after the backward pass, to the bit."""
    model, alone = small_model(), small_model()
    optimizers = released(model, policy)["optimizers"]
    optimizer = bare_loop(alone, small_loader(), policy)
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None
        one, other = optimizers[ours].param_groups[0], optimizer.param_groups[0]
        assert {**one, "params": 0} == {**other, "params": 0}
        assert torch.equal(
            optimizers[ours].state[ours].get("momentum_buffer", torch.zeros(())),
            optimizer.state[theirs].get("momentum_buffer", torch.zeros(())),
        )


def test_tied_weights_step_once_per_backward():
    """A parameter used twice has its one update, with the sum of both gradients."""

    def tied():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            shared = torch.nn.Linear(8, 8)
            return torch.nn.Sequential(shared, torch.nn.Tanh(), shared, torch.nn.Linear(8, 3))

    model, alone, policy = tied(), tied(), OneCycle(total_steps=8)
    released(model, policy)
    bare_loop(alone, small_loader(), policy)
    assert all(map(torch.equal, model.parameters(), alone.parameters()))


def test_a_run_resumes_to_the_bit():
    """The state dicts of all the optimizers are all there is to save."""
    batches, policy = list(small_loader()), OneCycle(total_steps=8)
    model, resumed, alone = small_model(), small_model(), small_model()
    first = released(model, policy, batches[:3])["optimizers"]
    saved = [optimizer.state_dict() for optimizer in first.values()]
    resumed.load_state_dict(model.state_dict())
    second = released(resumed, policy, [])["optimizers"]
    for optimizer, state in zip(second.values(), saved, strict=True):
        optimizer.load_state_dict(state)
    for inputs, classes in batches[3:]:
        LOSS(resumed(inputs), classes).backward()
    bare_loop(alone, batches, policy)
    assert all(map(torch.equal, resumed.parameters(), alone.parameters()))


def test_a_parameter_without_a_gradient_waits():
    """Each optimizer counts its own updates: one that had no gradient stands where it stood."""
    model = small_model()
    optimizers = released(model, OneCycle(total_steps=20))["optimizers"]
    model[2].requires_grad_(False)
    for inputs, classes in small_loader():
        LOSS(model(inputs), classes).backward()
    steps = {name: optimizers[param].param_groups[0]["schedule_step"] for name, param in model.named_parameters()}
    assert steps == {"0.weight": 16, "0.bias": 16, "2.weight": 8, "2.bias": 8}
