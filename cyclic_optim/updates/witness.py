"""Noticing, on every step and cheaply, that tensors are still of the kind they were.

What has been worked out about a list of tensors (how to sort them, which call is right for them)
stays right as long as their types, dtypes, devices, shapes and strides do. Asking each tensor from
Python costs more than updating it does when it is small, so torch's own guards are asked, the ones that
torch.compile puts before its compiled code. They are not public: they are used only where a trial
shows that they notice everything that matters, and plain Python does it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Check = Callable[..., bool]


def slow_witness(tensors: list[Tensor]) -> Check:
    """A function of tensors: whether they are like the given ones, one by one."""
    expected = [*map(facts, tensors)]
    return lambda *others: [*map(facts, others)] == expected


def facts(tensor: Tensor | None) -> Any:
    """All of a tensor that decides how it is updated."""
    if tensor is None:
        return None
    place = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return type(tensor), tensor.dtype, tensor.device, tensor.shape, place, tensor.is_neg(), tensor._is_zerotensor()


def fast_witness(tensors: list[Tensor]) -> Check:
    """:func:`slow_witness` by torch's guards, for strided tensors."""
    guards: Any = torch._C._dynamo.guards.TensorGuards
    check: Check = guards(
        *tensors,
        dynamic_dims_sizes=[list(tensor.size()) for tensor in tensors],
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
    ).check
    count = len(tensors)  # with another number the guards raise
    return lambda *others: len(others) == count and check(*others)


def _guards_notice_everything() -> bool:
    # Whatever defaults the user has set.
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    like = torch.zeros(2, 3, **kind)
    unlike = [
        torch.zeros(3, 2, **kind).t(),
        torch.zeros(2, 3, dtype=torch.float64, device="cpu"),
        torch.zeros(2, 3, dtype=torch.float32, device="meta"),
        torch.zeros(2, 4, **kind),
        torch.nn.Parameter(torch.zeros(2, 3, **kind)),
        torch._neg_view(torch.zeros(2, 3, **kind)),
        torch._efficientzerotensor((2, 3), **kind),
    ]
    try:
        check = fast_witness([like, like])
        return check(like, torch.ones(2, 3, **kind)) and not any(check(like, other) for other in unlike)
    except (AttributeError, RuntimeError, SystemError, TypeError):
        return False


def witness(tensors: list[Tensor]) -> Check:
    """The faster of the two that is right here."""
    strided = all(tensor.layout is torch.strided for tensor in tensors)
    return fast_witness(tensors) if strided and _GUARDS_WORK else slow_witness(tensors)


_GUARDS_WORK = _guards_notice_everything()
