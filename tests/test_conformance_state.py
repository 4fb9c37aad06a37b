"""What torch asks of an optimizer's state, memory and lifetime beside its numbers, as SGD has it."""

import contextlib
import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from helpers import params_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import SGD
from torch_database import SGD_ENTRY

from cyclic_optim import Constant, CyclicSGD, LambdaPolicy, OneCycle, Plateau, Triangular
from cyclic_optim.device import DeviceSchedules

pytestmark = pytest.mark.usefixtures("part")

#: Every path of a step.
WAYS = {
    "sgd": {},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
    "fused": {"fused": True},
    "policy": {"policy": OneCycle(total_steps=20)},
    "policy, foreach": {"policy": Triangular(step_size_up=3), "foreach": True},
    "policy, loop": {"policy": Triangular(step_size_up=3), "fused": False},
    "policy, fused": {"policy": OneCycle(total_steps=20), "fused": True},
    "plateau": {"policy": Plateau()},
    "capturable": {"policy": OneCycle(total_steps=20), "capturable": True},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
#: A schedule that starts in the middle of SGD's run is meant to, here.
starts_anew = pytest.mark.filterwarnings("ignore:the checkpoint is of a run without a schedule:UserWarning")
without_policy = pytest.mark.parametrize("way", [way for way in WAYS.values() if "policy" not in way], ids=str)

SHAPES = [(3, 4), (5,), (), (0,), (2, 3, 2, 2)]
OPTIONS = {"lr": 0.1, "momentum": 0.9}


def make(cls=CyclicSGD, named=False, options=OPTIONS, dtype=torch.float32, **way):
    """An optimizer of two groups, always of the same values."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]
    rows = [(f"p{i}", param) for i, param in enumerate(params)] if named else params
    return cls([{"params": rows[:2]}, {"params": rows[2:], "lr": 0.05, "weight_decay": 0.01}], **options, **way)


def set_grads(optimizer, step):
    generator = torch.Generator().manual_seed(step + 1)
    for param in params_of(optimizer):
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)


def train(optimizer, steps=3, start=0):
    for step in range(start, start + steps):
        set_grads(optimizer, step)
        optimizer.step()
    return optimizer


def same(a, b):
    """Whether two state dicts, or parts of them, are the same to the bit, types and the order of keys included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# --- hooks of state dicts


def with_hooks(optimizer):
    """The optimizer with two hooks of each kind, one of them put first; and what they will have seen."""
    seen = []

    def note(name, answer=lambda given: None):
        def hook(*given):
            assert given[0] is optimizer
            seen.append(name)
            return answer(given[-1])

        return hook

    handles = []
    for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
        register = getattr(optimizer, f"register_{kind}_hook")
        change = (lambda saved: {**saved, "more": len(saved)}) if kind == "state_dict_post" else lambda given: None
        handles.append(register(note(f"{kind}, first registered", change)))
        handles.append(register(note(f"{kind}, put first"), prepend=True))
    return seen, handles


@ways
def test_state_dict_hooks_run_as_sgds_do(way):
    """Saving and loading call the hooks that SGD calls, in the same order, until they are removed."""
    logs = []
    for optimizer in (make(SGD), make(**way)):
        seen, handles = with_hooks(train(optimizer))
        saved = optimizer.state_dict()
        assert saved.pop("more") == 2
        optimizer.load_state_dict(saved)
        for handle in handles:
            handle.remove()
        optimizer.load_state_dict(optimizer.state_dict())
        logs.append(seen)
    assert len(logs[0]) == 8
    assert logs[0] == logs[1]


@ways
def test_hooks_see_what_is_saved_and_may_replace_it(way):
    """A hook after saving gets the very data that would have been returned, and what it returns is."""
    optimizer = train(make(**way))
    plain, seen = copy.deepcopy(optimizer.state_dict()), []
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append(copy.deepcopy(saved)))
    optimizer.register_state_dict_post_hook(lambda _, saved: {"wrapped": saved})
    returned = optimizer.state_dict()
    assert same(seen, [plain])
    assert same(returned, {"wrapped": plain})


