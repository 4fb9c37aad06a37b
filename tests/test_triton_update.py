"""The Triton update without a GPU: its kernels in Triton's interpreter, against plain arithmetic and against SGD."""

import importlib
import importlib.util
import math
import os
import sys
from array import array
from unittest.mock import patch

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from questions import NoQuestions
from strategies import sgd_options
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cyclic_optim import CyclicSGD, Triangular
from cyclic_optim.device import portable
from cyclic_optim.device.portable import DeviceRow, PortableUpdate
from cyclic_optim.device.sgd import choose_device_update

# A requirement of the tests: where it is missing, this file fails. Imported before anything is interpreted, or its own
# functions would be.
assert triton.jit


def _interpreted():
    """A copy of the module whose kernels run on the CPU; everything else keeps the one that compiles."""
    path = os.path.join(os.path.dirname(portable.__file__), "triton_sgd.py")
    spec = importlib.util.spec_from_file_location("cyclic_optim.device.triton_sgd_interpreted", path)
    module = importlib.util.module_from_spec(spec)
    # Triton reads it where a kernel is decorated.
    with patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        spec.loader.exec_module(module)
    return module


def _splat_of_bools(splat):
    """The interpreter gives a comparison the dtype of what was compared; as a mask Triton 3.9 refuses that."""

    def with_bools(self, *arguments):
        return splat(self, *map(_as_bool, arguments))

    return with_bools


def _as_bool(argument):
    is_bool = isinstance(argument, TensorHandle) and argument.data.dtype == bool
    return TensorHandle(argument.data, triton.language.int1) if is_bool else argument


InterpreterBuilder.create_splat = _splat_of_bools(InterpreterBuilder.create_splat)
interpreted = _interpreted()
TritonUpdate = interpreted.TritonUpdate
BLOCK = 64  # the interpreter takes its time for every program

pytestmark = pytest.mark.usefixtures("triton_language_put_back")

