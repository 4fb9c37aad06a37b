"""Pickling an optimizer whose policies carry functions: it works, or says what to save instead."""

import copy
import io
import pickle

import pytest
import torch
from strategies import halving

from cyclic_optim import Constant, CyclicAdamW, CyclicSGD, LambdaPolicy, Scaled, Sequential, StepDecay, Triangular

WITH_LAMBDA = LambdaPolicy(lambda step: 1 / (1 + step))
SCALED = Triangular(4, scale_fn=lambda cycle: 1 / cycle)


def built(*groups, cls=CyclicSGD, **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], **group} for group in groups or ({},)]
    return cls(groups, lr=0.1, **options)


CARRYING = {
    "the constructor's": lambda: built(policy=WITH_LAMBDA),
    "a group's": lambda: built({}, {"policy": WITH_LAMBDA}, policy=Constant()),
    "a composite": lambda: built(policy=Sequential([Constant(), Scaled(WITH_LAMBDA, 0.5)], [2])),
    "a scale function": lambda: built(policy=SCALED),
    "captured": lambda: built(policy=WITH_LAMBDA, capturable=True, horizon=9),
    "another optimizer": lambda: built(policy=WITH_LAMBDA, cls=CyclicAdamW),
    "for groups to come": lambda: built({"policy": Constant()}, policy=WITH_LAMBDA),
}


def saved(optimizer):
    torch.save(optimizer, io.BytesIO())


@pytest.mark.parametrize("save", [saved, pickle.dumps])
@pytest.mark.parametrize("kind", CARRYING)
def test_a_lambda_says_to_save_the_state_dict(kind, save):
    """Where a policy cannot be pickled, the error names it and the way out; what it says works."""
    optimizer = CARRYING[kind]()
    message = r"need policies that can be pickled .*lambda.*: save optimizer\.state_dict\(\)"
    with pytest.raises(pickle.PicklingError, match=message):
        save(optimizer)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = CARRYING[kind]()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.policies == optimizer.policies
    assert repr(fresh.state_dict()) == repr(optimizer.state_dict())


@pytest.mark.parametrize("kind", CARRYING)
def test_a_deep_copy_needs_no_pickling(kind):
    """deepcopy keeps the very function, and the copy goes on alone."""
    optimizer = CARRYING[kind]()
    twin = copy.deepcopy(optimizer)
    assert twin.policies == optimizer.policies
    for _ in range(3):
        twin.step()
    assert "schedule_step" in optimizer.param_groups[0]
    assert int(optimizer.param_groups[0]["schedule_step"]) == 0
    assert int(twin.param_groups[0]["schedule_step"]) == 3


@pytest.mark.parametrize("kind", CARRYING)
def test_cloudpickle_writes_functions_out(kind):
    """A pickler that can, does."""
    cloudpickle = pytest.importorskip("cloudpickle")
    optimizer = CARRYING[kind]()
    optimizer.step()
    twin = pickle.loads(cloudpickle.dumps(optimizer))
    for each in (optimizer, twin):
        each.step()
    assert repr(twin.state_dict()["param_groups"][-1]["lr"]) == repr(optimizer.state_dict()["param_groups"][-1]["lr"])


@pytest.mark.parametrize("capturable", [False, True])
def test_a_policy_that_was_replaced_is_not_pickled(capturable):
    """After ``reschedule`` to a policy of data, nothing of the old one stands in the way."""
    optimizer = built(policy=WITH_LAMBDA, **({"capturable": True, "horizon": 9} if capturable else {}))
    optimizer.reschedule(policy=StepDecay(2))
    twin = pickle.loads(pickle.dumps(optimizer))
    assert twin.policies == [StepDecay(2)]
    optimizer.reschedule(policy=Constant(), lr=0.3)  # which goes on knowing what it has
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert optimizer.policies == [Constant()] * 2
    optimizer.step()
    twin.step()


def test_functions_with_a_name_are_pickled_by_it():
    """A function of a module needs no other pickler."""
    twin = pickle.loads(pickle.dumps(built(policy=Triangular(4, scale_fn=halving))))
    assert twin.policies == [Triangular(4, scale_fn=halving)]