@ways
def test_hooks_before_loading_may_replace_the_dict(way):
    """What a hook returns, or makes of its shallow copy, is loaded; the caller's dict is left as it is."""
    wanted = copy.deepcopy(train(make(**way), steps=5).state_dict())
    for change in (lambda _, given: wanted, lambda _, given: given.update(wanted)):
        optimizer = make(**way)
        given = copy.deepcopy(optimizer.state_dict())
        before = copy.deepcopy(given)
        optimizer.register_load_state_dict_pre_hook(change)
        optimizer.load_state_dict(given)
        assert same(given, before)
        assert same(optimizer.state_dict(), wanted)


@ways
def test_hooks_after_loading_see_what_was_loaded(way):
    """A hook after loading finds groups, buffers and schedule loaded, and can save them again."""
    saved = copy.deepcopy(train(make(**way)).state_dict())
    optimizer, seen = make(**way), []

    def look(loaded):
        seen.append(copy.deepcopy(loaded.state_dict()))
        seen.append([group.get("schedule_step") for group in loaded.param_groups])

    optimizer.register_load_state_dict_post_hook(look)
    optimizer.load_state_dict(saved)
    assert same(seen[0], saved)
    assert seen[1] == ([3, 3] if "policy" in way else [None, None])
    assert same(optimizer.state_dict(), saved)


@ways
def test_edits_of_a_hook_after_loading_hold(way):
    """What a hook after loading writes into the groups is in force for the coming step."""
    optimizer, twin = (train(make(**way)) for _ in range(2))

    def edit(loaded):
        for group in loaded.param_groups:
            group["lr"] = 0.25

    optimizer.register_load_state_dict_post_hook(edit)
    for one in (optimizer, twin):
        one.load_state_dict(one.state_dict())
    edit(twin)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.25]
    assert same(params_of(train(optimizer, start=3)), params_of(train(twin, start=3)))


# --- determinism


@ways
def test_a_state_dict_is_the_same_every_time(way):
    """Asked twice, or after the same steps elsewhere, the state dict is the same, keys in the same order."""
    one, other = (train(make(**way)) for _ in range(2))
    first = copy.deepcopy(one.state_dict())
    assert same(one.state_dict(), first)
    assert same(other.state_dict(), first)
    assert list(first["state"]) == list(train(make(SGD)).state_dict()["state"])
    assert [group["params"] for group in first["param_groups"]] == [[0, 1], [2, 3, 4]]
    files = []
    for optimizer in (one, other):
        file = io.BytesIO()
        torch.save(copy.deepcopy(optimizer.state_dict()), file)
        files.append(file.getvalue())
    assert files[0] == files[1]


@without_policy
def test_without_a_policy_the_state_dict_is_sgds(way):
    """Keys, their order, types, numbers and buffers are SGD's after every step, and the buffers are the live ones."""
    ours, theirs = make(**way), make(SGD, **way)
    for step in range(4):
        assert same(ours.state_dict(), theirs.state_dict())
        for one in (ours, theirs):
            train(one, steps=1, start=step)
    buffers = [kept["momentum_buffer"] for kept in ours.state.values()]
    saved = [kept["momentum_buffer"] for kept in ours.state_dict()["state"].values()]
    assert all(a is b for a, b in zip(buffers, saved, strict=True))


PRINT_STATE_DICT = """
import torch
from cyclic_optim import CyclicSGD, MultiStepDecay, OneCycle, Sequential

policy = Sequential([OneCycle(total_steps=10), MultiStepDecay((3, 5), 0.5)], [7])
params = [(name, torch.nn.Parameter(torch.ones(3))) for name in "abc"]
optimizer = CyclicSGD(params, lr=0.1, momentum=0.9, policy=policy)
for _, param in params:
    param.grad = torch.ones(3)
optimizer.step()
print(optimizer.state_dict())
"""


def test_a_state_dict_is_the_same_in_every_process(part, capsys):
    """Nothing in a state dict depends on the process and its hash seed."""
    if part == "python":
        return  # other processes have the compiled part
    exec(PRINT_STATE_DICT, {})
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", PRINT_STATE_DICT]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert "OneCycle" in printed
    assert printed == capsys.readouterr().out


