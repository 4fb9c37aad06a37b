"""What every policy shares: the contract, the checks of its arguments, the one interpolation."""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from math import sin
from typing import Any, NamedTuple

#: Steps, and lengths in steps, are below this: what an int64 counts, and what all formulas can be asked.
MOST_STEPS = 2**63


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxtuple, self.maxlist, self.maxset, self.maxfrozenset = 4, 12, 12, 12, 12, 12
        self.maxstring, self.maxother, self.maxlong = 500, 2000, 500

    def repr_int(self, x: int, level: int) -> str:
        # Python itself refuses to write out ints of very many digits.
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"<int of {x.bit_length()} bits>"


_shown = _Shown()


def shown(value: Any) -> str:
    """``repr(value)`` for an error: shortened where it is long, and never an error itself, whatever the value."""
    return _shown.repr(value)


class Values(NamedTuple):
    """What a policy says of one step: how much of the peak, and which momentum."""

    lr_factor: float
    """What a group's peak (``max_lr``) is multiplied by."""
    momentum: float | None = None
    """What replaces the group's momentum; None where the policy leaves momentum alone."""


class Policy(ABC):
    """A schedule as a value: ``at(step)`` is all there is to it.

    Subclass it, write ``at``, and the optimizer can use it. ``at`` must be a pure function of the
    step (asking twice, or in any order, gives the same answer) and is defined for every integer
    ``0 <= step < 2**63``, counted in optimizer steps, not epochs. A frozen dataclass is the natural form: it
    prints, compares and pickles.

        @dataclass(frozen=True)
        class Sawtooth(Policy):
            length: int

            def at(self, step):
                return Values(lr_factor=1 - (step % self.length) / self.length)

    Tell its ``period`` or ``end`` where it has one. The other methods are for policies that also listen to a metric
    (:class:`Plateau`).
    """

    @abstractmethod
    def at(self, step: int) -> Values:
        """``(lr_factor, momentum)`` in force for the step with this number, the first one being 0."""

    @property
    def period(self) -> int | None:
        """The number of steps after which the values repeat exactly; None if they do not."""
        return None

    @property
    def end(self) -> int | None:
        """The step from which on the values stay what they are; None if they never do."""
        return None

    # What follows is for policies that also listen to a metric (Plateau); for all others there is
    # no state, and `at` has the last word.

    def initial_state(self) -> dict[str, Any] | None:
        """What the policy remembers of reported metrics, before any: plain data, or None."""
        return None

    def after(self, state: dict[str, Any], step: int) -> Values:
        """``at`` for a policy that remembers reports: ``state`` is what :meth:`report` last returned."""
        return self.at(step)

    def report(self, state: dict[str, Any] | None, metric: float) -> dict[str, Any]:
        """The state after one more reported metric; the given one is left as it was.

        A policy that depends on the step alone raises a TypeError.
        """
        raise TypeError(
            f"need a policy that listens to a metric (Plateau), got {self!r}, which depends on the step alone"
        )

    def check_state(self, state: object) -> None:
        """Refuse a state, read from a checkpoint, that this policy cannot have written.

        Raises:
            ValueError: it cannot; the message says why.
        """
        if state is not None:
            raise ValueError(f"need no state of reports for {self!r}, got {state!r}")

    def __getstate__(self) -> Any:
        # What is worked out from the fields is worked out anew: another version may do it differently.
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
                    # A frozen dataclass has no other way to keep numpy's numbers out of itself
                    # (a checkpoint with them in it is not plain data any more).
                    object.__setattr__(self, field.name, value)


class FallsToMinFactor(Policy):
    """A policy whose rates lie between ``min_factor``, a field, and the peak, and that leaves momentum alone."""

    min_factor: float

    @cached_property
    def _span(self) -> Span:
        return Span.between(Values(self.min_factor), Values(1.0))


@dataclass(frozen=True)
class Rule:
    """What one argument must be; called with its name and value, returns the value as plain data."""

    kind: type  # int, float, bool, str or tuple
    text: str = ""  # the bound, with {} for the argument's name
    holds: Callable[[Any], bool] = lambda value: True
    optional: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        if value is None and self.optional:
            return None
        value = _CONVERTERS[self.kind](name, value)
        if not self.holds(value):
            raise ValueError(f"need {self.text.format(name)}, got {name}={shown(value)}")
        return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if int(value) >= MOST_STEPS:
            raise ValueError(f"need {name} < 2**63 (a number of optimizer steps), got {name}={shown(value)}")
        return int(value)
    hint = f": pass an int, for example int({name})" if isinstance(value, numbers.Real) else ""
    raise TypeError(f"need {name} to be an int (a number of optimizer steps), got {name}={shown(value)}{hint}")


def _real(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"need {name} to be a number, got {name}={shown(value)}")
    plain = finite(name, value)
    # An int stays an int: it counts exactly.
    return int(value) if isinstance(value, numbers.Integral) else plain


