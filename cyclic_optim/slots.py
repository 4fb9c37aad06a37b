"""Where a policy's momentum and weight decay live in a param group: ``momentum``, ``betas[0]``, or nowhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .native import ABSENT

Group = dict[str, Any]

#: The key of a group's own weight decay, which a policy's factor multiplies.
OWN_DECAY = "max_weight_decay"


class Slot(NamedTuple):
    """One place for a value that moves: how it is read, and what to store under ``key`` to change it."""

    name: str  # "lr", "momentum" or "weight_decay", wherever it lives
    key: str
    read: Callable[[Group], Any]
    stored: Callable[[Group, Any], Any]
    column: Callable[[list[Group], Any], Any] | None  # ``stored`` for all groups, of a list or one for all; None: as is
    below: float  # the value must be less than this
    where: str  # its name in errors


def _lr(group: Group) -> Any:
    return group["lr"]


def _momentum(group: Group) -> Any:
    return group["momentum"]


def _decay(group: Group) -> Any:
    return group["weight_decay"]


def _number(group: Group, value: Any) -> Any:
    return value


def _beta1(group: Group) -> Any:
    return group["betas"][0]


def _betas(group: Group, value: Any) -> tuple[Any, ...]:
    return (value, *group["betas"][1:])


def _column_of_betas(groups: list[Group], momenta: Any) -> Any:
    if not isinstance(momenta, list):
        return [_betas(group, momenta) for group in groups]
    return [
        ABSENT if momentum is ABSENT else _betas(group, momentum)
        for group, momentum in zip(groups, momenta, strict=True)
    ]


LR = Slot("lr", "lr", _lr, _number, None, math.inf, "lr")
MOMENTUM = Slot("momentum", "momentum", _momentum, _number, None, math.inf, "momentum")
#: Adam divides by ``1 - beta1**step``.
BETA1 = Slot("momentum", "betas", _beta1, _betas, _column_of_betas, 1.0, "betas[0]")
WEIGHT_DECAY = Slot("weight_decay", "weight_decay", _decay, _number, None, math.inf, "weight_decay")


class Slots(NamedTuple):
    """The places of an optimizer; None where it has none."""

    momentum: Slot | None
    weight_decay: Slot | None

    @property
    def present(self) -> list[Slot]:
        return [slot for slot in self if slot is not None]

    @property
    def keys(self) -> dict[str, str]:
        """The key that holds each value that a policy may move, by the value's name."""
        return {"lr": "lr", **{slot.name: slot.key for slot in self.present}}


def slots_of(options: Mapping[str, Any]) -> Slots:
    """The slots of an optimizer with these defaults; betas come first, as in torch's CyclicLR and OneCycleLR."""
    momentum = BETA1 if "betas" in options else MOMENTUM if "momentum" in options else None
    return Slots(momentum, WEIGHT_DECAY if "weight_decay" in options else None)


def check_momentum(slot: Slot | None, momentum: float | None, policy: object) -> None:
    """Refuse a momentum that this optimizer has no place for, or that its place cannot hold."""
    if momentum is None:
        return
    if slot is None:
        raise ValueError(
            "need an optimizer with momentum or betas beside a policy that cycles momentum, got neither and "
            f"{policy!r}: pass cycle_momentum=False to the policy"
        )
    if not momentum < slot.below:
        raise ValueError(f"need momentum < {slot.below:g} in {slot.where}, got {momentum=} from {policy!r}")


def check_decay(slot: Slot | None, factor: float | None, policy: object) -> None:
    """Refuse a factor of the weight decay where this optimizer has none."""
    if factor is not None and slot is None:
        raise ValueError(
            "need an optimizer with weight_decay beside a policy that moves it, got an optimizer without and "
            f"{policy!r}: leave weight decay out of the policy"
        )