# --- torch's defaults for new tensors


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "nothing": contextlib.nullcontext,
}


@ways
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_defaults_for_new_tensors_change_nothing(lr, way):
    """Whatever dtype and device new tensors have by default, steps, reports and checkpoints do the same."""
    ends = []
    for default in DEFAULTS.values():
        optimizer, other = (make(options={**OPTIONS, "lr": lr}, **way) for _ in range(2))
        for step in range(3):
            set_grads(optimizer, step)
            with default():
                optimizer.step()
                if "policy" in way and isinstance(way["policy"], Plateau):
                    optimizer.report(1.0)
        with default():
            saved = optimizer.state_dict()
            other.load_state_dict(saved)
            for group in other.param_groups:
                group["lr"] = 0.0 * group["lr"]  # a dry run
            twin = copy.deepcopy(other)
            for param in params_of(twin):
                param.grad = torch.zeros_like(param)
            twin.step()
        ends.append([saved, other.state_dict(), twin.state_dict(), params_of(optimizer), params_of(twin)])
    assert all(same(end, ends[-1]) for end in ends)


@ways
def test_a_deep_copy_has_every_public_attribute(way):
    """What is public of an optimizer is there in its deep copy, of the same type."""
    optimizer = train(make(**way))
    twin = copy.deepcopy(optimizer)
    public = [{name: type(value) for name, value in vars(one).items() if name[0] != "_"} for one in (optimizer, twin)]
    assert {"defaults", "state", "param_groups"} <= public[0].keys()
    assert public[0] == public[1]


# --- named parameters


def names_of(optimizer):
    return [group.get("param_names") for group in optimizer.param_groups]


@ways
def test_named_parameters_are_named_as_by_sgd(way):
    """Names stand in the groups and in the state dict as SGD has them, also of a group added later."""
    ours, theirs, plain = make(named=True, **way), make(SGD, named=True), make(**way)
    for optimizer in (ours, theirs):
        train(optimizer)
        param = torch.nn.Parameter(torch.ones(2))
        optimizer.add_param_group({"params": [("later", param)]})
    assert names_of(ours) == names_of(theirs) == [["p0", "p1"], ["p2", "p3", "p4"], ["later"]]
    packed = [group["param_names"] for group in ours.state_dict()["param_groups"]]
    assert packed == [group["param_names"] for group in theirs.state_dict()["param_groups"]]
    assert same(params_of(ours)[:-1], params_of(train(plain)))


@ways
@pytest.mark.parametrize("saved_named", [True, False])
@pytest.mark.parametrize("loading_named", [True, False])
def test_named_state_dicts_load_into_unnamed_and_back(saved_named, loading_named, way):
    """Names are taken from the dict where it has some, kept where it has none, and matter to nothing else."""
    names = []
    for more in ({"cls": SGD}, way):
        saved = train(make(named=saved_named, **more))
        if saved_named:  # under other names
            for group in saved.param_groups:
                group["param_names"] = [f"other {name}" for name in group["param_names"]]
        loaded = make(named=loading_named, **more)
        loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
        names.append(names_of(loaded))
    assert names[0] == names[1]
    with torch.no_grad():
        for param, other in zip(params_of(loaded), params_of(saved), strict=True):
            param.copy_(other)
    assert same(params_of(train(loaded, start=3)), params_of(train(saved, start=3)))


