"""Beside other threads and processes, and from within itself, an optimizer does what it does alone."""

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings

import pytest
import torch
from helpers import FREE_THREADED, OwnStep, params_of
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from cyclic_optim import Constant, CyclicSGD, OneCycle, Triangular, native
from cyclic_optim.host import fused

POLICY = Triangular(step_size_up=7)


def build(seed=0, shapes=((3, 2), (fused.SMALL + 1,), (4,)), policy=POLICY, **options):
    """An optimizer of one group per tensor."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [{"params": [param], "lr": 0.1 / (i + 1)} for i, param in enumerate(params)]
    return CyclicSGD(groups, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "policy": policy, **options})


def take_steps(optimizer, steps, seed=0):
    """Steps whose gradients depend on the seed and the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        for param in params_of(optimizer):
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def everything(optimizer):
    """All that training depends on, as bytes."""
    saved = optimizer.state_dict()
    buffers = [kept["momentum_buffer"] for kept in saved["state"].values()]
    tensors = [tensor.detach().numpy().tobytes() for tensor in (*params_of(optimizer), *buffers)]
    return repr(saved["param_groups"]), tensors


@pytest.fixture
def hasty():
    """Python changes from one thread to another as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*functions):
    """Run them at the same time; what one raises is raised here."""
    start, errors = threading.Barrier(len(functions)), []

    def run(function):
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


# -- threads


@pytest.mark.usefixtures("part", "hasty")
def test_two_optimizers_in_two_threads(threads):
    """Each trains as it does alone, to the bit, and every thread keeps its gradient mode and its number of threads."""
    alone = []
    for seed in range(2):
        alone.append(build(seed))
        take_steps(alone[seed], range(40), seed)
    together, seen = [build(seed) for seed in range(2)], []

    def train(seed):
        take_steps(together[seed], range(40), seed)
        seen.append((torch.is_grad_enabled(), torch.get_num_threads()))

    in_threads(lambda: train(0), lambda: train(1))
    assert [everything(optimizer) for optimizer in together] == [everything(optimizer) for optimizer in alone]
    assert seen == [(True, threads)] * 2
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("part", "threads")
def test_a_thread_keeps_its_own_number_of_threads():
    """What one thread has set for itself holds after steps there, and is nobody else's."""
    seen = []

    def train():
        torch.set_num_threads(2)
        take_steps(build(), range(5))
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    in_threads(train)
    assert seen == [2]
    assert torch.get_num_threads() == before


MANY = ((2,),) * 40


@pytest.mark.skipif(FREE_THREADED, reason="promised with a GIL; else, take a lock")
@pytest.mark.usefixtures("part", "hasty")
def test_state_dict_from_another_thread_is_of_one_moment():
    """What another thread saves while an optimizer steps, from its first step on, has one step's groups, and loads."""
    optimizer, saved = build(shapes=MANY), {}
    rest = threading.Event()

    def train():
        step = 0
        while not rest.is_set():
            take_steps(optimizer, [step])
            step += 1
            optimizer.state.clear()  # so that each is a first one, which makes buffers

    def save():
        try:
            for _ in range(50_000):
                each = optimizer.state_dict()
                (step,) = {group["schedule_step"] for group in each["param_groups"]}
                lr_factor, momentum, _ = POLICY.at(step)
                for group in each["param_groups"]:
                    assert (group["lr"], group["momentum"]) == (group["max_lr"] * lr_factor, momentum)
                saved[step] = each
                if len(saved) > 30:
                    break
        finally:
            rest.set()

    in_threads(train, save)
    assert len(saved) > 30
    for each in saved.values():
        fresh = build(shapes=MANY)
        fresh.load_state_dict(each)
        take_steps(fresh, range(2))


