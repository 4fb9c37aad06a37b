"""The compiled part of a step: it is there, it takes what is ordinary, and it does what Python does."""

import copy
import math
import random
import shutil
import sys
import weakref
from collections import UserDict

import numpy
import pytest
import torch
import torch_versions
from helpers import FREE_THREADED
from hypothesis import given
from hypothesis import strategies as st

from cyclic_optim import Constant, CyclicSGD, native


def test_the_compiled_part_is_there_wherever_it_can_be():
    """With a GIL, a C compiler and a torch that has DLPack's exchange API, installing has built it."""
    if FREE_THREADED:
        assert native.compiled is None
        assert not sys._is_gil_enabled()
    elif torch_versions.TORCH < (2, 10):
        assert native.compiled is None
    elif native.compiled is None and shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    else:
        assert native.compiled is not None


needs_it = pytest.mark.skipif(native.compiled is None, reason="see the test above")


@needs_it
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ordinary_parameters_are_all_updated_by_it(dtype, monkeypatch):
    """After a first step no torch operation is needed for small contiguous or channels_last parameters."""
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3,), (), (2, 3, 2, 2), (0, 3))]
    params[2].data = params[2].data.contiguous(memory_format=torch.channels_last)
    optimizer = CyclicSGD(params, lr=0.1, momentum=0.9, policy=Constant())
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()

    def refuse(*args, **kwargs):
        raise AssertionError("an operation of torch was called")

    monkeypatch.setattr(torch, "_fused_sgd_", refuse)
    optimizer.step()
    for param in params:
        torch.testing.assert_close(param.detach(), torch.full_like(param.detach(), 1 - 0.1 - 0.19))


numbers = st.sampled_from([0.0, 1.0, 0.25, 1e300, -1.0, math.inf, math.nan, 1, 3, True, None, "x", 10**400])


@needs_it
@given(
    peaks=st.lists(st.sampled_from([0.0, 0.5, 1e300, 2, -1.0, math.inf, math.nan, "x"]), min_size=1, max_size=3),
    lrs=st.lists(st.sampled_from([0.5, 1, torch.tensor(0.5)]), min_size=3, max_size=3),
    answer=st.tuples(numbers, numbers) | numbers,
)
def test_values_are_checked_and_written_as_python_does(peaks, lrs, answer):
    """Whatever a policy says and the groups hold, the groups end up the same, or the same error is raised."""

    said = []

    class Says(Constant):
        def at(self, step):
            return said[0] if said and step > 0 else Constant().at(step)

    ends = []
    for compiled in (native.compiled, None):
        pairs = list(zip(peaks, lrs, strict=False))
        params = [torch.nn.Parameter(torch.ones(1)) for _ in pairs]
        optimizer = CyclicSGD([{"params": [param]} for param in params], momentum=0.9, policy=Says())
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "compiled", compiled)
            for group, (peak, lr) in zip(optimizer.param_groups, pairs, strict=True):
                group["max_lr"], group["lr"] = peak, copy.copy(lr)
            said.append(answer)
            try:
                optimizer.step()
            except (TypeError, ValueError) as error:
                seen.append(str(error))
            said.clear()
        shown = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        ends.append(repr((seen, shown)))
    assert ends[0] == ends[1]


@needs_it
def test_a_dispatch_mode_sees_every_operation():
    """Where somebody watches torch's operations, the update is made of them."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen = (*self.seen, str(func))
            return func(*args, **(kwargs or {}))

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = CyclicSGD([param], lr=0.1, policy=Constant())
    with Watch() as watch:
        optimizer.step()
    assert any("_fused_sgd_" in name for name in watch.seen)


@needs_it
def test_an_error_in_the_middle_leaves_everything_as_it_was():
    """Where one group is malformed, no parameter of another one has moved."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = CyclicSGD([{"params": [param]} for param in params], lr=0.1, policy=Constant())
    for param in params:
        param.grad = torch.ones(2)
    optimizer.param_groups[1]["params"] = None
    with pytest.raises(TypeError, match="need param groups that are dicts with a list 'params'"):
        optimizer.step()
    assert torch.equal(params[0], torch.ones(2))
    assert optimizer.param_groups[0]["schedule_step"] == 0


@needs_it
def test_the_mark_of_a_negated_view_is_found():
    """In this torch it is known where a tensor says that it is negated, so that nobody needs to be asked."""
    assert all(native.find_negation())


@needs_it
def test_the_mark_is_found_wherever_tensors_lie(monkeypatch):
    """Also where the first tensors and later ones lie in parts of memory that a bit of the address tells apart."""
    draw, held, kept = random.Random(2), [], []

    def release_and_negate(tensor):
        held.clear()
        return torch._neg_view(tensor)

    monkeypatch.setattr(native, "negated_view", release_and_negate)
    for _ in range(60):
        held[:] = [torch.zeros(3) for _ in range(draw.randrange(100, 3000))]
        assert all(native.find_negation())
        kept = [*kept, [torch.zeros(3) for _ in range(draw.randrange(2000))]][-5:]


@needs_it
@pytest.mark.parametrize("known", [True, False], ids=["read", "asked"])
@pytest.mark.parametrize("which", ["param", "grad", "buffer", None])
@pytest.mark.parametrize("view", [lambda tensor: tensor, torch.Tensor.detach, lambda tensor: tensor[1:]])
def test_negated_tensors_are_left_to_python(known, which, view):
    """Of parameter, gradient and buffer, any that is a negated view (or a view of one) is noticed, and no other is."""
    native.compiled.use(*native.OF_TORCH, *(native.find_negation() if known else (0, 0, 0)))
    try:
        tensors = {
            name: view(torch._neg_view(torch.ones(4)) if name == which else torch.ones(4))
            for name in ("param", "grad", "buffer")
        }
        param = torch.nn.Parameter(tensors["param"])
        param.grad = tensors["grad"]
        optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, policy=Constant())
        state = {param: {"momentum_buffer": tensors["buffer"]}}
        done, calls, rest = native.compiled.update(optimizer.param_groups, state, 100, False)
    finally:
        native.compiled.use(*native.OF_TORCH, *native.find_negation())
    assert len(done) + len(calls) == (which is None)
    assert len(rest) == (which is not None)


