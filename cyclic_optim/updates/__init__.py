"""How one SGD update is applied to lists of tensors, and which way of doing it a param group gets."""

from __future__ import annotations

from .fused import Buckets, fused_sgd, unscale

__all__ = ["Buckets", "fused_sgd", "takes_fused", "unscale"]


def takes_fused(scheduled: bool, foreach: bool | None, differentiable: bool, fused: bool | None) -> bool:
    """Whether a group with these flags goes through :func:`fused_sgd` or through torch's own ``sgd``.

    Flags that were set are honoured. Unset, they mean torch's default for plain SGD, whose results
    must be torch's to the bit, and the fused update beside a policy.
    """
    if foreach or differentiable:
        return False
    return bool(fused) if fused is not None else scheduled and foreach is None
