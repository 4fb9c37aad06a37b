"""The fused update is right for every tensor: each defect of torch's own fused SGD, and whatever hypothesis finds."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_step
from strategies import sgd_options

from cyclic_optim import Constant, CyclicSGD, LambdaPolicy, Policy, Triangular, Values
from cyclic_optim.host import fused

pytestmark = pytest.mark.usefixtures("part")

#: Every way to the fused update: asked for, or by default beside a policy.
FUSED = {
    "no policy, fused=True": {"fused": True},
    "policy, fused=True": {"fused": True, "policy": Constant()},
    "policy": {"policy": Constant()},
}
ways_to_fused = pytest.mark.parametrize("way", FUSED.values(), ids=FUSED.keys())

LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "every other element": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "offset by one element": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def grow(shape=(2, 3, 2, 2), layout="contiguous", seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LAYOUTS[layout](values).detach()


def compare(params, set_grads, way, steps=3, **options):
    """Run the optimizer and the reference side by side from the same weights and gradients."""
    options = OPTIONS | options
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    buffers = {}
    optimizer = CyclicSGD(params, **options, **way)
    for step in range(steps):
        set_grads(step)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
        reference_step(twins, buffers, **options)
        optimizer.step()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-13)
    return optimizer


@ways_to_fused
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS)
def test_parameter_and_gradient_of_different_layouts(param_layout, grad_layout, way):
    """Whatever memory layouts parameter and gradient have, the update is elementwise."""
    params = [torch.nn.Parameter(grow(layout=param_layout)), torch.nn.Parameter(grow(seed=1))]

    def set_grads(step):
        params[0].grad = grow(layout=grad_layout, seed=2 + step)
        params[1].grad = grow(seed=7 + step)

    compare(params, set_grads, way)


@ways_to_fused
def test_a_layout_that_changes_between_steps(way):
    """A parameter re-laid out, a gradient re-laid out or a buffer replaced between steps is noticed."""
    param = torch.nn.Parameter(grow())
    twin, buffers = torch.nn.Parameter(param.detach().clone()), {}
    optimizer = CyclicSGD([param], **OPTIONS, **way)
    changes = [
        lambda: None,
        lambda: setattr(param, "data", LAYOUTS["channels_last"](param.data)),
        lambda: setattr(param, "grad", LAYOUTS["transposed"](param.grad)),
        lambda: optimizer.state[param].update(
            momentum_buffer=LAYOUTS["every other element"](optimizer.state[param]["momentum_buffer"])
        ),
        lambda: setattr(param, "data", LAYOUTS["contiguous"](param.data)),
    ]
    for step, change in enumerate(changes):
        param.grad = grow(seed=step)
        change()
        twin.grad = param.grad.clone()
        reference_step([twin], buffers, **OPTIONS)
        optimizer.step()
        torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-13)


@ways_to_fused
def test_a_dtype_that_changes_between_steps(way):
    """A model converted to another dtype between steps is updated in that dtype, buffer included."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = CyclicSGD([param], lr=0.5, momentum=0.5, **way)
    param.grad = torch.ones(4)
    optimizer.step()
    param.data = param.data.double()
    param.grad = torch.ones(4, dtype=torch.float64)
    optimizer.step()
    assert param.dtype == torch.float64
    assert torch.equal(param, torch.full((4,), 1 - 0.5 - 0.75, dtype=torch.float64))


@ways_to_fused
def test_first_gradients_that_come_late(way):
    """A parameter that gets its first gradient after others have stepped takes its own first step."""
    params = [torch.nn.Parameter(grow((3,), seed=seed)) for seed in range(3)]

    def set_grads(step):
        for i, param in enumerate(params):
            param.grad = torch.full_like(param, step + 1.0) if step >= i and step != i + 2 else None

    compare(params, set_grads, way, steps=6, dampening=0.5)


@ways_to_fused
def test_momentum_that_touches_zero(way):
    """A momentum of exactly 0 while buffers exist is a step of plain SGD that leaves the buffers."""
    param = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    twin, buffers = torch.nn.Parameter(param.detach().clone()), {}
    optimizer = CyclicSGD([param], lr=1.0, momentum=0.5, nesterov=True, **way)
    for momentum in (0.5, 0.0, 0.5):
        param.grad = torch.ones_like(param)
        twin.grad = torch.ones_like(twin)
        optimizer.param_groups[0]["momentum"] = momentum
        reference_step([twin], buffers, lr=1.0, momentum=momentum, nesterov=True)
        optimizer.step()
    torch.testing.assert_close(param, twin)


class Sawtooth(Policy):
    """Momentum that starts at 0 and comes back to it."""

    def at(self, step):
        return Values(1.0, (step % 3) / 4)


def test_a_policy_whose_momentum_touches_zero():
    """The same holds where it is the policy that takes momentum to 0, also at the very first step."""
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    twin, buffers = torch.nn.Parameter(param.detach().clone()), {}
    optimizer = CyclicSGD([param], lr=0.1, policy=Sawtooth())
    for step in range(8):
        param.grad, twin.grad = param.detach() + step, twin.detach() + step
        reference_step([twin], buffers, lr=0.1, momentum=Sawtooth().at(step).momentum)
        optimizer.step()
    torch.testing.assert_close(param, twin)