# Triton's interpreter cuts float32 down to bfloat16 where a GPU rounds (tests/test_triton_code.py): an ulp.
TOLERANCE = {torch.float32: 2**-21, torch.float64: 2**-48, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def reference_update(rows, grads, grad_scale=None, found_inf=None):
    """What an update is to do, one parameter at a time, in float64."""
    if found_inf is not None and found_inf.item() != 0:
        return
    for row, grad in zip(rows, grads, strict=True):
        g = grad.double() / (1 if grad_scale is None else grad_scale.item())
        g = -g if row.maximize else g
        g = g + row.weight_decay * row.param.double() if row.weight_decay else g
        momentum = row.momentum.item()
        d = g
        if row.buffer is not None and momentum != 0:
            damped = row.dampening if row.started is not None and row.started.item() else 0
            b = momentum * row.buffer.double() + (1 - damped) * g
            d = g + momentum * b if row.nesterov else b
            row.buffer.copy_(b)
            if row.started is not None:
                row.started.fill_(1)
        row.param.copy_(row.param.double() - row.lr.item() * d)


@pytest.fixture(scope="module", autouse=True)
def _addresses_are_as_aligned_as_is_promised():
    """What the kernel says of an address must be so: the interpreter believes it, a GPU stops at the wrong ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorHandle, "set_attr", _keep_promise)
        yield


def _keep_promise(handle, name, values):
    assert name in ("tt.divisibility", "tt.divisiblity")  # the latter by Triton 3.2
    assert (handle.data % values == 0).all(), f"{handle.data} promised to be multiples of {values}"
    PROMISED.append(values)


PROMISED = []


def test_the_kernel_promises_alignment():
    """Or the fixture above would look at nothing."""
    PROMISED.clear()
    check([row_of((200,))], [([torch.ones(200)], None, None)])
    assert PROMISED == 3 * (200 // BLOCK) * [[16]]


@pytest.mark.parametrize("dtype", interpreted.DTYPES, ids=str)
@pytest.mark.parametrize("unaligned", ["param", "grad", "buffer"])
def test_each_address_alone_may_be_unaligned(unaligned, dtype):
    """By any number of elements, in whole blocks; the other two are aligned."""
    for offset in range(1, 16 // dtype.itemsize):
        first = {"param": 0, "grad": 0, "buffer": 0, unaligned: offset}
        param, grad, buffer = (
            values((offset + 2 * BLOCK,), dtype, seed)[first[name] :] for seed, name in enumerate(first)
        )
        length = min(map(len, (param, grad, buffer)))
        row = row_of()._replace(param=param[:length], buffer=buffer[:length])
        check([row], [([grad[:length]], None, None)])


# --- rows to update

LAYOUTS = {
    "contiguous": lambda t: t.clone(memory_format=torch.contiguous_format),
    "transposed": lambda t: t.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1),
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "every other element": lambda t: torch.stack([t, t], dim=-1)[..., 0],
}
SHAPES = [(), (0,), (1,), (3,), (63,), (64,), (65,), (200,), (2, 3, 5), (8, 16), (1, 4, 1), (0, 3)]
DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]
SKIPS = [0.0, 0.0, 0.0, 1.0, 2.0, math.inf, math.nan, -1.0]


def lay_out(tensor, layout):
    return (
        LAYOUTS[layout](tensor) if tensor.dim() else LAYOUTS["contiguous" if layout == "transposed" else layout](tensor)
    )


def values(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def row_of(shape=(200,), dtype=torch.float32, layout="contiguous", *, seed=0, lr=None, momentum=None, **options):
    """A row like the optimizer's, of a group with momentum and with the rates given."""
    param = lay_out(values(shape, dtype, seed), layout)
    given = {"dampening": 0.0, "weight_decay": 0.01, "nesterov": False, "maximize": False, **options}
    lr = torch.tensor(0.1) if lr is None else lr
    momentum = torch.tensor(0.9) if momentum is None else momentum
    started = torch.zeros(()) if given["dampening"] else None
    return DeviceRow(param, torch.zeros_like(param), started, lr, momentum, **given)


def twin_of(rows):
    def twin(tensor):
        return None if tensor is None else tensor.clone()

    return [row._replace(param=twin(row.param), buffer=twin(row.buffer), started=twin(row.started)) for row in rows]


def assert_same(rows, expected):
    for row, other in zip(rows, expected, strict=True):
        tolerance = TOLERANCE[row.param.dtype]
        close = {"rtol": tolerance, "atol": 8 * tolerance, "equal_nan": True}
        torch.testing.assert_close(row.param, other.param, **close)
        if row.buffer is not None:
            torch.testing.assert_close(row.buffer, other.buffer, **close)
        assert row.started == other.started


def take_over(expected, rows):
    """Go on from the same numbers: an ulp of half precision must not grow from step to step."""
    for row, other in zip(rows, expected, strict=True):
        other.param.copy_(row.param)
        if row.buffer is not None:
            other.buffer.copy_(row.buffer)


def check(rows, calls):
    """Make the calls ``(grads, grad_scale, found_inf)``, and compare with the reference after each."""
    update, expected = TritonUpdate(rows, block=BLOCK), twin_of(rows)
    for grads, grad_scale, found_inf in calls:
        before = [grad.clone() for grad in grads]
        update(grads, grad_scale, found_inf)
        reference_update(expected, grads, grad_scale, found_inf)
        assert_same(rows, expected)
        assert all(torch.equal(grad, old) for grad, old in zip(grads, before, strict=True))
        take_over(expected, rows)
    return update


@st.composite
def groups(draw):
    """Rows of 2 to 5 groups, each with its rates and options, of all dtypes and layouts."""
    rows = []
    for _ in range(draw(st.integers(2, 5))):
        options = draw(sgd_options())
        lr, momentum = torch.tensor(options.pop("lr")), torch.tensor(options.pop("momentum"))
        with_buffer = draw(st.sampled_from([True, True, True, False]))
        for _ in range(draw(st.integers(1, 3))):
            shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
            layout, seed = draw(st.sampled_from([*LAYOUTS])), draw(st.integers(0, 99))
            row = row_of(shape, dtype, layout, seed=seed, lr=lr, momentum=momentum, **options)
            rows.append(row if with_buffer else row._replace(buffer=None, started=None))
    return rows


@given(groups(), st.data())
def test_kernel_does_what_the_formula_says(rows, data):
    """Any rows, any layouts of their gradients, any scale; skips at any step, a momentum of exactly 0 at any step."""
    update, expected = TritonUpdate(rows, block=BLOCK), twin_of(rows)
    for step in range(data.draw(st.integers(1, 4), label="steps")):
        for row in rows:
            row.momentum.fill_(data.draw(st.sampled_from([0.0, 0.5, 0.9])) if step else row.momentum.item())
        layouts = data.draw(st.lists(st.sampled_from([*LAYOUTS]), min_size=len(rows), max_size=len(rows)))
        grad_scale = data.draw(st.sampled_from([None, torch.tensor(1024.0), torch.tensor([0.5])]))
        found_inf = data.draw(st.none() | st.sampled_from(SKIPS).map(lambda value: torch.tensor([value])))
        grads = [
            lay_out(values(row.param.shape, row.param.dtype, 100 * step + i), layout)
            for i, (row, layout) in enumerate(zip(rows, layouts, strict=True))
        ]
        if found_inf is not None and found_inf.item() != 0:
            grads = [grad * math.inf for grad in grads]
        update(grads, grad_scale, found_inf)
        reference_update(expected, grads, grad_scale, found_inf)
        assert_same(rows, expected)
        take_over(expected, rows)


@pytest.mark.parametrize("dtype", interpreted.DTYPES, ids=str)
@pytest.mark.parametrize("skipped", [1.0, 2.0, math.nan, math.inf, -1.0])
def test_a_skipped_first_step_leaves_every_bit(skipped, dtype):
    """Any found_inf but 0 leaves parameter, buffer and flag as they were, though all gradients are NaN."""
    rows = [row_of((200,), dtype, dampening=0.3), row_of((3,), dtype, "unaligned")]
    before = twin_of(rows)
    update = TritonUpdate(rows, block=BLOCK)
    update([torch.full_like(row.param, math.nan) for row in rows], None, torch.tensor(skipped))
    for row, old in zip(rows, before, strict=True):
        assert torch.equal(row.param, old.param)
        assert torch.equal(row.buffer, old.buffer)
        assert row.started == old.started


def test_nothing_outside_a_tensor_is_written():
    """The elements before and after a parameter and its buffer stay, at every size about that of a block."""
    for size in (1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5):
        for first in (0, 1, 4):
            around = [torch.full((size + 20,), 7.0) for _ in range(2)]
            param, buffer = (whole[first : first + size] for whole in around)
            row = row_of()._replace(param=param, buffer=buffer)
            TritonUpdate([row], block=BLOCK)([torch.ones(size)], None, None)
            for whole in around:
                assert (whole[first : first + size] != 7).all()
                assert (whole[:first] == 7).all()
                assert (whole[first + size :] == 7).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the product that is not selected
def test_infinite_parameters_stay_infinite_without_weight_decay():
    """As in SGD: 0 times infinity is not added."""
    row = row_of((3,), weight_decay=0.0)
    row.param.fill_(math.inf)
    check([row], [([torch.ones(3)], None, None)])
    assert (row.param == math.inf).all()


def test_gradients_that_are_laid_out_unlike_their_parameter():
    """Broadcast, negated, of another dtype: as correct as on the host."""
    rows = [row_of((8, 16)) for _ in range(4)] + [row_of((4, 3, 1, 1))]
    grads = [
        torch.tensor(2.0).expand(8, 16),
        torch._neg_view(values((8, 16), torch.float32, 1)),
        values((8, 16), torch.bfloat16, 2),
        torch._efficientzerotensor((8, 16)),
        values((4, 3, 1, 1), torch.float32, 3).as_strided((4, 3, 1, 1), (3, 1, 3, 3)),
    ]
    assert grads[4].stride() != rows[4].param.stride()
    update, expected = TritonUpdate(rows, block=BLOCK), twin_of(rows)
    update(grads, None, None)
    reference_update(expected, [grad.clone() for grad in grads], None, None)
    assert_same(rows, expected)


def test_gradients_that_lie_as_they_should_are_not_copied():
    """Neither ordinary ones nor those of a 1x1 convolution, whose strides differ without meaning anything."""
    param = values((4, 3, 1, 1), torch.float32, 0)
    grad = torch.empty_strided(param.shape, (3, 1, 3, 3))
    assert interpreted._like_param(grad, param) is grad
    plain = [torch.ones(200)]
    laid_out, addresses = TritonUpdate([row_of()], block=BLOCK)._laid_out(plain, None)
    assert laid_out[0] is plain[0]
    assert array("q", addresses).tolist() == [plain[0].data_ptr()]


def test_a_buffer_laid_out_unlike_its_parameter():
    """Such rows, those with gaps and those of double precision are updated all the same."""
    rows = [
        row_of((8, 16)),
        row_of((8, 16))._replace(buffer=torch.zeros(16, 8).t()),
        row_of((8, 16), layout="every other element"),
        row_of((8, 16), torch.float64),
    ]
    assert interpreted.supports(rows)
    assert not interpreted.supports(rows[1:])
    check(rows, [([values((8, 16), row.param.dtype, step) for row in rows], None, None) for step in range(3)])


def test_every_tensor_is_updated_by_one_launch(monkeypatch):
    """Whatever groups and dtypes there are; one more, of a single program, where there is dampening."""
    launches = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launches.append((self.kernel, grid))
            return self.kernel[grid]

    sgd, started = interpreted.sgd_kernel, interpreted.started_kernel
    monkeypatch.setattr(interpreted, "sgd_kernel", Counted(sgd))
    monkeypatch.setattr(interpreted, "started_kernel", Counted(started))
    rows = [row_of((65,), dtype, lr=torch.tensor(0.1)) for dtype in interpreted.DTYPES for _ in range(3)]
    grads = [torch.ones_like(row.param) for row in rows]
    update = TritonUpdate(rows, block=BLOCK)
    launches.clear()
    update(grads, None, None)
    assert launches == [(sgd, (2 * len(rows),))]
    damped = TritonUpdate([*rows, row_of((5,), dampening=0.5)], block=BLOCK)
    launches.clear()
    damped([*grads, torch.ones(5)], None, None)
    assert launches == [(sgd, (2 * len(rows) + 1,)), (started, (1,))]


def test_a_call_asks_the_device_nothing(monkeypatch):
    """Round its launches the update neither waits for the device nor reads from it, whatever gradients come."""

    class Launch:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    monkeypatch.setattr(interpreted, "sgd_kernel", Launch())  # what the interpreter itself reads is another matter
    monkeypatch.setattr(interpreted, "started_kernel", Launch())
    rows = [row_of((8, 16)), row_of((5,), torch.bfloat16, dampening=0.5), row_of((4,), torch.float64)]
    update = TritonUpdate(rows, block=BLOCK)
    for layout in LAYOUTS:
        grads = [lay_out(values(row.param.shape, row.param.dtype, 0), layout) for row in rows]
        with NoQuestions():
            update(grads, None, None)
            update(grads, torch.tensor([2.0]), torch.tensor([1.0]))


def test_it_is_compiled_when_it_is_built(monkeypatch):
    """Building launches each kernel that its steps will, once, to do nothing: no capture meets one not yet loaded."""
    launched = []

    class Launch:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **kwargs: (
                launched.append((self.kernel, kwargs["BLOCK"])) or self.kernel[grid](*args, **kwargs)
            )

    for name in ("sgd_kernel", "started_kernel"):
        monkeypatch.setattr(interpreted, name, Launch(getattr(interpreted, name)))
    rows = [row_of((200,), dampening=0.5)]
    before = twin_of(rows)
    update = TritonUpdate(rows, block=BLOCK)
    built = launched.copy()
    assert len(built) == 2
    assert_same(rows, before)
    update([torch.ones(200)], None, None)
    assert launched == 2 * built


def test_autograd_notices_what_was_overwritten():
    """Version counters of parameters and buffers move on, as the kernel's writing does not do it."""
    row = row_of((5,))
    versions = row.param._version, row.buffer._version
    TritonUpdate([row], block=BLOCK)([torch.ones(5)], None, None)
    assert row.param._version > versions[0]
    assert row.buffer._version > versions[1]


def test_rows_without_elements():
    """An empty parameter does no harm, alone or among others."""
    check([row_of((0,), dampening=0.5)], [([torch.ones(0)], None, None)])
    check([row_of((0, 3)), row_of((3,))], [([torch.ones(0, 3), torch.ones(3)], None, None)] * 2)


def test_the_default_device_is_of_no_matter():
    """Tables are built on the CPU, whatever device new tensors are on by default."""
    rows = [row_of(seed=seed, dampening=0.5) for seed in range(3)]
    twins = twin_of(rows)
    grads = [values((200,), torch.float32, 9 + seed) for seed in range(3)]
    with torch.device("meta"):
        TritonUpdate(rows, BLOCK)(grads, None, None)
    reference_update(twins, grads)
    assert_same(rows, twins)


def test_a_parameter_that_is_moved_between_steps():
    """New memory, another layout, dtype or sign under the same parameter is noticed, and the old memory left alone."""
    param = torch.nn.Parameter(values((8, 16), torch.float32, 0), requires_grad=False)
    row = row_of((8, 16))._replace(param=param, buffer=torch.zeros(8, 16))
    update, expected = TritonUpdate([row], block=BLOCK), twin_of([row])
    changes = [
        lambda t: t,
        lambda t: t.clone(),
        lambda t: LAYOUTS["transposed"](t),
        lambda t: t.bfloat16(),
        lambda t: t.double(),
        lambda t: t.float(),
        torch._neg_view,
    ]
    for step, change in enumerate(changes):
        old = param.data
        before, param.data = old.clone(), change(old)
        row.buffer.data = change(row.buffer.data)
        expected[0] = row._replace(param=param.detach().clone(), buffer=row.buffer.clone())
        grad = values((8, 16), param.dtype, step)
        update([grad], None, None)
        reference_update(expected, [grad])
        assert_same([row._replace(param=param.data)], expected)
        assert old.data_ptr() == param.data_ptr() or torch.equal(old, before)


# --- capture


@pytest.fixture
def capture(monkeypatch):
    """Say that a graph is captured, as long as the list that is returned says so."""
    says = [False]
    monkeypatch.setattr(TritonUpdate, "_is_capturing", lambda _: says[0])
    return says


def test_a_captured_call_keeps_a_table_of_its_own(capture):
    """Calls outside the graph, and other captures, leave alone what a graph reads in every replay."""
    row = row_of()
    update = TritonUpdate([row], block=BLOCK)
    captured = [torch.ones(200), torch.ones(200)]
    tables = []
    for grad in captured:
        capture[0] = True
        update([grad], None, None)
        tables.append(update._captured[array("q", [grad.data_ptr()]).tobytes()])
        capture[0] = False
        update([torch.ones(200)], None, None)
    for grad, table in zip(captured, tables, strict=True):
        assert table.pinned.tolist() == table.grads.tolist() == [grad.data_ptr()]
        assert table.grads is not update._grads
    assert tables[0].pinned.data_ptr() != tables[1].pinned.data_ptr()


def test_what_a_graph_reads_lives_as_long_as_its_rates(capture):
    """An update that was captured may be replaced by one of other rows: its tables stay until the rates are gone."""
    row = row_of()
    update = TritonUpdate([row], block=BLOCK)
    capture[0] = True
    update([torch.ones(200)], None, None)
    kept = interpreted.weakref.ref(update._tables.tensors)
    pinned = interpreted.weakref.ref(next(iter(update._captured.values())).pinned)
    del update
    assert kept() is not None
    assert pinned() is not None
    del row
    assert kept() is None
    assert pinned() is None


def test_more_captures_than_there_are_tables(capture):
    """They are right, too; a step outside a capture makes room for further ones."""
    row, expected = row_of(), twin_of([row_of()])
    update = TritonUpdate([row], block=BLOCK)
    grads = [values((200,), torch.float32, i) for i in range(interpreted.SPARES + 2)]
    for grad in grads:
        capture[0] = True
        update([grad], None, None)
        reference_update(expected, [grad])
        assert_same([row], expected)
    assert len(update._captured) == interpreted.SPARES
    capture[0] = False
    update([grads[0]], None, None)
    capture[0] = True
    update([grads[-1]], None, None)
    assert len(update._captured) == interpreted.SPARES + 1


def test_it_is_not_built_while_a_graph_is_captured(capture):
    """Its tables would be built anew in every replay."""
    row = row_of()
    update = TritonUpdate([row])
    capture[0] = True
    with pytest.raises(RuntimeError, match="call step"):
        TritonUpdate([row_of()])
    row.param.data = row.param.data.clone()
    with pytest.raises(RuntimeError, match="call step"):
        update([torch.ones(200)], None, None)


# --- in the optimizer


def model():
    return [torch.nn.Parameter(values(shape, torch.float32, i)) for i, shape in enumerate([(65,), (), (0,), (2, 3)])]


@given(sgd_options(), st.data())
def test_optimizer_on_the_kernel_equals_the_optimizer_on_the_host(options, data):
    """Groups, late gradients and skipped steps, with lr and momentum on a cycle that touches 0."""
    policy = Triangular(3, cycle_momentum=not options["nesterov"], base_momentum=0.0, max_momentum=0.9)
    pairs = []
    for capturable_ in (True, False):
        params = model()
        of_groups = [{"params": params[::2]}, {"params": params[1::2], "lr": 0.05, "weight_decay": 0.1}]
        pairs.append((params, CyclicSGD(of_groups, **options, policy=policy, capturable=capturable_)))
    (params, optimizer), (host_params, host) = pairs
    built = []

    def build(rows):
        built.append(rows)
        return TritonUpdate(rows, block=BLOCK)

    with patch("cyclic_optim.device.sgd.choose_device_update", build):
        for step in range(data.draw(st.integers(1, 6), label="steps")):
            late = data.draw(st.sets(st.integers(1, len(params) - 1)), label="without gradient")
            skipped = data.draw(st.sampled_from([0.0, 0.0, 1.0, 2.0]), label="found_inf")
            for i, pair in enumerate(zip(params, host_params, strict=True)):
                for param in pair:
                    param.grad = None if i in late else values(param.shape, param.dtype, 100 * step + i) * 8
            for each in (optimizer, host):
                each.grad_scale, each.found_inf = torch.tensor(8.0), torch.tensor(skipped)
                each.step()
            for param, other in zip(params, host_params, strict=True):
                torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)
    assert built