@ways
def test_buffers_find_their_parameters_by_name(way):
    """torch's recipe, a hook before loading that sorts by name, loads into parameters in another order."""
    saved = train(make(named=True, **way))
    named = dict(zip(sum(names_of(saved), []), params_of(saved), strict=True))  # noqa: RUF017
    order = [["p1", "p0"], ["p4", "p2", "p3"]]
    twins = {name: torch.nn.Parameter(param.detach().clone()) for name, param in named.items()}
    groups = [{"params": [(name, twins[name]) for name in names]} for names in order]
    loaded = CyclicSGD([groups[0], {**groups[1], "lr": 0.05, "weight_decay": 0.01}], **OPTIONS, **way)

    def by_name(optimizer, given):
        given = copy.deepcopy(given)
        number = {name: i for g in given["param_groups"] for name, i in zip(g["param_names"], g["params"], strict=True)}
        for group, own in zip(given["param_groups"], optimizer.param_groups, strict=True):
            group["params"] = [number[name] for name in own["param_names"]]
            group["param_names"] = own["param_names"]
        return given

    loaded.register_load_state_dict_pre_hook(by_name)
    loaded.load_state_dict(saved.state_dict())
    for step in range(3, 6):
        set_grads(saved, step)
        for name, param in named.items():
            twins[name].grad = param.grad.clone()
        for optimizer in (saved, loaded):
            optimizer.step()
    for name, param in named.items():
        torch.testing.assert_close(twins[name], param, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            loaded.state[twins[name]]["momentum_buffer"], saved.state[param]["momentum_buffer"], rtol=1e-6, atol=1e-6
        )


# --- state dicts of older versions and of other makers


def drop_flags(saved):
    for group in saved["param_groups"]:
        for flag in SGD_ENTRY.not_og_supported_flags:
            group.pop(flag, None)


def name_parameters_by_id(saved):
    """Once, parameters were numbered by where they lay in memory."""
    place = {i: 140_000_000_000_000 + 64 * (7 - i) for group in saved["param_groups"] for i in group["params"]}
    for group in saved["param_groups"]:
        group["params"] = [place[i] for i in group["params"]]
    saved["state"] = {place[i]: kept for i, kept in saved["state"].items()}


def say_that_there_are_no_buffers(saved):
    """SGD without momentum used to keep a None."""
    saved["state"] = {i: {"momentum_buffer": None} for group in saved["param_groups"] for i in group["params"]}


def add_steps(saved):
    for number, kept in enumerate(saved["state"].values()):
        kept["step"] = torch.tensor(3.0) if number % 2 else 3


def add_what_nobody_knows(saved):
    saved["state"]["of no parameter"] = {"count": 7}
    for kept in saved["state"].values():
        kept["note"] = 7  # not a string: torch's loading makes a repr with an address in it of that
    for group in saved["param_groups"]:
        group["of no optimizer"] = [1, 2]


def double(saved):
    for kept in saved["state"].values():
        kept["momentum_buffer"] = kept["momentum_buffer"].double()


def drop_state(saved):
    saved["state"] = {}


OLDER = {
    change.__name__: change
    for change in (
        drop_flags,
        name_parameters_by_id,
        say_that_there_are_no_buffers,
        add_steps,
        add_what_nobody_knows,
        double,
        drop_state,
    )
}


@pytest.mark.parametrize("change", OLDER.values(), ids=OLDER)
@without_policy
def test_older_state_dicts_load_as_into_sgd(change, way):
    """Without a policy, an older version's state dict becomes what SGD makes of it, and goes on alike."""
    saved = copy.deepcopy(train(make(SGD)).state_dict())
    change(saved)
    ends = []
    for cls in (SGD, CyclicSGD):
        optimizer = make(cls, **way)
        optimizer.load_state_dict(copy.deepcopy(saved))
        loaded = copy.deepcopy(optimizer.state_dict())
        ends.append((loaded, params_of(train(optimizer)), optimizer.state_dict()))
    assert same(*ends)


