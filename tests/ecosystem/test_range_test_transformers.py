"""The range test before transformers.Trainer trains, as docs/range_test_recipes.md has it."""

import pytest
import torch
from frameworks import framework
from left_behind import falls_and_diverges, lr_range_test, same
from readme import run_snippet

from cyclic_optim import CyclicAdamW, supervised_step

transformers = framework("transformers")
pytestmark = pytest.mark.ecosystem

TOTAL = 32  # 2 epochs of 16 updates


def language_model():
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


def sentences():
    """Each word follows from the one before."""
    start = torch.randint(32, (256, 1), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": words, "labels": words} for words in (start + 3 * torch.arange(16)) % 32]


def run(folder, range_test=lr_range_test):
    args = transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    given = {"Trainer": transformers.Trainer, "CyclicAdamW": CyclicAdamW, "supervised_step": supervised_step}
    return run_snippet(
        __file__,
        model=language_model(),
        args=args,
        data=sentences(),
        total_steps=TOTAL,
        lr_range_test=range_test,
        **given,
    )


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """What the recipe leaves."""
    return run(tmp_path_factory.mktemp("trainer"))


def test_the_range_is_sane_for_the_models_own_loss(after):
    """With AdamW in two groups, with and without weight decay, the loss falls and diverges where AdamW's does."""
    assert [group["weight_decay"] for group in after["optimizer"].param_groups] == [0.1, 0.0]
    assert falls_and_diverges(after["found"], 1e-4, 0.1)


def test_trainer_goes_on_in_the_range(after):
    """Both groups follow the cycle to its end, the log has its rates, and the model has learned."""
    optimizer, peak = after["optimizer"], after["found"].suggest()[1]
    log = [line for line in after["trainer"].state.log_history if "loss" in line]
    assert [line["learning_rate"] for line in log] == [
        peak * optimizer.policies[0].at(step).lr_factor for step in range(TOTAL)
    ]
    assert [group["schedule_step"] for group in optimizer.param_groups] == [TOTAL, TOTAL]
    assert log[-1]["loss"] < 0.2 * log[0]["loss"]


def test_trainer_trains_as_without_the_test(after, tmp_path):
    """Order of batches, dropout and weights are to the last bit those of a training that follows no test."""
    untouched = run(tmp_path, range_test=lambda *args: after["found"])
    assert same(after["model"].state_dict(), untouched["model"].state_dict())
