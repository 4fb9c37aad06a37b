"""Nothing that a step found out of its tensors outlives a change: between steps, users do as they please."""

import contextlib
import gc
import threading
import weakref

import pytest
import torch
from helpers import params_of
from hypothesis import given
from hypothesis import strategies as st

from cyclic_optim import Constant, CyclicSGD
from cyclic_optim.host import fused

#: Alike, unlike, of one element, and one large enough for threads.
SHAPES = [(2, 3, 2, 2), (2, 3, 2, 2), (4, 5), (4, 5), (1,), (1,), (130, 130)]
WAYS = {"policy": {"policy": Constant()}, "fused=True": {"fused": True}}
pytestmark = pytest.mark.usefixtures("part")


def other_layout(tensor):
    """The same values in another layout, where the shape has one."""
    if tensor.dim() == 4:
        contiguous = tensor.is_contiguous()
        return tensor.contiguous(memory_format=torch.channels_last if contiguous else torch.contiguous_format)
    return tensor.t().contiguous().t() if tensor.dim() == 2 and tensor.is_contiguous() else tensor.contiguous()


def other_dtype(tensor):
    return tensor.float() if tensor.dtype is torch.float64 else tensor.double()


# Each takes an optimizer and two indices, and does the same to CyclicSGD and to SGD.


def lay_out_a_parameter_anew(optimizer, i, j):
    param = params_of(optimizer)[i]
    param.data = other_layout(param.data)


def convert_a_parameter(optimizer, i, j):
    param = params_of(optimizer)[i]
    param.data = other_dtype(param.data)


def lay_out_a_gradient_anew(optimizer, i, j):
    param = params_of(optimizer)[i]
    if param.grad is not None:
        param.grad = other_layout(param.grad)


def drop_a_gradient(optimizer, i, j):
    params_of(optimizer)[i].grad = None


def share_a_gradient(optimizer, i, j):
    one, other = params_of(optimizer)[i], params_of(optimizer)[j]
    if one.shape == other.shape and one.dtype == other.dtype:
        other.grad = one.grad


def freeze_or_thaw_a_parameter(optimizer, i, j):
    param = params_of(optimizer)[i]
    param.requires_grad_(not param.requires_grad)


def negate_a_parameter(optimizer, i, j):
    param = params_of(optimizer)[i]
    param.data = torch._neg_view(param.data)


def negate_a_gradient(optimizer, i, j):
    param = params_of(optimizer)[i]
    if param.grad is not None:
        param.grad = torch._neg_view(param.grad)


def negate_a_buffer(optimizer, i, j):
    buffer = momentum_buffer(optimizer, i)
    if buffer is not None:
        buffer.data = torch._neg_view(buffer.data)


def momentum_buffer(optimizer, i):
    return optimizer.state.get(params_of(optimizer)[i], {}).get("momentum_buffer")


def replace_a_buffer(optimizer, i, j):
    if momentum_buffer(optimizer, i) is not None:
        optimizer.state[params_of(optimizer)[i]]["momentum_buffer"] = 0.5 * momentum_buffer(optimizer, i)


def lay_out_a_buffer_anew(optimizer, i, j):
    buffer = momentum_buffer(optimizer, i)
    if buffer is not None:
        buffer.data = other_layout(buffer.data)


def convert_a_buffer(optimizer, i, j):
    buffer = momentum_buffer(optimizer, i)
    if buffer is not None:
        buffer.data = other_dtype(buffer.data)


def delete_a_buffer(optimizer, i, j):
    optimizer.state.get(params_of(optimizer)[i], {}).pop("momentum_buffer", None)


def delete_a_state(optimizer, i, j):
    optimizer.state.pop(params_of(optimizer)[i], None)


def clear_all_state(optimizer, i, j):
    optimizer.state.clear()


def give_a_state_away(optimizer, i, j):
    param = params_of(optimizer)[i]
    if param in optimizer.state:  # where it is the last one, no other state moves
        optimizer.state[torch.nn.Parameter(param.detach().clone())] = optimizer.state.pop(param)


def replace_a_state_by_its_copy(optimizer, i, j):
    param = params_of(optimizer)[i]
    if param in optimizer.state:
        optimizer.state[param] = dict(optimizer.state[param])


def swap_two_states(optimizer, i, j):
    one, other = params_of(optimizer)[i], params_of(optimizer)[j]
    state = optimizer.state
    if one.shape == other.shape and one in state and other in state:
        state[one], state[other] = state[other], state[one]


def replace_a_parameter_and_keep_its_state(optimizer, i, j):
    old = params_of(optimizer)[i]
    new = torch.nn.Parameter(2 * old.detach())
    new.grad = None if old.grad is None else old.grad.to(new.dtype)  # an older one may be of another
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
    for group in optimizer.param_groups:
        group["params"][:] = [new if param is old else param for param in group["params"]]


