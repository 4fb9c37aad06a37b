"""The contents of tensors, cloned and copied back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .undo import Undo

#: Where the clones of tensors are kept during the test.
Place: TypeAlias = Literal["device", "cpu", "disk"]


def clone_contents(tensors: Iterable[tuple[str, Tensor]], keep: Place) -> list[Undo]:
    """Clone the tensors, each with its name; each Undo copies one back into the memory that it had."""
    named = [(name, tensor, _local(tensor)) for name, tensor in tensors]
    clones = _on_disk([(name, memory) for name, _, memory in named]) if keep == "disk" else None
    undos = []
    for index, (name, tensor, memory) in enumerate(named):
        clone = partial(_nth, clones, index) if clones else _in_memory(name, memory, keep)
        undos.append(Undo(name, partial(_copy_back, tensor, memory, _size(memory), clone)))
    return undos


def _local(tensor: Tensor) -> Tensor:
    """The tensor's memory under another tensor object: this rank's shard of a distributed one."""
    whole = tensor.detach()
    return whole.to_local() if hasattr(whole, "to_local") else whole


def _copy_back(tensor: Tensor, memory: Tensor, size: int, clone: Callable[[], Tensor]) -> None:
    if _size(memory) < size:
        memory.untyped_storage().resize_(size)
    now = tensor.detach()
    # tensor.data = ..., set_() and resize_() give a tensor other memory.
    if _is_plain(now) and _place(now) != _place(memory):
        tensor.data = memory
    with torch.no_grad():
        _each_element_once(memory).copy_(clone())


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has ordinary memory; that of a subclass may be of any kind."""
    return type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_nested


def _size(tensor: Tensor) -> int:
    """The bytes of the storage, which may be freed while the tensor lives."""
    return tensor.untyped_storage().nbytes() if _is_plain(tensor) else 0


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _each_element_once(tensor: Tensor) -> Tensor:
    """The tensor itself; of an expanded or overlapping view, the memory under it, which can be written to."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.numel() == 0 or not _overlaps(tensor):
        return tensor
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent,), (1,))


def _overlaps(tensor: Tensor) -> bool:
    """Whether two indices may mean the same element of a tensor that has some."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _in_memory(name: str, memory: Tensor, keep: Place) -> Callable[[], Tensor]:
    # clone() keeps the layout, and also bits that arithmetic does not distinguish (the payload of a NaN).
    with _naming(name, memory):
        elements = _each_element_once(memory)
        clone = elements.clone() if keep == "device" else elements.to("cpu", copy=True)
    return lambda: clone


def _on_disk(named: list[tuple[str, Tensor]]) -> Callable[[], list[Tensor]]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the clones are read)
    elements = []
    for name, memory in named:
        with _naming(name, memory):
            elements.append(_each_element_once(memory))
    torch.save(elements, file)

    @cache
    def clones() -> list[Tensor]:
        file.seek(0)
        loaded: list[Tensor] = torch.load(file, weights_only=True, map_location="cpu")
        file.close()
        return loaded

    return clones


@contextmanager
def _naming(name: str, tensor: Tensor) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise ValueError(f"need tensors that can be cloned, got {name} ({kind}): {error}") from error


def _nth(clones: Callable[[], list[Tensor]], index: int) -> Tensor:
    return clones()[index]
