"""The update in plain torch operations that never ask the host: for graphs, for torch.compile, on any backend."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..torch_private import foreach_add, foreach_copy_, foreach_div, foreach_mul, foreach_neg, foreach_sub

_HALF = (torch.float16, torch.bfloat16)


class DeviceRow(NamedTuple):
    """One parameter to update, with all that decides how; tensors are read when the update runs."""

    param: Tensor
    buffer: Tensor | None  # None: the group never has momentum
    started: Tensor | None  # 0 until the first applied update, then 1; None without dampening, where it is of no use
    lr: Tensor  # 0-dim, float32, of the group
    momentum: Tensor
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


class Update(Protocol):
    """Built before anything is captured; called with the gradients of its rows.

    ``addresses`` are theirs, as packed int64, where it is known that every tensor is as it was when the update was
    built, and every gradient laid out like its parameter.
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
    """The update of ``rows``, a list of tensors at a time.

    Half precision is computed in float32. Gradients are divided by ``grad_scale`` on the way and left as they are.
    A ``found_inf`` other than 0 leaves everything as it was.
    """

    def __init__(self, rows: list[DeviceRow]) -> None:
        self._alike: dict[Any, list[int]] = {}
        self.rows = rows
        for i, row in enumerate(rows):
            options = row.dampening, row.weight_decay, row.nesterov, row.maximize  # no slice: torch 2.6 compiles none
            kind = (id(row.lr), row.param.dtype, row.buffer is None, row.started is None, *options)
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
    kept = [row.param for row in rows]
    params = [param.to(dtype) for param in kept]
    lr, momentum = first.lr.to(dtype), first.momentum.to(dtype)
    moves = momentum != 0  # at 0, SGD has no use for buffers and leaves them
    grads = [grad.to(dtype) for grad in grads]
    if grad_scale is not None:
        grads = foreach_div(grads, grad_scale.to(device, dtype).reshape(()))
    if first.maximize:
        grads = foreach_neg(grads)
    if first.weight_decay != 0:
        grads = foreach_add(grads, params, alpha=first.weight_decay)
    if found_inf is not None:
        skip = found_inf.to(device).reshape(()) != 0
        # What overflowed must be gone before it is multiplied by 0.
        grads = [grad.masked_fill(skip, 0.0) for grad in grads]
        lr = torch.where(skip, 0.0, lr)
        moves = moves & ~skip
    steps = grads if first.buffer is None else _with_momentum(rows, grads, momentum, moves)
    news = foreach_sub(params, foreach_mul(steps, lr))
    _write(kept, news)


def _with_momentum(rows: list[DeviceRow], grads: list[Tensor], momentum: Tensor, moves: Tensor) -> Any:
    """The directions to go; buffers are moved on where ``moves``, and stay what they are elsewhere."""
    first, kept = rows[0], [row.buffer for row in rows if row.buffer is not None]
    stays = torch.where(moves, momentum, 1.0)
    shares: Any = moves.to(momentum.dtype)
    if first.started is None:
        added: Any = foreach_mul(grads, shares)
    else:
        started = [row.started for row in rows if row.started is not None]
        each: list[Any] = [shares * (1 - first.dampening * flag.to(shares.dtype)) for flag in started]
        added = [grad * share for grad, share in zip(grads, each, strict=True)]
        foreach_copy_(started, [torch.where(moves, 1.0, flag) for flag in started])
    old: Any = [buffer.to(grad.dtype) for buffer, grad in zip(kept, grads, strict=True)]
    buffers = foreach_add(foreach_mul(old, stays), added)
    _write(kept, buffers)
    if first.nesterov:
        return foreach_add(grads, foreach_mul(buffers, momentum))
    return [torch.where(moves, buffer, grad) for buffer, grad in zip(buffers, grads, strict=True)]


def _write(kept: list[Tensor], news: Any) -> None:
    # Which foreach refuses to write to. torch.compile cannot trace the question.
    if not torch.compiler.is_compiling() and any(map(Tensor.is_neg, kept)):
        for tensor, new in zip(kept, news, strict=True):
            tensor.copy_(new)
    else:
        foreach_copy_(kept, news)
