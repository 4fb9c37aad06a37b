"""``cyclic(cls)`` and CyclicAdamW: any optimizer, driven by its own schedule as a scheduler would drive it."""

import copy
import inspect
import pickle
import subprocess
import sys
from abc import ABC
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_same, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Problem, flat, policies, problems
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop, SparseAdam
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from cyclic_optim import (
    Constant,
    CosineDecay,
    CyclicAdamW,
    CyclicSGD,
    OneCycle,
    Plateau,
    Triangular,
    cyclic,
)
from cyclic_optim.testing import check_optimizer

# --- optimizers of users


class Signs(Optimizer):
    """Moves along signs: an optimizer with an argument, a counter and state of its own."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.99), *, damping=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "damping": damping})
        self.calls = 0

    def __getstate__(self):
        # torch copies and pickles groups, state and defaults alone.
        return {**super().__getstate__(), "calls": self.calls}

    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.calls += 1
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        self._move(group, param)
        return loss

    def _move(self, group, param):
        entries = self.state[param]
        entries.setdefault("momentum_buffer", torch.zeros(3, param.numel(), dtype=param.dtype))  # of another shape
        entries.setdefault("history", []).append(param.grad.abs().amax() if param.numel() else param.new_zeros(()))
        entries["pair"] = (param.grad.clone(), len(entries["history"]))
        buffer = entries["momentum_buffer"][0].view_as(param)
        buffer.mul_(group["betas"][0]).add_(param.grad, alpha=1 - group["betas"][0])
        param.sub_(buffer.sign() * group["lr"] * (1 - group["damping"]))


class Abstract(ABC, Optimizer):
    """A base with a metaclass of its own, as some packages have."""


class Concrete(Abstract):
    """Gradient descent."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.data.sub_(group["lr"] * param.grad)


class WithoutRate(Optimizer):
    """Has nothing that a policy could move."""

    def __init__(self, params, scale=0.1):
        super().__init__(params, {"scale": scale})

    def step(self, closure=None):
        return None


class WithPolicy(Concrete):
    """Has an argument that would be the schedule's."""

    def __init__(self, params, lr=0.1, policy="greedy"):
        super().__init__(params, lr)
        self.greedy = policy


class Counted(cyclic(AdamW)):
    """A user's subclass, which counts its steps."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)


CyclicSigns = cyclic(Signs)

# --- the table of bases


class Case(NamedTuple):
    """A base class: where its momentum is, and what it can be given."""

    cls: type[Optimizer]
    slot: str | None
    options: dict[str, list[Any]]
    shapes: Any = None  # None: any
    same_bits: bool = True


_DECAY = {"weight_decay": [0.0, 0.1]}
_FLAGS = {"foreach": [None, True, False], "maximize": [False, True]}
_ADAM = {**_DECAY, **_FLAGS, "amsgrad": [False, True], "betas": [(0.9, 0.999), (0.5, 0.9)]}
_MATRICES = st.lists(
    st.lists(st.sampled_from([(2, 3), (3, 1), (4, 4)]), min_size=1, max_size=2).map(tuple), min_size=1, max_size=2
).map(tuple)

CASES = {
    "Adam": Case(Adam, "betas", {**_ADAM, "fused": [None, True, False]}),
    "AdamW": Case(AdamW, "betas", {**_ADAM, "fused": [None, True, False]}),
    "NAdam": Case(NAdam, "betas", {**_DECAY, **_FLAGS, "decoupled_weight_decay": [False, True]}),
    "RAdam": Case(RAdam, "betas", {**_DECAY, **_FLAGS}),
    "Adamax": Case(torch.optim.Adamax, "betas", {**_DECAY, **_FLAGS}),
    "RMSprop": Case(RMSprop, "momentum", {**_DECAY, **_FLAGS, "momentum": [0, 0.9], "centered": [False, True]}),
    "Adagrad": Case(Adagrad, None, {**_DECAY, **_FLAGS, "fused": [None, True, False]}),
    "Adadelta": Case(Adadelta, None, {**_DECAY, **_FLAGS}),
    "Rprop": Case(torch.optim.Rprop, None, {**_FLAGS}),
    "ASGD": Case(torch.optim.ASGD, None, {**_DECAY, **_FLAGS, "t0": [1e6, 2.0]}),
    "Adafactor": Case(torch.optim.Adafactor, None, {**_DECAY, **_FLAGS}, _MATRICES),
    # Its own update, in whose sums the order differs.
    "SGD": Case(SGD, "momentum", {**_DECAY, **_FLAGS, "momentum": [0.0, 0.9]}, same_bits=False),
    "Signs": Case(Signs, "betas", {"damping": [0.0, 0.5]}),
}
if hasattr(torch.optim, "Muon"):
    CASES["Muon"] = Case(torch.optim.Muon, "momentum", {**_DECAY, "nesterov": [True, False]}, _MATRICES)
try:
    import schedulefree
except ImportError:
    pass
else:
    CASES["AdamWScheduleFree"] = Case(
        schedulefree.AdamWScheduleFree, "betas", {**_DECAY, "foreach": [True, False], "warmup_steps": [0, 3]}
    )
WITH_MOMENTUM = [name for name, case in CASES.items() if case.slot is not None]
WITHOUT_MOMENTUM = [name for name, case in CASES.items() if case.slot is None]


@st.composite
def options_of(draw, case):
    chosen = {key: draw(st.sampled_from(values)) for key, values in case.options.items()}
    if chosen.get("fused") and chosen.get("foreach"):
        chosen["foreach"] = None  # torch takes one of them
    return chosen


@st.composite
def problems_of(draw, case):
    problem = draw(problems(max_groups=2))
    if case.shapes is not None:
        problem = Problem(draw(case.shapes), problem.dtype, problem.seed, problem.absent)
    return problem


def cycles_momentum(policy):
    return any(policy.at(step).momentum is not None for step in range(300))


def moves_weight_decay(policy):
    return any(policy.at(step).weight_decay_factor is not None for step in range(300))


def policies_of(case):
    """Those that the base has a place for."""
    drawn = policies() if case.slot is not None else policies().filter(lambda policy: not cycles_momentum(policy))
    return drawn if "weight_decay" in case.options else drawn.filter(lambda policy: not moves_weight_decay(policy))


def ready(optimizer):
    """schedulefree's optimizers have to be told that they train."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def set_by_hand(group, policy, step, peak, weight_decay=0.0):
    """What torch's scheduler would write, and the same for the group's own weight decay."""
    lr_factor, momentum, weight_decay_factor = policy.at(step)
    group["lr"] = peak * lr_factor
    if weight_decay_factor is not None:
        group["weight_decay"] = weight_decay * weight_decay_factor
    if momentum is not None and "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif momentum is not None:
        group["momentum"] = momentum


