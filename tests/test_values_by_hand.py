"""Flags and numbers that were set by hand in a param group: SGD's meaning, or refused before anything moves."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD

from cyclic_optim import Constant, CyclicSGD, native
from cyclic_optim.host.fused import SMALL

pytestmark = pytest.mark.usefixtures("part", "short_tables")

OPTIONS = {"lr": 0.1, "momentum": 0.9}
WAYS = {
    "policy": {"policy": Constant()},
    "policy, fused": {"policy": Constant(), "fused": True},
    "policy, foreach": {"policy": Constant(), "foreach": True},
    "policy, loop": {"policy": Constant(), "foreach": False},
    "policy, capturable": {"policy": Constant(), "capturable": True},
    "no policy, fused": {"fused": True},
}
#: Without a policy, SGD's own errors come in the middle of a step. On the device numbers are checked on their own.
ON_HOST = {name: way for name, way in WAYS.items() if "policy" in way and "capturable" not in way}
all_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
host_ways = pytest.mark.parametrize("way", ON_HOST.values(), ids=ON_HOST.keys())
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def built(make=CyclicSGD, dtype=torch.float32, numel=2, **options):
    params = [torch.nn.Parameter(torch.ones(numel, dtype=dtype)) for _ in range(3)]
    return params, make([{"params": [param]} for param in params], **OPTIONS | options)


def step(params, optimizer):
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    optimizer.step()


def state_of(params, optimizer):
    """All that a step changes, in numbers."""
    buffers = [optimizer.state[param].get("momentum_buffer") for param in params]
    clocks = [int(group.get("schedule_step", 0)) for group in optimizer.param_groups]
    return [None if one is None else one.tolist() for one in (*params, *buffers)], clocks


def values(params):
    return [param.detach().double() for param in params]


@all_ways
@pytest.mark.parametrize("numel", [2, SMALL])
@pytest.mark.parametrize("flag", [1, 0, "yes", np.True_, torch.tensor(True)], ids=repr)
@pytest.mark.parametrize("key", ["nesterov", "maximize"])
def test_a_flag_counts_by_its_truth_value(key, flag, numel, way):
    """Whatever is put there, its truth decides, in all groups of the step, as with SGD."""
    results = []
    for make, value in ((SGD, bool(flag)), (partial(CyclicSGD, **way), flag)):
        params, optimizer = built(make, numel=numel)
        step(params, optimizer)
        optimizer.param_groups[1][key] = value
        step(params, optimizer)
        step(params, optimizer)
        results.append(values(params))
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


class Undecided:
    def __bool__(self):
        raise RuntimeError("neither")


@host_ways
@pytest.mark.parametrize("key", ["nesterov", "maximize"])
def test_a_flag_without_a_truth_value_is_refused_before_anything_moves(key, way):
    """An object that cannot say whether it is true is refused by name, and all groups are where they were."""
    params, optimizer = built(**way)
    step(params, optimizer)
    before = state_of(params, optimizer)
    optimizer.param_groups[1][key] = Undecided()
    with pytest.raises(TypeError, match=f"need {key} to be True or False, got {key}=<"):
        step(params, optimizer)
    assert state_of(params, optimizer) == before


def refusal(action):
    try:
        action()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        return type(error)
    return None


HANDS = ("lr", "weight_decay", "dampening", "momentum")


@host_ways
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", [1e5, 1e300, float("inf"), torch.tensor(1e300, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("key", HANDS)
def test_a_number_that_the_parameters_cannot_hold(key, number, dtype, way):
    """Where SGD refuses it, it is refused before any group moves; where SGD does not, the weights are SGD's."""
    theirs, sgd = built(SGD, dtype, foreach=way.get("foreach", False))
    ours, cyclic = built(dtype=dtype, **way)
    for params, optimizer in ((theirs, sgd), (ours, cyclic)):
        step(params, optimizer)
        optimizer.param_groups[1][key] = number
    before = state_of(ours, cyclic)
    if refusal(lambda: step(theirs, sgd)) is None:
        step(ours, cyclic)
        torch.testing.assert_close(values(ours), values(theirs), rtol=1e-2, atol=0, equal_nan=True)
    else:
        with pytest.raises(ValueError, match=f"need {key} to be a number that the parameters can hold"):
            step(ours, cyclic)
        assert state_of(ours, cyclic) == before


@host_ways
def test_nesterov_refuses_a_momentum_that_the_parameters_cannot_hold(way):
    """Nesterov's momentum is a factor of torch's that is refused when it overflows."""
    params, optimizer = built(nesterov=True, **way)
    step(params, optimizer)
    before = state_of(params, optimizer)
    optimizer.param_groups[1]["momentum"] = 1e300
    with pytest.raises(ValueError, match="need momentum to be a number that the parameters can hold"):
        step(params, optimizer)
    assert state_of(params, optimizer) == before


