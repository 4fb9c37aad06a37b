"""TensorBoard logs the rate and momentum in force."""

import pytest
from frameworks import LOSS, Witness, framework, small_loader, small_model
from readme import run_snippet

from cyclic_optim import CyclicSGD, OneCycle

framework("tensorboard")
writers = framework("torch.utils.tensorboard")
pytestmark = pytest.mark.ecosystem


def test_what_is_logged_is_what_was_used(tmp_path):
    """The scalars read back are those that each step used, as far as TensorBoard's float32 tells."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_model()
    optimizer = CyclicSGD(model.parameters(), lr=0.2, momentum=0.9, policy=OneCycle(total_steps=8))
    witness = Witness(optimizer)
    run_snippet(
        __file__,
        SummaryWriter=writers.SummaryWriter,
        folder=tmp_path,
        model=model,
        optimizer=optimizer,
        loader=small_loader(),
        loss_fn=LOSS,
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag, used in zip(
        ("lr/0", "momentum/0"), zip(*(groups[0] for groups in witness.used), strict=True), strict=True
    ):
        assert [event.step for event in events.Scalars(tag)] == list(range(8))
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(used, rel=1e-6)
