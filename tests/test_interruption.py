"""Killed at any moment and resumed, a run ends as the undisturbed one; interrupted anywhere, an optimizer is usable."""

import contextlib
import copy
import dis
import functools
import gc
import hashlib
import itertools
import json
import math
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch
from helpers import DEEP, params_of
from processes import forks
from readme import ROOT, run_snippet

from cyclic_optim import (
    Constant,
    CosineRestarts,
    CyclicSGD,
    OneCycle,
    Plateau,
    Triangular,
    Triangular2,
    WarmupStableDecay,
    lr_range_test,
    native,
)
from cyclic_optim.host import fused

# -- killed and resumed


MEMORY = "/dev/shm"
TOTAL, SAVE_EVERY = 60, 3
POLICIES = (
    OneCycle(total_steps=TOTAL),
    Triangular(step_size_up=7),
    Triangular2(step_size_up=5, step_size_down=3),
    CosineRestarts(t_0=8, t_mult=2),
    WarmupStableDecay(TOTAL, 10, 20),
)
PLACES = ("starting", "computing", "stepping", "saving")


def make_model(seed):
    """A network with a layer large enough for torch's op among small ones."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(8, 96), torch.nn.Tanh(), torch.nn.Linear(96, 192), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(192, 3))
    assert model[2].weight.numel() >= fused.SMALL
    return model


class Run:
    """A training that is given by its kind and seed, in a folder where it may have begun before."""

    def __init__(self, folder, seed, place):
        self.path, self.seed, self.place = f"{folder}/run.pt", seed, place
        self.model = make_model(seed)
        self.policy = POLICIES[seed % len(POLICIES)]
        if seed % 2:
            native.compiled = None
        self.options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": seed % 3 == 0}
        self.extra = {}

    def optimizer(self, groups, policy):
        optimizer = CyclicSGD(groups, policy=policy, **self.options)
        # Where a kill fell is told from the last mark.
        optimizer.register_step_pre_hook(lambda *_: self.mark("stepping"))
        optimizer.register_step_post_hook(lambda *_: self.mark("computing"))
        optimizer.register_state_dict_pre_hook(lambda *_: self.mark("saving"))
        return optimizer

    def mark(self, place):
        self.place[0] = PLACES.index(place)

    def batch(self, number):
        self.mark("computing")
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        return torch.randn(6, 8, generator=generator), torch.randint(3, (6,), generator=generator)

    def recipe(self, **given):
        """Run the recipe; returns all that it defines."""
        names = {
            "torch": torch,
            "path": self.path,
            "batch": self.batch,
            "loss_fn": torch.nn.functional.cross_entropy,
            "total_batches": TOTAL,
            "save_every": SAVE_EVERY,
            **given,
        }
        return run_snippet(__file__, **names)

    def save(self, **checkpoint):
        function = self.recipe(total_batches=0, path="nowhere")["save"]
        function(checkpoint, self.path)

    def saved(self):
        return torch.load(self.path) if os.path.exists(self.path) else None

    def loss(self, number):
        x, y = self.batch(number)
        return torch.nn.functional.cross_entropy(self.model(x), y)


def plainly(run):
    """The recipe as it stands."""
    optimizer = run.optimizer(run.model.parameters(), run.policy)
    run.recipe(model=run.model, optimizer=optimizer)
    return optimizer


def with_skips(run):
    """Under GradScaler, with overflows: the schedule counts updates, the data goes by batches."""
    optimizer = run.optimizer(run.model.parameters(), run.policy)
    scaler, batches = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4), 0
    if saved := run.saved():
        run.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        batches = saved["batches"]
    while batches < TOTAL:
        optimizer.zero_grad()
        scaler.scale(run.loss(batches)).backward()
        if random.Random(1000 * run.seed + batches).random() < 0.3:
            run.model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        batches += 1
        if batches % SAVE_EVERY == 0:
            states = {"model": run.model.state_dict(), "optimizer": optimizer.state_dict()}
            run.save(**states, scaler=scaler.state_dict(), batches=batches)
    assert optimizer.param_groups[0]["schedule_step"] < TOTAL
    run.extra = scaler.state_dict()
    return optimizer


def with_added_groups(run):
    """Layers are thawed in mid-run, each with a peak of its own; a resumed run has the groups of its checkpoint."""
    layers = [run.model[4], run.model[2], run.model[0]]

    def thaw(optimizer, number):
        optimizer.add_param_group({"params": layers[number].parameters(), "lr": 0.05 / 2**number})

    optimizer, batches = run.optimizer(layers[0].parameters(), run.policy), 0
    if saved := run.saved():
        run.model.load_state_dict(saved["model"])
        batches = saved["batches"]
        for number in range(1, len(saved["optimizer"]["param_groups"])):
            thaw(optimizer, number)
        optimizer.load_state_dict(saved["optimizer"])
    while batches < TOTAL:
        if batches in (19, 41) and len(optimizer.param_groups) < 2 + batches // 40:
            thaw(optimizer, len(optimizer.param_groups))
        optimizer.zero_grad()
        run.loss(batches).backward()
        optimizer.step()
        batches += 1
        if batches % SAVE_EVERY == 0:
            run.save(model=run.model.state_dict(), optimizer=optimizer.state_dict(), batches=batches)
    assert len(optimizer.param_groups) == 3
    return optimizer


def with_reports(run):
    """Plateau, told a validation loss every fourth batch, in between two checkpoints."""
    optimizer, batches = run.optimizer(run.model.parameters(), Plateau(factor=0.5, patience=1, threshold=0.2)), 0
    if saved := run.saved():
        run.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        batches = saved["batches"]
    while batches < TOTAL:
        optimizer.zero_grad()
        run.loss(batches).backward()
        optimizer.step()
        batches += 1
        if batches % 4 == 0:
            with torch.no_grad():
                optimizer.report(run.loss(10**6))
        if batches % SAVE_EVERY == 0:
            run.save(model=run.model.state_dict(), optimizer=optimizer.state_dict(), batches=batches)
    assert optimizer.param_groups[0]["lr"] < 0.05
    return optimizer


KINDS = (plainly, with_skips, with_added_groups, with_reports)


def digest(*values):
    """A number for plain data and tensors, to the last bit."""
    sha = hashlib.sha256()

    def take(value):
        if isinstance(value, torch.Tensor):
            sha.update(repr((value.dtype, value.shape)).encode() + value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            take([item for pair in value.items() for item in pair])
        elif isinstance(value, (list, tuple)):
            sha.update(f"{len(value)} items".encode())
            for item in value:
                take(item)
        else:
            sha.update(repr(value).encode())

    take(values)
    return sha.hexdigest()


def _train(kind, folder, seed, place):
    torch.set_num_threads(1)
    run = Run(folder, seed, place)
    optimizer = kind(run)
    Path(folder, "end.part").write_text(digest(run.model.state_dict(), optimizer.state_dict(), run.extra))
    os.replace(Path(folder, "end.part"), Path(folder, "end"))  # killed here, too


def _fork(function, *args):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*args)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def _warm_up(folder):
    """Have torch import all that it puts off, without backward pass, after which torch wants no forks."""
    torch.set_num_threads(1)
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = CyclicSGD([param], momentum=0.9, policy=Constant())
    optimizer.register_step_pre_hook(lambda *_: None)
    param.grad = torch.ones(2)
    optimizer.step()
    torch.amp.GradScaler("cpu").scale(torch.ones(()))
    torch.save(optimizer.state_dict(), f"{folder}/warm-up")
    torch.load(f"{folder}/warm-up")


def _kill_and_resume(kind, folder, kills, seed):
    """Start trainings and kill them so many times; each run is finished at last. Returns what was seen.

    All are forks of this process, which has imported what takes seconds, and has neither threads nor autograd's.
    """
    place, draw = mmap.mmap(-1, 1), random.Random(seed)
    seen = {"kills": dict.fromkeys(PLACES, 0), "runs": 0, "unfinished files": 0, "differing": []}
    while sum(seen["kills"].values()) < kills:
        number, ends = seed + seen["runs"], []
        for is_disturbed in (False, True):
            here = Path(folder, f"{number}-{is_disturbed}")
            here.mkdir()
            while not (here / "end").exists():
                place[0], left_behind = 0, _unfinished(here)
                pid = _fork(_train, kind, here, number, place)
                if is_disturbed and sum(seen["kills"].values()) < kills:
                    _wait(draw, place)
                    os.kill(pid, signal.SIGKILL)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if status == -signal.SIGKILL:
                    seen["kills"][PLACES[place[0]]] += 1
                    seen["unfinished files"] += _unfinished(here) not in (None, left_behind)
                elif status != 0:
                    raise AssertionError(f"a training failed, {number=}")
            ends.append((here / "end").read_text())
        seen["runs"] += 1
        if ends[0] != ends[1]:
            seen["differing"].append(number)
    return seen


def _wait(draw, place):
    """Until a moment that is drawn: any at all, or one in a step or in saving, which are short."""
    wanted = draw.choice((None, "stepping", "saving"))
    if wanted is None:
        time.sleep(draw.uniform(0, 0.05))
        return
    _poll(1.0, lambda: place[0] != PLACES.index("starting"), pause=0.001)
    time.sleep(draw.uniform(0, 0.02))
    _poll(0.05, lambda: place[0] == PLACES.index(wanted))
    _poll(draw.uniform(0, 0.002 if wanted == "saving" else 0.0001), lambda: False)


def _poll(seconds, is_over, pause=0.0):
    """Wait until it is over, at most so long; without a pause, to the microsecond."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not is_over():
        if pause:
            time.sleep(pause)


