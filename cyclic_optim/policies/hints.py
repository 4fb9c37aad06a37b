"""What torch's schedulers call an argument, and how the policies say it: the hints of a TypeError."""

from __future__ import annotations

from dataclasses import fields
from functools import wraps
from typing import Any

from ..rules import shown
from .base import Policy

_LENGTH_FIELDS = ("t_max", "total_steps", "total_iters")
#: Of policies without an end: the lengths of their cycle or stairs.
_PARTS = {name: f"{name}, in optimizer steps" for name in ("step_size_up", "t_0", "step_size", "milestones")}
_EPOCHS = {name: f"{name}=len(loader) * epochs" for name in _LENGTH_FIELDS} | {
    name: f"{said} (an epoch has len(loader))" for name, said in _PARTS.items()
}
_LENGTHS = {name: f"{name}, in optimizer steps" for name in _LENGTH_FIELDS} | _PARTS
_LOWEST = {
    "min_factor": "min_factor={} / lr, a fraction of the peak",
    "final_div_factor": "final_div_factor=lr / div_factor / {}",
    "div_factor": "div_factor=lr / {}, with the peak as the optimizer's lr",
}

#: By torch's argument: a field that says the same, if the policy has it, and how; "" is for any policy.
_INSTEAD: dict[str, dict[str, str]] = {
    "optimizer": {"": "the policy is given to the optimizer: CyclicSGD(params, lr=0.1, policy=...)"},
    "last_epoch": {"": "optimizer.reschedule(step=...), in optimizer steps"},
    "max_lr": {"": "the optimizer's lr, which is the peak"},
    "base_lr": {"div_factor": _LOWEST["div_factor"], **_LOWEST},  # first: where a cycle starts, not where it ends
    "epochs": _EPOCHS,
    "steps_per_epoch": _EPOCHS,
    "T_max": _LENGTHS,
    "total_steps": _LENGTHS,
    "total_iters": _LENGTHS,
    "T_0": {"t_0": "t_0, in optimizer steps"},
    "T_mult": {"t_mult": "t_mult"},
    "eta_min": _LOWEST,
    "min_lr": _LOWEST,
    "step_size": {"step_size_up": "step_size_up, in optimizer steps"},
    "mode": {"step_size_up": "one of Triangular, Triangular2 and ExpRange(gamma=...)"},
    "gamma": {"step_size_up": "ExpRange(gamma=...)"},
    "lr_lambda": {"fn": "fn, of the optimizer step"},
    "schedulers": {"policies": "policies"},
}


def with_hints(policy: type[Policy]) -> type[Policy]:
    """The same class; a TypeError for arguments that only torch's schedulers have says how they are said here."""
    init = policy.__init__
    if hasattr(init, "__wrapped__"):
        return policy

    @wraps(init)
    def __init__(self: Policy, *values: Any, **arguments: Any) -> None:
        try:
            init(self, *values, **arguments)
        except TypeError:
            optimizers = [("optimizer", value) for value in values if hasattr(value, "param_groups")]
            given = dict(optimizers) | arguments
            hints = _hints(policy, given)
            if not hints:
                raise
            got = ", ".join(f"{name}={_brief(given[name])}" for names in hints.values() for name in names)
            instead = "; ".join(f"instead of {' and '.join(names)}, {hint}" for hint, names in hints.items())
            raise TypeError(f"need the arguments of {policy.__name__}, got {got}: {instead}") from None

    policy.__init__ = __init__  # type: ignore[method-assign, assignment]
    return policy


def _hints(policy: type[Policy], arguments: dict[str, Any]) -> dict[str, list[str]]:
    """What to say, and instead of which arguments: of those that the policy does not have."""
    names = {"", *(field.name for field in fields(policy))}  # type: ignore[arg-type]  # all are dataclasses
    hints: dict[str, list[str]] = {}
    for argument in arguments:
        said = [hint for name, hint in _INSTEAD.get(argument, {}).items() if name in names]
        if said and argument not in names:
            hints.setdefault(said[0].format(argument), []).append(argument)
    return hints


def _brief(value: Any) -> str:
    # The repr of an optimizer has a line for everything in its groups.
    return f"{type(value).__name__}(...)" if hasattr(value, "param_groups") else shown(value)
