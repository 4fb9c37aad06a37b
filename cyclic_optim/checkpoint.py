"""What a state dict must be before anything is made of it: it comes from outside, and may hold anything.

torch's own loading copies, casts and indexes what it is given, and fails in the middle of that with whatever error
comes of it. Here everything that it would stumble over is refused first, by rules that say what is wrong. Nothing is
looked up, called or imported by a name in the dict.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .rules import shown

Group = dict[str, Any]

#: Levels of containers in a state dict; four or five are usual, and copying takes a stack for each.
MOST_LEVELS = 20

_CONTAINERS = (dict, list, tuple, set, frozenset)


def check_state_dict(state_dict: Any, groups: list[Group]) -> None:
    """Refuse what cannot be loaded into an optimizer of these param groups."""
    if not isinstance(state_dict, dict):
        raise TypeError(f"need a state dict as state_dict() returns it, got {shown(state_dict)}")
    if _nests_deeper(state_dict, MOST_LEVELS):
        raise ValueError(f"need a state dict of at most {MOST_LEVELS} levels, got one that is nested deeper")
    saved, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(state, dict) or not isinstance(saved, list):
        raise ValueError(
            "need a state dict with a dict 'state' and a list 'param_groups', "
            f"got {type(state).__name__} and {type(saved).__name__}"
        )
    for group in saved:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise ValueError(f"need param groups that are dicts with a list 'params', got {shown(group)}")
    _check_copies(saved)
    _check_state(state, _numbered(saved, groups))


def _nests_deeper(value: Any, levels: int) -> bool:
    """Whether containers lie in containers more than ``levels`` deep, or hold themselves."""
    level = [value]
    for _ in range(levels):
        # Each once, however many hold it: what is shared on every level would take for ever.
        level = list({id(item): item for holder in level for item in _contents(holder)}.values())
    return any(isinstance(item, _CONTAINERS) for item in level)


def _contents(holder: Any) -> Any:
    if isinstance(holder, dict):
        return holder.values()
    return holder if isinstance(holder, _CONTAINERS) else ()


def _check_copies(saved: list[Group]) -> None:
    """Loading copies the groups. What does not copy (a tensor with a graph behind it, a generator) is no data."""
    for group in saved:
        try:
            copy.deepcopy(group)
        except Exception as error:  # noqa: PERF203 (whatever it is; the message says of which group)
            raise ValueError(f"need param groups that can be copied, got {shown(group)}: {error}") from error


def _numbered(saved: list[Group], groups: list[Group]) -> dict[Any, Tensor]:
    """The parameters by the numbers that the state dict gives them."""
    numbered: dict[Any, Tensor] = {}
    for group, own in zip(saved, groups, strict=False):  # torch has errors of its own for what does not match
        for number, param in zip(group["params"], own["params"], strict=False):
            if not isinstance(number, (int, str)):
                raise ValueError(f"need 'params' to be numbers or names, got {shown(number)}")
            if numbered.setdefault(number, param) is not param:
                raise ValueError(f"need another number in 'params' for every parameter, got {number!r} twice")
    return numbered


def _check_state(state: dict[Any, Any], numbered: dict[Any, Tensor]) -> None:
    for number, kept in state.items():
        if not isinstance(number, (int, str)):
            raise ValueError(f"need 'state' by the numbers in 'params', got the key {shown(number)}")
        if not isinstance(kept, dict):
            raise ValueError(f"need the state of a parameter to be a dict, got {shown(kept)} for {number!r}")
        for key, value in kept.items():
            if isinstance(value, Iterable) and not isinstance(value, (Tensor, str, bytes)):
                raise ValueError(
                    f"need the state of a parameter to hold tensors and plain values, got {shown(key)}={shown(value)}"
                )
            if isinstance(value, Tensor):
                _check_tensor(key, value, numbered.get(number))
        buffer = kept.get("momentum_buffer")
        if buffer is not None and number in numbered:
            _check_buffer(buffer, numbered[number])


def _check_tensor(key: Any, value: Tensor, param: Tensor | None) -> None:
    """What torch is to cast must have elements, and know how to."""
    has_elements = value.device.type != "meta" or (param is not None and param.device.type == "meta")
    if value.is_quantized or not has_elements or value.layout not in (torch.strided, torch.sparse_coo):
        raise ValueError(
            "need tensors in the state that are strided or sparse COO, of plain numbers, "
            f"got {shown(key)} with {value.layout}, {value.dtype}, on {value.device}"
        )


def _check_buffer(buffer: Any, param: Tensor) -> None:
    if not isinstance(buffer, Tensor) or buffer.shape != param.shape:
        found = tuple(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
        raise ValueError(f"need a momentum_buffer of shape {tuple(param.shape)}, got {found}")
    if buffer.is_complex() != param.is_complex():
        raise ValueError(f"need a momentum_buffer of {param.dtype}, or one that becomes it, got {buffer.dtype}")
