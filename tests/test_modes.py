"""What watches torch's operations sees a step as it sees SGD's: its name, and an update made of operations."""

import pytest
import torch
import torch_versions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import SGD
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cyclic_optim import CyclicAdamW, CyclicSGD, OneCycle, Triangular, torch_private

pytestmark = pytest.mark.usefixtures("part")

OPTIMIZERS = {
    "policy": lambda params: CyclicSGD(params, lr=0.1, policy=Triangular(4)),
    "momentum": lambda params: CyclicSGD(params, lr=0.1, momentum=0.9, policy=OneCycle(9, cycle_momentum=False)),
    "no policy": lambda params: CyclicSGD(params, lr=0.1, momentum=0.9),
    "capturable": lambda params: CyclicSGD(params, lr=0.1, policy=Triangular(4), capturable=True),
    "AdamW": lambda params: CyclicAdamW(params, lr=0.1, policy=OneCycle(9)),
}


#: What make_fx can trace, and the mark of what updates in torch's loop, not in its fused op.
TRACED = {
    "policy": [],
    "momentum": [],
    "no policy": torch_versions.loops_before_dispatch,
    "capturable": torch_versions.loops_before_dispatch,
}


def built(make):
    """A parameter with a gradient, and its optimizer after one step."""
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.full_like(param, 0.5)
    optimizer = make([param])
    optimizer.step()
    return param, optimizer


def names_of(optimizer, calls):
    return [name for name in calls if name == f"Optimizer.step#{type(optimizer).__name__}.step"]


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += [str(func), *(arg for arg in args if isinstance(arg, str))]
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += [str(func), *(arg for arg in args if isinstance(arg, str))]
        return func(*args, **(kwargs or {}))


class Counted(FlopCounterMode):
    """torch's own counter, which is a mode, too."""

    def __init__(self):
        super().__init__(display=False)
        self.calls = []

    def _count_flops(self, func_packet, out, args, kwargs):
        self.calls += [str(func_packet), *(arg for arg in args if isinstance(arg, str))]
        return super()._count_flops(func_packet, out, args, kwargs)


@pytest.mark.parametrize(
    "watch", [Dispatched, Called, pytest.param(Counted, marks=torch_versions.ranges_are_operations)]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_mode_sees_one_range_and_what_is_done_in_it(name, watch):
    """The step's name once, and operations; without the mode no more than the update is done."""
    _, optimizer = built(OPTIMIZERS[name])
    with watch() as mode:
        optimizer.step()
    assert len(names_of(optimizer, mode.calls)) == 1
    assert any(word in call for call in mode.calls for word in ("fused_sgd", "mul", "foreach"))


@pytest.mark.parametrize(
    ("name", "pre_dispatch"),
    [
        *(pytest.param(name, False, marks=torch_versions.ranges_are_operations) for name in TRACED),
        *(pytest.param(name, True, marks=loop) for name, loop in TRACED.items()),
    ],
)
def test_a_traced_step_has_its_range_and_its_update(name, pre_dispatch):
    """make_fx records the name as for SGD, and the update: running the graph moves the parameter."""
    param, optimizer = built(OPTIMIZERS[name])

    def step(grad):
        param.grad = grad * 1.0
        optimizer.step()
        return grad

    traced = make_fx(step, pre_dispatch=pre_dispatch)(torch.ones(2))
    name = f"Optimizer.step#{type(optimizer).__name__}.step"
    assert traced.code.count(f"_record_function_enter_new.default('{name}')") == 1
    before = param.detach().clone()
    with torch.no_grad():
        traced(torch.ones(2))
    assert not torch.equal(param.detach(), before)


def test_what_is_traced_of_sgd_is_traced_of_ours():
    """Without a policy the recorded calls are SGD's, but for the name."""

    def code(make):
        param, optimizer = built(make)
        traced = make_fx(lambda grad: (setattr(param, "grad", grad * 1.0), optimizer.step(), grad)[2])(torch.ones(2))
        return traced.code.replace("CyclicSGD", "SGD")

    assert code(OPTIMIZERS["no policy"]) == code(lambda params: SGD(params, lr=0.1, momentum=0.9))


def test_the_default_device_watches_nothing():
    """torch.set_default_device and torch.device(...) are modes, too: within them a step is the short one."""
    assert not torch_private.modes_active()
    torch.set_default_device("cpu")
    try:
        assert not torch_private.modes_active()
        with torch.device("cpu"):
            assert not torch_private.modes_active()
            with Called():
                assert torch_private.modes_active()
    finally:
        torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events at the end of each cycle")  # said by some torch, once
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_profiler_sees_one_range(name):
    """So do torch's profilers, also after a mode was there."""
    _, optimizer = built(OPTIMIZERS[name])
    with Dispatched():
        optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert len(names_of(optimizer, [event.name for event in profile.events()])) == 1
