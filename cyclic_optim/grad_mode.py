"""Gradient mode for one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from .torch_private import set_grad_enabled

Result = TypeVar("Result")


def with_grad(enabled: bool, call: Callable[[], Result]) -> Result:
    """The result of a call with gradients enabled or not; the mode is restored in any case.

    No ``with`` block: an interrupt on its way in or out would leave the mode as it is there.
    """
    before = torch.is_grad_enabled()
    try:
        set_grad_enabled(enabled)
        return call()
    finally:
        set_grad_enabled(before)
