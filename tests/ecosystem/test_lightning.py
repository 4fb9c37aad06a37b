"""Lightning takes the optimizer alone."""

import csv

import pytest
import torch
from frameworks import (
    LOSS,
    LR,
    WatchedSGD,
    bare_loop,
    framework,
    promised,
    same_bits,
    small_loader,
    small_model,
)
from readme import run_snippet

from cyclic_optim import OneCycle

lightning = framework("lightning")
pytestmark = [
    pytest.mark.ecosystem,
    # Lightning's own use of what torch deprecates, and its advice.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]

STEPS = 24  # 3 epochs of 8 batches
POLICY = OneCycle(total_steps=STEPS)


def train(folder, checkpoint=None, **options):
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    options = {
        "accelerator": "cpu",
        "logger": CSVLogger(folder, flush_logs_every_n_steps=1),
        "default_root_dir": folder,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    callbacks = {"LearningRateMonitor": LearningRateMonitor, "ModelCheckpoint": ModelCheckpoint}
    after = run_snippet(
        __file__,
        model=small_model(),
        loader=small_loader(),
        loss_fn=LOSS,
        OneCycle=OneCycle,
        checkpoint=checkpoint,
        folder=folder / "checkpoints",
        options=options,
        lightning=lightning,
        CyclicSGD=WatchedSGD,
        **callbacks,
    )
    return after["model"], after["trainer"].optimizers[0], after["trainer"]


def logged(trainer):
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["lr-WatchedSGD"]]
    return [[(float(row["lr-WatchedSGD"]), float(row["lr-WatchedSGD-momentum"]))] for row in rows]


def test_it_equals_the_bare_loop(tmp_path):
    """Trained by Lightning the weights are those of the loop without it, to the bit, and each step used the policy's
    values."""
    model, optimizer, _ = train(tmp_path)
    alone = small_model()
    by_hand = bare_loop(alone, list(small_loader()) * 3, POLICY)
    assert optimizer.witness.used == promised(POLICY, STEPS)
    assert same_bits(model, alone)
    assert same_bits(optimizer, by_hand)


def test_the_monitor_logs_rate_and_momentum(tmp_path):
    """``LearningRateMonitor`` finds the optimizer without a scheduler, and logs what each step then used."""
    _, optimizer, trainer = train(tmp_path)
    assert logged(trainer) == optimizer.witness.used


def test_accumulated_batches_are_one_step(tmp_path):
    """With ``accumulate_grad_batches=2`` the schedule is half as long, and moves once per update."""
    _, optimizer, _ = train(tmp_path, accumulate_grad_batches=2)
    assert optimizer.policy == OneCycle(total_steps=STEPS // 2)
    assert optimizer.witness.used == promised(optimizer.policy, STEPS // 2)


def test_a_run_resumes_to_the_bit(tmp_path):
    """Resumed from Lightning's own checkpoint the run ends in the same bits as without the break."""
    model, optimizer, _ = train(tmp_path)
    resumed, its_optimizer, _ = train(tmp_path / "resumed", checkpoint=tmp_path / "checkpoints" / "epoch=0-step=8.ckpt")
    assert its_optimizer.witness.used == optimizer.witness.used[8:]
    assert same_bits(resumed, model)
    assert same_bits(its_optimizer, optimizer)


def test_a_step_that_the_scaler_skips_is_not_counted(tmp_path):
    """With float16 and a scale that overflows at first, the schedule waits for the steps that are applied."""
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    _, optimizer, _ = train(tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    applied = optimizer.param_groups[0]["schedule_step"]
    skipped = STEPS - applied
    assert 0 < skipped < STEPS
    assert LR * POLICY.at(applied).lr_factor == optimizer.param_groups[0]["lr"]
