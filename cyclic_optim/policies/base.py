"""What every policy shares: the interface, and the interpolation between two values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cached_property, partial
from math import sin
from typing import TYPE_CHECKING, Any, NamedTuple

from ..rules import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Values(NamedTuple):
    """A policy's values for one step: the fraction of the peak, the momentum, the fraction of the weight decay."""

    lr_factor: float
    """What a group's peak, ``max_lr``, is multiplied by."""
    momentum: float | None = None
    """The group's momentum; None where the policy does not change momentum."""
    weight_decay_factor: float | None = None
    """What a group's own weight decay is multiplied by; None where the policy does not change weight decay."""


class Policy(ABC):
    """A schedule as a value: a pure function ``at(step)``.

    By default, use
    ``WarmupStableDecay(total_steps, warmup=total_steps // 20, decay=total_steps // 5, shape="sqrt")``: it matches
    cosine in the comparison of Hägele et al. 2024 (arXiv 2405.18392). ``docs/which_policy.md`` has this project's own
    measurements, and says what to take when the length is not known, and in other cases.

    For one of your own, subclass this class and write ``at``. It must be a pure function of the step (the same step
    always gives the same values, in whatever order) and be defined for every integer ``0 <= step < 2**63``, counted in
    optimizer steps, not epochs (a run has ``len(loader) * epochs``). A frozen dataclass is the natural form: it prints,
    compares and pickles.

        @dataclass(frozen=True)
        class Sawtooth(Policy):
            length: int

            def at(self, step: int) -> Values:
                return Values(lr_factor=1 - (step % self.length) / self.length)

    Define ``period`` or ``end`` where it has one. The other methods are for policies that also depend on a reported
    metric (:class:`Plateau`).
    """

    @abstractmethod
    def at(self, step: int) -> Values:
        """The values for the step with this number, counted from 0.

        A policy of yours may return ``(lr_factor, momentum)``, too.
        """

    @property
    def period(self) -> int | None:
        """The number of steps after which the values repeat exactly; None if they do not.

        For a policy that depends on a metric: between two reports.
        """
        return None

    @property
    def end(self) -> int | None:
        """The step from which on the values no longer change; None if there is none.

        For a policy that depends on a metric: between two reports.
        """
        return None

    # The rest is for policies that also depend on a reported metric (Plateau). All others have no state.

    def initial_state(self) -> dict[str, Any] | None:
        """The state before any report, as plain data; None for a policy that depends on the step alone."""
        return None

    def after(self, state: dict[str, Any], step: int) -> Values:
        """``at`` for a policy with a state: ``state`` is what :meth:`report` last returned."""
        return self.at(step)

    def report(self, state: dict[str, Any] | None, metric: float) -> dict[str, Any]:
        """The state after one more reported metric. The given state is not changed.

        Raises:
            TypeError: the policy depends on the step alone.
        """
        if self.initial_state() is not None:
            raise TypeError(f"need report_at(state, metric, step) where the step matters, got a report to {self!r}")
        raise TypeError(
            f"need a policy that listens to a metric (Plateau), got {self!r}, which depends on the step alone"
        )

    def report_at(self, state: dict[str, Any] | None, metric: float, step: int) -> dict[str, Any]:
        """:meth:`report` of a metric when ``step`` comes next. This is what the optimizer calls.

        Override it instead of :meth:`report` where the step matters: for policies made of others, of which one may
        not have its turn yet.
        """
        return self.report(state, metric)

    def check_state(self, state: object) -> None:
        """Check a state that was read from a checkpoint.

        Raises:
            ValueError: this policy cannot have written it; the message says why.
        """
        if state is not None:
            raise ValueError(f"need no state of reports for {self!r}, got {state!r}")

    def plot(self, steps: int, lr: float = 1.0, ax: Axes | None = None) -> Axes:
        """Draw the values over the steps 0..steps-1: :func:`plot_policy` as a method. Needs matplotlib.

        A notebook shows a smaller picture, which needs no matplotlib, where the policy itself is a cell's last line.

        Args:
            steps: how many optimizer steps to draw, at least 1.
            lr: the peak rate, by which the policy's factor is multiplied.
            ax: where to draw (default: a new figure).

        Returns:
            The Axes of the learning rate.

        Raises:
            ValueError, TypeError, ImportError: as for :func:`plot_policy`.
        """
        from ..plotting import plot_policy

        return plot_policy(self, steps, lr, ax)

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the curves as an inline SVG picture; None, for the text, where ``at`` fails."""
        from ..svg import or_none, policy_html

        return or_none(lambda: policy_html(self))

    def __getstate__(self) -> Any:
        # Cached values are left out and computed anew: another version may compute them differently.
        state = getattr(super(), "__getstate__", lambda: self.__dict__)()
        if not isinstance(state, dict):
            return state
        return {
            key: value
            for key, value in state.items()
            if not isinstance(getattr(type(self), key, None), cached_property)
        }

    def __post_init__(self) -> None:
        if is_dataclass(self):
            for field in fields(self):
                if "rule" in field.metadata:
                    value = field.metadata["rule"](field.name, getattr(self, field.name))
                    # numpy's numbers become Python's, or a checkpoint would not be plain data. A frozen dataclass
                    # has no other way to change its fields.
                    object.__setattr__(self, field.name, value)


def class_hint(value: object, keyword: str = "") -> str:
    """The end of an error message: what to write where a policy's class, or a partial of it, was given."""
    policy = value.func if isinstance(value, partial) else value
    if not isinstance(policy, type) or not issubclass(policy, Policy):
        return ""
    if isinstance(value, partial):
        return f": call it, {keyword}{written(policy, *value.args, **value.keywords)}"
    if policy is Policy:
        return f": pass an instance of a subclass, for example {keyword}OneCycle(total_steps=len(loader) * epochs)"
    return f": pass an instance, {keyword}{written(policy)}"