@starts_anew
@pytest.mark.parametrize("change", OLDER.values(), ids=OLDER)
@pytest.mark.parametrize("writer", [SGD, CyclicSGD])
@pytest.mark.parametrize("way", [way for way in WAYS.values() if "policy" in way], ids=str)
def test_older_state_dicts_load_beside_a_policy(change, writer, way):
    """With a policy they load, too: what they lack is as in the code, and buffers that are there are taken over."""
    source = train(make(**way) if writer is CyclicSGD else make(SGD))
    plain = copy.deepcopy(source.state_dict())
    saved = copy.deepcopy(plain)
    change(saved)
    start = 3 if writer is CyclicSGD else 0
    optimizer = make(**way)
    flags = [
        {key: group[key] for key in SGD_ENTRY.not_og_supported_flags if key in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert int(group["schedule_step"]) == start
    assert float(group["lr"]) == pytest.approx(0.1 * way["policy"].at(start).lr_factor, rel=1e-6)
    if change is drop_flags:
        assert flags == [{key: group[key] for key in flags[0]} for group in optimizer.param_groups]
    expected = {} if change in (say_that_there_are_no_buffers, drop_state) else plain["state"]
    for number, param in enumerate(params_of(optimizer)):
        buffer = optimizer.state[param].get("momentum_buffer")
        if number in expected:
            assert torch.equal(buffer, expected[number]["momentum_buffer"])
        else:
            assert buffer is None or not buffer.any()
    train(optimizer)
    assert int(group["schedule_step"]) == start + 3


# --- swapped and overwritten parameters


@contextlib.contextmanager
def conversion(kind):
    switch = getattr(torch.__future__, f"set_{kind}_module_params_on_conversion")
    switch(True)
    try:
        yield
    finally:
        switch(False)


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator))
    return model


@ways
def test_it_goes_on_after_parameters_were_swapped(way):
    """A model that loads and converts by swapping tensors is trained on, state and all, by SGD's numbers."""
    options = {"lr": 0.01, "momentum": 0.9}
    ends = []
    for make_one in (lambda params: CyclicSGD(params, **options, **way), None):
        model = network(0)
        optimizer = make_one(model.parameters()) if make_one else SGD(model.parameters(), **options, foreach=False)

        def steps(first, last, model=model, optimizer=optimizer, by_hand=make_one is None):
            for step in range(first, last):
                if by_hand and "policy" in way:
                    lr_factor, momentum, _ = way["policy"].at(step)
                    optimizer.param_groups[0]["lr"] = 0.01 * lr_factor
                    optimizer.param_groups[0]["momentum"] = 0.9 if momentum is None else momentum
                optimizer.zero_grad()
                dtype = model[0].weight.dtype
                model(torch.linspace(-1, 1, 8, dtype=dtype).view(2, 4)).square().mean().backward()
                optimizer.step()

        steps(0, 3)
        optimizer.zero_grad()
        with conversion("swap"):
            model.load_state_dict(network(1).state_dict())
            steps(3, 4)
            before = model[0].weight.data_ptr()
            model.load_state_dict(network(2).state_dict(), assign=True)
            assert model[0].weight.data_ptr() != before
            steps(4, 5)
            optimizer.zero_grad()
            saved = copy.deepcopy(optimizer.state_dict())
            model.double()
            optimizer.load_state_dict(saved)  # which makes the buffers double, too
            steps(5, 8)
        assert all(param.dtype is torch.float64 for param in model.parameters())
        assert all(a is b for a, b in zip(params_of(optimizer), model.parameters(), strict=True))
        ends.append([*model.parameters(), *(optimizer.state[p]["momentum_buffer"] for p in model.parameters())])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


# --- lifetime


def take_steps(optimizer):
    train(optimizer, steps=4)


def call_a_closure(optimizer):
    set_grads(optimizer, 0)
    assert optimizer.step(lambda: 7) == 7