def test_portable_update_where_triton_is_missing_or_of_no_use(monkeypatch):
    """No error reaches the user: neither of importing, nor of compiling, nor where there is nothing for it to do."""

    class OnCuda(torch.Tensor):
        is_cuda = True

    rows = [row_of((3,))._replace(param=torch.ones(3).as_subclass(OnCuda))]
    name = "cyclic_optim.device.triton_sgd"
    monkeypatch.setitem(sys.modules, name, interpreted)
    assert isinstance(choose_device_update(rows), PortableUpdate)  # no plain tensor
    monkeypatch.setattr(interpreted, "supports", lambda _: True)
    monkeypatch.setattr(TritonUpdate, "_is_capturing", lambda _: False)
    assert isinstance(choose_device_update(rows), TritonUpdate)
    monkeypatch.setattr(interpreted, "TritonUpdate", lambda _: 1 / 0)
    assert isinstance(choose_device_update(rows), PortableUpdate)
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert isinstance(choose_device_update(rows), PortableUpdate)


def test_reference_is_sgd():
    """The arithmetic that the kernel is held against gives torch's own numbers."""
    param = torch.nn.Parameter(values((5,), torch.float64, 0))
    options = {"lr": 0.5, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125}
    sgd = torch.optim.SGD([param], **options, maximize=True)
    row = row_of(lr=torch.tensor(0.5), momentum=torch.tensor(0.5), dampening=0.25, weight_decay=0.125, maximize=True)
    row = row._replace(param=param.detach().clone(), buffer=torch.zeros(5, dtype=torch.float64))
    for step in range(3):
        param.grad = values((5,), torch.float64, step)
        sgd.step()
        reference_update([row], [param.grad])
        torch.testing.assert_close(row.param, param.detach(), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(row.buffer, sgd.state[param]["momentum_buffer"], rtol=1e-14, atol=1e-14)


def test_kernels_are_interpreted_here_and_nowhere_else():
    """Or nothing above would have tested them; a program that imports the module gets the one that compiles."""
    compiled = importlib.import_module("cyclic_optim.device.triton_sgd")
    assert type(interpreted.sgd_kernel).__name__ == "InterpretedFunction"
    assert type(compiled.sgd_kernel).__name__ == "JITFunction"
