"""The range test between accelerate's ``prepare`` and training, as docs/range_test_recipes.md has it."""

import pytest
import torch
from frameworks import LOSS, framework, small_data, small_model
from left_behind import falls_and_diverges, lr_range_test, same
from readme import run_snippet

from cyclic_optim import CyclicSGD, supervised_step

accelerate = framework("accelerate")
pytestmark = pytest.mark.ecosystem

TOTAL = 64  # 2 epochs of 32 batches


def run(range_test=lr_range_test, workers=0):
    torch.manual_seed(0)
    configuration = accelerate.DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    data = torch.utils.data.TensorDataset(*small_data(512))
    loader = torch.utils.data.DataLoader(
        data, batch_size=16, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    after = run_snippet(
        __file__,
        accelerator=accelerator,
        model=small_model(),
        loader=loader,
        loss_fn=LOSS,
        total_steps=TOTAL,
        CyclicSGD=CyclicSGD,
        supervised_step=supervised_step,
        lr_range_test=range_test,
    )
    for _ in range(2):
        for inputs, classes in after["loader"]:
            loss = LOSS(after["model"](inputs), classes)
            accelerator.backward(loss)
            after["prepared"].step()
            after["prepared"].zero_grad()
    return {**after, "loss": loss.item()}


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_as_without_the_test(workers):
    """The range is sane; after the test the loader has the epochs and batches that it would have had, and the training
    ends in the same bits. So it is with workers that persist."""
    after = run(workers=workers)
    found = after["found"]
    assert falls_and_diverges(found, 1e-3, 1)
    assert after["optimizer"].param_groups[0]["schedule_step"] == TOTAL
    assert after["loss"] < 0.3
    untouched = run(range_test=lambda *args: found, workers=workers)
    assert same(after["model"].state_dict(), untouched["model"].state_dict())


def test_no_loader_counts_as_active():
    """After the test accelerate is as outside of a loader, as the test's iteration, which it cut short, has ended."""

    def checked(*args):
        found = lr_range_test(*args)
        assert not accelerate.state.GradientState().in_dataloader
        return found

    run(range_test=checked)
