"""How one SGD update is applied to lists of tensors, and which way of doing it a param group gets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .capturable import DeviceRow, PortableUpdate, Update
from .fused import HYPERPARAMETERS, dense_beside, fused_update, unscale
from .ordinary import update_ordinary

__all__ = [
    "HYPERPARAMETERS",
    "DeviceRow",
    "PortableUpdate",
    "Update",
    "choose_device_update",
    "dense_beside",
    "fused_update",
    "takes_fused",
    "unscale",
    "update_ordinary",
]


def choose_device_update(rows: list[DeviceRow]) -> Update:
    """The update of a capturable step: one Triton kernel on CUDA where Triton is usable, else plain operations."""
    if all(row.param.is_cuda for row in rows):
        try:
            triton_sgd = import_module(".triton_sgd", __name__)
            if triton_sgd.supports(rows):
                update: Update = triton_sgd.TritonUpdate(rows)
                return update
        except Exception:  # whatever ails Triton or the compiler it calls
            return PortableUpdate(rows)
    return PortableUpdate(rows)


def takes_fused(group: dict[str, Any], scheduled: bool) -> bool:
    """Whether a group with its flags goes through the fused update or through torch's own ``sgd``.

    Flags that were set are honoured. Unset, they mean torch's default for plain SGD, whose results
    must be torch's to the bit, and the fused update beside a policy.
    """
    if group["foreach"] or group["differentiable"]:
        return False
    return bool(group["fused"]) if group["fused"] is not None else scheduled and group["foreach"] is None
