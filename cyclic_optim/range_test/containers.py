"""Every tensor, dict, list and set that training may write to: found, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ..torch_private import MODULE_DICTS
from .undo import Undo

#: What is entered to look for more.
ENTERED = (Tensor, torch.nn.Module, Optimizer, dict, list, tuple, set, deque)


class Found:
    """Every tensor and every mutable container inside some objects, once, with a name for errors.

    Modules and optimizers are entered through their ``vars()``, so that plain attributes count too: a tensor that is
    no buffer, a list of losses, a counter.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        self._containers: dict[int, tuple[str, Any]] = {}

    def add(self, name: str, value: Any) -> None:
        """Find all that is in ``value``."""
        todo = [(name, value)]
        while todo:
            # Not recursive: models may be nested deeper than Python's stack.
            todo += reversed([*self._enter(*todo.pop())])

    def _enter(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Tensor):
            yield from self._enter_tensor(name, value)
        elif isinstance(value, (torch.nn.Module, Optimizer)):
            yield name, vars(value)
        elif isinstance(value, tuple):
            yield from _entries(name, value)
        elif id(value) not in self._containers:
            self._containers[id(value)] = name, value
            yield from _entries(name, value)

    def _enter_tensor(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if is_lazy(tensor):
            raise ValueError(f"need initialized lazy modules, got {name} without: call the model on a batch first")
        if id(tensor) not in self.tensors:
            self.tensors[id(tensor)] = name, tensor
            if tensor.is_leaf and tensor.grad is not None:
                yield f"{name}.grad", tensor.grad

    def undos(self) -> list[Undo]:
        """What puts back which container holds which objects."""
        return [Undo(name, partial(refill, value, _copy(value))) for name, value in self._containers.values()]

    def leaves(self) -> list[Undo]:
        """What puts back the gradients, and which leaf requires them; the contents of all tensors come before."""
        leaves = [(name, tensor) for name, tensor in self.tensors.values() if tensor.is_leaf]
        return [Undo(name, partial(_put_back_leaf, leaf, leaf.requires_grad, leaf.grad)) for name, leaf in leaves]


def _entries(name: str, container: Any) -> Iterator[tuple[str, Any]]:
    """What is worth entering in a container, with names."""
    entries = container.items() if isinstance(container, dict) else enumerate(container)
    for place, (key, item) in enumerate(entries):
        if isinstance(item, ENTERED):
            yield _name(name, key, place), item


def _name(container: str, key: Any, place: int) -> str:
    if not isinstance(key, str):
        return f"{container}[{place}]"
    return container if key in MODULE_DICTS else f"{container}.{key}"


def _put_back_leaf(leaf: Tensor, requires_grad: bool, grad: Tensor | None) -> None:
    if not leaf.is_leaf:  # a buffer that was written to in place from what autograd follows
        leaf.detach_()
    if leaf.requires_grad != requires_grad:
        leaf.requires_grad_(requires_grad)
    leaf.grad = grad


def _copy(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def refill(container: Any, saved: Any) -> None:
    """Put back the very objects that were in a container, unless they are there."""
    now = _copy(container)
    if len(now) == len(saved) and all(a is b for a, b in zip(_flat(now), _flat(saved), strict=True)):
        return
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(saved)


def _flat(copied: Any) -> Iterator[Any]:
    """The keys and values of a dict, the items of a list."""
    if isinstance(copied, dict):
        yield from copied.keys()
        yield from copied.values()
    else:
        yield from copied