@needs_it
@given(
    options=st.fixed_dictionaries(
        {
            "momentum": st.sampled_from([0.0, 0.9]),
            "dampening": st.sampled_from([0.0, 0.3]),
            "weight_decay": st.sampled_from([0.0, 0.0123]),
            "nesterov": st.booleans(),
            "maximize": st.booleans(),
        }
    ).filter(lambda options: not options["nesterov"] or (options["momentum"] and not options["dampening"])),
    numel=st.integers(1, 70),
    real=st.sampled_from([numpy.float32, numpy.float64]),
)
def test_every_operation_is_rounded_by_itself(options, numel, real):
    """The bits are those of the formula, operation by operation, whatever the machine could do at once."""
    rng = numpy.random.default_rng(numel)
    value, grad, buffer = (rng.standard_normal(numel).astype(real) for _ in range(3))
    param = torch.nn.Parameter(torch.from_numpy(value.copy()))
    param.grad = torch.from_numpy(grad.copy())
    optimizer = CyclicSGD([param], lr=0.0317, policy=Constant(), **options)
    optimizer.state[param]["momentum_buffer"] = torch.from_numpy(buffer.copy())
    optimizer.step()

    change = -grad if options["maximize"] else grad
    if options["weight_decay"]:
        change = change + value * real(options["weight_decay"])
    if options["momentum"]:
        moved = buffer * real(options["momentum"]) + change * real(1 - options["dampening"])
        change = change + moved * real(options["momentum"]) if options["nesterov"] else moved
    numpy.testing.assert_array_equal(param.detach().numpy(), value - change * real(0.0317))


class ListOfTheirs(list):
    """May be weakly referenced."""


class DictOfTheirs(dict):
    """Likewise."""


class StateOfTheirs(UserDict):
    def __missing__(self, key):
        self[key] = {}
        return self[key]


UNUSUAL = {
    "params as a tuple": lambda optimizer: optimizer.param_groups[0].update(
        params=(*optimizer.param_groups[0]["params"],)
    ),
    "params as a subclass of list": lambda optimizer: optimizer.param_groups[0].update(
        params=ListOfTheirs(optimizer.param_groups[0]["params"])
    ),
    "param_groups as a tuple": lambda optimizer: setattr(optimizer, "param_groups", (*optimizer.param_groups,)),
    "groups that are no dicts": lambda optimizer: setattr(
        optimizer, "param_groups", [UserDict(group) for group in optimizer.param_groups]
    ),
    "a state that is no dict": lambda optimizer: setattr(optimizer, "state", StateOfTheirs(optimizer.state)),
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL.keys())
@pytest.mark.parametrize("compiled", [native.compiled, None], ids=["compiled", "python"])
def test_containers_of_other_types_do(change, compiled, monkeypatch):
    """Whatever holds parameters, groups and state, as long as it does what torch's lists and dicts do."""
    monkeypatch.setattr(native, "compiled", compiled)
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = CyclicSGD([param], lr=0.1, momentum=0.5, policy=Constant())
    for step in range(3):
        param.grad = torch.ones(2)
        optimizer.step()
        if step == 0:
            change(optimizer)
    torch.testing.assert_close(param.detach(), torch.full((2,), 1 - 0.1 * (1 + 1.5 + 1.75)))
    assert optimizer.param_groups[0]["schedule_step"] == 3


@needs_it
def test_groups_are_kept_while_they_are_looked_at():
    """A parameter that is asked for its gradient may do anything, also throw away the groups that are at hand."""
    plain = torch.nn.Parameter(torch.ones(2))
    plain.grad = torch.ones(2)
    groups = [DictOfTheirs(CyclicSGD([plain], lr=0.1, policy=Constant()).param_groups[0])]
    alive = []

    class Careless(torch.nn.Parameter):
        @property
        def grad(self):
            group = weakref.ref(groups[0])
            params = weakref.ref(groups[0].pop("params"))
            groups.clear()
            alive.append((group() is not None, params() is not None))

    groups[0]["params"] = ListOfTheirs([Careless(torch.ones(2)), plain])
    done, calls, rest = native.compiled.update(groups, {}, 100, False)
    assert alive == [(True, True)]
    assert [*map(id, done)] == [id(plain)]
    assert (calls, rest) == ([], [])


@needs_it
def test_buffers_are_kept_while_they_are_looked_at():
    """Another thread may replace a buffer whenever the interpreter's lock is let go, as torch does when asked."""
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, policy=Constant())
    optimizer.step()
    buffer, alive = weakref.ref(optimizer.state[param]["momentum_buffer"]), []

    def is_neg(tensor):
        optimizer.state[param].pop("momentum_buffer", None)
        alive.append(buffer() is not None)
        return False

    exchange_api, *types, _, grad = native.OF_TORCH
    native.compiled.use(exchange_api, *types, is_neg, grad, 0, 0, 0)
    try:
        done, _, _ = native.compiled.update(optimizer.param_groups, optimizer.state, 100, False)
    finally:
        native.compiled.use(*native.OF_TORCH, *native.find_negation())
    assert len(done) == 1
    assert alive == [True] * 3
