"""What a param group may hold: rules for values that users, checkpoints and other optimizers put there."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .mistaken import policy_hint
from .policies import Policy
from .rules import finite, shown
from .slots import OWN_DECAY, Group
from .torch_private import is_readable

#: torch's ParamsT as one Iterable: mypy takes a list of param groups with different keys for this, and not for ParamsT.
Params: TypeAlias = Iterable[Tensor | dict[str, Any] | tuple[str, Tensor]]

#: The keys of a schedule in a param group.
SCHEDULE_KEYS = ("policy", "schedule_step", "max_lr", "policy_state", OWN_DECAY)

#: Marks of a group in which the user had edited these by hand when it was saved; only in state dicts.
MARKS = {
    "lr": "edited_by_hand",
    "momentum": "momentum_edited_by_hand",
    "weight_decay": "weight_decay_edited_by_hand",
}

#: float16's largest number, the lowest of all floating-point dtypes that torch's updates take. Higher rates are checked
#: against each parameter's dtype.
HELD_BY_ALL = torch.finfo(torch.float16).max


class Kinds(NamedTuple):
    """Which keys of an optimizer's groups are numbers, and which are flags; the base class checks the others."""

    numbers: tuple[str, ...] = ("lr",)
    flags: tuple[str, ...] = ()
    optional_flags: tuple[str, ...] = ()  # may be None
    nested_state: bool = True  # whether a parameter's state may hold lists and dicts
    momentum_buffer: bool = False  # whether a momentum_buffer is known to be of its parameter's shape

    def check(self, group: Group) -> None:
        """Refuse wrong types in a checkpoint, with or without a policy; values are not checked."""
        for key in self.numbers:
            if key in group and not isinstance(group[key], (numbers.Real, Tensor)):
                raise TypeError(f"need {key} to be a number, got {key}={shown(group[key])}")
        for key in (*self.flags, *self.optional_flags):
            if not isinstance(group[key], (numbers.Real, type(None))):
                raise TypeError(f"need {key} to be a bool, got {key}={shown(group[key])}")

    def check_scheduled(self, group: Group) -> None:
        """Refuse wrong types and values in a group with a policy."""
        check_has_string_keys(group)
        check_has_rate(group)
        check_rate(group["lr"])
        given = {key: group[key] for key in (*self.numbers, "max_lr", OWN_DECAY) if key in group}
        check_numbers(**given)
        highest = highest_held(group)
        for name, value in given.items():
            _check_value(name, value, highest, learned=bool(group.get("differentiable")))
        for key in (*self.flags, *self.optional_flags):
            if not isinstance(group[key], bool) and not (group[key] is None and key in self.optional_flags):
                raise TypeError(f"need {key} to be a bool, got {key}={shown(group[key])}")
        if group.get("fused") and group.get("foreach"):
            raise ValueError("need at most one of fused and foreach, got both")


def _check_value(name: str, value: Any, highest: float, *, learned: bool) -> None:
    if isinstance(value, Tensor):
        if name != "lr" and (value.dim() > 0 or (value.requires_grad and not learned)):
            raise ValueError(f"need {name} to be a number, or a tensor that holds one, got {name}={shown(value)}")
    elif not _is_taken_by_torch(value):
        raise TypeError(_NO_NUMBER.format(name, shown(value)))
    if abs(value) > highest:
        raise ValueError(f"need {name} to be a number that the parameters can hold (up to {highest}), got {value}")


_NO_NUMBER = "need {0} to be a float, or an int of 64 bits, got {0}={1}"


def _is_taken_by_torch(number: Any) -> bool:
    """Whether torch's operations take this number: no fraction, and no int of more than 64 bits."""
    if isinstance(number, numbers.Integral):
        return -(2**63) <= int(number) < 2**63
    return isinstance(number, numbers.Real) and not isinstance(number, numbers.Rational)


