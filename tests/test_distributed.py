"""FSDP2's sharded parameters, in two real processes."""

import os

import pytest
import torch
import torch.distributed as dist
import torch_versions
from processes import leave, run_processes

from cyclic_optim import CyclicSGD, Triangular


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()


def train(model, optimizer, batch):
    for step in range(5):
        optimizer.zero_grad()
        model(batch + step).square().mean().backward()
        optimizer.step()


FLAGS = {"default": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}
BATCH = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)


def _train_sharded(flags):
    """Weights and last rate of a training over all processes."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = make_model()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=Triangular(step_size_up=3), **flags)
    fused, op = [], torch._fused_sgd_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_fused_sgd_", lambda *args, **kwargs: fused.append(1) or op(*args, **kwargs))
        train(model, optimizer, BATCH)
    if not flags.get("capturable"):
        assert len(fused) == 5
    assert all(isinstance(state["momentum_buffer"], DTensor) for state in optimizer.state.values())
    whole = {name: param.full_tensor() for name, param in model.named_parameters()}
    return whole, float(optimizer.param_groups[0]["lr"])


def _worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/rendezvous")
    sharded = {kind: _train_sharded(flags) for kind, flags in FLAGS.items()}
    if rank == 0:
        torch.save(sharded, f"{folder}/sharded.pt")
    leave()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What two processes came to, by kind: one pair of them for all, since starting one takes seconds."""
    torch_versions.need_fully_shard_on_cpu()
    folder = tmp_path_factory.mktemp("sharded")
    run_processes(_worker, str(folder), nprocs=2)
    return torch.load(folder / "sharded.pt")


def _check(kind, sharded):
    (whole, lr), flags = sharded[kind], FLAGS[kind]
    model = make_model()
    optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=Triangular(step_size_up=3))
    train(model, optimizer, BATCH)
    assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-7 if flags.get("capturable") else 0, abs=0)
    for name, param in model.named_parameters():
        tolerance = {"rtol": 1e-6, "atol": 1e-7} if flags.get("capturable") else {"rtol": 1e-10, "atol": 1e-12}
        torch.testing.assert_close(whole[name], param.detach(), **tolerance)


def test_fully_shard_equals_one_process(sharded):
    """Sharded over two processes the default update gives the weights of one process, at the same rates."""
    _check("default", sharded)


def test_fully_shard_with_fused(sharded):
    """fused=True, which torch.optim.SGD cannot do with DTensors, runs on the local shards."""
    _check("fused", sharded)


def test_fully_shard_with_capturable(sharded):
    """capturable=True runs on the local shards as well; its rates are float32."""
    _check("capturable", sharded)
