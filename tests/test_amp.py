"""A step that the loss scaler skips leaves weights, buffers and schedule as they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_step
from strategies import policies

from cyclic_optim import Constant, CyclicSGD, Triangular

SCALE = 1024.0
FUSED = [{}, {"fused": True}]


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=10**6, backoff_factor=0.5)


def shown(optimizer):
    return optimizer.param_groups[0], [state for state in optimizer.state.values() if state]


def transposed(tensor):
    return tensor.t().contiguous().t()


@given(
    policy=policies() | st.none(),
    flags=st.sampled_from(FUSED),
    overflows=st.lists(st.booleans(), min_size=1, max_size=6),
    dampening=st.sampled_from([0.0, 0.5]),
    odd_layout=st.booleans(),
)
def test_skipped_steps_leave_everything_as_it_was(policy, flags, overflows, dampening, odd_layout):
    """Under GradScaler only applied steps count, also when it is the very first that overflows."""
    params = [torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64)) for _ in range(2)]
    twins, buffers = [torch.nn.Parameter(param.detach().clone()) for param in params], {}
    optimizer = CyclicSGD(params, lr=0.1, momentum=0.9, dampening=dampening, policy=policy, **flags)
    grad_scaler = scaler()
    for i, overflow in enumerate(overflows):
        grad_scaler.scale(torch.ones(()))  # creates the scale
        scale = grad_scaler.get_scale()
        for param, twin in zip(params, twins, strict=True):
            twin.grad = torch.full_like(twin, i + 1.0)
            param.grad = twin.grad * scale
        if overflow:
            params[0].grad[0, 0] = float("inf")
        if odd_layout:
            params[1].grad = transposed(params[1].grad)
        group = optimizer.param_groups[0]
        if not overflow:
            reference_step(twins, buffers, lr=group["lr"], momentum=group["momentum"], dampening=dampening)
        grad_scaler.step(optimizer)
        grad_scaler.update()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-13)
    if policy is not None:
        assert optimizer.param_groups[0]["schedule_step"] == overflows.count(False)


@pytest.mark.parametrize("policy", [None, Constant(), Triangular(step_size_up=3)], ids=str)
@pytest.mark.parametrize("found", [1.0, 2.0, float("nan")])
def test_any_nonzero_found_inf_skips(found, policy):
    """found_inf summed over devices may be 2: any value but 0 skips the step, also when buffers exist."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, fused=True, policy=policy)
    for _ in range(2):
        before = param.detach().clone(), repr(shown(optimizer))
        param.grad = torch.full((2,), float("inf"))
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(SCALE), torch.tensor(found)
        optimizer.step()
        assert torch.equal(param, before[0])
        assert repr(shown(optimizer)) == before[1]
        del optimizer.grad_scale, optimizer.found_inf
        param.grad = torch.ones(2)
        optimizer.step()


@pytest.mark.parametrize("policy", [None, Constant()], ids=str)
def test_unscaled_gradients_are_not_unscaled_again(policy):
    """After ``scaler.unscale_``, as for clipping, the step takes the gradients as they are."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = CyclicSGD([param], lr=0.1, fused=True, policy=policy)
    grad_scaler = scaler()
    grad_scaler.scale(param.sum()).backward()
    grad_scaler.unscale_(optimizer)
    grad_scaler.step(optimizer)
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.9))


def test_sparse_gradients_are_unscaled():
    """Tensors that take torch's own loop under fused=True are unscaled like the others."""
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    start = embedding.weight.detach().clone()
    optimizer = CyclicSGD(embedding.parameters(), lr=0.5, fused=True, policy=Constant())
    grad_scaler = scaler()
    grad_scaler.scale(embedding(torch.tensor([1])).sum()).backward()
    grad_scaler.step(optimizer)
    torch.testing.assert_close(start - embedding.weight, torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]))


def test_groups_with_other_flags_are_unscaled_too():
    """Beside a policy a group that asks for torch's own loop works under GradScaler like the fused ones."""
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4))]
    groups = [{"params": params[:1]}, {"params": params[1:], "fused": False}]
    optimizer = CyclicSGD(groups, lr=0.25, fused=True, policy=Constant())
    grad_scaler = scaler()
    grad_scaler.scale(sum(param.sum() for param in params)).backward()
    grad_scaler.step(optimizer)
    for param in params:
        assert torch.equal(param, torch.full_like(param, 0.75))