#: The field that is commonly the length of the whole run.
_WHOLE_RUN = {
    "OneCycle": "total_steps",
    "LinearDecay": "total_steps",
    "WarmupStableDecay": "total_steps",
    "CosineDecay": "t_max",
    "PolynomialDecay": "total_iters",
}


def written(policy: type[Policy], *args: Any, **arguments: Any) -> str:
    """How a policy is made in code, with these arguments and all that it cannot do without."""
    if not is_dataclass(policy):
        return f"{policy.__name__}(...)"
    required = [field.name for field in fields(policy)[len(args) :] if is_required(field)]
    run = _WHOLE_RUN.get(policy.__name__)
    missing = {name: "len(loader) * epochs" if name == run else "..." for name in required if name not in arguments}
    given = {name: shown(value) for name, value in arguments.items()}
    return (
        f"{policy.__name__}({', '.join([*map(shown, args), *(f'{k}={v}' for k, v in {**missing, **given}.items())])})"
    )


def is_required(field: Field[Any]) -> bool:
    """Whether a dataclass cannot be made without this field."""
    return field.default is MISSING and field.default_factory is MISSING


def steady_from(policy: Policy) -> int | None:
    """The step from which on its values are the same until the next report; None if there is none."""
    end = policy.end
    return 0 if end is None and policy.period == 1 else end


class FallsToMinFactor(Policy):
    """A policy whose rates lie between the field ``min_factor`` and the peak. It does not change momentum."""

    min_factor: float

    @cached_property
    def _span(self) -> Span:
        return Span.between(Values(self.min_factor), Values(1.0))


class Span(NamedTuple):
    """All values between two ends, with their differences. Both ends have a momentum, or neither has."""

    low_factor: float
    high_factor: float
    factors: float
    low_momentum: float
    high_momentum: float
    momenta: float | None

    @classmethod
    def between(cls, low: Values, high: Values) -> Span:
        if low.momentum is None or high.momentum is None:
            return cls(low.lr_factor, high.lr_factor, high.lr_factor - low.lr_factor, 0.0, 0.0, None)
        momenta = high.momentum - low.momentum
        return cls(low.lr_factor, high.lr_factor, high.lr_factor - low.lr_factor, low.momentum, high.momentum, momenta)


def blend(span: Span, height: float, depth: float | None = None) -> Values:
    """The values at the fraction ``height`` of the way from the low end to the high end; ``depth`` is ``1 - height``.

    Exact at both ends, never outside them for a height in [0, 1], and accurate to a few units in the last place
    however far apart the ends are: each half is computed from the nearer end, so that nothing cancels. Momentum may
    be close to 0 at the high end, where the difference ``1 - height`` has no digits left. Callers of policies that
    cycle momentum therefore pass a ``depth`` that is as exact as ``height``.
    """
    low, high, factors, low_momentum, high_momentum, momenta = span
    if height < 0.5:
        momentum = None if momenta is None else low_momentum + momenta * height
        return new_values(Values, (low + factors * height, momentum, None))
    if depth is None:
        depth = 1 - height
    momentum = None if momenta is None else high_momentum - momenta * depth
    return new_values(Values, (high - factors * depth, momentum, None))


#: ``new_values(Values, (lr_factor, momentum, None))`` takes half the time of ``Values(...)``, on every step.
new_values = tuple.__new__


def rise(fraction: float) -> float:
    """The cosine ramp (1 - cos(pi x)) / 2, from 0 to 1, written without the cancellation at its foot."""
    root = sin(_QUARTER_TURN * fraction)
    return root * root


_QUARTER_TURN = math.pi / 2
