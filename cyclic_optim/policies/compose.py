"""Policies made of other policies, one after another or as they are, or of a function."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

from ..rules import FLAG, FUNCTION, UNIT, ascending, finite, step_index, whole
from .asked import values_at
from .base import Policy, Values, class_hint, new_values, steady_from


class Composite(Policy):
    """A policy made of others, its parts.

    At most one part may listen to a metric (:class:`Plateau`), because a param group has one memory of reports: a
    second part would overwrite it. The state of that part is the state of the whole. A report counts where it is the
    part's turn at the step that comes next; before and after that the state stays as it is.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        listening = [part for name, part in self._parts().items() if _listens(name, part)]
        if len(listening) > 1:
            raise ValueError(
                "need at most one policy that listens to a metric, as a param group has one memory of reports, "
                f"got {listening[0]!r} and {listening[1]!r}"
            )

    @abstractmethod
    def _parts(self) -> Mapping[str, Policy]:
        """The policies, by the names that errors call them."""

    def _turn(self, step: int) -> int | None:
        """The step of the part that listens, where it is its turn at this step; else None."""
        return step

    @abstractmethod
    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        """As :meth:`Policy.at`, after the reports that ``state`` holds."""

    def after(self, state: dict[str, Any], step: int) -> Values:
        return self.at(step, state)

    @cached_property
    def _listener(self) -> Policy | None:
        return next((part for part in self._parts().values() if part.initial_state() is not None), None)

    def initial_state(self) -> dict[str, Any] | None:
        return None if self._listener is None else self._listener.initial_state()

    def report_at(self, state: dict[str, Any] | None, metric: float, step: int) -> dict[str, Any]:
        if self._listener is None:
            return self.report(state, metric)
        turn = self._turn(step_index(step))
        if turn is None:
            return dict(state or self._listener.initial_state() or {})
        return self._listener.report_at(state, metric, turn)

    def check_state(self, state: object) -> None:
        if self._listener is None:
            super().check_state(state)
        else:
            self._listener.check_state(state)


def _listens(name: str, part: object) -> bool:
    """Whether this part listens to a metric; an error where it can be no part."""
    if not isinstance(part, Policy):
        raise TypeError(f"need {name} to be a Policy, got {name}={part!r}{class_hint(part)}")
    if part.initial_state() is not None:
        return True
    if type(part).report is not Policy.report:
        raise ValueError(
            f"need initial_state() of a part that listens to return its state before any report, got None from "
            f"{name}={part!r}"
        )
    return False


class OfPolicies(Composite):
    """What is made of a sequence of policies, the field ``policies``, which is kept as a tuple."""

    policies: Sequence[Policy]

    def __post_init__(self) -> None:
        try:
            policies = tuple(self.policies)
        except TypeError:
            raise TypeError(f"need policies to be a sequence of policies, got policies={self.policies!r}") from None
        object.__setattr__(self, "policies", policies)
        super().__post_init__()

    def _parts(self) -> Mapping[str, Policy]:
        return {f"policies[{i}]": policy for i, policy in enumerate(self.policies)}


class OfOne(Composite):
    """What is made of one other policy, the field ``policy``."""

    policy: Policy

    def _parts(self) -> Mapping[str, Policy]:
        return {"policy": self.policy}