@ways_to_fused
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_momentum_that_touches_zero_leaves_the_buffer(dtype, layout, way):
    """For tensors of every kind, a step at a momentum of 0 leaves the buffer, the very tensor, as it is."""
    param = torch.nn.Parameter(grow(layout=layout).to(dtype))
    param.data = LAYOUTS[layout](param.data)
    optimizer = CyclicSGD([param], **OPTIONS, **way)
    param.grad = torch.ones_like(param)
    optimizer.step()
    buffer = optimizer.state[param]["momentum_buffer"]
    kept = buffer.clone()
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"] is buffer
    assert torch.equal(buffer, kept)


@pytest.mark.parametrize("policy", [None, Constant()])
def test_a_parameter_that_cannot_be_fused_is_refused_before_others_move(policy):
    """With fused=True a complex parameter is SGD's error, and the other parameters are where they were."""
    params = [torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.complex64, torch.float32)]
    optimizer = CyclicSGD(params, lr=0.1, fused=True, policy=policy)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="requires all the params to be floating point"):
            optimizer.step()
    assert torch.equal(params[1], torch.ones(2))


@ways_to_fused
def test_sparse_gradients(way):
    """Sparse gradients take torch's sparse path, next to dense ones in the same group."""
    embedding = torch.nn.Embedding(5, 2, sparse=True, dtype=torch.float64)
    params = [embedding.weight, torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]

    def set_grads(step):
        params[0].grad = None
        embedding(torch.tensor([step, 4, 4])).sum().backward()
        params[1].grad = torch.ones_like(params[1])

    compare(params, set_grads, way, momentum=0.0, weight_decay=0.0)


SPARSE = {
    "one sparse dimension": ((6,), 1),
    "two sparse dimensions": ((4, 3), 2),
    "sparse and dense dimensions": ((4, 3), 1),
}
SPARSE_WAYS = [*FUSED.values(), *({"policy": Constant(), "foreach": foreach} for foreach in (False, True))]


@given(
    kind=st.sampled_from([*SPARSE.values()]),
    offset=st.integers(0, 20),
    steps=st.lists(st.sampled_from(["coalesced", "repeated", "dense"]), min_size=1, max_size=5),
    options=st.sampled_from([{}, {"momentum": 0.5}, {"momentum": 0.5, "dampening": 0.25}, {"maximize": True}]),
    way=st.sampled_from(SPARSE_WAYS),
    buffer_has_offset=st.booleans(),
)
def test_a_sparse_gradient_of_a_view(kind, offset, steps, options, way, buffer_has_offset):
    """A parameter in the middle of some memory, or a buffer, gets the update in its own elements, and nothing else."""
    shape, sparse_dim = kind
    numel = torch.Size(shape).numel()
    memory, twin = torch.ones(60, dtype=torch.float64), torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    param = memory[offset : offset + numel].view(shape).requires_grad_()
    optimizer, buffers = CyclicSGD([param], lr=0.5, **options, **way), {}
    held = None
    for seed, step in enumerate(steps):
        grad = grow(shape, seed=seed) * (grow(shape, seed=seed + 50) > 0)
        grad[0] = 1.0
        sparse = grad.to_sparse(sparse_dim).coalesce()
        if step == "repeated":
            twice = sparse.indices().repeat(1, 2), torch.cat([sparse.values() / 2] * 2)
            sparse = torch.sparse_coo_tensor(*twice, shape, check_invariants=True)
        param.grad, twin.grad = grad if step == "dense" else sparse, grad
        reference_step([twin], buffers, lr=0.5, **options)
        optimizer.step()
        buffer = optimizer.state[param].get("momentum_buffer")
        assert held is None or buffer is held
        if buffer_has_offset and held is None and buffer is not None and buffer.layout is torch.strided:
            held = torch.cat([buffer.new_ones(7), buffer.flatten(), buffer.new_ones(40)])[7 : 7 + numel].view(shape)
            optimizer.state[param]["momentum_buffer"] = held
        torch.testing.assert_close(param, twin)
    expected = torch.ones_like(memory)
    expected[offset : offset + numel] = twin.detach().flatten()
    torch.testing.assert_close(memory, expected)
    if held is not None:
        torch.testing.assert_close(held._base[:7], torch.ones(7, dtype=torch.float64))
        torch.testing.assert_close(held._base[7 + numel :], torch.ones(40, dtype=torch.float64))


def test_autograd_notices_a_sparse_update_of_a_view():
    """The parameter's version counter moves on, as with every other update."""
    param = torch.ones(20)[3:8].requires_grad_()
    param.grad = torch.ones(5).to_sparse()
    before = param._version
    CyclicSGD([param], lr=0.5, policy=Constant()).step()
    assert param._version > before
    assert param.tolist() == [0.5] * 5


