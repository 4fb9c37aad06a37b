"""The layout of tensors: described as it is, for another one whenever a table of addresses would be stale."""

import struct
import warnings
from collections import UserDict, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cyclic_optim import native

needs_it = pytest.mark.skipif(native.compiled is None, reason="test_compiled.py says whether it should be there")

KEYS = ("momentum_buffer", "started")
CODES = {torch.float32: 2 * 256 + 32, torch.float64: 2 * 256 + 64, torch.float16: 2 * 256 + 16}
CODES[torch.bfloat16] = 4 * 256 + 16


def described(groups, state):
    """The layout by what torch's tensors say of themselves."""
    records, grads = [], []
    for index, group in enumerate(groups):
        for param in group["params"]:
            if param.grad is None:
                continue
            records += [index, id(param), param.data_ptr(), param.numel(), CODES[param.dtype], 65536]
            for key in KEYS:
                tensor = state.get(param, {}).get(key)
                records += [0, 0] if tensor is None else [id(tensor), tensor.data_ptr()]
            grads.append(param.grad.data_ptr())
    return struct.pack(f"={len(records)}q", *records), struct.pack(f"={len(grads)}q", *grads)


def parameter(shape=(2, 3, 4, 5), dtype=torch.float32):
    """A parameter with its gradient."""
    param = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    param.grad = torch.ones_like(param)
    return param


def case():
    """Two groups of two parameters, with gradients, momentum buffers and flags."""
    groups = [{"params": [parameter(), parameter((3,))]}, {"params": [parameter(()), parameter((2, 2))]}]
    state = defaultdict(dict)
    for group in groups:
        for param in group["params"]:
            state[param] = {"momentum_buffer": torch.zeros_like(param.detach()), "started": torch.zeros(())}
    return groups, state


@needs_it
@given(st.data())
def test_the_layout_is_what_the_tensors_say(data):
    """Over dtypes, shapes, dimension orders, absent gradients and state, and states in any order."""
    groups, params = [], []
    for _ in range(data.draw(st.integers(0, 3))):
        groups.append({"params": []})
        for _ in range(data.draw(st.integers(0, 3))):
            param = parameter(data.draw(st.sampled_from([(), (3,), (1, 1), (0, 3), (2, 3, 4, 5)])))
            param.data = param.data.to(data.draw(st.sampled_from([*CODES])))
            if param.dim() == 4 and data.draw(st.booleans()):
                param.data = param.data.contiguous(memory_format=torch.channels_last)
            param.grad = torch.ones_like(param) if data.draw(st.integers(0, 3)) else None
            groups[-1]["params"].append(param)
            params.append(param)
    state = data.draw(st.sampled_from([{}, defaultdict(dict)]))
    for param in data.draw(st.permutations(params)) if data.draw(st.booleans()) else params:
        if data.draw(st.integers(0, 3)):
            state[param] = data.draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "momentum_buffer": st.just(torch.zeros_like(param.detach())) | st.none(),
                        "started": st.just(torch.zeros((1,))) | st.none(),
                        "other": st.just(3),
                    },
                )
            )
    assert native.layout(groups, state, KEYS) == described(groups, state)


@needs_it
def test_parameters_without_elements_are_described_whatever_their_strides():
    """Of tensors without elements, shapes have to agree, strides do not."""
    param = torch.nn.Parameter(torch.ones(0, 3))
    param.grad = torch.ones(3, 0).t()
    state = {param: {"momentum_buffer": torch.ones(3, 0).t()}}
    assert param.stride() != param.grad.stride()
    assert native.layout([{"params": [param]}], state, KEYS) == described([{"params": [param]}], state)
    param.grad, param.data = torch.ones(0, 3), torch.ones(0, 3, dtype=torch.float64)
    assert native.layout([{"params": [param]}], {}, KEYS) is None


def new_values(groups, state):
    for group in groups:
        for param in group["params"]:
            param.data.fill_(7.0)
            param.grad.fill_(8.0)
            state[param]["momentum_buffer"].fill_(9.0)
            state[param]["started"].fill_(1.0)


