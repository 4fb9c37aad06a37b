"""The fused update of ordinary tensors, at the cost of little but the arithmetic."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import native
from ..grad_mode import with_grad
from ..torch_private import increment_version, modes_active
from .fused import SMALL, Group, Rows, State, by_op


def update_ordinary(groups: list[Group], state: State, grad_scale: Tensor | None) -> Rows:
    """Update all tensors that are as most tensors are; returns the others, for :func:`.fused.fused_update`.

    Beside a loss scale, which torch's op takes off the gradients, nothing but that op computes. A dispatch mode wants
    to see operations: then nothing is done here.
    """
    if native.compiled is None or modes_active():
        return [(group, group["params"]) for group in groups]
    done, calls, rest = native.compiled.update(groups, state, SMALL, grad_scale is not None)
    if done:
        increment_version(done)  # as torch's op does not, either
    if calls:
        with_grad(False, lambda: _call(groups, calls, grad_scale))
    return [(groups[group], params) for group, params in rest]


def _call(groups: list[Group], calls: list[Any], grad_scale: Tensor | None) -> None:
    for group, is_small, params, grads, buffers in calls:
        by_op(groups[group], params, grads, buffers, serial=is_small, grad_scale=grad_scale)
