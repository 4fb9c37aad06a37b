"""The recipes of docs/range_test_recipes.md that need torch alone, run as they stand.

Each finds a sane range, leaves nothing behind (see left_behind.py), and trains on in it.
"""

import functools
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from frameworks import LOSS, small_data, small_loader, small_model
from left_behind import falls_and_diverges, lr_range_test, same
from processes import leave, run_processes
from readme import run_snippet

from cyclic_optim import CyclicAdamW, CyclicSGD, supervised_step

GIVEN = {
    "torch": torch,
    "functools": functools,
    "CyclicAdamW": CyclicAdamW,
    "CyclicSGD": CyclicSGD,
    "lr_range_test": lr_range_test,
    "supervised_step": supervised_step,
    "loss_fn": LOSS,
}
TOTAL = 64


def train(model, optimizer, batches, steps=TOTAL):
    """A plain loop; returns the mean loss of the last eight steps."""
    losses = []
    for _, (inputs, classes) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        loss = LOSS(model(inputs), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [group["schedule_step"] for group in optimizer.param_groups] == [steps]
    return sum(losses[-8:]) / 8


def network(inputs, outputs):
    middle = [torch.nn.Linear(inputs, 32), torch.nn.LeakyReLU(0.2), torch.nn.Linear(32, 32), torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*middle, torch.nn.Linear(32, outputs))


@pytest.mark.parametrize("seed", range(2))
def test_a_gan(seed):
    """The distance of generated from real samples falls and climbs with the generator's rate, while the discriminator
    trains on beside it; a cycle in that range brings the distance near to 0."""
    torch.manual_seed(seed)
    generator, discriminator = network(4, 2), network(2, 1)
    real = torch.randn(2304, 2) + torch.tensor([2.0, -1.0])
    loader = torch.utils.data.DataLoader(real[256:], batch_size=64, shuffle=True)
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def discriminator_loss(real):
        fake = generator(torch.randn(len(real), 4)).detach()
        return bce(discriminator(real), torch.ones(len(real), 1)) + bce(discriminator(fake), torch.zeros(len(real), 1))

    def generator_loss(size):
        return bce(discriminator(generator(torch.randn(size, 4))), torch.ones(size, 1))

    networks = {"generator": generator, "discriminator": discriminator, "loader": loader}
    losses = {"discriminator_loss": discriminator_loss, "generator_loss": generator_loss}
    data = {"some_noise": torch.randn(256, 4), "some_data": real[:256], "total_steps": 300}
    after = run_snippet(__file__, "test_a_gan", **GIVEN, **networks, **losses, **data)
    assert falls_and_diverges(after["found"], 1e-4, 1e-2)
    at_first = after["distance"]()
    for _ in range(300):
        after["optimizer"].zero_grad()
        after["train_both"](generator, real[torch.randint(256, 2304, (64,))]).backward()
        after["optimizer"].step()
    assert after["optimizer"].param_groups[0]["schedule_step"] == 300
    assert after["distance"]() < 0.05 * at_first


def _rank(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    method = f"file://{folder}/rendezvous"
    # Ranks that stop at different steps would wait for each other.
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=method, timeout=timedelta(seconds=60))
    data = torch.utils.data.TensorDataset(*small_data(512))
    classes = {
        "DistributedDataParallel": torch.nn.parallel.DistributedDataParallel,
        "DataLoader": torch.utils.data.DataLoader,
        "DistributedSampler": torch.utils.data.DistributedSampler,
    }
    given = {"model": small_model(), "data": data, "total_steps": TOTAL, **GIVEN, **classes}
    after = run_snippet(__file__, "test_two_processes", **given)
    found, loader = after["found"], after["loader"]
    assert falls_and_diverges(found, 1e-3, 1)
    last = train(after["model"], after["optimizer"], list(loader) * 4)
    torch.save((vars(found), last, next(iter(loader))[0], after["model"].state_dict()), f"{folder}/{rank}.pt")
    leave()


def test_two_processes(tmp_path):
    """Two processes with other data each return the same curve, go on from the same weights, and stay together."""
    run_processes(_rank, str(tmp_path), nprocs=2)
    (found, last, batch, weights), (its, its_last, its_batch, its_weights) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert not torch.equal(batch, its_batch)
    assert found == its
    assert same(weights, its_weights)
    assert max(last, its_last) < 0.3


def test_gradient_accumulation():
    """Four accumulated batches are one step: the curve and the range are those of batches four times as large."""
    loader, epochs = small_loader(512, 8), 4
    after = run_snippet(
        __file__, "test_gradient_accumulation", model=small_model(), loader=loader, epochs=epochs, **GIVEN
    )
    found, model = after["found"], small_model()
    optimizer = CyclicSGD(model.parameters(), lr=0.1, momentum=0.9)
    whole = lr_range_test(model, optimizer, supervised_step(model, LOSS, small_loader(512, 32)))
    assert falls_and_diverges(found, 1e-3, 1)
    assert len(found.losses) == len(whole.losses)
    assert found.suggest() == pytest.approx(whole.suggest(), rel=1e-5)  # sums in another order
    below = [loss for loss in whole.losses if loss < whole.losses[0]]
    assert found.losses[: len(below)] == pytest.approx(whole.losses[: len(below)], rel=1e-3)
    assert after["optimizer"].policy.total_steps == len(loader) * epochs // 4
    assert train(after["model"], after["optimizer"], list(small_loader(512, 32)) * epochs) < 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_and_clipping(dtype):
    """With autocast, clipping and (for float16) a scaler the range is that of float32, within a factor of 3, and each
    step of the training that follows is applied."""
    given = {"model": small_model(), "loader": small_loader(512, 16), "total_steps": TOTAL, "dtype": dtype}
    after = run_snippet(__file__, "test_mixed_precision_and_clipping", device="cpu", **given, **GIVEN)
    found, model = after["found"], small_model()
    exact = lr_range_test(
        model,
        CyclicSGD(model.parameters(), lr=0.1, momentum=0.9),
        supervised_step(model, LOSS, small_loader(512, 16)),
    )
    assert falls_and_diverges(found, 1e-3, 3)
    assert exact.suggest()[1] / 3 < found.suggest()[1] < exact.suggest()[1] * 3
    model, optimizer, scaler = after["model"], after["optimizer"], after["scaler"]
    assert scaler.is_enabled() == (dtype == torch.float16)
    assert scaler.get_scale() == torch.amp.GradScaler("cpu", enabled=scaler.is_enabled()).get_scale()
    for _ in range(TOTAL):
        optimizer.zero_grad()
        last = after["clipped"]()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["schedule_step"] == TOTAL
    assert last < 0.3


def example(generator):
    """An input and its class: that of the largest of its first three numbers."""
    inputs = torch.randn(8, generator=generator)
    return inputs, inputs[:3].argmax()


def test_a_stream():
    """Training after the test sees the examples that it would have seen without it, of a stream without an end."""
    given = {"DataLoader": torch.utils.data.DataLoader, "example": example, "total_steps": TOTAL}
    after = run_snippet(__file__, "test_a_stream", model=small_model(), **given, **GIVEN)
    assert falls_and_diverges(after["found"], 1e-3, 1)
    untouched = torch.utils.data.DataLoader(after["Stream"](), batch_size=16)
    assert same(next(iter(after["loader"])), next(iter(untouched)))
    assert train(after["model"], after["optimizer"], after["loader"]) < 0.5
