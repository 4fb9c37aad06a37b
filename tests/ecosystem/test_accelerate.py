"""Accelerate prepares the optimizer, and moves nothing of its schedule."""

from pathlib import Path

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
from processes import run_script
from readme import run_snippet

from cyclic_optim import CyclicSGD, OneCycle

accelerate = framework("accelerate")
pytestmark = pytest.mark.ecosystem

STEPS = 4  # of two batches each
POLICY = OneCycle(total_steps=STEPS)


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps its settings for the life of the process; each test gets its own."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def train():
    given = {"Accelerator": lambda **options: accelerate.Accelerator(cpu=True, **options), "CyclicSGD": WatchedSGD}
    return run_snippet(__file__, model=small_model(), loader=small_loader(), loss_fn=LOSS, policy=POLICY, **given)


def test_accumulated_batches_are_one_step():
    """The schedule moves once per update, by the policy's values."""
    after = train()
    assert isinstance(after["optimizer"], accelerate.optimizer.AcceleratedOptimizer)
    assert after["optimizer"].optimizer.witness.used == promised(POLICY, STEPS)


@pytest.mark.parametrize("step_scheduler_with_optimizer", [True, False])
def test_a_prepared_passive_scheduler_moves_nothing(step_scheduler_with_optimizer):
    """Prepared and stepped beside the optimizer, the passive scheduler leaves the run what it is without it."""
    options = {"step_scheduler_with_optimizer": step_scheduler_with_optimizer}
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model, loader = small_model(), small_loader()
    optimizer = CyclicSGD(model.parameters(), lr=LR, momentum=0.9, policy=POLICY)
    inner = optimizer
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, optimizer.passive_scheduler())
    for inputs, classes in loader:
        accelerator.backward(LOSS(model(inputs), classes))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert scheduler.get_last_lr() == [group["lr"] for group in inner.param_groups]
    alone = small_model()
    assert same_bits(inner, bare_loop(alone, small_loader(), POLICY))
    assert same_bits(model, alone)


def test_preparing_leaves_a_running_schedule_where_it_is():
    """Accelerate loads an optimizer's own state into it while preparing it: counter, rates and momenta stay."""
    model, alone = small_model(), small_model()
    optimizer = bare_loop(model, list(small_loader())[:3], POLICY)
    expected = bare_loop(alone, list(small_loader())[:3], POLICY)
    accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    assert same_bits(optimizer, expected)


def test_a_run_resumes_to_the_bit(tmp_path):
    """Saved by ``save_state`` and loaded by ``load_state``, the run ends in the same bits as without the break."""
    batches = list(small_loader())

    def start():
        accelerator = accelerate.Accelerator(cpu=True)
        model = small_model()
        optimizer = CyclicSGD(model.parameters(), lr=LR, momentum=0.9, policy=POLICY)
        scheduler = optimizer.passive_scheduler()
        return accelerator, optimizer, accelerator.prepare(model, optimizer, scheduler)

    def go_on(accelerator, model, optimizer, batches):
        for inputs, classes in batches:
            optimizer.zero_grad()
            accelerator.backward(LOSS(model(inputs), classes))
            optimizer.step()

    accelerator, _, (model, optimizer, _) = start()
    go_on(accelerator, model, optimizer, batches[:3])
    accelerator.save_state(tmp_path)
    accelerator, inner, (model, optimizer, _) = start()
    accelerator.load_state(tmp_path)
    assert inner.param_groups[0]["schedule_step"] == 3
    go_on(accelerator, model, optimizer, batches[3:])
    alone = small_model()
    assert same_bits(inner, bare_loop(alone, batches, POLICY))
    assert same_bits(model, alone)


@pytest.mark.parametrize("batches", ["split", "whole"])
def test_two_processes_move_the_schedule_once_per_update(tmp_path, batches):
    """In two processes, with accumulation, the schedule moves once per update, where Accelerate steps a scheduler
    twice; both processes use the same values and end with the same weights."""
    script = Path(__file__).with_name("accelerate_processes.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run_script(script, tmp_path, batches, launcher=launcher, OMP_NUM_THREADS="1")
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["processes"] == 2
    for told in (one, other):
        assert told["used"] == promised(OneCycle(total_steps=8), told["updates"])
        assert told["last_lr"] == told["lr"]
    assert all(map(torch.equal, one["params"], other["params"]))