@needs_it
def test_the_layout_stays_equal_while_only_values_change():
    """In-place changes of parameters, gradients, state and other entries of a group are none of the layout."""
    groups, state = case()
    before = native.layout(groups, state, KEYS)
    new_values(groups, state)
    groups[0]["lr"] = 3.0
    state[groups[0]["params"][0]]["other"] = "x"
    assert native.layout(groups, state, KEYS) == before


def first(groups):
    return groups[0]["params"][0]


def other_dtype(groups, state):
    """The same addresses, half as many elements."""
    param = first(groups)
    for tensor in (param, param.grad, state[param]["momentum_buffer"]):
        tensor.data = tensor.detach().view(torch.bfloat16)[..., :5].as_strided((2, 3, 4, 5), (60, 20, 5, 1))


CHANGES = {
    "data of a parameter": lambda groups, state: setattr(first(groups), "data", first(groups).data.clone()),
    "a parameter": lambda groups, state: groups[1]["params"].__setitem__(0, parameter(())),
    "a gradient": lambda groups, state: setattr(first(groups), "grad", first(groups).grad.clone()),
    "no gradient": lambda groups, state: setattr(first(groups), "grad", None),
    "a buffer": lambda groups, state: state[first(groups)].update(momentum_buffer=torch.zeros(2, 3, 4, 5)),
    "another object for the same buffer": lambda groups, state: state[first(groups)].update(
        momentum_buffer=state[first(groups)]["momentum_buffer"].detach()
    ),
    "no buffer": lambda groups, state: state[first(groups)].pop("momentum_buffer"),
    "a flag": lambda groups, state: state[first(groups)].update(started=torch.zeros(())),
    "no flag": lambda groups, state: state[first(groups)].update(started=None),
    "dtype": other_dtype,
    "order": lambda groups, state: groups[0]["params"].reverse(),
    "order of groups": lambda groups, state: groups.reverse(),
    "group": lambda groups, state: groups[1]["params"].insert(0, groups[0]["params"].pop()),
    "no state": lambda groups, state: state.pop(first(groups)),
}


@needs_it
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_layout_tells_every_change(change):
    """Whatever a table of addresses depends on changes the layout, which is described right afterwards."""
    groups, state = case()
    old = case()  # keeps addresses of freed memory from being used again
    tensors = [(param.data, param.grad, dict(state[param])) for group in groups for param in group["params"]]
    before = native.layout(groups, state, KEYS)
    change(groups, state)
    after = native.layout(groups, state, KEYS)
    assert after not in (before, None)
    assert after == described(groups, state)
    assert tensors
    assert old


class ParameterOfTheirs(torch.nn.Parameter):
    """A subclass, whose gradient must not be asked for."""

    @property
    def grad(self):
        raise AssertionError


def misaligned(n):
    """Float32 elements that begin at an odd address."""
    tensor = torch.empty(0)
    return tensor.set_(torch.zeros(4 * n + 8, dtype=torch.uint8).untyped_storage()[1 : 4 * n + 1], 0, (n,))


def set_param(make, make_grad=None):
    def change(groups, state):
        param = torch.nn.Parameter(make(), requires_grad=False)
        param.grad = (make_grad or make)()
        groups[0]["params"][0] = param

    return change


def ones():
    return torch.ones(3)


def set_grad(make):
    def change(groups, state):
        param = torch.nn.Parameter(torch.ones(4, 4), requires_grad=False)
        param.grad = make()
        groups[0]["params"][0] = param

    return change


def set_state(**entries):
    return lambda groups, state: state[first(groups)].update({key: make() for key, make in entries.items()})


