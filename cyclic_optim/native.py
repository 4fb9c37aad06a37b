"""The compiled part of a step, ``_native.c``, where it is available, and the same functions in Python.

Installing builds it where there is a C compiler. It works with every torch that has DLPack's C exchange API
(2.10 and newer). Where it is missing, or a tensor is not ordinary, Python does the same. It relies on the GIL, so
that a free-threaded Python does without it. The environment variable ``CYCLIC_OPTIM_NATIVE=0`` switches it off, to find
out whether a fault is its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections import deque
from collections.abc import Mapping
from functools import cache, reduce
from operator import and_, or_
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .torch_private import TENSOR_BYTES, impl_address, negated_view

Group: TypeAlias = dict[str, Any]
Columns: TypeAlias = tuple[Any, ...]

#: In a column: the key is absent (``holds``), or not written (``put``).
ABSENT: Any = ...


def find_negation() -> tuple[int, int, int]:
    """Where a tensor has its "negative" bit: (offset of its TensorImpl, offset of the keys, the key).

    ``is_neg`` is slow to call, and torch's memory layout is private. So find the "negative" bit by comparing the raw
    memory of negated and ordinary tensors, which otherwise differ in as much as possible: it is the one bit that is
    set in every negated tensor and in no other. Where there is no such bit, or more than one, or the C library does
    not say how much memory a TensorImpl has, all three are 0, and ``is_neg`` is called for each tensor.
    """
    plain: list[Tensor] = []
    negated: list[Tensor] = []
    dtypes, shapes = (torch.float32, torch.float64, torch.bfloat16), ((), (3,), (2, 0), (2, 3, 4))
    for number in range(24):
        base = torch.zeros(shapes[number % 4], dtype=dtypes[number % 3], device="cpu")
        tensors = [base, base.detach(), base.view_as(base), torch.nn.Parameter(base)]
        # The kinds alternate without a period (Thue-Morse sequence). Otherwise a bit of the addresses in a TensorImpl
        # might be set in one kind only, depending on where its tensors are in memory.
        if number.bit_count() % 2:
            views = [negated_view(tensor) for tensor in tensors]
            negated += [*views, *(view.detach() for view in views)]
        else:
            plain += tensors
    impl = [
        offset
        for offset in range(0, TENSOR_BYTES, 8)
        if all(_word(id(tensor) + offset) == impl_address(tensor) for tensor in (*plain, *negated))
    ]
    n_bytes = min(heap_bytes(impl_address(tensor)) for tensor in (*plain, *negated)) // 8 * 8
    bits = reduce(and_, _contents(negated, n_bytes)) & ~reduce(or_, _contents(plain, n_bytes))
    if len(impl) != 1 or bits.bit_count() != 1:
        return 0, 0, 0
    word = (bits.bit_length() - 1) // 64
    key = int.from_bytes((bits >> 64 * word).to_bytes(8, "little"), sys.byteorder)
    return impl[0], 8 * word, key


def heap_bytes(address: int) -> int:
    """The size of the block of heap memory that begins at an address; 0 where the C library does not say."""
    for name in ("malloc_usable_size", "malloc_size"):  # Linux; macOS
        try:
            size_of = getattr(ctypes.CDLL(None), name)
        except (AttributeError, OSError, TypeError):  # TypeError: Windows
            continue
        size_of.argtypes, size_of.restype = [ctypes.c_void_p], ctypes.c_size_t
        return int(size_of(address))
    return 0


def _word(address: int) -> int:
    return int.from_bytes(ctypes.string_at(address, 8), sys.byteorder)


def _contents(tensors: list[Tensor], n_bytes: int) -> list[int]:
    """The memory of each TensorImpl as one integer, first byte lowest."""
    return [int.from_bytes(ctypes.string_at(impl_address(tensor), n_bytes), "little") for tensor in tensors]


def _is_switched_on() -> bool:
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise ValueError(f"need {SWITCH}=0 (do without the compiled part) or 1, got {value!r}")
    return value == "1"


#: The environment variable that switches the compiled part off, read when this module is imported.
SWITCH = "CYCLIC_OPTIM_NATIVE"

#: What ``_native`` needs of torch; None without DLPack's exchange API (torch 2.9 and older).
OF_TORCH: Any = None
compiled: ModuleType | None = None
try:
    if _is_switched_on():
        from . import _native  # type: ignore[attr-defined]

        OF_TORCH = (
            torch.Tensor.__dlpack_c_exchange_api__,
            torch.Tensor,
            torch.nn.Parameter,
            torch.Tensor.is_neg,
            torch.nn.Parameter.grad,
        )
        _native.use(*OF_TORCH, 0, 0, 0)
        compiled = _native
except (ImportError, AttributeError, TypeError):  # not built; an older torch; a newer torch or DLPack that differs
    pass


def prepare() -> None:
    """Get ready for the first update: what takes too long on import."""
    if compiled is not None:
        _use_negation(compiled)


@cache
def _use_negation(part: ModuleType) -> None:
    part.use(*OF_TORCH, *find_negation())


def holds(groups: list[Group], keys: tuple[str, ...], columns: Columns) -> bool:
    """Whether ``groups[i][keys[k]] is columns[k][i]`` everywhere.

    ``...`` in a column stands for an absent key, a weak reference for what it refers to; a column that is no list is
    one value for all groups. False for columns of other lengths, and for groups that are no list of dicts.
    """
    if compiled is not None:
        held: bool = compiled.holds(groups, keys, columns)
        return held
    _check_keys_and_columns(keys, columns)
    if not isinstance(groups, list) or any(isinstance(one, list) and len(one) != len(groups) for one in columns):
        return False
    if not all(isinstance(group, dict) for group in groups):
        return False
    return all(
        dict.get(group, key, _NOTHING) is _meant(item)
        for key, column in zip(keys, columns, strict=True)
        for group, item in zip(groups, _items(column, len(groups)), strict=True)
    )


def _items(column: Any, n: int) -> list[Any]:
    return column if isinstance(column, list) else [column] * n


_NOTHING = object()


def _meant(item: Any) -> Any:
    if item is ABSENT:
        return _NOTHING
    return item() if type(item) is weakref.ref else item


def put(groups: list[Group], keys: tuple[str, ...], columns: Columns) -> None:
    """Set ``groups[i][keys[k]] = columns[k][i]`` everywhere, except where a column has ``...``.

    A column that is no list is one value for all groups.

    Everything is checked first: where an argument has a wrong type or length, nothing is written. No signal
    handler runs between the first write and the last. A subclass of dict is written to as a plain dict.
    """
    if compiled is not None:
        compiled.put(groups, keys, columns)
        return
    _check_put(groups, keys, columns)
    rows = [
        {key: item for key, item in zip(keys, items, strict=True) if item is not ABSENT}
        for items in zip(*(_items(column, len(groups)) for column in columns), strict=True)
    ]
    # Freeing an old value may run its finalizer, any Python code: so all of them live until everything is written.
    old = [dict.get(group, key) for group in groups for key in keys]
    # Python handles signals between its own instructions, and this is a single one.
    deque(map(dict.update, groups, rows), maxlen=0)
    del old


def scaled(numbers: list[float], factor: float) -> list[float]:
    """``[number * factor for number in numbers]`` for floats."""
    if compiled is not None:
        products: list[float] = compiled.scaled(numbers, factor)
        return products
    _need_type(list, numbers, "numbers to be a list")
    if type(factor) is not float:
        raise _wrong_type("factor to be a float", factor)
    for number in numbers:
        if type(number) is not float:
            raise _wrong_type("each number to be a float", number)
    return [number * factor for number in numbers]


def layout(
    groups: list[Group], state: Mapping[Tensor, dict[str, Any]], keys: tuple[str, ...]
) -> tuple[bytes, bytes] | None:
    """The memory layout of each parameter with a gradient, its state and its gradient; ``_native.c`` has the format.

    Tables of addresses that were made for one result are valid for every result with equal bytes. None where any
    tensor is not ordinary, and without the compiled part.
    """
    return None if compiled is None else compiled.layout(groups, state, keys)


def _wrong_type(rule: str, got: object) -> TypeError:
    return TypeError(f"need {rule}, got {type(got).__name__}")


def _need_type(cls: type, got: object, rule: str) -> None:
    if not isinstance(got, cls):
        raise _wrong_type(rule, got)


def _need_n(n: int, rule: str, expected: int) -> None:
    if n != expected:
        raise ValueError(f"need {rule}, got {n} and {expected}")


def _check_keys_and_columns(keys: tuple[str, ...], columns: Columns) -> None:
    _need_type(tuple, keys, "keys to be a tuple")
    for key in keys:
        if type(key) is not str:
            raise _wrong_type("each key to be a str", key)
    _need_type(tuple, columns, "columns to be a tuple")
    _need_n(len(columns), "as many columns as keys", len(keys))


def _check_put(groups: list[Group], keys: tuple[str, ...], columns: Columns) -> None:
    _need_type(list, groups, "groups to be a list")
    _check_keys_and_columns(keys, columns)
    for group in groups:
        if not isinstance(group, dict):
            raise _wrong_type("each group to be a dict", group)
    for column in columns:
        if isinstance(column, list):
            _need_n(len(column), "one item per group in each column", len(groups))