def numbers(group):
    return {key: group.get(key) for key in ("lr", "betas", "momentum", "weight_decay")}


def model_of(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()


def set_grads(model, step):
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)


def one_param(cls=CyclicAdamW, policy=None, *, dtype=torch.float64, **options):
    """A parameter with a gradient, and an optimizer of it."""
    param = torch.nn.Parameter(torch.ones(2, 3, dtype=dtype))
    param.grad = torch.full_like(param, 0.5)
    return param, cls([param], policy=policy, **options)


def plain_policy(case, length=8):
    return OneCycle(length, cycle_momentum=case.slot is not None)


# --- the update


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_it_is_the_base_driven_by_hand(name, data):
    """Any groups, policies and flags: the values and weights of the base whose values are set by hand."""
    case = CASES[name]
    problem, options = data.draw(problems_of(case)), data.draw(options_of(case))
    ours, theirs = problem.params(), problem.params()
    peaks = [0.1 / (i + 1) for i in range(len(ours))]
    chosen = [data.draw(policies_of(case)) for _ in ours]
    groups = [{"params": p, "lr": lr, "policy": policy} for p, lr, policy in zip(ours, peaks, chosen, strict=True)]
    optimizer = ready(cyclic(case.cls)(groups, **options))
    twin = ready(case.cls([{"params": p, "lr": lr} for p, lr in zip(theirs, peaks, strict=True)], **options))
    rtol = 0.0 if case.same_bits else 1e-5
    for step in range(data.draw(st.integers(1, 12))):
        for group, other, policy, peak in zip(optimizer.param_groups, twin.param_groups, chosen, peaks, strict=True):
            set_by_hand(other, policy, step, peak, options.get("weight_decay"))
            assert numbers(group) == numbers(other)
            assert group["schedule_step"] == step
        problem.set_grads(ours, step)
        problem.set_grads(theirs, step)
        optimizer.step()
        twin.step()
        assert_same(flat(ours), flat(theirs), rtol)


@pytest.mark.parametrize("name", WITHOUT_MOMENTUM)
def test_a_policy_that_cycles_momentum_needs_a_place_for_it(name):
    """Bases without momentum or betas refuse one, and say that cycle_momentum=False is the way out."""
    param = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"need an optimizer with momentum or betas.*cycle_momentum=False"):
        cyclic(CASES[name].cls)([param], policy=OneCycle(10))
    assert cyclic(CASES[name].cls)([param], policy=OneCycle(10, cycle_momentum=False)).policies != [None]


def test_beta1_stays_below_1():
    """Adam divides by 1 - beta1**step, so a momentum of 1 is refused."""
    with pytest.raises(ValueError, match=r"need momentum < 1 in betas\[0\], got momentum=1"):
        one_param(policy=OneCycle(10, max_momentum=1.0))


