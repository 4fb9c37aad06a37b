"""Parameters held outside the module, for torch.func."""

import torch
from frameworks import LOSS, bare_loop, small_loader, small_model
from readme import run_snippet
from torch.func import functional_call

from cyclic_optim import CyclicSGD, OneCycle


def test_it_equals_the_ordinary_run():
    """Gradients from ``torch.func.grad`` of a ``functional_call`` train as ``backward`` on the module does."""
    policy = OneCycle(total_steps=8)
    names = {"torch": torch, "functional_call": functional_call, "CyclicSGD": CyclicSGD}
    after = run_snippet(__file__, model=small_model(), loader=small_loader(), loss_fn=LOSS, policy=policy, **names)
    alone = small_model()
    optimizer = bare_loop(alone, small_loader(), policy)
    for name, param in alone.named_parameters():
        torch.testing.assert_close(after["params"][name], param.detach())
    assert after["optimizer"].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
