"""pytorch-lr-finder drives an optimizer without a policy."""

import copy

import pytest
import torch
from frameworks import LOSS, framework, small_loader, small_model
from readme import run_snippet

from cyclic_optim import CyclicSGD

torch_lr_finder = framework("torch_lr_finder")
pytestmark = pytest.mark.ecosystem


def find(optimizer):
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    after = run_snippet(
        __file__,
        LRFinder=torch_lr_finder.LRFinder,
        CyclicSGD=optimizer,
        model=model,
        loader=small_loader(),
        loss_fn=LOSS,
    )
    return after["finder"].history, after["optimizer"], before, model.state_dict()


def test_it_finds_what_it_finds_with_sgd(capsys):
    """The recorded rates and losses are those of ``torch.optim.SGD``, to the bit."""
    history, *_ = find(CyclicSGD)
    expected, *_ = find(torch.optim.SGD)
    assert history == expected
    assert len(history["lr"]) > 10


def test_reset_restores_everything(capsys):
    """After ``reset`` the weights and the optimizer are what they were."""
    _, optimizer, before, after = find(CyclicSGD)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert optimizer.param_groups[0]["lr"] == 1e-5
    assert not optimizer.state
