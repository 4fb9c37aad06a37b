"""Tensors that are more than numbers in memory take torch's loop: functional ones, and those of torch.func."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.optim import SGD

from cyclic_optim import Constant, CyclicSGD, OneCycle
from cyclic_optim.host.fused import SMALL

pytestmark = pytest.mark.usefixtures("part")

WAYS = {
    "policy": {"policy": Constant()},
    "policy, fused": {"policy": Constant(), "fused": True},
    "policy, loop": {"policy": Constant(), "foreach": False},
    "no policy": {},
    "no policy, fused": {"fused": True},
}
all_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
WEIGHTS = torch.arange(12.0).view(3, 4)
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}


def train(cls, weight, grad, **way):
    """The weight after three steps."""
    param = weight.clone()
    optimizer = cls([param], **OPTIONS, **way)
    for _ in range(3):
        param.grad = grad(param)
        optimizer.step()
    return param


def by_both(way, call):
    """What ``call`` gives for a training by SGD, and by CyclicSGD."""
    return call(lambda *args: train(SGD, *args, foreach=False)), call(lambda *args: train(CyclicSGD, *args, **way))


def functional(train):
    param = torch._to_functional_tensor(WEIGHTS.clone())
    param = train(param, lambda param: torch._to_functional_tensor(torch.ones_like(WEIGHTS)))
    torch._sync(param)
    return torch._from_functional_tensor(param)


def dual(train):
    with forward_ad.dual_level():
        param = train(forward_ad.make_dual(WEIGHTS, torch.ones_like(WEIGHTS)), lambda param: param * param)
        return tuple(forward_ad.unpack_dual(param))


def gradient(train):
    return torch.func.grad(lambda weight: (train(weight.detach(), torch.ones_like) * weight).sum())(WEIGHTS)


CALLS = {
    "functional": functional,
    "functionalize": lambda train: torch.func.functionalize(lambda weight: train(weight, torch.ones_like))(WEIGHTS),
    "vmap": lambda train: torch.vmap(lambda weight: train(weight, lambda param: param * param))(WEIGHTS),
    "vmap of weights and gradients": lambda train: torch.vmap(lambda weight, grad: train(weight, lambda param: grad))(
        WEIGHTS, WEIGHTS + 1
    ),
    "vmap in vmap": lambda train: torch.vmap(torch.vmap(lambda weight: train(weight, torch.ones_like)))(WEIGHTS),
    "jvp": lambda train: torch.func.jvp(
        lambda weight: train(weight, lambda param: param * param), (WEIGHTS,), (torch.ones_like(WEIGHTS),)
    ),
    "forward AD": dual,
    "grad": gradient,
}


@all_ways
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_under_a_transform_it_is_sgd(call, way):
    """The weights, their derivatives and the values of every example are those of SGD."""
    theirs, ours = by_both(way, call)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_large_tensor_in_forward_ad_keeps_its_tangent():
    """What would go to the fused op on all threads is noticed, too."""
    weight = torch.ones(SMALL)
    with forward_ad.dual_level():
        param = train(CyclicSGD, forward_ad.make_dual(weight, weight), lambda param: param * 2, policy=OneCycle(10))
        tangent = forward_ad.unpack_dual(param).tangent
    assert tangent is not None
    assert (tangent < 1).all()


def test_the_fused_update_is_back_afterwards(monkeypatch):
    """Outside of the transform the same optimizer takes the fused op again."""
    called, original = [], torch._fused_sgd_
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **options: called.append(1) or original(*args, **options))
    param = torch.nn.Parameter(torch.ones(SMALL))
    optimizer = CyclicSGD([param], lr=0.1, policy=Constant())
    param.grad = torch.ones(SMALL)
    with forward_ad.dual_level():
        optimizer.step()
    assert not called
    optimizer.step()
    assert called
