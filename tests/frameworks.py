"""Frameworks that the tests run for real, and what a small training of theirs needs."""

import importlib
import os
import warnings

import pytest
import torch

from cyclic_optim import CyclicSGD

#: With this variable set, a framework that is not installed fails its tests instead of skipping them.
REQUIRED = "ECOSYSTEM_REQUIRED"

LR = 0.2
LOSS = torch.nn.CrossEntropyLoss()


def framework(name):
    """Import a framework, or skip the module that needs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a framework's own import has to say is not about us
        if os.environ.get(REQUIRED):
            return importlib.import_module(name)
        return pytest.importorskip(name, reason=f"{name} is not installed (the ecosystem extra)")


def small_model():
    """A small network, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def small_data(size=64):
    """Inputs and classes, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 8, generator=generator)
    return inputs, (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)


def small_loader(size=64, batch_size=8):
    """The same batches in the same order in every epoch."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*small_data(size)), batch_size=batch_size)


class Witness:
    """Notes lr and momentum at each step of an optimizer, as the update uses them."""

    def __init__(self, optimizer):
        self.used = []
        optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer, args, kwargs):
        self.used.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])


def promised(policy, steps, lr=LR, groups=1):
    """What a :class:`Witness` must have noted after so many updates."""
    return [[(lr * factor, momentum)] * groups for factor, momentum, _ in map(policy.at, range(steps))]


def bare_loop(model, batches, policy, lr=LR, **options):
    """The oracle: the loop without a framework. Returns its optimizer."""
    optimizer = CyclicSGD(model.parameters(), lr=lr, momentum=0.9, policy=policy, **options)
    for inputs, classes in batches:
        optimizer.zero_grad()
        LOSS(model(inputs), classes).backward()
        optimizer.step()
    return optimizer


def same_bits(one, other):
    """Whether two models, or two optimizers, hold the same numbers to the last bit."""
    if isinstance(one, torch.nn.Module):
        return _equal(list(one.parameters()), list(other.parameters()))
    one, other = one.state_dict(), other.state_dict()
    buffers = [[kept["momentum_buffer"] for kept in each["state"].values()] for each in (one, other)]
    return one["param_groups"] == other["param_groups"] and _equal(*buffers)


def _equal(one, other):
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


class WatchedSGD(CyclicSGD):
    """Notes what each step used."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.witness = Witness(self)
