"""Policies made of other policies, or of a function."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from ..rules import FUNCTION, UNIT, ascending, finite, step_index, whole
from .base import Policy, Values, new_values


@dataclass(frozen=True)
class Sequential(Policy):
    """One policy after another, each from its own step 0.

        at(step) = policies[i].at(step - milestones[i-1])     milestones[i-1] <= step < milestones[i]

    The first starts at 0, the last goes on. While a policy does not change momentum, momentum keeps the last value of
    the policies before it. It ends when the last policy ends.

    Args:
        policies: at least one; a Plateau cannot be among them (it depends on more than the step).
        milestones: the optimizer steps at which the next policy takes over, one fewer than there are policies.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.SequentialLR``.
    """

    policies: tuple[Policy, ...]
    milestones: tuple[int, ...] = field(metadata=ascending(1, repeats=False))

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            policies = tuple(self.policies)
        except TypeError:
            raise TypeError(f"need policies to be a sequence of policies, got policies={self.policies!r}") from None
        object.__setattr__(self, "policies", policies)
        for i, policy in enumerate(policies):
            _check_part(f"policies[{i}]", policy)
        if len(policies) != len(self.milestones) + 1:
            raise ValueError(
                f"need one policy more than milestones, got {len(policies)} policies, {len(self.milestones)} milestones"
            )

    def at(self, step: int) -> Values:
        if type(step) is not int:
            step = step_index(step)
        index = bisect_right(self.milestones, step)  # a negative step is refused by the first part
        start, at = self._parts[index]
        values = at(step - start)
        if index == 0 or values[1] is not None:
            return values
        known = self._last_momenta
        momentum = known[index] if index in known else self._inherited(index)
        return new_values(Values, (values[0], momentum, values[2]))

    @cached_property
    def _parts(self) -> tuple[tuple[int, Callable[[int], Values]], ...]:
        return tuple((start, policy.at) for start, policy in zip(self._starts, self.policies, strict=True))

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return (0, *self.milestones)

    def _inherited(self, index: int) -> float | None:
        """The last momentum of the policies before this one."""
        if index == 0:
            return None
        if index not in self._last_momenta:
            momentum = self.policies[index - 1].at(self._starts[index] - 1 - self._starts[index - 1])[1]
            self._last_momenta[index] = self._inherited(index - 1) if momentum is None else momentum
        return self._last_momenta[index]

    @cached_property
    def _last_momenta(self) -> dict[int, float | None]:
        return {}

    @property
    def end(self) -> int | None:
        last = self.policies[-1].end
        return None if last is None else (0, *self.milestones)[-1] + last


@dataclass(frozen=True)
class Staircase(Policy):
    """Another policy, each step of which lasts for ``length`` steps: a schedule counted in epochs.

    ``at(step) = policy.at(step // length)``, momentum included. It ends, or repeats, when the policy does.

    Args:
        policy: any policy but a Plateau, which does not count steps.
        length: optimizer steps for each step of the policy, commonly ``len(loader)``.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: torch's schedulers, stepped once per epoch.
    """

    policy: Policy
    length: int = field(metadata=whole(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_part("policy", self.policy)

    def at(self, step: int) -> Values:
        return self.policy.at(step_index(step) // self.length)

    @property
    def period(self) -> int | None:
        period = self.policy.period  # read once: it may depend on the period of a further policy
        return None if period is None else period * self.length

    @property
    def end(self) -> int | None:
        end = self.policy.end
        return None if end is None else end * self.length


@dataclass(frozen=True)
class Scaled(Policy):
    """Another policy, its rates multiplied by ``factor``: one part of a :class:`Sequential` lower than the others.

    ``lr_factor = factor * policy.at(step).lr_factor``; momentum is the policy's. It ends, or repeats, when the
    policy does.

    Args:
        policy: any policy but a Plateau, whose rates follow a metric.
        factor: in [0, 1]. ``lr`` remains the peak of the whole schedule.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.ConstantLR``, which does this to a constant rate.
    """

    policy: Policy
    factor: float = field(metadata=UNIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_part("policy", self.policy)

    def at(self, step: int) -> Values:
        lr_factor, momentum, weight_decay_factor = self.policy.at(step)
        return new_values(Values, (lr_factor * self.factor, momentum, weight_decay_factor))

    @property
    def period(self) -> int | None:
        return self.policy.period

    @property
    def end(self) -> int | None:
        return self.policy.end


def _check_part(name: str, policy: object) -> None:
    """Raise an error where this cannot be a part of another policy."""
    if not isinstance(policy, Policy):
        raise TypeError(f"need {name} to be a Policy, got {name}={policy!r}")
    if policy.initial_state() is not None:
        raise ValueError(f"need policies that depend on the step alone, got {name}={policy!r}")


@dataclass(frozen=True)
class LambdaPolicy(Policy):
    """``lr_factor = fn(step)``: any schedule you have as a function.

    It takes the classic ``cyclical_lr(step_size, min_lr, max_lr)`` closure as it is, with ``lr=1.``.
    It does not change momentum. It has no end: ``fn`` defines every step. A checkpoint holds the function's name only:
    resume with the policy in the code.

    Args:
        fn: takes the step (an int, from 0), returns a finite number >= 0.

    Raises:
        TypeError: ``fn`` is not callable.
        ValueError: (from ``at``) ``fn`` returned anything else.

    Source: ``torch.optim.lr_scheduler.LambdaLR``.
    """

    fn: Callable[[int], float] = field(metadata=FUNCTION)

    def at(self, step: int) -> Values:
        lr_factor = self.fn(step_index(step))
        if type(lr_factor) is not float or not 0 <= lr_factor < inf:
            lr_factor = finite(f"fn({step})", lr_factor, minimum=0)
        return new_values(Values, (lr_factor, None, None))
