"""How one SGD update is applied to lists of tensors, and which way of doing it a param group gets."""

from __future__ import annotations

from typing import Any

from .fused import HYPERPARAMETERS, fused_update, unscale
from .ordinary import update_ordinary

__all__ = ["HYPERPARAMETERS", "fused_update", "takes_fused", "unscale", "update_ordinary"]


def takes_fused(group: dict[str, Any], scheduled: bool) -> bool:
    """Whether a group with its flags goes through the fused update or through torch's own ``sgd``.

    Flags that were set are honoured. Unset, they mean torch's default for plain SGD, whose results
    must be torch's to the bit, and the fused update beside a policy.
    """
    if group["foreach"] or group["differentiable"]:
        return False
    return bool(group["fused"]) if group["fused"] is not None else scheduled and group["foreach"] is None
