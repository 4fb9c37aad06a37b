"""Small functions that several test files share."""

import io
import os
import sysconfig

import torch

from cyclic_optim import CyclicSGD, LRRangeTest

#: Whether this Python has no GIL, on which the compiled part and some promises rely.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

#: Whether this is the long run that leaves nothing out.
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

# --- optimizers


def one_param(**options):
    """A parameter with a gradient, and an optimizer of it."""
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    param.grad = torch.full((3,), 0.5, dtype=torch.float64)
    return param, CyclicSGD([param], **options)


def build(problem, policy, **options):
    """The parameters of a drawn problem, and an optimizer of its groups."""
    params = problem.params()
    return params, CyclicSGD([{"params": group} for group in params], policy=policy, **options)


class OwnStep(CyclicSGD):
    """A subclass that does something more in each step."""

    def step(self, closure=None):
        return super().step(closure)


def params_of(optimizer):
    """The parameters of all groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def column(optimizer, key):
    """A value of every group, as a number; None where a group has none."""
    return [number(group.get(key)) for group in optimizer.param_groups]


def number(value):
    """A tensor's number, or the value itself."""
    return value.item() if isinstance(value, torch.Tensor) else value


def through_a_file(state_dict):
    """A state dict that has been in a file, and was read without running code."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(ours, theirs, rtol=0.0):
    """Equal, to the bit or nearly, in containers of any kind."""
    if isinstance(ours, (torch.Tensor, dict, list, tuple)):
        assert type(ours) is type(theirs)
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol, equal_nan=True)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key], rtol)
    elif isinstance(theirs, (list, tuple)):
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other, rtol)
    else:
        assert ours == theirs


# --- policies


def lr_factors(policy, count):
    """The factors of the first steps."""
    return [policy.at(step).lr_factor for step in range(count)]


# --- range tests

#: Losses that are flat, fall, and rise.
FALLING = [2.0] * 20 + [2.0 - i / 10 for i in range(16)] + [3.0, 5.0]


def made(losses, **others):
    """The result of a range test with these losses."""
    lrs = [1e-4 * 1.25**i for i in range(len(losses))]
    return LRRangeTest(lrs, losses, "exponential", "the loss diverged at lr=1", 0.5, **others)