def _unfinished(folder):
    """What tells one file that a killed process was writing from the next one."""
    part = folder / "run.pt.part"
    return (part.stat().st_ino, part.stat().st_mtime_ns) if part.exists() else None


KILLS = 50  # of each kind


def _warden(folder):
    _warm_up(folder)
    seen = {}
    for number, kind in enumerate(KINDS):
        (folder / kind.__name__).mkdir()
        seen[kind.__name__] = _kill_and_resume(kind, folder / kind.__name__, KILLS, 100 * number)
    (folder / "seen.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen():
    """What was seen of all kinds of runs."""
    # In memory where there is such a thing: what survives a kill is the same, and saving takes no longer than a step.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        warden = forks().Process(target=_warden, args=(Path(folder),))
        warden.start()
        warden.join(500)
        warden.kill()
        warden.join()
        assert warden.exitcode == 0
        return json.loads(Path(folder, "seen.json").read_text())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_killed_and_resumed_equals_undisturbed(kind, seen):
    """Killed 50 times, in steps and while saving, runs end with the bits of undisturbed ones: weights, buffers, all."""
    found = seen[kind.__name__]
    assert found["differing"] == []
    assert sum(found["kills"].values()) == KILLS
    assert all(found["kills"][place] > 0 for place in ("computing", "stepping", "saving")), found
    assert found["unfinished files"] > 0


# -- interrupted anywhere


class Interrupting:
    """Within it, Ctrl-C comes at the n-th place at which Python looks for signals.

    These places are the start of a function, the end of a call and the jump back in a loop, in all frames, torch's
    included, or in those whose file ``counts``. Garbage is collected before and after: its callbacks (hypothesis has
    one) may run anywhere, and Python swallows what they raise.
    """

    def __init__(self, place, counts=lambda file: True):
        self.left, self.counts = place, counts
        self.came = self.raised = False

    def __enter__(self):
        self._collects, self._outer = gc.isenabled(), sys.gettrace()
        gc.disable()
        # Python 3.12 traces instructions from the first settrace() on that finds them asked for in some frame.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind, error, _):
        sys.settrace(self._outer)
        if self._collects:
            gc.enable()
        self.raised = kind is KeyboardInterrupt
        return self.raised

    def _trace(self, frame, event, _):
        looks = _looks(frame.f_code, self.counts)
        if not looks:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        frame.f_trace = self._trace_of(looks, frame.f_lasti)
        return frame.f_trace  # Python 3.13 and newer report no instructions unless it is set here

    def _trace_of(self, looks, last):
        """What is called at each instruction of a frame, many thousand times: so it does little."""

        def trace(frame, event, _):
            nonlocal last
            if event == "opcode":
                before, last = last, frame.f_lasti
                if before in looks and last in looks[before]:
                    self._look()
            return trace

        return trace

    def _look(self):
        self.left -= 1
        if self.left < 0 and not self.came:
            self.came = True
            signal.raise_signal(signal.SIGINT)


@functools.cache
def _looks(code, counts):
    """The instructions after which Python looks for signals, with those that may follow; none where it is not traced.

    An error that comes then is one of the instruction before: where that is under another ``try``, it cannot be raised
    from the one after.
    """
    file, name = code.co_filename, code.co_name
    # Python swallows what the callback of a weak reference raises: that of an import's lock is one.
    if file == __file__ or not counts(file) or (file.startswith("<frozen importlib") and name == "cb"):
        return {}
    numbers = [instruction.offset for instruction in dis.get_instructions(code)]
    tries = getattr(dis.Bytecode(code), "exception_entries", ())
    handlers = {number: [entry.target for entry in tries if entry.start <= number < entry.end] for number in numbers}
    looking = ("CALL", "RESUME", "JUMP_BACKWARD")
    found = {}
    for instruction in dis.get_instructions(code):
        here = instruction.offset
        if instruction.opname.startswith(looking) and not instruction.opname.startswith("CALL_INTRINSIC"):
            found[here] = {number for number in numbers if handlers[number] == handlers[here]}
    return found


def interrupted_everywhere(make, act, check, *, every=1, **options):
    """Make something, interrupt what is done to it, and check, at each place; returns the number of places.

    Where there are many places, the quick profile takes every n-th.
    """
    for place in itertools.count(0, 1 if DEEP else every):
        made = make()
        with Interrupting(place, **options) as interrupt:
            act(made)
        if not interrupt.came:
            return place
        assert interrupt.raised  # a Ctrl-C is never lost
        check(made)
    return None


def plain(value):
    return value.item() if isinstance(value, torch.Tensor) else value


def shown(optimizer):
    """What the schedule has in force, in plain numbers."""
    groups = optimizer.param_groups
    return [{key: plain(value) for key, value in group.items() if key != "params"} for group in groups]


def set_grads(optimizer, sparse=False):
    for i, param in enumerate(params_of(optimizer)):
        param.grad = torch.full_like(param, 0.5 + i)
    if sparse:
        params_of(optimizer)[0].grad = params_of(optimizer)[0].grad.to_sparse()


SHAPES = ((3, 2), (4,), (2, 3))


def optimizer_of(*shapes, steps=1, **options):
    """Two groups, of small tensors or of those given, after some steps."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes or SHAPES]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.3}]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "policy": Triangular(step_size_up=4)} | options
    optimizer = CyclicSGD(groups, **options)
    for _ in range(steps):
        set_grads(optimizer)
        optimizer.step()
    set_grads(optimizer)
    return optimizer


def hooked():
    optimizer = optimizer_of()
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def unlike():
    optimizer = optimizer_of(SHAPES[0], SHAPES[2], SHAPES[2], weight_decay=0.0)
    set_grads(optimizer, sparse=True)
    params_of(optimizer)[2].grad = params_of(optimizer)[2].grad.t().contiguous().t()
    return optimizer


def scaled(**options):
    optimizer = optimizer_of(**options)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    return optimizer


def with_closure(**options):
    optimizer = optimizer_of(**options)
    optimizer.closure = lambda: sum(param.sum() for param in params_of(optimizer)).backward()
    return optimizer


#: What makes an optimizer, each with another way through a step.
WAYS = {
    "ordinary": optimizer_of,
    "first step": lambda: optimizer_of(steps=0),
    "large": lambda: optimizer_of((fused.SMALL + 1,), (2,), (3,)),
    "unlike": unlike,
    "no momentum": lambda: optimizer_of(momentum=0.0, policy=Triangular(step_size_up=4, cycle_momentum=False)),
    "Plateau": lambda: optimizer_of(policy=Plateau()),
    "foreach": lambda: optimizer_of(foreach=True),
    "loop": lambda: optimizer_of(foreach=False),
    "fused": lambda: optimizer_of(fused=True),
    "tensor lr": lambda: optimizer_of(lr=torch.tensor(0.1)),
    "hooks": hooked,
    "closure": with_closure,
    "loss scale": scaled,
    "loss scale, loop": lambda: scaled(foreach=False),
    "capturable": lambda: optimizer_of(capturable=True),
    "capturable, closure": lambda: with_closure(capturable=True),
    "capturable, loss scale": lambda: scaled(capturable=True),
}


def a_step(optimizer):
    if hasattr(optimizer, "closure"):
        optimizer.step(optimizer.closure)
    else:
        optimizer.step()


@pytest.mark.parametrize(
    ("way", "part"),
    [(way, part) for way in WAYS for part in ("compiled", "python") if part == "compiled" or "capturable" not in way],
    indirect=["part"],
)
def test_interrupted_anywhere_in_a_step(way, part, threads):
    """The schedule is before or after the step in all groups; settings are as they were, and training goes on."""
    twin, late = WAYS[way](), WAYS[way]()
    before, weights = shown(twin), [param.detach().clone() for param in params_of(twin)]
    a_step(twin)
    after, moved = shown(twin), [param.detach().clone() for param in params_of(twin)]
    assert before != after
    a_step(late)
    a_step(late)
    later = shown(late)

    def check(optimizer):
        now = shown(optimizer)
        assert now in (before, after)
        for param, old, new in zip(params_of(optimizer), weights, moved, strict=True):
            assert torch.equal(param, new) or (torch.equal(param, old) and now == before)
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == threads
        saved = optimizer.state_dict()
        fresh = WAYS[way]()
        fresh.load_state_dict(saved)
        assert shown(fresh) == now
        set_grads(optimizer)
        optimizer.step()
        assert shown(optimizer) == (after if now == before else later)

    assert interrupted_everywhere(WAYS[way], a_step, check, every=1 if way in ("ordinary", "tensor lr") else 4) > 5


def state_of(optimizer):
    return digest(optimizer.state_dict(), params_of(optimizer), optimizer.policy)


@functools.cache
def saved_elsewhere():
    """A checkpoint with other numbers in it."""
    return copy.deepcopy(optimizer_of(steps=3).state_dict())


def reschedule(optimizer):
    optimizer.reschedule(policy=OneCycle(total_steps=9), lr=[0.5, 0.25], step=3)


#: What else may be interrupted: what makes an optimizer, and what is done to it.
CALLS = {
    "report": (lambda: optimizer_of(policy=Plateau(patience=0)), lambda optimizer: optimizer.report(math.inf)),
    "report, tensor lr": (
        lambda: optimizer_of(policy=Plateau(patience=0), lr=torch.tensor(0.1)),
        lambda optimizer: optimizer.report(math.inf),
    ),
    "add_param_group": (
        optimizer_of,
        lambda optimizer: optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5}),
    ),
    "load_state_dict": (optimizer_of, lambda optimizer: optimizer.load_state_dict(saved_elsewhere())),
    "load_state_dict, another policy": (
        lambda: optimizer_of(policy=None),
        lambda optimizer: optimizer.load_state_dict(saved_elsewhere()),
    ),
    "state_dict": (optimizer_of, lambda optimizer: optimizer.state_dict()),
    "reschedule": (optimizer_of, reschedule),
    "reschedule, tensor lr": (lambda: optimizer_of(lr=torch.tensor(0.1)), reschedule),
    "reschedule, no policy": (lambda: optimizer_of(policy=None), reschedule),
    "reschedule, capturable": (lambda: optimizer_of(capturable=True), reschedule),
    "reschedule, one group": (
        lambda: optimizer_of(policy=Plateau()),
        lambda optimizer: optimizer.reschedule(policy=OneCycle(total_steps=9), group=1),
    ),
}


#: Every n-th place is interrupted in these calls, which have thousands; every second in others.
SLOW = {call: 5 for call in CALLS if call.startswith("reschedule")}
SLOW |= {"load_state_dict": 11, "load_state_dict, another policy": 11, "reschedule, capturable": 11}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.usefixtures("part")
def test_interrupted_anywhere_in_another_call(call):
    """It has been done or has not: nothing in between is left, and training goes on."""
    make, act = CALLS[call]
    twin = make()
    before = state_of(twin)
    act(twin)
    after = state_of(twin)

    def check(optimizer):
        assert state_of(optimizer) in (before, after)
        set_grads(optimizer)
        optimizer.step()
        assert len({plain(group.get("schedule_step")) for group in optimizer.param_groups}) == 1

    assert interrupted_everywhere(make, act, check, every=SLOW.get(call, 2)) > 5


# -- the range test


def a_trained_model():
    """What a range test works on, in the middle of its training, and all that must be as before."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).eval()
    optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=Triangular(step_size_up=5))

    def train_step():
        loss = model(torch.randn(4, 2)).square().mean()
        loss.backward()
        return loss

    train_step()
    optimizer.step()
    return model, optimizer, train_step


