"""transformers.Trainer takes the optimizer with its passive scheduler."""

import pytest
import torch
from frameworks import LOSS, LR, WatchedSGD, framework, promised, same_bits, small_data, small_model
from readme import run_snippet

from cyclic_optim import OneCycle

transformers = framework("transformers")
pytestmark = pytest.mark.ecosystem

STEPS = 12  # 3 epochs of 4 updates
POLICY = OneCycle(total_steps=STEPS)


class Model(torch.nn.Module):
    """As Trainer wants a model to be."""

    def __init__(self):
        super().__init__()
        self.body = small_model()

    def forward(self, inputs, labels):
        logits = self.body(inputs)
        return {"loss": LOSS(logits, labels), "logits": logits}


def train(folder, checkpoint=None, **options):
    data = [{"inputs": x, "labels": y} for x, y in zip(*small_data(), strict=True)]
    args = transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=3,
        logging_steps=1,
        save_steps=5,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"per_device_train_batch_size": 16, **options},
    )
    given = {"Trainer": transformers.Trainer, "CyclicSGD": WatchedSGD}
    return run_snippet(__file__, model=Model(), data=data, args=args, policy=POLICY, checkpoint=checkpoint, **given)


@pytest.mark.parametrize("options", [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}])
def test_the_schedule_is_followed_and_logged(tmp_path, options):
    """Every update uses the policy's values, with accumulation too, and the log holds the rate of each, as torch's."""
    after = train(tmp_path, **options)
    optimizer, trainer = after["optimizer"], after["trainer"]
    assert optimizer.witness.used == promised(POLICY, STEPS)
    logged = {line["step"]: line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line}
    assert logged == {step: LR * POLICY.at(step - 1).lr_factor for step in range(1, STEPS + 1)}


def test_a_run_resumes_to_the_bit(tmp_path):
    """Resumed from a checkpoint in the middle of an epoch, the run ends in the same bits as without the break."""
    whole = train(tmp_path)
    resumed = train(tmp_path, checkpoint=tmp_path / "checkpoint-5")
    assert len(resumed["optimizer"].witness.used) == STEPS - 5
    assert resumed["optimizer"].witness.used == whole["optimizer"].witness.used[5:]
    assert same_bits(resumed["model"], whole["model"])
    assert same_bits(resumed["optimizer"], whole["optimizer"])
