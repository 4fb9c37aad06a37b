"""The update of a capturable step on CUDA: one kernel launch for every tensor of every group.

Importing this module imports Triton, and fails where there is none; :func:`.sgd.choose_device_update` handles that.

The kernel finds its tensors through tables of addresses on the device. Parameters, buffers and the current values stay
where they are, so most tables are written once. Gradients may move: their addresses are uploaded when they differ from
those of the last call, through pinned memory that is not reused before the device has read it.

Every replay of a CUDA graph reads the tables that were captured. Each captured call therefore gets a separate table of
gradients, which later calls do not write to.
"""

from __future__ import annotations

import weakref
from array import array
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from ..torch_private import is_zero_tensor
from .portable import DeviceRow, PortableUpdate, decay_at

#: Elements per program, and its warps: 8 elements of each tensor per thread.
BLOCK, WARPS = 1024, 4
#: Whether ``a * b + c`` is rounded once. Given, because Triton's default changes in 3.10, and 3.9 warns of that.
FP_FUSION = True
#: Sets of gradients for which graphs can be captured between two steps outside a capture.
SPARES = 16

# The kernel knows them by their index here.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = {Tensor, Parameter}


# -- on the device ----------------------------------------------------------------------------------


@triton.jit
def _direction(p, g, b, scale, weight_decay, share, momentum, nesterov, with_buffer):  # type: ignore[no-untyped-def]
    """The new buffer and the direction of the update, in float32."""
    g = g * scale
    # A select, because 0 times an infinite parameter would be NaN.
    g = tl.where(weight_decay != 0, g + weight_decay * p, g)
    b = momentum * b + share * g
    d = tl.where(nesterov != 0, g + momentum * b, b)
    return b, tl.where(with_buffer, d, g)


