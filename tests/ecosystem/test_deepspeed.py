"""DeepSpeed's engine steps the optimizer that it is given, at the ZeRO stages that leave it in place."""

from pathlib import Path

import pytest
import torch
from frameworks import LOSS, LR, framework, promised, small_loader, small_model
from processes import run_script

from cyclic_optim import CyclicSGD, OneCycle

framework("deepspeed")
pytestmark = pytest.mark.ecosystem

POLICY = OneCycle(total_steps=4)


def free_port():
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_it_equals_the_bare_loop_and_resumes(tmp_path, stage):
    """With accumulation, at each stage: one step of the schedule per update, the weights of the loop without DeepSpeed,
    and those of the unbroken run, to the bit, from a checkpoint in its middle."""
    script = Path(__file__).with_name("deepspeed_process.py")
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    run_script(script, tmp_path / "told.pt", stage, DS_ACCELERATOR="cpu", **rank, **address)
    told = torch.load(tmp_path / "told.pt")
    assert told["whole"]["used"] == promised(POLICY, 4)
    assert told["resumed"]["used"] == promised(POLICY, 4)[2:]
    assert all(map(torch.equal, told["resumed"]["params"], told["whole"]["params"]))
    alone = small_model()
    optimizer = CyclicSGD(alone.parameters(), lr=LR, momentum=0.9, policy=POLICY)
    for step, (inputs, classes) in enumerate(small_loader(), start=1):
        (LOSS(alone(inputs), classes) / 2).backward()
        if step % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert all(map(torch.equal, told["whole"]["params"], alone.parameters()))