def all_of(model, optimizer, _):
    grads = [param.grad for param in model.parameters()]
    modes = [module.training for module in model.modules()]
    return digest(model.state_dict(), optimizer.state_dict(), grads, modes, torch.get_rng_state(), random.getstate())


@pytest.mark.parametrize("keep", ["device", "disk"])
def test_interrupted_anywhere_in_the_range_test(keep):
    """Also while things are put back: everything is as it was, to the bit, and Ctrl-C works as before."""

    def act(made):
        random.seed(0)
        lr_range_test(*made, num_steps=2, keep=keep, progress=False)

    def check(made):
        assert all_of(*made) == before
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def counts(file):
        return "cyclic_optim/range_test/" in file or file.endswith(("contextlib.py", "signal.py"))

    random.seed(0)
    before = all_of(*a_trained_model())
    assert (
        interrupted_everywhere(a_trained_model, act, check, every=23 if keep == "device" else 59, counts=counts) > 500
    )


def test_a_late_interrupt_is_raised_once_all_is_put_back():
    """Ctrl-C while the range test puts things back ends it with KeyboardInterrupt, and nothing is lost."""
    made = a_trained_model()

    class Slow:
        """A generator whose state takes a Ctrl-C to set."""

        def get_state(self):
            return 7

        def set_state(self, state):
            self.state = state
            signal.raise_signal(signal.SIGINT)

    slow = Slow()
    random.seed(0)
    before = all_of(*made)
    with pytest.raises(KeyboardInterrupt):
        lr_range_test(*made, num_steps=2, also=[slow], progress=False)
    assert slow.state == 7
    assert all_of(*made) == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "a function"])
