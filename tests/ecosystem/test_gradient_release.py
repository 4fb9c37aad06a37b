"""Gradient release: each parameter steps as soon as its gradient is there."""

import torch
from frameworks import LOSS, bare_loop, small_loader, small_model
from hypothesis import given
from readme import run_snippet
from strategies import policies

from cyclic_optim import CyclicSGD, OneCycle


def released(model, policy, loader=None):
    loader = loader or small_loader()
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
