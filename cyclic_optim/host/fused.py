"""torch's fused SGD op, called only on tensors that it handles correctly.

The op goes through memory in order and has one flag for all its tensors. So it is correct only for plain, dense,
floating-point tensors of one dtype and device whose parameter, gradient and buffer have the same layout, and of which
all have a momentum buffer or none. On the CPU it is wrong for half precision up to torch 2.13. On every step tensors
are therefore sorted into calls, because users may change them between steps: calls of the op, and of torch's loop for
the rest. :mod:`.ordinary` handles most tensors before.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.sgd import sgd

from ..torch_private import (
    fused_devices,
    fused_sgd,
    increment_version,
    is_functional,
    is_zero_tensor,
    transforms_active,
)
from .threads import on_one_thread

Group = dict[str, Any]
State = dict[Any, dict[str, Any]]
Rows = list[tuple[Group, list[Any], list[Any]]]  # param groups, with parameters to be updated and their gradients
Tensors = tuple[list[Any], list[Any], list[Any]]  # parameters, gradients, buffers (None where there is none)

#: The hyperparameters of a param group that torch's ``sgd`` and its fused op take by these names.
HYPERPARAMETERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")

#: On the CPU the op starts a team of threads for every tensor. With fewer elements than this, that costs more than it
#: saves (measured by benchmarks/crossing.py).
SMALL = 2**14

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# On the CPU the op of torch 2.13 and older does not update most parameters of half precision.
_DTYPES_ON_CPU = {torch.float32, torch.float64}
_PLAIN = {Tensor, Parameter}

_hyperparameters = itemgetter(*HYPERPARAMETERS)  # in this order


class Kind(NamedTuple):
    """What tensors must have in common to be updated in one call."""

    row: int
    exact: bool  # by torch's loop, because the op would be wrong
    serial: bool  # too small for threads
    first: bool  # without a momentum buffer yet
    dtype: torch.dtype
    device: torch.device


class Call(NamedTuple):
    """One call, for the tensors from ``start`` to ``stop``, which are of one kind."""

    kind: Kind
    start: int
    stop: int


def read_rows(groups: list[Group]) -> Rows:
    """The parameters that have a gradient, and the gradients.

    A subclass's ``grad`` may run any code, which may give other tensors other memory: so all are read before any tensor
    is looked at.
    """
    rows = []
    for group in groups:
        pairs = [(param, param.grad) for param in group["params"]]
        pairs = [pair for pair in pairs if pair[1] is not None]
        rows.append((group, [param for param, _ in pairs], [grad for _, grad in pairs]))
    return rows


def fused_update(rows: Rows, state: State, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Update every parameter in ``rows``.

    A ``found_inf`` other than 0 makes it a no-op. Gradients are divided by ``grad_scale`` in place, as by the op.
    """
    calls, tensors = _sort(rows, state)
    params, _, buffers = tensors
    first = [call for call in calls if call.kind.first]
    for kind, start, stop in first:
        if not kind.exact:
            # Zeros rather than uninitialized memory, in case the op raises.
            buffers[start:stop] = [torch.zeros_like(param, requires_grad=False) for param in params[start:stop]]
    if _run(calls, rows, tensors, grad_scale, found_inf):
        for _, start, stop in (call for call in calls if call.kind.first or call.kind.exact):
            for param, buffer in zip(params[start:stop], buffers[start:stop], strict=True):
                if buffer is not None:  # None: with a momentum of 0 buffers are left alone
                    state[param]["momentum_buffer"] = buffer


# -- sorting ----------------------------------------------------------------------------------------