def check_numbers(**given: Any) -> None:
    """Refuse NaN, inf and other values that plain SGD accepts, but that no later step could repair."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"need {name} as a number or a Tensor of 1 element, got shape {tuple(value.shape)}")
            value = value.item() if value.device.type != "meta" else value
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"need {name} to be a number, got {name}={shown(value)}")
        finite(name, value, minimum=-math.inf if name == "dampening" else 0)


def check_one_lr(lr: Any) -> None:
    """Refuse a rate for each group where a constructor takes one for all."""
    if isinstance(lr, (list, tuple)):
        raise TypeError(
            f"need lr to be a number, got lr={shown(lr)}: rates of groups go into the groups, "
            "{'params': ..., 'lr': ...}, or into optimizer.reschedule(lr=[...])"
        )


def check_policy(policy: object) -> None:
    """Refuse anything but a policy or None; the message has the way out for common mistakes."""
    if policy is None or isinstance(policy, Policy):
        return
    raise TypeError(f"need policy to be a Policy or None, got policy={shown(policy)}{policy_hint(policy)}")


def check_named(*others: object) -> None:
    """Refuse a policy as one of the other arguments: it was passed by position."""
    for value in others:
        if isinstance(value, Policy):
            name = type(value).__name__
            raise TypeError(f"need policy as a keyword, policy={name}(...), got {shown(value)} as another argument")


def check_has_rate(group: Group) -> None:
    """Refuse a policy for a param group without a learning rate."""
    if "lr" not in group:
        raise ValueError(
            "need an optimizer with a learning rate, 'lr' in its param groups, beside a policy, "
            f"got the keys {sorted(map(str, group))}"
        )


def check_has_string_keys(group: Group) -> None:
    """Refuse other keys, which cannot be sorted with the others, as for ``repr``."""
    for key in group:
        if not isinstance(key, str):
            raise TypeError(f"need the keys of a param group to be strings, got {shown(key)}")


def check_rate(lr: Any, name: str = "lr") -> None:
    """Refuse a tensor that a policy cannot write values into; a number is checked where it is used."""
    if type(lr) is float or not isinstance(lr, Tensor):
        return
    if lr.numel() != 1 or lr.layout is not torch.strided or lr.device.type == "meta":
        raise ValueError(f"need {name} as a number, or a dense tensor with one element, got {name}={shown(lr)}")
    if lr.requires_grad:
        raise ValueError(f"need {name} without requires_grad beside a policy, which overwrites it")
    if not lr.is_floating_point():
        raise ValueError(f"need {name} as a floating-point tensor beside a policy, got {name}={lr!r}")


def check_capturable(group: Group, defaults: Group) -> None:
    """Refuse another ``capturable`` than the optimizer's: a captured step would repeat the rate of the capture."""
    if group.get("capturable") != defaults.get("capturable"):
        raise ValueError(
            "need capturable as an argument of the optimizer, the same for all groups, beside a policy, "
            f"got capturable={shown(group.get('capturable'))} in a param group"
        )


def highest_held(group: Group, key: str = "lr") -> float:
    """The largest number that a group's rate (or what has this key), and the dtypes of all parameters, can hold."""
    dtypes = {tensor.dtype for tensor in (group[key], *group.get("params", ())) if isinstance(tensor, Tensor)}
    floating = (torch.finfo(dtype).max for dtype in dtypes if dtype.is_floating_point or dtype.is_complex)
    return min(floating, default=sys.float_info.max)


#: The hyperparameters of SGD that are numbers.
NUMBERS = ("momentum", "lr", "dampening", "weight_decay")


def check_before_update(group: Group) -> None:
    """Refuse values set by hand that torch's ``sgd`` would refuse in the middle of an update."""
    for key in ("nesterov", "maximize"):
        try:
            bool(group[key])
        except Exception as error:  # noqa: PERF203 (any error; the message says which key)
            raise TypeError(f"need {key} to be True or False, got {key}={shown(group[key])}") from error
    check_held(group, NUMBERS)


def check_held(group: Group, keys: Iterable[str]) -> None:
    """Refuse what is no number, and numbers that the parameters to be updated cannot hold; inf can be held."""
    highest = HELD_BY_ALL
    for key in keys:
        number = _magnitude(group, key)
        if number > HELD_BY_ALL:
            highest = _highest_taken(group)
        # torch takes a momentum of any size, but for Nesterov's.
        if highest < number < math.inf and (key != "momentum" or group["nesterov"]):
            raise ValueError(
                f"need {key} to be a number that the parameters can hold (up to {highest}), "
                f"got {key}={shown(group[key])}"
            )


def _magnitude(group: Group, key: str) -> Any:
    """The size of a number; of a tensor on a device 0, as reading it would synchronize."""
    value = group[key]
    if isinstance(value, Tensor):
        if value.numel() != 1 or (key != "lr" and value.dim() > 0):
            raise ValueError(f"need {key} to be a number, or a tensor that holds one, got {key}={shown(value)}")
        return abs(value.item()) if is_readable(value) else 0.0
    if type(value) is not float and not _is_taken_by_torch(value):
        raise TypeError(_NO_NUMBER.format(key, shown(value)))
    return abs(value)


