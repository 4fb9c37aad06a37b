"""No code of the user's, wherever a step runs it, makes the compiled part read or write memory that is no longer a
tensor's: the update goes to the memory that the tensors have when it is computed.

``python tests/sanitize.py`` runs these tests, and others, with AddressSanitizer.
"""

import contextlib
import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import sanitize
import torch
from helpers import FREE_THREADED
from torch.overrides import TorchFunctionMode

from cyclic_optim import Constant, CyclicSGD, native

needs_it = pytest.mark.skipif(native.compiled is None, reason="the compiled part is not there")

N = 50


class Mover:
    """Gives the tensors of a plain parameter other memory, with the same values, and overwrites what is freed."""

    def __init__(self):
        self.param = torch.nn.Parameter(torch.full((N,), 5.0))
        self.param.grad = torch.ones(N)
        self.optimizer = None
        self.times = 0
        self.waste = []

    def __call__(self, *args):
        if self.optimizer is None:  # not during set-up
            return
        tensors = [self.param, self.param.grad, self.optimizer.state[self.param]["momentum_buffer"]]
        for tensor in tensors:
            tensor.data = tensor.data.clone()
        self.waste = [torch.full((N,), float("nan")) for _ in range(4)]  # into the memory that was freed
        self.times += 1


def optimizer_of(mover, later, group=dict):
    """Two groups: the plain parameter, and what runs the mover."""
    groups = [group(params=[mover.param]), group(params=[later])]
    optimizer = CyclicSGD(groups, lr=0.1, momentum=0.5, policy=Constant())
    optimizer.state[mover.param]["momentum_buffer"] = torch.zeros(N)
    return optimizer


def plain():
    later = torch.nn.Parameter(torch.ones(N))
    later.grad = torch.ones(N)
    return later


@contextlib.contextmanager
def a_gradient_that_is_computed_when_read(mover):
    """A subclass whose ``grad`` is a property, as of one that gathers its shards when asked."""

    class Lazy(torch.nn.Parameter):
        @property
        def grad(self):
            mover()
            return torch.ones(N)

    yield optimizer_of(mover, Lazy(torch.ones(N)))


@contextlib.contextmanager
def a_function_mode(mover):
    """A mode that sees that a gradient is read."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__self__", None) is torch.Tensor.grad and args[0] is not mover.param:
                with torch._C.DisableTorchFunction():
                    mover()
            return func(*args, **(kwargs or {}))

    optimizer = optimizer_of(mover, plain())
    with Mode():
        yield optimizer


@contextlib.contextmanager
def a_hash(mover):
    """A subclass whose hash runs code when its state is looked up. Only once: what comes later is after the update."""

    class Hashed(torch.nn.Parameter):
        def __hash__(self):
            if not mover.times:
                mover()
            return id(self)

    later = Hashed(torch.ones(N))
    later.grad = torch.ones(N)
    yield optimizer_of(mover, later)


@contextlib.contextmanager
def a_group_of_another_class(mover):
    """A subclass of dict as group, whose items are computed."""

    class Computed(dict):
        def __getitem__(self, key):
            if key == "params" and not mover.times:
                mover()
            return super().__getitem__(key)

    optimizer = optimizer_of(mover, plain())
    optimizer.param_groups[1] = Computed(optimizer.param_groups[1])
    yield optimizer


@contextlib.contextmanager
def a_garbage_collection(mover):
    """A collection's callback. Up to Python 3.11 any allocation of a container may start a collection."""
    optimizer = optimizer_of(mover, plain())
    before = gc.get_threshold()
    gc.callbacks.append(mover)
    gc.set_threshold(1)
    try:
        yield optimizer
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(mover)


@contextlib.contextmanager
def a_finalizer(mover):
    """A finalizer of garbage, which a collection runs."""

    class Garbage:
        def __del__(self):
            mover()

    optimizer = optimizer_of(mover, plain())
    before = gc.get_threshold()
    gc.collect()
    for _ in range(20):
        garbage = Garbage()
        garbage.itself = garbage
    del garbage
    gc.set_threshold(1)
    try:
        yield optimizer
        gc.collect()
    finally:
        gc.set_threshold(*before)


