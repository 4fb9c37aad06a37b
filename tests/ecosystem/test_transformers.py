"""transformers.Trainer takes the optimizer with its passive scheduler."""

import pytest
import torch
from frameworks import LOSS, LR, Witness, framework, promised, same_bits, small_data, small_model
from readme import MOVES, run_snippet

from cyclic_optim import CyclicSGD, OneCycle
from cyclic_optim.policies import POLICIES

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


class WatchedSGD(CyclicSGD):
    """Notes what each step used."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.witness = Witness(self)


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


@pytest.mark.parametrize("w", [0, 1, 6, 24])
@pytest.mark.parametrize(
    ("theirs", "ours"), [move for move in MOVES if move[0].startswith("get_")], ids=lambda code: code.split("(")[0]
)
def test_what_to_write_instead_of_transformers_schedules(theirs, ours, w):
    """The README's policy for each function gives its rates at every step of a run, without and with all warm-up."""
    rest = 24 - w
    given = {"w": w, "T": 24, "d": min(8, rest), "c": 3 if rest % 3 == 0 else 1, "t": 40, "m": 0.1, "e": 0.03, "p": 2.0}
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=LR)
    function = getattr(transformers, theirs.split("(")[0])
    scheduler = eval(theirs, {function.__name__: function, "opt": sgd, **given})
    policy = eval(f"dict({ours})", {**POLICIES, **given, "lr": LR})["policy"]
    for step in range(24):
        if step > 0:
            sgd.step()
            scheduler.step()  # not after the last step, for which some of the functions divide by 0
        assert LR * policy.at(step).lr_factor == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12, abs=1e-15)