@dataclass(frozen=True)
class Sequential(OfPolicies):
    """One policy after another, each from its own step 0, or all counting from step 0 of the whole.

        at(step) = policies[i].at(step - milestones[i-1])     milestones[i-1] <= step < milestones[i]
        at(step) = policies[i].at(step)                       the same steps, with restart=False

    The first starts at 0, the last goes on. A policy of no steps is passed over. While a policy does not change
    momentum or weight decay, they keep the last value of the policies before it. It ends when the last policy ends.
    One of the policies may be a :class:`Plateau`; reports count while it is in force.

    Args:
        policies: at least one.
        milestones: the optimizer steps at which the next policy takes over, in ascending order, one fewer than there
            are policies. Equal ones, and 0, give a policy no steps.
        restart: with False each policy is asked for the step of the whole, as if it had run all along.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or more than one policy listens to a metric.

    Source: ``torch.optim.lr_scheduler.SequentialLR``; ``restart=False`` is timm's ``warmup_prefix=False``.
    """

    policies: Sequence[Policy]
    milestones: Sequence[int] = field(metadata=ascending(0, repeats=True))
    restart: bool = field(default=True, metadata=FLAG)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.policies) != len(self.milestones) + 1:
            raise ValueError(
                f"need one policy more than milestones, got {len(self.policies)} policies, "
                f"{len(self.milestones)} milestones"
            )

    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        if type(step) is not int:
            step = step_index(step)
        index = bisect_right(self.milestones, step)  # a negative step is refused by the first part
        values = None
        if state is None:  # on every step: what asks the whole checks the numbers
            start, at = self._asked[index]
            values = at(step - start)
        if type(values) is not Values:  # after reports, or two values of a user's policy
            values = self._values(index, step, state)
        if index == 0:
            return values
        lr_factor, momentum, weight_decay_factor = values
        old_momentum, old_factor = self._earlier(index, state)
        momentum = old_momentum if momentum is None else momentum
        return new_values(
            Values, (lr_factor, momentum, old_factor if weight_decay_factor is None else weight_decay_factor)
        )

    @cached_property
    def _asked(self) -> tuple[tuple[int, Callable[[int], Values]], ...]:
        return tuple((start, policy.at) for start, policy in zip(self._starts, self.policies, strict=True))

    def _values(self, index: int, step: int, state: dict[str, Any] | None) -> Values:
        """The values of one policy at a step of the whole."""
        return values_at(self.policies[index], step - self._starts[index], state)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The step of the whole that is each policy's step 0."""
        return (0, *self.milestones) if self.restart else (0,) * len(self.policies)

    def _earlier(self, index: int, state: dict[str, Any] | None) -> tuple[float | None, float | None]:
        """The last momentum and weight decay of the policies before this one."""
        if state is not None:
            return self._last(index, state)
        if index not in self._known:
            self._known[index] = self._last(index, None)
        return self._known[index]

    @cached_property
    def _known(self) -> dict[int, tuple[float | None, float | None]]:
        return {}

    def _last(self, index: int, state: dict[str, Any] | None) -> tuple[float | None, float | None]:
        momentum = weight_decay = None
        begins = (0, *self.milestones)
        for i in reversed(range(index)):
            if begins[i] == begins[i + 1]:
                continue
            _, last_momentum, last_weight_decay = self._values(i, begins[i + 1] - 1, state)
            momentum = last_momentum if momentum is None else momentum
            weight_decay = last_weight_decay if weight_decay is None else weight_decay
        return momentum, weight_decay

    def _turn(self, step: int) -> int | None:
        index = bisect_right(self.milestones, step)
        return step - self._starts[index] if self.policies[index] is self._listener else None

    @property
    def end(self) -> int | None:
        last = steady_from(self.policies[-1])
        return None if last is None else max((0, *self.milestones)[-1], self._starts[-1] + last)


@dataclass(frozen=True)
class Staircase(OfOne):
    """Another policy, each step of which lasts for ``length`` steps: a schedule counted in epochs.

    ``at(step) = policy.at(step // length)``, momentum included. It ends, or repeats, when the policy does.

    Args:
        policy: any policy. A :class:`Plateau` counts reports, not steps: it stays as it is.
        length: optimizer steps for each step of the policy, commonly ``len(loader)``.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: torch's schedulers, stepped once per epoch.
    """

    policy: Policy
    length: int = field(metadata=whole(1))

    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        step = step_index(step) // self.length
        values = self.policy.at(step) if state is None else None
        return values if type(values) is Values else values_at(self.policy, step, state)

    def _turn(self, step: int) -> int:
        return step // self.length

    @property
    def period(self) -> int | None:
        period = self.policy.period  # read once: it may depend on the period of a further policy
        return None if period is None else period * self.length

    @property
    def end(self) -> int | None:
        end = self.policy.end
        return None if end is None else end * self.length


@dataclass(frozen=True)
class Scaled(OfOne):
    """Another policy, its rates multiplied by ``factor``: one part of a :class:`Sequential` lower than the others.

    ``lr_factor = factor * policy.at(step).lr_factor``; momentum is the policy's. It ends, or repeats, when the
    policy does.

    Args:
        policy: any policy.
        factor: in [0, 1]. ``lr`` remains the peak of the whole schedule.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.ConstantLR``, which does this to a constant rate.
    """

    policy: Policy
    factor: float = field(metadata=UNIT)

    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        lr_factor, momentum, weight_decay_factor = values_at(self.policy, step, state)
        return new_values(Values, (lr_factor * self.factor, momentum, weight_decay_factor))

    @property
    def period(self) -> int | None:
        return self.policy.period

    @property
    def end(self) -> int | None:
        return self.policy.end


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