def test_under_a_lock_a_checkpoint_of_another_thread_is_exact():
    """With a lock round the step and round copying, the run resumed from the copy ends with the same bits."""
    lock, optimizer, copies = threading.Lock(), build(), []
    rest, total = threading.Event(), 60

    def train():
        for step in range(total):
            with lock:
                take_steps(optimizer, [step])
            time.sleep(0.001)  # a lock is not fair: without the GIL this thread could take it every time
        rest.set()

    def save():
        while not rest.wait(0.001):
            with lock:
                copies.append(copy.deepcopy((params_of(optimizer), optimizer.state_dict())))

    in_threads(train, save)
    for weights, saved in [copies[0], copies[len(copies) // 2], copies[-1]]:
        resumed = build()
        with torch.no_grad():
            for param, weight in zip(params_of(resumed), weights, strict=True):
                param.copy_(weight)
        resumed.load_state_dict(saved)
        take_steps(resumed, range(saved["param_groups"][0]["schedule_step"], total))
        assert everything(resumed) == everything(optimizer)


@pytest.mark.usefixtures("hasty")
def test_under_a_lock_another_thread_may_run_backward():
    """With a lock round the step and round zero_grad and backward in another thread, each gradient is used whole."""
    lock, optimizer, total = threading.Lock(), build(policy=Constant(), momentum=0.0, weight_decay=0.0), 200
    before, rest = [param.detach().clone() for param in params_of(optimizer)], threading.Event()

    def differentiate():
        while not rest.is_set():
            with lock:
                optimizer.zero_grad()
                sum(param.sum() for param in params_of(optimizer)).backward()

    def train():
        try:
            for _ in range(total):
                with lock:
                    if all(param.grad is not None for param in params_of(optimizer)):
                        optimizer.step()
        finally:
            rest.set()

    in_threads(differentiate, train)
    (taken, *_) = {group["schedule_step"] for group in optimizer.param_groups}
    for param, start, group in zip(params_of(optimizer), before, optimizer.param_groups, strict=True):
        torch.testing.assert_close(param.detach(), start - taken * group["lr"], rtol=1e-3, atol=1e-3)


# -- processes


class Sees(Dataset):
    """Rows, each with the step at which the worker's copy of the optimizer stands."""

    def __init__(self, optimizer=None):
        self.rows = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
        self.optimizer = optimizer

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i], self.optimizer.param_groups[0]["schedule_step"]


def train_from_loader(epochs, **options):
    """Some epochs of 6 batches; returns the optimizer and the steps that workers saw."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 200), torch.nn.Tanh(), torch.nn.Linear(200, 100))
    optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=OneCycle(total_steps=12))
    loader = DataLoader(Sees(optimizer), batch_size=8, shuffle=True, **options)
    seen = []
    for _ in range(epochs):
        for rows, steps in loader:
            optimizer.zero_grad()
            model(rows).square().mean().backward()
            optimizer.step()
            seen.append(steps.tolist())
    return optimizer, seen


@pytest.mark.parametrize(("context", "epochs"), [("fork", 2), ("spawn", 1)])  # spawning takes seconds
def test_data_loader_workers_have_a_copy_that_stands_still(context, epochs):
    """With workers, training is what it is without, to the bit; they see the schedule as it was when they started."""
    expected, _ = train_from_loader(epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: of forking beside threads
        optimizer, seen = train_from_loader(epochs, num_workers=2, multiprocessing_context=context)
    assert everything(optimizer) == everything(expected)
    assert optimizer.param_groups[0]["schedule_step"] == 6 * epochs
    assert seen == [[6 * epoch] * 8 for epoch in range(epochs) for _ in range(6)]


def test_in_a_forked_child_it_goes_on_by_itself():
    """Parent and child go on alike from where they parted, and the parent notices nothing of the child's steps."""
    optimizer = build()
    take_steps(optimizer, range(5))
    before = everything(optimizer)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            torch.set_num_threads(1)  # as in a worker of a DataLoader: OpenMP's threads stayed with the parent
            take_steps(optimizer, range(5, 9))
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump((everything(optimizer), torch.get_num_threads()), pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        childs, threads = pickle.load(pipe)
    os.waitpid(pid, 0)
    assert everything(optimizer) == before
    take_steps(optimizer, range(5, 9))
    assert everything(optimizer) == childs
    assert threads == 1


def _go_on(pickled, is_compiled, queue):
    if not is_compiled:
        native.compiled = None
    optimizer = pickle.loads(pickled)
    take_steps(optimizer, range(5, 9))
    queue.put(everything(optimizer))


def test_in_a_spawned_child_it_goes_on_by_itself():
    """An optimizer that was pickled to a new process goes on there as here, to the bit."""
    optimizer = build()
    take_steps(optimizer, range(5))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_go_on, args=(pickle.dumps(optimizer), native.compiled is not None, queue))
    child.start()
    childs = queue.get(timeout=120)
    child.join()
    take_steps(optimizer, range(5, 9))
    assert everything(optimizer) == childs


# -- from within


def test_a_closure_may_step_another_optimizer():
    """Of two optimizers, one stepping in the other's closure, each counts its own updates, which are SGD's."""
    ends = []
    for policies in ((None, None), (Constant(), Constant())):
        outer, inner = build(0, MANY[:2], policies[0], foreach=False), build(1, MANY[:2], policies[1], foreach=False)

        def closure(outer=outer, inner=inner):
            take_steps(inner, [outer.state_dict()["param_groups"][0].get("schedule_step", 0)], seed=1)
            for param, other in zip(params_of(outer), params_of(inner), strict=True):
                param.grad = param.detach() - other.detach()
            return 7

        assert outer.step(closure) == 7
        ends.append([param.detach().clone() for param in (*params_of(outer), *params_of(inner))])
    assert all(map(torch.equal, *ends))
    for _ in range(3):
        outer.step(closure)
    assert {group["schedule_step"] for group in (*outer.param_groups, *inner.param_groups)} == {4}


def step_in_step(cls, **options):
    """One step in whose closure the same optimizer steps; returns its weight and which hooks ran when."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer, calls = cls([param], lr=0.1, momentum=0.9, **options), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        param.grad = torch.ones(3)
        calls.append("inner")
        optimizer.step()
        calls.append("outer")

    for _ in range(2):
        optimizer.step(closure)
    return param.detach(), calls, optimizer


@pytest.mark.parametrize("cls", [CyclicSGD, OwnStep])
def test_a_closure_may_step_its_own_optimizer(cls):
    """A step inside a step is a step: two updates, SGD's weights, and the hooks of each where SGD runs them."""
    expected, order, _ = step_in_step(SGD)
    assert order == ["pre", "inner", "pre", "post", "outer", "post"] * 2
    for options in ({}, {"policy": Constant(), "foreach": False}):
        weights, calls, optimizer = step_in_step(cls, **options)
        assert torch.equal(weights, expected)
        assert calls == order
    assert optimizer.param_groups[0]["schedule_step"] == 4


def test_values_of_a_step_in_a_step_are_the_policys():
    """Of two nested steps the inner one, which is applied first, has the earlier values."""
    used = []

    class Watched(CyclicSGD):
        def _scheduled_update(self):
            used.append(tuple(self.param_groups[0][key] for key in ("lr", "momentum")))
            super()._scheduled_update()

    param = torch.nn.Parameter(torch.ones(3))
    optimizer = Watched([param], lr=1.0, policy=POLICY)

    def closure():
        param.grad = torch.ones(3)
        optimizer.step()

    for _ in range(4):
        optimizer.step(closure)
    assert used == [POLICY.at(step)[:2] for step in range(8)]


def test_state_dict_from_within_a_step():
    """A closure and a pre-hook see the state before the step, a post-hook that after it; hooks of saving run once."""
    optimizer, seen = build(shapes=MANY[:3]), []

    def look(where):
        groups = optimizer.state_dict()["param_groups"]
        (step,) = {group["schedule_step"] for group in groups}
        assert all(group["lr"] == group["max_lr"] * POLICY.at(step).lr_factor for group in groups)
        seen.append((where, step))

    saves = []
    optimizer.register_state_dict_pre_hook(lambda each: saves.append(each is optimizer))
    optimizer.register_state_dict_post_hook(lambda each, saved: saves.append(each is optimizer))
    optimizer.register_step_pre_hook(lambda *_: look("pre"))
    optimizer.register_step_post_hook(lambda *_: look("post"))
    for _ in range(2):
        optimizer.step(lambda: look("closure"))
    assert seen == [(where, step + (where == "post")) for step in range(2) for where in ("pre", "closure", "post")]
    assert saves == [True, True] * 6


@pytest.mark.parametrize("cls", [SGD, CyclicSGD])
def test_a_hook_may_step_another_optimizer_and_its_own(cls):
    """Steps from a post-hook, the own one's among them, are steps like others, as with SGD."""
    optimizer, other = (cls([torch.nn.Parameter(torch.ones(2))], lr=0.1) for _ in range(2))
    depth = []

    def hook(*_):
        other.step()
        if len(depth) < 2:
            depth.append(1)
            optimizer.step()

    optimizer.register_step_post_hook(hook)
    for each in (optimizer, other):
        (param,) = params_of(each)
        param.grad = torch.ones(2)
    optimizer.step()
    for each in (optimizer, other):
        torch.testing.assert_close(params_of(each)[0].detach(), torch.full((2,), 0.7))