def test_complex_parameters_beside_a_policy():
    """Complex parameters are updated as SGD updates them."""
    weights = []
    for make in (torch.optim.SGD, lambda *args, **kwargs: CyclicSGD(*args, policy=Constant(), **kwargs)):
        param = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        optimizer = make([param], lr=0.1, momentum=0.9)
        for _ in range(3):
            param.grad = param.detach().conj()
            optimizer.step()
        weights.append(param)
    assert torch.equal(*weights)


@ways_to_fused
def test_dtypes_mixed_in_one_group(way):
    """Half, bfloat16, single and double parameters in one group are each updated in their own dtype."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    optimizer = CyclicSGD(params, lr=0.5, momentum=0.5, **way)
    for _ in range(2):
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
    for param, dtype in zip(params, dtypes, strict=True):
        assert torch.equal(param, torch.full((3,), 1 - 0.25 - 0.375, dtype=dtype))


@ways_to_fused
@pytest.mark.parametrize("numel", [1, 15, 16, 31, 33, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_updated_in_every_element(dtype, numel, way):
    """Half-precision parameters of any size move like SGD's, which torch's fused op on the CPU does not do."""
    results = []
    for make in (torch.optim.SGD, lambda params, **options: CyclicSGD(params, **options, **way)):
        param = torch.nn.Parameter(torch.zeros(numel, dtype=dtype))
        optimizer = make([param], lr=0.5, momentum=0.5)
        for step in range(3):
            param.grad = torch.randn(numel, generator=torch.Generator().manual_seed(step)).to(dtype)
            optimizer.step()
        results.append(param.detach())
    assert results[1].all()
    assert torch.equal(*results)


@ways_to_fused
def test_negated_views(way):
    """A gradient that is a lazily negated view counts by its value."""
    param = torch.nn.Parameter(torch.ones(20))
    param.grad = torch._neg_view(torch.full((20,), 2.0))
    CyclicSGD([param], lr=0.5, **way).step()
    assert torch.equal(param, torch.full((20,), 2.0))


def test_devices_mixed_in_one_group():
    """Parameters on different devices are updated each on its own."""
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, device="meta"))]
    optimizer = CyclicSGD(params, lr=0.5, momentum=0.9, policy=Constant())
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((3,), 1 - 0.5 * (1 + 1.9 + 2.71)))
    assert optimizer.state[params[1]]["momentum_buffer"].device.type == "meta"


@ways_to_fused
def test_the_gradient_belongs_to_the_caller(way):
    """A step without a loss scale leaves every gradient as it found it."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.full((3,), 2.0)
    CyclicSGD([param], lr=0.1, momentum=0.9, weight_decay=0.1, maximize=True, **way).step()
    assert torch.equal(param.grad, torch.full((3,), 2.0))


@given(
    shapes=st.lists(st.sampled_from([(), (0,), (1,), (3,), (2, 3, 2, 2), (4, 1, 1, 2)]), min_size=1, max_size=5),
    options=sgd_options(),
    way=st.sampled_from(list(FUSED.values())),
    data=st.data(),
)
def test_any_mixture_equals_the_reference(shapes, options, way, data):
    """Any shapes, layouts and absent gradients, changing from step to step, give the plain arithmetic's weights."""
    layouts = st.sampled_from(list(LAYOUTS))
    params = [
        torch.nn.Parameter(grow(shape, data.draw(layouts) if len(shape) == 4 else "contiguous", seed))
        for seed, shape in enumerate(shapes)
    ]

    def set_grads(step):
        for i, param in enumerate(params):
            layout = data.draw(layouts) if param.dim() == 4 else "contiguous"
            param.grad = grow(tuple(param.shape), layout, 100 * step + i) if data.draw(st.booleans()) else None

    compare(params, set_grads, way, steps=4, **options)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"fused": False}])
def test_flags_that_were_set_are_honoured(flags, monkeypatch):
    """Beside a policy, an implementation that was asked for is the one that runs."""

    def refuse(*args, **kwargs):
        raise AssertionError("the fused op was called")

    monkeypatch.setattr(torch, "_fused_sgd_", refuse)
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    CyclicSGD([param], lr=0.1, policy=Constant(), **flags).step()
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.9))


def test_the_fused_op_is_the_default_beside_a_policy(monkeypatch):
    """With a policy and no flags, large plain parameters go through the fused op."""
    called = []
    original = torch._fused_sgd_
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **kwargs: called.append(1) or original(*args, **kwargs))
    param = torch.nn.Parameter(torch.ones(fused.SMALL))
    param.grad = torch.ones(fused.SMALL)
    CyclicSGD([param], lr=0.1, policy=LambdaPolicy(lambda step: 1.0)).step()
    assert called == [1]


def test_deepcopy_shares_nothing():
    """A deep copy steps on its own: its parameters, buffers, groups and buckets are its own."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = CyclicSGD([param], lr=0.1, policy=Triangular(step_size_up=3))
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    twin = copy.deepcopy(optimizer)
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones(3)
    twin.step()
    assert repr(optimizer.state_dict()) == repr(before)
    assert twin.policy == optimizer.policy
    assert twin.param_groups[0]["schedule_step"] == 2
