"""torch's fused SGD op, with everything that it gets wrong kept away from it.

The op walks memory and knows one flag for all its tensors, so it is right only for plain, dense,
floating-point tensors of one dtype and device whose parameter, gradient and buffer lie in memory
alike, and which have either all stepped before or all not. On the CPU it is wrong for half precision.
Tensors are therefore sorted into buckets: one call of the op for each kind that it can do, torch's exact
loop for the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.sgd import sgd
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .witness import Check, witness

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# torch 2.13's op on the CPU leaves all but a few parameters of half precision where they were.
_DTYPES_ON_CPU = {torch.float32, torch.float64}
_PLAIN = {Tensor, Parameter}


class Bucket(NamedTuple):
    """Tensors that one call can update."""

    device: torch.device
    first: bool  # none of them has a momentum buffer yet
    fused: bool  # the op is right for them
    members: Sequence[bool]  # one flag for each tensor of the group


class Buckets:
    """How one param group's tensors fall into buckets, sorted anew only when something about them changes."""

    def __init__(self) -> None:
        self._buckets: list[Bucket] = []
        self._counts: tuple[int, int] | None = None
        self._same: Check | None = None

    def of(self, params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None]) -> list[Bucket]:
        if any(buffer is None for buffer in buffers):
            self._counts = None  # first steps are not worth remembering
            return _sort(params, grads, buffers)
        tensors: list[Any] = [*params, *grads, *buffers]
        counts = len(params), len(buffers)
        # All that the sorting depends on, every time: stale buckets would be silently wrong.
        if self._counts == counts and self._same is not None and self._same(*tensors):
            return self._buckets
        self._buckets = _sort(params, grads, buffers)
        # Where another set of parameters has gradients at every step, remembering one is lost labour.
        self._same = witness(tensors) if self._counts == counts else None
        self._counts = counts
        return self._buckets


def _sort(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None]) -> list[Bucket]:
    kinds = [
        (param.dtype, param.device, buffer is None and bool(buffers), _fusible(param, grad, buffer))
        for param, grad, buffer in zip(params, grads, buffers or [None] * len(params), strict=True)
    ]
    return [
        Bucket(device, first, fused, [other == kind for other in kinds])
        for kind in dict.fromkeys(kinds)
        for _, device, first, fused in [kind]
    ]


def _fusible(param: Tensor, *others: Tensor | None) -> bool:
    tensors = [param, *(other for other in others if other is not None)]
    device = param.device
    return (
        all(type(t) in _PLAIN and t.layout is torch.strided and not t.is_neg() for t in tensors)
        and param.dtype in (_DTYPES_ON_CPU if device.type == "cpu" else _DTYPES)
        and device.type in _get_fused_kernels_supported_devices()
        and all(t.dtype is param.dtype and t.device == device and t.shape == param.shape for t in tensors)
        and _lie_alike(tensors)
    )


def _lie_alike(tensors: list[Tensor]) -> bool:
    # Strides of dimensions of size 1 may differ without meaning anything; contiguity looks past them.
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    same = len({tensor.stride() for tensor in tensors}) == 1
    return same and bool(torch.ops.aten.is_non_overlapping_and_dense(tensors[0]))


