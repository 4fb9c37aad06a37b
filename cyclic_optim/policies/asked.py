"""A policy's values for one step, checked: the policy may be a user's, whose ``at`` can return anything."""

from __future__ import annotations

from math import inf
from typing import Any

from ..rules import finite, shown
from .base import Policy, Values


def values_at(policy: Policy, step: int, state: dict[str, Any] | None) -> Values:
    """The values of a step, after the reports that ``state`` holds.

    Raises:
        TypeError: the policy returned neither ``(lr_factor, momentum)`` nor all three values.
        ValueError: one of them is not a finite number >= 0.
    """
    answer: Any = policy.at(step) if state is None else policy.after(state, step)
    if type(answer) is Values:  # asked on every step: the usual answer is checked here
        lr_factor, momentum, weight_decay_factor = answer
        if (
            type(lr_factor) is float
            and 0 <= lr_factor < inf
            and (momentum is None or (type(momentum) is float and 0 <= momentum < inf))
            and (weight_decay_factor is None or is_ordinary(weight_decay_factor))
        ):
            return answer
    return checked(answer, policy, step)


def checked(answer: Any, policy: Policy, step: int) -> Values:
    """The values that the policy returned for this step; errors as for :func:`values_at`."""
    try:
        lr_factor, momentum, *rest = answer
        values = Values(lr_factor, momentum, *rest)
    except (TypeError, ValueError):
        raise TypeError(
            f"need at() to return (lr_factor, momentum), got {shown(answer)} from {shown(policy)}"
        ) from None
    if all(is_ordinary(value) or (value is None and i > 0) for i, value in enumerate(values)):
        return values
    where = f" at step {step} from {shown(policy)}"  # slow, therefore only here
    return Values(
        finite("lr_factor", values.lr_factor, minimum=0, where=where),
        *(
            None if value is None else finite(name, value, minimum=0, where=where)
            for name, value in zip(Values._fields[1:], values[1:], strict=True)
        ),
    )


def is_ordinary(number: Any) -> bool:
    """Whether it is a finite Python float >= 0, which needs no further check."""
    return type(number) is float and 0 <= number < inf
