"""Param groups during a range test: the rates climb in proportion, all else is held."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..slots import LR, OWN_DECAY, Group, Slot, Slots, slots_of


def peaks_of(optimizer: Optimizer) -> list[float]:
    """The rate of each param group that the user set."""
    # The peak of a schedule. The current rate may be anywhere on it.
    return [float(group.get("max_lr", group["lr"])) for group in optimizer.param_groups]


def ratios_of(peaks: list[float]) -> tuple[float, ...]:
    """The rate of each param group over the first one's."""
    if not peaks[0] > 0:
        raise ValueError(
            f"need a first param group with 0 < lr, to which the others' rates relate, got lr={peaks[0]}: give it any "
            "rate above 0"
        )
    return tuple(peak / peaks[0] for peak in peaks)


def have_rates_of_their_own(optimizer: Optimizer) -> bool:
    """Whether several groups were given rates that are not the optimizer's."""
    given = [group.get("max_lr", group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    return len(given) > 1 and any(float(lr) != float(optimizer.defaults["lr"]) for lr in given)


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step()`` cannot be called without arguments, as that of LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


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


def held_values(optimizer: Optimizer) -> list[list[tuple[Slot, Any]]]:
    """The current values that are held in each group: momentum or betas[0], and a weight decay that a policy moves."""
    slots = slots_of(optimizer.defaults)
    return [_held(group, slots) for group in optimizer.param_groups]


def _held(group: Group, slots: Slots) -> list[tuple[Slot, Any]]:
    held = [slots.momentum, slots.weight_decay if OWN_DECAY in group else None]
    return [(slot, _number(slot.read(group))) for slot in held if slot is not None and slot.key in group]


def set_rates(optimizer: Optimizer, lr: float, ratios: tuple[float, ...], held: list[list[tuple[Slot, Any]]]) -> None:
    """Write the values of the next step into the param groups."""
    for group, ratio, values in zip(optimizer.param_groups, ratios, held, strict=True):
        for slot, value in [(LR, lr * ratio), *values]:
            _write(group, slot, value)


def _write(group: Group, slot: Slot, value: Any) -> None:
    current = slot.read(group)
    if isinstance(current, Tensor):
        with torch.no_grad():
            current.fill_(value)
    else:
        group[slot.key] = slot.stored(group, value)


def _number(value: Any) -> Any:
    """The current value as a number, if it is a tensor that the optimizer may write to."""
    return value.item() if isinstance(value, Tensor) else value
