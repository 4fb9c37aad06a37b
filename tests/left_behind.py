"""What a range test must leave as it was, and what its curve must look like, for tests of whole recipes."""

import copy
import random

import numpy as np
import torch

import cyclic_optim


def lr_range_test(model, optimizer, train_step, **options):
    """The range test, with the claim that state dicts, gradients, modes and random states are the same afterwards."""
    things = [model, optimizer, options.get("scaler"), getattr(train_step, "scaler", None), *options.get("also", ())]
    before = _states(things)
    found = cyclic_optim.lr_range_test(model, optimizer, train_step, progress=False, **options)
    assert same(before, _states(things))
    return found


def _states(things):
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    return states + [copy.deepcopy(_state(thing)) for thing in things if thing is not None]


def _state(thing):
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, torch.nn.Module):
        modes = [module.training for module in thing.modules()]
        return thing.state_dict(), [param.grad for param in thing.parameters()], modes
    return thing.state_dict()


def same(one, other):
    """Whether two nested containers hold the same, tensors to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def falls_and_diverges(found, lowest, highest):
    """Whether the losses fall by a third, then diverge, and the range that this suggests lies within these rates."""
    base_lr, max_lr = found.suggest()
    smoothed = found.smoothed
    fell = min(smoothed) < smoothed[0] * 2 / 3
    return fell and "diverged" in found.stopped and lowest < base_lr < max_lr < highest
