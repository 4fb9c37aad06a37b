"""Policies that act together at the same step: a warm-up over another one, products, one for each hyperparameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm, prod
from typing import Any

from ..rules import FLAG, MOST_STEPS, OPTIONAL_UNIT, UNIT, shown, step_index, whole
from .asked import values_at
from .base import Policy, Values, new_values, steady_from
from .compose import Composite, OfOne, OfPolicies
from .decay import LinearRamp


def _joint_period(policies: Iterable[Policy]) -> int | None:
    """The number of steps after which all of these repeat; None if one of them does not."""
    periods = [policy.period for policy in policies]
    known = [period for period in periods if period is not None]
    together = lcm(*known)
    return together if len(known) == len(periods) and together < MOST_STEPS else None


def _joint_end(policies: Iterable[Policy]) -> int | None:
    """The step from which on none of these changes; None if one of them goes on."""
    ends = [steady_from(policy) for policy in policies]
    known = [end for end in ends if end is not None]
    return max(known) if len(known) == len(ends) else None


@dataclass(frozen=True)
class Warmup(OfOne):
    """Another policy after a warm-up, in which the rate rises along a straight line to the peak.

        r(step)   = start_factor + (1 - start_factor) * min(step, total_iters) / total_iters
        lr_factor = r(step)                                      step < total_iters
        lr_factor = policy.at(step - total_iters).lr_factor      from then on
        lr_factor = r(step) * policy.at(step).lr_factor          with overlay=True, at every step

    The policy begins at its own step 0 after the warm-up; with ``overlay`` it begins at step 0, below the ramp.
    Momentum and weight decay are the policy's, in the warm-up those of its step 0. With ``start_momentum`` momentum is
    on a straight line from that to the policy's, in the same steps. A warm-up of 0 steps is no warm-up. It ends when
    both have. For a policy that starts below the peak, ``Scaled(Warmup(...), factor)`` lowers the ramp, too.

    Args:
        policy: any policy. Reports to a :class:`Plateau` count after the warm-up, with ``overlay`` from the start.
        total_iters: optimizer steps of the warm-up, 0 for none.
        start_factor: where the ramp starts, as a fraction of the peak, in [0, 1].
        overlay: whether the policy runs during the warm-up, too.
        start_momentum: where momentum starts, in [0, 1] (default: the policy's momentum throughout).

    Raises:
        ValueError, TypeError: an argument breaks its rule, or ``start_momentum`` is given and the policy does not
            change momentum.

    Source: Goyal et al. 2017 (arXiv 1706.02677); transformers' schedules with warm-up; with ``overlay`` as in
    detectron2 and pytorch-warmup.
    """

    policy: Policy
    total_iters: int = field(metadata=whole(0))
    start_factor: float = field(default=0.0, metadata=UNIT)
    overlay: bool = field(default=False, metadata=FLAG)
    start_momentum: float | None = field(default=None, metadata=OPTIONAL_UNIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_momentum is not None and values_at(self.policy, 0, self.initial_state()).momentum is None:
            raise ValueError(
                "need a policy that sets momentum where the warm-up's starts at start_momentum, "
                f"got start_momentum={self.start_momentum}, policy={self.policy!r}: "
                "Combined(lr=..., momentum=...) sets it"
            )

    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        step = step_index(step)
        values = values_at(self.policy, step if self.overlay else max(0, step - self.total_iters), state)
        if step >= self.total_iters:
            return values
        lr_factor, momentum, weight_decay_factor = values
        if self.start_momentum is not None and momentum is not None:
            momentum = LinearRamp(self.total_iters, self.start_momentum, momentum).at(step).lr_factor
        ramp = self._ramp.at(step).lr_factor
        return new_values(Values, (ramp * lr_factor if self.overlay else ramp, momentum, weight_decay_factor))

    @cached_property
    def _ramp(self) -> LinearRamp:
        return LinearRamp(self.total_iters, self.start_factor)

    def _turn(self, step: int) -> int | None:
        if self.overlay:
            return step
        return None if step < self.total_iters else step - self.total_iters

    @property
    def period(self) -> int | None:
        return self.policy.period if self.total_iters == 0 else None

    @property
    def end(self) -> int | None:
        end = steady_from(self.policy)
        if end is None:
            return None
        return max(end, self.total_iters) if self.overlay else end + self.total_iters


@dataclass(frozen=True)
class Product(OfPolicies):
    """The factors of several policies multiplied, all at the same step.

        lr_factor           = policies[0].at(step).lr_factor * policies[1].at(step).lr_factor * ...
        weight_decay_factor = the product of those that are set

    Momentum is that of the first policy that sets it at the step. It ends when all have ended, and repeats when all
    repeat.

    Args:
        policies: at least one; one of them may be a :class:`Plateau`.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or more than one policy listens to a metric.

    Source: ``torch.optim.lr_scheduler.ChainedScheduler``, where its parts multiply the rate.
    """

    policies: Sequence[Policy]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.policies:
            raise ValueError("need at least one policy to multiply, got policies=()")

    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        step = step_index(step)
        factors, momenta, decays = zip(*(values_at(policy, step, state) for policy in self.policies), strict=True)
        set_decays = [decay for decay in decays if decay is not None]
        return Values(
            prod(factors),
            next((momentum for momentum in momenta if momentum is not None), None),
            prod(set_decays) if set_decays else None,
        )

    @property
    def period(self) -> int | None:
        return _joint_period(self.policies)

    @property
    def end(self) -> int | None:
        return _joint_end(self.policies)


@dataclass(frozen=True)
class Combined(Composite):
    """Each hyperparameter by a policy of its own.

        lr_factor           = lr.at(step).lr_factor
        momentum            = momentum.at(step).lr_factor
        weight_decay_factor = weight_decay.at(step).lr_factor

    The factor of ``momentum`` is the momentum itself: ``LinearRamp(1000, 0.8, 0.937)`` raises it from 0.8 to 0.937. The
    factor of ``weight_decay`` multiplies each group's own weight decay, as that of ``lr`` multiplies its peak. Without
    a policy for momentum, or weight decay, it is what ``lr`` says of it. It ends when all have ended, and repeats
    when all repeat.

    Args:
        lr: the policy of the learning rate.
        momentum: the policy whose factor is the momentum, at most 1 (default: momentum as ``lr`` has it).
        weight_decay: the policy of the weight decay (default: weight decay as ``lr`` has it).

    Raises:
        ValueError, TypeError: an argument breaks its rule, more than one policy listens to a metric, or (also from
            ``at``) a momentum is above 1.

    Source: ``create_lr_scheduler_with_warmup`` and ``ParamGroupScheduler`` of ignite, mmengine's momentum schedulers;
    Smith 2022 (arXiv 2202.08835), who cycles weight decay, too.
    """

    lr: Policy
    momentum: Policy | None = None
    weight_decay: Policy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at(0, self.initial_state())

    def _parts(self) -> Mapping[str, Policy]:
        parts = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        # Without a policy of the rate there is no schedule.
        return {name: part for name, part in parts.items() if part is not None or name == "lr"}  # type: ignore[misc]

    def at(self, step: int, state: dict[str, Any] | None = None) -> Values:
        step = step_index(step)
        lr_factor, momentum, weight_decay_factor = values_at(self.lr, step, state)
        if self.momentum is not None:
            momentum = values_at(self.momentum, step, state).lr_factor
            if momentum > 1:
                raise ValueError(f"need momentum <= 1, got {momentum=} at {step=} from momentum={shown(self.momentum)}")
        if self.weight_decay is not None:
            weight_decay_factor = values_at(self.weight_decay, step, state).lr_factor
        return new_values(Values, (lr_factor, momentum, weight_decay_factor))

    @property
    def period(self) -> int | None:
        return _joint_period(self._parts().values())

    @property
    def end(self) -> int | None:
        return _joint_end(self._parts().values())
