"""ignite's engines and checkpoints take the optimizer as they take SGD."""

import pytest
import torch
from frameworks import LOSS, LR, Witness, bare_loop, framework, promised, same_bits, small_loader, small_model
from readme import run_snippet

from cyclic_optim import CyclicSGD, Triangular

engine, handlers = framework("ignite.engine"), framework("ignite.handlers")
pytestmark = pytest.mark.ecosystem

STEPS = 24  # 3 epochs of 8 batches
POLICY = Triangular(step_size_up=5)


def train(folder):
    names = {
        "create_supervised_trainer": engine.create_supervised_trainer,
        "Events": engine.Events,
        "Checkpoint": handlers.Checkpoint,
        "DiskSaver": handlers.DiskSaver,
    }
    return run_snippet(
        __file__,
        CyclicSGD=CyclicSGD,
        model=small_model(),
        loader=small_loader(),
        loss_fn=LOSS,
        policy=POLICY,
        folder=folder,
        **names,
    )


def test_it_equals_the_bare_loop(tmp_path):
    """Trained by ignite the weights are those of the loop without it, to the bit."""
    after, alone = train(tmp_path), small_model()
    by_hand = bare_loop(alone, list(small_loader()) * 3, POLICY)
    assert same_bits(after["model"], alone)
    assert same_bits(after["optimizer"], by_hand)


def test_a_run_resumes_to_the_bit(tmp_path):
    """Resumed from ignite's own checkpoint, with another optimizer, the run ends in the same bits."""
    whole = train(tmp_path)
    model = small_model()
    optimizer = CyclicSGD(model.parameters(), lr=LR, momentum=0.9, policy=POLICY)
    witness = Witness(optimizer)
    trainer = engine.create_supervised_trainer(model, optimizer, LOSS)
    (checkpoint,) = tmp_path.glob("*checkpoint_8.pt")
    to_load = {"model": model, "optimizer": optimizer, "trainer": trainer}
    handlers.Checkpoint.load_objects(to_load, torch.load(checkpoint, weights_only=True))
    trainer.run(small_loader(), max_epochs=3)
    assert witness.used == promised(POLICY, STEPS)[8:]
    assert same_bits(model, whole["model"])
    assert same_bits(optimizer, whole["optimizer"])


def test_its_loggers_find_the_rate(tmp_path):
    """ignite's handler for optimizer parameters logs the rate that each step uses."""
    framework("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_model()
    optimizer = CyclicSGD(model.parameters(), lr=LR, momentum=0.9, policy=POLICY)
    trainer = engine.create_supervised_trainer(model, optimizer, LOSS)
    with handlers.TensorboardLogger(log_dir=tmp_path) as logger:
        logger.attach_opt_params_handler(trainer, engine.Events.ITERATION_STARTED, optimizer=optimizer)
        trainer.run(small_loader(), max_epochs=1)
    logged = EventAccumulator(str(tmp_path)).Reload().Scalars("lr/group_0")
    assert [event.value for event in logged] == pytest.approx([LR * POLICY.at(step).lr_factor for step in range(8)])
