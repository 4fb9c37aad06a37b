"""A checkpoint is data from outside: whatever it holds, it loads and trains, or is refused and nothing has changed."""

import copy
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import warnings
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from helpers import DEEP
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import halving, sawtooth
from torch.optim import SGD

from cyclic_optim import (
    Constant,
    CyclicSGD,
    LambdaPolicy,
    OneCycle,
    Plateau,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
)
from cyclic_optim.device import DeviceSchedules
from cyclic_optim.policies import POLICIES, describe, rebuild

DRAWN = 10_000 if DEEP else 300

# --- optimizers that are given a checkpoint


def weights():
    # Two groups, two dtypes, and one parameter that has no buffer yet.
    shapes = (3, torch.float64), ((2, 2), torch.float32), (1, torch.float64)
    first, second, third = (torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape, dtype in shapes)
    return [[first, second], [third]]


def set_grads(params):
    for group in params:
        for param in group:
            param.grad = torch.full_like(param, 0.5)


def make(policy, momentum=0.9, steps=2, cls=CyclicSGD, **options):
    """An optimizer that has made some steps, and its parameters."""
    params = weights()
    kept = {} if cls is SGD else {"policy": policy}
    groups = [{"params": params[0]}, {"params": params[1], "lr": 0.05}]
    optimizer = cls(groups, lr=0.1, momentum=momentum, weight_decay=0.01, **kept, **options)
    set_grads(params)
    params[1][0].grad = None
    for _ in range(steps):
        optimizer.step()
    set_grads(params)
    if isinstance(policy, Plateau):
        optimizer.report(1.0)
        optimizer.report(2.0)
    return optimizer, params


NESTED = Sequential([StepDecay(3), Staircase(Triangular(2), 2)], [4])

#: What is in the code, and under what the checkpoint was written, as two calls of ``make``.
KINDS = {
    "host": ({"policy": Triangular(4)}, {"policy": Triangular(4)}),
    "host, another policy": ({"policy": LambdaPolicy(sawtooth)}, {"policy": OneCycle(20)}),
    "host, reports": ({"policy": Plateau()}, {"policy": Plateau()}),
    "host, rate in a tensor": (
        {"policy": Constant(), "lr_tensor": True},
        {"policy": Constant(), "lr_tensor": True},
    ),
    "host, loops": ({"policy": Triangular(4), "foreach": False}, {"policy": Triangular(4), "foreach": False}),
    "policy from the checkpoint": ({"policy": None}, {"policy": NESTED}),
    "reports from the checkpoint": ({"policy": None}, {"policy": Plateau()}),
    "from SGD": ({"policy": Triangular(4)}, {"policy": None, "cls": SGD}),
    "device": ({"policy": Triangular(4), "capturable": True}, {"policy": Triangular(4), "capturable": True}),
    "device, reports": (
        {"policy": Plateau(), "capturable": True, "horizon": 9},
        {"policy": Plateau(), "capturable": True, "horizon": 9},
    ),
    "device, another policy": (
        {"policy": OneCycle(20), "capturable": True},
        {"policy": Triangular(4, scale_fn=halving)},
    ),
}
PLAIN = {"policy": None}, {"policy": None}


def build(lr_tensor=False, **arguments):
    if not lr_tensor:
        return make(**arguments)
    optimizer, params = make(**arguments, steps=0)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    optimizer.step()
    return optimizer, params


def checkpoint(kind):
    return copy.deepcopy(build(**kind[1])[0].state_dict())


# --- what an optimizer is, to the bit


def frozen(value):
    """The value as something that compares equal exactly where every bit, type and key is the same."""
    if isinstance(value, torch.Tensor):
        held = value.detach()
        # Bytes: writing out a table of the device's as text would be most of the time.
        bits = held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.is_contiguous() else repr(held.tolist())
        return "tensor", value.dtype, tuple(value.shape), value.requires_grad, bits
    if isinstance(value, dict):
        return "dict", [(key if not isinstance(key, torch.Tensor) else id(key), frozen(value[key])) for key in value]
    if isinstance(value, (list, tuple)):
        return type(value), [frozen(item) for item in value]
    return type(value), repr(value)