@pytest.mark.parametrize("key", ["weight_decay", "dampening"])
def test_on_the_device_it_is_refused_before_anything_moves(key):
    """The same with capturable=True, for the numbers that are no tensors there."""
    params, optimizer = built(policy=Constant(), capturable=True)
    step(params, optimizer)
    before = state_of(params, optimizer)
    optimizer.param_groups[1][key] = 1e300
    with pytest.raises(ValueError, match=f"need {key} to be a number that the parameters can hold"):
        step(params, optimizer)
    assert state_of(params, optimizer) == before


def test_a_frozen_parameter_does_not_count():
    """A parameter without a gradient is not updated, so it need not hold the rate."""
    half, single = (torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float16, torch.float32))
    optimizer = CyclicSGD([half, single], lr=0.1, policy=Constant())
    optimizer.param_groups[0]["lr"] = 1e5
    single.grad = torch.full((2,), 0.5)
    optimizer.step()
    assert single.tolist() == [1 - 5e4] * 2


@host_ways
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", "0.1"),
        ("weight_decay", None),
        ("weight_decay", torch.tensor([0.1])),
        ("dampening", torch.tensor([0.1])),
        ("lr", torch.tensor([0.1, 0.2])),
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused_before_anything_moves(key, value, way):
    """SGD fails in the middle of its update; here no group has moved."""
    params, optimizer = built(**way)
    step(params, optimizer)
    before = state_of(params, optimizer)
    optimizer.param_groups[1][key] = value
    with pytest.raises((TypeError, ValueError), match=f"need {key} "):
        step(params, optimizer)
    assert state_of(params, optimizer) == before


@given(
    key=st.sampled_from(HANDS),
    number=st.floats(allow_nan=False, width=64) | st.integers(-(10**400), 10**400),
    dtype=st.sampled_from(DTYPES),
    way=st.sampled_from([*ON_HOST.values()]),
)
def test_any_number_by_hand_is_sgds_or_refused(key, number, dtype, way):
    """A step with any number never leaves some groups before it and others after it, nor weights that SGD's are not."""
    theirs, sgd = built(SGD, dtype, foreach=way.get("foreach", False))
    ours, cyclic = built(dtype=dtype, **way)
    for params, optimizer in ((theirs, sgd), (ours, cyclic)):
        step(params, optimizer)
        optimizer.param_groups[1][key] = number
    before = state_of(ours, cyclic)
    if refusal(lambda: step(ours, cyclic)) is not None:
        assert state_of(ours, cyclic) == before
        has_65_bits = isinstance(number, int) and 2**63 <= abs(number) < 2**64  # some of these are taken by torch
        assert has_65_bits or refusal(lambda: step(theirs, sgd)) is not None
    else:
        assert refusal(lambda: step(theirs, sgd)) is None
        torch.testing.assert_close(values(ours), values(theirs), rtol=2e-2, atol=1e-3, equal_nan=True)


def test_unusual_values_leave_everything_to_python():
    """A tensor, a large number, a flag that is no bool: the compiled part updates nothing, in any group."""
    if native.compiled is None:
        pytest.skip("about the compiled part")
    for key, value in (("lr", torch.tensor(0.1)), ("weight_decay", 65505), ("momentum", 10**400), ("nesterov", 1)):
        params, optimizer = built(policy=Constant())
        step(params, optimizer)
        optimizer.param_groups[1][key] = value
        done, calls, rest = native.compiled.update(optimizer.param_groups, optimizer.state, SMALL, False)
        assert (done, calls) == ([], [])
        assert [group for group, _, _ in rest] == [0, 1, 2]


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, Constant()])
def test_a_group_key_that_is_no_string_is_refused_on_loading(policy):
    """Such a checkpoint is refused by the key, and changes nothing."""
    params, optimizer = built(policy=policy)
    saved = optimizer.state_dict()
    saved["param_groups"][1] = {**saved["param_groups"][1], 3: "three"}
    before = state_of(params, optimizer)
    with pytest.raises(TypeError, match="need the keys of a param group to be strings, got 3"):
        optimizer.load_state_dict(saved)
    assert state_of(params, optimizer) == before
    assert repr(optimizer)


def test_a_group_key_that_is_no_string_is_refused_in_a_new_group():
    """Beside a policy, a group with such a key is not added."""
    _, optimizer = built(policy=Constant())
    with pytest.raises(TypeError, match=r"need the keys of a param group to be strings, got \(1, 2\)"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], (1, 2): 0})
    assert len(optimizer.param_groups) == 3
    with pytest.raises(TypeError, match="need the keys of a param group to be strings, got None"):
        CyclicSGD([{"params": [torch.nn.Parameter(torch.ones(1))], None: 0}], lr=0.1, policy=Constant())
