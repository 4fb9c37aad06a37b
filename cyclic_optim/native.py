"""The compiled part of a step, ``_native.c``, where it is to be had.

It is built on installing, where there is a C compiler, and works with every torch that has DLPack's C exchange API
(2.10 and newer). Where it is missing, or finds something out of the ordinary, Python does the same.
"""

from __future__ import annotations

from types import ModuleType

import torch

compiled: ModuleType | None = None
try:
    from . import _native  # type: ignore[attr-defined]

    _native.use(torch.Tensor.__dlpack_c_exchange_api__, torch.Tensor, torch.nn.Parameter, torch._C.TensorBase.is_neg)
    compiled = _native
except (ImportError, AttributeError):  # not built; an older torch; a DLPack of tomorrow
    pass