def everything(optimizer):
    """All that loading might touch: groups, buffers and weights, the device's clock, and which tensors they are."""
    device = optimizer._schedules if isinstance(optimizer._schedules, DeviceSchedules) else None
    clock = (
        None if device is None else {key: value for key, value in vars(device.clock).items() if key != "_known_scale"}
    )
    given = None if device is None else device.shown.given
    which = [id(param) for group in optimizer.param_groups for param in group["params"]]
    which += [id(value) for group in optimizer.param_groups for value in group.values() if torch.is_tensor(value)]
    which += [id(kept.get("momentum_buffer")) for kept in optimizer.state.values()]
    held = optimizer.param_groups, dict(optimizer.state), optimizer.defaults, clock, given
    return frozen(list(held)), which, optimizer.policy


def trains(optimizer, params):
    """Some steps, with the counter going on, and a checkpoint that loads again."""
    before = [int(group["schedule_step"]) for group in optimizer.param_groups if "schedule_step" in group]
    for _ in range(3):
        set_grads(params)
        optimizer.step()
    after = [int(group["schedule_step"]) for group in optimizer.param_groups if "schedule_step" in group]
    assert after == [step + 3 for step in before]
    saved = optimizer.state_dict()
    repr(optimizer)
    optimizer.load_state_dict(saved)
    copy.deepcopy(optimizer).step()