def finite(name: str, value: Any, minimum: float = -math.inf, where: str = "") -> float:
    """``value`` as Python's float, or a ValueError: for numbers, and for what a user's function returned."""
    try:
        plain = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an int beyond the range of floats
        plain = math.inf
    if not math.isfinite(plain) or plain < minimum:
        bound = f" >= {minimum}" if minimum > -math.inf else ""
        raise ValueError(f"need {name} to be a finite number{bound}, got {name}={shown(value)}{where}")
    return plain


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"need {name} to be True or False, got {name}={shown(value)}")
    return value


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"need {name} to be a string, got {name}={shown(value)}")
    return str.__str__(value)  # an enum's or numpy's string is no plain data


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"need {name} to be callable, got {name}={shown(value)}")
    return value


def _wholes(name: str, value: Any) -> tuple[int, ...]:
    try:
        items = tuple(value)
    except TypeError:
        raise TypeError(f"need {name} to be a sequence of ints, got {name}={shown(value)}") from None
    return tuple(_whole(f"{name}[{i}]", item) for i, item in enumerate(items))


_CONVERTERS: dict[Any, Callable[[str, Any], Any]] = {
    int: _whole,
    float: _real,
    bool: _flag,
    str: _word,
    tuple: _wholes,
    Callable: _function,
}


def whole(minimum: int, *, optional: bool = False) -> dict[str, Rule]:
    """Field metadata: an int of at least ``minimum``."""
    return {"rule": Rule(int, f"{minimum} <= {{}}", lambda value: value >= minimum, optional)}


def real(text: str, holds: Callable[[float], bool]) -> dict[str, Rule]:
    """Field metadata: a finite number for which ``holds``; ``text`` says so, with {} for its name."""
    return {"rule": Rule(float, text, holds)}


def one_of(*words: str) -> dict[str, Rule]:
    """Field metadata: one of these strings."""
    return {"rule": Rule(str, "{} to be one of " + ", ".join(map(repr, words)), lambda value: value in words)}


def ascending(minimum: int, *, repeats: bool) -> dict[str, Rule]:
    """Field metadata: a sequence of ints in ascending order, the first at least ``minimum``."""
    order = operator.le if repeats else operator.lt
    sign = "<=" if repeats else "<"
    return {
        "rule": Rule(
            tuple,
            f"{minimum} <= {{0}}[0] {sign} {{0}}[1] {sign} ...",
            lambda items: all(map(order, items, items[1:])) and all(item >= minimum for item in items),
        )
    }


FLAG = {"rule": Rule(bool)}
FUNCTION = {"rule": Rule(Callable)}  # type: ignore[arg-type]
OPTIONAL_FUNCTION = {"rule": Rule(Callable, optional=True)}  # type: ignore[arg-type]
AT_LEAST_ONE = real("1 <= {}", lambda value: value >= 1)
UNIT = real("0 <= {} <= 1", lambda value: 0 <= value <= 1)
POSITIVE_UNIT = real("0 < {} <= 1", lambda value: 0 < value <= 1)


def check_momenta(base_momentum: float, max_momentum: float) -> None:
    """The range a cycling momentum moves in must not be upside down."""
    if base_momentum > max_momentum:
        raise ValueError(f"need base_momentum <= max_momentum, got {base_momentum=}, {max_momentum=}")


def step_index(step: int) -> int:
    """``step`` as an int; whatever is not a whole number >= 0, and below 2**63, is refused."""
    if type(step) is int and 0 <= step < MOST_STEPS:
        return step
    try:
        index = operator.index(step)
    except TypeError:
        raise TypeError(f"need step to be an int (optimizer steps, not epochs), got step={shown(step)}") from None
    if index < 0:
        raise ValueError(f"need 0 <= step, got step={shown(step)}")
    if index >= MOST_STEPS:
        raise ValueError(f"need step < 2**63, got step={shown(step)}")
    return index


class Span(NamedTuple):
    """All values between two, worked out once; both have a momentum, or neither has."""

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
    """The values ``height`` of the way from the low end to the high one, and ``depth = 1 - height`` from the high one.

    Exact at both ends, never outside them for a height in [0, 1], and accurate to a few units in
    the last place however far apart the ends are: each half is measured from its own end, so that
    nothing cancels. A momentum may be next to 0 at the high end, where the difference ``1 - height`` has
    no digits left: whoever has one says ``depth`` as exactly as ``height``.
    """
    low, high, factors, low_momentum, high_momentum, momenta = span
    if height < 0.5:
        momentum = None if momenta is None else low_momentum + momenta * height
        return new_values(Values, (low + factors * height, momentum))
    if depth is None:
        depth = 1 - height
    momentum = None if momenta is None else high_momentum - momenta * depth
    return new_values(Values, (high - factors * depth, momentum))


#: Half the time of Values(...), on every step: ``new_values(Values, (lr_factor, momentum))``.
new_values = tuple.__new__


def rise(fraction: float) -> float:
    """The cosine ramp (1 - cos(pi x)) / 2, from 0 to 1, written without the cancellation at its foot."""
    root = sin(_QUARTER_TURN * fraction)
    return root * root


_QUARTER_TURN = math.pi / 2
