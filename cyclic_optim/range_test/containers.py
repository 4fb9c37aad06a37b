"""Every tensor, dict, list and set that training may write to: found, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ..torch_private import MODULE_DICTS
from .random_states import array_types, generator_saver, generator_types
from .undo import Undo

#: What is entered to look for more.
ENTERED = (Tensor, torch.nn.Module, Optimizer, GradScaler, dict, list, tuple, set, deque)


class Found:
    """Every tensor, NumPy array, random generator and mutable container inside some objects, once, with a name.

    Modules, optimizers and scalers are entered through their ``vars()``, so that plain attributes count too: a tensor
    that is no buffer, a list of losses, a counter. Objects of other classes are not entered.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        self._containers: dict[int, tuple[str, Any]] = {}
        self._states: list[Undo] = []
        self._arrays = array_types()
        self._kinds = (*ENTERED, *self._arrays, *generator_types())

    def add(self, name: str, value: Any) -> None:
        """Find all that is in ``value``."""
        todo = [(name, value)]
        while todo:
            # Not recursive: models may be nested deeper than Python's stack.
            todo += reversed([*self._enter(*todo.pop())])

    def _enter(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Tensor):
            yield from self._enter_tensor(name, value)
        elif isinstance(value, torch.jit.ScriptModule):
            yield from self._enter_script(name, value)
        elif isinstance(value, (torch.nn.Module, Optimizer, GradScaler)):
            yield name, vars(value)
        elif isinstance(value, tuple):
            yield from self._entries(name, value)
        elif isinstance(value, ENTERED):
            if id(value) not in self._containers:
                self._containers[id(value)] = name, value
                yield from self._entries(name, value)
        elif isinstance(value, self._arrays):
            self._states.append(Undo(name, _save_array(value)))
        elif (saver := generator_saver(value)) is not None:
            self._states.append(Undo(name, saver(value)))

    def _enter_tensor(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if is_lazy(tensor):
            raise ValueError(f"need initialized lazy modules, got {name} without: call the model on a batch first")
        if id(tensor) not in self.tensors:
            self.tensors[id(tensor)] = name, tensor
            if tensor.is_leaf and tensor.grad is not None:
                yield f"{name}.grad", tensor.grad

    def _enter_script(self, name: str, module: torch.jit.ScriptModule) -> Iterator[tuple[str, Any]]:
        # What it holds is in C++ and not in vars().
        self._states.append(Undo(name, partial(module.train, module.training)))
        parts = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        yield from ((f"{name}.{key}", part) for key, part in (*parts, *module.named_children()))

    def _entries(self, name: str, container: Any) -> Iterator[tuple[str, Any]]:
        """What is worth entering in a container, with names."""
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        for place, (key, item) in enumerate(entries):
            if isinstance(item, self._kinds):
                yield _name(name, key, place), item

    def undos(self) -> list[Undo]:
        """What puts back which container holds which objects, and the states of generators and arrays."""
        undos = [Undo(name, partial(refill, value, _copy(value))) for name, value in self._containers.values()]
        # Modules before their parts: train() of a scripted module sets all of its parts.
        return undos + self._states

    def leaves(self) -> list[Undo]:
        """What puts back the gradients, and which leaf requires them; the contents of all tensors come before."""
        leaves = [(name, tensor) for name, tensor in self.tensors.values() if tensor.is_leaf]
        return [Undo(name, partial(_put_back_leaf, leaf, leaf.requires_grad, leaf.grad)) for name, leaf in leaves]


def _save_array(array: Any) -> Callable[[], object]:
    return partial(array.__setitem__, ..., array.copy())


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