def _sort(rows: Rows, state: State) -> tuple[list[Call], Tensors]:
    """The calls that update every parameter, and the tensors in their order."""
    kinds: dict[Kind, list[tuple[Any, Any, Any]]] = {}
    devices = {*fused_devices()}
    is_transformed = transforms_active()
    for index, (group, params, grads) in enumerate(rows):
        with_buffers = group["momentum"] != 0
        buffers = [state[param].get("momentum_buffer") if with_buffers else None for param in params]
        local = zip(*_local((params, grads, buffers)), strict=True)
        for tensors, (param, grad, buffer) in zip(zip(params, grads, buffers, strict=True), local, strict=True):
            device, first = param.device, with_buffers and buffer is None
            exact = is_transformed or device.type not in devices or not _op_is_correct(param, grad, buffer)
            serial = not exact and device.type == "cpu" and param.numel() < SMALL
            kinds.setdefault(Kind(index, exact, serial, first, param.dtype, device), []).append(tensors)
    in_order = sorted(kinds, key=lambda kind: (kind.exact, not kind.serial, kind.row))
    ends = [*accumulate(len(kinds[kind]) for kind in in_order)]
    calls = [Call(kind, end - len(kinds[kind]), end) for kind, end in zip(in_order, ends, strict=True)]
    sorted_ = [row for kind in in_order for row in kinds[kind]]
    return calls, ([row[0] for row in sorted_], [row[1] for row in sorted_], [row[2] for row in sorted_])


def _op_is_correct(param: Tensor, grad: Tensor, buffer: Tensor | None) -> bool:
    dtype, device, shape = param.dtype, param.device, param.shape
    if dtype not in (_DTYPES_ON_CPU if device.type == "cpu" else _DTYPES):
        return False
    tensors = (param, grad) if buffer is None else (param, grad, buffer)
    for t in tensors:
        if t.dtype is not dtype or t.device != device or t.shape != shape:
            return False
        if type(t) not in _PLAIN or t.layout is not torch.strided or t.is_neg():
            return False
        if is_zero_tensor(t) or is_functional(t):
            return False
    # Strides of dimensions of size 1 do not matter; is_contiguous ignores them.
    if param.is_contiguous():
        return all(t.is_contiguous() for t in tensors)
    same = len({t.stride() for t in tensors}) == 1
    return same and bool(torch.ops.aten.is_non_overlapping_and_dense(param))


def _local(tensors: Tensors) -> Tensors:
    """The tensors with DTensors replaced by their local shards, where all three are sharded alike.

    The update is elementwise, so each shard can be updated by itself; the op does not take DTensors.
    """
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or _PLAIN.issuperset(map(type, tensors[0])):
        return tensors
    sharded = distributed.DTensor

    def shards(*row: Any) -> tuple[Any, ...]:
        given = [tensor for tensor in row if tensor is not None]
        if not all(isinstance(tensor, sharded) for tensor in given):
            return row
        if len({(tensor.device_mesh, tensor.placements) for tensor in given}) > 1:
            return row
        if any(placement.is_partial() for placement in given[0].placements):
            return row
        return tuple(None if tensor is None else tensor.to_local() for tensor in row)

    rows = [shards(*row) for row in zip(*tensors, strict=True)]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


# -- updating ---------------------------------------------------------------------------------------