@pytest.mark.parametrize("cls", [AdamW, NAdam, RMSprop])
@pytest.mark.parametrize("cycle_momentum", [True, False])
def test_it_is_the_base_beside_torchs_one_cycle(cls, cycle_momentum):
    """Rate, momentum and weights are those of the base with OneCycleLR."""
    ours, theirs = model_of(), model_of()
    optimizer = cyclic(cls)(ours.parameters(), lr=0.05, policy=OneCycle(30, cycle_momentum=cycle_momentum))
    twin = cls(theirs.parameters(), lr=0.05, **({"momentum": 0.9} if cls is RMSprop and cycle_momentum else {}))
    scheduler = OneCycleLR(twin, 0.05, total_steps=30, cycle_momentum=cycle_momentum)
    for step in range(30):
        assert_same(numbers(optimizer.param_groups[0]), approximately(numbers(twin.param_groups[0])))
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        twin.step()
        if step < 29:
            scheduler.step()
    assert_same(list(ours.parameters()), list(theirs.parameters()), 1e-9)


@pytest.mark.parametrize("cls", [AdamW, NAdam, RMSprop])
def test_it_is_the_base_beside_torchs_cyclic_lr(cls):
    """Rate, momentum and weights are those of the base with CyclicLR."""
    ours, theirs = model_of(), model_of()
    policy = Triangular(4, 6, div_factor=10, base_momentum=0.8, max_momentum=0.9)
    optimizer = cyclic(cls)(ours.parameters(), lr=0.05, policy=policy)
    twin = cls(theirs.parameters(), lr=0.05, **({"momentum": 0.9} if cls is RMSprop else {}))
    scheduler = CyclicLR(twin, 0.005, 0.05, 4, 6, base_momentum=0.8, max_momentum=0.9)
    for step in range(25):
        assert_same(numbers(optimizer.param_groups[0]), approximately(numbers(twin.param_groups[0])))
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        twin.step()
        scheduler.step()
    assert_same(list(ours.parameters()), list(theirs.parameters()), 1e-9)


def approximately(values):
    """Without what torch has no number for; floats nearly equal."""
    rounded = {}
    for key, value in values.items():
        rounded[key] = tuple(map(pytest.approx, value)) if isinstance(value, tuple) else pytest.approx(value)
    return rounded


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_evaluates_its_closure_as_often(search):
    """LBFGS: the closure is called as often as by the base, with gradients, and the weights are the same."""
    counts, weights = [], []
    policy = OneCycle(6, cycle_momentum=False)
    for cls in (cyclic(LBFGS), LBFGS):
        model, calls = model_of(), []
        given = {"policy": policy} if cls is not LBFGS else {}
        optimizer = cls(model.parameters(), lr=0.5, max_iter=5, line_search_fn=search, **given)
        for step in range(6):
            if cls is LBFGS:
                set_by_hand(optimizer.param_groups[0], policy, step, 0.5)
            else:
                assert optimizer.param_groups[0]["lr"] == 0.5 * policy.at(step).lr_factor
            optimizer.step(closure_of(model, calls))
        counts.append(calls)
        weights.append(list(model.parameters()))
    assert counts[0] == counts[1]
    assert len(counts[0]) > 6
    assert_same(*weights)


def closure_of(model, calls):
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)

    def closure():
        model.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        calls.append(loss.item())
        return loss

    return closure


def test_lbfgs_resumes_from_lists():
    """The lists in LBFGS's state are saved and loaded, and the run goes on to the bit."""
    policy = OneCycle(10, cycle_momentum=False)
    model = model_of()
    optimizer = cyclic(LBFGS)(model.parameters(), lr=0.5, max_iter=4, policy=policy)
    for _ in range(3):
        optimizer.step(closure_of(model, []))
    weights, checkpoint = copy.deepcopy(model.state_dict()), through_a_file(optimizer.state_dict())
    other = model_of(1)
    other.load_state_dict(weights)
    resumed = cyclic(LBFGS)(other.parameters(), lr=0.5, max_iter=4, policy=policy)
    resumed.load_state_dict(checkpoint)
    for _ in range(3):
        optimizer.step(closure_of(model, []))
        resumed.step(closure_of(other, []))
    assert_same(list(other.parameters()), list(model.parameters()))
    assert resumed.param_groups[0]["schedule_step"] == 6


def test_lbfgs_has_one_group():
    """A second group is the base's error."""
    params = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)]
    with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
        cyclic(LBFGS)(params, policy=Constant())


def test_sparse_adam_takes_sparse_gradients():
    """SparseAdam on an embedding: values and weights are the base's driven by hand."""
    policy, weights = OneCycle(8), []
    for cls in (cyclic(SparseAdam), SparseAdam):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(6, 3, sparse=True)
        optimizer = cls(embedding.parameters(), lr=0.1, **({} if cls is SparseAdam else {"policy": policy}))
        for step in range(8):
            if cls is SparseAdam:
                set_by_hand(optimizer.param_groups[0], policy, step, 0.1)
            optimizer.zero_grad()
            embedding(torch.tensor([step % 6, 2])).square().sum().backward()
            optimizer.step()
        weights.append(embedding.weight)
    assert_same(*weights)


# --- the class


