"""The update in plain torch operations, without a host-device sync: for CUDA graphs, torch.compile and any device."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..torch_private import foreach_add, foreach_copy_, foreach_div, foreach_mul, foreach_neg, foreach_sub

_HALF = (torch.float16, torch.bfloat16)


class DeviceRow(NamedTuple):
    """One parameter and all that its update depends on; tensors are read when the update runs."""

    param: Tensor
    buffer: Tensor | None  # None: the group never has momentum
    started: Tensor | None  # 0 until the first applied update, then 1; None without dampening
    lr: Tensor  # 0-dim, float32, of the group
    momentum: Tensor
    dampening: float
    weight_decay: float | Tensor  # a tensor like lr where a policy moves it
    nesterov: bool
    maximize: bool


# Functions, because torch 2.6 compiles no property of a named tuple.


def decay_at(row: DeviceRow) -> Tensor | None:
    """The tensor that holds a row's weight decay, if one does."""
    return row.weight_decay if isinstance(row.weight_decay, Tensor) else None


def options_of(row: DeviceRow) -> tuple[Any, ...]:
    """What rows that are updated together have in common, beside lr and momentum; a tensor by identity."""
    decay = row.weight_decay if decay_at(row) is None else id(row.weight_decay)
    return row.dampening, decay, decay_at(row) is None, row.nesterov, row.maximize


class Update(Protocol):
    """Built before anything is captured; called with the gradients of its rows.

    ``addresses``, the packed int64 addresses of the gradients, are given only where all tensors are known to be where
    they were when the update was built, and every gradient to be laid out like its parameter.
    """

    def __init__(self, rows: list[DeviceRow]) -> None: ...

    def __call__(
        self,
        grads: list[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        addresses: bytes | None = None,
    ) -> None: ...


class PortableUpdate:
    """The update of ``rows``, in operations on lists of tensors.

    Half precision is computed in float32. Gradients are not written to: ``grad_scale`` divides copies. A ``found_inf``
    other than 0 skips the step.
    """

    def __init__(self, rows: list[DeviceRow]) -> None:
        self._alike: dict[Any, list[int]] = {}
        self.rows = rows
        for i, row in enumerate(rows):
            kind = (id(row.lr), row.param.dtype, row.buffer is None, row.started is None, *options_of(row))
            self._alike.setdefault(kind, []).append(i)

    def __call__(
        self,
        grads: list[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        addresses: bytes | None = None,
    ) -> None:
        for indices in self._alike.values():
            _update_alike([self.rows[i] for i in indices], [grads[i] for i in indices], grad_scale, found_inf)


def _update_alike(rows: list[DeviceRow], grads: Any, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Update parameters of one group and dtype."""
    first, device = rows[0], rows[0].param.device
    dtype = torch.float32 if first.param.dtype in _HALF else first.param.dtype
    targets = [row.param for row in rows]
    params = [param.to(dtype) for param in targets]
    lr, momentum = first.lr.to(dtype), first.momentum.to(dtype)
    with_buffers = momentum != 0  # at 0, SGD neither reads nor writes buffers
    grads = [grad.to(dtype) for grad in grads]
    if grad_scale is not None:
        grads = foreach_div(grads, grad_scale.to(device, dtype).reshape(()))
    if first.maximize:
        grads = foreach_neg(grads)
    grads = _decayed(first, grads, params)
    if found_inf is not None:
        skip = found_inf.to(device).reshape(()) != 0
        # 0 times an infinite gradient would be NaN.
        grads = [grad.masked_fill(skip, 0.0) for grad in grads]
        lr = torch.where(skip, 0.0, lr)
        with_buffers = with_buffers & ~skip
    steps = grads if first.buffer is None else _with_momentum(rows, grads, momentum, with_buffers)
    new = foreach_sub(params, foreach_mul(steps, lr))
    _write(targets, new)


def _decayed(first: DeviceRow, grads: Any, params: list[Tensor]) -> Any:
    """The gradients with weight decay added."""
    if isinstance(first.weight_decay, Tensor):
        decay = first.weight_decay.to(params[0].dtype)
        decayed: Any = foreach_add(grads, foreach_mul(params, decay))
        # 0 times an infinite parameter would be NaN.
        return [torch.where(decay != 0, *pair) for pair in zip(decayed, grads, strict=True)]
    return foreach_add(grads, params, alpha=first.weight_decay) if first.weight_decay != 0 else grads


def _with_momentum(rows: list[DeviceRow], grads: list[Tensor], momentum: Tensor, with_buffers: Tensor) -> Any:
    """The directions of the update. Buffers are updated where ``with_buffers``, and unchanged elsewhere."""
    first, targets = rows[0], [row.buffer for row in rows if row.buffer is not None]
    old_weight = torch.where(with_buffers, momentum, 1.0)
    new_weight: Any = with_buffers.to(momentum.dtype)
    if first.started is None:
        added: Any = foreach_mul(grads, new_weight)
    else:
        started = [row.started for row in rows if row.started is not None]
        weights: list[Any] = [new_weight * (1 - first.dampening * flag.to(new_weight.dtype)) for flag in started]
        added = [grad * weight for grad, weight in zip(grads, weights, strict=True)]
        foreach_copy_(started, [torch.where(with_buffers, 1.0, flag) for flag in started])
    old: Any = [buffer.to(grad.dtype) for buffer, grad in zip(targets, grads, strict=True)]
    buffers = foreach_add(foreach_mul(old, old_weight), added)
    _write(targets, buffers)
    if first.nesterov:
        return foreach_add(grads, foreach_mul(buffers, momentum))
    return [torch.where(with_buffers, buffer, grad) for buffer, grad in zip(buffers, grads, strict=True)]


def _write(targets: list[Tensor], values: Any) -> None:
    # Foreach cannot write to negated views. torch.compile cannot trace is_neg.
    if not torch.compiler.is_compiling() and any(map(Tensor.is_neg, targets)):
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
    else:
        foreach_copy_(targets, values)