@triton.jit
def _update_block(  # type: ignore[no-untyped-def]
    param, grad, buffer, left, lr, scale, weight_decay, share, momentum, nesterov, with_buffer,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update the ``left`` elements, BLOCK at most, that start at these three addresses."""
    offsets = tl.arange(0, BLOCK)
    # Addresses from a table have no known alignment; without a hint there is no 128-bit access. The hint is on pointers
    # made in this branch, because it must not leak into the else branch.
    if (((param | grad | buffer) & 15) == 0) & (left >= BLOCK):
        p_at = tl.multiple_of(param.to(tl.pointer_type(DTYPE)), 16) + offsets
        g_at = tl.multiple_of(grad.to(tl.pointer_type(DTYPE)), 16) + offsets
        b_at = tl.multiple_of(buffer.to(tl.pointer_type(DTYPE)), 16) + offsets
        p = tl.load(p_at).to(tl.float32)
        g = tl.load(g_at).to(tl.float32)
        b = tl.load(b_at, mask=with_buffer, other=0.0).to(tl.float32)
        b, d = _direction(p, g, b, scale, weight_decay, share, momentum, nesterov, with_buffer)
        tl.store(b_at, b.to(DTYPE), mask=with_buffer)
        tl.store(p_at, (p - lr * d).to(DTYPE))
    else:
        p_at = param.to(tl.pointer_type(DTYPE)) + offsets
        g_at = grad.to(tl.pointer_type(DTYPE)) + offsets
        b_at = buffer.to(tl.pointer_type(DTYPE)) + offsets
        inside = offsets < left
        p = tl.load(p_at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_at, mask=inside & with_buffer, other=0.0).to(tl.float32)
        b, d = _direction(p, g, b, scale, weight_decay, share, momentum, nesterov, with_buffer)
        tl.store(b_at, b.to(DTYPE), mask=inside & with_buffer)
        tl.store(p_at, (p - lr * d).to(DTYPE), mask=inside)


_TABLES = ["tensors", "numbers", "blocks", "grads", "grad_scale", "found_inf"]


# Do not specialize on the scaler's alignment: it could trigger a compile during a capture.
@triton.jit(do_not_specialize_on_alignment=_TABLES)
def sgd_kernel(  # type: ignore[no-untyped-def]
    tensors, numbers, blocks, grads, grad_scale, found_inf,
    FLOAT32: tl.constexpr, BFLOAT16: tl.constexpr, FLOAT16: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor: chunk ``blocks[program, 1]`` of tensor ``blocks[program, 0]``.

    =============  =======  ==================  ===============================================================
    ``tensors``    int64    ``[tensors, 8]``    addresses of parameter, buffer (0: none), started (0: none), lr
                                                and momentum; number of elements; index in ``DTYPES``; address of
                                                weight decay (0: it is in ``numbers``)
    ``numbers``    float32  ``[tensors, 4]``    weight decay, 1 - dampening, -1 to maximize else 1, nesterov
    ``blocks``     int32    ``[programs, 2]``   tensor, chunk
    ``grads``      int64    ``[tensors]``       addresses of gradients
    =============  =======  ==================  ===============================================================
    """
    if tl.load(found_inf) == 0:  # false for NaN
        program = tl.program_id(0)
        index = tl.load(blocks + 2 * program)
        chunk = tl.load(blocks + 2 * program + 1)
        row = tensors + 8 * index
        param, buffer, started = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        lr = tl.load(tl.load(row + 3).to(tl.pointer_type(tl.float32)))
        momentum = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)))
        numel, dtype, decay = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
        grad = tl.load(grads + index)
        options = numbers + 4 * index
        weight_decay, undamped, sign, nesterov = (
            tl.load(options), tl.load(options + 1), tl.load(options + 2), tl.load(options + 3)
        )  # fmt: skip
        moved = tl.load(decay.to(tl.pointer_type(tl.float32)), mask=decay != 0, other=0.0)
        weight_decay = tl.where(decay != 0, moved, weight_decay)
        flag = tl.load(started.to(tl.pointer_type(tl.float32)), mask=started != 0, other=1.0)
        share = tl.where(flag != 0, undamped, 1.0)
        # The reciprocal, as in GradScaler; exact for its powers of two.
        scale = sign * tl.div_rn(1.0, tl.load(grad_scale))
        with_buffer = (buffer != 0) & (momentum != 0)  # at 0, SGD neither reads nor writes buffers

        start = chunk.to(tl.int64) * BLOCK
        left = numel - start
        # Constants in the outer conditions: no code is generated for dtypes that do not occur.
        if FLOAT32:  # noqa: SIM102
            if dtype == 0:
                _update_block(
                    param + 4 * start, grad + 4 * start, buffer + 4 * start, left,
                    lr, scale, weight_decay, share, momentum, nesterov, with_buffer, tl.float32, BLOCK,
                )  # fmt: skip
        if BFLOAT16:  # noqa: SIM102
            if dtype == 1:
                _update_block(
                    param + 2 * start, grad + 2 * start, buffer + 2 * start, left,
                    lr, scale, weight_decay, share, momentum, nesterov, with_buffer, tl.bfloat16, BLOCK,
                )  # fmt: skip
        if FLOAT16:  # noqa: SIM102
            if dtype == 2:
                _update_block(
                    param + 2 * start, grad + 2 * start, buffer + 2 * start, left,
                    lr, scale, weight_decay, share, momentum, nesterov, with_buffer, tl.float16, BLOCK,
                )  # fmt: skip


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["started", "momenta", "found_inf"])
def started_kernel(started, momenta, count, found_inf, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Set the flags at the addresses in ``started`` where the momentum at that in ``momenta`` is not 0."""
    if tl.load(found_inf) == 0:
        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < count
        at = tl.load(momenta + offsets, mask=inside, other=0).to(tl.pointer_type(tl.float32))
        flags = tl.load(started + offsets, mask=inside, other=0).to(tl.pointer_type(tl.float32))
        has_momentum = tl.load(at, mask=inside, other=0.0) != 0
        tl.store(flags, tl.full([BLOCK], 1.0, tl.float32), mask=has_momentum)


# -- on the host ------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """The tables that are written once; see :func:`sgd_kernel`."""

    tensors: Tensor
    numbers: Tensor
    blocks: Tensor


class Spare(NamedTuple):
    """A table of gradients for a graph, and the pinned memory from which the graph fills it."""

    pinned: Tensor
    grads: Tensor


def supports(rows: list[DeviceRow]) -> bool:
    """Whether the kernel can take at least one of ``rows``, which are on one device."""
    return any(_fits(row) for row in rows)


class TritonUpdate:
    """The update of ``rows``, in one launch; a second, tiny one where there is dampening.

    Building it compiles and loads the kernel by one launch that is a no-op. Rows that the kernel cannot take (double
    precision, tensors with gaps, a buffer laid out unlike its parameter) are updated by :class:`PortableUpdate`.
    A gradient laid out unlike its parameter is copied first.

    Up to ``SPARES`` sets of gradients can be captured between two calls outside a capture; after that, captured calls
    use :class:`PortableUpdate`.

    Raises:
        RuntimeError: it would have to be built while a CUDA graph is captured.
        Exception: Triton does not work here.
    """

    def __init__(self, rows: list[DeviceRow], block: int = BLOCK, warps: int = WARPS) -> None:
        self._rows, self._block, self._warps = rows, block, warps
        self._device = rows[0].param.device
        self._tensors = [row.param for row in rows] + [row.buffer for row in rows if row.buffer is not None]
        self._build()

    def _build(self) -> None:
        if self._is_capturing():
            raise RuntimeError(
                "need the same parameters, where they were, to have gradients while a CUDA graph is captured as in the "
                "step before: call step() once before with these"
            )
        self._layout = _layout(self._tensors)
        self._sort_rows()
        self._make_tables()
        with self._on_device():
            self._launch(self._grads, self._one, found_inf=self._one)

    def _sort_rows(self) -> None:
        """Choose the rows for the kernel; the others are updated by :class:`PortableUpdate`."""
        rows = self._rows
        fitting = [i for i, row in enumerate(rows) if _fits(row)]
        self._others = sorted({*range(len(rows))} - {*fitting})
        self._portable = PortableUpdate([rows[i] for i in self._others])
        self._indices = [i for i in fitting if rows[i].param.numel() > 0]
        self._params = [rows[i].param for i in self._indices]
        self._strides = [param.stride() for param in self._params]
        self._dtypes = [param.dtype for param in self._params]
        buffers = [rows[i].buffer for i in self._indices]
        self._written = [*self._params, *(buffer for buffer in buffers if buffer is not None)]
        self._flags = _flags([rows[i] for i in fitting], self._device)

    def _make_tables(self) -> None:
        self._one = torch.ones((), dtype=torch.float32, device=self._device)
        self._zero = torch.zeros((), dtype=torch.float32, device=self._device)
        self._tables = _tables([self._rows[i] for i in self._indices], self._block, self._device)
        self._addresses = bytes(8 * len(self._indices))
        self._grads = torch.zeros(len(self._indices), dtype=torch.int64, device=self._device)
        self._captured: dict[bytes, Spare] = {}
        self._spares: list[Spare] = []
        self._add_spares()

    def __call__(
        self,
        grads: list[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        addresses: bytes | None = None,
    ) -> None:
        """Update every row from the gradient of the same index, unless ``found_inf`` is other than 0."""
        if addresses is None and _layout(self._tensors) != self._layout:  # a parameter's data was assigned to
            self._build()
        with self._on_device():
            laid_out, at = self._laid_out(grads, addresses)
            if self._is_capturing():
                table = self._captured_table(at)
                if table is None:
                    PortableUpdate(self._rows)(grads, grad_scale, found_inf)
                    return
            else:
                self._add_spares()
                self._upload(at)
                table = self._grads
            self._launch(table, self._as_number(grad_scale, self._one), self._as_number(found_inf, self._zero))
            del laid_out  # the allocator reuses the memory of copies after the kernel, in the order of the stream
            increment_version(self._written)
            if self._others:
                self._portable([grads[i] for i in self._others], grad_scale, found_inf)

    def _launch(self, grads: Tensor, grad_scale: Tensor, found_inf: Tensor) -> None:
        tables = self._tables
        if len(tables.blocks):
            sgd_kernel[(len(tables.blocks),)](
                *tables, grads, grad_scale, found_inf, *(dtype in self._dtypes for dtype in DTYPES),
                BLOCK=self._block, num_warps=self._warps, enable_fp_fusion=FP_FUSION,
            )  # fmt: skip
        if self._flags is not None:
            # Last, because the kernel above reads the flags.
            count = self._flags.shape[1]
            grid = (triton.cdiv(count, 256),)
            started_kernel[grid](*self._flags, count, found_inf, BLOCK=256, enable_fp_fusion=FP_FUSION)

    def _is_capturing(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _as_number(self, given: Tensor | None, default: Tensor) -> Tensor:
        return default if given is None else given.to(self._device, torch.float32)

    # -- gradients ----------------------------------------------------------------------------------

    def _laid_out(self, grads: list[Tensor], addresses: bytes | None) -> tuple[list[Tensor], bytes]:
        """The gradients laid out as their parameters are, and their packed addresses."""
        if addresses is not None and len(self._indices) == len(self._rows):
            return grads, addresses
        grads = [grads[i] for i in self._indices]
        if addresses is None and not self._are_laid_out(grads):
            grads = [*map(_like_param, grads, self._params)]
        return grads, array("q", map(Tensor.data_ptr, grads)).tobytes()

    def _are_laid_out(self, grads: list[Tensor]) -> bool:
        return (
            _PLAIN.issuperset(map(type, grads))
            and [*map(Tensor.stride, grads)] == self._strides
            and [grad.dtype for grad in grads] == self._dtypes
            and not any(map(Tensor.is_neg, grads))
            and not any(map(is_zero_tensor, grads))
        )

    def _upload(self, addresses: bytes) -> None:
        if addresses != self._addresses:
            # The pinned allocator does not reuse this memory before the copy is done.
            self._grads.copy_(_pinned(_unpacked(addresses), self._device), non_blocking=True)
            self._addresses = addresses

    def _captured_table(self, addresses: bytes) -> Tensor | None:
        """A table that the graph itself fills, as graphs are replayed in any order; None without a spare one."""
        spare = self._captured.get(addresses)
        if spare is None:
            if not self._spares:
                return None
            spare = self._captured[addresses] = self._spares.pop()
            spare.pinned.copy_(_unpacked(addresses))
            # A graph reads these tensors, and is of no use once its rates are freed: until then they must live.
            read = self._tables, self._flags, self._one, self._zero, spare
            weakref.finalize(self._rows[0].lr, _release, read).atexit = False
        spare.grads.copy_(spare.pinned, non_blocking=True)
        return spare.grads

    def _add_spares(self) -> None:
        if missing := SPARES - len(self._spares):
            shape = missing, len(self._indices)
            pinned = torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=self._device.type == "cuda")
            grads = torch.zeros(shape, dtype=torch.int64, device=self._device)
            self._spares += map(Spare, pinned.unbind(), grads.unbind())


def _unpacked(addresses: bytes) -> Tensor:
    return torch.tensor(array("q", addresses).tolist(), dtype=torch.int64, device="cpu")


def _layout(tensors: list[Tensor]) -> tuple[list[Any], ...]:
    """All that the tables have of tensors and that may change while these stay the same objects."""
    methods = Tensor.data_ptr, Tensor.size, Tensor.stride, Tensor.is_neg
    return *([*map(method, tensors)] for method in methods), [tensor.dtype for tensor in tensors]


def _fits(row: DeviceRow) -> bool:
    param, buffer = row.param, row.buffer
    if type(param) not in _PLAIN or param.layout is not torch.strided or param.dtype not in DTYPES or param.is_neg():
        return False
    if not torch.ops.aten.is_non_overlapping_and_dense(param):
        return False
    return buffer is None or (buffer.device == param.device and _is_like(buffer, param))


def _is_like(tensor: Tensor, param: Tensor) -> bool:
    """Whether corresponding elements are at the same offset."""
    if type(tensor) not in _PLAIN or tensor.dtype is not param.dtype or tensor.shape != param.shape:
        return False
    if tensor.is_neg() or is_zero_tensor(tensor):
        return False
    # Strides of dimensions of size 1 do not matter.
    strides = zip(param.shape, param.stride(), tensor.stride(), strict=True)
    return all(size == 1 or one == other for size, one, other in strides)


def _like_param(grad: Tensor, param: Tensor) -> Tensor:
    return grad if _is_like(grad, param) else torch.empty_like(param).copy_(grad)


def _tables(rows: list[DeviceRow], block: int, device: torch.device) -> Tables:
    tensors = [
        # in the kernel's order
        (*map(_address, row[:5]), row.param.numel(), DTYPES.index(row.param.dtype), _address(decay_at(row)))
        for row in rows
    ]
    numbers = [
        (
            row.weight_decay if decay_at(row) is None else 0.0,
            1 - row.dampening,
            -1.0 if row.maximize else 1.0,
            float(row.nesterov),
        )
        for row in rows
    ]
    chunks = torch.tensor([triton.cdiv(row.param.numel(), block) for row in rows], dtype=torch.int64, device="cpu")
    index = torch.repeat_interleave(chunks)
    first = (chunks.cumsum(0) - chunks)[index]
    blocks = torch.stack([index, torch.arange(len(index), device="cpu") - first], dim=1)
    return Tables(
        _moved(torch.tensor(tensors, dtype=torch.int64, device="cpu").reshape(-1, 8), device),
        _moved(torch.tensor(numbers, dtype=torch.float32, device="cpu").reshape(-1, 4), device),
        _moved(blocks.to(torch.int32), device),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _flags(rows: list[DeviceRow], device: torch.device) -> Tensor | None:
    """Addresses of the flags to set, and of the momenta on which that depends."""
    pairs = [(row.started.data_ptr(), row.momentum.data_ptr()) for row in rows if row.started is not None]
    return _moved(torch.tensor(pairs, dtype=torch.int64, device="cpu").t().contiguous(), device) if pairs else None


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without a host-device sync."""
    return _pinned(tensor, device).to(device, non_blocking=True)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _release(tensors: object) -> None:
    """No-op: as an argument of a finalizer, the tensors live until it runs."""