def test_a_handler_of_ones_own_is_left_in_place(handler):
    """Whoever handles Ctrl-C in another way goes on doing so in and after a range test."""
    made = a_trained_model()
    usual = signal.signal(signal.SIGINT, handler)
    try:
        result = lr_range_test(*made, num_steps=3, progress=False)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert len(result.losses) == 3


def test_tests_of_ctrl_c_pass_where_it_is_ignored():
    """A process that a script starts with ``&`` ignores SIGINT; these tests raise it there as elsewhere."""
    test = f"{__file__}::{test_a_late_interrupt_is_raised_once_all_is_put_back.__name__}"
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits
    try:
        run = subprocess.Popen([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test], cwd=ROOT)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert run.wait() == 0


# -- at real moments


@pytest.mark.usefixtures("part")
def test_interrupted_by_the_clock():
    """A signal at 200 drawn moments of a training leaves the schedule of one step in all groups."""
    draw = random.Random(0)
    optimizer = optimizer_of(*SHAPES, lr=torch.tensor(0.1))
    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    steps = 0
    try:
        for _ in range(200):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 2e-3))
                while True:
                    optimizer.step()
            (step,) = {group["schedule_step"] for group in optimizer.param_groups}
            assert step >= steps
            steps = step
            lr_factor, momentum, _ = optimizer.policy.at(step)
            for group in optimizer.param_groups:
                assert group["lr"] == torch.tensor(group["max_lr"] * lr_factor)
                assert group["momentum"] == momentum
            assert torch.is_grad_enabled()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert steps > 200
