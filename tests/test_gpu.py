"""On a CUDA GPU: the checks of benchmarks/gpu_check.py, and what a captured step does. Skipped without one."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import torch

from cyclic_optim import CyclicSGD, OneCycle

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
gpu_check = importlib.import_module("gpu_check")
sys.path.remove(str(Path(__file__).parent.parent / "benchmarks"))


def setting(device, replays):
    return gpu_check.Setting(device, replays=replays, steps=60, rounds=2, started=time.perf_counter())


@pytest.fixture
def exact_products():
    """As in the command: float32 products are not rounded to TF32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_a_check_of_the_gpu_check_passes(name):
    """The kernel, its parity with the host's update, graphs, GradScaler and synchronization, on this GPU."""
    checked = gpu_check.run_check(gpu_check.CHECKS[name], setting("cuda", replays=2000))
    assert checked.passed, checked.says


@pytest.mark.gpu
def test_a_captured_step_follows_rate_and_momentum():
    """Each replay makes the step that the host makes, with the policy's next rate and momentum."""
    params = [torch.nn.Parameter(torch.ones(5, device=device)) for device in ("cuda", "cpu")]
    policy, results = OneCycle(total_steps=50), []
    for param, capturable in zip(params, (True, False), strict=True):
        optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, policy=policy, capturable=capturable)
        param.grad = torch.full_like(param, 0.5)
        step = setting("cuda", replays=1).captured(optimizer.step) if capturable else optimizer.step
        for _ in range(40 if capturable else 43):  # three steps come before the capture
            step()
        group = optimizer.param_groups[0]
        results.append(torch.tensor([*param.tolist(), *(float(group[key]) for key in ("lr", "momentum"))]))
        assert int(group["schedule_step"]) == 43
    torch.testing.assert_close(*results)


@pytest.mark.gpu
def test_a_captured_sgd_follows_a_rate_in_a_tensor_and_no_momentum():
    """What docs/cuda_graphs.md says of torch's: a rate in ``lr`` counts at the next replay, a momentum not."""
    param, lr = torch.nn.Parameter(torch.zeros(1, device="cuda")), torch.tensor(0.5, device="cuda")
    optimizer = torch.optim.SGD([param], lr=lr, momentum=0.5, fused=True)
    param.grad = torch.ones_like(param)
    replay = setting("cuda", replays=1).captured(optimizer.step)
    optimizer.param_groups[0]["momentum"] = 0.0
    (buffer,) = (kept["momentum_buffer"] for kept in optimizer.state.values())
    for rate in (0.25, 0.125):
        before, expected = param.item(), 0.5 * buffer.item() + 1
        lr.fill_(rate)
        replay()
        assert buffer.item() == expected
        assert param.item() == before - rate * expected