def _run(calls: list[Call], rows: Rows, tensors: Tensors, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
    """Make the calls; False if the step was skipped (``found_inf``)."""
    if found_inf is not None:
        # The op can skip on the device. Creating a buffer and torch's loop cannot: then synchronize with the host.
        if found_inf.device.type == "cpu" or any(call.kind.exact or call.kind.first for call in calls):
            if found_inf.item() != 0:
                return False
            found_inf = None
        else:
            found_inf = (found_inf != 0).to(torch.float32)  # the op tests for 1 only
    params, grads, buffers = _local(tensors)
    for kind, start, stop in calls:
        group, part = rows[kind.row][0], slice(start, stop)
        if kind.exact:
            _by_loop(group, tensors, part, grad_scale)
        else:
            local = params[part], grads[part], buffers[part]
            by_op(group, *local, serial=kind.serial, first=kind.first, grad_scale=grad_scale, found_inf=found_inf)
    return True


def by_op(
    group: Group,
    params: list[Any],
    grads: list[Any],
    buffers: list[Any],
    *,
    serial: bool,
    first: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Update tensors of one kind by torch's op, on one thread or on all."""
    lr, momentum, dampening, weight_decay, nesterov, maximize = _hyperparameters(group)
    device = params[0].device
    update = partial(
        fused_sgd,
        params,
        grads,
        buffers if momentum != 0 else [],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=bool(nesterov),
        maximize=bool(maximize),
        is_first_step=first,
        grad_scale=None if grad_scale is None else grad_scale.to(device),
        found_inf=None if found_inf is None else found_inf.to(device),
    )
    if serial:
        on_one_thread(update)
    else:
        update()
    # The op does not; without it autograd could not detect that a saved tensor was overwritten.
    increment_version(params)


def _by_loop(group: Group, tensors: Tensors, part: slice, grad_scale: Tensor | None) -> None:
    params, grads, buffers = (column[part] for column in tensors)
    unscale(grads, grad_scale)
    flags: dict[str, Any] = {"foreach": False, "fused": False}
    options = {key: group[key] for key in HYPERPARAMETERS}
    sgd_beside_sparse(params, grads, buffers if group["momentum"] != 0 else [], **flags, **options)
    tensors[2][part] = buffers  # new ones among them


def sgd_beside_sparse(params: list[Any], grads: list[Any], buffers: list[Any], *args: Any, **options: Any) -> None:
    """torch's ``sgd``, with its bugs beside sparse gradients avoided.

    It cannot add a dense gradient to a sparse buffer. On the CPU it adds a sparse gradient without dense dimensions in
    the wrong place of a tensor with a storage offset, which it counts twice, be that beyond the end of the memory. So
    such a tensor is replaced by a clone, which has no offset, and copied back.
    """
    buffers[:] = [_dense_beside(*pair) for pair in zip(grads, buffers, strict=False)]  # none without momentum
    moved = [_at_offset_0(*pair) for pair in zip(params, grads, strict=True)]
    updated = [_at_offset_0(*pair) for pair in zip(buffers, grads, strict=False)]
    sgd(moved, grads, updated, *args, **options)
    for i, (tensor, clone) in enumerate(zip(buffers, updated, strict=True)):
        if tensor is None:
            buffers[i] = clone
    for tensor, clone in zip([*params, *buffers], [*moved, *updated], strict=True):
        if clone is not tensor:
            tensor.copy_(clone)


def _dense_beside(grad: Any, buffer: Any) -> Any:
    is_sparse = buffer is not None and buffer.layout is torch.sparse_coo
    return buffer.to_dense() if is_sparse and grad.layout is torch.strided else buffer


def _at_offset_0(tensor: Any, grad: Any) -> Any:
    """The tensor, or a clone where torch would add this gradient in the wrong place."""
    if not grad.is_sparse or tensor is None or tensor.layout is not torch.strided:
        return tensor
    is_misplaced = tensor.device.type == "cpu" and grad.dense_dim() == 0 and tensor.storage_offset() != 0
    return tensor.clone() if is_misplaced else tensor


def unscale(grads: list[Tensor], grad_scale: Tensor | None) -> None:
    """Divide gradients by the loss scale, in place as the fused op and GradScaler do."""
    if grad_scale is not None:
        for grad in grads:
            grad.div_(grad_scale.to(grad.device))


def takes_fused(group: Group, scheduled: bool) -> bool:
    """Whether a group goes through the fused update, and not through torch's ``sgd``.

    Flags that are set decide. Otherwise a group beside a policy takes the fused update, and plain SGD torch's default,
    because its results must equal torch's bit for bit.
    """
    if group["foreach"] or group["differentiable"]:
        return False
    return bool(group["fused"]) if group["fused"] is not None else scheduled and group["foreach"] is None
