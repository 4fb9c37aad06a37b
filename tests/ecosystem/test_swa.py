"""Averaging weights at the ends of cycles, with torch's AveragedModel."""

import torch
from frameworks import LOSS, small_loader, small_model
from readme import run_snippet
from torch.optim.swa_utils import AveragedModel

from cyclic_optim import CosineRestarts, CyclicSGD


def test_the_average_is_over_the_ends_of_the_cycles():
    """``AveragedModel`` holds the mean of the weights after each cycle's last step."""
    names = {"CyclicSGD": CyclicSGD, "CosineRestarts": CosineRestarts, "AveragedModel": AveragedModel}
    averaged = run_snippet(__file__, model=small_model(), loader=small_loader(), loss_fn=LOSS, **names)["averaged"]
    alone = small_model()
    policy = CosineRestarts(t_0=4)
    optimizer = CyclicSGD(alone.parameters(), lr=0.2, momentum=0.9, policy=policy)
    kept = []
    for inputs, classes in small_loader():
        optimizer.zero_grad()
        LOSS(alone(inputs), classes).backward()
        optimizer.step()
        if optimizer.param_groups[0]["lr"] == 0.2:  # it has just started again
            kept.append([param.detach().clone() for param in alone.parameters()])
    assert len(kept) == averaged.n_averaged == 2
    for mean, *params in zip(averaged.parameters(), *kept, strict=True):
        torch.testing.assert_close(mean, torch.stack(params).mean(0))