def _highest_taken(group: Group) -> float:
    """The largest number that torch takes beside these parameters."""
    limits = []
    for param in group["params"]:
        if param.grad is not None:  # on a device, half precision is computed in float32
            is_half_on_device = param.dtype.itemsize == 2 and param.device.type != "cpu"
            limits.append(torch.finfo(torch.float32 if is_half_on_device else param.dtype).max)
    return min(limits, default=math.inf)


def check_groups(groups: list[Group]) -> None:
    """Refuse an optimizer whose param groups were removed: they hold the clocks."""
    if not groups:
        raise ValueError("need at least one param group beside a policy, whose counter they keep, got none")


def add_policy_key(groups: list[Group]) -> None:
    """Give every group the key ``policy``, as all have it beside a schedule."""
    for group in groups:
        group.setdefault("policy", None)


def check_schedules(groups: list[Group]) -> None:
    """Refuse what no schedule can go on from: no group, or one from which a key of its schedule was removed."""
    check_groups(groups)
    for group in groups:
        check_schedule_keys(group)


def check_schedule_keys(group: Group) -> None:
    """Refuse a group, beside a schedule, in which a key of its own schedule is missing."""
    if "policy" not in group:
        raise ValueError("need 'policy' in every param group beside a schedule: add groups with add_param_group")
    if group["policy"] is None:
        return
    missing = [key for key in _NEEDED if key not in group]
    if missing == ["schedule_step", "max_lr"]:
        raise ValueError(
            "need schedule_step and max_lr beside policy in a param group: put group['policy'] back to None, and use "
            "reschedule(policy=...)"
        )
    if missing:
        raise ValueError(
            f"need {' and '.join(missing)} beside policy in a param group, got a group without: "
            f"put back what was removed, group[{missing[0]!r}] = ..."
        )


#: What every group with a policy has.
_NEEDED = ("schedule_step", "max_lr", "lr")


#: Keys that torch's schedulers leave in param groups beside ``initial_lr``.
_LEFT_BY_SCHEDULERS = {"min_lr", "base_momentum", "max_momentum"}
#: Arguments of the optimizer or of a policy, which have no effect in a group.
_ELSEWHERE = {
    **dict.fromkeys(("capturable", "horizon"), "an argument of the optimizer"),
    **dict.fromkeys(("policies", "scheduler", "schedule"), "a policy per group is 'policy'"),
    **dict.fromkeys(
        ("base_momentum", "max_momentum"), "an argument of the policy: {'policy': OneCycle(..., max_momentum=0.95)}"
    ),
    "min_lr": "an argument of the policy, as a fraction of the peak: {'policy': CosineDecay(..., min_factor=0.01)}",
}


def check_keys(group: Group, defaults: Iterable[str]) -> None:
    """Refuse a key that looks like a key of a schedule and is none; other keys are the user's.

    ``min_lr``, ``base_momentum`` and ``max_momentum`` are accepted beside ``initial_lr``: then a torch scheduler
    left them there, and they have no effect.
    """
    known = {*defaults, *SCHEDULE_KEYS}
    for key in group:
        if not isinstance(key, str) or key in known or (key in _LEFT_BY_SCHEDULERS and "initial_lr" in group):
            continue
        looks_like_one = any(word in key for word in ("policy", "schedule_"))
        if key in _ELSEWHERE or looks_like_one:
            what = _ELSEWHERE.get(key, f"the keys of a group are {', '.join(SCHEDULE_KEYS)}")
            raise ValueError(
                f"need a param group without {key!r}, which has no effect there, got {key}={shown(group[key])}: {what}"
            )


def check_unscheduled(group: Group, *, is_told: bool) -> None:
    """Refuse our keys in a group without a policy; one that says ``policy=None`` may be a copy, and loses them.

    A ``max_lr`` is accepted beside ``initial_lr``, as a torch scheduler leaves it.
    """
    for key in SCHEDULE_KEYS:
        if key not in group or (key == "max_lr" and "initial_lr" in group):
            continue
        if not is_told:
            raise ValueError(
                f"need a policy beside {key!r} in a param group, got {key}={shown(group[key])} and policy=None: pass "
                "policy= to the optimizer, or 'policy' in the group"
            )
        del group[key]
