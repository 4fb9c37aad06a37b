"""Param groups during a range test: the rates climb in proportion, all else is held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..slots import OWN_DECAY


def peaks_of(optimizer: Optimizer) -> list[float]:
    """The rate of each param group that the user set."""
    # The peak of a schedule. The current rate may be anywhere on it.
    return [float(group.get("max_lr", group["lr"])) for group in optimizer.param_groups]


def ratios_of(peaks: list[float]) -> tuple[float, ...]:
    """The rate of each param group over the first one's."""
    if not peaks[0] > 0:
        raise ValueError(f"need a first param group with 0 < lr, to which the others' rates relate, got lr={peaks[0]}")
    return tuple(peak / peaks[0] for peak in peaks)


def maximizes(optimizer: Optimizer) -> bool:
    """Whether the optimizer climbs."""
    flags = {bool(group.get("maximize", False)) for group in optimizer.param_groups}
    if len(flags) > 1:
        raise ValueError(
            "need all param groups to maximize, or none, got both: with two optimizers, test one and pass the other in "
            "also=(...)"
        )
    return flags == {True}


def check_trainable(optimizer: Optimizer) -> None:
    """Refuse an optimizer without a parameter that requires a gradient."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if not any(param.requires_grad for param in params):
        raise ValueError(f"need a parameter with requires_grad=True in the optimizer, got none among {len(params)}")


def held_values(group: dict[str, Any]) -> dict[str, Any]:
    """The current values that are held: momentum, and a weight decay that a policy moves."""
    keys = ("momentum", "weight_decay") if OWN_DECAY in group else ("momentum",)
    return {key: _number(group[key]) for key in keys if group.get(key) is not None}


def set_rates(optimizer: Optimizer, lr: float, ratios: tuple[float, ...], held: list[dict[str, Any]]) -> None:
    """Write the values of the next step into the param groups."""
    for group, ratio, values in zip(optimizer.param_groups, ratios, held, strict=True):
        for key, value in {"lr": lr * ratio, **values}.items():
            _write(group, key, value)


def _write(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group[key], Tensor):
        with torch.no_grad():
            group[key].fill_(value)
    else:
        group[key] = value


def _number(value: Any) -> Any:
    """The current value as a number, if it is a tensor that the optimizer may write to."""
    return value.item() if isinstance(value, Tensor) else value