def fused_sgd(
    buckets: Buckets,
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffer_list: list[Tensor | None],
    *,
    weight_decay: float,
    momentum: float,
    lr: float | Tensor,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> list[int]:
    """One SGD update, with the arguments of :func:`torch.optim.sgd.sgd`.

    ``momentum_buffer_list`` holds None for a tensor that has not stepped yet, and its new buffer
    afterwards; it is empty where ``momentum`` is 0, which leaves buffers as they are. A ``found_inf`` of
    any non-zero value makes all of it do nothing; gradients are left divided by ``grad_scale``, as the
    op leaves them.

    Returns:
        The indices of the tensors that got their buffer just now.
    """
    if not params:
        return []
    shards, grad_shards, buffer_shards = _local(params, grads, momentum_buffer_list)
    chosen = buckets.of(shards, grad_shards, buffer_shards)
    if found_inf is not None:
        # Creating a buffer and torch's own loop are decided on the host; the op can decide by itself.
        if found_inf.device.type == "cpu" or any(bucket.first or not bucket.fused for bucket in chosen):
            if found_inf.item() != 0:
                return []
            found_inf = None
        else:
            found_inf = (found_inf != 0).to(torch.float32)  # the op itself knows 1 alone
    new = [i for i, buffer in enumerate(momentum_buffer_list) if buffer is None]
    options: dict[str, Any] = {
        "weight_decay": weight_decay,
        "momentum": momentum,
        "lr": lr,
        "dampening": dampening,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    for bucket in chosen:
        whole = len(chosen) == 1
        if not bucket.fused:
            _exact(bucket, params, grads, momentum_buffer_list, grad_scale, options)
            continue
        if bucket.first:
            _create(bucket, params, momentum_buffer_list)
            _, _, buffer_shards = _local(params, grads, momentum_buffer_list)
        lists: list[list[Any]] = [shards, grad_shards, buffer_shards]
        if not whole:
            lists = [list(compress(tensors, bucket.members)) for tensors in lists]
        torch._fused_sgd_(
            *lists,
            **options,
            is_first_step=bucket.first,
            grad_scale=None if grad_scale is None else grad_scale.to(bucket.device),
            found_inf=None if found_inf is None else found_inf.to(bucket.device),
        )
    return new


def _create(bucket: Bucket, params: list[Tensor], buffers: list[Tensor | None]) -> None:
    for i, member in enumerate(bucket.members):
        if member:
            # Zeros rather than uninitialised memory: whatever comes between, nothing foreign is in it.
            buffers[i] = torch.zeros_like(params[i], requires_grad=False)


def _exact(
    bucket: Bucket,
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor | None],
    grad_scale: Tensor | None,
    options: dict[str, Any],
) -> None:
    members = [i for i, member in enumerate(bucket.members) if member]
    own_grads = [grads[i] for i in members]
    unscale(own_grads, grad_scale)
    own_buffers = [buffers[i] for i in members] if buffers else []
    sgd([params[i] for i in members], own_grads, own_buffers, foreach=False, fused=False, **options)
    for i, buffer in zip(members, own_buffers, strict=False):
        buffers[i] = buffer


def unscale(grads: list[Tensor], grad_scale: Tensor | None) -> None:
    """Divide gradients by the loss scale, in place as the fused op and GradScaler do."""
    if grad_scale is not None:
        for grad in grads:
            grad.div_(grad_scale.to(grad.device))


def _local(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None]) -> tuple[list[Any], ...]:
    """The lists with DTensors replaced by their local shards, where all three are sharded alike.

    The update is elementwise, so shards can be updated where they lie; the op itself refuses DTensors.
    """
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or _PLAIN.issuperset(map(type, params)):
        return params, grads, buffers
    sharded = distributed.DTensor

    def shards(*tensors: Tensor | None) -> tuple[Any, ...]:
        given = [tensor for tensor in tensors if tensor is not None]
        if not all(isinstance(tensor, sharded) for tensor in given):
            return tensors
        if len({(tensor.device_mesh, tensor.placements) for tensor in given}) > 1:  # type: ignore[attr-defined]
            return tensors
        if any(placement.is_partial() for placement in given[0].placements):  # type: ignore[attr-defined]
            return tensors
        return tuple(None if tensor is None else tensor.to_local() for tensor in tensors)  # type: ignore[attr-defined]

    rows = [shards(*row) for row in zip(params, grads, buffers or [None] * len(params), strict=True)]
    local_params, local_grads, local_buffers = map(list, zip(*rows, strict=True))
    return local_params, local_grads, local_buffers if buffers else []