def move_a_parameter_to_the_other_group(optimizer, i, j):
    param = params_of(optimizer)[i]
    for group in optimizer.param_groups:
        others = [one for one in group["params"] if one is not param]
        group["params"][:] = others if len(others) < len(group["params"]) else [*others, param]


def swap_groups(optimizer, i, j):
    optimizer.param_groups.reverse()


def swap_the_groups_parameters(optimizer, i, j):
    one, other = optimizer.param_groups
    one["params"], other["params"] = other["params"], one["params"]


def edit(**values):
    def edited(optimizer, i, j):
        group = optimizer.param_groups[i % 2]
        group.update(values)
        if "max_lr" in group:
            group["max_lr"] = group["lr"]

    return edited


def reload(optimizer, i, j):
    owners = set(map(id, params_of(optimizer)))
    for param in list(optimizer.state):
        if id(param) not in owners:  # no state dict can name it
            del optimizer.state[param]
    optimizer.load_state_dict(optimizer.state_dict())


def flag(**values):
    """A flag that chooses another implementation of the same update: SGD's twin keeps its own."""

    def flagged(optimizer, i, j):
        if isinstance(optimizer, CyclicSGD):
            optimizer.param_groups[i % 2].update(values)

    return flagged


CHANGES = {
    change.__name__: change
    for change in (
        lay_out_a_parameter_anew,
        convert_a_parameter,
        lay_out_a_gradient_anew,
        drop_a_gradient,
        share_a_gradient,
        freeze_or_thaw_a_parameter,
        negate_a_parameter,
        negate_a_gradient,
        negate_a_buffer,
        replace_a_buffer,
        lay_out_a_buffer_anew,
        convert_a_buffer,
        delete_a_buffer,
        delete_a_state,
        clear_all_state,
        give_a_state_away,
        replace_a_state_by_its_copy,
        swap_two_states,
        replace_a_parameter_and_keep_its_state,
        move_a_parameter_to_the_other_group,
        swap_groups,
        swap_the_groups_parameters,
        reload,
    )
} | {
    "no momentum": edit(momentum=0),
    "momentum": edit(momentum=0.8),
    "another rate": edit(lr=0.03),
    "weight decay": edit(weight_decay=0.1),
    "dampening": edit(dampening=0.5),
    "Nesterov": edit(nesterov=True),
    "maximize": edit(maximize=True),
    "foreach": flag(foreach=True, fused=None),
    "neither": flag(foreach=False, fused=None),
    "fused": flag(foreach=None, fused=True),
}


class World:
    """An optimizer and its parameters, whose values and gradients come from seeds."""

    def __init__(self, make):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.02, "weight_decay": 0.01}]
        self.optimizer = make(groups)

    def step(self, seed, change=None, when="after"):
        """A step on new gradients, with a change ``before`` or ``after`` they came."""
        if change is not None and when == "before":
            change(self.optimizer)
        generator = torch.Generator().manual_seed(seed)
        for param in params_of(self.optimizer):
            # Frozen ones too: their old gradients are not what they were, as torch's foreach adds momentum to them.
            grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = torch.empty_like(param, requires_grad=False).copy_(grad)
        if change is not None and when == "after":
            change(self.optimizer)
        self.optimizer.step()


def assert_same(world, twin):
    for param, other in zip(params_of(world.optimizer), params_of(twin.optimizer), strict=True):
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if torch.float32 in (param.dtype,) else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(param, other, **tolerance)
        buffers = [
            one.optimizer.state.get(key, {}).get("momentum_buffer") for one, key in ((world, param), (twin, other))
        ]
        assert (buffers[0] is None) == (buffers[1] is None)
        if buffers[0] is not None:
            torch.testing.assert_close(buffers[0].double(), buffers[1].double(), rtol=1e-4, atol=1e-4)


def side_by_side(way, changes):
    world = World(lambda groups: CyclicSGD(groups, lr=0.1, momentum=0.9, **way))
    twin = World(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False))
    seed = 0
    for change, i, j, when, steps in changes:
        for first in [True, *[False] * (steps - 1)]:
            seed += 1
            change_it = None
            if first:
                i, j = i % len(SHAPES), j % len(SHAPES)
                change_it = lambda optimizer, change=change, i=i, j=j: change(optimizer, i, j)  # noqa: E731
            for one in (world, twin):
                one.step(seed, change_it, when)
            assert_same(world, twin)


