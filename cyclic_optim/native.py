"""The compiled part of a step, ``_native.c``, where it is to be had.

It is built on installing, where there is a C compiler, and works with every torch that has DLPack's C exchange API
(2.10 and newer). Where it is missing, or finds something out of the ordinary, Python does the same.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from functools import reduce
from operator import and_, or_
from types import ModuleType

import torch
from torch import Tensor

#: Of a c10::TensorImpl: no torch has had fewer for years, and torch's header asserts that there are no more than 26.
WORDS = range(22, 27)


def find_negation() -> tuple[int, int, int]:
    """Where a tensor says that it is a lazily negated view: (offset of its pointer, offset of its keys, the key).

    torch has no cheap way to ask and its layout in memory is its own. So look: of tensors that differ in as much
    as may be, one bit is set in each negated one and in no other. That bit is the key; should there be none or
    several, all three are 0 and tensors are asked one by one.
    """
    plain: list[Tensor] = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((), (3,), (2, 0), (2, 3, 4)):
            tensor = torch.zeros(shape, dtype=dtype, device="cpu")
            plain += [tensor, tensor.detach(), tensor.view_as(tensor), torch.nn.Parameter(tensor)]
    negated = [torch._neg_view(tensor) for tensor in plain]
    negated += [tensor.detach() for tensor in negated]
    size = torch._C.TensorBase.__basicsize__ // 8
    pointers = [[address == tensor._cdata for address in _words(id(tensor), size)] for tensor in (*plain, *negated)]
    impl = [8 * i for i, found in enumerate(zip(*pointers, strict=True)) if all(found)]
    keys: list[tuple[int, int]] = []
    for words in WORDS:  # the keys are the last member: not to have found them is to know that there is more to read
        columns = zip(_columns(negated, words), _columns(plain, words), strict=True)
        keys = [
            (8 * i, key) for i, (set_, clear) in enumerate(columns) if (key := reduce(and_, set_) & ~reduce(or_, clear))
        ]
        if keys:
            break
    if len(impl) != 1 or len(keys) != 1 or keys[0][1].bit_count() != 1:
        return 0, 0, 0
    return impl[0], *keys[0]


def _words(address: int, n: int) -> tuple[int, ...]:
    return struct.unpack(f"{n}Q", ctypes.string_at(address, 8 * n))


def _columns(tensors: list[Tensor], words: int) -> Iterable[tuple[int, ...]]:
    return zip(*(_words(tensor._cdata, words) for tensor in tensors), strict=True)


compiled: ModuleType | None = None
try:
    from . import _native  # type: ignore[attr-defined]

    OF_TORCH = (
        torch.Tensor.__dlpack_c_exchange_api__,
        torch.Tensor,
        torch.nn.Parameter,
        torch._C.TensorBase.is_neg,
        torch.nn.Parameter.grad,
    )
    _native.use(*OF_TORCH, *find_negation())
    compiled = _native
except (ImportError, AttributeError, TypeError):  # not built; an older torch; a torch or DLPack of tomorrow
    pass