@pytest.mark.parametrize("name", CASES)
def test_the_class_is_the_base_with_a_policy(name):
    """One class per base; its signature, repr and instances are the base's, plus the policy."""
    case = CASES[name]
    made = cyclic(case.cls)
    assert made is cyclic(case.cls)
    assert issubclass(made, case.cls)
    param = torch.nn.Parameter(torch.ones(2, 2))
    assert isinstance(made([param]), case.cls)
    ours, theirs = inspect.signature(made).parameters, inspect.signature(case.cls).parameters
    assert ours.keys() - {"horizon", "capturable"} == {*theirs, "policy"} - {"capturable"}
    assert all(ours[key].default == theirs[key].default and ours[key].kind == theirs[key].kind for key in theirs)
    assert ours["policy"].kind is inspect.Parameter.KEYWORD_ONLY
    assert repr(made([param])) == repr(case.cls([param])).replace(case.cls.__name__, f"Cyclic{case.cls.__name__}")
    policy = Constant()
    text = repr(made([param], lr=0.5, policy=policy))
    assert text.startswith(f"Cyclic{case.cls.__name__} (\npolicy: Constant()\n")
    assert {"    lr: 0.5", "    max_lr: 0.5", "    schedule_step: 0"} <= set(text.split("\n"))


def test_the_ready_made_classes():
    """cyclic() of SGD and AdamW gives the classes that the package names."""
    assert cyclic(SGD) is CyclicSGD
    assert cyclic(AdamW) is CyclicAdamW


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_classes_pickle(protocol):
    """A class that cyclic() made, a subclass of one, and CyclicAdamW are the same class after pickling and copying."""
    for cls in (CyclicAdamW, cyclic(RMSprop), CyclicSigns, Counted, cyclic(Concrete)):
        assert pickle.loads(pickle.dumps(cls, protocol)) is cls
        assert copy.copy(cls) is copy.deepcopy(cls) is cls


def test_a_fresh_process_unpickles():
    """Class and instance of cyclic(RMSprop) are rebuilt where nobody has called cyclic(RMSprop), and go on."""
    _, optimizer = one_param(cyclic(RMSprop), OneCycle(10), lr=0.1, momentum=0.9)
    optimizer.step()
    code = (
        "import pickle, sys; cls, optimizer = pickle.load(sys.stdin.buffer); optimizer.step(); "
        "group = optimizer.param_groups[0]; print(type(optimizer) is cls, group['schedule_step'], group['lr'])"
    )
    data = pickle.dumps((type(optimizer), optimizer))
    printed = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout
    optimizer.step()
    assert printed.decode().split() == ["True", "2", str(optimizer.param_groups[0]["lr"])]


@pytest.mark.parametrize("name", CASES)
def test_it_passes_the_checks_for_optimizers_of_users(name):
    """It resumes anywhere; copies go on alone, to the bit; it can be steered; wrong arguments change nothing."""
    case = CASES[name]
    check_optimizer(lambda groups, policy: ready(cyclic(case.cls)(groups, lr=0.1, policy=policy)))


def test_a_shallow_copy_shares_the_groups():
    """copy.copy shares groups, state and clock, as of the base: either may step."""
    _, optimizer = one_param(policy=Triangular(4), lr=0.1)
    other = copy.copy(optimizer)
    for one in (optimizer, other, optimizer):
        one.step()
    assert other.param_groups is optimizer.param_groups
    assert optimizer.param_groups[0]["schedule_step"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.1 * Triangular(4).at(3).lr_factor


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (torch.nn.Linear, "need cls to be an optimizer class, a subclass of torch.optim.Optimizer, got .*Linear"),
        (Optimizer, "need cls to be an optimizer class, a subclass .*, got .*Optimizer"),
        (AdamW([torch.nn.Parameter(torch.ones(1))]), "need cls to be an optimizer class, .*, got AdamW"),
        ("AdamW", "need cls to be an optimizer class, .*, got 'AdamW'"),
        (CyclicAdamW, "need cls to be a class without a schedule of its own, got .*CyclicAdamW.*: use it as it is"),
        (cyclic(RMSprop), "need cls to be a class without a schedule of its own, got .*CyclicRMSprop"),
        (Counted, "need cls to be a class without a schedule of its own, got .*Counted"),
        (WithPolicy, "need cls to be a class without an argument 'policy', .* got .*WithPolicy"),
    ],
)
def test_other_things_are_refused(cls, message):
    """What is no optimizer class, or owns a schedule, is refused with the rule and the value."""
    with pytest.raises(TypeError, match=message):
        cyclic(cls)


def test_a_base_without_a_rate_is_refused():
    """A policy needs an lr to move, in the constructor and in reschedule; without a policy the class works."""
    param = torch.nn.Parameter(torch.ones(1))
    rule = "need an optimizer with a learning rate, 'lr' in its param groups, beside a policy, got the keys .*scale"
    with pytest.raises(ValueError, match=rule):
        cyclic(WithoutRate)([param], policy=Constant())
    optimizer = cyclic(WithoutRate)([param])
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=rule):
        optimizer.reschedule(policy=Constant())
    assert optimizer.policies == [None]


def test_a_metaclass_of_the_base_is_kept():
    """An optimizer class with a metaclass, be it ABCMeta, is taken."""
    param, optimizer = one_param(cyclic(Concrete), CosineDecay(4), lr=0.5)
    optimizer.step()
    assert isinstance(cyclic(Concrete), type(Concrete))
    assert_same(param.detach(), torch.full_like(param, 0.75))