def loads_or_refuses(kind, saved, what=""):
    """The one property of this module; True where the checkpoint was taken."""
    optimizer, params = build(**kind[0])
    before = everything(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = error_of(lambda: optimizer.load_state_dict(saved))
        assert refused is None or is_clear(refused), (what, refused)
        assert refused is None or everything(optimizer) == before, what
        failed = error_of(lambda: trains(optimizer, params))
        assert failed is None, (what, "refused" if refused else "loaded", failed)
    return refused is None


def error_of(call):
    """What was raised, or None."""
    try:
        call()
    except Exception as error:
        return error


def is_clear(error):
    """A ValueError or TypeError itself, and it states a rule (torch's own, of sizes, among them)."""
    rule = "need " in str(error) or str(error).startswith("loaded state dict")
    return type(error) in (ValueError, TypeError) and rule


# --- junk


def deep(levels, shut=list):
    junk = 0
    for _ in range(levels):
        junk = [junk] if shut is list else (junk,) if shut is tuple else {"policy": junk}
    return junk


def endless():
    junk = []
    junk.append(junk)
    return junk


def bomb():
    """Forty levels that share what is below them: small in memory, and endless when written out."""
    junk = [1]
    for _ in range(40):
        junk = [junk, junk]
    return junk


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that some tensors are in their beta and some in their last version
        return make()


class Silent:
    """Something that does not even print."""

    def __repr__(self):
        raise RuntimeError("no repr")


JUNK = {
    "none": lambda: None,
    "true": lambda: True,
    "false": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "2": lambda: 2,
    "-1": lambda: -1,
    "2**62": lambda: 2**62,
    "2**63": lambda: 2**63,
    "-2**63": lambda: -(2**63),
    "10**30": lambda: 10**30,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "-10**5000": lambda: -(10**5000),
    "0.0": lambda: 0.0,
    "-0.0": lambda: -0.0,
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "3.0": lambda: 3.0,
    "1e39": lambda: 1e39,
    "1e308": lambda: 1e308,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "5e-324": lambda: 5e-324,
    "complex": lambda: 1j,
    "fraction": lambda: Fraction(1, 3),
    "huge fraction": lambda: Fraction(10**400),
    "numpy float": lambda: np.float32(0.5),
    "numpy int": lambda: np.int64(3),
    "numpy bool": lambda: np.bool_(True),
    "numpy array": lambda: np.ones(4),
    "text": lambda: "junk",
    "no text": lambda: "",
    "number as text": lambda: "0.5",
    "surrogate": lambda: "\ud800",
    "bytes": lambda: b"junk",
    "list": list,
    "numbers": lambda: [1, 2, 3, 4],
    "tuple": lambda: (1, 2),
    "set": lambda: {1},
    "dict": dict,
    "dict of numbers": lambda: {1: 2},
    "mixed keys": lambda: {"a": 1, 2: 3, None: 4},
    "deep list": lambda: deep(5000),
    "deep tuple": lambda: deep(5000, tuple),
    "deep dict": lambda: deep(5000, dict),
    "rather deep": lambda: deep(150),
    "endless": endless,
    "bomb": bomb,
    "object": object,
    "silent": Silent,
    "type": lambda: dict,
    "function": lambda: sawtooth,
    "range": lambda: range(3),
    "generator": lambda: iter([1, 2]),
    "policy": lambda: Constant(),
    "tensor": lambda: torch.tensor(0.5),
    "tensor of 1": lambda: torch.tensor([0.5]),
    "tensor of 3": lambda: torch.ones(3),
    "no elements": lambda: torch.ones(0),
    "other shape": lambda: torch.ones(7, 2),
    "int tensor": lambda: torch.tensor(3),
    "bool tensor": lambda: torch.tensor([True, False, True]),
    "complex tensor": lambda: torch.ones(3, dtype=torch.complex64),
    "nan tensor": lambda: torch.full((3,), math.nan),
    "half tensor": lambda: torch.ones(3, dtype=torch.float16),
    "meta tensor": lambda: torch.ones(3, device="meta"),
    "meta number": lambda: torch.ones((), device="meta"),
    "sparse tensor": lambda: torch.ones(3).to_sparse(),
    "csr tensor": lambda: quietly(torch.ones(2, 2).to_sparse_csr),
    "expanded": lambda: torch.ones(1).expand(3),
    "wants grad": lambda: torch.ones(3, requires_grad=True),
    "number that wants grad": lambda: torch.tensor(0.5, requires_grad=True),
    "no leaf": lambda: torch.ones(3, requires_grad=True) * 2,
    "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
    "quantized": lambda: quietly(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "nan number in a tensor": lambda: torch.tensor(math.nan),
    "negative number in a tensor": lambda: torch.tensor(-1.0),
}

DESCRIPTIONS = {
    "null": "null",
    "a number": "3",
    "a list": "[]",
    "an empty dict": "{}",
    "broken": "{",
    "nan": '{"name": "ExponentialDecay", "fields": {"gamma": NaN}}',
    "infinity": '{"name": "Triangular", "fields": {"div_factor": Infinity}}',
    "1e400": '{"name": "Triangular", "fields": {"div_factor": 1e400}}',
    "a length beyond floats": '{"name": "OneCycle", "fields": {"total_steps": 1' + "0" * 400 + "}}",
    "a length beyond int64": '{"name": "OneCycle", "fields": {"total_steps": 9223372036854775808}}',
    "a length beyond printing": '{"name": "OneCycle", "fields": {"total_steps": 1' + "0" * 5000 + "}}",
    "a number beyond floats": '{"name": "InverseTimeDecay", "fields": {"k": 1' + "0" * 400 + "}}",
    "unknown": '{"name": "Nonsense", "fields": {}}',
    "a name with a dot": '{"name": "os.system", "fields": {"command": "true"}}',
    "self": '{"name": "Constant", "fields": {"self": 1}}',
    "class": '{"name": "Constant", "fields": {"__class__": 1}}',
    "no name": '{"fields": {}}',
    "no fields": '{"name": "Constant"}',
    "name of another kind": '{"name": ["Constant"], "fields": {}}',
    "fields of another kind": '{"name": "Constant", "fields": []}',
    "code": '{"name": "LambdaPolicy", "fields": {"fn": {"code": "os.system"}}}',
    "code of another kind": '{"name": "LambdaPolicy", "fields": {"fn": {"code": [1]}}}',
    "a policy for a function": '{"name": "LambdaPolicy", "fields": {"fn": {"name": "Constant", "fields": {}}}}',
    "deep list": '{"name": "Constant", "fields": ' + "[" * 5000 + "]" * 5000 + "}",
    "deeper list": "[" * 200_000,
    "deep policy": '{"name": "Staircase", "fields": {"length": 1, "policy": ' * 5000 + "0" + "}}" * 5000,
    "rather deep policy": '{"name": "Staircase", "fields": {"length": 1, "policy": ' * 200
    + '{"name": "Constant", "fields": {}}'
    + "}}" * 200,
    "somewhat deep policy": '{"name": "Staircase", "fields": {"length": 1, "policy": ' * 45
    + '{"name": "Constant", "fields": {}}'
    + "}}" * 45,
    "growing without end": '{"name": "CosineRestarts", "fields": {"t_0": 1, "t_mult": 1.0000000000000002}}',
    "growing at once": '{"name": "CosineRestarts", "fields": {"t_0": 9223372036854775807, "t_mult": 1e308}}',
    "as bytes": b'{"name": "Constant", "fields": {}}',
    "as a dict": {"name": "Constant", "fields": {}},
}


def paths(node, path=()):
    """Where something can be put: every place in a state dict, and the dict as a whole."""
    yield path
    if len(path) == 6:
        return  # what is deeper was put there before, and may be endless
    if isinstance(node, dict):
        for key in list(node):
            yield from paths(node[key], (*path, key))
    elif isinstance(node, list):
        for i in range(len(node)):
            yield from paths(node[i], (*path, i))


def parent(node, path):
    for key in path[:-1]:
        node = node[key]
    return node


def put(saved, path, value):
    if not path:
        return value
    parent(saved, path)[path[-1]] = value
    return saved


def drop(saved, path):
    del parent(saved, path)[path[-1]]
    return saved


def resize(saved, path, longer):
    """One item more or less in whatever is there; False where nothing has a size."""
    value = saved
    for key in path:
        value = value[key]
    if isinstance(value, list):
        value.append(copy.copy(value[-1]) if value else 0) if longer else value and value.pop()
    elif isinstance(value, dict):
        value.update(more=1) if longer else value and value.popitem()
    elif isinstance(value, torch.Tensor):
        return put(saved, path, torch.cat([value.reshape(-1)] * 2) if longer else value.reshape(-1)[:-1])
    elif isinstance(value, str):
        return put(saved, path, value + "}" if longer else value[:-1])
    return saved


def some(cases, number):
    """All cases in the deep profile, otherwise the same few each time, from everywhere."""
    return cases if DRAWN == 10_000 or len(cases) <= number else random.Random(0).sample(cases, number)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_dropped_or_resized(kind):
    """Any one key or item missing, one too many in any container, or a tensor or text too long or too short."""
    saved = checkpoint(KINDS[kind])
    for path in list(paths(saved))[1:]:
        loads_or_refuses(KINDS[kind], drop(copy.deepcopy(saved), path), f"{path} dropped")
    for path, longer in product(paths(saved), (True, False)):
        loads_or_refuses(KINDS[kind], resize(copy.deepcopy(saved), path, longer), f"{path} resized, {longer=}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_replaced_by_every_junk(kind):
    """In place of every value, anything: other types, no number, huge, deep, endless, tensors of every sort."""
    saved = checkpoint(KINDS[kind])
    for path, junk in some(list(product(paths(saved), JUNK)), 120):
        loads_or_refuses(KINDS[kind], put(copy.deepcopy(saved), path, JUNK[junk]()), f"{path} = {junk}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_replaced_in_all_groups_alike(kind):
    """The same junk under one key of every group, where no difference between them gives it away."""
    saved = checkpoint(KINDS[kind])
    for key, junk in some(list(product(list(saved["param_groups"][0]), JUNK)), 120):
        changed = copy.deepcopy(saved)
        for group in changed["param_groups"]:
            group[key] = JUNK[junk]()
        loads_or_refuses(KINDS[kind], changed, f"{key} = {junk} in all groups")


@pytest.mark.parametrize("kind", ["host", "host, reports", "policy from the checkpoint", "device", "device, reports"])
def test_counters_that_cannot_go_on_are_refused(kind):
    """A counter below 0, of another type, or with no room left above it, is refused; the last with room trains."""
    for step in (-1, -(2**63), 2**62, 2**63 - 1, 2**63, 10**400, 10**5000, 1.0, True, "1", None, math.nan, 2**62 - 9):
        saved = checkpoint(KINDS[kind])
        for group in saved["param_groups"]:
            group["schedule_step"] = step
        assert loads_or_refuses(KINDS[kind], saved, step) == (step == 2**62 - 9)


@pytest.mark.parametrize("junk", ["deep list", "deep dict", "deep tuple", "rather deep", "endless", "bomb"])
@pytest.mark.parametrize("kind", ["host", "policy from the checkpoint", "device"])
def test_what_is_nested_without_measure_is_refused(kind, junk):
    """Thousands of levels, a list in itself, and one that doubles on every level are refused at any place."""
    for place in (
        ("param_groups", 0, "more"),
        ("state", 0, "more"),
        ("state", 7),
        ("more",),
        ("param_groups", 1, "lr"),
    ):
        saved = put(checkpoint(KINDS[kind]), place, JUNK[junk]())
        assert not loads_or_refuses(KINDS[kind], saved, place)


@pytest.mark.parametrize("kind", ["host", "host, loops"])
@pytest.mark.parametrize("key", ["lr", "max_lr", "momentum", "dampening", "weight_decay"])
def test_numbers_that_the_parameters_cannot_hold_are_refused(key, kind):
    """A number beyond the dtype of a group's parameters would fail inside a step, half of which is done by then."""
    for value in (1e39, 1e308, 10**30, Fraction(1, 3), torch.tensor([[0.5]]), torch.tensor(1e39, dtype=torch.float64)):
        if key == "lr" and torch.is_tensor(value) and value.dim():
            continue  # which a rate may be
        saved = put(checkpoint(KINDS[kind]), ("param_groups", 0, key), value)
        if key == "max_lr" and isinstance(value, (int, Fraction)):
            assert loads_or_refuses(KINDS[kind], saved, value)
            continue
        assert not loads_or_refuses(KINDS[kind], saved, value)


def test_reports_may_differ_between_groups():
    """What each group's policy remembers of reports is its own: a second group may remember another."""
    for key, value in {"num_bad_reports": 5, "best": 0.25, "lr_factor": 0.5, "cooldown_counter": 1}.items():
        saved = put(checkpoint(KINDS["host, reports"]), ("param_groups", 1, "policy_state", key), value)
        assert loads_or_refuses(KINDS["host, reports"], saved, key)


@pytest.mark.parametrize("late", ["weight_decay", "nesterov"])
def test_a_policy_from_a_refused_checkpoint_does_not_stay(late):
    """A checkpoint that is refused for its last number leaves an optimizer without a policy without one."""
    saved = put(checkpoint(KINDS["policy from the checkpoint"]), ("param_groups", 1, late), math.nan)
    optimizer, params = make(None)
    with pytest.raises((ValueError, TypeError), match=f"need {late}"):
        optimizer.load_state_dict(saved)
    assert optimizer.policy is None
    trains(optimizer, params)


def test_a_load_refused_by_the_device_puts_its_table_back():
    """A peak that float32 cannot hold is noticed after the table was written anew: that, too, is as before."""
    kind = ({"policy": LambdaPolicy(sawtooth), "capturable": True, "horizon": 6}, {"policy": LambdaPolicy(sawtooth)})
    saved = put(checkpoint(kind), ("param_groups", 1, "max_lr"), 1e39)
    for group in saved["param_groups"]:
        group["schedule_step"] = 9
    assert not loads_or_refuses(kind, saved)


@pytest.mark.parametrize("kind", ["host", "host, loops", "device"])
def test_buffers_that_want_gradients_are_taken_without(kind):
    """A buffer with a graph behind it loads as its numbers: nothing is kept alive, and the optimizer still copies."""
    for junk in ("wants grad", "no leaf", "parameter"):
        saved = put(checkpoint(KINDS[kind]), ("state", 0, "momentum_buffer"), JUNK[junk]())
        optimizer, params = build(**KINDS[kind][0])
        optimizer.load_state_dict(saved)
        assert not optimizer.state[params[0][0]]["momentum_buffer"].requires_grad
        trains(optimizer, params)


@pytest.mark.parametrize("kind", ["host", "host, loops", "device"])
def test_sparse_buffers_beside_dense_gradients_are_their_numbers(kind):
    """A buffer from a time when gradients were sparse goes on, densely, where SGD raises."""
    weights_after = []
    for sparse in (False, True):
        buffer = torch.tensor([0.0, 0.5, 0.25], dtype=torch.float64)
        saved = checkpoint(KINDS[kind])
        saved["state"][0]["momentum_buffer"] = buffer.to_sparse() if sparse else buffer
        optimizer, params = build(**KINDS[kind][0])
        optimizer.load_state_dict(saved)
        trains(optimizer, params)
        weights_after.append(params[0][0].detach())
    torch.testing.assert_close(*weights_after, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_policies_that_cannot_be(kind, description):
    """Whatever stands for the policy in all groups: it is rebuilt, overruled by the code, or refused, at any depth."""
    saved = checkpoint(KINDS[kind])
    for group in saved["param_groups"]:
        group["policy"] = DESCRIPTIONS[description]
        group.setdefault("schedule_step", 2)
        group.setdefault("max_lr", 0.1)
    loads_or_refuses(KINDS[kind], saved)


# --- drawn


def scalars():
    return (
        st.none()
        | st.booleans()
        | st.integers()
        # A clock at 2**62 - 1 loads, but a few steps later its own checkpoint does not.
        | st.sampled_from([2**53, 2**62 - 9, 2**62, 2**63, 2**64, 10**19, -(2**63), 10**309, 10**4000])
        | st.floats()
        | st.complex_numbers()
        | st.text(max_size=8)
        | st.binary(max_size=8)
    )


def tensors():
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    shapes = st.sampled_from([(), (1,), (3,), (2, 2), (4,), (0,), (3, 1), (2, 2, 1)])
    numbers = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e30, math.inf, -math.inf, math.nan])
    return st.builds(
        lambda shape, number, dtype: torch.full(shape, number).to(dtype), shapes, numbers, st.sampled_from(dtypes)
    )


def junk():
    keys = st.sampled_from(["name", "fields", "code", "momentum_buffer", "lr", 0, 1, None]) | st.text(max_size=3)
    leaves = scalars() | tensors() | st.sampled_from(sorted(JUNK)).map(lambda name: JUNK[name]())
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(keys, inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
        ),
        max_leaves=6,
    )


def described():
    """Something like the description of a policy, as data."""
    names = st.sampled_from([*sorted(POLICIES), "os.system", "builtins.eval", ""])
    simple = st.none() | st.booleans() | st.integers(-3, 300) | st.integers() | st.floats() | st.text(max_size=5)
    fields = sorted({field for policy in POLICIES.values() for field in policy.__dataclass_fields__})
    nested = st.deferred(
        lambda: (
            st.fixed_dictionaries(
                {"name": names, "fields": st.dictionaries(st.sampled_from(fields), simple | nested, max_size=3)}
            )
            | st.lists(nested | simple, max_size=3)
        )
    )
    return nested | st.just(describe(NESTED)) | simple


@st.composite
def descriptions(draw, described=described()):  # noqa: B008 (made once)
    """The policy's text with something changed in what it says, or in its letters."""
    text = json.dumps(draw(described))
    if draw(st.booleans()):
        return text
    at, letters = draw(st.integers(0, len(text))), draw(st.text(max_size=3))
    return text[:at] + letters + text[at + draw(st.integers(0, 3)) :]


ANY_JUNK, ANY_DESCRIPTION = junk(), descriptions()


@st.composite
def mutated(draw):
    """A kind of optimizer, and its checkpoint with up to four things changed, all told in words as well."""
    name = draw(st.sampled_from(list(KINDS)))
    saved, what = checkpoint(KINDS[name]), [name]
    for _ in range(draw(st.integers(1, 4))):
        if not isinstance(saved, (dict, list)) or not saved:
            break
        path = draw(st.sampled_from(list(paths(saved))[1:]))
        change = draw(st.sampled_from(["drop", "put", "put", "put", "describe", "longer", "shorter", "swap"]))
        if change == "drop":
            saved = drop(saved, path)
        elif change == "put":
            saved = put(saved, path, draw(ANY_JUNK))
        elif change == "swap":
            other = draw(st.sampled_from(list(paths(saved))[1:]))
            saved = put(saved, path, parent(saved, other)[other[-1]])
        elif change == "describe":
            groups = saved.get("param_groups") if isinstance(saved, dict) else None
            text = draw(ANY_DESCRIPTION)
            for group in groups if isinstance(groups, list) else ():
                if isinstance(group, dict):
                    group["policy"] = text
        else:
            saved = resize(saved, path, change == "longer")
        what.append((change, path))
    return name, saved, what


@settings(max_examples=DRAWN)
@given(mutated())
def test_any_mutation_loads_or_is_refused(drawn):
    """Whatever is changed in a checkpoint, several things at once: it trains, or is refused and nothing moved."""
    name, saved, what = drawn
    loads_or_refuses(KINDS[name], saved, what)


# --- without a policy: as SGD


def outcome(cls, saved, **options):
    """The weights after loading and three steps, to the bit, or where and with what that failed."""
    optimizer, params = make(None, cls=cls, **options)
    before = everything(optimizer) if cls is CyclicSGD else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = error_of(lambda: optimizer.load_state_dict(saved))
        if refused is not None:
            assert cls is SGD or is_clear(refused), refused
            assert cls is SGD or everything(optimizer) == before
            return "load", type(refused)
        for _ in range(3):
            set_grads(params)
            failed = error_of(optimizer.step)
            if failed is not None:
                return "step", type(failed)
    return "trained", [frozen(param) for group in params for param in group]


def changed(original, path, junk):
    """A copy with the key at the path dropped, or replaced by the junk of that name."""
    saved = copy.deepcopy(original)
    return drop(saved, path) if junk is None else put(saved, path, JUNK[junk]())


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_without_a_policy_it_fails_where_sgd_does(options):
    """Any key dropped or replaced by any junk: SGD's bits where it trains, else its error or a refusal on loading.

    Plain numbers and flags, whatever their value, are SGD's affair; what else SGD would let pass may be refused.
    """
    plain = ["none", "true", "false", "0", "1", "2", "-1", "0.0", "-0.0", "0.5", "-0.5", "3.0", "nan", "inf", "-inf"]
    original = copy.deepcopy(make(None, **options)[0].state_dict())
    cases = some(list(product(list(paths(original))[1:], JUNK)), 200)
    for path, junk in [*cases, *((path, None) for path in list(paths(original))[1:])]:
        ours, of_ours = outcome(CyclicSGD, changed(original, path, junk), **options)
        if ours == "load" and path[0] == "state":
            continue  # SGD is not asked: its fused op reads buffers of another size beyond their end, and may crash
        theirs, of_theirs = (
            ("endless", None) if junk == "bomb" else outcome(SGD, changed(original, path, junk), **options)
        )
        if ours == "load":
            assert theirs != "trained" or "params" in path or junk not in plain, (path, junk)
        elif ours == "step" or theirs == "trained":
            assert (ours, of_ours) == (theirs, of_theirs), (path, junk)
        # Otherwise it trains where SGD fails: what a dict lacks is as in the code, and fused=True can do more.


# --- a checkpoint is never code

NAMES = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "eval",
    "__import__",
    "__class__",
    "__init__",
    "subprocess.Popen",
    "this",
    "antigravity",
    "Policy",
    "Values",
    "CyclicSGD",
    "rebuild",
    "describe",
    "POLICIES",
    "base",
    "cyclic_optim.CyclicSGD",
    "cyclic_optim.policies.OneCycle",
    "test_checkpoint.Own",
    "torch.load",
    "pickle.loads",
    "LambdaPolicy.__init__",
    "Constant.__class__",
    "constant",
    " Constant",
    "Constant\0",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_only_names_in_the_table_are_looked_up(name):
    """The name of anything but a policy of this library is refused, wherever in a description it stands."""
    for fields in ({}, {"command": "true"}, {"fn": "true"}, {"args": ["true"]}):
        description = {"name": name, "fields": fields}
        nested = [
            description,
            {"name": "Staircase", "fields": {"policy": description, "length": 2}},
            {"name": "Sequential", "fields": {"policies": [description], "milestones": []}},
            {"name": "LambdaPolicy", "fields": {"fn": description}},
            {"name": "Triangular", "fields": {"scale_fn": description}},
        ]
        for each in nested:
            with pytest.raises(ValueError, match="need a policy of this library"):
                rebuild(each)


def test_every_field_refuses_the_name_of_a_function():
    """No field of any policy takes the name of code for the code: text, a path, or what describe() writes for it."""
    for name, policy in POLICIES.items():
        for field in policy.__dataclass_fields__:
            for code in ("os.system", "builtins.eval", {"code": "os.system"}, {"code": "builtins.eval"}):
                with pytest.raises(ValueError, match="need"):
                    rebuild({"name": name, "fields": {field: code}})


AUDITED = """
    import json, sys, warnings
    import torch
    from test_hostile_checkpoints import DESCRIPTIONS, JUNK, KINDS, NAMES, build, checkpoint, paths, put, some
    from cyclic_optim import Constant

    def load(kind, saved):
        optimizer, params = build(**kind[0])
        try:
            optimizer.load_state_dict(saved)
        except (ValueError, TypeError):
            pass

    warnings.simplefilter("ignore")
    kind = KINDS["policy from the checkpoint"]
    texts = [json.dumps({"name": name, "fields": {"command": "true"}}) for name in NAMES]
    texts += [text for text in DESCRIPTIONS.values()]
    texts.append('{"name": "LambdaPolicy", "fields": {"fn": {"code": "os.system"}}}')
    dicts = []
    for text in texts:
        saved = checkpoint(kind)
        for group in saved["param_groups"]:
            group["policy"] = text
        dicts.append((kind, saved))
    for kind in KINDS.values():
        places = [(path, junk) for path in paths(checkpoint(kind)) for junk in JUNK]
        dicts += [(kind, put(checkpoint(kind), path, JUNK[junk]())) for path, junk in some(places, 12)]
        load(kind, checkpoint(kind))  # whatever is imported when it is first needed
    for junk in JUNK.keys() - {"bomb"}:
        try:
            repr(JUNK[junk]())  # torch imports what it prints tensors with when it first does
        except (RuntimeError, RecursionError, ValueError):
            pass
    prepared = [(build(**kind[0])[0], saved) for kind, saved in dicts]

    watched, modules, seen = True, set(sys.modules), []
    suspect = ("import", "exec", "compile", "pickle", "marshal", "os.", "subprocess", "ctypes.dlopen", "code.__new__")

    def hook(event, args):
        if watched and event.startswith(suspect):
            seen.append((event, repr(args)[:200]))

    sys.addaudithook(hook)
    for optimizer, saved in prepared:
        try:
            optimizer.load_state_dict(saved)
        except (ValueError, TypeError):
            pass
    watched = False
    assert not seen, seen[:5]
    assert set(sys.modules) == modules, set(sys.modules) - modules
    print(len(prepared), "loads")
"""


def test_nothing_in_a_checkpoint_is_imported_compiled_or_run():
    """Python's own audit events tell: no load of any junk or name imports, compiles, unpickles or starts anything."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDITED)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=3600 if DRAWN == 10_000 else 300,  # for a hang: the deep profile loads every case there is
    )
    assert done.returncode == 0, done.stderr[-3000:]


# --- a file


# Some torch says so of its own loading, some more at length.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants because weights_only=True")
def test_a_file_of_junk_comes_through_weights_only(tmp_path):
    """What torch.load(weights_only=True) reads from a hostile file is refused like any other, from disk as well."""
    for junk in ("2**63", "10**400", "nan", "deep list", "tensor of 3", "sparse tensor", "wants grad", "dict"):
        saved = checkpoint(KINDS["host"])
        saved["param_groups"][0]["schedule_step"] = saved["state"][0]["momentum_buffer"] = JUNK[junk]()
        try:
            torch.save(saved, tmp_path / "checkpoint.pt")
        except RecursionError:
            continue
        loads_or_refuses(KINDS["host"], torch.load(tmp_path / "checkpoint.pt", weights_only=True), junk)


# --- no groups


@pytest.mark.parametrize("capturable", [False, True])
def test_without_param_groups_there_is_no_schedule(capturable):
    """Where somebody emptied ``param_groups``, what needs the counter says so, and so does loading."""
    optimizer, _ = make(Plateau(), capturable=capturable, **({"horizon": 9} if capturable else {}))
    saved = optimizer.state_dict()
    optimizer.param_groups.clear()
    for call in (optimizer.step, lambda: optimizer.report(1.0), lambda: optimizer.load_state_dict(saved)):
        with pytest.raises(ValueError, match="need at least one param group"):
            call()
    repr(optimizer)


def test_a_checkpoint_without_param_groups_is_refused():
    """A list of no groups is not a checkpoint of an optimizer that has some."""
    for kind in KINDS.values():
        assert not loads_or_refuses(kind, {"state": {}, "param_groups": []})