def nothing(optimizer, i, j):
    """No change."""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change, when, way):
    """After steps without any, each change, before or after the gradients came, gives SGD's weights."""
    for i, j in ((0, 1), (3, 2), (6, 4)):
        side_by_side(way, [(nothing, 0, 0, when, 3), (CHANGES[change], i, j, when, 3)])


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": False}, {"differentiable": True}])
def test_flags_that_are_set_later_are_honoured(flags, monkeypatch):
    """An implementation that is asked for after some steps is the one that runs from then on."""
    world = World(lambda groups: CyclicSGD(groups, lr=0.1, policy=Constant()))
    for seed in range(4):
        world.step(seed)
    called = []
    original = torch._fused_sgd_
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **options: called.append(1) or original(*args, **options))
    world.step(4)
    assert called
    called.clear()
    for group in world.optimizer.param_groups:
        group.update(flags)
    world.step(5)
    assert not called


#: torch's foreach, where it is asked for, refuses negated tensors.
TOGETHER = [
    [change for name, change in CHANGES.items() if not name.startswith("negate")],
    [change for name, change in CHANGES.items() if name != "foreach"],
]


@given(
    changes=st.sampled_from(TOGETHER).flatmap(
        lambda changes: st.lists(
            st.tuples(
                st.sampled_from(changes),
                st.integers(0, 6),
                st.integers(0, 6),
                st.sampled_from(["before", "after"]),
                st.integers(1, 3),
            ),
            max_size=12,
        )
    ),
    way=st.sampled_from(list(WAYS.values())),
)
def test_any_sequence_of_changes_gives_sgds_weights(changes, way):
    """Whatever is done between steps, in whatever order, the weights are those of SGD's plain loop."""
    side_by_side(way, [(nothing, 0, 0, "after", 3), *changes])


def test_what_the_user_drops_is_freed():
    """Parameters and states that are taken out of the optimizer are kept by nothing else in it."""
    world = World(lambda groups: CyclicSGD(groups, lr=0.1, momentum=0.9, policy=Constant()))
    for seed in range(4):
        world.step(seed)
    optimizer = world.optimizer
    params = params_of(optimizer)
    kept = [weakref.ref(param) for param in params]
    kept += [weakref.ref(optimizer.state[param]["momentum_buffer"]) for param in params]
    del params
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["params"].clear()
    gc.collect()
    assert not any(reference() is not None for reference in kept)


def test_a_rate_that_the_user_replaces_is_freed():
    """A tensor lr that is put out of its group is kept by nothing else after the next step."""
    optimizer = CyclicSGD([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1), policy=Constant())
    kept = weakref.ref(optimizer.param_groups[0]["lr"])
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert kept() is None


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_autograd_notices_the_update(way):
    """A backward pass through values that a step overwrote is refused, as after SGD's own step."""
    one, other = (torch.nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0))
    optimizer = CyclicSGD([one, other], lr=1.0, **way)
    for _ in range(4):
        loss = (torch.ones(1) * one) * other
        one.grad, other.grad = torch.ones(1), torch.ones(1)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


def test_threads_born_during_steps_are_like_any_other():
    """A thread whose first operation comes while another one steps has the process's number of threads."""
    world = World(lambda groups: CyclicSGD(groups, lr=0.1, policy=Constant()))
    before, seen, original = torch.get_num_threads(), [], torch._fused_sgd_

    def op(*args, **options):
        newborn = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        newborn.start()
        newborn.join()
        original(*args, **options)

    try:
        torch.set_num_threads(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "_fused_sgd_", op)
            for seed in range(3):
                world.step(seed)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {3}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_users_threads_are_left_alone(threads, error, monkeypatch):
    """A step, also one that raises in the middle, leaves the number of threads as it found it."""
    world = World(lambda groups: CyclicSGD(groups, lr=0.1, momentum=0.9, policy=Constant()))
    before, seen = torch.get_num_threads(), []
    original = torch._fused_sgd_

    def op(*args, **options):
        seen.append(torch.get_num_threads())
        if error is not None and len(seen) > 2:
            raise error
        original(*args, **options)

    try:
        torch.set_num_threads(threads)
        monkeypatch.setattr(torch, "_fused_sgd_", op)
        for seed in range(4):
            with contextlib.suppress(*[error] if error else []):
                world.step(seed)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1, threads}  # small tensors on one, large ones on all


def test_small_and_large_tensors_get_the_same_bits_as_in_one_call():
    """On how many threads a tensor is updated does not show in its values."""
    torch.manual_seed(0)
    for numel in (1, 31, fused.SMALL - 1, fused.SMALL, 3 * fused.SMALL + 5):
        values, grad = torch.randn(numel), torch.randn(numel)
        ends = []
        for make in (CyclicSGD, torch.optim.SGD):
            param = torch.nn.Parameter(values.clone())
            optimizer = make([param], lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
            for _ in range(3):
                param.grad = grad.clone()
                optimizer.step()
            ends.append(param.detach())
        assert torch.equal(*ends)
