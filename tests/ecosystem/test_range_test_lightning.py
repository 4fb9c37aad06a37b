"""The range test of a Lightning module, as docs/range_test_recipes.md has it."""

import pytest
from frameworks import LOSS, framework, same_bits, small_loader, small_model
from left_behind import falls_and_diverges, lr_range_test
from readme import run_snippet

from cyclic_optim import CyclicSGD, supervised_step

lightning = framework("lightning")
pytestmark = [
    pytest.mark.ecosystem,
    # Lightning's own use of what torch deprecates, and its advice.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
#: What the recipe says of ``self.log`` outside of a trainer.
LOGS_NOTHING = r"You are trying to `self.log\(\)` but the `self.trainer` reference is not registered"

TOTAL = 64  # 2 epochs of 32 batches


def run(folder, range_test=lr_range_test):
    options = {
        "accelerator": "cpu",
        "logger": False,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    given = {"lightning": lightning, "CyclicSGD": CyclicSGD, "supervised_step": supervised_step}
    return run_snippet(
        __file__,
        model=small_model(),
        loader=small_loader(512, 16),
        loss_fn=LOSS,
        epochs=2,
        options=options,
        total_steps=TOTAL,
        lr_range_test=range_test,
        **given,
    )


def test_the_range_is_sane_and_training_goes_on_in_it(tmp_path):
    """``training_step`` is tested as it is, with a warning that it logs nothing; ``fit`` then uses the optimizer that
    was tested to the end of its cycle, and ends in the same bits as without the test."""
    with pytest.warns(UserWarning, match=LOGS_NOTHING):
        after = run(tmp_path)
    found, optimizer, trainer = after["found"], after["optimizer"], after["trainer"]
    assert falls_and_diverges(found, 1e-3, 1)
    assert trainer.optimizers == [optimizer]
    assert optimizer.param_groups[0]["schedule_step"] == TOTAL
    assert optimizer.param_groups[0]["max_lr"] == found.suggest()[1]
    assert trainer.callback_metrics["loss"] < 0.3
    assert same_bits(after["model"], run(tmp_path, range_test=lambda *args: found)["model"])