ATTACKS = [
    a_gradient_that_is_computed_when_read,
    a_function_mode,
    a_hash,
    a_group_of_another_class,
    a_garbage_collection,
    a_finalizer,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("part", [pytest.param("compiled", marks=needs_it), "python"])
def test_tensors_that_move_during_a_step_get_its_update(part, attack, monkeypatch):
    """Parameter, gradient and buffer may get other memory while a step is looking around: 5 less 0.1 is 4.9 there."""
    if part == "python":
        monkeypatch.setattr(native, "compiled", None)
    if attack is a_garbage_collection and FREE_THREADED:
        pytest.skip("a free-threaded Python collects when its objects are a quarter more, whatever the threshold")
    mover = Mover()
    with attack(mover) as optimizer:
        mover.optimizer = optimizer
        optimizer.step()
    mover.optimizer = None
    assert mover.times > 0
    torch.testing.assert_close(mover.param.detach(), torch.full((N,), 4.9))
    torch.testing.assert_close(optimizer.state[mover.param]["momentum_buffer"], torch.ones(N))
    torch.testing.assert_close(optimizer.param_groups[1]["params"][0].detach(), torch.full((N,), 0.9))


@needs_it
def test_gradients_are_read_once():
    """A gradient that is computed when it is read is computed once per step, also where Python makes the update."""
    reads = []

    class Lazy(torch.nn.Parameter):
        @property
        def grad(self):
            reads.append(1)
            return torch.ones(N)

    optimizer = CyclicSGD([Lazy(torch.ones(N))], lr=0.1, momentum=0.5, policy=Constant(), fused=True)
    optimizer.step()
    reads.clear()
    optimizer.step()
    assert len(reads) == 1


@needs_it
def test_the_layout_is_of_the_memory_after_everything_was_read():
    """A warning about a later gradient moves an earlier tensor: the layout that is returned has the new address."""
    param, buffer = torch.nn.Parameter(torch.ones(N)), torch.ones(N)
    param.grad = torch.ones(N)
    result = torch.ones(3, requires_grad=True) * 2  # no leaf: reading its gradient warns
    state = {param: {"momentum_buffer": buffer}}

    def move(*args):
        for tensor in (param, param.grad, buffer):
            tensor.data = tensor.data.clone()
        moved.append(True)

    moved = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = move
        found = native.layout([{"params": [param, result]}], state, ("momentum_buffer", "started"))
    assert moved
    assert found == native.layout([{"params": [param]}], state, ("momentum_buffer", "started"))


def test_the_tests_that_are_run_with_sanitizers_are_there():
    """Each test file that ``tests/sanitize.py`` names exists."""
    assert [name for name in sanitize.TESTS if not Path(__file__).with_name(name).is_file()] == []


# -- switched off, and never beyond an object ------------------------------------------------------------------------


def in_a_process(code, **environment):
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return run.stdout.strip(), run.stderr


def test_the_compiled_part_can_be_switched_off():
    """CYCLIC_OPTIM_NATIVE=0 makes Python do everything, with the same result; 1 is as without the variable."""
    code = (
        "import torch\nfrom cyclic_optim import Constant, CyclicSGD, native\n"
        "param = torch.nn.Parameter(torch.full((3,), 5.0))\nparam.grad = torch.ones(3)\n"
        "CyclicSGD([param], lr=0.1, policy=Constant()).step()\nprint(native.compiled is None, param.tolist())"
    )
    off, on = (in_a_process(code, CYCLIC_OPTIM_NATIVE=value)[0] for value in "01")
    assert off.split(" ", 1)[0] == "True"
    assert on.split(" ", 1) == [str(native.compiled is None), off.split(" ", 1)[1]]


def test_another_value_of_the_switch_is_refused():
    """What is neither 0 nor 1 is an error that states the rule."""
    _, error = in_a_process("import cyclic_optim.native", CYCLIC_OPTIM_NATIVE="off")
    assert "ValueError: need CYCLIC_OPTIM_NATIVE=0 (do without the compiled part) or 1, got 'off'" in error


@needs_it
def test_the_search_for_the_negative_bit_stays_within_the_tensors_own_memory(monkeypatch):
    """Of a TensorImpl no byte is read beyond the heap block that the C library says it has."""
    read, sizes = {}, {}
    string_at, heap_bytes = native.ctypes.string_at, native.heap_bytes

    def watched_string_at(address, size):
        read[address] = max(size, read.get(address, 0))
        return string_at(address, size)

    def watched_heap_bytes(address):
        sizes[address] = heap_bytes(address)
        return sizes[address]

    monkeypatch.setattr(native.ctypes, "string_at", watched_string_at)
    monkeypatch.setattr(native, "heap_bytes", watched_heap_bytes)
    assert all(native.find_negation())
    assert len(sizes) > 50
    assert all(read[address] <= size for address, size in sizes.items())


@needs_it
@pytest.mark.parametrize("known", [0, 8, 64])
def test_a_tensor_of_unknown_size_is_not_read(known, monkeypatch):
    """Where the C library does not say how large a block is, or it is too small for the bit, is_neg is called."""
    monkeypatch.setattr(native, "heap_bytes", lambda address: known)
    assert native.find_negation() == (0, 0, 0)


@needs_it
def test_the_size_of_a_block_is_what_was_asked_for_or_a_little_more():
    """The C library's size of a block of 1,000 bytes."""
    malloc, free = native.ctypes.CDLL(None).malloc, native.ctypes.CDLL(None).free
    malloc.restype, free.argtypes = native.ctypes.c_void_p, [native.ctypes.c_void_p]
    address = malloc(1000)
    assert 1000 <= native.heap_bytes(address) < 1100
    free(address)