BASE = (2, 3, 4, 5)
UNUSUAL = {
    "a group that is no dict": lambda groups, state: groups.__setitem__(1, UserDict(groups[1])),
    "a group without params": lambda groups, state: groups[1].pop("params"),
    "params in a tuple": lambda groups, state: groups[1].update(params=tuple(groups[1]["params"])),
    "state of a parameter that is no dict": lambda groups, state: state.__setitem__(first(groups), UserDict()),
    "a subclass": lambda groups, state: groups[1]["params"].append(ParameterOfTheirs(torch.ones(2))),
    "no tensor": lambda groups, state: groups[1]["params"].append("x"),
    "an expanded parameter": set_param(lambda: torch.ones(1).expand(3)),
    "a parameter with gaps": set_param(lambda: torch.ones(4, 4)[:, ::2]),
    "a negated parameter": set_param(lambda: torch._neg_view(torch.ones(3)), ones),
    "a complex parameter": set_param(lambda: torch.ones(3, dtype=torch.complex64)),
    "a parameter of integers": set_param(lambda: torch.ones(3, dtype=torch.int32)),
    "a parameter on the meta device": set_param(lambda: torch.ones(3, device="meta")),
    "a sparse parameter": set_param(lambda: torch.ones(3).to_sparse()),
    "a parameter of zeros without memory": set_param(lambda: torch._efficientzerotensor((3,)), ones),
    "a misaligned parameter": set_param(lambda: misaligned(3), ones),
    "a sparse gradient": set_grad(lambda: torch.ones(4, 4).to_sparse()),
    "a negated gradient": set_grad(lambda: torch._neg_view(torch.ones(4, 4))),
    "an expanded gradient": set_grad(lambda: torch.ones(1, 4).expand(4, 4)),
    "a transposed gradient": set_grad(lambda: torch.ones(4, 4).t()),
    "a gradient of zeros without memory": set_grad(lambda: torch._efficientzerotensor((4, 4))),
    "a misaligned gradient": set_grad(lambda: misaligned(16).view(4, 4)),
    "a subclass as a gradient": set_grad(lambda: torch.ones(4, 4).as_subclass(type("Other", (torch.Tensor,), {}))),
    "a buffer of another shape": set_state(momentum_buffer=lambda: torch.ones(2, 3, 4)),
    "a buffer of other strides": set_state(momentum_buffer=lambda: torch.ones(5, 4, 3, 2).permute(3, 2, 1, 0)),
    "a buffer of another dtype": set_state(momentum_buffer=lambda: torch.ones(BASE, dtype=torch.float64)),
    "a buffer on another device": set_state(momentum_buffer=lambda: torch.ones(BASE, device="meta")),
    "a negated buffer": set_state(momentum_buffer=lambda: torch._neg_view(torch.ones(BASE))),
    "a buffer that is no tensor": set_state(momentum_buffer=lambda: 0.5),
    "a buffer of zeros without memory": set_state(momentum_buffer=lambda: torch._efficientzerotensor(BASE)),
    "a flag of two elements": set_state(started=lambda: torch.ones(2)),
    "a flag without elements": set_state(started=lambda: torch.ones(0)),
    "a flag that is no tensor": set_state(started=lambda: True),
    "a flag of another dtype": set_state(started=lambda: torch.ones((), dtype=torch.float64)),
    "a negated flag": set_state(started=lambda: torch._neg_view(torch.ones(()))),
}


@needs_it
@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_out_of_the_ordinary_has_no_layout(change):
    """One group, parameter, gradient or state of that kind and there is no layout, which there was before."""
    groups, state = case()
    assert native.layout(groups, state, KEYS) is not None
    change(groups, state)
    assert native.layout(groups, state, KEYS) is None


@needs_it
def test_containers_of_other_types_have_no_layout():
    """``param_groups`` is a list and ``state`` a dict, or Python does it all; keys have to be strings."""
    groups, state = case()
    assert native.layout(tuple(groups), state, KEYS) is None
    assert native.layout(groups, UserDict(state), KEYS) is None
    for keys in ([*KEYS], ("momentum_buffer", None)):
        with pytest.raises(TypeError, match=r"need .* to be a"):
            native.layout(groups, state, keys)


def test_without_the_compiled_part_there_is_no_layout(monkeypatch):
    """Python then does it all."""
    monkeypatch.setattr(native, "compiled", None)
    assert native.layout([], {}, KEYS) is None


@needs_it
def test_a_warning_about_a_gradient_may_empty_everything(monkeypatch):
    """torch warns where the gradient of a result is read, and showing a warning runs Python code."""
    groups, state = case()
    groups[0]["params"][0] = torch.ones(3, requires_grad=True) * 2
    shown = []

    def show(*args):
        shown.append(args)
        for group in groups:
            group["params"].clear()
            group.clear()
        groups.clear()
        state.clear()

    monkeypatch.setattr(warnings, "showwarning", show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        assert native.layout(groups, state, KEYS) == (b"", b"")
    assert len(shown) == 1
    assert groups == []