def test_a_subclass_has_its_own_step():
    """A user's step that calls super().step() makes one update, counts one, and fires hooks once."""
    fired = []
    param, optimizer = one_param(Counted, Triangular(4), lr=0.1)
    twin, base = one_param(CyclicAdamW, Triangular(4), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    for _ in range(3):
        optimizer.step()
        base.step()
    assert optimizer.count == optimizer.param_groups[0]["schedule_step"] == len(fired) == 3
    assert_same(param, twin)


@pytest.mark.parametrize("policy", [OneCycle(8), None])
def test_a_users_optimizer_keeps_its_arguments_and_state(policy):
    """Arguments, attributes and state of any kind are the user's, also through a checkpoint."""
    param, optimizer = one_param(CyclicSigns, policy, lr=0.1, damping=0.5)
    for _ in range(3):
        optimizer.step()
    assert optimizer.calls == 3
    twin, resumed = one_param(CyclicSigns, policy, lr=0.1)
    twin.data.copy_(param.data)
    checkpoint = through_a_file(optimizer.state_dict())
    resumed.load_state_dict(checkpoint)
    assert resumed.param_groups[0]["damping"] == 0.5
    assert_same(resumed.state_dict(), checkpoint)
    assert resumed.state[twin]["pair"][0].data_ptr() != checkpoint["state"][0]["pair"][0].data_ptr()
    optimizer.step()
    resumed.step()
    assert_same(twin, param)


# --- without a policy


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5)
@given(data=st.data())
def test_without_a_policy_it_is_the_base(name, data):
    """The same param groups, state dict and weights, to the bit."""
    case = CASES[name]
    problem, options = data.draw(problems_of(case)), data.draw(options_of(case))
    ours, theirs = problem.params(), problem.params()
    optimizer = ready(cyclic(case.cls)([{"params": p} for p in ours], lr=0.1, **options))
    twin = ready(case.cls([{"params": p} for p in theirs], lr=0.1, **options))
    for step in range(3):
        problem.set_grads(ours, step)
        problem.set_grads(theirs, step)
        optimizer.step()
        twin.step()
    assert_same(optimizer.state_dict(), twin.state_dict())
    assert_same(flat(ours), flat(theirs))


@pytest.mark.parametrize("cls", [AdamW, RMSprop])
def test_without_a_policy_schedulers_drive_it(cls):
    """torch's schedulers drive it as they drive the base, without a warning."""
    ours, theirs = model_of(), model_of()
    optimizer, twin = cyclic(cls)(ours.parameters(), lr=0.1), cls(theirs.parameters(), lr=0.1)
    schedulers = [StepLR(one, 2, 0.5) for one in (optimizer, twin)]
    for step in range(6):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        twin.step()
        for scheduler in schedulers:
            scheduler.step()
    assert numbers(optimizer.param_groups[0]) == numbers(twin.param_groups[0])
    assert_same(list(ours.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("policy", [None, Triangular(4)])
def test_a_compiled_step_of_numbers_is_compiled_once(policy):
    """torch.compile(optimizer.step) makes the base's update, and numbers that change recompile nothing."""
    torch._dynamo.reset()
    weights = []
    for cls in (CyclicAdamW, AdamW):
        model = model_of()
        optimizer = cls(model.parameters(), lr=0.1, **({"policy": policy} if cls is CyclicAdamW else {}))
        # Beside a policy the step runs as it is; without one, and of the base, it is compiled.
        is_compiled = cls is CyclicAdamW or policy is None
        step_of = torch.compile(optimizer.step, backend="eager") if is_compiled else optimizer.step
        for step in range(6):
            if cls is AdamW and policy is not None:
                set_by_hand(optimizer.param_groups[0], policy, step, 0.1)
            set_grads(model, step)
            with torch._dynamo.config.patch(error_on_recompile=step > 1):
                step_of()
        weights.append(list(model.parameters()))
    assert_same(*weights)


# --- hooks and closures


@pytest.mark.parametrize("policy", [None, OneCycle(20)])
@pytest.mark.parametrize("cls", [AdamW, RMSprop, Signs])
def test_hooks_fire_once_per_step(cls, policy):
    """Hooks of the instance and of all optimizers, before and after: once, also beside steps of the base."""

    def beside():
        param = torch.nn.Parameter(torch.ones(1))
        param.grad = torch.ones(1)
        cls([param]).step()

    beside()
    _, optimizer = one_param(cyclic(cls), policy, lr=0.1)
    beside()
    fired = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: fired.append("pre")),
        optimizer.register_step_post_hook(lambda *_: fired.append("post")),
        register_optimizer_step_pre_hook(lambda one, *_: fired.append("global pre") if one is optimizer else None),
        register_optimizer_step_post_hook(lambda one, *_: fired.append("global post") if one is optimizer else None),
    ]
    try:
        optimizer.step()
        beside()
        optimizer.step(closure=lambda: 1.0)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(fired) == sorted(["pre", "post", "global pre", "global post"] * 2)
    optimizer.step()
    assert len(fired) == 8


