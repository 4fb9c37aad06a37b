"""The fused update of ordinary tensors, with little overhead."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import native
from ..grad_mode import with_grad
from ..torch_private import dispatch_modes, function_modes, increment_version, modes_active, tangents_active
from .fused import SMALL, Group, Rows, State, by_op, read_rows


def update_ordinary(groups: list[Group], state: State, grad_scale: Tensor | None) -> Rows:
    """Update all ordinary tensors (``_native.c`` says which); returns the others, for :func:`.fused.fused_update`.

    With a loss scale all of them go through torch's op, which divides the gradients by it. Everything is
    returned under a dispatch mode, which has to see the operations, in forward-mode AD, and where a group holds an
    unusual number or flag, which is to be checked before anything moves.
    """
    if native.compiled is None or _is_watched():
        return read_rows(groups)
    done, calls, rest = native.compiled.update(groups, state, SMALL, grad_scale is not None)
    if done:
        increment_version(done)  # as torch's op does not, either
    if calls:
        with_grad(False, lambda: _call(groups, calls, grad_scale))
    return [(groups[group], params, grads) for group, params, grads in rest]


def _is_watched() -> bool:
    """Whether the update is more than what happens to the numbers in memory."""
    return ((dispatch_modes() or function_modes()) and modes_active()) or tangents_active()


def _call(groups: list[Group], calls: list[Any], grad_scale: Tensor | None) -> None:
    for group, is_small, params, grads, buffers in calls:
        by_op(groups[group], params, grads, buffers, serial=is_small, grad_scale=grad_scale)