def register_hooks(optimizer):
    seen, handles = [], []
    handles.append(optimizer.register_step_pre_hook(lambda one, *_: seen.append(len(one.param_groups))))
    handles.append(optimizer.register_step_post_hook(lambda one, *_: seen.append(len(one.param_groups))))
    handles.append(optimizer.register_state_dict_post_hook(lambda one, saved: seen.append(len(saved))))
    handles.append(optimizer.register_load_state_dict_post_hook(lambda one: seen.append(len(one.param_groups))))
    train(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(seen) == 8


def profile(optimizer):
    with torch.autograd.profiler.profile():
        train(optimizer)


def copy_deeply(optimizer):
    twin = train(copy.deepcopy(train(optimizer)), start=3)
    reference = weakref.ref(twin)
    del twin
    assert reference() is None


def go_through_pickle(optimizer):
    twin = train(pickle.loads(pickle.dumps(train(optimizer))), start=3)
    reference = weakref.ref(twin)
    del twin
    assert reference() is None


def reload(optimizer):
    train(optimizer).load_state_dict(optimizer.state_dict())
    train(optimizer, start=3)


def load_sgds_state(optimizer):
    optimizer.load_state_dict(train(make(SGD)).state_dict())
    train(optimizer)


def fail_to_load(optimizer):
    try:
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    except ValueError:
        train(optimizer)
    else:
        raise AssertionError("it loaded")


def fail_in_a_closure(optimizer):
    def closure():
        raise ArithmeticError

    try:
        optimizer.step(closure)
    except ArithmeticError:
        train(optimizer)


def add_a_group(optimizer):
    param = torch.nn.Parameter(torch.ones(2))
    train(optimizer).add_param_group({"params": [param]})
    train(optimizer, start=3)


def fail_to_add_a_group(optimizer):
    try:
        optimizer.add_param_group({"params": optimizer.param_groups[0]["params"]})
    except ValueError:
        train(optimizer)
    else:
        raise AssertionError("it was added")


def print_it(optimizer):
    assert repr(train(optimizer))


def zero_gradients(optimizer):
    train(optimizer).zero_grad(set_to_none=False)
    optimizer.zero_grad()


def attach_a_scheduler(optimizer):
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ours, where there is a policy, too
        for step in range(3):
            train(optimizer, steps=1, start=step)
            scheduler.step()


def take_a_passive_scheduler(optimizer):
    if isinstance(optimizer, CyclicSGD):
        scheduler = optimizer.passive_scheduler()
        train(optimizer)
        scheduler.step()


def scale_losses(optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(3):
        set_grads(optimizer, step)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()


def report(optimizer):
    if isinstance(optimizer, CyclicSGD) and isinstance(optimizer.policy, Plateau):
        train(optimizer).report(1.0)


ACTIONS = {
    action.__name__: action
    for action in (
        take_steps,
        call_a_closure,
        register_hooks,
        profile,
        copy_deeply,
        go_through_pickle,
        reload,
        load_sgds_state,
        fail_to_load,
        fail_in_a_closure,
        add_a_group,
        fail_to_add_a_group,
        print_it,
        zero_gradients,
        attach_a_scheduler,
        take_a_passive_scheduler,
        scale_losses,
        report,
    )
}


@contextlib.contextmanager
def no_garbage_collector():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@starts_anew
@ways
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_it_is_freed_without_the_garbage_collector(action, way):
    """Whatever was done with it, an optimizer is in no reference cycle: the last reference gone, all of it is."""
    for build in (lambda: make(SGD), lambda: make(**way)):
        with no_garbage_collector():
            optimizer = build()
            action(optimizer)
            kept = [weakref.ref(optimizer), *map(weakref.ref, params_of(optimizer))]
            kept += [weakref.ref(state["momentum_buffer"]) for state in optimizer.state.values() if state]
            optimizer = None
            assert [reference() is None for reference in kept] == [True] * len(kept)


@ways
def test_one_that_could_not_be_built_is_freed(way):
    """A constructor that raises leaves nothing behind, parameters least of all."""
    with no_garbage_collector():
        param = torch.nn.Parameter(torch.ones(2))
        reference = weakref.ref(param)
        for bad in (
            {"lr": -1.0},
            {"momentum": -1.0},
            {"params": [param, "no tensor"]},
            {"weight_decay": float("-inf")},
        ):
            try:
                CyclicSGD(**{"params": [param], **bad, **way})
            except (TypeError, ValueError):
                continue
            raise AssertionError("it was built")
        param = bad = None
        assert reference() is None


# --- memory: what each of these lets go, by its storage


def storages(tensors):
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors if tensor.numel()]


def buffers_of(optimizer):
    return [kept["momentum_buffer"] for kept in optimizer.state.values() if "momentum_buffer" in kept]


def drop_gradients(optimizer):
    dropped = storages(param.grad for param in params_of(optimizer))
    optimizer.zero_grad()
    return dropped


def replace_gradients(optimizer):
    dropped = storages(param.grad for param in params_of(optimizer))
    set_grads(optimizer, 9)
    return dropped


def replace_data(optimizer):
    dropped = storages(params_of(optimizer))
    for param in params_of(optimizer):
        param.data = param.data.clone()
    return dropped


def replace_buffers(optimizer):
    dropped = storages(buffers_of(optimizer))
    for kept in optimizer.state.values():
        kept["momentum_buffer"] = kept["momentum_buffer"].clone()
    return dropped


def clear_state(optimizer):
    dropped = storages(buffers_of(optimizer))
    optimizer.state.clear()
    return dropped


def replace_parameters(optimizer):
    dropped = storages(params_of(optimizer))
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            new = torch.nn.Parameter(param.detach().clone())
            new.grad, param.grad = param.grad, None
            optimizer.state[new] = optimizer.state.pop(param)
            group["params"][i] = new
    return dropped


def drop_a_group(optimizer):
    gone = optimizer.param_groups.pop()
    dropped = storages(gone["params"])
    dropped += storages(optimizer.state.pop(param)["momentum_buffer"] for param in gone["params"])
    return dropped


def load_a_dict(optimizer):
    """Neither the buffers that were loaded nor those they replace stay."""
    saved = copy.deepcopy(optimizer.state_dict())
    dropped = storages(kept["momentum_buffer"] for kept in saved["state"].values())
    if not isinstance(optimizer, SGD) or type(optimizer) is SGD:
        dropped = []  # torch's own keeps the very tensors of the dict
    if not isinstance(getattr(optimizer, "_schedules", None), DeviceSchedules):
        dropped += storages(buffers_of(optimizer))
    optimizer.load_state_dict(saved)
    return dropped


def step_on_odd_gradients(optimizer):
    made = []
    for param in params_of(optimizer):
        param.grad = torch.stack([param.grad, param.grad], dim=-1)[..., 0]
        made.append(param.grad)
    optimizer.step()
    dropped = storages(made)
    optimizer.zero_grad()
    return dropped


def step_on_a_closures_loss(optimizer):
    loss = torch.ones(3)
    dropped = storages([loss])
    optimizer.step(lambda: loss)
    return dropped


MEMORY = {
    letting_go.__name__: letting_go
    for letting_go in (
        drop_gradients,
        replace_gradients,
        replace_data,
        replace_buffers,
        clear_state,
        replace_parameters,
        drop_a_group,
        load_a_dict,
        step_on_odd_gradients,
        step_on_a_closures_loss,
    )
}


@ways
@pytest.mark.parametrize("letting_go", MEMORY.values(), ids=MEMORY)
def test_no_tensor_is_kept_that_sgd_would_not_keep(letting_go, way):
    """After steps, what the user lets go is freed at once, as beside SGD: gradients, data, buffers, parameters."""

    def ours():
        return make(**way)

    for build in (lambda: make(SGD), ours):
        with no_garbage_collector():
            optimizer = train(build(), steps=4)
            kept = letting_go(optimizer)
            if "capturable" in way and build is ours:
                train(optimizer, steps=1, start=4)  # it holds on to what a captured graph would write to until then
            assert [reference.expired() for reference in kept] == [True] * len(kept)


@starts_anew
@pytest.mark.parametrize("policy", [None, Constant(), LambdaPolicy(float)], ids=str)
def test_rates_that_were_replaced_are_freed(policy):
    """A tensor lr that another one takes the place of, be it by loading SGD's state dict, is not kept."""
    with no_garbage_collector():
        optimizer = make(policy=policy, options={"lr": torch.tensor(0.1), "momentum": 0.9})
        saved = copy.deepcopy(train(make(SGD, options={"lr": torch.tensor(0.1), "momentum": 0.9})).state_dict())
        for replace in (
            lambda: optimizer.param_groups[0].update(lr=torch.tensor(0.2)),
            lambda: optimizer.load_state_dict(saved),
            lambda: optimizer.load_state_dict(saved),
            lambda: optimizer.load_state_dict(optimizer.state_dict()),
            lambda: optimizer.param_groups.pop(0),
        ):
            train(optimizer, steps=2)
            old = optimizer.param_groups[0]["lr"]
            dropped = storages([old] if old is not optimizer.defaults["lr"] else [])
            old = None
            replace()
            assert all(reference.expired() for reference in dropped)