@pytest.mark.parametrize("policy", [None, OneCycle(20)])
def test_the_profiler_sees_one_range(policy):
    """A profiled step is one range, with the name of the class."""
    _, optimizer = one_param(policy=policy, lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    ranges = [event.name for event in profile.events() if event.name.startswith("Optimizer.step")]
    assert ranges == ["Optimizer.step#CyclicAdamW.step"]


@pytest.mark.parametrize("name", [name for name in CASES if name != "AdamWScheduleFree"])
@pytest.mark.parametrize("has_policy", [True, False])
def test_a_closure_runs_once(name, has_policy):
    """Once, with gradients enabled, and its loss is returned."""
    case, calls = CASES[name], []
    _, optimizer = one_param(cyclic(case.cls), plain_policy(case) if has_policy else None, lr=0.1)
    assert optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or 7.0) == 7.0
    assert calls == [True]


# --- loss scaling


@pytest.mark.parametrize("cls", [AdamW, Adam, RMSprop])
@settings(max_examples=10)
@given(overflows=st.lists(st.booleans(), min_size=1, max_size=6), fused=st.booleans())
def test_skipped_steps_change_nothing(cls, fused, overflows):
    """Under GradScaler, where the step is not called or, fused, sees found_inf: only applied steps count."""
    options = {"fused": True} if fused and cls is not RMSprop else {}
    policy = OneCycle(20)
    param, optimizer = one_param(cyclic(cls), policy, lr=0.1, **options)
    twin = torch.nn.Parameter(param.detach().clone())
    base = cls([twin], lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for overflow in overflows:
        scaler.scale(torch.ones(()))  # creates the scale
        param.grad = torch.full_like(param, float("inf") if overflow else 0.5 * scaler.get_scale())
        before = copy.deepcopy((optimizer.state_dict()["param_groups"], param.detach()))
        if not overflow:
            set_by_hand(base.param_groups[0], policy, optimizer.param_groups[0]["schedule_step"], 0.1)
            twin.grad = torch.full_like(twin, 0.5)
            base.step()
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert_same((optimizer.state_dict()["param_groups"], param.detach()), before)
        assert_same(param, twin, 1e-12)
    assert optimizer.param_groups[0]["schedule_step"] == overflows.count(False)


@pytest.mark.parametrize(("found_inf", "counted"), [(0.0, 1), (1.0, 0), (2.0, 0)])
def test_found_inf_is_any_count(found_inf, counted):
    """A found_inf other than 0, be it the sum of two devices', skips the step and its count; the closure still runs."""
    param, optimizer = one_param(policy=OneCycle(20), lr=0.1, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.tensor(found_inf)
    before = param.detach().clone()
    assert optimizer.step(lambda: 3.0) == 3.0
    assert optimizer.param_groups[0]["schedule_step"] == counted
    assert torch.equal(param, before) is (counted == 0)


# --- checkpoints


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_resumed_run_goes_on_to_the_bit(name, data):
    """Saved in mid-run, in a file, and loaded into a fresh optimizer, also one that takes its policies from there."""
    case = CASES[name]
    problem, options = data.draw(problems_of(case)), data.draw(options_of(case))
    policy = data.draw(
        policies_of(case).filter(lambda policy: "Lambda" not in repr(policy) and "<f" not in repr(policy))
    )
    if name in ("NAdam", "ASGD"):
        # torch casts their float32 factors to the parameter's dtype when it loads them.
        problem = replace(problem, dtype=torch.float32)
    given_in_code = policy if data.draw(st.booleans()) else None
    ours = problem.params()
    optimizer = ready(cyclic(case.cls)([{"params": p} for p in ours], lr=0.1, policy=policy, **options))
    for step in range(3):
        problem.set_grads(ours, step)
        optimizer.step()
    theirs = problem.params()
    for param, twin in zip(flat(ours), flat(theirs), strict=True):
        twin.data.copy_(param.data)
    resumed = ready(cyclic(case.cls)([{"params": p} for p in theirs], lr=0.1, policy=given_in_code, **options))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.policies == optimizer.policies
    for step in range(3, 6):
        problem.set_grads(ours, step)
        problem.set_grads(theirs, step)
        optimizer.step()
        resumed.step()
    assert_same(flat(theirs), flat(ours))
    assert_same(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_of_the_base_and_for_the_base(name):
    """The base's checkpoint starts the schedule at step 0, with a warning that knows the number of updates where the
    state counts them; ours loads into the base, which goes on at our values."""
    case = CASES[name]
    param = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    param.grad = torch.full_like(param, 0.5)
    # RMSprop itself cannot begin with momentum after steps without.
    base = ready(case.cls([param], lr=0.3, **({"momentum": 0.9} if case.slot == "momentum" else {})))
    base.step()
    _, optimizer = one_param(cyclic(case.cls), plain_policy(case), lr=0.1)
    has_count = "step" in base.state[param]
    counted = r"after 1 updates: .* reschedule\(step=1\)" if has_count else r"reschedule\(step=\.\.\.\)"
    with pytest.warns(UserWarning, match=f"is of a run without a schedule, .*{counted}.*from_torch"):
        optimizer.load_state_dict(through_a_file(base.state_dict()))
    ready(optimizer)
    group = optimizer.param_groups[0]
    assert (group["schedule_step"], group["max_lr"]) == (0, 0.1)
    assert group["lr"] == 0.1 * plain_policy(case).at(0).lr_factor
    optimizer.step()
    base.load_state_dict(through_a_file(optimizer.state_dict()))
    base.step()
    assert numbers(base.param_groups[0]) == numbers(group)


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_checkpoint_of_the_base_starts_the_schedule_without_a_word(name):
    """Before its first update the base has trained nothing, though some of them have their state by then."""
    case = CASES[name]
    param = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    _, optimizer = one_param(cyclic(case.cls), plain_policy(case), lr=0.1)
    optimizer.load_state_dict(through_a_file(ready(case.cls([param], lr=0.3)).state_dict()))
    assert optimizer.param_groups[0]["schedule_step"] == 0


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("Signs", "AdamWScheduleFree")])
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpointing_moves_no_clock(name, flatten):
    """Its dry run on a fresh optimizer, and loading through it: clock, values and weights are the run's."""
    case = CASES[name]
    options, policy = StateDictOptions(flatten_optimizer_state_dict=flatten), plain_policy(case)

    def fresh(cls, **given):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 3, bias=False)
        return model, cls(model.parameters(), lr=0.1, **given)

    model, optimizer = fresh(cyclic(case.cls), policy=policy)
    try:
        get_optimizer_state_dict(*fresh(case.cls), options=options)
    except (NotImplementedError, ValueError) as error:
        pytest.skip(f"the base class cannot: {error}")
    before = copy.deepcopy((optimizer.param_groups[0]["lr"], model.weight.detach()))
    get_optimizer_state_dict(model, optimizer, options=options)
    assert optimizer.param_groups[0]["schedule_step"] == 0
    assert_same((optimizer.param_groups[0]["lr"], model.weight.detach()), before)
    model, optimizer = fresh(cyclic(case.cls), policy=policy)
    for step in range(3):
        set_grads(model, step)
        optimizer.step()
    checkpoint = get_optimizer_state_dict(model, optimizer, options=options)
    other, resumed = fresh(cyclic(case.cls), policy=policy)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, checkpoint, options=options)
    assert numbers(resumed.param_groups[0]) == numbers(optimizer.param_groups[0])
    assert resumed.param_groups[0]["schedule_step"] == 3
    for one, its in ((model, optimizer), (other, resumed)):
        set_grads(one, 3)
        its.step()
    assert_same(other.weight, model.weight)


# --- schedules


def test_groups_have_policies_of_their_own():
    """A policy per group, None among them, and each group's own clock."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    policy, other = OneCycle(10), CosineDecay(5)
    groups = [
        {"params": [params[0]]},
        {"params": [params[1]], "policy": other, "lr": 0.2},
        {"params": [params[2]], "policy": None, "betas": (0.7, 0.8)},
    ]
    optimizer = CyclicAdamW(groups, lr=0.1, policy=policy)
    assert optimizer.policies == [policy, other, None]
    for step in range(4):
        first, second, third = optimizer.param_groups
        assert first["betas"] == (policy.at(step).momentum, 0.999)
        assert (first["lr"], second["lr"]) == (0.1 * policy.at(step).lr_factor, 0.2 * other.at(step).lr_factor)
        assert second["betas"] == (0.9, 0.999)
        assert (third["lr"], third["betas"]) == (0.1, (0.7, 0.8))
        for param in params:
            param.grad = torch.ones(2)
        optimizer.step()
    late = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "lr": 0.3})
    assert optimizer.param_groups[3]["schedule_step"] == 4
    assert optimizer.param_groups[3]["betas"] == (policy.at(4).momentum, 0.999)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "schedule_step": 0, "policy": other})
    assert optimizer.param_groups[4]["lr"] == 0.1


@pytest.mark.parametrize("name", CASES)
def test_reschedule_changes_policy_peak_and_clock(name):
    """Each argument alone and all together; what is not given stays, and the next step uses the new values."""
    case = CASES[name]
    policy = plain_policy(case, 20)
    _, optimizer = one_param(cyclic(case.cls), policy, lr=0.1)
    ready(optimizer)
    optimizer.step()
    group = optimizer.param_groups[0]
    optimizer.reschedule(lr=0.2)
    assert (group["lr"], group["schedule_step"]) == (0.2 * policy.at(1).lr_factor, 1)
    optimizer.reschedule(step=7)
    assert (group["lr"], group["schedule_step"]) == (0.2 * policy.at(7).lr_factor, 7)
    later = Triangular(3, cycle_momentum=case.slot is not None)
    optimizer.reschedule(policy=later, group=0)
    assert (group["lr"], optimizer.policies, optimizer.policy) == (0.2 * later.at(7).lr_factor, [later], policy)
    optimizer.reschedule(policy=CosineDecay(4), lr=[0.4], step=2)
    assert (group["lr"], group["schedule_step"]) == (0.4 * CosineDecay(4).at(2).lr_factor, 2)
    if case.slot == "betas":
        assert group["betas"][0] == later.at(7).momentum  # where the new policy leaves it alone
    optimizer.step()
    assert (group["lr"], group["schedule_step"]) == (0.4 * CosineDecay(4).at(3).lr_factor, 3)


def test_reschedule_gives_the_base_a_policy():
    """An optimizer without a policy is given one in mid-run."""
    _, optimizer = one_param(lr=0.1)
    optimizer.step()
    optimizer.reschedule(policy=OneCycle(10))
    optimizer.step()
    group = optimizer.param_groups[0]
    assert (group["schedule_step"], group["betas"][0]) == (1, OneCycle(10).at(1).momentum)


def test_reports_lower_the_rate():
    """Plateau beside AdamW: the next step uses the lower rate, and betas stay."""
    _, optimizer = one_param(policy=Plateau(patience=0, factor=0.5), lr=0.1)
    optimizer.step()
    optimizer.report(1.0)
    optimizer.report(1.5)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    with pytest.raises(TypeError, match="need a policy that listens"):
        one_param(policy=OneCycle(10))[1].report(1.0)


def test_edits_by_hand():
    """An edit of lr or betas[0] lasts for one step; one of betas[1], max_lr or schedule_step stays."""
    policy = OneCycle(20)
    param, optimizer = one_param(policy=policy, lr=0.1)
    twin, base = one_param(lr=0.1)
    group, other = optimizer.param_groups[0], base.param_groups[0]

    def step():
        other.update(numbers(group))
        optimizer.step()
        base.step()
        assert_same(param, twin)

    group["lr"], group["betas"] = 0.5, (0.5, 0.9)
    step()
    assert group["lr"] == 0.1 * policy.at(1).lr_factor
    assert group["betas"] == (policy.at(1).momentum, 0.9)
    group["max_lr"] = 0.3
    optimizer.step()
    assert group["lr"] == 0.3 * policy.at(2).lr_factor
    twin.data.copy_(param.data)
    base.load_state_dict(optimizer.state_dict())
    other = base.param_groups[0]
    group["schedule_step"] = 10
    optimizer.step()
    assert (group["lr"], group["schedule_step"]) == (0.3 * policy.at(11).lr_factor, 11)
    assert group["betas"] == (policy.at(11).momentum, 0.9)


def test_a_passive_scheduler_reports():
    """It names the rate of the step made, and moves nothing."""
    _, optimizer = one_param(policy=OneCycle(20), lr=0.1)
    scheduler = optimizer.passive_scheduler()
    for step in range(3):
        optimizer.step()
        assert scheduler.get_last_lr() == [0.1 * OneCycle(20).at(step).lr_factor]
        scheduler.step()
    assert optimizer.param_groups[0]["schedule_step"] == 3


def test_a_run_of_the_base_is_taken_over():
    """AdamW with OneCycleLR goes on in CyclicAdamW at the same values and weights."""
    ours, theirs = model_of(), model_of()
    for model in (ours, theirs):
        twin = AdamW(model.parameters(), lr=0.1)
        scheduler = OneCycleLR(twin, 0.1, total_steps=20)
        for step in range(5):
            set_grads(model, step)
            twin.step()
            scheduler.step()
        if model is ours:
            optimizer = CyclicAdamW.from_torch(twin, scheduler, steps_per_epoch=1)
    for step in range(5, 15):
        assert_same(numbers(optimizer.param_groups[0]), approximately(numbers(twin.param_groups[0])))
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        twin.step()
        scheduler.step()
    assert_same(list(ours.parameters()), list(theirs.parameters()), 1e-9)


@pytest.mark.parametrize("name", ["AdamW", "RMSprop"])
def test_a_tensor_rate_is_filled(name):
    """A tensor lr is copied, and rates are written into the copy."""
    case, given_rate = CASES[name], torch.tensor(0.1, dtype=torch.float64)
    _, optimizer = one_param(cyclic(case.cls), CosineDecay(4), lr=given_rate)
    held = optimizer.param_groups[0]["lr"]
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.1 * CosineDecay(4).at(1).lr_factor
    assert given_rate.item() == 0.1


def test_a_failed_construction_names_the_rule():
    """Errors of the base are the base's; those of the schedule name the value."""
    param = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        CyclicAdamW([param], lr=-1.0, policy=Constant())
    with pytest.raises(TypeError, match=r"need policy to be a Policy or None, got policy=<class .*pass an instance"):
        CyclicAdamW([param], policy=OneCycle)
    with pytest.raises(TypeError, match="unexpected keyword argument 'polciy'"):
        cyclic(RMSprop)([param], polciy=Constant())
    with pytest.raises(ValueError, match="need capturable as an argument of the optimizer"):
        CyclicAdamW([{"params": [param], "capturable": True}], policy=Constant())
